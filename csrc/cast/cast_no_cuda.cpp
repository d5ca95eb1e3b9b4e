// Stands in for the CUDA launchers of the CAST family where there are none.
#include "cast/cast_affinity.h"
#include "cast/cast_attention.h"
#include "cast/cast_cluster.h"

namespace sturdy::cuda {

size_t cast_affinity_workspace(const CastAffinityParams& /*params*/) { return 0; }

Status cast_affinity(const CastAffinityParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

size_t cast_cluster_workspace(const CastClusterParams& /*params*/) { return 0; }

Status cast_cluster(const CastClusterParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

size_t cast_attention_workspace(const CastAttentionParams& /*params*/, bool /*keep*/) { return 0; }

Status cast_attention(const CastAttentionParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

size_t cast_attention_backward_workspace(const CastAttentionParams& /*params*/) { return 0; }

Status cast_attention_backward(const CastAttentionBackwardParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

}  // namespace sturdy::cuda
