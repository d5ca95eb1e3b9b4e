// PushPull convolution with the range of each input channel apart (channel_range), for dispatch.
#pragma once

#include <cstddef>

#include "pushpull/push_pull_conv2d_cuda.cuh"

namespace sturdy::cuda::push_pull {

size_t channel_workspace(const PushPullGeometry& geometry, const Sizes& sizes);
size_t channel_backward_workspace(const PushPullGeometry& geometry, const Sizes& sizes);
Status channel_forward(const PushPullForwardParams& params, const Sizes& sizes, void* workspace, void* stream);
Status channel_backward(const PushPullBackwardParams& params, const Sizes& sizes, void* workspace, void* stream);

}  // namespace sturdy::cuda::push_pull
