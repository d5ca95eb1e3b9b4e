// Launchers of the tensor-core kernels of PushPull convolution, for dispatch.
#pragma once

#include <cstdint>

#include "pushpull/push_pull_conv2d_cuda_tensor.cuh"

namespace sturdy::cuda::push_pull {

// Settles how the input is staged, given its strides.
template <typename T>
void adapt_source(const Sizes& sizes, const View4& input, SourceLayout* layout);

template <typename T>
Status pack_weights(const Sizes& sizes, const TensorPlan& plan, const View4& weight, uint32_t* packed, void* stream);

// Forward by the plan, which was made for T. `packed` is scratch of packed_words() words.
template <typename T>
Status tensor_forward(const PushPullForwardParams& params, const Sizes& sizes, TensorPlan plan,
                      const FilterRange<float>* ranges, uint32_t* packed, void* stream);

}  // namespace sturdy::cuda::push_pull
