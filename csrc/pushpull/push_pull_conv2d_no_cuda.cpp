// Stands in for the CUDA launchers in a build without nvcc.
#include "pushpull/push_pull_conv2d.h"

namespace sturdy::cuda {

size_t push_pull_conv2d_workspace(const PushPullGeometry& /*geometry*/) { return 0; }

size_t push_pull_conv2d_backward_workspace(const PushPullGeometry& /*geometry*/) { return 0; }

Status push_pull_conv2d(const PushPullForwardParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

Status push_pull_conv2d_backward(const PushPullBackwardParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

}  // namespace sturdy::cuda
