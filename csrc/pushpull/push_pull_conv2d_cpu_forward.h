// Forward: convolution rows go to a ring, pooling and the epilogue follow as soon as a window is complete.
#pragma once

#include "pushpull/push_pull_conv2d_cpu_rows.h"
#include "pushpull/push_pull_conv2d_cpu_tiles.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Filters of the panels [begin, end) to [tap][channel], with their extremes. A NaN in a filter makes both a NaN.
template <typename S, typename T = Accumulate<S>>
static void pack_filters(const PushPullPlan& plan, const View4& weight, int64_t begin, int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  for (int64_t panel = begin; panel < end; panel++) {
    const int64_t group = panel / plan.panels_per_group;
    const int64_t first = panel % plan.panels_per_group * plan.panel;
    T* filters = static_cast<T*>(plan.filters) + panel * plan.taps * plan.panel;
    for (int64_t i = 0; i < plan.panel; i++) {
      const bool used = first + i < plan.out_group;
      const S* filter =
          static_cast<const S*>(weight.data) + (used ? (group * plan.out_group + first + i) * weight.stride[0] : 0);
      int64_t tap = 0;
      for (int64_t plane = 0; plane < plan.planes; plane++) {
        const int64_t first_tap = tap;
        T low = 0;
        T high = 0;
        int64_t lows = 0;
        int64_t highs = 0;
        for (int64_t c = plane * plan.plane_channels; c < (plane + 1) * plan.plane_channels; c++) {
          for (int64_t y = 0; y < g.kernel_h; y++) {
            for (int64_t x = 0; x < g.kernel_w; x++, tap++) {
              const T w =
                  used ? to_accumulate(filter[c * weight.stride[1] + y * weight.stride[2] + x * weight.stride[3]])
                       : T(0);
              filters[tap * plan.panel + i] = w;
              if (tap == first_tap || !(w >= low)) {
                low = w != w || low == low ? w : low;  // the first NaN stays
                lows = 0;
              }
              if (tap == first_tap || !(w <= high)) {
                high = w != w || high == high ? w : high;
                highs = 0;
              }
              lows += w == low;
              highs += w == high;
            }
          }
        }
        const int64_t at = (panel * plan.planes + plane) * plan.panel + i;
        static_cast<T*>(plan.lowest)[at] = low;
        static_cast<T*>(plan.highest)[at] = high;
        static_cast<T*>(plan.lowest_share)[at] = lows > 0 ? T(1) / static_cast<T>(lows) : T(0);
        static_cast<T*>(plan.highest_share)[at] = highs > 0 ? T(1) / static_cast<T>(highs) : T(0);
        static_cast<T*>(plan.range)[at] = low + high;
      }
    }
  }
}

// One row of p for one panel.
template <typename T>
STURDY_ALWAYS_INLINE void push_row(const PushPullPlan& plan, const PackedBand<T>& band, int64_t panel, int64_t row,
                                   T* out) {
  const T* filters = static_cast<const T*>(plan.filters) + panel * plan.taps * plan.panel;
  const T* x = band.x_row(plan, row);
  const auto conv = plan.vectors == 2 ? conv_row<T, 2> : conv_row<T, 1>;
  conv(x, plan.tap_offsets, plan.taps, filters, plan.geometry.out_w, out, plan.panel);
}

// m * A(box) summed over the planes for one row of one panel, [column][channel]: a convolution of 1 x 1.
template <typename T>
static void offset_row(const PushPullPlan& plan, const T* mean_box, int64_t panel, T* out) {
  const T* ranges = static_cast<const T*>(plan.range) + panel * plan.planes * plan.panel;
  const auto conv = plan.vectors == 2 ? conv_row<T, 2> : conv_row<T, 1>;
  conv(mean_box, plan.plane_offsets, plan.planes, ranges, plan.geometry.out_w, out, plan.panel);
}

// out = relu(p) - inhibition * relu(u) + bias for one row of one panel. `offset` is what offset_row made, null where m
// is one number for each channel.
template <typename T>
static void push_pull_row(const PushPullPlan& plan, int64_t panel, const RowRing<T>& push, int64_t row,
                          const T* mean_box, T* sums, T* out, const T* offset = nullptr) {
  if (pools(plan)) {
    sum_window_rows(plan, push, row, sums);
  }
  const int64_t width = plan.panel;
  for (int64_t j = 0; j < plan.panel; j += kLanes<T>) {
    const int64_t channel = panel * plan.panel + j;
    const Vec<T> inhibition = load(static_cast<const T*>(plan.inhibition) + channel);
    const Vec<T> bias = load(static_cast<const T*>(plan.bias) + channel);
    const T* p = push.row(row) + j;
    T* to = out + j;
    const auto finish = [=](int64_t column, Vec<T> u) __attribute__((always_inline)) {
      store(to + column * width, relu(load(p + column * width)) - inhibition * relu(u) + bias);
    };
    if (offset == nullptr) {
      const Vec<T> range = load(static_cast<const T*>(plan.range) + channel);
      for_each_pull(plan, p, sums + j, row, range, mean_box, finish);
    } else {
      const auto offset_at = [=](int64_t column)
                                 __attribute__((always_inline)) { return load(offset + column * width + j); };
      for_each_pull(plan, p, sums + j, row, offset_at, finish);
    }
  }
}

template <typename S, typename T = Accumulate<S>>
static void forward(const PushPullPlan& plan, const PushPullForwardParams& params, int64_t begin, int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  const int64_t most_rows = least(g.out_h, plan.band_rows + 2 * plan.half_h);
  PackedBand<T> band{};
  RowRing<T> push{};
  T* sums = nullptr;
  T* finished = nullptr;
  T* offset = nullptr;  // null as push_pull_row means it
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    band = take_packed_band<T>(plan, arena, most_rows);
    push = take_ring<T>(plan, arena);
    sums = take_window_sums<T>(plan, arena);
    finished = arena.take<T>(push.pitch);
    offset = g.channel_range ? arena.take<T>(push.pitch) : nullptr;
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::task, lay_out(nullptr)));

  for (int64_t task = begin; task < end; task++) {
    const int64_t chunk = task % plan.panel_chunks;
    const int64_t item = task / plan.panel_chunks;
    const int64_t n = item / plan.bands;
    const int64_t first_row = item % plan.bands * plan.band_rows;
    const int64_t last_row = least(g.out_h, first_row + plan.band_rows);
    band.first = most(0, first_row - plan.half_h);
    band.last = least(g.out_h, last_row + plan.half_h);
    int64_t packed_group = -1;
    const int64_t last_panel = plan.panels * (chunk + 1) / plan.panel_chunks;
    for (int64_t panel = plan.panels * chunk / plan.panel_chunks; panel < last_panel; panel++) {
      const int64_t group = panel / plan.panels_per_group;
      if (group != packed_group) {
        pack_input<S>(plan, params.input, n, group, band);
        box_map(plan, band, first_row, last_row);
        packed_group = group;
      }
      int64_t next = first_row;  // the next row to finish
      for (int64_t row = band.first; row < band.last; row++) {
        push_row(plan, band, panel, row, push.row(row));
        for (; next < last_row && least(next + plan.half_h, g.out_h - 1) <= row; next++) {
          if (g.channel_range) {
            offset_row(plan, band.mean_box_row(next), panel, offset);
          }
          push_pull_row(plan, panel, push, next, band.mean_box_row(next), sums, finished, offset);
          store_row<S>(finished, plan.panel, output_row<S>(plan, params.out, n, panel, next));
          if (params.push.data != nullptr) {
            store_row<S>(static_cast<const T*>(push.row(next)), plan.panel,
                         output_row<S>(plan, params.push, n, panel, next));
          }
        }
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
