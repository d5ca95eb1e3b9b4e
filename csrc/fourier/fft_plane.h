// A real plane to its half spectrum and back; fft_plane_plan.h says how both are laid out.
#pragma once

#include "fourier/fft_axis.h"
#include "fourier/fft_plane_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Rows of a plane whose columns lie side by side.
template <typename S>
struct PlaneRows {
  S* data;
  int64_t stride;  // elements from a row to the next
};

// Where a block's columns stand: the first of its real and of its imaginary part, how many lanes hold one, and how many
// of the imaginary part's were computed among the real ones already.
struct ColumnBlock {
  int64_t left, right;
  int64_t left_count, right_count;
  int64_t right_skip;
};

template <typename T>
ColumnBlock column_block(const cpu::FftPlanePlan<T>& plan, int64_t index) {
  constexpr int64_t lanes = kLanes<T>;
  ColumnBlock block;
  block.left = index * lanes;
  block.right = plan.right_begin + index * lanes;
  block.left_count = lesser(lanes, plan.left_columns - block.left);
  block.right_count = lesser(lanes, plan.width - block.right);
  block.right_skip = greater(0, plan.left_columns - block.right);
  return block;
}

// Columns [begin, begin + count) to consecutive vectors, zero in the lanes beyond.
template <typename S, typename T>
void gather_columns(PlaneRows<const S> plane, int64_t height, int64_t begin, int64_t count, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t h = 0; h < height; h++) {
    const S* row = plane.data + h * plane.stride + begin;
    store(to + h * lanes, count == lanes ? load(row) : load_partial(row, count));
  }
}

template <typename T>
struct Bounds {
  bool clip;
  T low, high;
};

// A NaN stays.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> clamp(Vec<T> v, const Bounds<T>& bounds) {
  const Vec<T> low = broadcast(bounds.low), high = broadcast(bounds.high);
  v.v = v.v < low.v ? low.v : v.v;
  v.v = v.v > high.v ? high.v : v.v;
  return v;
}

template <typename S, typename T>
void scatter_columns(const T* from, PlaneRows<S> plane, int64_t height, int64_t begin, int64_t count,
                     const Bounds<T>& bounds) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t h = 0; h < height; h++) {
    S* row = plane.data + h * plane.stride + begin;
    Vec<T> v = load(from + h * lanes);
    v = bounds.clip ? clamp(v, bounds) : v;
    if (count == lanes) {
      store(row, v);
    } else {
      store_partial(row, v, count);
    }
  }
}

// Turned rows to columns [skip, count) of a strip. Vectors are named by constants everywhere, also on the rare way: an
// index that is known at run time alone would keep all of them in memory.
template <typename T>
STURDY_ALWAYS_INLINE void store_tile(const Vec<T> (&tile)[kLanes<T>], T* strip, int64_t skip, int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  if (skip == 0 && count == lanes) {
    STURDY_UNROLL
    for (int64_t c = 0; c < lanes; c++) {
      store(strip + c * lanes, tile[c]);
    }
    return;
  }
  STURDY_UNROLL
  for (int64_t c = 0; c < lanes; c++) {
    if (c >= skip && c < count) {
      store(strip + c * lanes, tile[c]);
    }
  }
}

template <typename T>
STURDY_ALWAYS_INLINE void load_tile(Vec<T> (&tile)[kLanes<T>], const T* strip, int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  const T* last = strip + (count - 1) * lanes;
  STURDY_UNROLL
  for (int64_t c = 0; c < lanes; c++) {  // beyond the last column any will do: nobody reads what becomes of it
    const T* at = strip + c * lanes;
    tile[c] = load(count == lanes || at < last ? at : last);
  }
}

// The spectra of a block's columns, k at its place in z, to the strips. With z = a + i b, twice a's spectrum is
// z(k) + conj z(-k), twice b's is -i (z(k) - conj z(-k)).
template <typename T>
void split_columns(const cpu::FftPlanePlan<T>& plan, const ColumnBlock& block, const T* zr, const T* zi, T* to_r,
                   T* to_i) {
  constexpr int64_t lanes = kLanes<T>;
  const T* half_r = zr + plan.half_place;
  const T* half_i = zi + plan.half_place;
  for (int64_t s = 0; s < plan.strips; s++) {
    const int64_t* at = plan.mirrors + s * lanes * 2;
    const bool packed = plan.packed && s == 0;
    const int64_t left = (s * plan.width + block.left) * lanes;
    const int64_t right = (s * plan.width + block.right) * lanes;
    Vec<T> tile[lanes];
    STURDY_UNROLL
    for (int64_t j = 0; j < lanes; j++) {
      tile[j] = load(zr + at[2 * j]) + load(zr + at[2 * j + 1]);
    }
    transpose(tile);
    store_tile(tile, to_r + left, 0, block.left_count);
    STURDY_UNROLL
    for (int64_t j = 0; j < lanes; j++) {
      tile[j] = load(zi + at[2 * j]) - load(zi + at[2 * j + 1]);
    }
    tile[0] = packed ? load(half_r) + load(half_r) : tile[0];
    transpose(tile);
    store_tile(tile, to_i + left, 0, block.left_count);
    STURDY_UNROLL
    for (int64_t j = 0; j < lanes; j++) {
      tile[j] = load(zi + at[2 * j]) + load(zi + at[2 * j + 1]);
    }
    transpose(tile);
    store_tile(tile, to_r + right, block.right_skip, block.right_count);
    STURDY_UNROLL
    for (int64_t j = 0; j < lanes; j++) {
      tile[j] = load(zr + at[2 * j + 1]) - load(zr + at[2 * j]);
    }
    tile[0] = packed ? load(half_i) + load(half_i) : tile[0];
    transpose(tile);
    store_tile(tile, to_i + right, block.right_skip, block.right_count);
  }
}

// And back: z(k) = a(k) + i b(k), z(-k) = conj a(k) + i conj b(k), for the rows of one strip.
template <typename T>
STURDY_ALWAYS_INLINE void merge_rows(const cpu::FftPlanePlan<T>& plan, const int64_t* at, int64_t rows, bool packed,
                                     const T* left_r, const T* left_i, int64_t left_count, const T* right_r,
                                     const T* right_i, int64_t right_count, T* zr, T* zi) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> a[lanes], b[lanes];
  load_tile(a, left_r, left_count);
  transpose(a);
  load_tile(b, right_i, right_count);
  transpose(b);
  const Vec<T> zero_left = a[0], half_right = b[0];
  STURDY_UNROLL
  for (int64_t j = 0; j < lanes; j++) {
    if (j < rows) {
      store(zr + at[2 * j + 1], a[j] + b[j]);
      store(zr + at[2 * j], a[j] - b[j]);
    }
  }
  load_tile(a, left_i, left_count);
  transpose(a);
  load_tile(b, right_r, right_count);
  transpose(b);
  STURDY_UNROLL
  for (int64_t j = 0; j < lanes; j++) {
    if (j < rows) {
      store(zi + at[2 * j + 1], b[j] - a[j]);
      store(zi + at[2 * j], b[j] + a[j]);
    }
  }
  if (packed) {
    store(zr + at[0], zero_left);
    store(zi + at[0], b[0]);
    store(zr + plan.half_place, a[0]);
    store(zi + plan.half_place, half_right);
  }
}

template <typename T>
void merge_columns(const cpu::FftPlanePlan<T>& plan, const ColumnBlock& block, const T* from_r, const T* from_i, T* zr,
                   T* zi) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t s = 0; s < plan.strips; s++) {
    const int64_t rows = lesser(lanes, plan.kept - s * lanes);
    const int64_t left = (s * plan.width + block.left) * lanes;
    const int64_t right = (s * plan.width + block.right) * lanes;
    merge_rows<T>(plan, plan.mirrors + s * lanes * 2, rows, plan.packed && s == 0, from_r + left, from_i + left,
                  block.left_count, from_r + right, from_i + right, block.right_count, zr, zi);
  }
}

// The columns of a plane to the strips of `work`, not yet transformed along the rows.
template <typename S, typename T>
void forward_columns(const cpu::FftPlanePlan<T>& plan, PlaneRows<const S> plane, const cpu::FftPlaneWork<T>& work) {
  Prefetch none;
  T *zr = work.column_r, *zi = work.column_i;
  for (int64_t index = 0; index < plan.blocks; index++) {
    const ColumnBlock block = column_block(plan, index);
    bool direct = false;
    if constexpr (std::is_same_v<S, T>) {
      direct = block.left_count == kLanes<T> && block.right_count == kLanes<T>;
      if (direct) {
        forward_axis<T>(plan.columns, plane.data + block.left, plane.data + block.right, plane.stride, zr, zi, none);
      }
    }
    if (!direct) {
      gather_columns<S>(plane, plan.height, block.left, block.left_count, zr);
      gather_columns<S>(plane, plan.height, block.right, block.right_count, zi);
      forward_axis<T>(plan.columns, zr, zi, kLanes<T>, zr, zi, none);
    }
    split_columns(plan, block, zr, zi, work.spectrum_r, work.spectrum_i);
  }
}

// The strips of `work`, transformed back along the rows, to a plane.
template <typename S, typename T>
void inverse_columns(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work, PlaneRows<S> plane,
                     const Bounds<T>& bounds) {
  Prefetch none;
  T *zr = work.column_r, *zi = work.column_i;
  for (int64_t index = 0; index < plan.blocks; index++) {
    const ColumnBlock block = column_block(plan, index);
    merge_columns(plan, block, work.spectrum_r, work.spectrum_i, zr, zi);
    bool direct = false;
    if constexpr (std::is_same_v<S, T>) {
      direct = !bounds.clip && block.left_count == kLanes<T> && block.right_count == kLanes<T>;
      if (direct) {
        inverse_axis<T>(plan.columns, zr, zi, plane.data + block.left, plane.data + block.right, plane.stride, none);
      }
    }
    if (!direct) {
      inverse_axis<T>(plan.columns, zr, zi, zr, zi, kLanes<T>, none);
      scatter_columns<S>(zr, plane, plan.height, block.left, block.left_count, bounds);
      scatter_columns<S>(zi, plane, plan.height, block.right, block.right_count, bounds);
    }
  }
}

// All strips along the rows, in place.
template <typename T>
void forward_rows(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work) {
  Prefetch none;
  const int64_t size = plan.width * kLanes<T>;
  for (int64_t s = 0; s < plan.strips; s++) {
    T *r = work.spectrum_r + s * size, *i = work.spectrum_i + s * size;
    if (plan.rows.chirped) {
      forward_axis<T>(plan.rows, r, i, kLanes<T>, work.column_r, work.column_i, none);
      copy_vectors<T>(work.column_r, work.column_i, kLanes<T>, r, i, kLanes<T>, plan.width);
    } else {
      forward_axis<T>(plan.rows, r, i, kLanes<T>, r, i, none);
    }
  }
}

template <typename T>
void inverse_rows(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work, int64_t first_strip,
                  int64_t last_strip) {
  Prefetch none;
  const int64_t size = plan.width * kLanes<T>;
  for (int64_t s = first_strip; s < last_strip; s++) {
    T *r = work.spectrum_r + s * size, *i = work.spectrum_i + s * size;
    if (plan.rows.chirped) {
      copy_vectors<T>(r, i, kLanes<T>, work.column_r, work.column_i, kLanes<T>, plan.width);
      inverse_axis<T>(plan.rows, work.column_r, work.column_i, r, i, kLanes<T>, none);
    } else {
      inverse_axis<T>(plan.rows, r, i, r, i, kLanes<T>, none);
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
