// Outputs of tokens from the attention within their clusters and the summaries of the others.
#include "cast/cast_attention_cuda_mix.cuh"

// ptxas-budget: mix_kernel 255

namespace sturdy::cuda::clustered {
namespace {

template <typename T, int E, bool Tensor>
struct MixShared {
  using S = Shape<T, E, Tensor>;
  alignas(16) T q[S::rows * S::pitch];
  alignas(16) T surrogates[S::columns * S::pitch];
  alignas(16) T summaries[S::columns * S::pitch];
  alignas(16) Accumulate<T> scratch[S::Engine::template scratch_elements<S::few>];
  Accumulate<T> member_weights[S::rows * S::few];
  int tokens[S::rows];
  int clusters[S::columns];
};

// A block takes a tile of neighbouring tokens of one head. Where clusters are disjoint it is left with the tokens that
// are in none.
template <typename T, int E, bool Tensor>
__global__ void __launch_bounds__(kThreads, (Shape<T, E, Tensor>::blocks)) mix_kernel(Problem p) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  STURDY_DYNAMIC_SHARED(unsigned char, memory);
  auto& shared = *reinterpret_cast<MixShared<T, E, Tensor>*>(memory);
  const int tiles = ceil_div(p.tokens, S::rows);
  const int head = static_cast<int>(blockIdx.x % p.heads);  // heads lie side by side in memory
  const int first = static_cast<int>(blockIdx.x / p.heads % tiles) * S::rows;
  const int64_t sequence = blockIdx.x / p.heads / tiles;

  bool any = false;
  if (threadIdx.x < S::rows) {
    const int token = first + static_cast<int>(threadIdx.x);
    const bool wanted = token < p.tokens && owner_of(p, sequence, token).x < 0;
    // -1: not to be stored. Below that, padding, which is stored as zeros: -2 - token.
    shared.tokens[threadIdx.x] = !wanted ? -1 : is_token(p.padding, sequence, token) ? token : -2 - token;
    any = wanted;
  }
  if (__syncthreads_or(any) == 0) {
    return;
  }
  TokenRows<Engine> rows;
  int stored[Engine::halves];
  bool computes = false;
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int entry = shared.tokens[Engine::row(h)];
    rows.token[h] = max(entry, -1);
    rows.owner[h] = make_int2(-1, -1);
    rows.factor[h] = entry >= 0 ? shifted_softplus(load_gate<T>(p, sequence, entry)) * static_cast<A>(p.scale_q) : A(1);
    stored[h] = entry < -1 ? -2 - entry : entry;
    computes |= entry >= 0;
  }
  RunningSoftmax<Engine, E> state{};
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    state.maximum[h] = minus_infinity<A>();
    state.sum[h] = A(0);
  }
  if (__syncthreads_or(computes) != 0) {
    stage_rows<T, E>(p.q.of<T>(sequence, head), p.q.stride[2], p.q.packed, p.dim, shared.tokens, S::rows, shared.q);
    mix_clusters<T, E, Tensor, S::columns, true>(p, sequence, head, -1, rows, shared.q, shared.scratch,
                                                 shared.member_weights,
                                                 {shared.surrogates, shared.summaries, shared.clusters}, state);
#pragma unroll
    for (int h = 0; h < Engine::halves; ++h) {
      if (rows.token[h] < 0) {  // padding met the clusters with a query of zeros
        state.maximum[h] = minus_infinity<A>();
        state.sum[h] = A(0);
      }
    }
  }
  store_mixed<T, E, Tensor>(p, sequence, head, stored, state);
}

template <typename T, int E, bool Tensor>
struct Mix {
  static Status run(const Problem& p, void* stream) {
    constexpr size_t bytes = sizeof(MixShared<T, E, Tensor>);
    static_assert(bytes <= kSharedBudget, "a block has room for its tiles");
    const int64_t tiles = ceil_div(int64_t{p.tokens}, int64_t{Shape<T, E, Tensor>::rows});
    return launch_blocks(mix_kernel<T, E, Tensor>, p.batch * p.heads * tiles, kThreads, bytes, stream, p);
  }
};

}  // namespace

Status run_mix(DType dtype, bool allow_tf32, const Problem& p, void* stream) {
  return dispatch<Mix>(dtype, allow_tf32, p.dim, p, stream);
}

}  // namespace sturdy::cuda::clustered
