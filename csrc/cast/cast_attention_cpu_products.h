// Products of small matrices in scratch memory, see cast_attention_cpu_plan.h. Both operands lie as they were gathered
// or computed, row after row; nothing is packed into panels.
#pragma once

#include <cstdint>

#include "cast/cast_attention_cpu_plan.h"
#include "common/gemm_tile.h"
#include "common/simd.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// How the left operand lies: element (row, k) at [row * pitch + k], or transposed at [k * pitch + row].
enum class Left { as_is, transposed };

static_assert(cpu::kCastRowStep % kGemmRows == 0, "scratch must have whole tiles of rows");

// out[row][column] (+)= sum over k < depth of left(row, k) * right[k][column] for kGemmRows rows, added up in order of
// k from zero.
template <typename T, Left side, int vectors>
__attribute__((noinline)) static void product_tile(const T* left, int64_t left_pitch, const T* right,
                                                   int64_t right_pitch, int64_t depth, T* out, int64_t out_pitch,
                                                   bool add) {
  Vec<T> sum[kGemmRows][vectors];
  clear(sum);
  const T* upper = left + kGemmRows / 2 * left_pitch;
  for (int64_t k = 0; k < depth; k++) {
    asm volatile("" ::: "memory");  // as in common/gemm_tile.h
    Vec<T> column[vectors];
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      column[j] = load(right + j * kLanes<T>);
    }
    STURDY_UNROLL
    for (int i = 0; i < kGemmRows; i++) {
      constexpr int half = kGemmRows / 2;
      const T* at = side == Left::transposed ? left + i
                    : i < half               ? left + i * left_pitch
                                             : upper + (i - half) * left_pitch;
      const Vec<T> value = broadcast(*at);
      STURDY_UNROLL
      for (int j = 0; j < vectors; j++) {
        accumulate(sum[i][j], value, column[j]);
      }
    }
    left += side == Left::transposed ? left_pitch : 1;
    upper += 1;
    right += right_pitch;
  }
  STURDY_UNROLL
  for (int i = 0; i < kGemmRows; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      T* to = out + i * out_pitch + j * kLanes<T>;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
  }
}

template <typename T, Left side, int vectors>
STURDY_ALWAYS_INLINE void product_columns(int64_t rows, int64_t wanted, int64_t depth, const T* left,
                                          int64_t left_pitch, const T* right, int64_t right_pitch, T* out,
                                          int64_t out_pitch, bool add) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) {
      return product_columns<T, side, vectors - 1>(rows, wanted, depth, left, left_pitch, right, right_pitch, out,
                                                   out_pitch, add);
    }
  }
  for (int64_t row = 0; row < rows; row += kGemmRows) {
    product_tile<T, side, vectors>(left + row * (side == Left::transposed ? 1 : left_pitch), left_pitch, right,
                                   right_pitch, depth, out + row * out_pitch, out_pitch, add);
  }
}

// out[rows][columns] (+)= left * right, with `rows` rounded up to whole tiles and `columns` to whole vectors.
template <Left side = Left::as_is, typename T>
static void multiply(int64_t rows, int64_t columns, int64_t depth, const T* left, int64_t left_pitch, const T* right,
                     int64_t right_pitch, T* out, int64_t out_pitch, bool add) {
  int64_t vectors = cpu::in_steps(columns, kLanes<T>);
  int64_t column = 0;
  while (vectors > 0) {
    // Parts of about the same width: a tile of one vector spends more on loads than two of two.
    const int64_t parts = cpu::in_steps(vectors, kGemmVectors);
    const int64_t width = cpu::in_steps(vectors, parts);
    product_columns<T, side, kGemmVectors>(rows, width, depth, left, left_pitch, right + column, right_pitch,
                                           out + column, out_pitch, add);
    vectors -= width;
    column += width * kLanes<T>;
  }
}

// out[column] (+)= sum over k < depth of left[k] * right[k][column], columns rounded up to whole vectors.
template <typename T>
static void multiply_row(int64_t columns, int64_t depth, const T* left, const T* right, int64_t right_pitch, T* out,
                         bool add) {
  constexpr int together = 8;  // vectors, which hide the time that one addition takes
  constexpr int64_t step = together * kLanes<T>;
  int64_t column = 0;
  for (; column + step <= columns; column += step) {
    Vec<T> sum[together] = {};
    for (int64_t k = 0; k < depth; k++) {
      const Vec<T> value = broadcast(left[k]);
      STURDY_UNROLL
      for (int j = 0; j < together; j++) {
        accumulate(sum[j], value, load(right + k * right_pitch + column + j * kLanes<T>));
      }
    }
    STURDY_UNROLL
    for (int j = 0; j < together; j++) {
      T* to = out + column + j * kLanes<T>;
      store(to, add ? load(to) + sum[j] : sum[j]);
    }
  }
  for (; column < columns; column += kLanes<T>) {
    Vec<T> sum{};
    for (int64_t k = 0; k < depth; k++) {
      accumulate(sum, broadcast(left[k]), load(right + k * right_pitch + column));
    }
    store(out + column, add ? load(out + column) + sum : sum);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
