// Rows of a map as they come out of Winograd's tiles, and pooling along them.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "pushpull/push_pull_conv2d_cpu_rows.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::WinogradPlan;

STURDY_ALWAYS_INLINE bool pools(const WinogradPlan& plan) { return plan.half_h > 0 || plan.half_w > 0; }

// ---- rows of a map ----

// Some rows of one map: those of the band at hand, and those before it that pooling still reads. Even and odd rows
// stand apart, as they come out of the tiles. Rows outside the map are zeros.
struct MapRows {
  const float* band[2];   // even and odd rows
  const float* history;   // [tile row % rows][2][column]
  const float* zeros;     // a row
  int64_t first;          // tile row of the band
  int64_t pitch;          // of the band's rows: 2 * tiles_w
  int64_t history_rows;   // tile rows
  int64_t history_pitch;  // of one row
  int64_t height;

  STURDY_ALWAYS_INLINE const float* row(int64_t y) const {
    if (y < 0 || y >= height) {
      return zeros;
    }
    const int64_t tile = y / 2;
    if (tile >= first) {
      return band[y % 2] + (tile - first) * pitch;
    }
    return history + (tile % history_rows * 2 + y % 2) * history_pitch;
  }
};

// Keeps the last rows of the band for the next.
__attribute__((noinline)) static void keep_rows(const WinogradPlan& plan, const MapRows& rows, int64_t last,
                                                float* history) {
  for (int64_t tile = most(rows.first, last - rows.history_rows); tile < last; tile++) {
    for (int64_t odd = 0; odd < 2; odd++) {
      const float* from = rows.band[odd] + (tile - rows.first) * rows.pitch;
      float* to = history + (tile % rows.history_rows * 2 + odd) * rows.history_pitch;
      for (int64_t i = 0; i < plan.geometry.out_w; i += kLanes<float>) {
        store(to + i, load(from + i));
      }
    }
  }
}

// ---- pooling ----

// The sums over the rows of the windows of rows 2 * tile and 2 * tile + 1, between zeros for half_w columns on either
// side. The rows that both windows have are added up once.
__attribute__((noinline)) static void sum_window_rows(const WinogradPlan& plan, const MapRows& rows, int64_t tile,
                                                      float* const lines[2]) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  const int64_t half = plan.half_h;
  const float* const above = rows.row(2 * tile - half);
  const float* const below = rows.row(2 * tile + 1 + half);
  float* const even = lines[0] + plan.half_w;
  float* const odd = lines[1] + plan.half_w;
  const int64_t top = most(0, 2 * tile + 1 - half);
  const int64_t bottom = least(plan.geometry.out_h - 1, 2 * tile + half);
  for (int64_t i = 0; i < width; i += lanes) {
    Vec<float> sum = zero<float>();
    for (int64_t y = top; y <= bottom; y++) {
      sum += load(rows.row(y) + i);
    }
    store(even + i, load(above + i) + sum);
    store(odd + i, sum + load(below + i));
  }
  for (int k = 0; k < 2; k++) {
    fill_zero(lines[k], plan.half_w);
    fill_zero(lines[k] + plan.half_w + width, plan.half_w + lanes);
  }
}

// The elements of a and b that begin `shift` behind the first of a.
template <int shift>
STURDY_ALWAYS_INLINE Vec<float> shifted(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return {_mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(b.v), _mm512_castps_si512(a.v), shift))};
#elif defined(__AVX2__)
  const __m256i low = _mm256_castps_si256(a.v);
  const __m256i high = _mm256_castps_si256(b.v);
  const __m256i middle = _mm256_permute2x128_si256(low, high, 0x21);
  return {_mm256_castsi256_ps(shift < 4 ? _mm256_alignr_epi8(middle, low, 4 * (shift % 4))
                                        : _mm256_alignr_epi8(high, middle, 4 * (shift % 4)))};
#else
  LaneIndex<float>::Native index{};
  STURDY_UNROLL
  for (int i = 0; i < kLanes<float>; i++) {
    index[i] = i + shift;
  }
  return {__builtin_shuffle(a.v, b.v, index)};
#endif
}

// The sums over windows of 2 * half_w + 1 columns around those of `middle`, between its neighbours.
template <int half_w>
STURDY_ALWAYS_INLINE Vec<float> sum_columns(Vec<float> left, Vec<float> middle, Vec<float> right) {
  constexpr int lanes = kLanes<float>;
  if constexpr (half_w == 0) {
    return middle;
  } else {
    Vec<float> sum = shifted<lanes - 1>(left, middle) + shifted<1>(middle, right);
    if constexpr (half_w == 2) {
      sum += shifted<lanes - 2>(left, middle) + shifted<2>(middle, right);
    }
    return sum + middle;
  }
}

// for_each_mean for small windows, whose sums need no memory.
template <int half_h, int half_w, typename Use>
STURDY_ALWAYS_INLINE void slide_small_window(const WinogradPlan& plan, const MapRows& rows, int64_t tile,
                                             const Use& use) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  const int64_t count = least(2, plan.geometry.out_h - 2 * tile);
  const float* at[2 * half_h + 2];
  STURDY_UNROLL
  for (int k = 0; k < 2 * half_h + 2; k++) {
    at[k] = rows.row(2 * tile - half_h + k);
  }
  struct Pair {
    Vec<float> of[2];
  };
  const auto sum_rows = [&](int64_t i) __attribute__((always_inline)) {
    Vec<float> row[2 * half_h + 2];
    if (i + lanes <= width) {
      STURDY_UNROLL
      for (int k = 0; k < 2 * half_h + 2; k++) {
        row[k] = load(at[k] + i);
      }
    } else {
      STURDY_UNROLL
      for (int k = 0; k < 2 * half_h + 2; k++) {
        row[k] = load_partial(at[k] + i, width - i);
      }
    }
    Pair sums = {{row[0], row[2 * half_h + 1]}};
    if constexpr (half_h > 0) {
      Vec<float> common = row[1] + row[2];
      if constexpr (half_h > 1) {
        common += row[3] + row[4];
      }
      sums.of[0] += common;
      sums.of[1] += common;
    }
    return sums;
  };
  const Vec<float> row_weights[2] = {broadcast(plan.row_weights[2 * tile]), broadcast(plan.row_weights[2 * tile + 1])};
  Pair left = {{zero<float>(), zero<float>()}};
  Pair middle = sum_rows(0);
  for (int64_t i = 0; i < width; i += lanes) {
    const Pair right = i + lanes < width ? sum_rows(i + lanes) : Pair{{zero<float>(), zero<float>()}};
    const Vec<float> column_weights = load(plan.column_weights + i);
    STURDY_UNROLL
    for (int odd = 0; odd < 2; odd++) {
      if (odd < count) {
        use(odd, i,
            sum_columns<half_w>(left.of[odd], middle.of[odd], right.of[odd]) * (row_weights[odd] * column_weights));
      }
    }
    left = middle;
    middle = right;
  }
}

// Calls use(odd, column, mean) with the mean of each window of the rows 2 * tile and 2 * tile + 1, a vector of columns
// at a time.
template <typename Use>
STURDY_ALWAYS_INLINE void for_each_mean(const WinogradPlan& plan, const MapRows& rows, int64_t tile,
                                        float* const lines[2], const Use& use) {
  constexpr int lanes = kLanes<float>;
  if (plan.half_h == 1 && plan.half_w == 1) {
    return slide_small_window<1, 1>(plan, rows, tile, use);
  }
  if (plan.half_h == 2 && plan.half_w == 2) {
    return slide_small_window<2, 2>(plan, rows, tile, use);
  }
  sum_window_rows(plan, rows, tile, lines);
  for (int odd = 0; odd < 2 && 2 * tile + odd < plan.geometry.out_h; odd++) {
    const Vec<float> row_weight = broadcast(plan.row_weights[2 * tile + odd]);
    for (int64_t i = 0; i < plan.geometry.out_w; i += lanes) {
      Vec<float> sum = zero<float>();
      for (int64_t k = 0; k <= 2 * plan.half_w; k++) {
        sum += load(lines[odd] + i + k);
      }
      use(odd, i, sum * (row_weight * load(plan.column_weights + i)));
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
