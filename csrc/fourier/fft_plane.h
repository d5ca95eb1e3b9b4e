// A real plane to its half spectrum and back; fft_plane_plan.h says how both are laid out.
#pragma once

#include "fourier/fft_axis.h"
#include "fourier/fft_columns.h"
#include "fourier/fft_plane_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Rows of a plane whose columns lie side by side.
template <typename S>
struct PlaneRows {
  S* data;
  int64_t stride;  // elements from a row to the next
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

// Columns [begin, begin + count) to consecutive vectors, in the order of a transform in place, zero in the lanes
// beyond.
template <typename S, typename T>
void gather_columns(PlaneRows<const S> plane, const cpu::FftAxis<T>& axis, int64_t begin, int64_t count, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t h = 0; h < axis.size; h++) {
    const S* row = plane.data + h * plane.stride + begin;
    store(to + (axis.coprime ? axis.slots[h] : h) * lanes, count == lanes ? load(row) : load_partial(row, count));
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
void scatter_columns(const T* from, const cpu::FftAxis<T>& axis, PlaneRows<S> plane, int64_t begin, int64_t count,
                     const Bounds<T>& bounds) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t h = 0; h < axis.size; h++) {
    S* row = plane.data + h * plane.stride + begin;
    Vec<T> v = load(from + (axis.coprime ? axis.slots[h] : h) * lanes);
    v = bounds.clip ? clamp(v, bounds) : v;
    if (count == lanes) {
      store(row, v);
    } else {
      store_partial(row, v, count);
    }
  }
}

// How the columns of a block are transformed: those of the stages before the last, and the kernel of the last.
template <typename T>
ColumnCall<T> column_call(const cpu::FftPlanePlan<T>& plan, const ColumnBlock& block,
                          const cpu::FftPlaneWork<T>& work) {
  return {&plan, block, work.column_r, work.column_i, kLanes<T>, work.spectrum_r, work.spectrum_i, work.column_ring};
}

// Columns in memory, `stride` elements from a row to the next, to the strips.
template <typename T>
void forward_block(const cpu::FftPlanePlan<T>& plan, const ColumnBlock& block, const T* from_r, const T* from_i,
                   ptrdiff_t stride, const cpu::FftPlaneWork<T>& work) {
  const cpu::FftAxis<T>& axis = plan.columns;
  Prefetch none;
  ColumnCall<T> call = column_call(plan, block, work);
  if (axis.chirped) {
    forward_by_chirp<T>(axis, from_r, from_i, stride, work.column_r, work.column_i);
  } else if (axis.stage_count > 1) {
    forward_stages<T>(axis, 0, axis.stage_count - 1, from_r, from_i, stride, work.column_r, work.column_i, none);
  } else {  // the last stage is the first: it reads, but never writes, what it is given
    call.column_r = const_cast<T*>(from_r);
    call.column_i = const_cast<T*>(from_i);
    call.stride = stride;
  }
  const ColumnKernels<T>& kernels = column_kernels<T>(plan.last_radix);
  (axis.coprime ? kernels.split_coprime : kernels.split)(call);
}

template <typename T>
void inverse_block(const cpu::FftPlanePlan<T>& plan, const ColumnBlock& block, const cpu::FftPlaneWork<T>& work,
                   T* to_r, T* to_i, ptrdiff_t stride) {
  const cpu::FftAxis<T>& axis = plan.columns;
  Prefetch none;
  ColumnCall<T> call = column_call(plan, block, work);
  if (!axis.chirped && axis.stage_count <= 1) {
    call.column_r = to_r;
    call.column_i = to_i;
    call.stride = stride;
    column_kernels<T>(plan.last_radix).merge(call);
    return;
  }
  const ColumnKernels<T>& kernels = column_kernels<T>(plan.last_radix);
  (axis.coprime ? kernels.merge_coprime : kernels.merge)(call);
  if (axis.chirped) {
    inverse_axis<T>(axis, work.column_r, work.column_i, to_r, to_i, stride, none);
  } else {
    inverse_stages<T>(axis, axis.stage_count - 1, work.column_r, work.column_i, to_r, to_i, stride, none);
  }
}

// The columns of a plane to the strips of `work`, not yet transformed along the rows.
template <typename S, typename T>
void forward_columns(const cpu::FftPlanePlan<T>& plan, PlaneRows<const S> plane, const cpu::FftPlaneWork<T>& work) {
  T *zr = work.column_r, *zi = work.column_i;
  for (int64_t index = 0; index < plan.blocks; index++) {
    const ColumnBlock block = column_block(plan, index);
    if constexpr (std::is_same_v<S, T>) {
      if (block.left_count == kLanes<T> && block.right_count == kLanes<T>) {
        forward_block(plan, block, plane.data + block.left, plane.data + block.right, plane.stride, work);
        continue;
      }
    }
    gather_columns<S>(plane, plan.columns, block.left, block.left_count, zr);
    gather_columns<S>(plane, plan.columns, block.right, block.right_count, zi);
    forward_block<T>(plan, block, zr, zi, kLanes<T>, work);
  }
}

// The strips of `work`, transformed back along the rows, to a plane.
template <typename S, typename T>
void inverse_columns(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work, PlaneRows<S> plane,
                     const Bounds<T>& bounds) {
  T *zr = work.column_r, *zi = work.column_i;
  for (int64_t index = 0; index < plan.blocks; index++) {
    const ColumnBlock block = column_block(plan, index);
    if constexpr (std::is_same_v<S, T>) {
      if (!bounds.clip && block.left_count == kLanes<T> && block.right_count == kLanes<T>) {
        inverse_block(plan, block, work, plane.data + block.left, plane.data + block.right, plane.stride);
        continue;
      }
    }
    inverse_block<T>(plan, block, work, zr, zi, kLanes<T>);
    scatter_columns<S>(zr, plan.columns, plane, block.left, block.left_count, bounds);
    scatter_columns<S>(zi, plan.columns, plane, block.right, block.right_count, bounds);
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
