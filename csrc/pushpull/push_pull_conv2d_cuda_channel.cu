// PushPull convolution with the range of each input channel apart: m_oc = min + max of one channel of a filter, so m *
// box is a sum over channels and no longer one map for all filters. The plain way takes the two convolutions of the
// definition in one launch: every group gets twice its filters, first w, then m - w (computed in the accumulation
// type), and whatever the two maps p and q need is linear in them.
//
// Registers a thread; dynamic shared memory is one value a warp where a block adds up, and none elsewhere:
// ptxas-budget: channel_weights_kernel 64
// ptxas-budget: channel_output_kernel 48
// ptxas-budget: channel_gradient_kernel 96
// ptxas-budget: channel_adjoint_kernel 40
// ptxas-budget: channel_weight_sums_kernel 64
#include <algorithm>
#include <type_traits>

#include "pushpull/push_pull_conv2d_cuda.cuh"
#include "pushpull/push_pull_conv2d_cuda_channel.cuh"

namespace sturdy::cuda::push_pull {

namespace {

constexpr int kPointsPerThread = 4;
constexpr int kChunk = kThreads * kPointsPerThread;  // pixels of a block in the pointwise kernels

// Sizes of the convolution with both kinds of filters. False where they are too many.
bool double_filters(const Sizes& s, Sizes* both) {
  if ((2 * int64_t{s.group_out} + 1) * s.kernel_h * s.kernel_w > kMaxExtent ||
      2 * int64_t{s.out_channels} > kMaxExtent) {
    return false;
  }
  *both = s;
  both->out_channels = 2 * s.out_channels;
  both->group_out = 2 * s.group_out;
  return true;
}

// Where filter `channel` of the op has its push response among the doubled ones; the pull response is group_out
// further.
STURDY_DEVICE int push_channel(const Sizes& s, int channel) { return channel + channel / s.group_out * s.group_out; }

template <typename A>
struct ChannelArguments {
  Sizes sizes, both;
  View4 grad_out, out, push;
  ChannelView inhibition, bias;
  bool inhibition_is_float, bias_is_float;
  A strength;
  A* map;       // p and q; then the gradients at them
  A* row_sums;  // of q's windows, then of the gradients'; null without a pool
  A* pull;      // gradient at u over its window's cells
  A* partials;
  int64_t chunks;
  bool wants_map;
};

// A point of one channel of the result, and where its responses are.
struct ChannelPoint {
  int64_t push, pull;  // planes' first elements in the maps

  STURDY_DEVICE ChannelPoint(const Sizes& s, const Sizes& both, int64_t image, int channel) {
    const int first = push_channel(s, channel);
    push = both.map_plane(image, first) * s.pixels();
    pull = both.map_plane(image, first + s.group_out) * s.pixels();
  }
};

// Adds up the rows of the window around a point.
template <typename A>
STURDY_DEVICE A sum_column(const Sizes& s, const A* row_sums, const MapPoint& point) {
  A sum = A(0);
  const int end = window_end(point.row, s.radius_h, s.out_h);
  for (int row = window_begin(point.row, s.radius_h); row < end; ++row) {
    sum += row_sums[int64_t{row} * s.out_w + point.column];
  }
  return sum;
}

// A warp takes one channel of one filter: its range, and both kinds of weights.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    channel_weights_kernel(Sizes s, View4 weight, FilterRange<A>* ranges, A* weights) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  if (at >= int64_t{s.out_channels} * s.group_in) {
    return;
  }
  const int filter = static_cast<int>(at / s.group_in);
  const int channel = static_cast<int>(at % s.group_in);
  const int taps = s.kernel_h * s.kernel_w;
  const T* first = static_cast<const T*>(weight.data) + filter * weight.stride[0] + channel * weight.stride[1];
  const auto value = [&](int tap) {
    return to_accumulate(first[tap / s.kernel_w * weight.stride[2] + tap % s.kernel_w * weight.stride[3]]);
  };
  FilterRange<A> range{value(0), value(0), A(0), A(0)};
  for (int tap = lane; tap < taps; tap += warp_size) {
    range.minimum = Min{}(value(tap), range.minimum);
    range.maximum = Max{}(value(tap), range.maximum);
  }
  range.minimum = warp_min(range.minimum);
  range.maximum = warp_max(range.maximum);
  A* push = weights + (int64_t{push_channel(s, filter)} * s.group_in + channel) * taps;
  A* pull = push + int64_t{s.group_out} * s.group_in * taps;
  for (int tap = lane; tap < taps; tap += warp_size) {
    range.minimum_count += value(tap) == range.minimum ? A(1) : A(0);
    range.maximum_count += value(tap) == range.maximum ? A(1) : A(0);
    push[tap] = value(tap);
    pull[tap] = range.offset() - value(tap);
  }
  range.minimum_count = warp_sum(range.minimum_count);
  range.maximum_count = warp_sum(range.maximum_count);
  if (lane == 0) {
    ranges[at] = range;
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) channel_output_kernel(ChannelArguments<A> a) {
  const Sizes& s = a.sizes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t first_plane = first / s.pixels();
  const int first_pixel = static_cast<int>(first % s.pixels());
#pragma unroll 1
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_plane, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    if (point.plane >= s.batch * s.out_channels) {
      return;
    }
    const int64_t image = point.plane / s.out_channels;
    const int channel = static_cast<int>(point.plane % s.out_channels);
    const ChannelPoint maps(s, a.both, image, channel);
    const A push = a.map[maps.push + point.pixel];
    A pull;
    if (a.row_sums != nullptr) {
      const A scale = A(1) / static_cast<A>(window_cells(s, point.row, point.column));
      pull = sum_column(s, a.row_sums + maps.pull, point) * scale;
    } else {
      pull = a.map[maps.pull + point.pixel];
    }
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

// A block takes one channel and some of its pixels: partial sums, and the gradients at p and, over cells, at u.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads, 2) channel_gradient_kernel(ChannelArguments<A> a) {
  STURDY_DYNAMIC_SHARED(A, scratch);  // one value a warp
  const Sizes& s = a.sizes;
  const int64_t chunk = blockIdx.x % a.chunks;
  const int channel = static_cast<int>(blockIdx.x / a.chunks);
  const A strength =
      a.inhibition.data == nullptr ? a.strength : load_channel<A, T>(a.inhibition, a.inhibition_is_float, channel);
  const int64_t first_image = chunk * kChunk / s.pixels();
  const int first_pixel = static_cast<int>(chunk * kChunk % s.pixels());
  A sums[2] = {};  // the gradient of m comes from those of the weights
#pragma unroll 1
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_image, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    const int64_t image = point.plane;
    if (image >= s.batch) {
      break;
    }
    // First of all: in float64 a division is a call, across which whatever is in registers has to be kept.
    const A scale = a.row_sums == nullptr ? A(1) : A(1) / static_cast<A>(window_cells(s, point.row, point.column));
    const A gradient = to_accumulate(
        static_cast<const T*>(a.grad_out.data)[image * a.grad_out.stride[0] + channel * a.grad_out.stride[1] +
                                               point.row * a.grad_out.stride[2] + point.column * a.grad_out.stride[3]]);
    const ChannelPoint maps(s, a.both, image, channel);
    const A push = a.map[maps.push + point.pixel];
    const A pull =
        a.row_sums == nullptr ? a.map[maps.pull + point.pixel] : sum_column(s, a.row_sums + maps.pull, point) * scale;
    sums[0] += gradient;
    sums[1] -= gradient * relu(pull);
    if (a.wants_map) {
      const A pull_gradient = pull > A(0) ? -strength * gradient * scale : A(0);
      a.map[maps.push + point.pixel] = push > A(0) ? gradient : A(0);
      (a.row_sums != nullptr ? a.pull : a.map)[maps.pull + point.pixel] = pull_gradient;
      if (a.row_sums != nullptr) {
        a.pull[maps.push + point.pixel] = A(0);  // its rows are added up with the others
      }
    }
  }
#pragma unroll
  for (A& sum : sums) {
    sum = block_sum(sum, scratch);
  }
  if (threadIdx.x == 0) {
    A* partials = a.partials + (channel * a.chunks + chunk) * kChannelSums;
    partials[0] = sums[0];
    partials[1] = sums[1];
    partials[2] = A(0);
  }
}

// Only where there is a pool: the gradient at q from row sums of that at u.
template <typename A>
__global__ void __launch_bounds__(kThreads) channel_adjoint_kernel(ChannelArguments<A> a) {
  const Sizes& s = a.sizes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t first_plane = first / s.pixels();
  const int first_pixel = static_cast<int>(first % s.pixels());
#pragma unroll 1
  for (int i = 0; i < kPointsPerThread; ++i) {
    const MapPoint point(s, first_plane, first_pixel, i * kThreads + static_cast<int>(threadIdx.x));
    if (point.plane >= s.batch * s.out_channels) {
      return;
    }
    const ChannelPoint maps(s, a.both, point.plane / s.out_channels, static_cast<int>(point.plane % s.out_channels));
    a.map[maps.pull + point.pixel] = sum_column(s, a.row_sums + maps.pull, point);
  }
}

// A warp takes one channel of one filter: with P and Q the gradients of the weights of p and q, each weight gets
// P - Q, and the extremes share the sum of Q, which is the gradient of m.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    channel_weight_sums_kernel(Sizes s, int64_t pieces, View4 weight, View4 grad_weight, const FilterRange<A>* ranges,
                               const A* partials) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  if (at >= int64_t{s.out_channels} * s.group_in) {
    return;
  }
  const int filter = static_cast<int>(at / s.group_in);
  const int channel = static_cast<int>(at % s.group_in);
  const int taps = s.kernel_h * s.kernel_w;
  const int64_t size = 2 * int64_t{s.out_channels} * s.group_in * taps;  // of a piece
  const int64_t push = (int64_t{push_channel(s, filter)} * s.group_in + channel) * taps;
  const int64_t pull = push + int64_t{s.group_out} * s.group_in * taps;
  const auto sum_pieces = [&](int64_t from) {
    A sum = A(0);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      sum += partials[piece * size + from];
    }
    return sum;
  };
  A offset_gradient = A(0);
  for (int tap = lane; tap < taps; tap += warp_size) {
    offset_gradient += sum_pieces(pull + tap);
  }
  offset_gradient = warp_sum(offset_gradient);
  const FilterRange<A> range = ranges[at];
  for (int tap = lane; tap < taps; tap += warp_size) {
    const int row = tap / s.kernel_w;
    const int column = tap % s.kernel_w;
    const A value =
        to_accumulate(static_cast<const T*>(weight.data)[filter * weight.stride[0] + channel * weight.stride[1] +
                                                         row * weight.stride[2] + column * weight.stride[3]]);
    A sum = sum_pieces(push + tap) - sum_pieces(pull + tap);
    if (value == range.minimum) {
      sum += offset_gradient / range.minimum_count;
    }
    if (value == range.maximum) {
      sum += offset_gradient / range.maximum_count;
    }
    static_cast<T*>(grad_weight.data)[filter * grad_weight.stride[0] + channel * grad_weight.stride[1] +
                                      row * grad_weight.stride[2] + column * grad_weight.stride[3]] =
        from_accumulate<T>(sum);
  }
}

// ------------------------------------------------------------------------------------------------------- the launchers

template <typename A>
struct ChannelWorkspace {
  FilterRange<A>* ranges;
  A* weights;
  A* map;
  A* row_sums;
  A* pull = nullptr;
  A* partials = nullptr;
  A* offset_gradient = nullptr;
  A* weight_partials = nullptr;

  ChannelWorkspace(Workspace& workspace, const Sizes& s, const Sizes& both, bool backward)
      : ranges(workspace.take<FilterRange<A>>(int64_t{s.out_channels} * s.group_in)),
        weights(workspace.take<A>(weight_count(both))),
        map(workspace.take<A>(both.map_planes() * s.pixels())),
        row_sums(workspace.take<A>(s.pooled() ? both.map_planes() * s.pixels() : 0)) {
    if (backward) {
      pull = workspace.take<A>(s.pooled() ? both.map_planes() * s.pixels() : 0);
      partials = workspace.take<A>(s.out_channels * chunks(s) * kChannelSums);
      offset_gradient = workspace.take<A>(s.out_channels);
      weight_partials = workspace.take<A>(weight_gradient_pieces(both) * weight_count(both));
    }
  }

  static int64_t weight_count(const Sizes& s) { return int64_t{s.out_channels} * s.group_in * s.kernel_h * s.kernel_w; }
  static int64_t chunks(const Sizes& s) { return ceil_div(s.batch * s.pixels(), int64_t{kChunk}); }
};

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

View4 doubled_weights(const Sizes& s, void* weights) {
  const int64_t taps = int64_t{s.kernel_h} * s.kernel_w;
  return View4{weights, {s.group_in * taps, taps, s.kernel_w, 1}};
}

// Makes the weights, p and q, and the row sums of q's windows.
template <typename T, typename A>
Status both_responses(const Sizes& s, const Sizes& both, const View4& input, const View4& weight,
                      const ChannelWorkspace<A>& scratch, void* stream) {
  Status status = Status::ok;
  launch_next(&status, channel_weights_kernel<T, A>, ceil_div(int64_t{s.out_channels} * s.group_in, int64_t{kWarps}), 0,
              stream, s, weight, scratch.ranges, scratch.weights);
  if (status == Status::ok && s.batch * s.pixels() > 0) {
    status = convolve<T, A>(both, input, doubled_weights(s, scratch.weights), false, scratch.map, stream);
  }
  if (status == Status::ok && s.batch * s.pixels() > 0 && s.pooled()) {
    status = sum_rows<T>(both, View4{}, static_cast<const A*>(scratch.map), false, scratch.row_sums, stream);
  }
  return status;
}

template <typename A, typename Params>
ChannelArguments<A> channel_arguments(const Params& params, const Sizes& s, const Sizes& both,
                                      const ChannelWorkspace<A>& scratch) {
  ChannelArguments<A> a{};
  a.sizes = s;
  a.both = both;
  a.inhibition = params.inhibition;
  a.inhibition_is_float = params.inhibition.dtype == DType::f32;
  a.strength = static_cast<A>(params.geometry.strength);
  a.map = scratch.map;
  a.row_sums = s.pooled() ? scratch.row_sums : nullptr;
  return a;
}

template <typename T>
Status run_forward(const PushPullForwardParams& params, const Sizes& s, const Sizes& both, void* workspace,
                   void* stream) {
  using A = Accumulate<T>;
  Workspace pieces(workspace);
  const ChannelWorkspace<A> scratch(pieces, s, both, false);
  Status status = both_responses<T>(s, both, params.input, params.weight, scratch, stream);
  ChannelArguments<A> a = channel_arguments(params, s, both, scratch);
  a.out = params.out;
  a.push = params.push;
  a.bias = params.bias;
  a.bias_is_float = params.bias.dtype == DType::f32;
  launch_next(&status, channel_output_kernel<T, A>, ceil_div(s.batch * s.out_channels * s.pixels(), int64_t{kChunk}), 0,
              stream, a);
  return status;
}

template <typename T>
Status run_backward(const PushPullBackwardParams& params, const Sizes& s, const Sizes& both, void* workspace,
                    void* stream) {
  using A = Accumulate<T>;
  const bool wants_input = params.grad_input.data != nullptr;
  const bool wants_weight = params.grad_weight.data != nullptr;
  Workspace pieces(workspace);
  const ChannelWorkspace<A> scratch(pieces, s, both, true);
  // q needs the convolution anyway, and p comes with it, so a p that forward kept is not read.
  Status status = both_responses<T>(s, both, params.input, params.weight, scratch, stream);
  ChannelArguments<A> a = channel_arguments(params, s, both, scratch);
  a.grad_out = params.grad_out;
  a.pull = scratch.pull;
  a.partials = scratch.partials;
  a.chunks = ChannelWorkspace<A>::chunks(s);
  a.wants_map = wants_input || wants_weight;
  launch_next(&status, channel_gradient_kernel<T, A>, s.out_channels * a.chunks, warp_size * sizeof(A), stream, a);
  if (status == Status::ok) {
    status = sum_channels<T>(s, params.grad_inhibition, params.grad_bias, scratch.partials, a.chunks,
                             scratch.offset_gradient, stream);
  }
  if (!a.wants_map) {
    return status;
  }
  const int64_t points = s.batch * s.out_channels * s.pixels();
  if (status == Status::ok && s.pooled() && points > 0) {
    status = sum_rows<T>(both, View4{}, static_cast<const A*>(scratch.pull), false, scratch.row_sums, stream);
    launch_next(&status, channel_adjoint_kernel<A>, ceil_div(points, int64_t{kChunk}), 0, stream, a);
  }
  const A* map = scratch.map;
  if (wants_weight) {
    if (status == Status::ok) {
      status = weight_gradient<T>(both, params.input, map, scratch.weight_partials, stream);
    }
    launch_next(&status, channel_weight_sums_kernel<T, A>,
                ceil_div(int64_t{s.out_channels} * s.group_in, int64_t{kWarps}), 0, stream, s,
                weight_gradient_pieces(both), params.weight, params.grad_weight,
                static_cast<const FilterRange<A>*>(scratch.ranges), static_cast<const A*>(scratch.weight_partials));
  }
  if (wants_input && status == Status::ok) {
    status = input_gradient<T, A>(both, doubled_weights(s, scratch.weights), params.grad_input, map, false, stream);
  }
  return status;
}

size_t workspace_bytes(const PushPullGeometry& geometry, const Sizes& s, bool backward) {
  Sizes both;
  if (!double_filters(s, &both)) {
    return 0;  // the launcher refuses such a size
  }
  Workspace pieces(nullptr);
  if (geometry.dtype == DType::f64) {
    ChannelWorkspace<double>(pieces, s, both, backward);
  } else {
    ChannelWorkspace<float>(pieces, s, both, backward);
  }
  return pieces.bytes();
}

}  // namespace

size_t channel_workspace(const PushPullGeometry& geometry, const Sizes& s) {
  return workspace_bytes(geometry, s, false);
}

size_t channel_backward_workspace(const PushPullGeometry& geometry, const Sizes& s) {
  return workspace_bytes(geometry, s, true);
}

Status channel_forward(const PushPullForwardParams& params, const Sizes& s, void* workspace, void* stream) {
  Sizes both;
  if (!double_filters(s, &both)) {
    return Status::unsupported_size;
  }
  switch (params.geometry.dtype) {
    case DType::f32:
      return run_forward<float>(params, s, both, workspace, stream);
    case DType::f64:
      return run_forward<double>(params, s, both, workspace, stream);
    case DType::f16:
      return run_forward<__half>(params, s, both, workspace, stream);
    case DType::bf16:
      return run_forward<__nv_bfloat16>(params, s, both, workspace, stream);
  }
  return Status::unsupported_dtype;
}

Status channel_backward(const PushPullBackwardParams& params, const Sizes& s, void* workspace, void* stream) {
  Sizes both;
  if (!double_filters(s, &both)) {
    return Status::unsupported_size;
  }
  switch (params.geometry.dtype) {
    case DType::f32:
      return run_backward<float>(params, s, both, workspace, stream);
    case DType::f64:
      return run_backward<double>(params, s, both, workspace, stream);
    case DType::f16:
      return run_backward<__half>(params, s, both, workspace, stream);
    case DType::bf16:
      return run_backward<__nv_bfloat16>(params, s, both, workspace, stream);
  }
  return Status::unsupported_dtype;
}

}  // namespace sturdy::cuda::push_pull
