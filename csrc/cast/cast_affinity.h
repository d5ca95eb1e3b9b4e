// The kernels of cast_affinity: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>

#include "cast/cast.h"
#include "common/parallel.h"
#include "common/types.h"

namespace sturdy {

struct CastAffinityParams {
  CastSizes sizes;
  DType dtype;  // of q, k and surrogates
  TokenView q, k, surrogates;
  GateView phi;
  PaddingView padding;
  double tau_g;     // greater than 0
  bool allow_tf32;  // CUDA
  float* affinity;  // (B, N, C)
  int64_t affinity_stride[3];
};

// Every element is written: -infinity in rows of padding, whatever q, k and phi hold there. Sums are float, double for
// double. A row depends on that token alone.
namespace cpu {
Status cast_affinity(const CastAffinityParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
size_t cast_affinity_workspace(const CastAffinityParams& params);  // from sizes and dtype alone
Status cast_affinity(const CastAffinityParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
