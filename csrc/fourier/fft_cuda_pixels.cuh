// Real planes in global memory, of any dtype and strides, as the columns that fft_cuda.cuh transforms.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"
#include "common/types.h"
#include "fourier/fft_cuda.cuh"

namespace sturdy::cuda::fft {

// A plane: its first pixel and its strides in elements.
struct Pixels {
  const void* data;
  int64_t row, column;
};

// Two columns as one: column c of the left half, and column c + pairs, if the plane has it.
struct ColumnPair {
  int64_t left;   // offset of pixel (0, c)
  int64_t right;  // from a pixel to that of the other column
  int64_t row;    // stride
  bool has_right;

  STURDY_DEVICE ColumnPair() : left(0), right(0), row(0), has_right(false) {}
  STURDY_DEVICE ColumnPair(const PlanePlan& plan, int64_t row_stride, int64_t column_stride, int c)
      : left(c * column_stride),
        right(plan.pairs * column_stride),
        row(row_stride),
        has_right(c + plan.pairs < plan.width) {}
};

namespace detail {

template <typename S, typename T, int R>
STURDY_DEVICE void load_pairs(const S* at, const ColumnPair& pair, int first, int span, int height,
                              Complex<T> (&v)[R]) {
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int row = first + i * span;
    const S* pixel = at + pair.left + row * pair.row;
    v[i].re = row < height ? static_cast<T>(to_accumulate(pixel[0])) : T(0);
    v[i].im = row < height && pair.has_right ? static_cast<T>(to_accumulate(pixel[pair.right])) : T(0);
  }
}

template <typename S, typename T, int R>
STURDY_DEVICE void store_pairs(S* at, const ColumnPair& pair, int first, int span, int height,
                               const Complex<T> (&v)[R]) {
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int row = first + i * span;
    S* pixel = at + pair.left + row * pair.row;
    if (row < height) {
      pixel[0] = from_accumulate<S>(v[i].re);
      if (pair.has_right) {
        pixel[pair.right] = from_accumulate<S>(v[i].im);
      }
    }
  }
}

template <typename Word>
STURDY_DEVICE void copy_pixels(const Word* from, int64_t from_row, int64_t from_column, Word* to, int64_t to_row,
                               int64_t to_column, int height, int width) {
  const int64_t pixels = int64_t{height} * width;
  for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
    const int64_t row = i / width;
    const int64_t column = i - row * width;
    to[row * to_row + column * to_column] = from[row * from_row + column * from_column];
  }
}

}  // namespace detail

// Rows first + i span of a pair of columns; zeros beyond the plane. float64 planes where T is double alone.
template <typename T, int R>
STURDY_DEVICE void load_pairs(const void* data, DType dtype, const ColumnPair& pair, int first, int span, int height,
                              Complex<T> (&v)[R]) {
  if constexpr (sizeof(T) == 8) {
    detail::load_pairs(static_cast<const double*>(data), pair, first, span, height, v);
  } else if (dtype == DType::f32) {
    detail::load_pairs(static_cast<const float*>(data), pair, first, span, height, v);
  } else if (dtype == DType::f16) {
    detail::load_pairs(static_cast<const __half*>(data), pair, first, span, height, v);
  } else {
    detail::load_pairs(static_cast<const __nv_bfloat16*>(data), pair, first, span, height, v);
  }
}

template <typename T, int R>
STURDY_DEVICE void store_pairs(void* data, DType dtype, const ColumnPair& pair, int first, int span, int height,
                               const Complex<T> (&v)[R]) {
  if constexpr (sizeof(T) == 8) {
    detail::store_pairs(static_cast<double*>(data), pair, first, span, height, v);
  } else if (dtype == DType::f32) {
    detail::store_pairs(static_cast<float*>(data), pair, first, span, height, v);
  } else if (dtype == DType::f16) {
    detail::store_pairs(static_cast<__half*>(data), pair, first, span, height, v);
  } else {
    detail::store_pairs(static_cast<__nv_bfloat16*>(data), pair, first, span, height, v);
  }
}

STURDY_DEVICE int dtype_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Bit by bit, by all threads of the block.
STURDY_DEVICE void copy_plane(const Pixels& from, void* to, int64_t to_row, int64_t to_column, DType dtype, int height,
                              int width) {
  switch (dtype_bytes(dtype)) {
    case 8:
      detail::copy_pixels(static_cast<const uint64_t*>(from.data), from.row, from.column, static_cast<uint64_t*>(to),
                          to_row, to_column, height, width);
      break;
    case 4:
      detail::copy_pixels(static_cast<const uint32_t*>(from.data), from.row, from.column, static_cast<uint32_t*>(to),
                          to_row, to_column, height, width);
      break;
    default:
      detail::copy_pixels(static_cast<const uint16_t*>(from.data), from.row, from.column, static_cast<uint16_t*>(to),
                          to_row, to_column, height, width);
      break;
  }
}

}  // namespace sturdy::cuda::fft
