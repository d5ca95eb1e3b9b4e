// PushPull convolution, forward. A block forms p and the box for one tile of pixels and a few filters in registers,
// pools them over the tile through shared memory and stores the result: one pass over the output. Windows that would
// make neighbouring tiles overlap too much go by way of maps in the workspace instead.
//
// Dynamic shared memory, none of which needs to opt in to more than 48 KiB (checked by static_assert where it varies):
// push_pull_tile_kernel up to 25 KiB (TileShared), filter_range_kernel one value a warp, none elsewhere. Registers a
// thread; 128 is what two blocks a multiprocessor leave:
// ptxas-budget: filter_range_kernel 40
// ptxas-budget: push_pull_tile_kernel 128
// ptxas-budget: sum_rows_kernel 48
// ptxas-budget: pooled_output_kernel 56
#include <algorithm>
#include <type_traits>

#include "common/nvtx.h"
#include "pushpull/push_pull_conv2d_cuda.cuh"
#include "pushpull/push_pull_conv2d_cuda_channel.cuh"
#include "pushpull/push_pull_conv2d_cuda_tensor_launch.cuh"

namespace sturdy::cuda::push_pull {

namespace {

constexpr int kPointsPerThread = 4;
constexpr int kChunk = kThreads * kPointsPerThread;  // pixels of a block in the pointwise kernels

// -------------------------------------------------------------------------------------------------------- the ranges

// One block per filter: the extremes first, then how many weights equal them.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    filter_range_kernel(View4 weight, int channels, int kernel_h, int kernel_w, FilterRange<A>* ranges) {
  STURDY_DYNAMIC_SHARED(A, scratch);  // one value a warp
  const int taps = kernel_h * kernel_w;
  const int size = channels * taps;
  const T* filter = static_cast<const T*>(weight.data) + static_cast<int64_t>(blockIdx.x) * weight.stride[0];
  const auto value = [&](int k) {
    const int tap = k % taps;
    return to_accumulate(
        filter[k / taps * weight.stride[1] + tap / kernel_w * weight.stride[2] + tap % kernel_w * weight.stride[3]]);
  };
  if (size == 0) {
    if (threadIdx.x == 0) {
      ranges[blockIdx.x] = FilterRange<A>{A(0), A(0), A(1), A(1)};
    }
    return;
  }

  A minimum = value(0);
  A maximum = minimum;
  for (int k = static_cast<int>(threadIdx.x); k < size; k += kThreads) {
    minimum = Min{}(value(k), minimum);
    maximum = Max{}(value(k), maximum);
  }
  minimum = block_reduce(minimum, minimum, scratch, Min{});
  maximum = block_reduce(maximum, maximum, scratch, Max{});

  int at_minimum = 0;
  int at_maximum = 0;
  for (int k = static_cast<int>(threadIdx.x); k < size; k += kThreads) {
    at_minimum += value(k) == minimum;
    at_maximum += value(k) == maximum;
  }
  at_minimum = block_sum(at_minimum, reinterpret_cast<int*>(scratch));
  at_maximum = block_sum(at_maximum, reinterpret_cast<int*>(scratch));
  if (threadIdx.x == 0) {
    ranges[blockIdx.x] = FilterRange<A>{minimum, maximum, static_cast<A>(at_minimum), static_cast<A>(at_maximum)};
  }
}

// ---------------------------------------------------------------------------------------------------------- the tile

template <typename A>
struct TileArguments {
  Sizes sizes;
  TilePlan plan;
  View4 input, weight, out, push;
  ChannelView inhibition, bias;
  bool inhibition_is_float, bias_is_float;
  A strength;
  const FilterRange<A>* ranges;
  A* map;       // p and box go here, unpooled, and nothing else is stored; null: store out and push
  int filters;  // of a group; 0: only the box is wanted
};

// W is the type of the weights, which is wider than T where they were computed.
template <typename T, typename A, typename W, typename Shape>
__global__ void __launch_bounds__(kThreads, 2) push_pull_tile_kernel(TileArguments<A> a) {
  using Shared = TileShared<A, Shape>;
  static_assert(sizeof(Shared) <= kSharedBudget, "a tile must fit in shared memory without opting in");
  STURDY_DYNAMIC_SHARED(Shared, shared_memory);
  Shared& shared = *shared_memory;
  const Sizes& s = a.sizes;
  const TilePlan& plan = a.plan;

  // Blocks which read the same pixels are neighbours, so that these come from the cache.
  unsigned index = blockIdx.x;
  const int filter_block = static_cast<int>(index % plan.filter_blocks);
  index /= plan.filter_blocks;
  const int group = static_cast<int>(index % s.groups);
  index /= s.groups;
  const int tile_column = static_cast<int>(index % plan.columns.count);
  index /= plan.columns.count;
  const int tile_row = static_cast<int>(index % plan.rows.count);
  const int64_t image = index / plan.rows.count;

  const int thread = static_cast<int>(threadIdx.x);
  const int width = plan.columns.tile;
  const int row_origin = plan.rows.origin(tile_row);
  const int column_origin = plan.columns.origin(tile_column);

  // Each thread stages one pixel of the tile, and the first threads describe it to all.
  const int staged = thread % Shape::pixels;
  const int row = row_origin + staged / width;
  const int column = column_origin + staged % width;
  const bool inside = staged < plan.rows.tile * width && row >= 0 && row < s.out_h && column >= 0 && column < s.out_w;
  if (thread < Shape::pixels) {
    const int inner_row = staged / width - plan.rows.halo;
    const int inner_column = staged % width - plan.columns.halo;
    const bool stored = inside && inner_row >= 0 && inner_row < plan.rows.inner && inner_column >= 0 &&
                        inner_column < plan.columns.inner;
    const bool to_map = a.map != nullptr;
    const int64_t row_stride = to_map ? s.out_w : a.out.stride[2];
    const int64_t column_stride = to_map ? 1 : a.out.stride[3];
    shared.offset[staged] = stored ? row * row_stride + column * column_stride : -1;
    shared.place[staged] = (inside ? staged / width : 0) << 16 | (inside ? staged % width : 0);
    shared.scale[staged] = inside && s.pooled() ? A(1) / static_cast<A>(window_cells(s, row, column)) : A(1);
  }

  const int first_filter = filter_block * Shape::filters;  // of the group
  TileProduct<T, W> product;
  product.source =
      static_cast<const T*>(a.input.data) + image * a.input.stride[0] + int64_t{group} * s.group_in * a.input.stride[1];
  product.taps.source_channel = a.input.stride[1];
  product.taps.source_row = a.input.stride[2];
  product.taps.source_column = a.input.stride[3];
  product.source_h = s.in_h;
  product.source_w = s.in_w;
  product.weight =
      static_cast<const W*>(a.weight.data) + (int64_t{group} * s.group_out + first_filter) * a.weight.stride[0];
  product.weight_filter = a.weight.stride[0];
  product.taps.weight_channel = a.weight.stride[1];
  product.taps.weight_row = a.weight.stride[2];
  product.taps.weight_column = a.weight.stride[3];
  product.filters = min(a.filters - first_filter, Shape::filters);
  product.taps.channels = s.group_in;
  product.taps.taps_h = s.kernel_h;
  product.taps.taps_w = s.kernel_w;
  product.taps.tap_step_h = s.dilation_h;
  product.taps.tap_step_w = s.dilation_w;
  product.taps.ones_channel = -1;

  if (thread == 0) {
    const TileWindows in_map{width, max(0, -row_origin), min(plan.rows.tile, s.out_h - row_origin),
                             max(0, -column_origin), min(width, s.out_w - column_origin)};
    shared.block = TileBlock{image, group, first_filter, in_map};
  }
  A sums[Shape::pixels_per_thread][Shape::filters_per_thread] = {};
  A box = A(0);
  multiply_tile<Shape>(product, inside ? row * s.stride_h - s.pad_top : 0,
                       inside ? column * s.stride_w - s.pad_left : 0, inside, shared, sums, box);

  // Add up the box over the slices, then pool it. It shares its memory with the planes of the filters.
  const TileBlock& block = shared.block;
  const TileWindows& windows = block.windows;
  shared.box_slice[thread / Shape::pixels][staged] = box;
  __syncthreads();
  if (thread < Shape::pixels) {
    for (int slice = 1; slice < Shape::slices; ++slice) {
      box += shared.box_slice[slice][staged];
    }
    shared.mean_box[staged] = box;
  }
  __syncthreads();
  if (a.map == nullptr && s.pooled()) {
    if (thread < Shape::pixels) {
      shared.box_slice[0][staged] = windows.along_row(shared.mean_box, shared.place[staged], s.radius_w);
    }
    __syncthreads();
    if (thread < Shape::pixels) {
      shared.mean_box[staged] =
          windows.along_column(shared.box_slice[0], shared.place[staged], s.radius_h) * shared.scale[staged];
    }
    __syncthreads();
  }

  if (a.map != nullptr) {
    A* planes = a.map + (s.box_plane(block.image, block.group) - s.group_out) * s.pixels();
#pragma unroll 1
    for (int f = 0; f < Shape::filters_per_thread; ++f) {
      const int filter = Shape::first_filter() + f;
      A push[Shape::pixels_per_thread];
      pick_filter(sums, f, push);
#pragma unroll
      for (int i = 0; i < Shape::pixels_per_thread; ++i) {
        const int64_t offset = shared.offset[Shape::pixel(i)];
        if (offset >= 0 && filter < a.filters - block.first_filter) {
          planes[(block.first_filter + filter) * s.pixels() + offset] = push[i];
        }
      }
    }
    if (block.first_filter == 0 && thread < Shape::pixels && shared.offset[staged] >= 0) {
      planes[s.group_out * s.pixels() + shared.offset[staged]] = shared.mean_box[staged];
    }
    return;
  }

  A* plane = shared.plane[Shape::first_filter() / Shape::filters_per_thread];
#pragma unroll 1
  for (int f = 0; f < Shape::filters_per_thread; ++f) {
    const int filter = Shape::first_filter() + f;
    const bool active = filter < a.filters - block.first_filter;
    A push[Shape::pixels_per_thread];
    A means[Shape::pixels_per_thread];
    pick_filter(sums, f, push);
#pragma unroll
    for (int i = 0; i < Shape::pixels_per_thread; ++i) {
      means[i] = push[i];
    }
    if (s.pooled()) {
      // Rows, then columns, in place: a thread keeps what it read until all have read.
#pragma unroll 1
      for (int pass = 0; pass < 2; ++pass) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < Shape::pixels_per_thread; ++i) {
          plane[Shape::pixel(i)] = means[i];
        }
        __syncthreads();
        if (active) {
#pragma unroll
          for (int i = 0; i < Shape::pixels_per_thread; ++i) {
            const int place = shared.place[Shape::pixel(i)];
            means[i] = pass == 0 ? windows.along_row(plane, place, s.radius_w)
                                 : windows.along_column(plane, place, s.radius_h) * shared.scale[Shape::pixel(i)];
          }
        }
      }
    }
    if (!active) {
      continue;
    }
    const int channel = block.group * s.group_out + block.first_filter + filter;
    const A offset_of_filter = a.ranges[channel].offset();
    const A strength =
        a.inhibition.data == nullptr ? a.strength : load_channel<A, T>(a.inhibition, a.inhibition_is_float, channel);
    const A bias = a.bias.data == nullptr ? A(0) : load_channel<A, T>(a.bias, a.bias_is_float, channel);
    const int64_t plane_offset = block.image * a.out.stride[0] + channel * a.out.stride[1];
#pragma unroll
    for (int i = 0; i < Shape::pixels_per_thread; ++i) {
      const int64_t offset = shared.offset[Shape::pixel(i)];
      if (offset < 0) {
        continue;
      }
      const A pull = offset_of_filter * shared.mean_box[Shape::pixel(i)] - means[i];
      static_cast<T*>(a.out.data)[plane_offset + offset] =
          from_accumulate<T>(relu(push[i]) - strength * relu(pull) + bias);
      if (a.push.data != nullptr) {
        static_cast<T*>(a.push.data)[plane_offset + offset] = from_accumulate<T>(push[i]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------ large windows, point by
// point

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) sum_rows_kernel(Sizes s, View4 push, const A* map, bool with_box, A* sums) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t planes = s.map_planes();
  const int64_t first_plane = first / s.pixels();
  const int first_pixel = static_cast<int>(first % s.pixels());
  const int channels = s.out_channels + s.groups;
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_plane, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    if (point.plane >= planes) {
      return;
    }
    const int begin = window_begin(point.column, s.radius_w);
    const int end = window_end(point.column, s.radius_w, s.out_w);
    const int channel = static_cast<int>(point.plane % channels);
    const int group = channel / (s.group_out + 1);
    const bool is_box = channel % (s.group_out + 1) == s.group_out;
    if (is_box && !with_box) {
      continue;
    }
    A sum = A(0);
    if (push.data != nullptr && !is_box) {
      const T* row = static_cast<const T*>(push.data) + point.plane / channels * push.stride[0] +
                     (channel - group) * push.stride[1] + point.row * push.stride[2];
      for (int c = begin; c < end; ++c) {
        sum += to_accumulate(row[c * push.stride[3]]);
      }
    } else {
      const A* row = map + point.plane * s.pixels() + int64_t{point.row} * s.out_w;
      for (int c = begin; c < end; ++c) {
        sum += row[c];
      }
    }
    sums[point.plane * s.pixels() + point.pixel] = sum;
  }
}

// Adds up columns of the row sums and finishes: the result and p in their own layout.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) pooled_output_kernel(TileArguments<A> a, const A* row_sums) {
  const Sizes& s = a.sizes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t planes = s.batch * s.out_channels;
  const int64_t first_plane = first / s.pixels();
  const int first_pixel = static_cast<int>(first % s.pixels());
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_plane, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    if (point.plane >= planes) {
      return;
    }
    const int64_t image = point.plane / s.out_channels;
    const int channel = static_cast<int>(point.plane % s.out_channels);
    const int64_t own = s.map_plane(image, channel) * s.pixels();
    const int64_t box = s.box_plane(image, channel / s.group_out) * s.pixels();
    A push_sum = A(0);
    A box_sum = A(0);
    const int end = window_end(point.row, s.radius_h, s.out_h);
    for (int row = window_begin(point.row, s.radius_h); row < end; ++row) {
      const int64_t at = int64_t{row} * s.out_w + point.column;
      push_sum += row_sums[own + at];
      box_sum += row_sums[box + at];
    }
    const A scale = A(1) / static_cast<A>(window_cells(s, point.row, point.column));
    const A push = a.map[own + point.pixel];
    const A pull = a.ranges[channel].offset() * (box_sum * scale) - push_sum * scale;
    const A strength =
        a.inhibition.data == nullptr ? a.strength : load_channel<A, T>(a.inhibition, a.inhibition_is_float, channel);
    const A bias = a.bias.data == nullptr ? A(0) : load_channel<A, T>(a.bias, a.bias_is_float, channel);
    const int64_t at = image * a.out.stride[0] + channel * a.out.stride[1] + point.row * a.out.stride[2] +
                       point.column * a.out.stride[3];
    static_cast<T*>(a.out.data)[at] = from_accumulate<T>(relu(push) - strength * relu(pull) + bias);
    if (a.push.data != nullptr) {
      static_cast<T*>(a.push.data)[at] = from_accumulate<T>(push);
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- planning

enum class Tile { wide, small, medium, narrow };

template <typename A>
Tile choose_tile(const Sizes& s) {
  if (s.group_out <= Tiles<A>::Narrow::filters) {
    return Tile::narrow;
  }
  if (s.pixels() <= Tiles<A>::Small::pixels) {
    return Tile::small;
  }
  return s.group_out <= Tiles<A>::Medium::filters ? Tile::medium : Tile::wide;
}

template <typename A>
TilePlan plan_output(const Sizes& s, int radius_h, int radius_w, int filters) {
  switch (choose_tile<A>(s)) {
    case Tile::narrow:
      return plan_tiles<typename Tiles<A>::Narrow>(s.out_h, s.out_w, radius_h, radius_w, filters);
    case Tile::small:
      return plan_tiles<typename Tiles<A>::Small>(s.out_h, s.out_w, radius_h, radius_w, filters);
    case Tile::medium:
      return plan_tiles<typename Tiles<A>::Medium>(s.out_h, s.out_w, radius_h, radius_w, filters);
    case Tile::wide:
      break;
  }
  return plan_tiles<typename Tiles<A>::Wide>(s.out_h, s.out_w, radius_h, radius_w, filters);
}

// Whether tiles hold the windows. They do not where more than half of what they compute would be computed twice: from
// there on it is cheaper to write p and the box out and to read them again.
template <typename A>
bool tiles_hold_windows(const Sizes& s) {
  const TilePlan plan = plan_output<A>(s, s.radius_h, s.radius_w, s.group_out);
  return plan.rows.inner > 0 && plan.columns.inner > 0 &&
         2 * plan.rows.inner * plan.columns.inner >= plan.rows.tile * plan.columns.tile;
}

// Launches the tile kernel; the windows are those of `radius_h` and `radius_w`, which are 0 for a map.
template <typename T, typename W, typename A>
Status launch_tiles(TileArguments<A>& arguments, void* stream) {
  const Sizes& s = arguments.sizes;
  const bool to_map = arguments.map != nullptr;
  arguments.plan = plan_output<A>(s, to_map ? 0 : s.radius_h, to_map ? 0 : s.radius_w, arguments.filters);
  const TilePlan& plan = arguments.plan;
  const int64_t blocks = s.batch * plan.rows.count * plan.columns.count * s.groups * plan.filter_blocks;
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  const dim3 grid(static_cast<unsigned>(blocks));
  switch (choose_tile<A>(s)) {
    case Tile::narrow:
      return launch(push_pull_tile_kernel<T, A, W, typename Tiles<A>::Narrow>, grid, dim3(kThreads),
                    sizeof(TileShared<A, typename Tiles<A>::Narrow>), stream, arguments);
    case Tile::small:
      return launch(push_pull_tile_kernel<T, A, W, typename Tiles<A>::Small>, grid, dim3(kThreads),
                    sizeof(TileShared<A, typename Tiles<A>::Small>), stream, arguments);
    case Tile::medium:
      return launch(push_pull_tile_kernel<T, A, W, typename Tiles<A>::Medium>, grid, dim3(kThreads),
                    sizeof(TileShared<A, typename Tiles<A>::Medium>), stream, arguments);
    case Tile::wide:
      return launch(push_pull_tile_kernel<T, A, W, typename Tiles<A>::Wide>, grid, dim3(kThreads),
                    sizeof(TileShared<A, typename Tiles<A>::Wide>), stream, arguments);
  }
  return Status::internal_error;
}

int64_t chunks(int64_t points) { return ceil_div(points, int64_t{kChunk}); }

// Tensor cores take 16-bit types and, where allowed, float32 as tf32; the rest goes the plain way.
bool plan_tensor_forward(const PushPullGeometry& geometry, const Sizes& s, TensorPlan* plan) {
  const bool wide = geometry.dtype == DType::f32;
  if (geometry.dtype == DType::f64 || (wide && !geometry.allow_tf32)) {
    return false;
  }
  return plan_tensor(s, wide, s.radius_h, s.radius_w, plan);
}

template <typename A>
struct ForwardWorkspace {
  FilterRange<A>* ranges;
  A* map = nullptr;
  A* row_sums = nullptr;
  uint32_t* packed = nullptr;

  ForwardWorkspace(Workspace& workspace, const PushPullGeometry& geometry, const Sizes& s)
      : ranges(workspace.take<FilterRange<A>>(s.out_channels)) {
    TensorPlan plan;
    if (plan_tensor_forward(geometry, s, &plan)) {
      packed = workspace.take<uint32_t>(packed_words(s, plan));
    } else if (!tiles_hold_windows<A>(s)) {
      map = workspace.take<A>(s.map_planes() * s.pixels());
      row_sums = workspace.take<A>(s.map_planes() * s.pixels());
    }
  }
};

template <typename T>
Status forward(const PushPullForwardParams& params, const Sizes& s, void* workspace, void* stream) {
  using A = Accumulate<T>;
  Workspace pieces(workspace);
  const ForwardWorkspace<A> scratch(pieces, params.geometry, s);
  Status status = filter_ranges<T>(s, params.weight, scratch.ranges, stream);
  if (status != Status::ok) {
    return status;
  }
  if constexpr (!std::is_same_v<T, double>) {
    TensorPlan plan;
    if (plan_tensor_forward(params.geometry, s, &plan)) {
      return tensor_forward<T>(params, s, plan, PackedSource{params.weight, s.group_out * params.weight.stride[0], -1},
                               scratch.ranges, scratch.packed, stream);
    }
  }
  TileArguments<A> arguments{};
  arguments.sizes = s;
  arguments.input = params.input;
  arguments.weight = params.weight;
  arguments.out = params.out;
  arguments.push = params.push;
  arguments.inhibition = params.inhibition;
  arguments.bias = params.bias;
  arguments.inhibition_is_float = params.inhibition.dtype == DType::f32;
  arguments.bias_is_float = params.bias.dtype == DType::f32;
  arguments.strength = static_cast<A>(params.geometry.strength);
  arguments.ranges = scratch.ranges;
  arguments.filters = s.group_out;
  if (tiles_hold_windows<A>(s)) {
    return launch_tiles<T, T>(arguments, stream);
  }

  status = convolve<T>(s, params.input, params.weight, false, scratch.map, stream);
  if (status == Status::ok) {
    status = sum_rows<T>(s, View4{}, scratch.map, true, scratch.row_sums, stream);
  }
  const int64_t blocks = chunks(s.batch * s.out_channels * s.pixels());
  if (status != Status::ok || blocks > max_grid_x) {
    return status != Status::ok ? status : Status::unsupported_size;
  }
  arguments.map = scratch.map;
  return launch(pooled_output_kernel<T, A>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), size_t{0}, stream,
                arguments, static_cast<const A*>(scratch.row_sums));
}

}  // namespace

bool make_sizes(const PushPullGeometry& g, Sizes* sizes) {
  const int64_t extents[] = {g.in_channels, g.out_channels, g.in_h,    g.in_w,     g.kernel_h,
                             g.kernel_w,    g.out_h,        g.out_w,   g.stride_h, g.stride_w,
                             g.dilation_h,  g.dilation_w,   g.pad_top, g.pad_left};
  for (const int64_t extent : extents) {
    if (extent > kMaxExtent) {
      return false;
    }
  }
  const int64_t group_in = g.groups > 0 ? g.in_channels / g.groups : 0;
  const int64_t group_out = g.groups > 0 ? g.out_channels / g.groups : 0;
  const int64_t taps = g.kernel_h * g.kernel_w;
  const bool fits = g.out_h * g.stride_h + g.kernel_h * g.dilation_h + g.pad_top + g.in_h <= kMaxExtent &&
                    g.out_w * g.stride_w + g.kernel_w * g.dilation_w + g.pad_left + g.in_w <= kMaxExtent &&
                    g.out_h * g.out_w <= kMaxExtent && taps <= kMaxExtent && group_in * taps <= kMaxExtent &&
                    (group_out + 1) * taps <= kMaxExtent && g.in_channels + g.groups <= kMaxExtent;
  if (!fits) {
    return false;
  }
  *sizes = Sizes{};
  sizes->batch = g.batch;
  sizes->in_channels = static_cast<int>(g.in_channels);
  sizes->out_channels = static_cast<int>(g.out_channels);
  sizes->groups = static_cast<int>(g.groups);
  sizes->group_in = static_cast<int>(group_in);
  sizes->group_out = static_cast<int>(group_out);
  sizes->in_h = static_cast<int>(g.in_h);
  sizes->in_w = static_cast<int>(g.in_w);
  sizes->kernel_h = static_cast<int>(g.kernel_h);
  sizes->kernel_w = static_cast<int>(g.kernel_w);
  sizes->out_h = static_cast<int>(g.out_h);
  sizes->out_w = static_cast<int>(g.out_w);
  sizes->stride_h = static_cast<int>(g.stride_h);
  sizes->stride_w = static_cast<int>(g.stride_w);
  sizes->dilation_h = static_cast<int>(g.dilation_h);
  sizes->dilation_w = static_cast<int>(g.dilation_w);
  sizes->pad_top = static_cast<int>(g.pad_top);
  sizes->pad_left = static_cast<int>(g.pad_left);
  sizes->radius_h = static_cast<int>(std::min((g.pool_h - 1) / 2, g.out_h > 0 ? g.out_h - 1 : 0));
  sizes->radius_w = static_cast<int>(std::min((g.pool_w - 1) / 2, g.out_w > 0 ? g.out_w - 1 : 0));
  return true;
}

template <typename T, typename A>
Status filter_ranges(const Sizes& s, const View4& weight, FilterRange<A>* ranges, void* stream) {
  if (s.out_channels == 0) {
    return Status::ok;
  }
  return launch(filter_range_kernel<T, A>, dim3(static_cast<unsigned>(s.out_channels)), dim3(kThreads),
                warp_size * sizeof(A), stream, weight, s.group_in, s.kernel_h, s.kernel_w, ranges);
}

template <typename T, typename W, typename A>
Status convolve(const Sizes& s, const View4& input, const View4& weight, bool box_only, A* map, void* stream) {
  TileArguments<A> arguments{};
  arguments.sizes = s;
  arguments.input = input;
  arguments.weight = weight;
  arguments.map = map;
  arguments.filters = box_only ? 0 : s.group_out;
  return launch_tiles<T, W>(arguments, stream);
}

template <typename T, typename A>
Status sum_rows(const Sizes& s, const View4& push, const A* map, bool with_box, A* sums, void* stream) {
  const int64_t blocks = chunks(s.map_planes() * s.pixels());
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  return launch(sum_rows_kernel<T, A>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), size_t{0}, stream, s, push,
                map, with_box, sums);
}

#define STURDY_PUSH_PULL_SHARED(T, A)                                                           \
  template Status filter_ranges<T, A>(const Sizes&, const View4&, FilterRange<A>*, void*);      \
  template Status convolve<T, T, A>(const Sizes&, const View4&, const View4&, bool, A*, void*); \
  template Status sum_rows<T, A>(const Sizes&, const View4&, const A*, bool, A*, void*)
STURDY_PUSH_PULL_SHARED(float, float);
STURDY_PUSH_PULL_SHARED(double, double);
STURDY_PUSH_PULL_SHARED(__half, float);
STURDY_PUSH_PULL_SHARED(__nv_bfloat16, float);
template Status convolve<__half, float, float>(const Sizes&, const View4&, const View4&, bool, float*, void*);
template Status convolve<__nv_bfloat16, float, float>(const Sizes&, const View4&, const View4&, bool, float*, void*);
#undef STURDY_PUSH_PULL_SHARED

}  // namespace sturdy::cuda::push_pull

namespace sturdy::cuda {

size_t push_pull_conv2d_workspace(const PushPullGeometry& geometry) {
  push_pull::Sizes sizes;
  if (!push_pull::make_sizes(geometry, &sizes)) {
    return 0;  // the launcher refuses such a size
  }
  if (geometry.channel_range) {
    return push_pull::channel_workspace(geometry, sizes);
  }
  Workspace pieces(nullptr);
  if (geometry.dtype == DType::f64) {
    push_pull::ForwardWorkspace<double>(pieces, geometry, sizes);
  } else {
    push_pull::ForwardWorkspace<float>(pieces, geometry, sizes);
  }
  return pieces.bytes();
}

Status push_pull_conv2d(const PushPullForwardParams& params, void* workspace, void* stream) {
  const NvtxRange range("sturdy::push_pull_conv2d");
  push_pull::Sizes sizes;
  if (!push_pull::make_sizes(params.geometry, &sizes)) {
    return Status::unsupported_size;
  }
  if (sizes.batch == 0 || sizes.out_channels == 0 || sizes.pixels() == 0) {
    return Status::ok;
  }
  if (params.geometry.channel_range) {
    return push_pull::channel_forward(params, sizes, workspace, stream);
  }
  switch (params.geometry.dtype) {
    case DType::f32:
      return push_pull::forward<float>(params, sizes, workspace, stream);
    case DType::f64:
      return push_pull::forward<double>(params, sizes, workspace, stream);
    case DType::f16:
      return push_pull::forward<__half>(params, sizes, workspace, stream);
    case DType::bf16:
      return push_pull::forward<__nv_bfloat16>(params, sizes, workspace, stream);
  }
  return Status::unsupported_dtype;
}

}  // namespace sturdy::cuda
