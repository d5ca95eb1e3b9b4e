// Gradients of the mixture of clusters. With D the gradient of a token's weight P of a cluster (G . r, or G . O where
// the token is a member), dZ = P (D - G . R): once by tokens, for queries and gates, once by clusters.
#include "cast/cast_attention_cuda_mix.cuh"

// ptxas-budget: mix_token_gradient_kernel 255
// ptxas-budget: mix_cluster_gradient_kernel 255

namespace sturdy::cuda::clustered {
namespace {

// ----------------------------------------------------------------------------------------------------------- tokens

template <typename T, int E, bool Tensor>
struct TokenShared {
  using S = Shape<T, E, Tensor>;
  alignas(16) T q[S::rows * S::pitch];
  alignas(16) T grad[S::rows * S::pitch];
  alignas(16) T surrogates[S::columns * S::pitch];
  alignas(16) T summaries[S::columns * S::pitch];
  alignas(16) Accumulate<T> scratch[S::Engine::template scratch_elements<S::few>];
  int tokens[S::rows];
  int clusters[S::columns];
};

// What the four lanes of a row know of its token.
template <typename A>
struct TokenScalars {
  int token;  // -1: none
  int2 owner;
  A factor, lse, delta;
};

template <typename T>
STURDY_DEVICE void load_token(const Problem& p, const Gradients& d, int64_t sequence, int head, int token,
                              TokenScalars<Accumulate<T>>& scalars) {
  using A = Accumulate<T>;
  const bool there = token >= 0;
  const int64_t at = (sequence * p.heads + head) * p.tokens + max(token, 0);
  scalars.token = token;
  scalars.owner = owner_of(p, sequence, token);
  scalars.factor = there ? shifted_softplus(load_gate<T>(p, sequence, token)) * static_cast<A>(p.scale_q) : A(0);
  scalars.lse = there ? static_cast<const A*>(p.lse_mix)[at] : A(0);
  scalars.delta = there ? static_cast<const A*>(d.delta)[at] : A(0);
}

// A block takes a tile of neighbouring tokens of one head. Adds the gradient of q through the cluster, which its slots
// or, with disjoint clusters, its own rows hold.
template <typename T, int E, bool Tensor>
__global__ void __launch_bounds__(kThreads, (Shape<T, E, Tensor>::blocks))
    mix_token_gradient_kernel(Problem p, Gradients d) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  constexpr int few = S::few;
  STURDY_DYNAMIC_SHARED(unsigned char, memory);
  auto& shared = *reinterpret_cast<TokenShared<T, E, Tensor>*>(memory);
  const int tiles = ceil_div(p.tokens, S::rows);
  const int head = static_cast<int>(blockIdx.x % p.heads);  // heads lie side by side in memory
  const int first_token = static_cast<int>(blockIdx.x / p.heads % tiles) * S::rows;
  const int64_t sequence = blockIdx.x / p.heads / tiles;
  const int lane = lane_index();
  for (int i = static_cast<int>(threadIdx.x); i < S::rows; i += kThreads) {
    const int token = first_token + i;
    shared.tokens[i] = token < p.tokens && is_token(p.padding, sequence, token) ? token : -1;
  }
  __syncthreads();
  stage_rows<T, E>(p.q.of<T>(sequence, head), p.q.stride[2], p.q.packed, p.dim, shared.tokens, S::rows, shared.q);
  stage_rows<T, E>(d.out.of<T>(sequence, head), d.out.stride[2], d.out.packed, p.dim, shared.tokens, S::rows,
                   shared.grad);
  TokenScalars<A> rows[Engine::halves];
  A gate_grad[Engine::halves] = {};
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    load_token<T>(p, d, sequence, head, shared.tokens[Engine::row(h)], rows[h]);
  }
  typename Engine::template Sums<E> sums;
  const int own = warp_index() * Engine::warp_rows * S::pitch;
#pragma unroll 1
  for (int first = 0; first < p.clusters; first += S::columns) {
    __syncthreads();
    stage_clusters<T, E, S::columns>(p, sequence, head, first, p.summaries, -1,
                                     {shared.surrogates, shared.summaries, shared.clusters});
#pragma unroll 1
    for (int block = 0; block < S::columns && first + block < p.clusters; block += few) {
      typename Engine::template Sums<few> scores;
      typename Engine::template Sums<few> grads;
      unsigned memberships[Engine::halves] = {};  // a bit for each of the columns
      Engine::template multiply_rows<E, few>(shared.q + own, shared.surrogates + block * S::pitch, S::pitch, scores);
      Engine::template multiply_rows<E, few>(shared.grad + own, shared.summaries + block * S::pitch, S::pitch, grads);
      for_each_element(scores, [&](int h, int j, int v) {
        const int cluster = shared.clusters[block + Engine::score_column(j, v)];
        const bool there = cluster >= 0 && rows[h].token >= 0;
        const int slot = there ? find_slot(p, sequence, cluster, rows[h].token, rows[h].owner) : -1;
        A& score = scores.value[h][j][v];
        A grad = grads.value[h][j][v];
        if (slot >= 0) {
          const int64_t at = p.cluster_row(sequence, head, cluster) * p.slots + slot;
          grad = static_cast<const A*>(d.slot_delta)[at];
        }
        const A weight = there ? exponential<Tensor>(score * rows[h].factor - rows[h].lse) : A(0);
        const A score_grad = weight * (grad - rows[h].delta);
        gate_grad[h] += score_grad * score;
        score = score_grad * rows[h].factor;
        if (slot >= 0) {
          memberships[h] |= 1u << Engine::score_column(j, v);
        }
      });
      Engine::template multiply_columns<few, E>(scores, shared.scratch, shared.surrogates + block * S::pitch, S::pitch,
                                                sums);
      if (p.disjoint) {
        continue;
      }
#pragma unroll
      for (int h = 0; h < Engine::halves; ++h) {
        unsigned left = memberships_of_row(memberships[h]);
        while (left != 0) {
          const int cluster = first + block + __ffs(static_cast<int>(left)) - 1;
          left &= left - 1;
          const int slot = find_slot(p, sequence, cluster, rows[h].token, rows[h].owner);
          const int64_t from = p.cluster_row(sequence, head, cluster) * p.slots + slot;
          add_row<Engine, E>(static_cast<const T*>(d.slot_q.data) + from * p.dim, d.slot_q.packed, p.dim, A(1), h,
                             sums);
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int token = first_token + Engine::row(h);
    const A grad = warp_sum<4>(gate_grad[h]);
    const bool inside = token < p.tokens;
    T* row = inside ? d.q.of<T>(sequence, head) + token * d.q.stride[2] : nullptr;
    if (p.disjoint) {
      if (rows[h].owner.x >= 0) {
        add_row<Engine, E>(row, d.q.packed, p.dim, A(1), h, sums);
      }
      __syncwarp();  // lanes write what their neighbours read
    }
    store_row<Engine, T, E>(row, d.q.packed, p.dim, sums, h, A(1));
    if (p.disjoint) {  // nobody else writes the gradients of tokens that are in no cluster
      const bool alone = inside && rows[h].owner.x < 0;
      T* row_k = alone ? d.k.of<T>(sequence, head) + token * d.k.stride[2] : nullptr;
      T* row_v = alone ? d.v.of<T>(sequence, head) + token * d.v.stride[2] : nullptr;
      const typename Engine::template Sums<E> zeros{};
      store_row<Engine, T, E>(row_k, d.k.packed, p.dim, zeros, h, A(1));
      store_row<Engine, T, E>(row_v, d.v.packed, p.dim, zeros, h, A(1));
    }
    if (inside && lane % 4 == 0) {
      const bool there = rows[h].token >= 0;
      static_cast<A*>(d.token_phi)[(sequence * p.heads + head) * p.tokens + token] =
          there ? grad * sigmoid(load_gate<T>(p, sequence, token)) * static_cast<A>(p.scale_q) : A(0);
    }
  }
}

template <typename T, int E, bool Tensor>
struct TokenGradient {
  static Status run(const Problem& p, const Gradients& d, void* stream) {
    constexpr size_t bytes = sizeof(TokenShared<T, E, Tensor>);
    static_assert(bytes <= kSharedBudget, "a block has room for its tiles");
    const int64_t tiles = ceil_div(int64_t{p.tokens}, int64_t{Shape<T, E, Tensor>::rows});
    return launch_blocks(mix_token_gradient_kernel<T, E, Tensor>, p.batch * p.heads * tiles, kThreads, bytes, stream, p,
                         d);
  }
};

// --------------------------------------------------------------------------------------------------------- clusters

// How a block's warps share its work: `row_warps` take clusters, the others more of the tokens.
struct ClusterPlan {
  int row_warps;
  int columns;  // tokens at once
};

// Shared memory of the kernel by clusters, whose extent depends on the plan.
template <typename T, int E, bool Tensor>
struct ClusterShared {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  static constexpr int most_columns = 64;
  TokenScalars<A> scalars[3 * most_columns];
  int tokens[3 * most_columns];
  int clusters[S::rows];
  alignas(16) A scratch[Engine::template scratch_elements<S::few>];
  alignas(16) T tiles[1];  // surrogates, summaries, then the stages of q and of its gradients; in the end, sums

  static constexpr size_t bytes(const ClusterPlan& plan) {
    const size_t rows = 2 * static_cast<size_t>(plan.row_warps * Engine::warp_rows + S::stages * plan.columns);
    const size_t sums = sizeof(A) * S::rows * E;
    return sizeof(ClusterShared) + std::max(rows * S::pitch * sizeof(T), sums);
  }
};

template <typename T, int E, bool Tensor>
constexpr ClusterPlan plan_clusters(int clusters) {
  using Engine = clustered::Engine<T, Tensor>;
  ClusterPlan plan{clusters <= Engine::warp_rows ? 1 : clusters <= 2 * Engine::warp_rows ? 2 : 4, 64};
  while (ClusterShared<T, E, Tensor>::bytes(plan) > kSharedBudget) {
    plan.columns /= 2;
  }
  return plan;
}

// Adds up what warps with the same clusters have, and writes it. By the whole block.
template <typename Engine, int E>
STURDY_DEVICE void store_cluster_sums(const ClusterPlan& plan, const typename Engine::template Sums<E>& sums,
                                      typename Engine::A* memory, int count, int dim, typename Engine::A* to) {
  using A = typename Engine::A;
  __syncthreads();
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    A* row = memory + Engine::row(h) * E;
#pragma unroll
    for (int i = 0; i < E / 4; ++i) {
      row[Engine::column(i / Engine::vector) + i % Engine::vector] =
          sums.value[h][i / Engine::vector][i % Engine::vector];
    }
  }
  __syncthreads();
  const int rows = plan.row_warps * Engine::warp_rows;
  for (int i = static_cast<int>(threadIdx.x); i < count * dim; i += kThreads) {
    A sum = 0;
    for (int row = i / dim; row < Engine::rows; row += rows) {
      sum += memory[row * E + i % dim];
    }
    to[i] = sum;
  }
}

// A block takes up to 64 clusters of one head and walks a piece of the sequence's tokens. Warps that share clusters
// take blocks of tokens in turn.
template <typename T, int E, bool Tensor>
__global__ void __launch_bounds__(kThreads, 2) mix_cluster_gradient_kernel(Problem p, Gradients d, ClusterPlan plan) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  constexpr int few = S::few;
  STURDY_DYNAMIC_SHARED(unsigned char, memory);
  auto& shared = *reinterpret_cast<ClusterShared<T, E, Tensor>*>(memory);
  const int rows = plan.row_warps * Engine::warp_rows;
  const int tile = plan.columns * S::pitch;
  T* surrogates = shared.tiles;
  T* summaries = surrogates + rows * S::pitch;
  T* queries = summaries + rows * S::pitch;
  T* grads = queries + S::stages * tile;

  const int cluster_tiles = ceil_div(p.clusters, rows);
  unsigned index = blockIdx.x;
  const int first = static_cast<int>(index % cluster_tiles) * rows;
  index /= cluster_tiles;
  const int head = static_cast<int>(index % p.heads);
  index /= p.heads;
  const int piece = static_cast<int>(index % d.pieces);
  const int64_t sequence = index / d.pieces;
  const int64_t first_token = int64_t{piece} * kPieceTokens;
  const int64_t end_token = min(first_token + kPieceTokens, int64_t{p.tokens});

  for (int i = static_cast<int>(threadIdx.x); i < rows; i += kThreads) {
    const int cluster = first + i;
    const bool taken = cluster < p.clusters && p.membership.lengths[sequence * p.clusters + cluster] > 0;
    shared.clusters[i] = taken ? cluster : -1;
  }
  __syncthreads();
  stage_rows<T, E>(p.surrogates.of<T>(0, head), p.surrogates.stride[2], p.surrogates.packed, p.dim, shared.clusters,
                   rows, surrogates);
  stage_sums<T, E>(static_cast<const A*>(p.summaries) + p.cluster_row(sequence, head, 0) * p.dim, p.summaries_packed,
                   p.dim, shared.clusters, rows, summaries);

  const int row_warp = warp_index() % plan.row_warps;
  const int own = row_warp * Engine::warp_rows * S::pitch;
  int clusters[Engine::halves];
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    clusters[h] = shared.clusters[row_warp * Engine::warp_rows + h * 8 + lane_index() / 4];
  }
  typename Engine::template Sums<E> summary_grads;
  typename Engine::template Sums<E> surrogate_grads;
  walk_tiles<S::stages>(
      static_cast<int>(ceil_div(end_token - first_token, int64_t{plan.columns})),
      [&](int t, int slot) {
        for (int i = static_cast<int>(threadIdx.x); i < plan.columns; i += kThreads) {
          const int64_t token = first_token + int64_t{t} * plan.columns + i;
          const bool there = token < end_token && is_token(p.padding, sequence, static_cast<int>(token));
          const int at = slot * plan.columns + i;
          shared.tokens[at] = there ? static_cast<int>(token) : -1;
          load_token<T>(p, d, sequence, head, there ? static_cast<int>(token) : -1, shared.scalars[at]);
        }
      },
      [&](int, int stage, int slot) {
        const int* tokens = shared.tokens + slot * plan.columns;
        stage_rows<T, E>(p.q.of<T>(sequence, head), p.q.stride[2], p.q.packed, p.dim, tokens, plan.columns,
                         queries + stage * tile);
        stage_rows<T, E>(d.out.of<T>(sequence, head), d.out.stride[2], d.out.packed, p.dim, tokens, plan.columns,
                         grads + stage * tile);
      },
      [&](int, int stage, int slot) {
#pragma unroll 1
        for (int block = warp_index() / plan.row_warps * few; block < plan.columns;
             block += kWarps / plan.row_warps * few) {
          const T* q = queries + stage * tile + block * S::pitch;
          const T* grad = grads + stage * tile + block * S::pitch;
          typename Engine::template Sums<few> scores;  // transposed: a row for each cluster
          typename Engine::template Sums<few> values;
          Engine::template multiply_rows<E, few>(surrogates + own, q, S::pitch, scores);
          Engine::template multiply_rows<E, few>(summaries + own, grad, S::pitch, values);
          for_each_element(scores, [&](int h, int j, int v) {
            const TokenScalars<A>& token = shared.scalars[slot * plan.columns + block + Engine::score_column(j, v)];
            const bool there = clusters[h] >= 0 && token.token >= 0;
            const int slot_of_token = there ? find_slot(p, sequence, clusters[h], token.token, token.owner) : -1;
            A& score = scores.value[h][j][v];
            A& value = values.value[h][j][v];
            if (slot_of_token >= 0) {
              const int64_t at = p.cluster_row(sequence, head, clusters[h]) * p.slots + slot_of_token;
              value = static_cast<const A*>(d.slot_delta)[at];
            }
            const A weight = there ? exponential<Tensor>(score * token.factor - token.lse) : A(0);
            score = weight * (value - token.delta) * token.factor;
            value = slot_of_token >= 0 ? A(0) : weight;
          });
          Engine::template multiply_columns<few, E>(scores, shared.scratch, q, S::pitch, surrogate_grads);
          Engine::template multiply_columns<few, E>(values, shared.scratch, grad, S::pitch, summary_grads);
        }
      });

  const int count = min(rows, p.clusters - first);
  const int64_t at = (piece * p.batch * p.heads * p.clusters + p.cluster_row(sequence, head, first)) * p.dim;
  A* sums = reinterpret_cast<A*>(shared.tiles);
  store_cluster_sums<Engine, E>(plan, summary_grads, sums, count, p.dim, static_cast<A*>(d.summary_pieces) + at);
  store_cluster_sums<Engine, E>(plan, surrogate_grads, sums, count, p.dim, static_cast<A*>(d.surrogate_pieces) + at);
}

template <typename T, int E, bool Tensor>
struct ClusterGradient {
  static Status run(const Problem& p, const Gradients& d, void* stream) {
    static_assert(ClusterShared<T, E, Tensor>::bytes({4, Shape<T, E, Tensor>::few}) <= kSharedBudget,
                  "a block has room for its tiles");
    const ClusterPlan plan = plan_clusters<T, E, Tensor>(p.clusters);
    const int rows = plan.row_warps * Engine<T, Tensor>::warp_rows;
    const int64_t blocks = p.batch * p.heads * d.pieces * ceil_div(p.clusters, rows);
    return launch_blocks(mix_cluster_gradient_kernel<T, E, Tensor>, blocks, kThreads,
                         ClusterShared<T, E, Tensor>::bytes(plan), stream, p, d, plan);
  }
};

}  // namespace

Status run_mix_token_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream) {
  return dispatch<TokenGradient>(dtype, allow_tf32, p.dim, p, d, stream);
}

Status run_mix_cluster_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream) {
  return dispatch<ClusterGradient>(dtype, allow_tf32, p.dim, p, d, stream);
}

}  // namespace sturdy::cuda::clustered
