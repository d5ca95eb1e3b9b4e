// Stands in for the CUDA launchers in a build without nvcc.
#include "fourier/prime.h"

namespace sturdy::cuda {

Status filter2d(const Filter2dParams& /*params*/, void* /*stream*/) { return Status::not_built; }

Status filter2d_backward(const Filter2dBackwardParams& /*params*/, void* /*stream*/) { return Status::not_built; }

Status smooth_color(const SmoothColorParams& /*params*/, void* /*stream*/) { return Status::not_built; }

Status smooth_color_backward(const SmoothColorBackwardParams& /*params*/, void* /*stream*/) {
  return Status::not_built;
}

Status sine_warp(const SineWarpParams& /*params*/, void* /*stream*/) { return Status::not_built; }

}  // namespace sturdy::cuda
