// The CPU kernels of cast_attention for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "cast/cast_attention_cpu_backward.h"
#include "cast/cast_attention_cpu_forward.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename S>
static const cpu::CastAttentionKernels& kernels() {
  static constexpr cpu::CastAttentionKernels table = {
      pack_surrogates<S>,   forward_clusters<S>, forward_mixing<S>, backward_mixing<S>,
      backward_clusters<S>, backward_pairs<S>,   backward_wave<S>,  add_wave<S>,
  };
  return table;
}

const cpu::CastAttentionKernels& cast_attention_kernels(DType dtype) {
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
