// How the CPU kernels of spectrum_accumulate lay out one call, and the table of kernels that one instruction set
// offers. Plain data and function pointers only: this header is seen by sources compiled for different instruction
// sets.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "fourier/fft_plane_plan.h"
#include "fourier/spectrum_accumulate.h"

namespace sturdy {
namespace cpu {

template <typename T>
struct SpectrumAccumulatePlan {
  FftPlanePlan<T> plane;
  // Sums have the layout of the half spectrum. Where the plan is packed its first lane is that of row 0, and a further
  // strip has in its first lane that of row H / 2.
  int64_t sum_size;  // elements

  int64_t* starts;   // (groups + 1): where a group's images begin in `images`
  int64_t* images;   // sorted by group, in their order
  int64_t pieces;    // sums that a group is made of, each of every so many images; added up in their order
  double* partials;  // (groups * channels, pieces, sum_size); null where pieces is 1

  STURDY_ALWAYS_INLINE bool is_empty(int64_t group) const { return starts[group] == starts[group + 1]; }
};

// Writes the sums of group and channel `id`, or 0 where `sum` is null, as the call wants them.
template <typename T>
void finish_spectrum(const SpectrumAccumulatePlan<T>& plan, const SpectrumAccumulateParams& params, int64_t id,
                     const double* sum);

template <typename T>
struct SpectrumAccumulateKernels {
  int64_t lanes;
  // Items are (groups, channels, pieces).
  void (*add)(const SpectrumAccumulatePlan<T>&, const SpectrumAccumulateParams&, int64_t begin, int64_t end);
};

}  // namespace cpu

namespace portable {
const cpu::SpectrumAccumulateKernels<float>& spectrum_accumulate_kernels(DType dtype);
const cpu::SpectrumAccumulateKernels<double>& spectrum_accumulate_kernels_f64();
}  // namespace portable
namespace avx2 {
const cpu::SpectrumAccumulateKernels<float>& spectrum_accumulate_kernels(DType dtype);
const cpu::SpectrumAccumulateKernels<double>& spectrum_accumulate_kernels_f64();
}  // namespace avx2
namespace avx512 {
const cpu::SpectrumAccumulateKernels<float>& spectrum_accumulate_kernels(DType dtype);
const cpu::SpectrumAccumulateKernels<double>& spectrum_accumulate_kernels_f64();
}  // namespace avx512

}  // namespace sturdy
