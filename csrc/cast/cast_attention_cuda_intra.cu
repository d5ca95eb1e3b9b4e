// Attention within clusters: rows are gathered by the tokens of the cluster.
#include "cast/cast_attention_cuda_intra.cuh"
#include "cast/cast_attention_cuda_mix.cuh"

// ptxas-budget: intra_kernel 255

namespace sturdy::cuda::clustered {
namespace {

template <typename T, int E, bool Tensor>
struct IntraShared {
  using S = Shape<T, E, Tensor>;
  static constexpr int tile = S::columns * S::pitch;
  alignas(16) T q[S::rows * S::pitch];
  alignas(16) T k[S::stages * tile];
  alignas(16) T v[S::stages * tile];
  alignas(16) Accumulate<T> scratch[S::Engine::template scratch_elements<S::columns>];
  int queries[S::rows];
  int keys[3 * S::columns];
};

// Writes what a tile of queries attends to within its cluster, zeros in empty slots.
template <typename T, int E, bool Tensor>
STURDY_DEVICE void store_intra(const Problem& p, const SlotTile& place, const int* queries,
                               const RunningSoftmax<Engine<T, Tensor>, E>& state) {
  using Engine = clustered::Engine<T, Tensor>;
  using A = Accumulate<T>;
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const A total = state.total(h);
    const int slot = place.first + Engine::row(h);
    const bool taken = queries[Engine::row(h)] >= 0;
    const bool stored = slot < p.slots && (taken || p.keep);
    const int64_t at = place.row * p.slots + slot;
    store_row<Engine, T, E>(stored ? static_cast<T*>(p.intra.data) + at * p.dim : nullptr, p.intra.packed, p.dim,
                            state.values, h, taken ? A(1) / total : A(0));
    if (stored && p.keep && lane_index() % 4 == 0) {
      static_cast<A*>(p.lse_intra)[at] = taken ? state.maximum[h] + log(total) : minus_infinity<A>();
    }
  }
}

// A block takes a tile of queries and walks the keys of the cluster. Where clusters are disjoint it goes on to mix the
// summaries of the others into the same sums, and writes the output.
template <typename T, int E, bool Tensor>
__global__ void __launch_bounds__(kThreads, (Shape<T, E, Tensor>::blocks)) intra_kernel(Problem p) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  STURDY_DYNAMIC_SHARED(unsigned char, memory);
  auto& shared = *reinterpret_cast<IntraShared<T, E, Tensor>*>(memory);
  const SlotTile place(p, S::rows);
  const int32_t* members = place.members(p);
  RunningSoftmax<Engine, E> state{};
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    state.maximum[h] = minus_infinity<A>();
    state.sum[h] = A(0);
  }
  look_up_tokens(members, place.length, place.first, S::rows, shared.queries);
  __syncthreads();
  if (place.first >= place.length) {
    if (p.keep) {
      store_intra<T, E, Tensor>(p, place, shared.queries, state);
    }
    return;
  }
  uint64_t keys[Engine::halves];
  A factor[Engine::halves];
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    factor[h] = static_cast<A>(p.scale);
    keys[h] = dropout_key(p, place.row, place.first + Engine::row(h));
  }
  stage_rows<T, E>(p.q.of<T>(place.sequence, place.head), p.q.stride[2], p.q.packed, p.dim, shared.queries, S::rows,
                   shared.q);
  const T* own_q = shared.q + warp_index() * Engine::warp_rows * S::pitch;
  walk_tiles<S::stages>(
      ceil_div(place.length, S::columns),
      [&](int t, int slot) {
        look_up_tokens(members, place.length, int64_t{t} * S::columns, S::columns, shared.keys + slot * S::columns);
      },
      [&](int, int stage, int slot) {
        const int* tokens = shared.keys + slot * S::columns;
        stage_rows<T, E>(p.k.of<T>(place.sequence, place.head), p.k.stride[2], p.k.packed, p.dim, tokens, S::columns,
                         shared.k + stage * shared.tile);
        stage_rows<T, E>(p.v.of<T>(place.sequence, place.head), p.v.stride[2], p.v.packed, p.dim, tokens, S::columns,
                         shared.v + stage * shared.tile);
      },
      [&](int t, int stage, int slot) {
        const int* tokens = shared.keys + slot * S::columns;
        typename Engine::template Sums<S::columns> weights;
        Engine::template multiply_rows<E, S::columns>(own_q, shared.k + stage * shared.tile, S::pitch, weights);
        for_each_element(weights, [&](int h, int j, int v) {
          const bool there = tokens[Engine::score_column(j, v)] >= 0;
          weights.value[h][j][v] = there ? weights.value[h][j][v] : minus_infinity<A>();
        });
        state.template take_scores<S::columns>(weights, factor);
        if (p.seed != nullptr) {
          for_each_element(weights, [&](int h, int j, int v) {
            weights.value[h][j][v] *= dropout_factor<A>(p, keys[h], t * S::columns + Engine::score_column(j, v));
          });
        }
        Engine::template multiply_columns<S::columns, E>(weights, shared.scratch, shared.v + stage * shared.tile,
                                                         S::pitch, state.values);
      });
  if (p.keep || !p.disjoint) {
    store_intra<T, E, Tensor>(p, place, shared.queries, state);
  }
  if (!p.disjoint) {
    return;
  }
  // The cluster's own row enters the mixture as its first value.
  TokenRows<Engine> rows;
  const T* surrogate = p.surrogates.of<T>(0, place.head) + place.cluster * p.surrogates.stride[2];
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int token = shared.queries[Engine::row(h)];
    rows.token[h] = token;
    rows.owner[h] = make_int2(-1, -1);  // the only membership is left out
    rows.factor[h] =
        token >= 0 ? shifted_softplus(load_gate<T>(p, place.sequence, token)) * static_cast<A>(p.scale_q) : A(1);
    const A share = A(1) / state.total(h);
    const A score =
        four_lane_dot<E>(shared.q + Engine::row(h) * S::pitch, surrogate, p.surrogates.packed, p.dim) * rows.factor[h];
#pragma unroll
    for (int i = 0; i < E / 4; ++i) {
      state.values.value[h][i / Engine::vector][i % Engine::vector] *= share;
    }
    state.maximum[h] = score;
    state.sum[h] = lane_index() % 4 == 0 ? A(1) : A(0);
  }
  mix_clusters<T, E, Tensor, S::columns, false>(p, place.sequence, place.head, place.cluster, rows, shared.q,
                                                shared.scratch, nullptr, {shared.k, shared.v, shared.keys}, state);
  store_mixed<T, E, Tensor>(p, place.sequence, place.head, rows.token, state);
}

template <typename T, int E, bool Tensor>
struct Intra {
  static Status run(const Problem& p, void* stream) {
    constexpr size_t bytes = sizeof(IntraShared<T, E, Tensor>);
    static_assert(bytes <= kSharedBudget, "a block has room for its tiles");
    return launch_blocks(intra_kernel<T, E, Tensor>, slot_tiles(p, Shape<T, E, Tensor>::rows), kThreads, bytes, stream,
                         p);
  }
};

}  // namespace

Status run_intra(DType dtype, bool allow_tf32, const Problem& p, void* stream) {
  return dispatch<Intra>(dtype, allow_tf32, p.dim, p, stream);
}

}  // namespace sturdy::cuda::clustered
