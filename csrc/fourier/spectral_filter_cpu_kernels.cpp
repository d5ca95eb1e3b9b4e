// The CPU kernels of spectral_filter for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "fourier/spectral_filter_cpu_passes.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::SpectralFilterKernels<Accumulate<S>>& kernels() {
  static constexpr cpu::SpectralFilterKernels<Accumulate<S>> table = {kLanes<Accumulate<S>>, filter_planes<S>,
                                                                      grad_x<S>, grad_mask<S>};
  return table;
}

const cpu::SpectralFilterKernels<float>& spectral_filter_kernels(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kernels<Half>();
    case DType::bf16:
      return kernels<BFloat16>();
    default:
      return kernels<float>();
  }
}

const cpu::SpectralFilterKernels<double>& spectral_filter_kernels_f64() { return kernels<double>(); }

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
