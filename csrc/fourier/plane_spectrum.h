// What kernels share that look at amplitudes: planes with any strides to their spectra and back, strips of them along
// the rows, and the packed strip's two spectra apart. fft_plane_plan.h says how spectra are laid out.
#pragma once

#include <cmath>
#include <cstring>

#include "fourier/fft_kernels.h"
#include "fourier/fft_plane.h"
#include "fourier/image.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

STURDY_ALWAYS_INLINE Vec<float> square_root(Vec<float> v) {
#if defined(__AVX512F__)
  return {_mm512_sqrt_ps(v.v)};
#elif defined(__AVX2__)
  return {_mm256_sqrt_ps(v.v)};
#elif defined(__x86_64__)
  return {_mm_sqrt_ps(v.v)};
#else
  for (int i = 0; i < kLanes<float>; i++) {
    v.v[i] = __builtin_sqrtf(v.v[i]);
  }
  return v;
#endif
}

STURDY_ALWAYS_INLINE Vec<double> square_root(Vec<double> v) {
#if defined(__AVX512F__)
  return {_mm512_sqrt_pd(v.v)};
#elif defined(__AVX2__)
  return {_mm256_sqrt_pd(v.v)};
#elif defined(__x86_64__)
  return {_mm_sqrt_pd(v.v)};
#else
  for (int i = 0; i < kLanes<double>; i++) {
    v.v[i] = __builtin_sqrt(v.v[i]);
  }
  return v;
#endif
}

// The first lane of `first`, the others of `rest`.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> first_lane_of(Vec<T> first, Vec<T> rest) {
  typename LaneIndex<T>::Native index{};
  STURDY_UNROLL
  for (int i = 0; i < kLanes<T>; i++) {
    index[i] = i == 0 ? 0 : kLanes<T> + i;
  }
  return {__builtin_shuffle(first.v, rest.v, index)};
}

// Vectors of a packed strip at frequencies l and -l. The first lane of `a` becomes the spectrum at l of row 0, that of
// `b` the one of row H / 2; the other lanes stay what they are.
template <typename T>
STURDY_ALWAYS_INLINE void unpack(Vec<T>& ar, Vec<T>& ai, Vec<T>& br, Vec<T>& bi) {
  const Vec<T> half = broadcast(T(0.5));
  const Vec<T> zero_r = half * (ar + br), zero_i = half * (ai - bi);
  const Vec<T> half_r = half * (ai + bi), half_i = half * (br - ar);
  ar = first_lane_of(zero_r, ar);
  ai = first_lane_of(zero_i, ai);
  br = first_lane_of(half_r, br);
  bi = first_lane_of(half_i, bi);
}

// The reverse.
template <typename T>
STURDY_ALWAYS_INLINE void pack(Vec<T>& ar, Vec<T>& ai, Vec<T>& br, Vec<T>& bi) {
  const Vec<T> plus_r = ar - bi, plus_i = ai + br;
  const Vec<T> minus_r = ar + bi, minus_i = br - ai;
  ar = first_lane_of(plus_r, ar);
  ai = first_lane_of(plus_i, ai);
  br = first_lane_of(minus_r, br);
  bi = first_lane_of(minus_i, bi);
}

// A plane of an image, with any strides.
template <typename S>
struct StridedPlane {
  S* data;
  int64_t row, column;
};

template <typename S>
StridedPlane<S> strided_plane(const ImageView& view, int64_t image, int64_t channel) {
  using Plain = std::remove_const_t<S>;
  Plain* data = static_cast<Plain*>(view.data);
  return {data + image * view.stride[0] + channel * view.stride[1], view.stride[2], view.stride[3]};
}

// Whether planes of a view are read or written by way of a compact copy.
inline bool needs_copy(const ImageView& view, int64_t width) { return view.stride[3] != 1 && width != 1; }

// The columns' transforms; `copy` has room for a plane where needs_copy says so.
template <typename S, typename T>
void strided_columns_forward(const cpu::FftPlanePlan<T>& plan, StridedPlane<const S> plane,
                             const cpu::FftPlaneWork<T>& work, T* copy) {
  if (plane.column == 1 || plan.width == 1) {
    forward_columns<S, T>(plan, {plane.data, plane.row}, work);
    return;
  }
  for (int64_t h = 0; h < plan.height; h++) {
    for (int64_t w = 0; w < plan.width; w++) {
      copy[h * plan.width + w] = to_accumulate(plane.data[h * plane.row + w * plane.column]);
    }
  }
  forward_columns<T, T>(plan, {copy, plan.width}, work);
}

template <typename S, typename T>
void strided_columns_inverse(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work, StridedPlane<S> plane,
                             const Bounds<T>& bounds, T* copy) {
  if (plane.column == 1 || plan.width == 1) {
    inverse_columns<S, T>(plan, work, {plane.data, plane.row}, bounds);
    return;
  }
  inverse_columns<T, T>(plan, work, {copy, plan.width}, bounds);
  for (int64_t h = 0; h < plan.height; h++) {
    for (int64_t w = 0; w < plan.width; w++) {
      assign(plane.data[h * plane.row + w * plane.column], copy[h * plan.width + w]);
    }
  }
}

// A strip along the rows, in place; the columns of `work` serve as memory.
template <typename T>
void forward_strip(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work, T* r, T* i, Prefetch& prefetch) {
  if (plan.rows.chirped) {
    forward_axis<T>(plan.rows, r, i, kLanes<T>, work.column_r, work.column_i, prefetch);
    copy_vectors<T>(work.column_r, work.column_i, kLanes<T>, r, i, kLanes<T>, plan.width);
  } else if (plan.rows.stage_count > 0) {
    forward_axis<T>(plan.rows, r, i, kLanes<T>, r, i, prefetch);
  }
}

template <typename T>
void inverse_strip(const cpu::FftPlanePlan<T>& plan, const cpu::FftPlaneWork<T>& work, T* r, T* i, Prefetch& prefetch) {
  if (plan.rows.chirped) {
    copy_vectors<T>(r, i, kLanes<T>, work.column_r, work.column_i, kLanes<T>, plan.width);
    inverse_axis<T>(plan.rows, work.column_r, work.column_i, r, i, kLanes<T>, prefetch);
  } else if (plan.rows.stage_count > 0) {
    inverse_axis<T>(plan.rows, r, i, r, i, kLanes<T>, prefetch);
  }
}

// Asks for `count` compact planes of `read` and of `write`, those that begin at this image and channel, in equal parts
// with each butterfly of `strips` strips along the rows; for nothing where planes are not compact. Columns are read a
// line here and there, in an order that no machine foresees: a plane that comes from memory takes longer to read than
// to transform.
template <typename S, typename T>
Prefetch planes_ahead(const cpu::FftPlanePlan<T>& plan, const ImageView& read, const ImageView& write, int64_t image,
                      int64_t write_image, int64_t channel, int64_t count, int64_t strips) {
  Prefetch prefetch;
  const int64_t pixels = plan.height * plan.width;
  for (const ImageView* view : {&read, &write}) {
    if (view->stride[3] != 1 || view->stride[2] != plan.width || (count > 1 && view->stride[1] != pixels)) {
      return prefetch;
    }
  }
  int64_t butterflies = 0;
  for (int stage = 0; stage < plan.rows.stage_count && !plan.rows.chirped; stage++) {
    butterflies += plan.rows.length / plan.rows.stages[stage].radix;
  }
  if (butterflies * strips == 0) {
    return prefetch;
  }
  const auto place = [&](const ImageView& view, int64_t n) {
    const S* data = static_cast<const S*>(view.data) + n * view.stride[0] + channel * view.stride[1];
    return reinterpret_cast<const char*>(data);
  };
  prefetch.read = place(read, image);
  prefetch.write = place(write, write_image);
  const int64_t lines = (count * pixels * static_cast<int64_t>(sizeof(S)) + 63) / 64;
  prefetch.bytes = (lines + butterflies * strips - 1) / (butterflies * strips) * 64;
  prefetch.near = lines <= 128;
  return prefetch;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
