// The kernels of PushPull convolution: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/parallel.h"
#include "common/types.h"

namespace sturdy {

// A four-dimensional view (N, C, H, W). Strides are in elements and may be 0 (expanded) or negative.
struct View4 {
  void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
};

// A vector of one value per output channel.
struct ChannelView {
  void* data = nullptr;
  int64_t stride = 0;
  DType dtype = DType::f32;  // that of input, or f32
};

// Sizes and options, alike for forward and backward.
struct PushPullGeometry {
  int64_t batch, in_channels, out_channels, groups;  // groups divides both channel counts
  int64_t in_h, in_w, kernel_h, kernel_w, out_h, out_w;
  int64_t stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_top, pad_left;  // what bottom and right padding add is already in out_h and out_w
  int64_t pool_h, pool_w;     // odd; 1 is off; may exceed the map
  double strength;            // inhibition of every channel where `inhibition.data` is null
  DType dtype;                // of every tensor but the channel vectors
  bool channel_range;         // m is taken of each input channel of a filter apart: m * box is then a sum over channels
  bool allow_tf32;            // float32 may be multiplied as tf32, by tensor cores
};

// out = relu(p) - inhibition * relu(m * A(box) - A(p)) + bias, p = conv(input, weight); A divides by the cells in the
// map.
struct PushPullForwardParams {
  PushPullGeometry geometry;
  View4 input;             // (N, C, H, W)
  View4 weight;            // (O, C / groups, kH, kW)
  ChannelView inhibition;  // data null: geometry.strength
  ChannelView bias;        // data null: none
  View4 out;               // (N, O, Ho, Wo), dense: contiguous or channels-last; never aliases an input
  View4 push;              // p, with the strides of out; data null: not wanted
};

struct PushPullBackwardParams {
  PushPullGeometry geometry;
  View4 grad_out;  // (N, O, Ho, Wo), any strides
  View4 input;
  View4 weight;
  ChannelView inhibition;       // data null: geometry.strength
  View4 push;                   // p from forward, any strides; data null: compute it again
  View4 grad_input;             // dense; data null: not wanted
  View4 grad_weight;            // dense; data null: not wanted
  ChannelView grad_inhibition;  // data null: not wanted
  ChannelView grad_bias;        // data null: not wanted
};

namespace cpu {
// Batch, channels, kernel and output sizes may be 0; every element of every wanted output is written.
Status push_pull_conv2d(const PushPullForwardParams& params, const Threads& threads);
Status push_pull_conv2d_backward(const PushPullBackwardParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
size_t push_pull_conv2d_workspace(const PushPullGeometry& geometry);
size_t push_pull_conv2d_backward_workspace(const PushPullGeometry& geometry);
Status push_pull_conv2d(const PushPullForwardParams& params, void* workspace, void* stream);
Status push_pull_conv2d_backward(const PushPullBackwardParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
