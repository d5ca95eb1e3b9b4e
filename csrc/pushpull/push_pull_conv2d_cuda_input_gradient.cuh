// The gradient of the input of PushPull convolution: the forward tile turned round. Part of
// push_pull_conv2d_cuda_backward.cu, which states its budgets.
#pragma once

#include "pushpull/push_pull_conv2d_cuda.cuh"

namespace sturdy::cuda::push_pull {

namespace {

// Input pixels that are `stride` apart meet the same taps, so a tile takes pixels of one such phase and only its taps.
struct Phase {
  int first_tap;  // smallest tap that reaches the phase
  int tap_step;   // to the next one
  int taps;       // 0: none reaches it
  int shift;      // output coordinate of first_tap for the phase's first pixel
  int back;       // output pixels from a tap back to the next one

  STURDY_DEVICE Phase(int phase, int stride, int dilation, int pad, int kernel) {
    int a = stride;
    int b = dilation;
    while (b != 0) {
      const int remainder = a % b;
      a = b;
      b = remainder;
    }
    tap_step = stride / a;
    back = dilation / a;
    first_tap = 0;
    const int last = min(tap_step, kernel);
    while (first_tap < last && (phase + pad - first_tap * dilation) % stride != 0) {
      ++first_tap;
    }
    taps = first_tap < last ? (kernel - first_tap + tap_step - 1) / tap_step : 0;
    shift = taps > 0 ? (phase + pad - first_tap * dilation) / stride : 0;
  }
};

template <typename A>
struct InputArguments {
  Sizes sizes;
  TilePlan plan;  // of a phase
  View4 weight, grad_input;
  const A* map;
  bool with_ones;
  int phases_h, phases_w;
};

// As the forward tile: filters are input channels, channels are the group's filters and the sum of m * gq, whose
// weights are ones.
template <typename T, typename A, typename W, typename Shape>
__global__ void __launch_bounds__(kThreads, 2) input_gradient_kernel(InputArguments<A> a) {
  using Shared = TileShared<A, Shape>;
  static_assert(sizeof(Shared) <= kSharedBudget, "a tile must fit in shared memory without opting in");
  STURDY_DYNAMIC_SHARED(Shared, shared_memory);
  Shared& shared = *shared_memory;
  const Sizes& s = a.sizes;
  const TilePlan& plan = a.plan;
  unsigned index = blockIdx.x;
  const int channel_block = static_cast<int>(index % plan.filter_blocks);
  index /= plan.filter_blocks;
  const int group = static_cast<int>(index % s.groups);
  index /= s.groups;
  const int tile_column = static_cast<int>(index % plan.columns.count);
  index /= plan.columns.count;
  const int tile_row = static_cast<int>(index % plan.rows.count);
  index /= plan.rows.count;
  const int phase_column = static_cast<int>(index % a.phases_w);
  index /= a.phases_w;
  const int phase_row = static_cast<int>(index % a.phases_h);
  const int64_t image = index / a.phases_h;
  const Phase rows(phase_row, s.stride_h, s.dilation_h, s.pad_top, s.kernel_h);
  const Phase columns(phase_column, s.stride_w, s.dilation_w, s.pad_left, s.kernel_w);

  const int thread = static_cast<int>(threadIdx.x);
  const int staged = thread % Shape::pixels;
  const int row = tile_row * plan.rows.inner + staged / plan.columns.tile;  // of the phase
  const int column = tile_column * plan.columns.inner + staged % plan.columns.tile;
  const int64_t in_row = int64_t{row} * s.stride_h + phase_row;
  const int64_t in_column = int64_t{column} * s.stride_w + phase_column;
  const bool inside = staged < plan.rows.tile * plan.columns.tile && in_row < s.in_h && in_column < s.in_w;
  if (thread < Shape::pixels) {
    shared.offset[staged] = inside ? in_row * a.grad_input.stride[2] + in_column * a.grad_input.stride[3] : -1;
  }

  const int first_channel = channel_block * Shape::filters;
  TileProduct<A, W> product;
  product.source = a.map + (s.box_plane(image, group) - s.group_out) * s.pixels();
  product.taps.source_channel = s.pixels();
  product.taps.source_row = s.out_w;
  product.taps.source_column = 1;
  product.source_h = s.out_h;
  product.source_w = s.out_w;
  product.weight = static_cast<const W*>(a.weight.data) + int64_t{group} * s.group_out * a.weight.stride[0] +
                   first_channel * a.weight.stride[1] + rows.first_tap * a.weight.stride[2] +
                   columns.first_tap * a.weight.stride[3];
  product.weight_filter = a.weight.stride[1];
  product.taps.weight_channel = a.weight.stride[0];
  product.taps.weight_row = rows.tap_step * a.weight.stride[2];
  product.taps.weight_column = columns.tap_step * a.weight.stride[3];
  product.filters = min(s.group_in - first_channel, Shape::filters);
  product.taps.channels = s.group_out + (a.with_ones ? 1 : 0);
  product.taps.taps_h = rows.taps;
  product.taps.taps_w = columns.taps;
  product.taps.tap_step_h = -rows.back;
  product.taps.tap_step_w = -columns.back;
  product.taps.ones_channel = s.group_out;  // beyond the last channel where there are no ones

  if (thread == 0) {
    shared.block = TileBlock{image, group, first_channel, TileWindows{}};
  }
  A sums[Shape::pixels_per_thread][Shape::filters_per_thread] = {};
  A unused = A(0);
  multiply_tile<Shape>(product, rows.shift + row, columns.shift + column, inside, shared, sums, unused);

  const TileBlock& block = shared.block;
  T* image_gradient = static_cast<T*>(a.grad_input.data) + block.image * a.grad_input.stride[0];
#pragma unroll 1
  for (int f = 0; f < Shape::filters_per_thread; ++f) {
    A gradients[Shape::pixels_per_thread];
    pick_filter(sums, f, gradients);
    const int filter = Shape::first_filter() + f;
    const int64_t plane = (int64_t{block.group} * s.group_in + block.first_filter + filter) * a.grad_input.stride[1];
#pragma unroll
    for (int i = 0; i < Shape::pixels_per_thread; ++i) {
      const int64_t offset = shared.offset[Shape::pixel(i)];
      if (offset >= 0 && filter < s.group_in - block.first_filter) {
        image_gradient[plane + offset] = from_accumulate<T>(gradients[i]);
      }
    }
  }
}

}  // namespace

}  // namespace sturdy::cuda::push_pull
