// The gradient of input by the direct form: a convolution of the gradient at the convolution's output, which backward
// keeps in planes between zeros, with the turned filters.
#pragma once

#include "pushpull/push_pull_conv2d_cpu_rows.h"
#include "pushpull/push_pull_conv2d_cpu_tiles.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::GradInputPlan;

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
