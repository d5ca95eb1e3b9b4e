// Products of bfloat16 matrices with AVX512-BF16.
#include "common/gemm_blocks.h"
#include "common/gemm_kernels.h"
#include "common/gemm_pair_step.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

const cpu::GemmKernels& bf16_gemm_kernels() {
  static constexpr cpu::GemmKernels table = gemm_table<VectorKernel<PairStep>, PairSource>();
  return table;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
