// PushPull convolution for C++: options with the usual defaults, shapes and calls that throw.
#ifndef STURDY_PUSHPULL_HPP_
#define STURDY_PUSHPULL_HPP_

#include <cstdint>
#include <vector>

#include "sturdy/pushpull.h"
#include "sturdy/sturdy.hpp"

namespace sturdy {

// Stride 1, no padding, no dilation, one group, no average, strength 1; change what should differ.
inline sturdy_push_pull_conv2d_options push_pull_conv2d_options() {
  sturdy_push_pull_conv2d_options options = {};
  options.struct_size = sizeof options;
  for (int axis = 0; axis < 2; ++axis) {
    options.stride[axis] = 1;
    options.dilation[axis] = 1;
    options.pool[axis] = 1;
  }
  options.groups = 1;
  options.strength = 1.0;
  return options;
}

// The shape of the output, (N, O, Ho, Wo), after every check that needs no data.
inline std::vector<int64_t> push_pull_conv2d_shape(const sturdy_push_pull_conv2d_options& options, TensorView input,
                                                   TensorView weight, const sturdy_tensor* inhibition = nullptr,
                                                   const sturdy_tensor* bias = nullptr) {
  std::vector<int64_t> shape(4);
  sturdy_tensor out = {};
  out.shape = shape.data();
  check(sturdy_push_pull_conv2d_infer(&options, input, weight, inhibition, bias, &out));
  return shape;
}

// Writes the result into `out`; on the CPU, with the built-in threads unless `context` brings others.
inline void push_pull_conv2d(const sturdy_push_pull_conv2d_options& options, TensorView input, TensorView weight,
                             TensorView out, const sturdy_tensor* inhibition = nullptr,
                             const sturdy_tensor* bias = nullptr, sturdy_tensor* push = nullptr,
                             const sturdy_context* context = nullptr) {
  check(sturdy_push_pull_conv2d(context, &options, input, weight, inhibition, bias, out, push));
}

}  // namespace sturdy

#endif  // STURDY_PUSHPULL_HPP_
