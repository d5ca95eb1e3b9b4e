// PushPull convolution, backward. With u = m * A(box) - A(p) and g the gradient of the result,
//   gu = -inhibition * g * [u > 0],  gq = A^T(gu): divide by the window's cells, then add up windows,
//   gp = g * [p > 0] - gq            is the one gradient at the convolution's output;
//   grad_weight = wgrad(input, gp) + (sum gu * A(box)) shared among the weights that are the filter's extremes,
//   grad_input  = dgrad(gp, weight) + what all-ones weights make of sum over filters of m * gq.
// All sums over pixels run in two stages in a fixed order, cut into pieces by the sizes alone.
//
// Dynamic shared memory, none of which needs to opt in to more than 48 KiB (checked by static_assert where it varies):
// input_gradient_kernel up to 25 KiB (TileShared), weight_gradient_kernel up to 17 KiB (WeightShared), one value a warp
// for the two that add up a block, none elsewhere. Registers a thread; 128 is what two blocks a multiprocessor leave:
// ptxas-budget: pull_gradient_kernel 64
// ptxas-budget: channel_sums_kernel 40
// ptxas-budget: push_gradient_kernel 56
// ptxas-budget: ones_gradient_kernel 40
// ptxas-budget: weight_gradient_kernel 128
// ptxas-budget: weight_sums_kernel 48
// ptxas-budget: input_gradient_kernel 128
#include <algorithm>
#include <type_traits>

#include "common/nvtx.h"
#include "pushpull/push_pull_conv2d_cuda.cuh"
#include "pushpull/push_pull_conv2d_cuda_channel.cuh"
#include "pushpull/push_pull_conv2d_cuda_input_gradient.cuh"
#include "pushpull/push_pull_conv2d_cuda_tensor_launch.cuh"
#include "pushpull/push_pull_conv2d_cuda_weight_gradient.cuh"

namespace sturdy::cuda::push_pull {

namespace {

constexpr int kPointsPerThread = 8;
constexpr int kChunk = kThreads * kPointsPerThread;  // pixels of a block in the pointwise kernels

template <typename A>
struct GradientArguments {
  Sizes sizes;
  View4 grad_out;
  View4 push;  // p; data null: it is in `map`
  ChannelView inhibition, grad_inhibition, grad_bias;
  bool inhibition_is_float, grad_inhibition_is_float, grad_bias_is_float;
  bool bias_only;   // no gradient needs u
  bool wants_map;   // gp is needed
  bool wants_ones;  // gq is needed on its own
  A strength;
  const FilterRange<A>* ranges;
  A* map;              // p and box, then gp and sum of m * gq
  A* row_sums;         // of what is pooled; null: windows are small enough to be added up cell by cell
  A* pull;             // gu over cells
  A* adjoint;          // gq
  A* partials;         // (channel, chunk, kChannelSums)
  A* offset_gradient;  // of m, per filter
  int64_t chunks;      // of a channel's pixels in all images
};

template <typename T, typename A>
STURDY_DEVICE A load_push(const GradientArguments<A>& a, int64_t image, int channel, const MapPoint& point) {
  if (a.push.data == nullptr) {
    return a.map[a.sizes.map_plane(image, channel) * a.sizes.pixels() + point.pixel];
  }
  const int64_t at = image * a.push.stride[0] + channel * a.push.stride[1] + point.row * a.push.stride[2] +
                     point.column * a.push.stride[3];
  return to_accumulate(static_cast<const T*>(a.push.data)[at]);
}

template <typename T, typename A>
STURDY_DEVICE A load_gradient(const GradientArguments<A>& a, int64_t image, int channel, const MapPoint& point) {
  const int64_t at = image * a.grad_out.stride[0] + channel * a.grad_out.stride[1] + point.row * a.grad_out.stride[2] +
                     point.column * a.grad_out.stride[3];
  return to_accumulate(static_cast<const T*>(a.grad_out.data)[at]);
}

// Up to so many cells of a window are read one by one, mostly from the cache; larger ones get a pass of their own that
// adds up their rows and costs two more trips over the map.
constexpr int kDirectCells = 16;

bool adds_rows_first(const Sizes& s) {
  return (2 * int64_t{s.radius_h} + 1) * (2 * int64_t{s.radius_w} + 1) > kDirectCells;
}

// Sum over the window around a point of a plane whose cells lie at these strides.
template <typename A, typename S>
STURDY_DEVICE A sum_window(const Sizes& s, const S* plane, int64_t row_stride, int64_t column_stride,
                           const MapPoint& point) {
  const int row_end = window_end(point.row, s.radius_h, s.out_h);
  const int column_begin = window_begin(point.column, s.radius_w);
  const int column_end = window_end(point.column, s.radius_w, s.out_w);
  A sum = A(0);
  for (int row = window_begin(point.row, s.radius_h); row < row_end; ++row) {
    A row_sum = A(0);
    for (int column = column_begin; column < column_end; ++column) {
      row_sum += to_accumulate(plane[row * row_stride + column * column_stride]);
    }
    sum += row_sum;
  }
  return sum;
}

// Sum over the window around a point of `map`, from its row sums where there are any.
template <typename A>
STURDY_DEVICE A sum_map_window(const GradientArguments<A>& a, const A* map, int64_t plane, const MapPoint& point) {
  const Sizes& s = a.sizes;
  if (a.row_sums == nullptr) {
    return sum_window<A>(s, map + plane * s.pixels(), s.out_w, 1, point);
  }
  const A* column = a.row_sums + plane * s.pixels() + point.column;
  const int end = window_end(point.row, s.radius_h, s.out_h);
  A sum = A(0);
  for (int row = window_begin(point.row, s.radius_h); row < end; ++row) {
    sum += column[int64_t{row} * s.out_w];
  }
  return sum;
}

template <typename T, typename A>
STURDY_DEVICE A sum_push_window(const GradientArguments<A>& a, int64_t image, int channel, const MapPoint& point) {
  if (a.row_sums != nullptr || a.push.data == nullptr) {
    return sum_map_window(a, a.map, a.sizes.map_plane(image, channel), point);
  }
  const T* plane = static_cast<const T*>(a.push.data) + image * a.push.stride[0] + channel * a.push.stride[1];
  return sum_window<A>(a.sizes, plane, a.push.stride[2], a.push.stride[3], point);
}

// ------------------------------------------------------------------------------------------------- gradient at the map

// A block takes one channel and some of its pixels: partial sums, and gu over the window's cells (pooled) or gp itself.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) pull_gradient_kernel(GradientArguments<A> a) {
  STURDY_DYNAMIC_SHARED(A, scratch);  // one value a warp
  const Sizes& s = a.sizes;
  const int64_t chunk = blockIdx.x % a.chunks;
  const int channel = static_cast<int>(blockIdx.x / a.chunks);
  const int64_t first_image = chunk * kChunk / s.pixels();
  const int first_pixel = static_cast<int>(chunk * kChunk % s.pixels());
  A offset = A(0);
  A strength = A(0);
  if (!a.bias_only) {
    offset = a.ranges[channel].offset();
    strength =
        a.inhibition.data == nullptr ? a.strength : load_channel<A, T>(a.inhibition, a.inhibition_is_float, channel);
  }
  A sums[kChannelSums] = {};
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_image, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    const int64_t image = point.plane;
    if (image >= s.batch) {
      break;
    }
    const A gradient = load_gradient<T>(a, image, channel, point);
    sums[0] += gradient;
    if (a.bias_only) {
      continue;
    }
    const A push = load_push<T>(a, image, channel, point);
    const int64_t plane = s.map_plane(image, channel);
    const int64_t box_plane = s.box_plane(image, channel / s.group_out);
    A mean_push = push;
    A scale = A(1);
    A mean_box;
    if (s.pooled()) {
      scale = A(1) / static_cast<A>(window_cells(s, point.row, point.column));
      mean_push = sum_push_window<T>(a, image, channel, point) * scale;
      mean_box = sum_map_window(a, a.map, box_plane, point) * scale;
    } else {
      mean_box = a.map[box_plane * s.pixels() + point.pixel];
    }
    const A pull = offset * mean_box - mean_push;
    A pull_gradient = A(0);
    sums[1] -= gradient * relu(pull);
    if (pull > A(0)) {
      pull_gradient = -strength * gradient;
      sums[2] += pull_gradient * mean_box;
    }
    if (!a.wants_map) {
      continue;
    }
    const int64_t at = plane * s.pixels() + point.pixel;
    if (s.pooled() || a.wants_ones) {
      a.pull[at] = pull_gradient * scale;
    }
    if (!s.pooled()) {
      a.map[at] = (push > A(0) ? gradient : A(0)) - pull_gradient;
    }
  }
#pragma unroll
  for (int j = 0; j < kChannelSums; ++j) {
    sums[j] = block_sum(sums[j], scratch);
  }
  if (threadIdx.x == 0) {
#pragma unroll
    for (int j = 0; j < kChannelSums; ++j) {
      a.partials[(channel * a.chunks + chunk) * kChannelSums + j] = sums[j];
    }
  }
}

// One block per channel adds up what the chunks left.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) channel_sums_kernel(GradientArguments<A> a) {
  STURDY_DYNAMIC_SHARED(A, scratch);  // one value a warp
  const int channel = static_cast<int>(blockIdx.x);
  A sums[kChannelSums] = {};
  for (int64_t chunk = threadIdx.x; chunk < a.chunks; chunk += kThreads) {
#pragma unroll
    for (int j = 0; j < kChannelSums; ++j) {
      sums[j] += a.partials[(channel * a.chunks + chunk) * kChannelSums + j];
    }
  }
#pragma unroll
  for (int j = 0; j < kChannelSums; ++j) {
    sums[j] = block_sum(sums[j], scratch);
  }
  if (threadIdx.x == 0) {
    if (a.grad_bias.data != nullptr) {
      store_channel<A, T>(a.grad_bias, a.grad_bias_is_float, channel, sums[0]);
    }
    if (a.grad_inhibition.data != nullptr) {
      store_channel<A, T>(a.grad_inhibition, a.grad_inhibition_is_float, channel, sums[1]);
    }
    a.offset_gradient[channel] = sums[2];
  }
}

// Only where there is a pool: gq, then gp in place of p.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) push_gradient_kernel(GradientArguments<A> a) {
  const Sizes& s = a.sizes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t first_plane = first / s.pixels();
  const int first_pixel = static_cast<int>(first % s.pixels());
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_plane, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    if (point.plane >= s.batch * s.out_channels) {
      return;
    }
    const int64_t image = point.plane / s.out_channels;
    const int channel = static_cast<int>(point.plane % s.out_channels);
    const int64_t plane = s.map_plane(image, channel);
    const int64_t at = plane * s.pixels() + point.pixel;
    const A pull_gradient = sum_map_window(a, a.pull, plane, point);
    const A push = load_push<T>(a, image, channel, point);
    a.map[at] = (push > A(0) ? load_gradient<T>(a, image, channel, point) : A(0)) - pull_gradient;
    if (a.wants_ones) {
      a.adjoint[at] = pull_gradient;
    }
  }
}

// sum over the filters of a group of m * gq, in place of the box.
template <typename A>
__global__ void __launch_bounds__(kThreads) ones_gradient_kernel(GradientArguments<A> a) {
  const Sizes& s = a.sizes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads;
  const MapPoint point(s, first / s.pixels(), static_cast<int>(first % s.pixels()), static_cast<int>(threadIdx.x));
  if (point.plane >= s.batch * s.groups) {
    return;
  }
  const int group = static_cast<int>(point.plane % s.groups);
  const int64_t box_plane = s.box_plane(point.plane / s.groups, group);
  const int64_t first_filter = (box_plane - s.group_out) * s.pixels() + point.pixel;
  A sum = A(0);
  for (int filter = 0; filter < s.group_out; ++filter) {
    sum += a.ranges[group * s.group_out + filter].offset() * a.adjoint[first_filter + filter * s.pixels()];
  }
  a.map[box_plane * s.pixels() + point.pixel] = sum;
}

// ------------------------------------------------------------------------------------------------------- the launcher

template <typename A>
struct BackwardWorkspace {
  FilterRange<A>* ranges;
  A* map;
  A* row_sums;
  A* pull;
  A* partials;
  A* offset_gradient;
  A* weight_partials;

  BackwardWorkspace(Workspace& workspace, const Sizes& s)
      : ranges(workspace.take<FilterRange<A>>(s.out_channels)),
        map(workspace.take<A>(s.map_planes() * s.pixels())),
        row_sums(workspace.take<A>(s.pooled() ? s.map_planes() * s.pixels() : 0)),
        pull(workspace.take<A>(s.map_planes() * s.pixels())),
        partials(workspace.take<A>(s.out_channels * channel_chunks(s) * kChannelSums)),
        offset_gradient(workspace.take<A>(s.out_channels)),
        weight_partials(
            workspace.take<A>(plan_weights(s).pieces * s.out_channels * s.group_in * s.kernel_h * s.kernel_w)) {}

  static int64_t channel_chunks(const Sizes& s) { return ceil_div(s.batch * s.pixels(), int64_t{kChunk}); }
};

// Launches unless an earlier launch failed or there is nothing to do.
template <typename... Parameters, typename... Arguments>
void launch_next(Status* status, void (*kernel)(Parameters...), int64_t blocks, size_t shared, void* stream,
                 const Arguments&... arguments) {
  if (*status != Status::ok || blocks == 0) {
    return;
  }
  if (blocks > max_grid_x) {
    *status = Status::unsupported_size;
    return;
  }
  *status = launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, stream, arguments...);
}

template <typename T, typename W, typename A, typename Shape>
void launch_input_shape(Status* status, InputArguments<A> arguments, void* stream) {
  const Sizes& s = arguments.sizes;
  arguments.phases_h = std::min(s.stride_h, s.in_h);
  arguments.phases_w = std::min(s.stride_w, s.in_w);
  const int extent_h = ceil_div(s.in_h, s.stride_h);
  const int extent_w = ceil_div(s.in_w, s.stride_w);
  arguments.plan = plan_tiles<Shape>(extent_h, extent_w, 0, 0, s.group_in);
  const TilePlan& plan = arguments.plan;
  const int64_t blocks = s.batch * arguments.phases_h * arguments.phases_w * plan.rows.count * plan.columns.count *
                         s.groups * plan.filter_blocks;
  launch_next(status, input_gradient_kernel<T, A, W, Shape>, blocks, sizeof(TileShared<A, Shape>), stream, arguments);
}

template <typename T, typename W, typename A>
void launch_input(Status* status, const InputArguments<A>& arguments, void* stream) {
  const Sizes& s = arguments.sizes;
  const int64_t phase_pixels = int64_t{ceil_div(s.in_h, s.stride_h)} * ceil_div(s.in_w, s.stride_w);
  if (s.group_in <= Tiles<A>::Narrow::filters) {
    launch_input_shape<T, W, A, typename Tiles<A>::Narrow>(status, arguments, stream);
  } else if (phase_pixels <= Tiles<A>::Small::pixels) {
    launch_input_shape<T, W, A, typename Tiles<A>::Small>(status, arguments, stream);
  } else if (s.group_in <= Tiles<A>::Medium::filters) {
    launch_input_shape<T, W, A, typename Tiles<A>::Medium>(status, arguments, stream);
  } else {
    launch_input_shape<T, W, A, typename Tiles<A>::Wide>(status, arguments, stream);
  }
}

template <typename T>
Status backward(const PushPullBackwardParams& params, const Sizes& s, void* workspace, void* stream) {
  using A = Accumulate<T>;
  Workspace pieces(workspace);
  const BackwardWorkspace<A> scratch(pieces, s);
  const bool wants_input = params.grad_input.data != nullptr;
  const bool wants_weight = params.grad_weight.data != nullptr;
  const bool wants_inhibition = params.grad_inhibition.data != nullptr;
  if (!wants_input && !wants_weight && !wants_inhibition && params.grad_bias.data == nullptr) {
    return Status::ok;
  }
  GradientArguments<A> a{};
  a.sizes = s;
  a.grad_out = params.grad_out;
  a.push = params.push;
  a.inhibition = params.inhibition;
  a.grad_inhibition = params.grad_inhibition;
  a.grad_bias = params.grad_bias;
  a.inhibition_is_float = params.inhibition.dtype == DType::f32;
  a.grad_inhibition_is_float = params.grad_inhibition.dtype == DType::f32;
  a.grad_bias_is_float = params.grad_bias.dtype == DType::f32;
  a.wants_map = wants_input || wants_weight;
  a.wants_ones = wants_input;
  a.bias_only = !a.wants_map && !wants_inhibition;
  a.strength = static_cast<A>(params.geometry.strength);
  a.ranges = scratch.ranges;
  a.map = scratch.map;
  a.row_sums = adds_rows_first(s) ? scratch.row_sums : nullptr;
  a.pull = scratch.pull;
  // Without row sums neighbours are still reading gu when gq is written, but then the room for row sums is free.
  a.adjoint = s.pooled() && a.row_sums == nullptr ? scratch.row_sums : scratch.pull;
  a.partials = scratch.partials;
  a.offset_gradient = scratch.offset_gradient;
  a.chunks = BackwardWorkspace<A>::channel_chunks(s);

  Status status = Status::ok;
  const int64_t points = s.batch * s.out_channels * s.pixels();
  const size_t sums_bytes = warp_size * sizeof(A);
  if (!a.bias_only) {
    status = filter_ranges<T>(s, params.weight, scratch.ranges, stream);
    if (status == Status::ok && points > 0) {
      status = convolve<T>(s, params.input, params.weight, params.push.data != nullptr, scratch.map, stream);
    }
    if (status == Status::ok && points > 0 && a.row_sums != nullptr) {
      status = sum_rows<T>(s, params.push, scratch.map, true, scratch.row_sums, stream);
    }
  }
  launch_next(&status, pull_gradient_kernel<T, A>, s.out_channels * a.chunks, sums_bytes, stream, a);
  launch_next(&status, channel_sums_kernel<T, A>, s.out_channels, sums_bytes, stream, a);
  if (!a.wants_map) {
    return status;
  }
  if (s.pooled()) {
    if (status == Status::ok && points > 0 && a.row_sums != nullptr) {
      status = sum_rows<T>(s, View4{}, scratch.pull, false, scratch.row_sums, stream);
    }
    launch_next(&status, push_gradient_kernel<T, A>, ceil_div(points, int64_t{kChunk}), 0, stream, a);
  }
  if (wants_weight) {
    const int64_t pieces_of_pixels = weight_gradient_pieces(s);
    if (status == Status::ok) {
      status = weight_gradient<T>(s, params.input, static_cast<const A*>(scratch.map), scratch.weight_partials, stream);
    }
    const int64_t weights = int64_t{s.out_channels} * s.group_in * s.kernel_h * s.kernel_w;
    launch_next(&status, weight_sums_kernel<T, A>, ceil_div(weights, int64_t{kThreads}), 0, stream, s, pieces_of_pixels,
                params.weight, params.grad_weight, static_cast<const FilterRange<A>*>(scratch.ranges),
                static_cast<const A*>(scratch.offset_gradient), static_cast<const A*>(scratch.weight_partials));
  }
  if (wants_input) {
    const int64_t ones = s.batch * s.groups * s.pixels();
    launch_next(&status, ones_gradient_kernel<A>, ceil_div(ones, int64_t{kThreads}), 0, stream, a);
    if (status == Status::ok) {
      status = input_gradient<T>(s, params.weight, params.grad_input, static_cast<const A*>(scratch.map), true, stream);
    }
  }
  return status;
}

// Tensor cores take 16-bit types and, where allowed, float32 as tf32; the rest goes the plain way.
template <typename T>
bool tensor_cores_allowed(const PushPullGeometry& geometry) {
  if constexpr (std::is_same_v<T, double>) {
    return false;
  } else {
    return !std::is_same_v<T, float> || geometry.allow_tf32;
  }
}

// Enough for either way, since it is not known yet whether the gradient of the input will be wanted.
template <typename T>
size_t backward_workspace(const PushPullGeometry& geometry, const Sizes& s) {
  size_t tensor_bytes = 0;
  if constexpr (!std::is_same_v<T, double>) {
    if (tensor_cores_allowed<T>(geometry)) {
      tensor_bytes = tensor_backward_workspace<T>(s);
      if (takes_tensor_backward<T>(s, true)) {
        return tensor_bytes;
      }
    }
  }
  Workspace pieces(nullptr);
  BackwardWorkspace<Accumulate<T>>(pieces, s);
  return std::max(pieces.bytes(), tensor_bytes);
}

template <typename T>
Status run_backward(const PushPullBackwardParams& params, const Sizes& s, void* workspace, void* stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (tensor_cores_allowed<T>(params.geometry) && takes_tensor_backward<T>(s, params.grad_input.data != nullptr)) {
      return tensor_backward<T>(params, s, workspace, stream);
    }
  }
  return backward<T>(params, s, workspace, stream);
}

}  // namespace

template <typename T, typename A>
Status sum_channels(const Sizes& s, const ChannelView& grad_inhibition, const ChannelView& grad_bias, A* partials,
                    int64_t chunks, A* offset_gradient, void* stream) {
  GradientArguments<A> a{};
  a.sizes = s;
  a.grad_inhibition = grad_inhibition;
  a.grad_bias = grad_bias;
  a.grad_inhibition_is_float = grad_inhibition.dtype == DType::f32;
  a.grad_bias_is_float = grad_bias.dtype == DType::f32;
  a.partials = partials;
  a.offset_gradient = offset_gradient;
  a.chunks = chunks;
  Status status = Status::ok;
  launch_next(&status, channel_sums_kernel<T, A>, s.out_channels, warp_size * sizeof(A), stream, a);
  return status;
}

int64_t weight_gradient_pieces(const Sizes& s) { return plan_weights(s).pieces; }

template <typename T, typename A>
Status weight_gradient(const Sizes& s, const View4& input, const A* map, A* partials, void* stream) {
  const WeightPlan plan = plan_weights(s);
  const int64_t blocks = plan.pieces * plan.filter_blocks * plan.tap_blocks * s.groups;
  Status status = Status::ok;
  if (narrow_weights(s)) {
    launch_next(&status, weight_gradient_kernel<T, A, NarrowWeights>, blocks, sizeof(WeightShared<A, NarrowWeights>),
                stream, s, plan, input, map, partials);
  } else {
    launch_next(&status, weight_gradient_kernel<T, A, WideWeights>, blocks, sizeof(WeightShared<A, WideWeights>),
                stream, s, plan, input, map, partials);
  }
  return status;
}

template <typename T, typename W, typename A>
Status input_gradient(const Sizes& s, const View4& weight, const View4& grad_input, const A* map, bool with_ones,
                      void* stream) {
  InputArguments<A> arguments{};
  arguments.sizes = s;
  arguments.weight = weight;
  arguments.grad_input = grad_input;
  arguments.map = map;
  arguments.with_ones = with_ones;
  Status status = Status::ok;
  if (s.in_h > 0 && s.in_w > 0 && s.group_in > 0) {
    launch_input<T, W>(&status, arguments, stream);
  }
  return status;
}

template <typename T>
Status sum_weight_pieces(const Sizes& s, int64_t pieces, const View4& weight, const View4& grad_weight,
                         const FilterRange<float>* ranges, const float* offset_gradient, const float* partials,
                         void* stream) {
  const int64_t weights = int64_t{s.out_channels} * s.group_in * s.kernel_h * s.kernel_w;
  Status status = Status::ok;
  launch_next(&status, weight_sums_kernel<T, float>, ceil_div(weights, int64_t{kThreads}), 0, stream, s, pieces, weight,
              grad_weight, ranges, offset_gradient, partials);
  return status;
}

#define STURDY_PUSH_PULL_SHARED(T, A)                                                                               \
  template Status sum_channels<T, A>(const Sizes&, const ChannelView&, const ChannelView&, A*, int64_t, A*, void*); \
  template Status weight_gradient<T, A>(const Sizes&, const View4&, const A*, A*, void*);                           \
  template Status input_gradient<T, A, A>(const Sizes&, const View4&, const View4&, const A*, bool, void*)
STURDY_PUSH_PULL_SHARED(float, float);
STURDY_PUSH_PULL_SHARED(double, double);
STURDY_PUSH_PULL_SHARED(__half, float);
STURDY_PUSH_PULL_SHARED(__nv_bfloat16, float);
#undef STURDY_PUSH_PULL_SHARED

#define STURDY_PUSH_PULL_PIECES(T)                                                                                   \
  template Status sum_weight_pieces<T>(const Sizes&, int64_t, const View4&, const View4&, const FilterRange<float>*, \
                                       const float*, const float*, void*)
STURDY_PUSH_PULL_PIECES(float);
STURDY_PUSH_PULL_PIECES(__half);
STURDY_PUSH_PULL_PIECES(__nv_bfloat16);
#undef STURDY_PUSH_PULL_PIECES

}  // namespace sturdy::cuda::push_pull

namespace sturdy::cuda {

size_t push_pull_conv2d_backward_workspace(const PushPullGeometry& geometry) {
  push_pull::Sizes sizes;
  if (!push_pull::make_sizes(geometry, &sizes)) {
    return 0;  // the launcher refuses such a size
  }
  if (geometry.channel_range) {
    return push_pull::channel_backward_workspace(geometry, sizes);
  }
  switch (geometry.dtype) {
    case DType::f32:
      return push_pull::backward_workspace<float>(geometry, sizes);
    case DType::f64:
      return push_pull::backward_workspace<double>(geometry, sizes);
    case DType::f16:
      return push_pull::backward_workspace<__half>(geometry, sizes);
    case DType::bf16:
      return push_pull::backward_workspace<__nv_bfloat16>(geometry, sizes);
  }
  return 0;
}

Status push_pull_conv2d_backward(const PushPullBackwardParams& params, void* workspace, void* stream) {
  const NvtxRange range("sturdy::push_pull_conv2d_backward");
  push_pull::Sizes sizes;
  if (!push_pull::make_sizes(params.geometry, &sizes)) {
    return Status::unsupported_size;
  }
  if (params.geometry.channel_range) {
    return push_pull::channel_backward(params, sizes, workspace, stream);
  }
  switch (params.geometry.dtype) {
    case DType::f32:
      return push_pull::run_backward<float>(params, sizes, workspace, stream);
    case DType::f64:
      return push_pull::run_backward<double>(params, sizes, workspace, stream);
    case DType::f16:
      return push_pull::run_backward<__half>(params, sizes, workspace, stream);
    case DType::bf16:
      return push_pull::run_backward<__nv_bfloat16>(params, sizes, workspace, stream);
  }
  return Status::unsupported_dtype;
}

}  // namespace sturdy::cuda
