// Stands in for kernels that are not there yet.
#include "cast/cast_affinity.h"
#include "cast/cast_attention.h"
#include "cast/cast_cluster.h"
#define STURDY_WEAK __attribute__((weak))
namespace sturdy {
namespace cpu {
STURDY_WEAK Status cast_affinity(const CastAffinityParams&, const Threads&) { return Status::not_built; }
STURDY_WEAK Status cast_cluster(const CastClusterParams&, const Threads&) { return Status::not_built; }
STURDY_WEAK Status cast_attention(const CastAttentionParams&, const Threads&) { return Status::not_built; }
STURDY_WEAK Status cast_attention_backward(const CastAttentionBackwardParams&, const Threads&) {
  return Status::not_built;
}
}  // namespace cpu
namespace cuda {
STURDY_WEAK size_t cast_affinity_workspace(const CastAffinityParams&) { return 0; }
STURDY_WEAK Status cast_affinity(const CastAffinityParams&, void*, void*) { return Status::not_built; }
STURDY_WEAK size_t cast_cluster_workspace(const CastClusterParams&) { return 0; }
STURDY_WEAK Status cast_cluster(const CastClusterParams&, void*, void*) { return Status::not_built; }
STURDY_WEAK size_t cast_attention_workspace(const CastAttentionParams&, bool) { return 0; }
STURDY_WEAK Status cast_attention(const CastAttentionParams&, void*, void*) { return Status::not_built; }
STURDY_WEAK size_t cast_attention_backward_workspace(const CastAttentionParams&) { return 0; }
STURDY_WEAK Status cast_attention_backward(const CastAttentionBackwardParams&, void*, void*) {
  return Status::not_built;
}
}  // namespace cuda
}  // namespace sturdy
