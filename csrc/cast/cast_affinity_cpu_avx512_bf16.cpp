// cast_affinity of bfloat16 with AVX512-BF16, on pairs of elements.
#include "cast/cast_affinity_cpu_blocks.h"
#include "common/gemm_pair_step.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
using PairSourceOf = PairSource;

const cpu::CastAffinityKernels& cast_affinity_bf16_kernels() {
  return cast_affinity_table<BFloat16, PairStep, PairSourceOf>();
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
