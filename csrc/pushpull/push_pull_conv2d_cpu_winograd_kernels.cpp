// The CPU kernels of Winograd's form of PushPull convolution for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "pushpull/push_pull_conv2d_cpu_winograd_forward.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::WinogradKernels& kernels() {
  static constexpr cpu::WinogradKernels table = {
      kLanes<float>,
      kGemmRows,
      pack_winograd_filters<S, kGemmRows>,
      winograd_forward<S>,
  };
  return table;
}

const cpu::WinogradKernels& winograd_kernels(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kernels<Half>();
    case DType::bf16:
      return kernels<BFloat16>();
    default:
      return kernels<float>();
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
