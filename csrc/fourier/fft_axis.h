// A whole transform along one axis, forward and back, of a row of vectors. See fft_stages.h and fft_plan.h.
#pragma once

#include "fourier/fft_stages.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Not those of <algorithm>: a copy of them compiled for this instruction set could be linked where another one runs.
STURDY_ALWAYS_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
STURDY_ALWAYS_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename T>
void copy_vectors(const T* from_r, const T* from_i, ptrdiff_t from_stride, T* to_r, T* to_i, ptrdiff_t to_stride,
                  int64_t count) {
  for (int64_t j = 0; j < count; j++) {
    const Vec<T> r = load(from_r + j * from_stride), i = load(from_i + j * from_stride);
    store(to_r + j * to_stride, r);
    store(to_i + j * to_stride, i);
  }
}

// to[j] = from[j] * (factors[2 j] + i factors[2 j + 1]), the factor conjugated if `conjugate`.
template <typename T, bool conjugate>
void multiply_vectors(const T* from_r, const T* from_i, ptrdiff_t from_stride, T* to_r, T* to_i, const T* factors,
                      int64_t count) {
  for (int64_t j = 0; j < count; j++) {
    const Vec<T> r = load(from_r + j * from_stride), i = load(from_i + j * from_stride);
    const Vec<T> c = broadcast(factors[2 * j]);
    const Vec<T> s = broadcast(conjugate ? -factors[2 * j + 1] : factors[2 * j + 1]);
    store(to_r + j * kLanes<T>, r * c - i * s);
    store(to_i + j * kLanes<T>, i * c + r * s);
  }
}

// The stages [first, last) forward, in place in `work` but for stage 0, which reads `from`.
template <typename T>
void forward_stages(const cpu::FftAxis<T>& axis, int first, int last, const T* from_r, const T* from_i,
                    ptrdiff_t from_stride, T* work_r, T* work_i, Prefetch& prefetch) {
  for (int s = first; s < last; s++) {
    const cpu::FftStage& stage = axis.stages[s];
    StageCall<T> call = {work_r,       work_i,        work_r,
                         work_i,       kLanes<T>,     kLanes<T>,
                         stage.blocks, stage.spacing, axis.rotations + stage.rotation,
                         nullptr,      &prefetch};
    if (s == 0) {
      call.from_r = from_r;
      call.from_i = from_i;
      call.from_stride = from_stride;
    }
    if (s == 0 && axis.coprime) {
      stage_kernels<T>(stage.radix).forward_coprime(call, from_r == work_r ? 1 : stage.radix);
    } else {
      stage_kernels<T>(stage.radix).forward(call);
    }
  }
}

// The stages [0, last) backwards, in place in `work` but for stage 0, which writes `to`.
template <typename T>
void inverse_stages(const cpu::FftAxis<T>& axis, int last, T* work_r, T* work_i, T* to_r, T* to_i, ptrdiff_t to_stride,
                    Prefetch& prefetch) {
  for (int s = last - 1; s >= 0; s--) {
    const cpu::FftStage& stage = axis.stages[s];
    StageCall<T> call = {work_r,       work_i,        work_r,
                         work_i,       kLanes<T>,     kLanes<T>,
                         stage.blocks, stage.spacing, axis.rotations + stage.rotation,
                         nullptr,      &prefetch};
    if (s == 0) {
      call.to_r = to_r;
      call.to_i = to_i;
      call.to_stride = to_stride;
    }
    if (s == 0 && axis.coprime) {
      stage_kernels<T>(stage.radix).inverse_coprime(call, to_r == work_r ? 1 : stage.radix);
    } else {
      stage_kernels<T>(stage.radix).inverse(call);
    }
  }
}

// Bluestein: j k = (j^2 + k^2 - (k - j)^2) / 2 makes the transform a convolution with a chirp.
template <typename T>
void forward_by_chirp(const cpu::FftAxis<T>& axis, const T* from_r, const T* from_i, ptrdiff_t from_stride, T* work_r,
                      T* work_i) {
  constexpr int64_t lanes = kLanes<T>;
  Prefetch none;
  multiply_vectors<T, true>(from_r, from_i, from_stride, work_r, work_i, axis.chirp, axis.size);
  for (int64_t at = axis.size * lanes; at < axis.length * lanes; at += lanes) {
    store(work_r + at, zero<T>());
    store(work_i + at, zero<T>());
  }
  forward_stages(axis, 0, axis.stage_count, work_r, work_i, lanes, work_r, work_i, none);
  multiply_vectors<T, false>(work_r, work_i, lanes, work_r, work_i, axis.response, axis.length);
  inverse_stages(axis, axis.stage_count, work_r, work_i, work_r, work_i, lanes, none);
  multiply_vectors<T, true>(work_r, work_i, lanes, work_r, work_i, axis.chirp, axis.size);
}

// from -> work, frequency k at axis.places[k]; `work` holds axis.length vectors and may be `from`, where the samples of
// a coprime axis then stand in their slots.
template <typename T>
void forward_axis(const cpu::FftAxis<T>& axis, const T* from_r, const T* from_i, ptrdiff_t from_stride, T* work_r,
                  T* work_i, Prefetch& prefetch) {
  if (axis.chirped) {
    forward_by_chirp(axis, from_r, from_i, from_stride, work_r, work_i);
  } else if (axis.stage_count == 0) {
    copy_vectors(from_r, from_i, from_stride, work_r, work_i, kLanes<T>, axis.size);
  } else {
    forward_stages(axis, 0, axis.stage_count, from_r, from_i, from_stride, work_r, work_i, prefetch);
  }
}

// work, frequencies placed as above -> to, without the factor 1 / size; `to` may be `work`, with the same slots.
template <typename T>
void inverse_axis(const cpu::FftAxis<T>& axis, T* work_r, T* work_i, T* to_r, T* to_i, ptrdiff_t to_stride,
                  Prefetch& prefetch) {
  if (axis.chirped) {
    forward_by_chirp<T>(axis, work_i, work_r, kLanes<T>, work_i, work_r);
  }
  if (axis.chirped || axis.stage_count == 0) {
    copy_vectors(work_r, work_i, kLanes<T>, to_r, to_i, to_stride, axis.size);
  } else {
    inverse_stages(axis, axis.stage_count, work_r, work_i, to_r, to_i, to_stride, prefetch);
  }
}

// Forward, a product with (size, lanes) real factors that stand where the frequencies do, and back, in place: p z(l),
// or p z(l) + q conj z(-l) where q is given. Not for chirped axes, nor for those of one sample.
template <typename T>
void filter_axis(const cpu::FftAxis<T>& axis, T* work_r, T* work_i, const T* mask, const T* q_mask,
                 Prefetch& prefetch) {
  constexpr int64_t lanes = kLanes<T>;
  const int last = axis.stage_count - 1;
  forward_stages(axis, 0, last, work_r, work_i, lanes, work_r, work_i, prefetch);
  const cpu::FftStage& stage = axis.stages[last];
  const StageCall<T> call = {work_r,       work_i,        work_r,  work_i, lanes,    lanes,
                             stage.blocks, stage.spacing, nullptr, mask,   &prefetch};
  if (q_mask == nullptr) {
    stage_kernels<T>(stage.radix).filter(call);
  } else {
    stage_kernels<T>(stage.radix).packed_filter(call, q_mask, axis.places);
  }
  inverse_stages(axis, last, work_r, work_i, work_r, work_i, lanes, prefetch);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
