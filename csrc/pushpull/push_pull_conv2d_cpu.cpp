// PushPull convolution on the CPU: lays out one call and hands its parts to the kernels of the machine's instruction
// set. How work is cut up depends on sizes alone, so results do not depend on the number of threads.
#include <algorithm>
#include <new>

#include "common/cpu_features.h"
#include "common/scratch.h"
#include "pushpull/push_pull_conv2d.h"
#include "pushpull/push_pull_conv2d_cpu_channels.h"
#include "pushpull/push_pull_conv2d_cpu_grad_input.h"
#include "pushpull/push_pull_conv2d_cpu_plan.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_backward_plan.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTasksWanted = 32;                   // enough for any machine's threads to share a small batch
constexpr int64_t kBandBytes = int64_t{2} << 20;       // of packed input: about what a second-level cache holds
constexpr int64_t kPartialBytes = int64_t{32} << 20;   // of partial filter gradients
constexpr int64_t kSummedChannels = 4;                 // of input: the sums of a panel are fewer than its planes then
constexpr int64_t kGradientBytes = int64_t{32} << 20;  // of output gradients held for the gradient of input

const PushPullKernels& kernels(DType dtype) { return STURDY_ON_CPU_ISA(push_pull_kernels(dtype)); }

// Where channel `channel` stands in the arrays of whole panels.
int64_t panel_position(const PushPullPlan& plan, int64_t channel) {
  const int64_t group = channel / plan.out_group;
  return group * plan.panels_per_group * plan.panel + channel % plan.out_group;
}

// Everything but the memory, see `place`.
PushPullPlan make_plan(const PushPullGeometry& g, int64_t lanes) {
  PushPullPlan plan{};
  plan.geometry = g;
  plan.in_group = g.in_channels / g.groups;
  plan.out_group = g.out_channels / g.groups;
  plan.taps = plan.in_group * g.kernel_h * g.kernel_w;
  plan.planes = g.channel_range ? plan.in_group : 1;
  plan.plane_channels = plan.in_group / plan.planes;

  plan.lanes = lanes;
  plan.vectors = plan.out_group > lanes ? 2 : 1;
  plan.panel = plan.lanes * plan.vectors;
  plan.panels_per_group = divide_up(plan.out_group, plan.panel);
  plan.panels = g.groups * plan.panels_per_group;

  int64_t last_offset = 0;  // the farthest a tap reaches within a phase
  for (int64_t phase = 0; phase < g.stride_w; phase++) {
    bool used = false;
    for (int64_t k = 0; k < g.kernel_w; k++) {
      if (k * g.dilation_w % g.stride_w == phase) {
        used = true;
        last_offset = std::max(last_offset, k * g.dilation_w / g.stride_w);
      }
    }
    plan.phases += used;
  }
  plan.phase_pitch = round_up(g.out_w + last_offset, lanes);
  plan.channel_pitch = plan.phases * plan.phase_pitch;
  plan.in_row_pitch = plan.in_group * plan.channel_pitch;

  plan.half_h = std::min(g.pool_h / 2, std::max<int64_t>(g.out_h - 1, 0));
  plan.half_w = std::min(g.pool_w / 2, std::max<int64_t>(g.out_w - 1, 0));
  return plan;
}

// Cuts the output into tasks: whole images where there are enough, else also by panels, which costs packing the input
// again, and by bands of rows, which costs computing the rows that pooling shares again. Bands are also bounded by
// the size of their packed input.
void cut(PushPullPlan& plan, int64_t element_bytes) {
  const PushPullGeometry& g = plan.geometry;
  const int64_t images = std::max<int64_t>(g.batch, 1);
  plan.panel_chunks = std::clamp<int64_t>(divide_up(kTasksWanted, images), 1, std::max<int64_t>(plan.panels, 1));
  const int64_t least_rows = std::max<int64_t>(8, 16 * plan.half_h);
  const int64_t box_row = g.channel_range ? 2 * plan.planes * round_up(g.out_w, plan.lanes) : 0;
  const int64_t row_bytes = std::max<int64_t>(1, (g.stride_h * plan.in_row_pitch + box_row) * element_bytes);
  const int64_t wanted = divide_up(kTasksWanted, images * plan.panel_chunks);
  const int64_t fitting = divide_up(g.out_h * row_bytes, kBandBytes);
  const int64_t bands = std::clamp<int64_t>(std::max(wanted, fitting), 1, std::max<int64_t>(g.out_h / least_rows, 1));
  plan.band_rows = std::max<int64_t>(divide_up(g.out_h, bands), 1);
  plan.bands = divide_up(g.out_h, plan.band_rows);
}

template <typename T>
void place(PushPullPlan& plan, Arena& arena) {
  const PushPullGeometry& g = plan.geometry;
  plan.phase_columns = arena.take<int64_t>(plan.phases);
  plan.column_taps = arena.take<int64_t>(g.kernel_w);
  plan.tap_offsets = arena.take<int64_t>(plan.taps);
  plan.row_weights = arena.take<T>(g.out_h);
  plan.column_weights = arena.take<T>(round_up(g.out_w, plan.lanes));
  const int64_t channels = plan.panels * plan.panel;
  plan.filters = arena.take<T>(plan.taps * channels);
  for (void** array : {&plan.lowest, &plan.highest, &plan.lowest_share, &plan.highest_share, &plan.range}) {
    *array = arena.take<T>(channels * plan.planes);
  }
  plan.plane_offsets = arena.take<int64_t>(plan.planes);
  plan.inhibition = arena.take<T>(channels);
  plan.bias = arena.take<T>(channels);
}

template <typename T>
void fill(const PushPullPlan& plan, const ChannelView& inhibition, const ChannelView& bias) {
  const PushPullGeometry& g = plan.geometry;
  int64_t phases = 0;
  for (int64_t phase = 0; phase < g.stride_w; phase++) {
    bool used = false;
    for (int64_t k = 0; k < g.kernel_w; k++) {
      if (k * g.dilation_w % g.stride_w == phase) {
        plan.column_taps[k] = phases * plan.phase_pitch + k * g.dilation_w / g.stride_w;
        used = true;
      }
    }
    if (used) {
      plan.phase_columns[phases++] = phase;
    }
  }
  int64_t* offset = plan.tap_offsets;
  for (int64_t c = 0; c < plan.in_group; c++) {
    for (int64_t y = 0; y < g.kernel_h; y++) {
      for (int64_t x = 0; x < g.kernel_w; x++) {
        *offset++ = c * plan.channel_pitch + y * g.dilation_h * plan.in_row_pitch + plan.column_taps[x];
      }
    }
  }
  for (int64_t plane = 0; plane < plan.planes; plane++) {
    plan.plane_offsets[plane] = plane * round_up(g.out_w, plan.lanes);
  }

  T* row_weights = static_cast<T*>(plan.row_weights);
  for (int64_t i = 0; i < g.out_h; i++) {
    row_weights[i] = T(1) / static_cast<T>(window_cells(i, plan.half_h, g.out_h));
  }
  T* column_weights = static_cast<T*>(plan.column_weights);
  std::fill_n(column_weights, round_up(g.out_w, plan.lanes), T(0));
  for (int64_t i = 0; i < g.out_w; i++) {
    column_weights[i] = T(1) / static_cast<T>(window_cells(i, plan.half_w, g.out_w));
  }

  T* inhibition_out = static_cast<T*>(plan.inhibition);
  T* bias_out = static_cast<T*>(plan.bias);
  std::fill_n(inhibition_out, plan.panels * plan.panel, T(0));
  std::fill_n(bias_out, plan.panels * plan.panel, T(0));
  for (int64_t o = 0; o < g.out_channels; o++) {
    const int64_t at = panel_position(plan, o);
    inhibition_out[at] = static_cast<T>(inhibition.data != nullptr ? read_channel(inhibition, o) : g.strength);
    bias_out[at] = bias.data != nullptr ? static_cast<T>(read_channel(bias, o)) : T(0);
  }
}

// ---- gradient of input ----

// Kernel rows (or columns) k differ in where they meet a cell, (k * dilation) % stride, and in how far up they reach,
// (k * dilation) / stride. Is there one that reaches up by `reach`; by `reach` at `position`?
bool reaches(int64_t kernel, int64_t dilation, int64_t stride, int64_t reach) {
  const int64_t k = divide_up(reach * stride, dilation);
  return k < kernel && k * dilation / stride == reach;
}

bool reaches(int64_t kernel, int64_t dilation, int64_t stride, int64_t reach, int64_t position) {
  const int64_t extent = reach * stride + position;
  return extent % dilation == 0 && extent / dilation < kernel;
}

// Calls use(phase, plane, rows up, columns left) for every tap, phase by phase.
template <typename Use>
void for_each_tap(const PushPullPlan& plan, const GradInputPlan& grad, const Use& use) {
  const PushPullGeometry& g = plan.geometry;
  for (int64_t phase = 0; phase < grad.phases; phase++) {
    for (int64_t plane = 0; plane < grad.tap_planes; plane++) {
      for (int64_t up = 0; up <= grad.margin_top; up++) {
        for (int64_t left = 0; left <= grad.margin_left; left++) {
          const bool meets = grad.whole_cells
                                 ? reaches(g.kernel_h, g.dilation_h, g.stride_h, up) &&
                                       reaches(g.kernel_w, g.dilation_w, g.stride_w, left)
                                 : reaches(g.kernel_h, g.dilation_h, g.stride_h, up, phase / g.stride_w) &&
                                       reaches(g.kernel_w, g.dilation_w, g.stride_w, left, phase % g.stride_w);
          if (meets) {
            use(phase, plane, up, left);
          }
        }
      }
    }
  }
}

template <typename T>
GradInputPlan make_grad_input_plan(const PushPullPlan& plan) {
  const PushPullGeometry& g = plan.geometry;
  GradInputPlan grad{};
  const int64_t positions = g.stride_h * g.stride_w;
  grad.whole_cells = positions > 1 && positions * plan.in_group <= 2 * plan.lanes;
  const int64_t channels = grad.whole_cells ? positions * plan.in_group : plan.in_group;
  grad.vectors = channels > plan.lanes ? 2 : 1;
  grad.panel = plan.lanes * grad.vectors;
  grad.panels_per_group = divide_up(channels, grad.panel);
  grad.sums_panels = plan.in_group <= kSummedChannels && plan.panels_per_group * plan.in_group < plan.out_group;
  grad.pull_planes = grad.sums_panels ? plan.panels_per_group * plan.in_group : plan.out_group;
  grad.planes = plan.out_group + (g.channel_range ? grad.pull_planes : plan.panels_per_group);
  grad.tap_planes = g.channel_range ? plan.out_group : grad.planes;

  grad.margin_top = std::max<int64_t>(g.kernel_h - 1, 0) * g.dilation_h / g.stride_h;
  grad.margin_left = std::max<int64_t>(g.kernel_w - 1, 0) * g.dilation_w / g.stride_w;
  const int64_t last_cell_row = (g.in_h - 1 + g.pad_top) / g.stride_h;
  const int64_t last_cell = (g.in_w - 1 + g.pad_left) / g.stride_w;
  grad.rows = grad.margin_top + std::max(g.out_h, last_cell_row + 1);
  grad.pitch = round_up(grad.margin_left + std::max(g.out_w, last_cell + 1), plan.lanes);
  grad.row_pitch = grad.planes * grad.pitch;
  grad.image_pitch = grad.rows * grad.row_pitch;
  const int64_t image_bytes = g.groups * grad.image_pitch * static_cast<int64_t>(sizeof(T));
  grad.images = std::clamp<int64_t>(kGradientBytes / std::max<int64_t>(image_bytes, 1), 1, g.batch);

  grad.phases = grad.whole_cells ? 1 : positions;
  for_each_tap(plan, grad, [&](int64_t, int64_t, int64_t, int64_t) { grad.taps++; });

  grad.first_cell_row = g.pad_top / g.stride_h;
  grad.cell_rows = last_cell_row - grad.first_cell_row + 1;
  grad.first_cell = g.pad_left / g.stride_w;
  grad.cells = last_cell - grad.first_cell + 1;
  const int64_t units = grad.images * g.groups * grad.panels_per_group;
  const int64_t bands = std::clamp<int64_t>(divide_up(kTasksWanted, units), 1, divide_up(grad.cell_rows, 4));
  grad.band_rows = divide_up(grad.cell_rows, bands);
  grad.bands = divide_up(grad.cell_rows, grad.band_rows);
  return grad;
}

template <typename T>
void place(const PushPullPlan& plan, GradInputPlan& grad, Arena& arena) {
  const PushPullGeometry& g = plan.geometry;
  grad.phase_begin = arena.take<int64_t>(grad.phases + 1);
  grad.tap_offsets = arena.take<int64_t>(grad.taps);
  grad.tap_sources = arena.take<int64_t>(grad.taps);
  grad.filters = arena.take<T>(g.groups * grad.panels_per_group * grad.taps * grad.panel);
  grad.gradient = arena.take<T>(grad.images * g.groups * grad.image_pitch);
  if (g.channel_range) {
    grad.pull_offsets = arena.take<int64_t>(grad.pull_planes);
    grad.ranges = arena.take<T>(g.groups * grad.panels_per_group * grad.pull_planes * grad.panel);
    grad.row_reach = arena.take<T>((grad.margin_top + 1) * grad.panel);
    grad.column_reach = arena.take<T>((grad.margin_left + 1) * grad.panel);
  }
}

// What the sums that spread the pull kernel's constants need.
template <typename T>
void fill_reaches(const PushPullPlan& plan, const GradInputPlan& grad) {
  const PushPullGeometry& g = plan.geometry;
  for (int64_t plane = 0; plane < grad.pull_planes; plane++) {
    grad.pull_offsets[plane] = (plan.out_group + plane) * grad.pitch;
  }
  T* to = static_cast<T*>(grad.row_reach);
  for (int64_t up = 0; up <= grad.margin_top; up++) {
    for (int64_t lane = 0; lane < grad.panel; lane++) {
      const int64_t position = lane / plan.in_group / g.stride_w;
      const bool reached = !grad.whole_cells || reaches(g.kernel_h, g.dilation_h, g.stride_h, up, position);
      *to++ = reached ? T(1) : T(0);
    }
  }
  to = static_cast<T*>(grad.column_reach);
  for (int64_t left = 0; left <= grad.margin_left; left++) {
    for (int64_t lane = 0; lane < grad.panel; lane++) {
      const int64_t position = lane / plan.in_group % g.stride_w;
      const bool reached = !grad.whole_cells || reaches(g.kernel_w, g.dilation_w, g.stride_w, left, position);
      *to++ = reached ? T(1) : T(0);
    }
  }
}

void fill(const PushPullPlan& plan, const GradInputPlan& grad) {
  std::fill_n(grad.phase_begin, grad.phases + 1, int64_t{0});
  int64_t tap = 0;
  for_each_tap(plan, grad, [&](int64_t phase, int64_t plane, int64_t up, int64_t left) {
    grad.tap_offsets[tap] = plane * grad.pitch - up * grad.row_pitch - left;
    grad.tap_sources[tap] = (plane * (grad.margin_top + 1) + up) * (grad.margin_left + 1) + left;
    grad.phase_begin[phase + 1] = ++tap;
  });
  for (int64_t phase = 0; phase < grad.phases; phase++) {  // phases without taps
    grad.phase_begin[phase + 1] = std::max(grad.phase_begin[phase + 1], grad.phase_begin[phase]);
  }
}

// ---- whole calls ----

template <typename T>
Status run_forward(const PushPullForwardParams& params, const Threads& threads) {
  const PushPullGeometry& g = params.geometry;
  const PushPullKernels& kernel = kernels(g.dtype);
  PushPullPlan plan = make_plan(g, kernel.lanes);
  cut(plan, sizeof(T));
  Arena sizes(nullptr);
  place<T>(plan, sizes);
  Arena arena(host_scratch(ScratchSlot::call, sizes.used()));
  place<T>(plan, arena);
  fill<T>(plan, params.inhibition, params.bias);
  Status status = threads(plan.panels, 4,
                          [&](int64_t begin, int64_t end) { kernel.pack_filters(plan, params.weight, begin, end); });
  if (status == Status::ok) {
    status = threads(g.batch * plan.bands * plan.panel_chunks, 1,
                     [&](int64_t begin, int64_t end) { kernel.forward(plan, params, begin, end); });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

template <typename T>
Status run_backward(const PushPullBackwardParams& params, const Threads& threads) {
  const PushPullGeometry& g = params.geometry;
  const PushPullKernels& kernel = kernels(g.dtype);
  PushPullPlan plan = make_plan(g, kernel.lanes);
  cut(plan, sizeof(T));

  PushPullPartials partials{};
  const bool want_input = params.grad_input.data != nullptr && g.batch * g.in_channels * g.in_h * g.in_w > 0;
  const bool want_filter = params.grad_weight.data != nullptr;
  const int64_t items = g.batch * plan.bands;
  partials.panel_size = ((want_filter ? plan.taps : 0) + 2 + plan.planes) * plan.panel;
  // The number of pieces is a matter of sizes alone, not of which gradients are wanted, for equal bits in all cases.
  const int64_t piece_size = plan.panels * (plan.taps + 2 + plan.planes) * plan.panel;
  const int64_t piece_bytes = std::max<int64_t>(1, piece_size * sizeof(T));
  plan.pieces = std::min(items, std::clamp<int64_t>(kPartialBytes / piece_bytes, 1, kTasksWanted));
  plan.panel_chunks = std::clamp<int64_t>(divide_up(kTasksWanted, std::max<int64_t>(plan.pieces, 1)), 1,
                                          std::max<int64_t>(plan.panels, 1));

  GradInputPlan grad{};
  if (want_input) {
    grad = make_grad_input_plan<T>(plan);
  } else {
    grad.images = g.batch;
  }
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    place<T>(plan, arena);
    partials.data = arena.take<T>(plan.pieces * plan.panels * partials.panel_size);
    partials.bias_gradient = arena.take<T>(plan.panels * plan.panel);
    partials.inhibition_gradient = arena.take<T>(plan.panels * plan.panel);
    if (want_input) {
      place<T>(plan, grad, arena);
    }
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::call, lay_out(nullptr)));
  fill<T>(plan, params.inhibition, ChannelView{});

  Status status = threads(plan.panels, 4,
                          [&](int64_t begin, int64_t end) { kernel.pack_filters(plan, params.weight, begin, end); });
  const int64_t input_panels = g.groups * grad.panels_per_group;
  if (want_input && status == Status::ok) {
    fill(plan, grad);
    if (g.channel_range) {
      fill_reaches<T>(plan, grad);
    }
    status = threads(input_panels, 1, [&](int64_t begin, int64_t end) {
      kernel.pack_grad_input_filters(plan, grad, params.weight, begin, end);
    });
    // The margins stay zero from here on; every round writes the same inner part.
    const int64_t rows = grad.images * g.groups * grad.rows;
    if (status == Status::ok) {
      status = threads(rows, 64, [&](int64_t begin, int64_t end) {
        std::fill(static_cast<T*>(grad.gradient) + begin * grad.row_pitch,
                  static_cast<T*>(grad.gradient) + end * grad.row_pitch, T(0));
      });
    }
  }
  for (int64_t first = 0; first < g.batch && status == Status::ok; first += grad.images) {
    const int64_t last = std::min(g.batch, first + grad.images);
    partials.first = first * plan.bands;
    partials.last = last * plan.bands;
    grad.first = first;
    grad.last = last;
    status = threads(plan.pieces * plan.panel_chunks, 1, [&](int64_t begin, int64_t end) {
      kernel.backward(plan, params, partials, want_input ? &grad : nullptr, begin, end);
    });
    if (want_input && status == Status::ok) {
      status = threads((last - first) * input_panels * grad.bands, 1, [&](int64_t begin, int64_t end) {
        kernel.grad_input(plan, grad, params.grad_input, begin, end);
      });
    }
  }
  if (status == Status::ok) {
    status =
        threads(plan.panels, 1, [&](int64_t begin, int64_t end) { kernel.reduce(plan, params, partials, begin, end); });
  }
  if (status == Status::ok) {
    for (int64_t o = 0; o < g.out_channels; o++) {
      const int64_t at = panel_position(plan, o);
      if (params.grad_bias.data != nullptr) {
        write_channel(params.grad_bias, o, static_cast<const T*>(partials.bias_gradient)[at]);
      }
      if (params.grad_inhibition.data != nullptr) {
        write_channel(params.grad_inhibition, o, static_cast<const T*>(partials.inhibition_gradient)[at]);
      }
    }
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

GradInputCall::GradInputCall(const PushPullGeometry& geometry)
    : plan_(make_plan(geometry, kernels(geometry.dtype).lanes)), grad_(make_grad_input_plan<float>(plan_)) {}

void GradInputCall::place(Arena& arena) { cpu::place<float>(plan_, grad_, arena); }

Status GradInputCall::start(const View4& weight, const Threads& threads) {
  const PushPullGeometry& g = plan_.geometry;
  fill(plan_, grad_);
  Status status = threads(g.groups * grad_.panels_per_group, 1, [&](int64_t begin, int64_t end) {
    kernels(g.dtype).pack_grad_input_filters(plan_, grad_, weight, begin, end);
  });
  if (status == Status::ok) {
    status = threads(grad_.images * g.groups * grad_.rows, 64, [&](int64_t begin, int64_t end) {
      std::fill(static_cast<float*>(grad_.gradient) + begin * grad_.row_pitch,
                static_cast<float*>(grad_.gradient) + end * grad_.row_pitch, 0.0f);
    });
  }
  return status;
}

const GradInputPlan& GradInputCall::round(int64_t first, int64_t last) {
  grad_.first = first;
  grad_.last = last;
  return grad_;
}

Status GradInputCall::run(const View4& grad_input, const Threads& threads) {
  const PushPullGeometry& g = plan_.geometry;
  return threads(
      (grad_.last - grad_.first) * g.groups * grad_.panels_per_group * grad_.bands, 1,
      [&](int64_t begin, int64_t end) { kernels(g.dtype).grad_input(plan_, grad_, grad_input, begin, end); });
}

Status push_pull_conv2d(const PushPullForwardParams& params, const Threads& threads) {
  try {
    if (winograd_applies(params)) {
      return winograd_forward(params, threads);
    }
    return params.geometry.dtype == DType::f64 ? run_forward<double>(params, threads)
                                               : run_forward<float>(params, threads);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

Status push_pull_conv2d_backward(const PushPullBackwardParams& params, const Threads& threads) {
  try {
    if (winograd_backward_applies(params)) {
      return winograd_backward(params, threads);
    }
    return params.geometry.dtype == DType::f64 ? run_backward<double>(params, threads)
                                               : run_backward<float>(params, threads);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

}  // namespace cpu
}  // namespace sturdy
