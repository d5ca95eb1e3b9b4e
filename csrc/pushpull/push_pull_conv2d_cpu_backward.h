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

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
