// cast_affinity on the CPU: lays out one call and hands its parts to the kernels of the machine's instruction set.
#include <algorithm>
#include <new>

#include "cast/cast_affinity.h"
#include "cast/cast_affinity_cpu_plan.h"
#include "common/gemm.h"
#include "common/scratch.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kLeastWork = int64_t{1} << 17;  // multiply-adds that are worth a task

const CastAffinityKernels& kernels_for(DType dtype) {
#if defined(STURDY_HAVE_AVX512_BF16)
  if (dtype == DType::bf16 && cpu_bf16_isa() != Bf16Isa::none) {
    return avx512_bf16::cast_affinity_bf16_kernels();
  }
#endif
  return STURDY_ON_CPU_ISA(cast_affinity_kernels(dtype));
}

Status run(const CastAffinityParams& params, const Threads& threads) {
  const CastAffinityKernels& kernels = kernels_for(params.dtype);
  const CastSizes& sizes = params.sizes;
  CastAffinityPlan plan{};
  plan.params = params;
  plan.head_depth = (sizes.dim + kernels.element_depth - 1) / kernels.element_depth;
  plan.depth = sizes.heads * plan.head_depth;
  plan.depth_blocks = std::max<int64_t>((plan.depth + kGemmDepthBlock - 1) / kGemmDepthBlock, 1);
  const int64_t panel_tokens = kernels.vector_tokens * kernels.panel_vectors;
  plan.token_panels = (sizes.tokens + panel_tokens - 1) / panel_tokens;
  const auto bytes = static_cast<size_t>(sizes.clusters * plan.depth * kernels.packed_bytes);
  plan.surrogates = host_scratch(ScratchSlot::call, bytes);
  Status status = threads(plan.depth_blocks, 1, [&](int64_t begin, int64_t end) { kernels.pack(plan, begin, end); });
  if (status == Status::ok) {
    const int64_t work = 2 * panel_tokens * sizes.clusters * std::max<int64_t>(plan.depth, 1);
    const int64_t grain = std::max<int64_t>(kLeastWork / work, 1);
    status = threads(sizes.batch * plan.token_panels, grain, [&](int64_t begin, int64_t end) {
      kernels.run(plan, begin, end);
      trim_host_scratch(ScratchSlot::task);
    });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

Status cast_affinity(const CastAffinityParams& params, const Threads& threads) {
  if (params.sizes.batch == 0 || params.sizes.tokens == 0) {
    return Status::ok;
  }
  try {
    return run(params, threads);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

}  // namespace cpu
}  // namespace sturdy
