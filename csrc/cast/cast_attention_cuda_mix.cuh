// How tokens are mixed from clusters: attention whose keys are the surrogates and whose values are the summaries, save
// where the token is a member, whose value is its own row of the attention within the cluster.
#pragma once

#include <cstdint>

#include "cast/cast_attention_cuda_tiles.cuh"

namespace sturdy::cuda::clustered {

// A softmax whose scores come in pieces: their maximum so far, each lane's part of the sum, and the weighted values.
template <typename Engine, int E>
struct RunningSoftmax {
  using A = typename Engine::A;
  A maximum[Engine::halves];
  A sum[Engine::halves];
  typename Engine::template Sums<E> values;

  // Takes in a piece's scores, each row's still to be multiplied by a factor above 0; they become weights relative to
  // the new maximum. A score of NaN makes its weight and so the sum NaN, whatever the maximum is.
  template <int N>
  STURDY_DEVICE void take_scores(typename Engine::template Sums<N>& scores, const A (&factor)[Engine::halves]) {
    A correction[Engine::halves];
#pragma unroll
    for (int h = 0; h < Engine::halves; ++h) {
      A largest = minus_infinity<A>();
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        largest = max(largest, scores.value[h][i / Engine::vector][i % Engine::vector]);
      }
      largest = max(maximum[h], warp_max<4>(largest) * factor[h]);
      const A origin = largest == minus_infinity<A>() ? A(0) : largest;  // nothing yet: every weight is 0
      correction[h] = exponential<Engine::tensor>(maximum[h] - origin);
      maximum[h] = largest;
      A added = 0;
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        A& score = scores.value[h][i / Engine::vector][i % Engine::vector];
        score = exponential<Engine::tensor>(score * factor[h] - origin);
        added += score;
      }
      sum[h] = sum[h] * correction[h] + added;
    }
    values.scale(correction);
  }

  STURDY_DEVICE A total(int half) const { return warp_sum<4>(sum[half]); }
};

// Cluster tile in shared memory.
template <typename T>
struct ClusterTile {
  T* surrogates;
  T* summaries;
  int* rows;  // cluster of each row; -1: not there, or empty
};

// Fills a tile with clusters from `first`, without the one left out. By the whole block, which must not be using it.
template <typename T, int E, int Columns>
STURDY_DEVICE void stage_clusters(const Problem& p, int64_t sequence, int head, int first, const void* summaries,
                                  int left_out, const ClusterTile<T>& tile) {
  for (int i = static_cast<int>(threadIdx.x); i < Columns; i += kThreads) {
    const int cluster = first + i;
    const bool taken =
        cluster < p.clusters && cluster != left_out && p.membership.lengths[sequence * p.clusters + cluster] > 0;
    tile.rows[i] = taken ? cluster : -1;
  }
  __syncthreads();
  stage_rows<T, E>(p.surrogates.of<T>(0, head), p.surrogates.stride[2], p.surrogates.packed, p.dim, tile.rows, Columns,
                   tile.surrogates);
  stage_sums<T, E>(static_cast<const Accumulate<T>*>(summaries) + p.cluster_row(sequence, head, 0) * p.dim,
                   p.summaries_packed, p.dim, tile.rows, Columns, tile.summaries);
  cp_async_wait_all();
  __syncthreads();
}

// What the four lanes of a row found, together.
STURDY_DEVICE unsigned memberships_of_row(unsigned found) {
  found |= shuffle_xor(found, 1);
  return found | shuffle_xor(found, 2);
}

// A warp's rows of tokens.
template <typename Engine>
struct TokenRows {
  int token[Engine::halves];  // -1: not to be computed
  int2 owner[Engine::halves];
  typename Engine::A factor[Engine::halves];  // of the scores: sp(phi) / tau_q; 1 where there is no token
};

// Adds P O of the clusters that the rows' tokens are in, and takes these clusters out of the weights. The four lanes of
// a row hand their weights to each other through `handed`, shared memory for a block of clusters a row.
template <typename T, int E, bool Tensor>
STURDY_DEVICE void add_memberships(const Problem& p, int64_t sequence, int head, int first,
                                   const TokenRows<Engine<T, Tensor>>& rows,
                                   const unsigned (&memberships)[Engine<T, Tensor>::halves],
                                   typename Engine<T, Tensor>::template Sums<Shape<T, E, Tensor>::few>& weights,
                                   Accumulate<T>* handed, RunningSoftmax<Engine<T, Tensor>, E>& state) {
  using Engine = clustered::Engine<T, Tensor>;
  constexpr int few = Shape<T, E, Tensor>::few;
  for_each_element(weights, [&](int h, int j, int v) {
    const int column = Engine::score_column(j, v);
    if ((memberships[h] >> column & 1) != 0) {
      handed[Engine::row(h) * few + column] = weights.value[h][j][v];
      weights.value[h][j][v] = 0;
    }
  });
  __syncwarp();
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    unsigned left = memberships_of_row(memberships[h]);
    while (left != 0) {
      const int column = __ffs(static_cast<int>(left)) - 1;
      left &= left - 1;
      const int slot = find_slot(p, sequence, first + column, rows.token[h], rows.owner[h]);
      const int64_t at = p.cluster_row(sequence, head, first + column) * p.slots + slot;
      add_row<Engine, E>(static_cast<const T*>(p.intra.data) + at * p.dim, p.intra.packed, p.dim,
                         handed[Engine::row(h) * few + column], h, state.values);
    }
  }
  __syncwarp();  // the weights are free again
}

// Mixes all clusters but the one left out into `state`, by the whole block. q is the tile of queries, `tile` room for
// Columns clusters. Without Members, no token is in the clusters that are mixed.
template <typename T, int E, bool Tensor, int Columns, bool Members>
STURDY_DEVICE void mix_clusters(const Problem& p, int64_t sequence, int head, int left_out,
                                const TokenRows<Engine<T, Tensor>>& rows, const T* q, Accumulate<T>* scratch,
                                Accumulate<T>* member_weights, const ClusterTile<T>& tile,
                                RunningSoftmax<Engine<T, Tensor>, E>& state) {
  using Engine = clustered::Engine<T, Tensor>;
  using A = Accumulate<T>;
  constexpr int few = Shape<T, E, Tensor>::few;
  constexpr int pitch = Shape<T, E, Tensor>::pitch;
#pragma unroll 1
  for (int first = 0; first < p.clusters; first += Columns) {
    __syncthreads();
    stage_clusters<T, E, Columns>(p, sequence, head, first, p.summaries, left_out, tile);
#pragma unroll 1
    for (int block = 0; block < Columns && first + block < p.clusters; block += few) {
      typename Engine::template Sums<few> weights;
      Engine::template multiply_rows<E, few>(q + warp_index() * Engine::warp_rows * pitch,
                                             tile.surrogates + block * pitch, pitch, weights);
      [[maybe_unused]] unsigned memberships[Engine::halves] = {};  // a bit for each of the columns
      for_each_element(weights, [&](int h, int j, int v) {
        const int column = Engine::score_column(j, v);
        const int cluster = tile.rows[block + column];
        weights.value[h][j][v] = cluster >= 0 ? weights.value[h][j][v] : minus_infinity<A>();
        if constexpr (Members) {
          const bool there = cluster >= 0 && rows.token[h] >= 0;
          if (there && find_slot(p, sequence, cluster, rows.token[h], rows.owner[h]) >= 0) {
            memberships[h] |= 1u << column;
          }
        }
      });
      state.template take_scores<few>(weights, rows.factor);
      if constexpr (Members) {
        const bool any = memberships[0] != 0 || memberships[Engine::halves - 1] != 0;
        if (__any_sync(full_warp, any) != 0) {
          add_memberships<T, E, Tensor>(p, sequence, head, first + block, rows, memberships, weights, member_weights,
                                        state);
        }
      }
      Engine::template multiply_columns<few, E>(weights, scratch, tile.summaries + block * pitch, pitch, state.values);
    }
  }
}

// Writes rows of the output and of lse_mix; where no cluster has a token, zeros.
template <typename T, int E, bool Tensor>
STURDY_DEVICE void store_mixed(const Problem& p, int64_t sequence, int head,
                               const int (&token)[Engine<T, Tensor>::halves],
                               const RunningSoftmax<Engine<T, Tensor>, E>& state) {
  using A = Accumulate<T>;
#pragma unroll
  for (int h = 0; h < Engine<T, Tensor>::halves; ++h) {
    const A total = state.total(h);
    T* row = token[h] < 0 ? nullptr : p.out.of<T>(sequence, head) + token[h] * p.out.stride[2];
    store_row<Engine<T, Tensor>, T, E>(row, p.out.packed, p.dim, state.values, h, total > A(0) ? A(1) / total : total);
    if (row != nullptr && p.keep && lane_index() % 4 == 0) {
      const A lse = total == A(0) ? minus_infinity<A>() : state.maximum[h] + log(total);
      static_cast<A*>(p.lse_mix)[(sequence * p.heads + head) * p.tokens + token[h]] = lse;
    }
  }
}

}  // namespace sturdy::cuda::clustered
