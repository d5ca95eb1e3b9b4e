// How the CPU kernels of spectral_filter lay out one call, and the table of kernels that one instruction set offers.
// Plain data and function pointers only: this header is seen by sources compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "fourier/fft_plane_plan.h"
#include "fourier/spectral_filter.h"

namespace sturdy {
namespace cpu {

// The planes that spectral_filter_cpu_small.h has kernels for: those of the usual small images, where vectors are wide
// enough.
constexpr bool is_small_plane(int64_t height, int64_t width, int64_t lanes) {
  return lanes == 16 && height == width && (height == 28 || height == 32);
}

template <typename T>
struct SpectralFilterPlan {
  SpectralFilterGeometry geometry;
  FftPlanePlan<T> plane;
  bool small;  // for the kernels of small planes, forward with one result for each image
  Masks mask;

  // A prepared mask has the layout of the half spectrum and everything in it that scales. Where the plan is packed its
  // first row is p = (m0 + mh) / 2 of the masks of both its spectra, and a second part of one strip has
  // q = (m0 - mh) / 2 in its first lane and 0 elsewhere: the product is p z(l) + q conj z(-l).
  int64_t mask_size;   // elements
  int64_t mask_count;  // entries * many * channels
  T* masks;            // (mask_count, mask_size); null: tasks prepare what they need

  // The gradient of the masks: the images of a mask, in their order, are added up in `pieces` sums, those sums in their
  // order.
  int64_t pieces;
  T* partials;  // (mask_count, pieces, spectrum_size); null where pieces is 1

  // The table entry of an image, -1 for a copy.
  STURDY_ALWAYS_INLINE int64_t entry(int64_t image) const {
    if (geometry.index != nullptr) {
      return geometry.index[image * geometry.index_stride];
    }
    return geometry.mask_entries > 1 ? image : 0;
  }

  STURDY_ALWAYS_INLINE int64_t mask_id(int64_t entry, int64_t filtered, int64_t channel) const {
    const int64_t c = geometry.mask_channels > 1 ? channel : 0;
    return (entry * geometry.many + filtered) * geometry.mask_channels + c;
  }
};

template <typename T>
void prepare_mask(const SpectralFilterPlan<T>& plan, int64_t id, T* to);

// Writes the gradient of mask `id` from the sum of x conj g in the layout of the half spectrum.
template <typename T>
void finish_mask_gradient(const SpectralFilterPlan<T>& plan, const Masks& gradient, int64_t id, const T* sum);

// Both element types behind one set of pointers: a plan for double comes with the kernels of f64 alone.
template <typename T>
struct SpectralFilterKernels {
  int64_t lanes;
  // (batch, channels)
  void (*forward)(const SpectralFilterPlan<T>&, const SpectralFilterParams&, int64_t begin, int64_t end);
  void (*grad_x)(const SpectralFilterPlan<T>&, const SpectralFilterBackwardParams&, int64_t begin, int64_t end);
  // mask_count * pieces
  void (*grad_mask)(const SpectralFilterPlan<T>&, const SpectralFilterBackwardParams&, int64_t begin, int64_t end);
};

}  // namespace cpu

namespace portable {
const cpu::SpectralFilterKernels<float>& spectral_filter_kernels(DType dtype);
const cpu::SpectralFilterKernels<double>& spectral_filter_kernels_f64();
}  // namespace portable
namespace avx2 {
const cpu::SpectralFilterKernels<float>& spectral_filter_kernels(DType dtype);
const cpu::SpectralFilterKernels<double>& spectral_filter_kernels_f64();
}  // namespace avx2
namespace avx512 {
const cpu::SpectralFilterKernels<float>& spectral_filter_kernels(DType dtype);
const cpu::SpectralFilterKernels<double>& spectral_filter_kernels_f64();
}  // namespace avx512

}  // namespace sturdy
