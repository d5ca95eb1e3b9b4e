// The kernels of cast_attention: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>

#include "cast/cast.h"
#include "common/parallel.h"
#include "common/types.h"

namespace sturdy {

struct CastAttentionParams {
  CastSizes sizes;
  int64_t slots;  // kappa
  DType dtype;    // of q, k, v, surrogates, out, intra and the gradients of the first four
  TokenView q, k, v, surrogates;
  GateView phi;
  const int32_t* index;  // (B, C, slots), compact. Its values are checked where it is on the CPU; beyond their range a
                         // CUDA kernel takes the slot as empty. Empty slots may be anywhere
  PaddingView padding;   // padding is in no cluster
  double tau, tau_q, tau_k;  // greater than 0
  double dropout;
  const int64_t* seed;  // on the device of q; null without dropout
  bool disjoint;        // no token is in two clusters
  bool allow_tf32;      // CUDA
  TokenView out;
  // What backward needs; all or none. Compact; A is double for double, else float.
  void* intra;        // (B, h, C, slots, e), dtype
  void* summaries;    // (B, h, C, e), A
  void* lse_intra;    // (B, h, C, slots), A
  void* lse_summary;  // (B, h, C), A
  void* lse_mix;      // (B, h, N), A
};

struct CastAttentionBackwardParams {
  CastAttentionParams forward;  // its out and what follows is what forward wrote, and is only read
  TokenView grad_out;
  TokenView grad_q, grad_k, grad_v;
  void* grad_surrogates;  // (h, C, e), compact
  void* grad_phi;         // (B, N), compact; dtype of phi
};

// Every element of the outputs is written. No sum depends on how work was cut up: results are the same bits each time
// and on any number of threads, and a sequence has the bits that it has alone. Nothing of order N * slots is allocated.
namespace cpu {
Status cast_attention(const CastAttentionParams& params, const Threads& threads);
Status cast_attention_backward(const CastAttentionBackwardParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
// From sizes, slots, dtype and flags alone.
size_t cast_attention_workspace(const CastAttentionParams& params, bool keep);
Status cast_attention(const CastAttentionParams& params, void* workspace, void* stream);
size_t cast_attention_backward_workspace(const CastAttentionParams& params);
Status cast_attention_backward(const CastAttentionBackwardParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
