// Rows of images as numbers to calculate with, and back.
#pragma once

#include <algorithm>
#include <limits>

#include "common/simd.h"
#include "fourier/prime_cpu_plan.h"
#include "fourier/wave_add_cpu_rows.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

inline int64_t padded(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

template <typename T>
Bounds<T> bounds_of(const ImageClip& clip) {
  const T infinity = std::numeric_limits<T>::infinity();
  return clip.on ? Bounds<T>{static_cast<T>(clip.low), static_cast<T>(clip.high)} : Bounds<T>{-infinity, infinity};
}

// `length` elements that lie `stride` apart, as T side by side. Nothing behind to[length - 1] is written.
template <typename T, typename S>
STURDY_ALWAYS_INLINE void read_row(const S* from, int64_t stride, T* to, int64_t length) {
  if (stride != 1) {
    for (int64_t j = 0; j < length; j++) {
      to[j] = pixel<T>(from[j * stride]);
    }
    return;
  }
  int64_t at = 0;
  for (; at + kLanes<T> <= length; at += kLanes<T>) {
    store(to + at, load_pixels<T>(from + at));
  }
  if (at < length) {
    store_partial(to + at, load_pixels_partial<T>(from + at, length - at), length - at);
  }
}

// The inverse, rounded to what `to` holds.
template <typename T, typename S>
STURDY_ALWAYS_INLINE void write_row(const T* from, S* to, int64_t stride, int64_t length) {
  if (stride != 1) {
    for (int64_t j = 0; j < length; j++) {
      assign(to[j * stride], from[j]);
    }
    return;
  }
  int64_t at = 0;
  for (; at + kLanes<T> <= length; at += kLanes<T>) {
    store(to + at, load(from + at));
  }
  if (at < length) {
    store_partial(to + at, load_partial(from + at, length - at), length - at);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
