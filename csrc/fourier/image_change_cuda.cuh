// What the CUDA kernels that change images share: pixels, parameters, the clamp.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"
#include "fourier/image_change.h"

namespace sturdy::cuda {

STURDY_DEVICE double read_parameter(const ImageParameter& parameter, int64_t at) {
  return parameter.is_double ? static_cast<const double*>(parameter.data)[at]
                             : static_cast<double>(static_cast<const float*>(parameter.data)[at]);
}

// value / 255 for whole numbers up to 255, to the last bit, by 1 / 255 in two parts: a division is a call.
STURDY_DEVICE float byte_value(float value) { return __fmaf_rn(value, 0x1.010102p-8f, value * -0x1.fdfdfep-33f); }
STURDY_DEVICE double byte_value(double value) {
  return __fma_rn(value, 0x1.0101010101010p-8, value * 0x1.0101010101010p-64);
}

template <typename A, typename In>
STURDY_DEVICE A image_value(In value) {
  if constexpr (sizeof(In) == 1) {
    return byte_value(static_cast<A>(value));
  } else {
    return to_accumulate(value);
  }
}

template <typename Element>
STURDY_DEVICE Element* image_address(const ImageView& view, int64_t image, int64_t channel, int64_t row,
                                     int64_t column) {
  return static_cast<Element*>(view.data) + image * view.stride[0] + channel * view.stride[1] + row * view.stride[2] +
         column * view.stride[3];
}

// A NaN stays.
template <typename A>
STURDY_DEVICE A clipped(const ImageClip& clip, A value) {
  if (!clip.on) {
    return value;
  }
  const A low = static_cast<A>(clip.low);
  const A high = static_cast<A>(clip.high);
  const A raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// Whether the gradient passes the clamp of `value`.
template <typename A>
STURDY_DEVICE bool passes(const ImageClip& clip, A value) {
  return !clip.on || (value >= static_cast<A>(clip.low) && value <= static_cast<A>(clip.high));
}

// Calls run<element type>() for a dtype: a list of what kernels are made for.
template <typename Run>
Status for_dtype(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::f32:
      return run(float{});
    case DType::f64:
      return run(double{});
    case DType::f16:
      return run(__half{});
    case DType::bf16:
      return run(__nv_bfloat16{});
  }
  return Status::unsupported_dtype;
}

}  // namespace sturdy::cuda
