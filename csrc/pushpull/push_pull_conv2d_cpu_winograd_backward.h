// Winograd's form of backward: gp of a band for some panels of filters, then the sums over its tiles.
#pragma once

#include "pushpull/push_pull_conv2d_cpu_winograd_backward_plan.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_backward_rows.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_backward_tiles.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_forward.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::GradInputPlan;
using cpu::WinogradBackwardPlan;

// Where one task keeps its rows.
struct WinogradBackwardRows {
  WinogradBand tiles;  // the input of the tiles that are summed at a time
  WinogradBand sums;   // the input of the item summed over channels, for the box map; nothing else of it is used
  float* box[2];       // even and odd rows of the box map
  float* kernel_sum;
  float* box_line;  // one row of column sums between zeros
  float* mean_box;
  GradientBand band;
  float* grad_out;  // rows of one filter, where a tensor's own memory will not do
  float* push;
  float* gradient;  // gp, [held panel][filter][row][column]
  int64_t gradient_pitch;
  float* constant;  // m * gq, summed over the filters of a panel
  float* z;         // [row pattern][tile][left or right][filter], see transform_gradient
  int64_t z_pitch;  // of a row pattern

  // Where p is computed again.
  float* products;  // see convolve_band
  float* computed;  // p of a block of filters on the tiles at hand, even and odd rows apart
  int64_t half_pitch;
  float* held_push;  // p, [held panel][filter][row from push_first][column]
  int64_t push_pitch;
};

STURDY_ALWAYS_INLINE WinogradBackwardRows take_backward_rows(const WinogradBackwardPlan& plan, bool compute_push,
                                                             Arena& arena) {
  constexpr int lanes = kLanes<float>;
  const WinogradPlan& w = plan.winograd;
  const int64_t width = w.geometry.out_w;
  const int64_t pixels = plan.band_rows * width;
  const int64_t pull_rows = plan.band_rows + 2 * w.half_h;
  const int64_t push_rows = plan.band_rows + 4 * w.half_h;
  WinogradBackwardRows rows{};
  rows.tiles = take_winograd_band(w, arena);

  const int64_t sum_tile_rows = push_rows / 2 + 2;
  rows.sums.channel_sum = arena.take<float>(winograd_input_rows(w, sum_tile_rows) * w.row_pitch);
  rows.sums.line = arena.take<float>(w.geometry.in_w);
  rows.sums.phases = arena.take<float>(w.row_pitch + w.lanes);
  for (float*& box : rows.box) {
    box = arena.take<float>(sum_tile_rows * 2 * w.tiles_w + 2 * lanes);
  }
  rows.kernel_sum = arena.take<float>(w.row_pitch + lanes);
  rows.box_line = arena.take<float>(round_up_to_lanes<float>(width) + 2 * w.half_w + lanes);
  rows.mean_box = arena.take<float>(pull_rows * width + lanes);

  GradientBand& band = rows.band;
  band.mean_box = rows.mean_box;
  if (w.half_h > 0 || w.half_w > 0) {
    // The zeros behind a row are those before the next.
    band.left = round_up_to_lanes<float>(w.half_w);
    band.pitch = band.left + round_up_to_lanes<float>(width);
    band.push = arena.take<float>(push_rows * band.pitch + band.left);
    band.pull = arena.take<float>(pull_rows * band.pitch + band.left);
    band.window = arena.take<float>(push_rows * band.pitch + band.left);
  }

  rows.grad_out = arena.take<float>(pull_rows * width);
  rows.push = arena.take<float>(push_rows * width);
  rows.gradient_pitch = round_up_to_lanes<float>(pixels) + lanes;  // off the powers of two
  rows.gradient = arena.take<float>(plan.held_panels * plan.panel * rows.gradient_pitch);
  rows.constant = arena.take<float>(pixels);
  rows.z_pitch = w.band_tile_rows * w.tiles_w * 2 * plan.panel + lanes;
  rows.z = arena.take<float>(4 * rows.z_pitch);

  if (compute_push) {
    rows.products = arena.take<float>(cpu::kWinogradPatterns * kGemmRows * kWinogradChunk);
    rows.half_pitch = 2 * round_up_to_lanes<float>(w.band_tile_rows * w.tiles_w) + 2 * lanes;
    rows.computed = arena.take<float>(2 * kGemmRows * rows.half_pitch);
    rows.push_pitch = push_rows * width;
    rows.held_push = arena.take<float>(plan.held_panels * plan.panel * rows.push_pitch);
  }
  return rows;
}

// ---- the box map ----

// The input of the rows of tiles [first, last), summed over channels.
template <typename S>
static void sum_input(const WinogradPlan& plan, const View4& input, int64_t n, int64_t group, WinogradBand& sums) {
  constexpr int lanes = kLanes<float>;
  const PushPullGeometry& g = plan.geometry;
  const int64_t rows = winograd_input_rows(plan, sums.last - sums.first);
  const int64_t top = sums.first * 2 * g.stride_h - g.pad_top;
  const int64_t count = g.in_w;
  float* line = sums.line;
  const S* image = static_cast<const S*>(input.data) + n * input.stride[0] + group * plan.in_group * input.stride[1];
  for (int64_t row = 0; row < rows; row++) {
    const int64_t y = top + row;
    float* to = sums.channel_sum + row * plan.row_pitch;
    fill_zero(to, plan.row_pitch);
    if (y < 0 || y >= g.in_h) {
      continue;
    }
    const S* from = image + y * input.stride[2];
    fill_zero(line, count);
    for (int64_t c = 0; c < plan.in_group; c++) {
      if (input.stride[3] == 1) {
        int64_t i = 0;
        for (; i + lanes <= count; i += lanes) {
          store(line + i, load(line + i) + load(from + i));
        }
        if (i < count) {
          store_partial(line + i, load_partial(line + i, count - i) + load_partial(from + i, count - i), count - i);
        }
      } else {
        for (int64_t i = 0; i < count; i++) {
          line[i] += to_accumulate(from[i * input.stride[3]]);
        }
      }
      from += input.stride[1];
    }
    split_phases(plan, line, count, sums.phases, to);
  }
}

// The pooled box map of rows [pull_first, pull_last).
template <typename S>
static void mean_box_rows(const WinogradPlan& plan, const View4& input, int64_t n, int64_t group,
                          WinogradBackwardRows& rows) {
  constexpr int lanes = kLanes<float>;
  const PushPullGeometry& g = plan.geometry;
  const GradientBand& band = rows.band;
  rows.sums.first = band.push_first / 2;
  rows.sums.last = (band.push_last + 1) / 2;
  sum_input<S>(plan, input, n, group, rows.sums);
  fill_zero(rows.kernel_sum + plan.row_pitch, lanes);
  box_rows(plan, rows.sums, rows.box, rows.kernel_sum);

  float* line = rows.box_line;
  fill_zero(line, plan.half_w);
  for (int64_t row = band.pull_first; row < band.pull_last; row++) {
    const int64_t top = most(0, row - plan.half_h);
    const int64_t bottom = least(g.out_h - 1, row + plan.half_h);
    for (int64_t column = 0; column < g.out_w; column += lanes) {
      Vec<float> sum = zero<float>();
      for (int64_t r = top; r <= bottom; r++) {
        const int64_t at = r - 2 * rows.sums.first;
        sum += load(rows.box[at % 2] + at / 2 * 2 * plan.tiles_w + column);
      }
      store(line + plan.half_w + column, sum);
    }
    fill_zero(line + plan.half_w + g.out_w, plan.half_w + lanes);
    float* mean = rows.mean_box + (row - band.pull_first) * g.out_w;
    for (int64_t column = 0; column < g.out_w; column += lanes) {
      Vec<float> sum = zero<float>();
      for (int64_t k = 0; k <= 2 * plan.half_w; k++) {
        sum += load(line + column + k);
      }
      store(mean + column, sum * broadcast(plan.row_weights[row]) * load(plan.column_weights + column));
    }
  }
}

// ---- sums over tiles ----

// All sums of one panel.
template <int vectors>
static void panel_sums(const WinogradPlan& plan, const WinogradBackwardRows& rows, int64_t tiles, float* sums) {
  using Sums = TileSums<vectors, std::make_integer_sequence<int, kTileTaps>>;
  constexpr int64_t panel = vectors * kLanes<float>;
  for (int pattern = 0; pattern < cpu::kWinogradPatterns; pattern++) {
    const int64_t begin = plan.plane_begin[pattern];
    const int64_t planes = plan.plane_begin[pattern + 1] - begin;
    const int64_t parts = (planes + kTileTaps - 1) / kTileTaps;
    const float* z = rows.z + pattern / 4 * rows.z_pitch + (pattern % 4 == 3 ? panel : 0);
    for (int64_t i = 0; i < parts; i++) {  // as even as possible
      const int64_t first = begin + planes * i / parts;
      const int64_t last = begin + planes * (i + 1) / parts;
      Sums::of_pattern[pattern % 4][last - first - 1](rows.tiles.transformed + first * plan.plane_pitch,
                                                      plan.plane_pitch, z, tiles, sums + first * panel);
    }
  }
}

// Adds the rows [first, last) of gp of the held panels [begin, end) to the gradients of their transformed filters.
template <typename S>
static void sum_tiles(const WinogradBackwardPlan& plan, const PushPullBackwardParams& params,
                      WinogradBackwardRows& rows, int64_t n, int64_t begin, int64_t end, float* piece) {
  const WinogradPlan& w = plan.winograd;
  const int64_t width = w.geometry.out_w;
  const auto transform = plan.vectors == 2 ? transform_gradient<2> : transform_gradient<1>;
  const auto add = plan.vectors == 2 ? panel_sums<2> : panel_sums<1>;
  const int64_t last = (rows.band.last + 1) / 2;
  for (int64_t tile_row = rows.band.first / 2; tile_row < last; tile_row += w.band_tile_rows) {
    rows.tiles.first = tile_row;
    rows.tiles.last = least(last, tile_row + w.band_tile_rows);
    const int64_t tiles = (rows.tiles.last - tile_row) * w.tiles_w;
    transform_input<S>(w, params.input, n, begin / plan.panels_per_group, rows.tiles);
    for (int64_t panel = begin; panel < end; panel++) {
      const float* gradient = rows.gradient + (panel - begin) * plan.panel * rows.gradient_pitch;
      for (int64_t i = tile_row; i < rows.tiles.last; i++) {
        transform(gradient + (2 * i - rows.band.first) * width, rows.gradient_pitch, width, 2 * i + 1 < rows.band.last,
                  rows.z + (i - tile_row) * w.tiles_w * 2 * plan.panel, rows.z_pitch);
      }
      add(w, rows, tiles, piece + panel * plan.panel_size);
    }
  }
}

// ---- items ----

// Computes p of the panels [begin, end) again.
template <typename S>
static void compute_push(const WinogradBackwardPlan& plan, const PushPullBackwardParams& params,
                         WinogradBackwardRows& rows, int64_t n, int64_t begin, int64_t end) {
  const WinogradPlan& w = plan.winograd;
  const GradientBand& band = rows.band;
  const int64_t width = w.geometry.out_w;
  const int64_t group = begin / plan.panels_per_group;
  const int64_t first_filter = begin % plan.panels_per_group * plan.panel;
  const int64_t last_filter = least(first_filter + (end - begin) * plan.panel, w.out_group);
  const int64_t last = (band.push_last + 1) / 2;
  for (int64_t tile_row = band.push_first / 2; tile_row < last; tile_row += w.band_tile_rows) {
    rows.tiles.first = tile_row;
    rows.tiles.last = least(last, tile_row + w.band_tile_rows);
    transform_input<S>(w, params.input, n, group, rows.tiles);
    const int64_t first_row = most(band.push_first, 2 * tile_row);
    const int64_t last_row = least(band.push_last, 2 * rows.tiles.last);
    for (int64_t filter = first_filter; filter < last_filter; filter += kGemmRows) {
      const int64_t block = group * w.blocks_per_group + filter / kGemmRows;
      convolve_band(w, rows.tiles, block, rows.products, rows.computed, rows.half_pitch, OutputLines{});
      for (int64_t i = 0; i < least(kGemmRows, last_filter - filter); i++) {
        const float* from = rows.computed + 2 * i * rows.half_pitch;
        float* to = rows.held_push + (filter + i - first_filter) * rows.push_pitch;
        for (int64_t row = first_row; row < last_row; row++) {
          convert_row(from + row % 2 * rows.half_pitch + (row / 2 - tile_row) * 2 * w.tiles_w,
                      to + (row - band.push_first) * width, width);
        }
      }
    }
  }
}

// Puts gp of one plane where grad_input will read it.
static inline void keep_plane(const WinogradBackwardPlan& plan, const GradInputPlan& grad_input, int64_t n,
                              int64_t group, int64_t plane, const GradientBand& band, const float* from) {
  const int64_t width = plan.winograd.geometry.out_w;
  float* to = static_cast<float*>(grad_input.gradient) +
              ((n - grad_input.first) * plan.winograd.geometry.groups + group) * grad_input.image_pitch +
              (grad_input.margin_top + band.first) * grad_input.row_pitch + plane * grad_input.pitch +
              grad_input.margin_left;
  for (int64_t row = band.first; row < band.last; row++) {
    convert_row(from, to, width);
    from += width;
    to += grad_input.row_pitch;
  }
}

// gp of the filters of one panel, held in the place `held`, and their sums over pixels.
template <typename S>
static void panel_gradient(const WinogradBackwardPlan& plan, const PushPullBackwardParams& params,
                           const GradInputPlan* grad_input, WinogradBackwardRows& rows, int64_t n, int64_t panel,
                           int64_t held, float* sums) {
  const WinogradPlan& w = plan.winograd;
  const GradientBand& band = rows.band;
  const bool bias_only =
      params.grad_weight.data == nullptr && grad_input == nullptr && params.grad_inhibition.data == nullptr;
  const bool want_push = params.grad_weight.data != nullptr || grad_input != nullptr;
  const int64_t group = panel / plan.panels_per_group;
  const int64_t first = panel % plan.panels_per_group * plan.panel;
  const int64_t filters = least(plan.panel, w.out_group - first);
  float* gradient = rows.gradient + held * plan.panel * rows.gradient_pitch;
  if (grad_input != nullptr) {
    fill_zero(rows.constant, (band.last - band.first) * w.geometry.out_w);
  }
  for (int64_t i = 0; i < filters; i++) {
    const int64_t channel = group * w.out_group + first + i;
    const int64_t at = group * w.blocks_per_group * w.block + first + i;
    FilterGradient filter{};
    filter.range = w.range[at];
    filter.inhibition = w.inhibition[at];
    filter.grad_out = plane_rows<S>(w, params.grad_out, n, channel, band.pull_first, band.pull_last, rows.grad_out);
    filter.sums = sums + i * 3 * kLanes<float>;
    if (bias_only) {
      sum_gradient(w, band, filter);
      continue;
    }
    filter.push = params.push.data != nullptr
                      ? plane_rows<S>(w, params.push, n, channel, band.push_first, band.push_last, rows.push)
                      : rows.held_push + (held * plan.panel + i) * rows.push_pitch;
    const auto step = [](const float* rows, const float* buffer, const View4& view) {
      return rows == buffer || view.data == nullptr ? 0 : view.stride[1];
    };
    filter.grad_out_step = step(filter.grad_out, rows.grad_out, params.grad_out);
    filter.push_step = step(filter.push, rows.push, params.push);
    filter.out = want_push ? gradient + i * rows.gradient_pitch : nullptr;
    filter.constant = grad_input != nullptr ? rows.constant : nullptr;
    filter_gradient(w, band, filter);
    if (grad_input != nullptr) {
      keep_plane(plan, *grad_input, n, group, first + i, band, filter.out);
    }
  }
  if (grad_input != nullptr) {
    keep_plane(plan, *grad_input, n, group, w.out_group + panel % plan.panels_per_group, band, rows.constant);
  }
  if (want_push) {
    fill_zero(gradient + filters * rows.gradient_pitch, (plan.panel - filters) * rows.gradient_pitch);
  }
}

// Sets the rows of an item.
static inline void set_rows(const WinogradBackwardPlan& plan, int64_t item, bool want_push, GradientBand& band) {
  const WinogradPlan& w = plan.winograd;
  const int64_t halo = want_push ? w.half_h : 0;
  const int64_t height = w.geometry.out_h;
  band.first = item % plan.bands * plan.band_rows;
  band.last = least(height, band.first + plan.band_rows);
  band.pull_first = most(0, band.first - halo);
  band.pull_last = least(height, band.last + halo);
  band.push_first = most(0, band.pull_first - w.half_h);
  band.push_last = least(height, band.pull_last + w.half_h);
}

template <typename S>
static void winograd_backward(const WinogradBackwardPlan& plan, const PushPullBackwardParams& params,
                              const GradInputPlan* grad_input, int64_t begin, int64_t end) {
  const WinogradPlan& w = plan.winograd;
  const bool want_filter = params.grad_weight.data != nullptr;
  const bool want_push = want_filter || grad_input != nullptr;
  const bool bias_only = !want_push && params.grad_inhibition.data == nullptr;
  WinogradBackwardRows rows{};
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    rows = take_backward_rows(plan, !bias_only && params.push.data == nullptr, arena);
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::task, lay_out(nullptr)));
  GradientBand& band = rows.band;

  for (int64_t task = begin; task < end; task++) {
    const int64_t chunk = task % plan.panel_chunks;
    const int64_t piece = task / plan.panel_chunks;
    const int64_t first_panel = plan.panels * chunk / plan.panel_chunks;
    const int64_t last_panel = plan.panels * (chunk + 1) / plan.panel_chunks;
    float* piece_sums = plan.partials + piece * plan.panels * plan.panel_size;
    if (plan.first == 0) {
      fill_zero(piece_sums + first_panel * plan.panel_size, (last_panel - first_panel) * plan.panel_size);
    }
    const int64_t before = (plan.first - piece + plan.pieces - 1) / plan.pieces;  // rounds done, if positive
    for (int64_t item = piece + most(0, before) * plan.pieces; item < plan.last; item += plan.pieces) {
      const int64_t n = item / plan.bands;
      set_rows(plan, item, want_push, band);
      if (band.pitch > 0) {  // what the filters do not write stays zero: rows outside of the map, and margins
        fill_zero(band.push, (plan.band_rows + 4 * w.half_h) * band.pitch + band.left);
        fill_zero(band.pull, (plan.band_rows + 2 * w.half_h) * band.pitch + band.left);
      }
      int64_t box_group = -1;
      for (int64_t panel = first_panel; panel < last_panel;) {
        const int64_t group = panel / plan.panels_per_group;
        if (group != box_group && !bias_only) {
          mean_box_rows<S>(w, params.input, n, group, rows);
          box_group = group;
        }
        const int64_t next = least(least(last_panel, panel + plan.held_panels), (group + 1) * plan.panels_per_group);
        if (!bias_only && params.push.data == nullptr) {
          compute_push<S>(plan, params, rows, n, panel, next);
        }
        for (int64_t i = panel; i < next; i++) {
          panel_gradient<S>(plan, params, grad_input, rows, n, i, i - panel,
                            piece_sums + i * plan.panel_size + w.planes * plan.panel);
        }
        if (want_filter) {
          sum_tiles<S>(plan, params, rows, n, panel, next, piece_sums);
        }
        panel = next;
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- the end ----

// Adds to taps[kernel row][kernel column][filter] what one channel's transformed filters contribute.
template <int vectors>
static void untransform_filters(const WinogradPlan& plan, const float* planes, float* taps) {
  constexpr int lanes = kLanes<float>;
  constexpr int panel = lanes * vectors;
  const PushPullGeometry& g = plan.geometry;
  for (int64_t v = 0; v < plan.vertical.count; v++) {
    const WinogradTerm& row = plan.vertical.terms[v];
    for (int64_t h = 0; h < plan.horizontal.count; h++) {
      const WinogradTerm& column = plan.horizontal.terms[h];
      const float* from = planes + plan.term_planes[v * plan.horizontal.count + h] * panel;
      const float sign = (row.pattern == 3) == (column.pattern == 3) ? 1.0f : -1.0f;  // of Z
      for (int64_t y = 0; y < 3; y++) {
        for (int64_t x = 0; x < 3; x++) {
          const float weight = sign * row.weight[y] * column.weight[x];
          if (weight == 0) {
            continue;
          }
          float* to = taps + ((row.tap + y * g.stride_h) * g.kernel_w + column.tap + x * g.stride_w) * panel;
          STURDY_UNROLL
          for (int j = 0; j < panel; j += lanes) {
            store(to + j, load(to + j) + broadcast(weight) * load(from + j));
          }
        }
      }
    }
  }
}

// Adds the pieces up, in order, and finishes the gradients of the filters and channels of the panels [begin, end).
template <typename S>
static void winograd_reduce(const WinogradBackwardPlan& plan, const PushPullBackwardParams& params, int64_t begin,
                            int64_t end) {
  constexpr int lanes = kLanes<float>;
  const WinogradPlan& w = plan.winograd;
  const PushPullGeometry& g = w.geometry;
  const int64_t kernel = g.kernel_h * g.kernel_w;
  const int64_t skipped = params.grad_weight.data != nullptr ? 0 : w.planes * plan.panel;
  float* total = nullptr;
  float* taps = nullptr;
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    total = arena.take<float>(plan.panel_size);
    taps = arena.take<float>(kernel * plan.panel);
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::task, lay_out(nullptr)));
  const auto untransform = plan.vectors == 2 ? untransform_filters<2> : untransform_filters<1>;

  for (int64_t panel = begin; panel < end; panel++) {
    fill_zero(total, plan.panel_size);
    for (int64_t piece = 0; piece < plan.pieces; piece++) {
      const float* part = plan.partials + (piece * plan.panels + panel) * plan.panel_size;
      for (int64_t i = skipped; i < plan.panel_size; i += lanes) {
        store(total + i, load(total + i) + load(part + i));
      }
    }
    float range[2 * lanes];
    const float* sums = total + w.planes * plan.panel;
    for (int64_t i = 0; i < plan.panel; i++) {
      float of_pixels[3] = {};  // bias, inhibition, range
      for (float& sum : of_pixels) {
        for (int lane = 0; lane < lanes; lane++) {
          sum += *sums++;
        }
      }
      plan.bias_gradient[panel * plan.panel + i] = of_pixels[0];
      plan.inhibition_gradient[panel * plan.panel + i] = of_pixels[1];
      range[i] = of_pixels[2];
    }
    if (params.grad_weight.data == nullptr) {
      continue;
    }
    const int64_t group = panel / plan.panels_per_group;
    const int64_t first = panel % plan.panels_per_group * plan.panel;
    const int64_t filters = least(plan.panel, w.out_group - first);
    for (int64_t c = 0; c < w.in_group; c++) {
      fill_zero(taps, kernel * plan.panel);
      untransform(w, total + c * plan.panel, taps);
      for (int64_t i = 0; i < filters; i++) {
        const int64_t at = group * w.blocks_per_group * w.block + first + i;
        const int64_t channel = group * w.out_group + first + i;
        const float to_low = range[i] * w.lowest_share[at];
        const float to_high = range[i] * w.highest_share[at];
        const int64_t* from_stride = params.weight.stride;
        const int64_t* to_stride = params.grad_weight.stride;
        const S* from = static_cast<const S*>(params.weight.data) + channel * from_stride[0] + c * from_stride[1];
        S* to = static_cast<S*>(params.grad_weight.data) + channel * to_stride[0] + c * to_stride[1];
        for (int64_t y = 0; y < g.kernel_h; y++) {
          for (int64_t x = 0; x < g.kernel_w; x++) {
            const float value = to_accumulate(from[y * from_stride[2] + x * from_stride[3]]);
            const float sum = taps[(y * g.kernel_w + x) * plan.panel + i] + (value == w.lowest[at] ? to_low : 0.0f) +
                              (value == w.highest[at] ? to_high : 0.0f);
            assign(to[y * to_stride[2] + x * to_stride[3]], sum);
          }
        }
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
