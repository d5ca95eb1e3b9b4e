// The kernels of cast_cluster: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>

#include "cast/cast.h"
#include "common/parallel.h"
#include "common/types.h"

namespace sturdy {

struct CastClusterParams {
  int64_t batch, tokens, clusters;  // clusters at least 1, tokens below 2^31
  int64_t slots;                    // kappa, min(cluster size, tokens)
  int64_t capacity;                 // of every cluster; 0: balanced. SA Top-K alone
  bool single_assignment;
  const float* affinity;  // (B, N, C)
  int64_t affinity_stride[3];
  PaddingView padding;
  int32_t* index;       // (B, C, slots), compact
  int32_t* counts;      // (B, C), compact
  int32_t* assignment;  // (B, N), compact; null for Top-K
};

// Every element of the outputs is written. The result is unique, see sturdy/cast.h, so CPU and CUDA agree to the last
// token whatever the ties.
namespace cpu {
Status cast_cluster(const CastClusterParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
size_t cast_cluster_workspace(const CastClusterParams& params);  // from sizes, capacity and method alone
Status cast_cluster(const CastClusterParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
