// The CPU kernels of amplitude_mix for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "fourier/amplitude_mix_cpu_passes.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::AmplitudeMixKernels<Accumulate<S>>& kernels() {
  static constexpr cpu::AmplitudeMixKernels<Accumulate<S>> table = {kLanes<Accumulate<S>>, mix_amplitudes<S>};
  return table;
}

const cpu::AmplitudeMixKernels<float>& amplitude_mix_kernels(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kernels<Half>();
    case DType::bf16:
      return kernels<BFloat16>();
    default:
      return kernels<float>();
  }
}

const cpu::AmplitudeMixKernels<double>& amplitude_mix_kernels_f64() { return kernels<double>(); }

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
