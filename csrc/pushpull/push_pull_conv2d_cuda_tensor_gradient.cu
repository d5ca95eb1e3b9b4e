// PushPull convolution on tensor cores, backward (the mathematics: push_pull_conv2d_cuda_backward.cu).
//
//   mean_box_kernel           the pooled box, one map per group, from the input
//   tensor_gradient_kernel    gp of every filter and the sums over pixels, one pass over p and the gradient
//   tensor_weight_kernel      gp times the input under the taps, in pieces whose sums are added up in order
//   push_pull_tensor_kernel   gp times the weights turned round, where the gradient of the input is wanted
//
// gp is rounded to the type of the tensors, as every gradient that another layer would hand on is; all sums are in
// float32. In float16 it overflows where |gradient| times 1 + |inhibition| exceeds 65504, and loses bits below 6e-5:
// train in float16 with loss scaling, as usual.
//
// Dynamic shared memory: mean_box_kernel and push_pull_tensor_kernel as their plan says, at most 96 KiB;
// tensor_weight_kernel as plan_tensor_weight says, at most 96 KiB (51 KiB for a 7 x 7 stem of three channels in 16
// bits); tensor_gradient_kernel 8.1 KiB. Registers a thread:
// ptxas-budget: mean_box_kernel 80
// ptxas-budget: tensor_gradient_kernel 128
// ptxas-budget: tensor_weight_kernel 128
//
// None of this has run on a GPU: it is compiled for every architecture and run on the executor under tests/simt.
#include <algorithm>

#include "pushpull/push_pull_conv2d_cuda_tensor.cuh"
#include "pushpull/push_pull_conv2d_cuda_tensor_launch.cuh"
#include "pushpull/push_pull_conv2d_cuda_tensor_weight.cuh"

namespace sturdy::cuda::push_pull {

namespace {

// -------------------------------------------------------------------------------------------------------- the mean box

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) mean_box_kernel(Sizes s, TensorPlan plan, View4 input, float* maps) {
  STURDY_DYNAMIC_SHARED(uint32_t, shared);
  float* area = reinterpret_cast<float*>(shared);
  float* mean_box = area + plan.area_words;
  uint32_t* stage = reinterpret_cast<uint32_t*>(mean_box + kTilePixels);

  unsigned index = blockIdx.x;
  TilePlace place;
  place.group = static_cast<int>(index % s.groups);
  index /= s.groups;
  place.first_column = plan.columns.origin(static_cast<int>(index % plan.columns.count));
  index /= plan.columns.count;
  place.first_row = plan.rows.origin(static_cast<int>(index % plan.rows.count));
  place.image = index / plan.rows.count;

  const Source<T> source(s, input, place.image, place.group);
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    stage_source<T, 4>(plan.source, source, place.first_row * s.stride_h - s.pad_top,
                       place.first_column * s.stride_w - s.pad_left, chunk * plan.chunk_planes, plan.chunk_planes,
                       stage);
    cp_async_wait_all();
    __syncthreads();
    add_channels<T>(plan.source, stage, plan.chunk_planes, chunk == 0, area);
    __syncthreads();
  }
  make_mean_box(s, plan, place, area, mean_box);
  float* map = maps + (place.image * s.groups + place.group) * s.pixels();
  for (int pixel = static_cast<int>(threadIdx.x); pixel < kTilePixels; pixel += kThreads) {
    const int row = pixel / plan.width;
    const int column = pixel % plan.width;
    const int inner_row = row - plan.rows.halo;
    const int inner_column = column - plan.columns.halo;
    if (place.inside(s, plan, row, column) && inner_row >= 0 && inner_row < plan.rows.inner && inner_column >= 0 &&
        inner_column < plan.columns.inner) {
      map[int64_t{place.first_row + row} * s.out_w + place.first_column + column] = mean_box[pixel];
    }
  }
}

// ------------------------------------------------------------------------------------------------ gp and channel sums

constexpr int kGradientPixels = 4 * kThreads;  // of a tile: each thread has four neighbours of a row

struct GradientShared {
  alignas(16) float push[kGradientPixels];
  alignas(16) float pull[kGradientPixels];  // gradient at the pull response, over its window's cells
  float sums[kWarps][kChannelSums];
};
static_assert(sizeof(GradientShared) <= kSharedBudget, "no need to opt in");

template <typename T>
struct TensorGradientArguments {
  Sizes sizes;
  TileAxis rows, columns;  // of maps as wide as gp's rows
  int width;               // pixels from row to row of the tile
  View4 grad_out, push;
  ChannelView inhibition;
  bool inhibition_is_float;
  bool push_pairs, grad_pairs;  // neighbours of a row can be loaded two at a time
  bool with_ones;               // the sum over filters of m * gq is wanted, in place of the box
  float strength;
  const FilterRange<float>* ranges;
  const float* mean_box;
  GradientMap<T> gradient;  // data null: only the sums are wanted
  float* partials;          // (channel, tile, kChannelSums)
  int64_t tiles;
};

// Four neighbours of a row, zeros outside the map.
template <typename T>
STURDY_DEVICE void load_four(const Sizes& s, const T* row, int64_t stride, bool pairs, bool row_inside, int column,
                             float (&values)[4]) {
#pragma unroll
  for (int v = 0; v < 4; v += 2) {
    const bool first = row_inside && column + v >= 0 && column + v < s.out_w;
    const bool second = row_inside && column + v + 1 >= 0 && column + v + 1 < s.out_w;
    values[v] = 0.0f;
    values[v + 1] = 0.0f;
    if (pairs) {
      if (first) {  // rows have an even number of pixels, so the other is there as well
        const Packed<T, 2> two = load_packed<2>(row + column + v);
        values[v] = to_accumulate(two[0]);
        values[v + 1] = to_accumulate(two[1]);
      }
      continue;
    }
    if (first) {
      values[v] = to_accumulate(row[(column + v) * stride]);
    }
    if (second) {
      values[v + 1] = to_accumulate(row[(column + v + 1) * stride]);
    }
  }
}

// Sums over the windows around four neighbours of a tile in shared memory.
template <int Radius>
STURDY_DEVICE void window_sums(const Sizes& s, const float* tile, int width, int row, int column, float (&sums)[4]) {
  const int begin = max(row - s.radius_h, 0);
  const int end = min(row + s.radius_h + 1, kGradientPixels / width);
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    sums[v] = 0.0f;
  }
#pragma unroll 1
  for (int at = begin; at < end; ++at) {
    const float* line = tile + at * width + column;
    const Packed<float, 4> own = load_packed<4>(line);
    float near[4 + 2 * Radius] = {};
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      near[Radius + v] = own[v];
    }
#pragma unroll
    for (int distance = 1; distance <= Radius; ++distance) {
      if (distance <= s.radius_w) {
        near[Radius - distance] = column > 0 ? line[-distance] : 0.0f;
        near[Radius + 3 + distance] = column + 4 < width ? line[3 + distance] : 0.0f;
      }
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      sums[v] += near[Radius + v];
#pragma unroll
      for (int distance = 1; distance <= Radius; ++distance) {
        if (distance <= s.radius_w) {
          sums[v] += near[Radius + v - distance] + near[Radius + v + distance];
        }
      }
    }
  }
}

// A block takes a tile and all filters of a group. What a window needs lies within the tile: p two windows and the
// gradient one window beyond the pixels that are stored.
template <typename T, int Radius>
__global__ void __launch_bounds__(kThreads, 2) tensor_gradient_kernel(TensorGradientArguments<T> a) {
  STURDY_DYNAMIC_SHARED(GradientShared, shared_memory);
  GradientShared& shared = *shared_memory;
  const Sizes& s = a.sizes;
  unsigned index = blockIdx.x;
  const int group = static_cast<int>(index % s.groups);
  const int64_t tile = index / s.groups;
  index /= s.groups;
  const int first_column = a.columns.origin(static_cast<int>(index % a.columns.count));
  index /= a.columns.count;
  const int first_row = a.rows.origin(static_cast<int>(index % a.rows.count));
  const int64_t image = index / a.rows.count;

  const int thread = static_cast<int>(threadIdx.x);
  const int quads = a.width / 4;
  const int row = thread / quads;
  const int column = thread % quads * 4;
  const int map_row = first_row + row;
  const int map_column = first_column + column;
  const int inner_row = row - a.rows.halo;
  const bool row_inside = row < a.rows.tile && map_row >= 0 && map_row < s.out_h;
  const bool row_stored = row_inside && inner_row >= 0 && inner_row < a.rows.inner;
  const auto stored_at = [&](int at) {
    return row_stored && at >= a.columns.halo && at < a.columns.halo + a.columns.inner;
  };

  float box[4];    // pooled
  float scale[4];  // one over the window's cells; 0 outside the map
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const bool inside = row_inside && map_column + v >= 0 && map_column + v < s.out_w;
    box[v] = 0.0f;
    scale[v] = 0.0f;
    if (inside) {
      box[v] = a.mean_box[(image * s.groups + group) * s.pixels() + int64_t{map_row} * s.out_w + map_column + v];
      scale[v] = 1.0f / static_cast<float>(window_cells(s, map_row, map_column + v));
    }
  }

  float pushes[4];
  float gradients[4];
  const auto load = [&](int channel, float (&push)[4], float (&gradient)[4]) {
    const int64_t push_at = image * a.push.stride[0] + channel * a.push.stride[1] + map_row * a.push.stride[2];
    const int64_t grad_at =
        image * a.grad_out.stride[0] + channel * a.grad_out.stride[1] + map_row * a.grad_out.stride[2];
    load_four(s, static_cast<const T*>(a.push.data) + push_at, a.push.stride[3], a.push_pairs, row_inside, map_column,
              push);
    load_four(s, static_cast<const T*>(a.grad_out.data) + grad_at, a.grad_out.stride[3], a.grad_pairs, row_inside,
              map_column, gradient);
  };
  // Stores four values as they come or, where the halo is no multiple of four, two pixels later.
  const int shift = a.columns.halo % 4;
  const auto store = [&](int64_t plane, const float (&values)[4]) {
    Packed<T, 4> packed = round_four<T>(values);
    if (shift != 0) {
      packed = shift_by_two(packed);
    }
    if (stored_at(column - shift) && map_column - shift < a.gradient.pitch) {
      store_packed(a.gradient.row(s, plane, map_row) + map_column - shift, packed);
    }
  };

  float ones[4] = {};
  load(group * s.group_out, pushes, gradients);
#pragma unroll 1
  for (int filter = 0; filter < s.group_out; ++filter) {
    const int channel = group * s.group_out + filter;
    float push[4];
    float gradient[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      push[v] = pushes[v];
      gradient[v] = gradients[v];
    }
    if (filter + 1 < s.group_out) {
      load(channel + 1, pushes, gradients);  // in flight while this filter is dealt with
    }
    const float offset = a.ranges[channel].offset();
    const float strength = a.inhibition.data == nullptr
                               ? a.strength
                               : load_channel<float, T>(a.inhibition, a.inhibition_is_float, channel);
    float means[4];
    if constexpr (Radius > 0) {
      store_packed(&shared.push[thread * 4], Packed<float, 4>{{push[0], push[1], push[2], push[3]}});
      __syncthreads();
      window_sums<Radius>(s, shared.push, a.width, row, column, means);
    }
    float sums[kChannelSums] = {};
    float pull_gradient[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const float mean = Radius > 0 ? means[v] * scale[v] : push[v];
      const float pull = offset * box[v] - mean;
      const bool excited = scale[v] > 0.0f && pull > 0.0f;
      pull_gradient[v] = excited ? -strength * gradient[v] : 0.0f;
      if (stored_at(column + v) && scale[v] > 0.0f) {
        sums[0] += gradient[v];
        sums[1] -= gradient[v] * relu(pull);
        sums[2] += excited ? pull_gradient[v] * box[v] : 0.0f;
      }
    }
#pragma unroll
    for (float& sum : sums) {
      sum = warp_sum(sum);
    }
    if (thread % warp_size == 0) {
#pragma unroll
      for (int i = 0; i < kChannelSums; ++i) {
        shared.sums[thread / warp_size][i] = sums[i];
      }
    }
    if constexpr (Radius > 0) {
      store_packed(&shared.pull[thread * 4],
                   Packed<float, 4>{{pull_gradient[0] * scale[0], pull_gradient[1] * scale[1],
                                     pull_gradient[2] * scale[2], pull_gradient[3] * scale[3]}});
    }
    __syncthreads();
    if (thread < kChannelSums) {
      float sum = 0.0f;
      for (int warp = 0; warp < kWarps; ++warp) {
        sum += shared.sums[warp][thread];
      }
      a.partials[(channel * a.tiles + tile) * kChannelSums + thread] = sum;
    }
    if (a.gradient.data != nullptr) {
      if constexpr (Radius > 0) {
        window_sums<Radius>(s, shared.pull, a.width, row, column, pull_gradient);
      }
      float result[4];
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float at_push = (push[v] > 0.0f ? gradient[v] : 0.0f) - pull_gradient[v];
        result[v] = scale[v] > 0.0f ? at_push : 0.0f;
        ones[v] += scale[v] > 0.0f ? offset * pull_gradient[v] : 0.0f;
      }
      store(s.map_plane(image, channel), result);
    }
    if constexpr (Radius == 0) {
      __syncthreads();  // the sums are written again
    }
  }
  if (a.with_ones) {
    store(s.box_plane(image, group), ones);
  }
}

// ------------------------------------------------------------------------------------------------------- the launcher

bool rows_in_pairs(const Sizes& s, const View4& view, size_t element) {
  return view.stride[3] == 1 && s.out_w % 2 == 0 && view.stride[0] % 2 == 0 && view.stride[1] % 2 == 0 &&
         view.stride[2] % 2 == 0 && reinterpret_cast<uintptr_t>(view.data) % (2 * element) == 0;
}

template <typename... Parameters, typename... Arguments>
void launch_next(Status* status, void (*kernel)(Parameters...), int64_t blocks, size_t shared, void* stream,
                 const Arguments&... arguments) {
  if (*status != Status::ok) {
    return;
  }
  if (blocks > max_grid_x) {
    *status = Status::unsupported_size;
    return;
  }
  *status = launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, stream, arguments...);
}

template <typename T>
void launch_gradient(Status* status, const TensorGradientArguments<T>& a, void* stream) {
  const Sizes& s = a.sizes;
  const int64_t blocks = a.tiles * s.groups;
  const size_t bytes = sizeof(GradientShared);
  switch (std::max(s.radius_h, s.radius_w)) {
    case 0:
      return launch_next(status, tensor_gradient_kernel<T, 0>, blocks, bytes, stream, a);
    case 1:
      return launch_next(status, tensor_gradient_kernel<T, 1>, blocks, bytes, stream, a);
    case 2:
      return launch_next(status, tensor_gradient_kernel<T, 2>, blocks, bytes, stream, a);
    case 3:
      return launch_next(status, tensor_gradient_kernel<T, 3>, blocks, bytes, stream, a);
    default:
      *status = Status::internal_error;
  }
}

int gradient_pitch(const Sizes& s) { return ceil_div(s.out_w, 8) * 8; }

int gradient_width(const Sizes& s) { return s.out_w > 16 ? 32 : s.out_w > 8 ? 16 : 8; }

TileAxis gradient_rows(const Sizes& s) {
  return plan_axis(s.out_h, std::min(s.out_h, kGradientPixels / gradient_width(s)), 2 * s.radius_h);
}

TileAxis gradient_columns(const Sizes& s) {
  return plan_axis(gradient_pitch(s), std::min(gradient_pitch(s), gradient_width(s)), 2 * s.radius_w);
}

int64_t gradient_tiles(const Sizes& s) { return s.batch * gradient_rows(s).count * gradient_columns(s).count; }

// The convolution that gives the gradient of the input: of gp and the sum of m * gq, with the weights turned round.
// Exists for stride 1 and one group.
bool turn_round(const Sizes& s, Sizes* turned) {
  if (s.stride_h != 1 || s.stride_w != 1 || s.groups != 1) {
    return false;
  }
  Sizes t = s;
  t.in_channels = s.out_channels + 1;
  t.out_channels = s.in_channels;
  t.group_in = t.in_channels;
  t.group_out = t.out_channels;
  t.in_h = s.out_h;
  t.in_w = s.out_w;
  t.out_h = s.in_h;
  t.out_w = s.in_w;
  t.pad_top = (s.kernel_h - 1) * s.dilation_h - s.pad_top;
  t.pad_left = (s.kernel_w - 1) * s.dilation_w - s.pad_left;
  t.radius_h = 0;
  t.radius_w = 0;
  *turned = t;
  return true;
}

// What the tensor-core backward needs of the workspace.
template <typename T>
struct TensorBackwardWorkspace {
  FilterRange<float>* ranges;
  float* mean_box;
  float* partials;
  float* offset_gradient;
  float* weight_partials;
  T* push;  // p, where forward did not keep it
  T* gradient;
  uint32_t* packed;

  TensorBackwardWorkspace(Workspace& workspace, const Sizes& s, const TensorPlan& plan, const TensorWeightPlan& weight)
      : ranges(workspace.take<FilterRange<float>>(s.out_channels)),
        mean_box(workspace.take<float>(s.batch * s.groups * s.pixels())),
        partials(workspace.take<float>(s.out_channels * gradient_tiles(s) * kChannelSums)),
        offset_gradient(workspace.take<float>(s.out_channels)),
        weight_partials(workspace.take<float>(weight.pieces * s.out_channels * s.group_in * s.kernel_h * s.kernel_w)),
        push(workspace.take<T>(s.batch * s.out_channels * s.pixels())),
        gradient(workspace.take<T>(s.map_planes() * s.out_h * gradient_pitch(s))) {
    int64_t words = packed_words(s, plan);
    Sizes turned;
    TensorPlan turned_plan;
    if (turn_round(s, &turned) && plan_tensor(turned, Words<T>::wide, 0, 0, &turned_plan)) {
      words = std::max(words, packed_words(turned, turned_plan));
    }
    packed = workspace.take<uint32_t>(words);
  }
};

template <typename T>
bool plan_backward(const Sizes& s, TensorPlan* plan, TensorWeightPlan* weight) {
  return plan_tensor(s, Words<T>::wide, s.radius_h, s.radius_w, plan) && plan_tensor_weight<T>(s, weight) &&
         gradient_rows(s).inner > 0 && gradient_columns(s).inner > 0;
}

}  // namespace

template <typename T>
size_t tensor_backward_workspace(const Sizes& s) {
  TensorPlan plan;
  TensorWeightPlan weight;
  if (!plan_backward<T>(s, &plan, &weight)) {
    return 0;
  }
  Workspace pieces(nullptr);
  TensorBackwardWorkspace<T>(pieces, s, plan, weight);
  return pieces.bytes();
}

template <typename T>
bool takes_tensor_backward(const Sizes& s, bool wants_input) {
  TensorPlan plan;
  TensorWeightPlan weight;
  Sizes turned;
  TensorPlan turned_plan;
  return plan_backward<T>(s, &plan, &weight) &&
         (!wants_input || (turn_round(s, &turned) && plan_tensor(turned, Words<T>::wide, 0, 0, &turned_plan)));
}

template <typename T>
Status tensor_backward(const PushPullBackwardParams& params, const Sizes& s, void* workspace, void* stream) {
  const bool wants_input = params.grad_input.data != nullptr;
  const bool wants_weight = params.grad_weight.data != nullptr;
  TensorPlan plan;
  TensorWeightPlan weight_plan;
  if (!plan_backward<T>(s, &plan, &weight_plan)) {
    return Status::internal_error;
  }
  Workspace pieces(workspace);
  const TensorBackwardWorkspace<T> scratch(pieces, s, plan, weight_plan);
  adapt_source<T>(s, params.input, &plan.source);

  Status status = filter_ranges<T>(s, params.weight, scratch.ranges, stream);
  View4 push = params.push;
  if (push.data == nullptr && status == Status::ok) {
    PushPullForwardParams again{};
    again.geometry = params.geometry;
    again.input = params.input;
    again.weight = params.weight;
    push = View4{scratch.push, {s.out_channels * s.pixels(), s.pixels(), s.out_w, 1}};
    again.push = push;
    again.out = push;
    again.out.data = nullptr;
    status = tensor_forward<T>(again, s, plan, PackedSource{params.weight, s.group_out * params.weight.stride[0], -1},
                               scratch.ranges, scratch.packed, stream);
  }
  TensorPlan box_plan = plan;
  const size_t box_bytes = size_t{4} * (plan.area_words + kTilePixels + plan.source_words());
  launch_next(&status, mean_box_kernel<T>, s.batch * plan.rows.count * plan.columns.count * s.groups, box_bytes, stream,
              s, box_plan, params.input, scratch.mean_box);

  TensorGradientArguments<T> a{};
  a.sizes = s;
  a.rows = gradient_rows(s);
  a.columns = gradient_columns(s);
  a.width = gradient_width(s);
  a.grad_out = params.grad_out;
  a.push = push;
  a.inhibition = params.inhibition;
  a.inhibition_is_float = params.inhibition.dtype == DType::f32;
  a.push_pairs = rows_in_pairs(s, push, sizeof(T));
  a.grad_pairs = rows_in_pairs(s, params.grad_out, sizeof(T));
  a.with_ones = wants_input;
  a.strength = static_cast<float>(params.geometry.strength);
  a.ranges = scratch.ranges;
  a.mean_box = scratch.mean_box;
  a.gradient = GradientMap<T>{wants_input || wants_weight ? scratch.gradient : nullptr, gradient_pitch(s)};
  a.partials = scratch.partials;
  a.tiles = gradient_tiles(s);
  launch_gradient(&status, a, stream);
  if (status == Status::ok) {
    status = sum_channels<T>(s, params.grad_inhibition, params.grad_bias, scratch.partials, a.tiles,
                             scratch.offset_gradient, stream);
  }
  if (wants_weight) {
    SourceLayout& layout = weight_plan.source;
    layout.async = Words<T>::wide;
    layout.channels_inner = params.input.stride[1] == 1 && layout.planes >= 8;
    const int64_t blocks = weight_plan.pieces * weight_plan.filter_blocks * weight_plan.tap_blocks * s.groups;
    launch_next(&status, tensor_weight_kernel<T>, blocks, weight_plan.shared_bytes, stream, s, weight_plan,
                params.input, a.gradient, scratch.weight_partials);
    if (status == Status::ok) {
      status = sum_weight_pieces<T>(s, weight_plan.pieces, params.weight, params.grad_weight, scratch.ranges,
                                    scratch.offset_gradient, scratch.weight_partials, stream);
    }
  }
  if (wants_input && status == Status::ok) {
    Sizes turned;
    TensorPlan turned_plan;
    if (!turn_round(s, &turned) || !plan_tensor(turned, Words<T>::wide, 0, 0, &turned_plan)) {
      return Status::internal_error;
    }
    PushPullForwardParams gradient{};
    gradient.geometry = params.geometry;
    const int64_t plane = int64_t{s.out_h} * a.gradient.pitch;
    gradient.input = View4{scratch.gradient, {(s.out_channels + 1) * plane, plane, a.gradient.pitch, 1}};
    const View4& w = params.weight;
    gradient.weight = View4{static_cast<T*>(w.data) + (s.kernel_h - 1) * w.stride[2] + (s.kernel_w - 1) * w.stride[3],
                            {w.stride[1], w.stride[0], -w.stride[2], -w.stride[3]}};
    gradient.push = params.grad_input;
    gradient.out = params.grad_input;
    gradient.out.data = nullptr;
    status = tensor_forward<T>(gradient, turned, turned_plan, PackedSource{gradient.weight, 0, s.out_channels},
                               scratch.ranges, scratch.packed, stream);
  }
  return status;
}

#define STURDY_PUSH_PULL_TENSOR(T)                            \
  template size_t tensor_backward_workspace<T>(const Sizes&); \
  template bool takes_tensor_backward<T>(const Sizes&, bool); \
  template Status tensor_backward<T>(const PushPullBackwardParams&, const Sizes&, void*, void*)
STURDY_PUSH_PULL_TENSOR(float);
STURDY_PUSH_PULL_TENSOR(__half);
STURDY_PUSH_PULL_TENSOR(__nv_bfloat16);
#undef STURDY_PUSH_PULL_TENSOR

}  // namespace sturdy::cuda::push_pull
