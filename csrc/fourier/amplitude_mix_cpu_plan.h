// How the CPU kernels of amplitude_mix lay out one call, and the table of kernels that one instruction set offers.
// Plain data and function pointers only: this header is seen by sources compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "fourier/amplitude_mix.h"
#include "fourier/fft_plane_plan.h"

namespace sturdy {
namespace cpu {

template <typename T>
struct AmplitudeMixPlan {
  FftPlanePlan<T> plane;
  FftAxis<T> channels;  // of length channels, where `color`
  int64_t together;     // planes that are transformed together: channels, or 1
  int64_t* nearest;     // (strips): the least |k| of a strip's rows

  // Items are (channels / together, batch), the images of a channel in this order. Where partners come from the images
  // themselves, an image is followed by its partner, whose spectrum is there then.
  int64_t* order;

  T scale;             // what one transform there and back makes of 1, the other way round
  T scale_of_columns;  // the same without the transforms along rows and channels
  T least_square;      // of an amplitude that has a phase, as the transforms scale it
};

template <typename T>
struct AmplitudeMixKernels {
  int64_t lanes;
  void (*mix)(const AmplitudeMixPlan<T>&, const AmplitudeMixParams&, int64_t begin, int64_t end);
};

}  // namespace cpu

namespace portable {
const cpu::AmplitudeMixKernels<float>& amplitude_mix_kernels(DType dtype);
const cpu::AmplitudeMixKernels<double>& amplitude_mix_kernels_f64();
}  // namespace portable
namespace avx2 {
const cpu::AmplitudeMixKernels<float>& amplitude_mix_kernels(DType dtype);
const cpu::AmplitudeMixKernels<double>& amplitude_mix_kernels_f64();
}  // namespace avx2
namespace avx512 {
const cpu::AmplitudeMixKernels<float>& amplitude_mix_kernels(DType dtype);
const cpu::AmplitudeMixKernels<double>& amplitude_mix_kernels_f64();
}  // namespace avx512

}  // namespace sturdy
