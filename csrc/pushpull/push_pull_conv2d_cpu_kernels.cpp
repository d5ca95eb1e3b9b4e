// The CPU kernels of PushPull convolution for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "pushpull/push_pull_conv2d_cpu_backward.h"
#include "pushpull/push_pull_conv2d_cpu_forward.h"
#include "pushpull/push_pull_conv2d_cpu_grad_input_kernels.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::PushPullKernels& kernels() {
  static constexpr cpu::PushPullKernels table = {
      kLanes<Accumulate<S>>,      pack_filters<S>, forward<S>, backward<S>, reduce<S>,
      pack_grad_input_filters<S>, grad_input<S>,
  };
  return table;
}

const cpu::PushPullKernels& push_pull_kernels(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return kernels<double>();
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
