// Backward. With g the gradient of the output, A the pooling and A' its adjoint (divide by the window's cells, then sum
// over the window), per output channel:
//
//   gu = -inhibition * g * [u > 0]          d inhibition = -sum g * relu(u)
//   gq = A'(gu)                             d bias       =  sum g
//   gp = g * [p > 0] - gq                   d m          =  sum gu * A(box)
//   d weight = weight gradient of gp, and the share of d m of each entry that is least or greatest
//   d input  = input gradient of gp, and of sum over channels of m * gq through a filter of ones
//
// With channel_range, m * box and what follows from it are sums over input channels: d m is then a weight gradient, of
// gu with respect to the planes of A(box), and each input channel has a filter of ones of its own.
#pragma once

#include "pushpull/push_pull_conv2d_cpu_forward.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::GradInputPlan;
using cpu::PushPullPartials;

// Where backward of one task keeps its rows.
template <typename T>
struct BackwardRows {
  PackedBand<T> band;
  RowRing<T> push;       // p
  RowRing<T> grad_out;   // g
  RowRing<T> grad_pull;  // gu / cells
  T* sums;
  T* grad_push;  // gp of the rows waiting for the weight gradient, at the pitch of the rings
  int64_t most_held, held;
  T* constant;   // m * gq, summed over the vectors of the panel: [column][lane]; with channel_range gq itself
  T* lane_sums;  // with channel_range: m * gq of one input channel, summed likewise
  T* offset;     // with channel_range: what offset_row makes
  T* grad_u;     // with channel_range: gu of one row
};

// The sums over pixels of one panel: those of one row are added up first, then added to the piece's.
template <typename T>
struct ChannelSums {
  T* bias;
  T* inhibition;
  T* range;  // null with channel_range where no gradient of the filters is wanted
};

template <typename T>
STURDY_ALWAYS_INLINE void add_to(T* to, Vec<T> v) {
  store(to, load(to) + v);
}

template <typename T>
static void sum_bias_row(const PushPullPlan& plan, const T* g, T* sums) {
  for (int64_t j = 0; j < plan.panel; j += kLanes<T>) {
    Vec<T> sum = zero<T>();
    for (int64_t column = 0; column < plan.geometry.out_w; column++) {
      sum += load(g + column * plan.panel + j);
    }
    add_to(sums + j, sum);
  }
}

// gu / cells of one row, and the row's part of the channel sums where `sums` has them.
template <typename T>
static void pull_gradient_row(const PushPullPlan& plan, int64_t panel, const BackwardRows<T>& rows, int64_t row,
                              const ChannelSums<T>* sums) {
  if (pools(plan)) {
    sum_window_rows(plan, rows.push, row, rows.sums);
  }
  const int64_t width = plan.panel;
  const T row_weight = static_cast<const T*>(plan.row_weights)[row];
  const T* column_weights = static_cast<const T*>(plan.column_weights);
  const T* mean_box = rows.band.mean_box_row(row);
  const bool by_channel = plan.geometry.channel_range;
  if (by_channel) {
    offset_row(plan, mean_box, panel, rows.offset);
  }
  for (int64_t j = 0; j < plan.panel; j += kLanes<T>) {
    const int64_t channel = panel * plan.panel + j;
    const Vec<T> inhibition = zero<T>() - load(static_cast<const T*>(plan.inhibition) + channel);
    const T* g = rows.grad_out.row(row) + j;
    T* to = rows.grad_pull.row(row) + j;
    Vec<T> bias_sum = zero<T>();
    Vec<T> inhibition_sum = zero<T>();
    Vec<T> range_sum = zero<T>();
    const auto finish = [&](int64_t column, Vec<T> u) __attribute__((always_inline)) {
      const Vec<T> grad = load(g + column * width);
      const Vec<T> grad_u = relu_backward(inhibition * grad, u);
      bias_sum += grad;
      inhibition_sum += grad * relu(u);
      store(to + column * width, grad_u * broadcast(row_weight * column_weights[column]));
      return grad_u;
    };
    if (by_channel) {
      const auto offset_at = [=](int64_t column)
                                 __attribute__((always_inline)) { return load(rows.offset + column * width + j); };
      for_each_pull(plan, rows.push.row(row) + j, rows.sums + j, row, offset_at,
                    [&](int64_t column, Vec<T> u)
                        __attribute__((always_inline)) { store(rows.grad_u + column * width + j, finish(column, u)); });
    } else {
      const Vec<T> range = load(static_cast<const T*>(plan.range) + channel);
      for_each_pull(plan, rows.push.row(row) + j, rows.sums + j, row, range, mean_box,
                    [&](int64_t column, Vec<T> u) __attribute__((always_inline)) {
                      range_sum += finish(column, u) * broadcast(mean_box[column]);
                    });
    }
    if (sums != nullptr) {
      add_to(sums->bias + j, bias_sum);
      add_to(sums->inhibition + j, zero<T>() - inhibition_sum);
      if (!by_channel) {
        add_to(sums->range + j, range_sum);
      }
    }
  }
  if (by_channel && sums != nullptr && sums->range != nullptr) {
    const auto add = plan.vectors == 2 ? weight_gradient<T, 2> : weight_gradient<T, 1>;
    add(mean_box, plan.plane_offsets, plan.planes, 0, rows.grad_u, 0, 1, plan.geometry.out_w, sums->range);
  }
}

// gp of one row, and if wanted m * gq.
template <typename T>
static void push_gradient_row(const PushPullPlan& plan, int64_t panel, const BackwardRows<T>& rows, int64_t row, T* out,
                              bool want_constant) {
  const T* pulled = rows.grad_pull.row(row);
  if (pools(plan)) {
    sum_window_rows(plan, rows.grad_pull, row, rows.sums);
    pulled = rows.sums;
  }
  const int64_t width = plan.panel;
  for (int64_t j = 0; j < plan.panel; j += kLanes<T>) {
    const Vec<T> range = load(static_cast<const T*>(plan.range) + panel * plan.panel + j);
    const T* g = rows.grad_out.row(row) + j;
    const T* p = rows.push.row(row) + j;
    T* to = out + j;
    T* constant = want_constant ? rows.constant : nullptr;
    for_each_window(plan, pulled + j, [=](int64_t column, Vec<T> grad_q) __attribute__((always_inline)) {
      const Vec<T> rectified = relu_backward(load(g + column * width), load(p + column * width));
      store(to + column * width, rectified - grad_q);
      if (constant != nullptr) {
        T* at = constant + column * kLanes<T>;
        const Vec<T> part = range * grad_q;
        store(at, j == 0 ? part : load(at) + part);
      }
    });
  }
}

// gq of one row, after push_gradient_row has summed its window's rows.
template <typename T>
static void pull_response_gradient_row(const PushPullPlan& plan, const BackwardRows<T>& rows, int64_t row, T* out) {
  const T* pulled = pools(plan) ? rows.sums : rows.grad_pull.row(row);
  const int64_t width = plan.panel;
  for (int64_t j = 0; j < plan.panel; j += kLanes<T>) {
    for_each_window(plan, pulled + j, [=](int64_t column, Vec<T> grad_q) __attribute__((always_inline)) {
      store(out + column * width + j, grad_q);
    });
  }
}

// out[column] = sum over lanes of from[column][lane]
template <typename T>
static void sum_lanes(const T* from, T* out, int64_t count) {
  constexpr int lanes = kLanes<T>;
  for (int64_t column = 0; column < count; column += lanes) {
    Vec<T> block[lanes];
    STURDY_UNROLL
    for (int i = 0; i < lanes; i++) {
      block[i] = load(from + (column + i) * lanes);
    }
    transpose(block);
    Vec<T> sum = block[0];
    STURDY_UNROLL
    for (int i = 1; i < lanes; i++) {
      sum += block[i];
    }
    store_partial(out + column, sum, least(lanes, count - column));
  }
}

// out[column][lane] = m * gq of one input channel, summed over the vectors of the panel.
template <typename T>
static void multiply_by_range(const PushPullPlan& plan, int64_t panel, int64_t channel, const T* grad_q, T* out) {
  constexpr int lanes = kLanes<T>;
  const T* range = static_cast<const T*>(plan.range) + (panel * plan.planes + channel) * plan.panel;
  const Vec<T> first = load(range);
  const Vec<T> last = load(range + plan.panel - lanes);
  for (int64_t column = 0; column < plan.geometry.out_w; column++) {
    const T* at = grad_q + column * plan.panel;
    Vec<T> sum = first * load(at);
    if (plan.vectors == 2) {
      sum += last * load(at + lanes);
    }
    store(out + column * lanes, sum);
  }
}

// Puts a row of gp and of the constant's gradient where grad_input will read them.
template <typename T>
static void keep_for_grad_input(const PushPullPlan& plan, const GradInputPlan& grad_input, int64_t n, int64_t panel,
                                int64_t row, const T* grad_push, const T* constant, T* lane_sums = nullptr) {
  const int64_t group = panel / plan.panels_per_group;
  const int64_t in_group = panel % plan.panels_per_group;
  const int64_t first = in_group * plan.panel;
  T* base = static_cast<T*>(grad_input.gradient) +
            ((n - grad_input.first) * plan.geometry.groups + group) * grad_input.image_pitch +
            (grad_input.margin_top + row) * grad_input.row_pitch + grad_input.margin_left;
  TensorRow<T> planes{base + first * grad_input.pitch,
                      least(plan.panel, plan.out_group - first),
                      grad_input.pitch,
                      plan.geometry.out_w,
                      1,
                      grad_input.row_pitch};
  store_row<T>(grad_push, plan.panel, planes);
  if (plan.geometry.channel_range && grad_input.sums_panels) {
    T* to = base + (plan.out_group + in_group * plan.in_group) * grad_input.pitch;
    for (int64_t c = 0; c < plan.in_group; c++, to += grad_input.pitch) {
      multiply_by_range(plan, panel, c, constant, lane_sums);
      sum_lanes(lane_sums, to, plan.geometry.out_w);
    }
    return;
  }
  if (plan.geometry.channel_range) {
    planes.data += plan.out_group * grad_input.pitch;
    store_row<T>(constant, plan.panel, planes);
    return;
  }
  sum_lanes(constant, base + (plan.out_group + in_group) * grad_input.pitch, plan.geometry.out_w);
}

template <typename T>
static void flush_weight_gradient(const PushPullPlan& plan, BackwardRows<T>& rows, int64_t last_row, T* gradient) {
  const auto add = plan.vectors == 2 ? weight_gradient<T, 2> : weight_gradient<T, 1>;
  add(rows.band.x_row(plan, last_row - rows.held), plan.tap_offsets, plan.taps,
      plan.geometry.stride_h * plan.in_row_pitch, rows.grad_push, rows.push.pitch, rows.held, plan.geometry.out_w,
      gradient);
  rows.held = 0;
}

// One band of one image and one panel.
template <typename S, typename T = Accumulate<S>>
static void backward_panel(const PushPullPlan& plan, const PushPullBackwardParams& params,
                           const GradInputPlan* grad_input, BackwardRows<T>& rows, int64_t n, int64_t panel,
                           int64_t first_row, int64_t last_row, T* filter_sums, const ChannelSums<T>& sums) {
  const PushPullGeometry& g = plan.geometry;
  const bool want_filter = params.grad_weight.data != nullptr;
  const bool want_push = want_filter || grad_input != nullptr;
  const int64_t halo = want_push ? plan.half_h : 0;  // of gu around gp
  int64_t next_pull = most(0, first_row - halo);
  const int64_t last_pull = least(g.out_h, last_row + halo);
  int64_t next_push = first_row;
  rows.held = 0;
  for (int64_t row = rows.band.first; row < rows.band.last; row++) {
    if (params.push.data != nullptr) {
      load_row<S>(output_row<const S>(plan, params.push, n, panel, row), rows.push.row(row), plan.panel);
    } else {
      push_row(plan, rows.band, panel, row, rows.push.row(row));
    }
    for (; next_pull < last_pull && least(next_pull + plan.half_h, g.out_h - 1) <= row; next_pull++) {
      load_row<S>(output_row<const S>(plan, params.grad_out, n, panel, next_pull), rows.grad_out.row(next_pull),
                  plan.panel);
      const bool own = next_pull >= first_row && next_pull < last_row;
      pull_gradient_row(plan, panel, rows, next_pull, own ? &sums : nullptr);
      const int64_t complete = want_push ? last_row : first_row;
      for (; next_push < complete && least(next_push + plan.half_h, g.out_h - 1) <= next_pull; next_push++) {
        T* gradient = rows.grad_push + rows.held * rows.push.pitch;
        push_gradient_row(plan, panel, rows, next_push, gradient, grad_input != nullptr && !g.channel_range);
        if (grad_input != nullptr) {
          if (g.channel_range) {
            pull_response_gradient_row(plan, rows, next_push, rows.constant);
          }
          keep_for_grad_input<T>(plan, *grad_input, n, panel, next_push, gradient, rows.constant, rows.lane_sums);
        }
        if (want_filter && (++rows.held == rows.most_held || next_push == last_row - 1)) {
          flush_weight_gradient(plan, rows, next_push + 1, filter_sums);
        }
      }
    }
  }
}

template <typename S, typename T = Accumulate<S>>
static void backward(const PushPullPlan& plan, const PushPullBackwardParams& params, const PushPullPartials& partials,
                     const GradInputPlan* grad_input, int64_t begin, int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  const bool bias_only =
      params.grad_weight.data == nullptr && grad_input == nullptr && params.grad_inhibition.data == nullptr;
  const int64_t taps = params.grad_weight.data != nullptr ? plan.taps : 0;
  const bool want_push = params.grad_weight.data != nullptr || grad_input != nullptr;
  const int64_t halo = plan.half_h * (want_push ? 2 : 1);  // of p around gp
  BackwardRows<T> rows{};
  // About 512 pixels for each visit to the filter gradient: the rows stay in cache, the visits cost little.
  rows.most_held = most(1, least(plan.band_rows, 512 / most(1, g.out_w)));
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    rows.band = take_packed_band<T>(plan, arena, least(g.out_h, plan.band_rows + 2 * halo));
    rows.push = take_ring<T>(plan, arena);
    rows.grad_out = take_ring<T>(plan, arena);
    rows.grad_pull = take_ring<T>(plan, arena);
    rows.sums = take_window_sums<T>(plan, arena);
    rows.grad_push = arena.take<T>(rows.most_held * rows.push.pitch);
    rows.constant = arena.take<T>(g.channel_range ? rows.push.pitch : round_up_to_lanes<T>(g.out_w) * kLanes<T>);
    rows.lane_sums = arena.take<T>(g.channel_range ? round_up_to_lanes<T>(g.out_w) * kLanes<T> : 0);
    rows.offset = arena.take<T>(g.channel_range ? rows.push.pitch : 0);
    rows.grad_u = arena.take<T>(g.channel_range ? rows.push.pitch : 0);
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::task, lay_out(nullptr)));

  for (int64_t task = begin; task < end; task++) {
    const int64_t chunk = task % plan.panel_chunks;
    const int64_t piece = task / plan.panel_chunks;
    const int64_t first_panel = plan.panels * chunk / plan.panel_chunks;
    const int64_t last_panel = plan.panels * (chunk + 1) / plan.panel_chunks;
    T* piece_sums = static_cast<T*>(partials.data) + piece * plan.panels * partials.panel_size;
    if (partials.first == 0) {
      fill_zero(piece_sums + first_panel * partials.panel_size, (last_panel - first_panel) * partials.panel_size);
    }
    const int64_t before = (partials.first - piece + plan.pieces - 1) / plan.pieces;  // rounds done, if positive
    for (int64_t item = piece + most(0, before) * plan.pieces; item < partials.last; item += plan.pieces) {
      const int64_t n = item / plan.bands;
      const int64_t first_row = item % plan.bands * plan.band_rows;
      const int64_t last_row = least(g.out_h, first_row + plan.band_rows);
      rows.band.first = most(0, first_row - halo);
      rows.band.last = least(g.out_h, last_row + halo);
      int64_t packed_group = -1;
      for (int64_t panel = first_panel; panel < last_panel; panel++) {
        T* filter_sums = piece_sums + panel * partials.panel_size;
        T* bias_sums = filter_sums + taps * plan.panel;
        T* range_sums = g.channel_range && taps == 0 ? nullptr : bias_sums + 2 * plan.panel;
        const ChannelSums<T> sums{bias_sums, bias_sums + plan.panel, range_sums};
        if (bias_only) {
          for (int64_t row = first_row; row < last_row; row++) {
            load_row<S>(output_row<const S>(plan, params.grad_out, n, panel, row), rows.grad_out.data, plan.panel);
            sum_bias_row(plan, rows.grad_out.data, sums.bias);
          }
          continue;
        }
        const int64_t group = panel / plan.panels_per_group;
        if (group != packed_group) {
          const int64_t pull_halo = want_push ? plan.half_h : 0;
          pack_input<S>(plan, params.input, n, group, rows.band);
          box_map(plan, rows.band, most(0, first_row - pull_halo), least(g.out_h, last_row + pull_halo));
          packed_group = group;
        }
        backward_panel<S>(plan, params, grad_input, rows, n, panel, first_row, last_row, filter_sums, sums);
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// Adds the pieces up, in order, and finishes the gradients of the filters and channels of the panels [begin, end).
template <typename S, typename T = Accumulate<S>>
static void reduce(const PushPullPlan& plan, const PushPullBackwardParams& params, const PushPullPartials& partials,
                   int64_t begin, int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  const bool want_filter = params.grad_weight.data != nullptr;
  const int64_t taps = want_filter ? plan.taps : 0;
  T* total = static_cast<T*>(host_scratch(ScratchSlot::task, static_cast<size_t>(partials.panel_size) * sizeof(T)));
  for (int64_t panel = begin; panel < end; panel++) {
    fill_zero(total, partials.panel_size);
    for (int64_t piece = 0; piece < plan.pieces; piece++) {
      const T* part = static_cast<const T*>(partials.data) + (piece * plan.panels + panel) * partials.panel_size;
      for (int64_t i = 0; i < partials.panel_size; i += kLanes<T>) {
        add_to(total + i, load(part + i));
      }
    }
    const T* bias = total + taps * plan.panel;
    const T* inhibition = bias + plan.panel;
    const T* range = inhibition + plan.panel;
    const int64_t first = panel % plan.panels_per_group * plan.panel;
    const int64_t channel = panel / plan.panels_per_group * plan.out_group + first;
    const int64_t channels = least(plan.panel, plan.out_group - first);
    for (int64_t i = 0; i < plan.panel; i++) {
      static_cast<T*>(partials.bias_gradient)[panel * plan.panel + i] = bias[i];
      static_cast<T*>(partials.inhibition_gradient)[panel * plan.panel + i] = inhibition[i];
    }
    if (!want_filter) {
      continue;
    }
    const T* filters = static_cast<const T*>(plan.filters) + panel * plan.taps * plan.panel;
    for (int64_t i = 0; i < channels; i++) {
      S* out = static_cast<S*>(params.grad_weight.data) + (channel + i) * params.grad_weight.stride[0];
      const int64_t* stride = params.grad_weight.stride;
      int64_t tap = 0;
      for (int64_t c = 0; c < plan.in_group; c++) {
        const int64_t plane = c / plan.plane_channels;
        const int64_t at = (panel * plan.planes + plane) * plan.panel + i;
        const T low = static_cast<const T*>(plan.lowest)[at];
        const T high = static_cast<const T*>(plan.highest)[at];
        const T grad_range = range[plane * plan.panel + i];
        const T to_low = grad_range * static_cast<const T*>(plan.lowest_share)[at];
        const T to_high = grad_range * static_cast<const T*>(plan.highest_share)[at];
        for (int64_t y = 0; y < g.kernel_h; y++) {
          for (int64_t x = 0; x < g.kernel_w; x++, tap++) {
            const T w = filters[tap * plan.panel + i];
            const T sum = total[tap * plan.panel + i] + (w == low ? to_low : T(0)) + (w == high ? to_high : T(0));
            assign(out[c * stride[1] + y * stride[2] + x * stride[3]], sum);
          }
        }
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- gradient of input ----

// What brings the planes of the pull response's gradient to one map per lane, for one group and panel of lanes.
template <typename T>
static void pack_grad_input_ranges(const PushPullPlan& plan, const GradInputPlan& grad, int64_t unit) {
  const int64_t group = unit / grad.panels_per_group;
  const int64_t first = unit % grad.panels_per_group * grad.panel;
  const int64_t positions = grad.whole_cells ? plan.geometry.stride_h * plan.geometry.stride_w : 1;
  T* to = static_cast<T*>(grad.ranges) + unit * grad.pull_planes * grad.panel;
  for (int64_t plane = 0; plane < grad.pull_planes; plane++) {
    for (int64_t lane = first; lane < first + grad.panel; lane++) {
      const int64_t c = lane % plan.in_group;
      T value = 0;
      if (lane < positions * plan.in_group && grad.sums_panels) {
        value = plane % plan.in_group == c ? T(1) : T(0);
      } else if (lane < positions * plan.in_group) {
        const int64_t panel = group * plan.panels_per_group + plane / plan.panel;
        const int64_t at = (panel * plan.planes + c) * plan.panel + plane % plan.panel;
        value = static_cast<const T*>(plan.range)[at];
      }
      *to++ = value;
    }
  }
}

template <typename S, typename T = Accumulate<S>>
static void pack_grad_input_filters(const PushPullPlan& plan, const GradInputPlan& grad, const View4& weight,
                                    int64_t begin, int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  for (int64_t unit = begin; unit < end; unit++) {
    const int64_t group = unit / grad.panels_per_group;
    const int64_t first = unit % grad.panels_per_group * grad.panel;
    T* to = static_cast<T*>(grad.filters) + unit * grad.taps * grad.panel;
    for (int64_t phase = 0; phase < grad.phases; phase++) {
      for (int64_t tap = grad.phase_begin[phase]; tap < grad.phase_begin[phase + 1]; tap++) {
        const int64_t left = grad.tap_sources[tap] % (grad.margin_left + 1);
        const int64_t up = grad.tap_sources[tap] / (grad.margin_left + 1) % (grad.margin_top + 1);
        const int64_t plane = grad.tap_sources[tap] / (grad.margin_left + 1) / (grad.margin_top + 1);
        for (int64_t lane = first; lane < first + grad.panel; lane++) {
          const int64_t position = grad.whole_cells ? lane / plan.in_group : phase;
          const int64_t c = grad.whole_cells ? lane % plan.in_group : lane;
          const int64_t y = up * g.stride_h + position / g.stride_w;
          const int64_t x = left * g.stride_w + position % g.stride_w;
          T value = 0;
          if (position < g.stride_h * g.stride_w && c < plan.in_group && y % g.dilation_h == 0 &&
              y / g.dilation_h < g.kernel_h && x % g.dilation_w == 0 && x / g.dilation_w < g.kernel_w) {
            const int64_t at = (group * plan.out_group + plane) * weight.stride[0] + c * weight.stride[1] +
                               y / g.dilation_h * weight.stride[2] + x / g.dilation_w * weight.stride[3];
            value = plane < plan.out_group ? to_accumulate(static_cast<const S*>(weight.data)[at]) : T(1);
          }
          *to++ = value;
        }
      }
    }
    if (g.channel_range) {
      pack_grad_input_ranges<T>(plan, grad, unit);
    }
  }
}

// The input pixels at one position in the cells of a row of cells.
template <typename S, typename T = Accumulate<S>>
static void store_position(const PushPullPlan& plan, const GradInputPlan& grad, const View4& out, int64_t n,
                           int64_t channel, int64_t channels, int64_t cell_row, int64_t position, const T* cells) {
  const PushPullGeometry& g = plan.geometry;
  const int64_t y = cell_row * g.stride_h + position / g.stride_w - g.pad_top;
  const int64_t x = grad.first_cell * g.stride_w + position % g.stride_w - g.pad_left;
  if (y < 0 || y >= g.in_h) {
    return;
  }
  const int64_t skipped = x < 0 ? 1 : 0;  // the first cell may lie partly in the padding
  const int64_t begin = x + skipped * g.stride_w;
  if (begin >= g.in_w) {
    return;
  }
  S* to = static_cast<S*>(out.data) + n * out.stride[0] + channel * out.stride[1] + y * out.stride[2] +
          begin * out.stride[3];
  store_row<S>(cells + skipped * grad.panel, grad.panel,
               TensorRow<S>{to, channels, out.stride[1], (g.in_w - begin + g.stride_w - 1) / g.stride_w,
                            g.stride_w * out.stride[3], out.stride[2]});
}

// Whether kernel row (or column) k of some filter meets `position` in its cell and reaches up (or left) by `reach`.
STURDY_ALWAYS_INLINE bool reaches(int64_t kernel, int64_t dilation, int64_t stride, int64_t reach, int64_t position) {
  const int64_t extent = reach * stride + position;
  return extent % dilation == 0 && extent / dilation < kernel;
}

// With channel_range: the part of the gradient of input that comes through m.
template <typename T>
struct SpreadRows {
  T* data;  // [output row % rows][column][lane]: sum over output channels of m * gq
  int64_t rows, pitch;
  int64_t columns;  // margin_left before the cells
  T* line;          // sums over the rows that one phase reaches
  int64_t next;     // output row

  STURDY_ALWAYS_INLINE T* row(int64_t r) const { return data + (r + rows) % rows * pitch; }
};

template <typename T>
STURDY_ALWAYS_INLINE SpreadRows<T> take_spread_rows(const GradInputPlan& grad, Arena& arena) {
  SpreadRows<T> spread{};
  spread.rows = grad.margin_top + 1;
  spread.columns = grad.margin_left + grad.cells;
  spread.pitch = spread.columns * grad.panel;
  spread.data = arena.take<T>(spread.rows * spread.pitch);
  spread.line = arena.take<T>(spread.pitch);
  return spread;
}

// Adds to the cells of one cell row, at the positions of one phase, what filters of ones spread there.
template <typename T>
static void add_spread(const PushPullPlan& plan, const GradInputPlan& grad, const SpreadRows<T>& spread,
                       int64_t cell_row, int64_t phase, T* cells) {
  constexpr int lanes = kLanes<T>;
  const PushPullGeometry& g = plan.geometry;
  const int64_t panel = grad.panel;
  fill_zero(spread.line, spread.pitch);
  for (int64_t up = 0; up <= grad.margin_top; up++) {
    if (!grad.whole_cells && !reaches(g.kernel_h, g.dilation_h, g.stride_h, up, phase / g.stride_w)) {
      continue;
    }
    const T* reach = static_cast<const T*>(grad.row_reach) + up * panel;
    const T* from = spread.row(cell_row - up);
    for (int64_t i = 0; i < spread.pitch; i += panel) {
      for (int64_t j = 0; j < panel; j += lanes) {
        add_to(spread.line + i + j, load(from + i + j) * load(reach + j));
      }
    }
  }
  for (int64_t left = 0; left <= grad.margin_left; left++) {
    if (!grad.whole_cells && !reaches(g.kernel_w, g.dilation_w, g.stride_w, left, phase % g.stride_w)) {
      continue;
    }
    const T* reach = static_cast<const T*>(grad.column_reach) + left * panel;
    const T* from = spread.line + (grad.margin_left - left) * panel;
    for (int64_t i = 0; i < grad.cells * panel; i += panel) {
      for (int64_t j = 0; j < panel; j += lanes) {
        add_to(cells + i + j, load(from + i + j) * load(reach + j));
      }
    }
  }
}

template <typename S, typename T = Accumulate<S>>
static void grad_input(const PushPullPlan& plan, const GradInputPlan& grad, const View4& out, int64_t begin,
                       int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  // Stores read whole vectors and whole blocks of columns.
  const int64_t row_size = (round_up_to_lanes<T>(grad.cells) + kLanes<T>)*grad.panel;
  T* row = nullptr;
  SpreadRows<T> spread{};
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    row = arena.take<T>(row_size);
    if (g.channel_range) {
      spread = take_spread_rows<T>(grad, arena);
    }
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::task, lay_out(nullptr)));
  const auto conv = grad.vectors == 2 ? conv_row<T, 2> : conv_row<T, 1>;
  const int64_t positions = g.stride_h * g.stride_w;
  for (int64_t task = begin; task < end; task++) {
    const int64_t band = task % grad.bands;
    const int64_t unit = task / grad.bands % (g.groups * grad.panels_per_group);
    const int64_t image = task / grad.bands / (g.groups * grad.panels_per_group);
    const int64_t group = unit / grad.panels_per_group;
    const int64_t first = unit % grad.panels_per_group * grad.panel;
    const T* filters = static_cast<const T*>(grad.filters) + unit * grad.taps * grad.panel;
    const T* gradient = static_cast<const T*>(grad.gradient) + (image * g.groups + group) * grad.image_pitch +
                        grad.margin_left + grad.first_cell;
    const int64_t last = least(grad.cell_rows, (band + 1) * grad.band_rows);
    spread.next = grad.first_cell_row + band * grad.band_rows - grad.margin_top;
    for (int64_t i = band * grad.band_rows; i < last; i++) {
      const int64_t cell_row = grad.first_cell_row + i;
      const T* from = gradient + (grad.margin_top + cell_row) * grad.row_pitch;
      for (; g.channel_range && spread.next <= cell_row; spread.next++) {
        const T* pulled = gradient + (grad.margin_top + spread.next) * grad.row_pitch - grad.margin_left;
        const T* ranges = static_cast<const T*>(grad.ranges) + unit * grad.pull_planes * grad.panel;
        conv(pulled, grad.pull_offsets, grad.pull_planes, ranges, spread.columns, spread.row(spread.next), grad.panel);
      }
      for (int64_t phase = 0; phase < grad.phases; phase++) {
        const int64_t tap = grad.phase_begin[phase];
        conv(from, grad.tap_offsets + tap, grad.phase_begin[phase + 1] - tap, filters + tap * grad.panel, grad.cells,
             row, grad.panel);
        if (g.channel_range) {
          add_spread(plan, grad, spread, cell_row, phase, row);
        }
        if (grad.whole_cells) {
          for (int64_t position = 0; position < positions; position++) {
            store_position<S>(plan, grad, out, grad.first + image, group * plan.in_group, plan.in_group, cell_row,
                              position, row + position * plan.in_group);
          }
        } else {
          store_position<S>(plan, grad, out, grad.first + image, group * plan.in_group + first,
                            least(grad.panel, plan.in_group - first), cell_row, phase, row);
        }
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
