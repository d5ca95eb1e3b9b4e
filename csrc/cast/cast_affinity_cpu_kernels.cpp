// The CPU kernels of cast_affinity for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "cast/cast_affinity_cpu_blocks.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::CastAffinityKernels& kernels() {
  return cast_affinity_table<S, MultiplyAdd<Accumulate<S>>, ElementSource>();
}

const cpu::CastAffinityKernels& cast_affinity_kernels(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kernels<Half>();
    case DType::bf16:
      return kernels<BFloat16>();
    case DType::f64:
      return kernels<double>();
    default:
      return kernels<float>();
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
