// Launchers of the tensor-core kernels of PushPull convolution, for dispatch, and of the plain kernels that they end
// with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pushpull/push_pull_conv2d_cuda_tensor.cuh"

namespace sturdy::cuda::push_pull {

// Filters to pack: those of group g start at g * group_stride. All weights of channel `ones_channel` are one; -1: none.
struct PackedSource {
  View4 weight;
  int64_t group_stride;
  int ones_channel;
};

// Settles how the input is staged, given its strides.
template <typename T>
void adapt_source(const Sizes& sizes, const View4& input, SourceLayout* layout);

// Forward by the plan, which was made for T; without data in `out` only p is stored, to `push`. `packed` is scratch of
// packed_words() words.
template <typename T>
Status tensor_forward(const PushPullForwardParams& params, const Sizes& sizes, TensorPlan plan,
                      const PackedSource& weights, const FilterRange<float>* ranges, uint32_t* packed, void* stream);

// Whether the tensor-core kernels take a backward pass of this size, which workspace that needs, and the pass itself.
template <typename T>
bool takes_tensor_backward(const Sizes& sizes, bool wants_input);
template <typename T>
size_t tensor_backward_workspace(const Sizes& sizes);
template <typename T>
Status tensor_backward(const PushPullBackwardParams& params, const Sizes& sizes, void* workspace, void* stream);

// Adds up partials (piece, filter, tap) and the share of m's gradient that falls to the extremes of a filter.
template <typename T>
Status sum_weight_pieces(const Sizes& sizes, int64_t pieces, const View4& weight, const View4& grad_weight,
                         const FilterRange<float>* ranges, const float* offset_gradient, const float* partials,
                         void* stream);

}  // namespace sturdy::cuda::push_pull
