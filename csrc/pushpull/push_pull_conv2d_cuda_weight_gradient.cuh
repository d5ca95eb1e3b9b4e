// The gradient of the weights of PushPull convolution: a product of gp and the input under the taps, cut along the
// pixels into pieces whose sums are added up in order. Part of push_pull_conv2d_cuda_backward.cu, which states its
// budgets.
#pragma once

#include <algorithm>

#include "pushpull/push_pull_conv2d_cuda.cuh"

namespace sturdy::cuda::push_pull {

namespace {

constexpr int kStep = 16;                // pixels between two barriers; also half a warp's contiguous reads
constexpr int64_t kWeightBlocks = 1024;  // enough for the largest device; more would only add partial sums
constexpr int64_t kLeastSteps = 8;       // of a piece, or writing its sums costs as much as forming them

// Filters and taps (channel, tap row, tap column) of one block, and each thread's rectangle of them.
template <int FilterThreads, int FiltersPerThread, int TapsPerThread>
struct WeightShape {
  static constexpr int tap_threads = kThreads / FilterThreads;
  static constexpr int filters_per_thread = FiltersPerThread;
  static constexpr int taps_per_thread = TapsPerThread;
  static constexpr int filters = FilterThreads * FiltersPerThread;
  static constexpr int taps = tap_threads * TapsPerThread;
};
using WideWeights = WeightShape<16, 4, 4>;   // 64 filters, 64 taps
using NarrowWeights = WeightShape<4, 1, 1>;  // 4 filters, 64 taps: depthwise

template <typename A, typename Shape>
struct WeightShared {
  alignas(16) A gradient[kStep][Shape::filters + 4];
  alignas(16) A source[kStep][Shape::taps + 4];
};

struct WeightPlan {
  int filter_blocks, tap_blocks;
  int64_t pieces;       // of the pixels of all images
  int64_t piece_steps;  // of kStep pixels
};

bool narrow_weights(const Sizes& s) { return s.group_out <= NarrowWeights::filters; }

WeightPlan plan_weights(const Sizes& s) {
  const int filters = narrow_weights(s) ? NarrowWeights::filters : WideWeights::filters;
  const int depth = s.group_in * s.kernel_h * s.kernel_w;
  static_assert(WideWeights::taps == NarrowWeights::taps, "one number of tap blocks for both");
  WeightPlan plan{};
  plan.filter_blocks = ceil_div(s.group_out, filters);
  plan.tap_blocks = ceil_div(depth, WideWeights::taps);
  const int64_t tiles = int64_t{plan.filter_blocks} * plan.tap_blocks * s.groups;
  const int64_t steps = ceil_div(s.batch * s.pixels(), int64_t{kStep});
  if (tiles == 0 || steps == 0) {
    return plan;
  }
  const int64_t wanted = std::min(ceil_div(kWeightBlocks, tiles), ceil_div(steps, kLeastSteps));
  plan.piece_steps = ceil_div(steps, wanted);
  plan.pieces = ceil_div(steps, plan.piece_steps);
  return plan;
}

// partials(piece, filter, tap) = sum over the piece's pixels of gp * the input under the tap.
template <typename T, typename A, typename Shape>
__global__ void __launch_bounds__(kThreads, 2)
    weight_gradient_kernel(Sizes s, WeightPlan plan, View4 input, const A* map, A* partials) {
  using Shared = WeightShared<A, Shape>;
  static_assert(sizeof(Shared) <= kSharedBudget, "operands must fit in shared memory without opting in");
  STURDY_DYNAMIC_SHARED(Shared, shared_memory);
  Shared& shared = *shared_memory;
  constexpr int pixel_threads = kThreads / kStep;  // threads that share one pixel
  constexpr int gradient_loads = (Shape::filters + pixel_threads - 1) / pixel_threads;
  constexpr int source_loads = Shape::taps / pixel_threads;

  unsigned index = blockIdx.x;
  const int filter_block = static_cast<int>(index % plan.filter_blocks);
  index /= plan.filter_blocks;
  const int tap_block = static_cast<int>(index % plan.tap_blocks);
  index /= plan.tap_blocks;
  const int group = static_cast<int>(index % s.groups);
  const int64_t piece = index / s.groups;

  // The taps whose input this thread loads do not change; its pixel advances by kStep.
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kStep;
  const int share = thread / kStep;
  const int taps = s.kernel_h * s.kernel_w;
  const int depth = s.group_in * taps;
  int64_t tap_offset[source_loads];
  int tap_row[source_loads];
  int tap_column[source_loads];
#pragma unroll
  for (int i = 0; i < source_loads; ++i) {
    const int k = tap_block * Shape::taps + share + i * pixel_threads;
    const int tap = k % taps;
    tap_row[i] = k < depth ? tap / s.kernel_w * s.dilation_h - s.pad_top : -2 * static_cast<int>(kMaxExtent);
    tap_column[i] = tap % s.kernel_w * s.dilation_w - s.pad_left;
    tap_offset[i] = (int64_t{group} * s.group_in + k / taps) * input.stride[1] + tap_row[i] * input.stride[2] +
                    tap_column[i] * input.stride[3];
  }
  const int first_filter = filter_block * Shape::filters;
  const int64_t begin = piece * plan.piece_steps * kStep + lane;
  int64_t image = begin / s.pixels();
  int pixel = static_cast<int>(begin % s.pixels());

  A gradients[gradient_loads];
  A sources[source_loads];
  const auto load = [&] {
    const bool valid = image < s.batch;
    const int row = pixel / s.out_w * s.stride_h;
    const int column = pixel % s.out_w * s.stride_w;
    const A* gradient = map + (s.box_plane(image, group) - s.group_out) * s.pixels() + pixel;
#pragma unroll
    for (int i = 0; i < gradient_loads; ++i) {
      const int filter = first_filter + share + i * pixel_threads;
      const bool wanted = valid && share + i * pixel_threads < Shape::filters && filter < s.group_out;
      gradients[i] = wanted ? gradient[filter * s.pixels()] : A(0);
    }
    const T* source =
        static_cast<const T*>(input.data) + image * input.stride[0] + row * input.stride[2] + column * input.stride[3];
#pragma unroll
    for (int i = 0; i < source_loads; ++i) {
      const bool wanted = valid && static_cast<unsigned>(row + tap_row[i]) < static_cast<unsigned>(s.in_h) &&
                          static_cast<unsigned>(column + tap_column[i]) < static_cast<unsigned>(s.in_w);
      sources[i] = A(0);
      if (wanted) {
        sources[i] = to_accumulate(source[tap_offset[i]]);
      }
    }
    pixel += kStep;
    if (pixel >= s.pixels()) {
      image += pixel / s.pixels();
      pixel = static_cast<int>(pixel % s.pixels());
    }
  };

  const int own_filter = thread / Shape::tap_threads * Shape::filters_per_thread;
  const int own_tap = thread % Shape::tap_threads * Shape::taps_per_thread;
  A sums[Shape::filters_per_thread][Shape::taps_per_thread] = {};
  load();
  for (int64_t step = 0; step < plan.piece_steps; ++step) {
#pragma unroll
    for (int i = 0; i < gradient_loads; ++i) {
      if (share + i * pixel_threads < Shape::filters) {
        shared.gradient[lane][share + i * pixel_threads] = gradients[i];
      }
    }
#pragma unroll
    for (int i = 0; i < source_loads; ++i) {
      shared.source[lane][share + i * pixel_threads] = sources[i];
    }
    __syncthreads();
    if (step + 1 < plan.piece_steps) {
      load();
    }
#pragma unroll
    for (int l = 0; l < kStep; ++l) {
      using Gradients = Vector<A, Shape::filters_per_thread>;
      using Sources = Vector<A, Shape::taps_per_thread>;
      const Gradients g = *reinterpret_cast<const Gradients*>(&shared.gradient[l][own_filter]);
      const Sources x = *reinterpret_cast<const Sources*>(&shared.source[l][own_tap]);
#pragma unroll
      for (int f = 0; f < Shape::filters_per_thread; ++f) {
#pragma unroll
        for (int k = 0; k < Shape::taps_per_thread; ++k) {
          sums[f][k] += g.value[f] * x.value[k];
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int f = 0; f < Shape::filters_per_thread; ++f) {
#pragma unroll
    for (int k = 0; k < Shape::taps_per_thread; ++k) {
      const int filter = first_filter + own_filter + f;
      const int tap = tap_block * Shape::taps + own_tap + k;
      if (filter < s.group_out && tap < depth) {
        partials[(piece * s.out_channels + group * s.group_out + filter) * depth + tap] = sums[f][k];
      }
    }
  }
}

// Adds up the pieces in order, and the share of m's gradient that falls to the extremes of a filter.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    weight_sums_kernel(Sizes s, int64_t pieces, View4 weight, View4 grad_weight, const FilterRange<A>* ranges,
                       const A* offset_gradient, const A* partials) {
  const int depth = s.group_in * s.kernel_h * s.kernel_w;
  const int64_t size = int64_t{s.out_channels} * depth;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) {
    return;
  }
  const int channel = static_cast<int>(at / depth);
  const int k = static_cast<int>(at % depth);
  const int taps = s.kernel_h * s.kernel_w;
  const int64_t place[4] = {channel, k / taps, k % taps / s.kernel_w, k % taps % s.kernel_w};
  int64_t from = 0;
  int64_t to = 0;
#pragma unroll
  for (int axis = 0; axis < 4; ++axis) {
    from += place[axis] * weight.stride[axis];
    to += place[axis] * grad_weight.stride[axis];
  }
  A sum = A(0);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    sum += partials[piece * size + at];
  }
  const A value = to_accumulate(static_cast<const T*>(weight.data)[from]);
  const FilterRange<A> range = ranges[channel];
  const A gradient = offset_gradient[channel];
  if (value == range.minimum) {
    sum += gradient / range.minimum_count;
  }
  if (value == range.maximum) {
    sum += gradient / range.maximum_count;
  }
  static_cast<T*>(grad_weight.data)[to] = from_accumulate<T>(sum);
}

}  // namespace

}  // namespace sturdy::cuda::push_pull
