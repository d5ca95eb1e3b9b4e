// What the CUDA kernels of cast_attention share: the problem as kernels see it, who is in which cluster, gates.
//
// Work is cut by rows: a block of four warps owns a tile of queries, keys, tokens or clusters, and nobody else adds to
// its results, so there are no atomics and every sum has one order. The tiles and their products are in
// cast_attention_cuda_tiles.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cast/cast_attention.h"
#include "cast/cast_dropout.h"
#include "common/cuda.cuh"
#include "common/cuda_workspace.cuh"

namespace sturdy::cuda::clustered {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / warp_size;
constexpr int64_t kMaxDim = 128;
constexpr int64_t kMaxNarrowSlots = 65535;  // slots that the narrow map can tell apart, and "none"

// Rows of `dim` neighbouring elements, a view of (sequence, head, row). Strides in elements.
struct Rows {
  void* data;
  int64_t stride[3];
  bool packed;  // 16 bytes of a row can be moved at once

  template <typename T>
  STURDY_DEVICE T* of(int64_t sequence, int head) const {
    return static_cast<T*>(data) + sequence * stride[0] + head * stride[1];
  }
};

// Which tokens a cluster has, and in which clusters a token is. Made from index by the first kernel of each op.
struct Membership {
  int32_t* members;  // (B, C, slots): token, or -1. Like index, without padding and what does not exist
  int32_t* lengths;  // (B, C): slots up to the last token; 0 for an empty cluster
  void* slots;       // (B, C, N) uint16 or int32: the token's slot, all bits set: none. Not where clusters are disjoint
  int2* owners;      // (B, N): cluster and slot, or -1. Where clusters are disjoint
  bool wide;
};

struct Problem {
  int64_t batch;
  int heads, tokens, dim, clusters, slots;
  Rows q, k, v, surrogates, out;
  GateView phi;
  bool phi_is_float;
  PaddingView padding;
  double scale, scale_q, scale_k;  // 1 / tau
  const int64_t* seed;             // null: no dropout
  uint32_t dropout_threshold;
  double dropout_scale;
  bool disjoint;
  const int32_t* index;
  Membership membership;
  Rows intra;  // (B h C slots, e)
  bool keep;   // intra and the sums below are wanted
  void* summaries;
  bool summaries_packed;  // 16 bytes of them can be moved at once
  void *lse_intra, *lse_summary, *lse_mix;

  // Of (B, h, C).
  STURDY_DEVICE int64_t cluster_row(int64_t sequence, int head, int cluster) const {
    return (sequence * heads + head) * clusters + cluster;
  }
};

// What backward has beyond forward. Per slot means (B, h, C, slots), A is double for double, else float.
struct Gradients {
  Rows out, q, k, v;
  void* surrogates;
  void* phi;
  void* delta;             // (B, h, N) A: G . R
  void* slot_weight;       // per slot, A: P
  void* slot_delta;        // per slot, A: G . O
  void* slot_phi;          // per slot, A: gradient of the gate through the summary
  void* token_phi;         // (B, h, N) A: gradient of the gate through P
  Rows slot_q;             // (B h C slots, e) T, where clusters overlap
  Rows slot_k, slot_v;     // the same; slot_k takes slot_q's place
  void* summaries;         // (B, h, C, e) A
  void* summary_pieces;    // (pieces, B, h, C, e) A, of each kPieceTokens tokens
  void* surrogate_pieces;  // (pieces, B, h, C, e) A, through P
  void* surrogate_tiles;   // (tiles, B, h, C, e) A, through the summaries
  int pieces, tiles;
};
constexpr int kPieceTokens = 512;

// ------------------------------------------------------------------------------------------------------- membership

// Whether there is a token.
STURDY_DEVICE bool is_token(const PaddingView& padding, int64_t sequence, int token) {
  return padding.data == nullptr || padding.data[sequence * padding.stride[0] + token * padding.stride[1]] == 0;
}

// Cluster and slot of a token where clusters are disjoint; otherwise nothing.
STURDY_DEVICE int2 owner_of(const Problem& p, int64_t sequence, int token) {
  return p.disjoint && token >= 0 ? p.membership.owners[sequence * p.tokens + token] : make_int2(-1, -1);
}

// The slot that a token has in a cluster, -1: none. `owner` is what owner_of() says.
STURDY_DEVICE int find_slot(const Problem& p, int64_t sequence, int cluster, int token, int2 owner) {
  if (p.disjoint) {
    return owner.x == cluster ? owner.y : -1;
  }
  const int64_t at = (sequence * p.clusters + cluster) * p.tokens + token;
  if (p.membership.wide) {
    return static_cast<const int32_t*>(p.membership.slots)[at];
  }
  const int slot = static_cast<const uint16_t*>(p.membership.slots)[at];
  return slot == kMaxNarrowSlots ? -1 : slot;
}

// ------------------------------------------------------------------------------------------------------------ gates

template <typename T>
STURDY_DEVICE Accumulate<T> load_gate(const Problem& p, int64_t sequence, int token) {
  const int64_t at = sequence * p.phi.stride[0] + token * p.phi.stride[1];
  if (p.phi_is_float) {
    return static_cast<const float*>(p.phi.data)[at];
  }
  return to_accumulate(static_cast<const T*>(p.phi.data)[at]);
}

// log(1 + e^x) + 1.
template <typename A>
STURDY_DEVICE A shifted_softplus(A x) {
  return (x > A(0) ? x : A(0)) + log1p(exp(x > A(0) ? -x : x)) + A(1);
}

template <typename A>
STURDY_DEVICE A sigmoid(A x) {
  return A(1) / (A(1) + exp(-x));
}

template <typename A>
STURDY_DEVICE A minus_infinity() {
  return static_cast<A>(-INFINITY);
}

// e^x; on the way of tensor cores with the hardware's own.
template <bool Fast>
STURDY_DEVICE float exponential(float x) {
  return Fast ? __expf(x) : expf(x);
}
template <bool Fast>
STURDY_DEVICE double exponential(double x) {
  return exp(x);
}

// ------------------------------------------------------------------------------------------------------------- host

// Reads params into what kernels use; fails where sizes are beyond what they count with. Pointers into the workspace
// stay null.
Status make_problem(const CastAttentionParams& params, Problem* problem);

// Rows of a view, and whether 16 bytes of each can be moved at once. Compact rows are addressed by their number alone.
Rows make_rows(const TokenView& view, int64_t dim, int64_t element_bytes);
Rows compact_rows(void* data, int64_t dim, int64_t element_bytes);
// Of intra and summaries, wherever they are.
void set_compact_rows(DType dtype, Problem* p);

inline int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
inline int64_t sum_size(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

// The piece of the workspace that forward and backward both begin with, and the kernels that fill it.
void take_membership(const Problem& p, Workspace* workspace, Membership* membership);
Status find_members(const Problem& p, void* stream);

// Launches `blocks` blocks along x; none is fine.
template <typename... Parameters, typename... Arguments>
Status launch_blocks(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, void* stream,
                     Arguments&&... arguments) {
  if (blocks == 0) {
    return Status::ok;
  }
  if (blocks > max_grid_x) {
    set_error_detail("more than 2^31 - 1 tiles of work");
    return Status::unsupported_size;
  }
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), shared_bytes, stream,
                std::forward<Arguments>(arguments)...);
}

// Passes the kernel launcher for the dtype and the dimension: Launcher<T, E, Tensor>::run(arguments...).
template <template <typename, int, bool> class Launcher, typename T, bool Tensor, typename... Arguments>
Status dispatch_dim(int dim, const Arguments&... arguments) {
  if constexpr (sizeof(T) == 8) {  // two sizes are enough where speed is none of the questions
    return dim <= 32 ? Launcher<T, 32, Tensor>::run(arguments...) : Launcher<T, 128, Tensor>::run(arguments...);
  } else {
    if (dim <= 16) {
      return Launcher<T, 16, Tensor>::run(arguments...);
    }
    if (dim <= 32) {
      return Launcher<T, 32, Tensor>::run(arguments...);
    }
    return dim <= 64 ? Launcher<T, 64, Tensor>::run(arguments...) : Launcher<T, 128, Tensor>::run(arguments...);
  }
}

template <template <typename, int, bool> class Launcher, typename... Arguments>
Status dispatch(DType dtype, bool allow_tf32, int dim, const Arguments&... arguments) {
  switch (dtype) {
    case DType::f32:
      return allow_tf32 ? dispatch_dim<Launcher, float, true>(dim, arguments...)
                        : dispatch_dim<Launcher, float, false>(dim, arguments...);
    case DType::f64:
      return dispatch_dim<Launcher, double, false>(dim, arguments...);
    case DType::f16:
      return dispatch_dim<Launcher, __half, true>(dim, arguments...);
    case DType::bf16:
      return dispatch_dim<Launcher, __nv_bfloat16, true>(dim, arguments...);
  }
  return Status::unsupported_dtype;
}

// The steps of the ops, each in a file of its own.
Status run_intra(DType dtype, bool allow_tf32, const Problem& p, void* stream);
Status run_mix(DType dtype, bool allow_tf32, const Problem& p, void* stream);
Status run_intra_query_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream);
Status run_intra_key_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream);
Status run_mix_token_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream);
Status run_mix_cluster_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream);

// Rows of a block's tile.
inline int tile_rows(DType dtype) { return dtype == DType::f64 ? 32 : 64; }

}  // namespace sturdy::cuda::clustered
