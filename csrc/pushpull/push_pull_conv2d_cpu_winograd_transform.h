// Into Winograd's domain: the input of a band of tiles and its box map, and the filters. Forward and backward use them
// alike.
#pragma once

#include <cstdint>

#include "common/scratch.h"
#include "common/simd.h"
#include "pushpull/push_pull_conv2d_cpu_rows.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::WinogradAxis;
using cpu::WinogradPlan;
using cpu::WinogradTerm;

// The input of the rows of tiles [first, last) of one group of one image.
struct WinogradBand {
  int64_t first, last;
  float* transformed;  // [plane][tile], plan.plane_pitch apart; zeros from the last tile to the end of its vector
  float* channel_sum;  // [input row][phase][column]: the input summed over channels, from which the box map is made
  float* line;         // one row of the input, where its columns are not neighbours
  float* phases;       // one row between zeros by phases, [phase][column]
  float* columns;      // column terms of one channel, [column term][input row][tile column]
};

// Rows of the input that `tile_rows` rows of tiles see.
STURDY_ALWAYS_INLINE int64_t winograd_input_rows(const WinogradPlan& plan, int64_t tile_rows) {
  return (tile_rows - 1) * 2 * plan.geometry.stride_h + plan.extent_h;
}

STURDY_ALWAYS_INLINE WinogradBand take_winograd_band(const WinogradPlan& plan, Arena& arena) {
  const int64_t rows = winograd_input_rows(plan, plan.band_tile_rows);
  WinogradBand band{};
  band.transformed = arena.take<float>(plan.planes * plan.plane_pitch);
  band.channel_sum = arena.take<float>(rows * plan.row_pitch);
  band.line = arena.take<float>(plan.geometry.in_w);
  band.phases = arena.take<float>(plan.row_pitch + plan.lanes);  // whole vectors are read, and dropped, behind the end
  band.columns = arena.take<float>(plan.horizontal.count * rows * plan.tile_pitch);
  return band;
}

// Elements 0, 2, 4, ... (odd == 0) or 1, 3, 5, ... of a and b.
template <int odd>
STURDY_ALWAYS_INLINE Vec<float> every_second(Vec<float> a, Vec<float> b) {
  constexpr int lanes = kLanes<float>;
  LaneIndex<float>::Native index{};
  STURDY_UNROLL
  for (int i = 0; i < lanes; i++) {
    index[i] = 2 * i + odd;
  }
  return {__builtin_shuffle(a.v, b.v, index)};
}

// Elements [i, i + lanes) of a row of `width` between zeros.
template <typename S>
STURDY_ALWAYS_INLINE Vec<float> load_between_zeros(const S* row, int64_t i, int64_t width) {
  constexpr int lanes = kLanes<float>;
  if (i >= 0 && i + lanes <= width) {
    return load(row + i);
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == sizeof(float)) {
    const int64_t begin = least(most(-i, 0), lanes);
    const int64_t end = least(most(width - i, begin), lanes);
    const uint32_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), row + i)};
  }
#endif
  S buffer[lanes] = {};
  for (int64_t k = most(-i, 0); k < lanes && i + k < width; k++) {
    buffer[k] = row[i + k];
  }
  return load(buffer);
}

// Cuts a row that begins with pad_left zeros into phases, to[phase * pitch + i] = row[i * phases + phase], for i <
// pitch, a multiple of the vector's lanes, and adds that to sum.
template <int phases, typename S>
STURDY_ALWAYS_INLINE void split_phases(const S* row, int64_t pad_left, int64_t width, int64_t pitch, float* to,
                                       float* sum) {
  constexpr int lanes = kLanes<float>;
  for (int64_t i = 0; i < pitch; i += lanes) {
    Vec<float> part[phases];
    STURDY_UNROLL
    for (int k = 0; k < phases; k++) {
      part[k] = load_between_zeros(row, i * phases + k * lanes - pad_left, width);
    }
    // Each step halves the number of vectors that a phase is spread over; phases come out with their bits reversed.
    STURDY_UNROLL
    for (int step = phases / 2; step > 0; step /= 2) {
      Vec<float> next[phases];
      STURDY_UNROLL
      for (int block = 0; block < phases; block += 2 * step) {
        STURDY_UNROLL
        for (int k = 0; k < step; k++) {
          next[block + k] = every_second<0>(part[block + 2 * k], part[block + 2 * k + 1]);
          next[block + step + k] = every_second<1>(part[block + 2 * k], part[block + 2 * k + 1]);
        }
      }
      STURDY_UNROLL
      for (int k = 0; k < phases; k++) {
        part[k] = next[k];
      }
    }
    STURDY_UNROLL
    for (int k = 0; k < phases; k++) {
      int phase = 0;
      STURDY_UNROLL
      for (int bit = 1; bit < phases; bit *= 2) {
        phase = 2 * phase + (k & bit ? 1 : 0);
      }
      const int64_t at = phase * pitch + i;
      store(to + at, part[k]);
      store(sum + at, load(sum + at) + part[k]);
    }
  }
}

template <typename S>
STURDY_ALWAYS_INLINE void split_phases(const WinogradPlan& plan, const S* row, int64_t width, float* to, float* sum) {
  const int64_t phases = plan.phases;
  const int64_t pitch = plan.phase_pitch;
  const int64_t pad_left = plan.geometry.pad_left;
  if (phases == 2) {
    split_phases<2>(row, pad_left, width, pitch, to, sum);
  } else if (phases == 4) {
    split_phases<4>(row, pad_left, width, pitch, to, sum);
  } else {
    for (int64_t phase = 0; phase < phases; phase++) {
      for (int64_t i = 0; i < pitch; i++) {
        const int64_t x = i * phases + phase - pad_left;
        const float value = x >= 0 && x < width ? to_accumulate(row[x]) : 0.0f;
        to[phase * pitch + i] = value;
        sum[phase * pitch + i] += value;
      }
    }
  }
}

// Calls use(a function that combines two vectors) as the term wants it.
template <typename Use>
STURDY_ALWAYS_INLINE void with_combination(const WinogradTerm& term, const Use& use) {
  using V = Vec<float>;
  if (term.second_sign < 0) {
    use([](V a, V b) __attribute__((always_inline)) { return a - b; });
  } else if (term.second_sign > 0) {
    use([](V a, V b) __attribute__((always_inline)) { return a + b; });
  } else if (term.first_sign > 0) {
    use([](V a, V) __attribute__((always_inline)) { return a; });
  } else {
    use([](V a, V) __attribute__((always_inline)) { return zero<float>() - a; });
  }
}

// Reads the band's part of channels [group * in_group, ...) of image n.
template <typename S>
__attribute__((noinline)) static void transform_input(const WinogradPlan& plan, const View4& input, int64_t n,
                                                      int64_t group, WinogradBand& band) {
  constexpr int lanes = kLanes<float>;
  const PushPullGeometry& g = plan.geometry;
  const int64_t tile_rows = band.last - band.first;
  const int64_t rows = winograd_input_rows(plan, tile_rows);
  const int64_t top = band.first * 2 * g.stride_h - g.pad_top;
  const int64_t pitch = plan.tile_pitch;
  fill_zero(band.channel_sum, rows * plan.row_pitch);

  for (int64_t c = 0; c < plan.in_group; c++) {
    const S* image =
        static_cast<const S*>(input.data) + n * input.stride[0] + (group * plan.in_group + c) * input.stride[1];
    for (int64_t row = 0; row < rows; row++) {
      float* columns = band.columns + row * pitch;
      const int64_t y = top + row;
      if (y < 0 || y >= g.in_h) {
        for (int64_t h = 0; h < plan.horizontal.count; h++) {
          fill_zero(columns + h * rows * pitch, pitch);
        }
        continue;
      }
      const S* from = image + y * input.stride[2];
      float* sum = band.channel_sum + row * plan.row_pitch;
      if (input.stride[3] == 1) {
        if (c + 1 < plan.in_group) {  // rows of a channel are short and far apart
          for (int64_t i = 0; i < g.in_w; i += 64 / static_cast<int64_t>(sizeof(S))) {
            __builtin_prefetch(from + input.stride[1] + i);
          }
        }
        split_phases(plan, from, g.in_w, band.phases, sum);
      } else {
        gather_row(from, input.stride[3], band.line, g.in_w);
        split_phases(plan, band.line, g.in_w, band.phases, sum);
      }
      for (int64_t h = 0; h < plan.horizontal.count; h++) {
        const WinogradTerm& term = plan.horizontal.terms[h];
        const float* a = band.phases + plan.position_offsets[term.first];
        const float* b = band.phases + plan.position_offsets[term.second];
        float* to = columns + h * rows * pitch;
        with_combination(term, [=](const auto& combine) __attribute__((always_inline)) {
          for (int64_t i = 0; i < pitch; i += lanes) {
            store(to + i, combine(load(a + i), load(b + i)));
          }
        });
      }
    }

    // Whole vectors are stored; what is too much of a row of tiles is overwritten by the next.
    for (int64_t h = 0; h < plan.horizontal.count; h++) {
      for (int64_t v = 0; v < plan.vertical.count; v++) {
        const WinogradTerm& term = plan.vertical.terms[v];
        const float* columns = band.columns + h * rows * pitch;
        float* plane = band.transformed + (plan.term_planes[v * plan.horizontal.count + h] + c) * plan.plane_pitch;
        with_combination(term, [&](const auto& combine) __attribute__((always_inline)) {
          const float* a = columns + term.first * pitch;
          const float* b = columns + term.second * pitch;
          float* to = plane;
          for (int64_t tile_row = 0; tile_row < tile_rows; tile_row++) {
            for (int64_t i = 0; i < pitch; i += lanes) {
              store(to + i, combine(load(a + i), load(b + i)));
            }
            to += plan.tiles_w;
            a += 2 * g.stride_h * pitch;
            b += 2 * g.stride_h * pitch;
          }
          store(to, zero<float>());
        });
      }
    }
  }
}

// The convolution of the band's input with a kernel of ones. Even rows of the output go to rows[0], odd ones to
// rows[1], row y of the band to (y / 2) * 2 * tiles_w, and on to the end of a vector. A last row or column behind the
// map is computed as well. kernel_sum has room for row_pitch elements and a vector.
__attribute__((noinline)) static void box_rows(const WinogradPlan& plan, const WinogradBand& band, float* const rows[2],
                                               float* kernel_sum) {
  constexpr int lanes = kLanes<float>;
  const PushPullGeometry& g = plan.geometry;
  for (int64_t row = 0; row < 2 * (band.last - band.first); row++) {
    const float* sums = band.channel_sum + row * g.stride_h * plan.row_pitch;
    for (int64_t i = 0; i < plan.row_pitch; i += lanes) {
      Vec<float> sum = zero<float>();
      for (int64_t k = 0; k < g.kernel_h; k++) {
        sum += load(sums + k * plan.row_pitch + i);
      }
      store(kernel_sum + i, sum);
    }
    float* to = rows[row % 2] + row / 2 * 2 * plan.tiles_w;
    for (int64_t i = 0; i < plan.tiles_w; i += lanes) {
      Vec<float> column[2];
      STURDY_UNROLL
      for (int odd = 0; odd < 2; odd++) {
        column[odd] = zero<float>();
        for (int64_t k = odd * g.stride_w; k < odd * g.stride_w + g.kernel_w; k++) {
          column[odd] += load(kernel_sum + plan.position_offsets[k] + i);
        }
      }
      store(to + 2 * i, interleave<float, 0>(column[0], column[1]));
      store(to + 2 * i + lanes, interleave<float, 1>(column[0], column[1]));
    }
  }
}

// ---- filters ----

// Filters of the blocks [begin, end) to [plane][filter], with their extremes. A NaN in a filter makes both a NaN.
template <typename S, int block>
static void pack_winograd_filters(const WinogradPlan& plan, const View4& weight, int64_t begin, int64_t end) {
  const PushPullGeometry& g = plan.geometry;
  const int64_t taps = g.kernel_h * g.kernel_w;
  const int64_t terms_w = plan.horizontal.count;
  float* taps_of_channel = nullptr;  // [kernel row][kernel column][filter]
  float* rows = nullptr;             // [row term][kernel column][filter]
  const auto lay_out = [&](void* memory) {
    Arena arena(memory);
    taps_of_channel = arena.take<float>(taps * block);
    rows = arena.take<float>(plan.vertical.count * g.kernel_w * block);
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::task, lay_out(nullptr)));

  for (int64_t at = begin; at < end; at++) {
    const int64_t group = at / plan.blocks_per_group;
    const int64_t first = at % plan.blocks_per_group * block;
    float* const filters = plan.filters + at * plan.planes * block;
    float low[block];
    float high[block];
    int32_t lows[block] = {};
    int32_t highs[block] = {};
    for (int64_t i = 0; i < block; i++) {
      low[i] = __builtin_inff();
      high[i] = -__builtin_inff();
    }
    for (int64_t c = 0; c < plan.in_group; c++) {
      for (int64_t i = 0; i < block; i++) {
        const bool used = first + i < plan.out_group;
        const S* filter = static_cast<const S*>(weight.data) +
                          (used ? (group * plan.out_group + first + i) * weight.stride[0] : 0) + c * weight.stride[1];
        float* to = taps_of_channel + i;
        for (int64_t y = 0; y < g.kernel_h; y++) {
          for (int64_t x = 0; x < g.kernel_w; x++, to += block) {
            *to = used ? to_accumulate(filter[y * weight.stride[2] + x * weight.stride[3]]) : 0.0f;
          }
        }
      }
      for (int64_t tap = 0; tap < taps; tap++) {  // the first NaN stays
        const float* w = taps_of_channel + tap * block;
        for (int64_t i = 0; i < block; i++) {
          const bool lower = !(w[i] >= low[i]) && low[i] == low[i];
          low[i] = lower ? w[i] : low[i];
          lows[i] = (lower ? 0 : lows[i]) + (w[i] == low[i]);
          const bool higher = !(w[i] <= high[i]) && high[i] == high[i];
          high[i] = higher ? w[i] : high[i];
          highs[i] = (higher ? 0 : highs[i]) + (w[i] == high[i]);
        }
      }
      // Rows, then columns; coefficients that are 0 may stand beyond the kernel.
      for (int64_t v = 0; v < plan.vertical.count; v++) {
        const WinogradTerm& term = plan.vertical.terms[v];
        for (int64_t x = 0; x < g.kernel_w; x++) {
          float sum[block] = {};
          for (int64_t k = 0; k < 3; k++) {
            if (term.weight[k] != 0) {
              const float* from = taps_of_channel + ((term.tap + k * g.stride_h) * g.kernel_w + x) * block;
              for (int64_t i = 0; i < block; i++) {
                sum[i] += term.weight[k] * from[i];
              }
            }
          }
          std::memcpy(rows + (v * g.kernel_w + x) * block, sum, sizeof sum);
        }
        for (int64_t h = 0; h < terms_w; h++) {
          const WinogradTerm& column = plan.horizontal.terms[h];
          float sum[block] = {};
          for (int64_t k = 0; k < 3; k++) {
            if (column.weight[k] != 0) {
              const float* from = rows + (v * g.kernel_w + column.tap + k * g.stride_w) * block;
              for (int64_t i = 0; i < block; i++) {
                sum[i] += column.weight[k] * from[i];
              }
            }
          }
          std::memcpy(filters + (plan.term_planes[v * terms_w + h] + c) * block, sum, sizeof sum);
        }
      }
    }
    for (int64_t i = 0; i < block; i++) {
      const int64_t filter = at * block + i;
      plan.lowest[filter] = low[i];
      plan.highest[filter] = high[i];
      plan.lowest_share[filter] = lows[i] > 0 ? 1.0f / static_cast<float>(lows[i]) : 0.0f;
      plan.highest_share[filter] = highs[i] > 0 ? 1.0f / static_cast<float>(highs[i]) : 0.0f;
      plan.range[filter] = low[i] + high[i];
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
