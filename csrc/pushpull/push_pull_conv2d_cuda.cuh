// What the CUDA kernels of PushPull convolution share: sizes, workspace, pixel tiles and the tiled product.
//
// With A the average pool, "box" the convolution of the input with an all-ones kernel (one map per group) and
// m = min + max of a filter, the pull response is m * box - p, so one product with the weights serves both responses.
// Maps in the workspace hold, per image and group, one plane for each filter and a last one for the box.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/cuda.cuh"
#include "common/cuda_workspace.cuh"
#include "pushpull/push_pull_conv2d.h"

namespace sturdy::cuda::push_pull {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / warp_size;
constexpr size_t kSharedBudget = 48 * 1024;  // what a launch may use without opting in; every kernel stays below
constexpr int kChannelSums = 3;              // over pixels of a channel: grad_bias, grad_inhibition, gradient of m
constexpr int64_t kMaxExtent = int64_t{1}
                               << 30;  // of an axis with its padding: coordinates are 32-bit, offsets are not

// The geometry with 32-bit sizes per axis.
struct Sizes {
  int64_t batch;
  int in_channels, out_channels, groups;
  int group_in, group_out;  // channels of one group
  int in_h, in_w, kernel_h, kernel_w, out_h, out_w;
  int stride_h, stride_w, dilation_h, dilation_w;
  int pad_top, pad_left;
  int radius_h, radius_w;  // of the pool's window, no larger than the map

  __host__ __device__ bool pooled() const { return radius_h > 0 || radius_w > 0; }
  __host__ __device__ int64_t pixels() const { return int64_t{out_h} * out_w; }
  __host__ __device__ int64_t map_planes() const { return batch * (int64_t{out_channels} + groups); }
  __host__ __device__ int64_t map_plane(int64_t image, int channel) const {
    return image * (int64_t{out_channels} + groups) + channel + channel / group_out;
  }
  __host__ __device__ int64_t box_plane(int64_t image, int group) const {
    return image * (int64_t{out_channels} + groups) + int64_t{group + 1} * (group_out + 1) - 1;
  }
};

// False where a size does not fit the kernels' 32-bit coordinates.
bool make_sizes(const PushPullGeometry& geometry, Sizes* sizes);

// Range of one filter's weights. A filter without weights has offset 0; a NaN makes minimum and maximum NaN.
template <typename A>
struct FilterRange {
  A minimum, maximum;
  A minimum_count, maximum_count;  // how many weights equal them

  STURDY_DEVICE A offset() const { return minimum + maximum; }
};

// ---------------------------------------------------------------------------------------------------------- elements

template <typename A>
STURDY_DEVICE A relu(A x) {
  return x <= A(0) ? A(0) : x;  // a NaN stays
}

// The value of a channel vector, whose elements are of type T or float.
template <typename A, typename T>
STURDY_DEVICE A load_channel(const ChannelView& view, bool is_float, int channel) {
  const int64_t at = channel * view.stride;
  if (is_float) {
    return static_cast<A>(static_cast<const float*>(view.data)[at]);
  }
  return to_accumulate(static_cast<const T*>(view.data)[at]);
}

template <typename A, typename T>
STURDY_DEVICE void store_channel(const ChannelView& view, bool is_float, int channel, A value) {
  const int64_t at = channel * view.stride;
  if (is_float) {
    static_cast<float*>(view.data)[at] = static_cast<float>(value);
  } else {
    static_cast<T*>(view.data)[at] = from_accumulate<T>(value);
  }
}

// Cells of a pool window of this radius, centred at `at`, that lie in [0, extent).
STURDY_DEVICE int window_begin(int at, int radius) { return at > radius ? at - radius : 0; }
STURDY_DEVICE int window_end(int at, int radius, int extent) { return extent - at > radius ? at + radius + 1 : extent; }
STURDY_DEVICE int window_cells(const Sizes& s, int row, int column) {
  return (window_end(row, s.radius_h, s.out_h) - window_begin(row, s.radius_h)) *
         (window_end(column, s.radius_w, s.out_w) - window_begin(column, s.radius_w));
}

// A pixel of a stack of equal planes, found from the plane and pixel at which a block starts and a small distance.
struct MapPoint {
  int64_t plane;
  int pixel, row, column;

  STURDY_DEVICE MapPoint(const Sizes& s, int64_t start_plane, int start_pixel, int distance) {
    const unsigned at = static_cast<unsigned>(start_pixel) + static_cast<unsigned>(distance);
    const unsigned pixels = static_cast<unsigned>(s.out_h) * static_cast<unsigned>(s.out_w);
    plane = start_plane + at / pixels;
    pixel = static_cast<int>(at % pixels);
    row = pixel / s.out_w;
    column = pixel % s.out_w;
  }
};

// --------------------------------------------------------------------------------------------------------- the tiles

// Pixels and filters of one block and how its threads share them. A warp's lanes take neighbouring pixels, so reads of
// the source tile hit 32 banks and reads of the weights are broadcasts.
template <int PixelWarps, int PixelsPerThread, int FiltersPerThread>
struct TileShape {
  static constexpr int pixel_warps = PixelWarps;
  static constexpr int filter_warps = kWarps / PixelWarps;
  static constexpr int pixels_per_thread = PixelsPerThread;
  static constexpr int filters_per_thread = FiltersPerThread;
  static constexpr int pixels = 32 * PixelWarps * PixelsPerThread;
  static constexpr int filters = filter_warps * FiltersPerThread;
  static constexpr int slices = kThreads / pixels > 1 ? kThreads / pixels : 1;  // threads that stage one pixel
  static_assert(pixels <= kThreads, "one thread stages at most one pixel");

  STURDY_DEVICE static int pixel(int i) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return (i * pixel_warps + warp % pixel_warps) * 32 + lane;
  }
  STURDY_DEVICE static int first_filter() {
    return static_cast<int>(threadIdx.x) / 32 / pixel_warps * filters_per_thread;
  }
};

// Sums take 64 registers at most, so that two blocks fit on a multiprocessor (128 registers a thread).
template <typename A>
struct Tiles;
template <>
struct Tiles<float> {
  using Wide = TileShape<1, 8, 8>;    // 256 pixels, 64 filters
  using Small = TileShape<1, 2, 8>;   // 64 pixels, 64 filters: maps of 8 x 8 and less
  using Medium = TileShape<4, 2, 8>;  // 256 pixels, 16 filters
  using Narrow = TileShape<8, 1, 2>;  // 256 pixels, 2 filters: depthwise
};
template <>
struct Tiles<double> {
  using Wide = TileShape<2, 4, 4>;  // 256 pixels, 16 filters: twice as many would spill
  using Small = TileShape<1, 2, 4>;
  using Medium = TileShape<4, 2, 4>;
  using Narrow = TileShape<8, 1, 2>;
};

constexpr int kDepth = 4;  // k of one step; with 8 the wide tile's registers spill

// What one k = (channel, tap row, tap column) of the product means; a few threads work it out for all.
struct TapEntry {
  int64_t source_offset, weight_offset;
  int row, column;  // source pixels from the first tap
  int kind;         // 0: beyond the last k; 1: a weight; 2: a weight of one
};

// How k runs over channels and taps: strides of both operands and where taps fall.
struct TapGeometry {
  int64_t source_channel, source_row, source_column;
  int64_t weight_channel, weight_row, weight_column;
  int channels, taps_h, taps_w;
  int tap_step_h, tap_step_w;  // source pixels from tap to tap
  int ones_channel;            // all weights of this channel are one; -1: there is none
};

// Sum of cells of a tile that are `step` apart.
template <typename A>
STURDY_DEVICE A sum_cells(const A* first, int cells, int step) {
  A sum = A(0);
  for (int i = 0; i < cells; ++i) {
    sum += first[i * step];
  }
  return sum;
}

// The part of a tile that lies in the map, and the windows in it.
struct TileWindows {
  int width;
  int row_begin, row_end, column_begin, column_end;

  template <typename A>
  STURDY_DEVICE A along_row(const A* plane, int place, int radius) const {
    const int row = place >> 16;
    const int column = place & 0xffff;
    const int begin = max(column - radius, column_begin);
    const int end = min(column + radius + 1, column_end);
    return sum_cells(plane + row * width + begin, end - begin, 1);
  }
  template <typename A>
  STURDY_DEVICE A along_column(const A* plane, int place, int radius) const {
    const int row = place >> 16;
    const int column = place & 0xffff;
    const int begin = max(row - radius, row_begin);
    const int end = min(row + radius + 1, row_end);
    return sum_cells(plane + begin * width + column, end - begin, width);
  }
};

// What a block works on. It waits in shared memory while the product needs the registers.
struct TileBlock {
  int64_t image;
  int group, first_filter;
  TileWindows windows;
};

template <typename A, typename Shape>
struct TileShared {
  // A pitch of 4 more than the filters keeps rows aligned for vector loads and spreads the stores over the banks.
  static constexpr int weight_pitch = Shape::filters + 4;
  struct Operands {
    A source[kDepth][Shape::pixels];
    alignas(16) A weight[kDepth][weight_pitch];
  };
  union {
    Operands operands[2];                         // while multiplying: one is filled while the other is read
    A plane[Shape::filter_warps][Shape::pixels];  // while pooling, one filter of each warp at a time
    A box_slice[Shape::slices][Shape::pixels];    // while adding up the box
  };
  TapEntry taps[2][kDepth];
  TapGeometry geometry;
  TileBlock block;
  int64_t offset[Shape::pixels];  // of the pixel in a plane of the result, -1 where another tile stores it
  A mean_box[Shape::pixels];      // box, pooled
  A scale[Shape::pixels];         // one over the cells of the pixel's window
  int place[Shape::pixels];       // row * 65536 + column in the tile
};

// How tiles cover one axis. Neighbouring tiles overlap by the halo, whose pixels are computed by both.
struct TileAxis {
  int tile;   // pixels computed
  int inner;  // pixels stored
  int halo;   // pixels computed before the first one stored
  int count;  // tiles

  // First pixel computed by a tile, and the part [begin, end) of the tile that lies in the map.
  STURDY_DEVICE int origin(int index) const { return index * inner - halo; }
};

struct TilePlan {
  TileAxis rows, columns;
  int filter_blocks;
};

// `tile` pixels along an axis; windows of `radius` need a halo unless the tile covers the whole axis.
inline TileAxis plan_axis(int extent, int tile, int radius) {
  if (tile >= extent) {
    return {extent, extent, 0, extent > 0 ? 1 : 0};
  }
  const int inner = tile - 2 * radius;
  return {tile, inner, radius, inner > 0 ? ceil_div(extent, inner) : 0};
}

template <typename Shape>
TilePlan plan_tiles(int extent_h, int extent_w, int radius_h, int radius_w, int filters) {
  // Square tiles have the smallest halo; what a short axis leaves over goes to the other one.
  const int side = Shape::pixels == 256 ? 16 : 8;
  static_assert(Shape::pixels == 256 || Shape::pixels == 64, "a square number of pixels");
  const int tile_h = std::max(1, std::min(extent_h, side));
  const int tile_w = std::max(1, std::min(extent_w, Shape::pixels / tile_h));
  TilePlan plan;
  plan.rows = plan_axis(extent_h, std::min(extent_h, Shape::pixels / tile_w), radius_h);
  plan.columns = plan_axis(extent_w, tile_w, radius_w);
  plan.filter_blocks = std::max(1, ceil_div(filters, Shape::filters));
  return plan;
}

// ------------------------------------------------------------------------------------------------------- the product

// sum over channels and taps of source[pixel, channel, tap] * weight[filter, channel, tap], both of any layout.
template <typename S, typename T>
struct TileProduct {
  const S* source;  // first channel
  const T* weight;  // first filter, channel and tap
  int source_h, source_w;
  int filters;
  int64_t weight_filter;  // stride
  TapGeometry taps;
};

template <typename A, int N>
struct alignas(N * sizeof(A) < 16 ? N * sizeof(A) : 16) Vector {
  A value[N];
};

// Multiplies one tile. `row` and `column` say where the first tap falls for the pixel which this thread stages
// (threadIdx.x modulo the tile's pixels), `inside` whether there is such a pixel. Adds to `box` this thread's share of
// the sum of the source under all taps. Ends with a barrier.
template <typename Shape, typename A, typename S, typename T>
STURDY_DEVICE void multiply_tile(const TileProduct<S, T>& product, int row, int column, bool inside,
                                 TileShared<A, Shape>& shared,
                                 A (&sums)[Shape::pixels_per_thread][Shape::filters_per_thread], A& box) {
  constexpr int source_loads = kDepth / Shape::slices;
  constexpr int weight_threads = kThreads / kDepth;  // threads that share one k
  constexpr int weight_loads = (Shape::filters + weight_threads - 1) / weight_threads;
  const int depth = product.taps.channels * product.taps.taps_h * product.taps.taps_w;
  if (depth == 0) {
    __syncthreads();
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int pixel = thread % Shape::pixels;
  const int slice = thread / Shape::pixels;
  const int weight_k = thread % kDepth;

  const auto describe = [&](int first_k) {
    if (thread >= kDepth) {
      return;
    }
    const TapGeometry& g = shared.geometry;
    const int taps = g.taps_h * g.taps_w;
    const int channel = (first_k + thread) / taps;
    const int tap = (first_k + thread) % taps;
    const int tap_row = tap / g.taps_w;
    const int tap_column = tap % g.taps_w;
    TapEntry& entry = shared.taps[first_k / kDepth % 2][thread];
    entry.row = tap_row * g.tap_step_h;
    entry.column = tap_column * g.tap_step_w;
    entry.source_offset = channel * g.source_channel + entry.row * g.source_row + entry.column * g.source_column;
    entry.weight_offset = channel * g.weight_channel + tap_row * g.weight_row + tap_column * g.weight_column;
    entry.kind = first_k + thread >= depth ? 0 : channel == g.ones_channel ? 2 : 1;
  };

  const S* source = product.source + row * product.taps.source_row + column * product.taps.source_column;
  A source_values[source_loads];
  A weight_values[weight_loads];
  const auto load = [&](int first_k) {
    const TapEntry* taps = shared.taps[first_k / kDepth % 2];
#pragma unroll
    for (int i = 0; i < source_loads; ++i) {
      const TapEntry& entry = taps[i * Shape::slices + slice];
      const bool valid = inside && entry.kind != 0 &&
                         static_cast<unsigned>(row + entry.row) < static_cast<unsigned>(product.source_h) &&
                         static_cast<unsigned>(column + entry.column) < static_cast<unsigned>(product.source_w);
      source_values[i] = A(0);
      if (valid) {
        source_values[i] = to_accumulate(source[entry.source_offset]);
      }
      box += source_values[i];
    }
    const TapEntry& entry = taps[weight_k];
#pragma unroll
    for (int i = 0; i < weight_loads; ++i) {
      const int filter = thread / kDepth + i * weight_threads;
      weight_values[i] = entry.kind == 2 ? A(1) : A(0);
      if (entry.kind == 1 && filter < product.filters) {
        weight_values[i] = to_accumulate(product.weight[filter * product.weight_filter + entry.weight_offset]);
      }
    }
  };

  const int first_filter = Shape::first_filter();
  const bool active = first_filter < product.filters;
  if (thread == 0) {
    shared.geometry = product.taps;
  }
  __syncthreads();
  describe(0);
  describe(kDepth);
  __syncthreads();
  load(0);
  for (int first_k = 0; first_k < depth; first_k += kDepth) {
    auto& operands = shared.operands[first_k / kDepth % 2];
#pragma unroll
    for (int i = 0; i < source_loads; ++i) {
      operands.source[i * Shape::slices + slice][pixel] = source_values[i];
    }
#pragma unroll
    for (int i = 0; i < weight_loads; ++i) {
      const int filter = thread / kDepth + i * weight_threads;
      if (filter < Shape::filters) {
        operands.weight[weight_k][filter] = weight_values[i];
      }
    }
    __syncthreads();
    if (first_k + kDepth < depth) {
      load(first_k + kDepth);  // in flight while the products below are formed
      describe(first_k + 2 * kDepth);
    }
    if (active) {
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        using Weights = Vector<A, Shape::filters_per_thread>;
        const Weights weights = *reinterpret_cast<const Weights*>(&operands.weight[k][first_filter]);
#pragma unroll
        for (int i = 0; i < Shape::pixels_per_thread; ++i) {
          const A value = operands.source[k][Shape::pixel(i)];
#pragma unroll
          for (int f = 0; f < Shape::filters_per_thread; ++f) {
            sums[i][f] += value * weights.value[f];
          }
        }
      }
    }
  }
  __syncthreads();
}

// The sums of one filter of the thread. Picking them by comparison keeps `sums` in registers while the code that
// finishes a filter exists once: unrolled, it needs more registers than two blocks a multiprocessor leave.
template <typename A, int Pixels, int Filters>
STURDY_DEVICE void pick_filter(const A (&sums)[Pixels][Filters], int filter, A (&picked)[Pixels]) {
#pragma unroll
  for (int i = 0; i < Pixels; ++i) {
    picked[i] = sums[i][0];
#pragma unroll
    for (int f = 1; f < Filters; ++f) {
      picked[i] = f == filter ? sums[i][f] : picked[i];
    }
  }
}

// ---------------------------------------------------------------------------------------- launchers used by both ways

// Writes the range of every filter.
template <typename T, typename A>
Status filter_ranges(const Sizes& sizes, const View4& weight, FilterRange<A>* ranges, void* stream);

// Writes p (unless `box_only`) and the box to a map. W is the type of the weights.
template <typename T, typename W = T, typename A>
Status convolve(const Sizes& sizes, const View4& input, const View4& weight, bool box_only, A* map, void* stream);

// Adds, along rows, each pixel's window: all planes of `map` to the same planes of `sums`, or, where `push` has data,
// the planes of the filters from there and only the box from `map`. The box only `with_box`.
template <typename T, typename A>
Status sum_rows(const Sizes& sizes, const View4& push, const A* map, bool with_box, A* sums, void* stream);

// Adds up partials (channel, chunk, kChannelSums) and stores what is wanted of them.
template <typename T, typename A>
Status sum_channels(const Sizes& sizes, const ChannelView& grad_inhibition, const ChannelView& grad_bias, A* partials,
                    int64_t chunks, A* offset_gradient, void* stream);

// Writes partials (piece, filter, tap) of the weight gradient of what `map` holds for the filters, in
// weight_gradient_pieces() pieces.
int64_t weight_gradient_pieces(const Sizes& sizes);
template <typename T, typename A>
Status weight_gradient(const Sizes& sizes, const View4& input, const A* map, A* partials, void* stream);

// Writes the gradient of the input, given those at the maps of the filters and, with_ones, at the box.
template <typename T, typename W = T, typename A>
Status input_gradient(const Sizes& sizes, const View4& weight, const View4& grad_input, const A* map, bool with_ones,
                      void* stream);

}  // namespace sturdy::cuda::push_pull
