// The kernels of Winograd's form of backward for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "pushpull/push_pull_conv2d_cpu_winograd_backward.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::WinogradBackwardKernels& kernels() {
  static constexpr cpu::WinogradBackwardKernels table = {kLanes<float>, winograd_backward<S>, winograd_reduce<S>};
  return table;
}

const cpu::WinogradBackwardKernels& winograd_backward_kernels(DType dtype) {
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
