// The kernels of matrix products for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "common/gemm_kernels.h"

#include "common/gemm_blocks.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::GemmKernels& kernels() {
  static constexpr cpu::GemmKernels table = gemm_table<VectorKernel<MultiplyAdd<Accumulate<S>>>, ElementSource<S>>();
  return table;
}

const cpu::GemmKernels& gemm_kernels(DType dtype) {
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
