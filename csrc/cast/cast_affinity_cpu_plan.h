// How the CPU kernels of cast_affinity lay out one call, and the table of kernels that one instruction set offers.
// Plain data and function pointers only: this header is seen by sources compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "cast/cast_affinity.h"
#include "common/cpu_features.h"

namespace sturdy {
namespace cpu {

struct CastAffinityPlan {
  CastAffinityParams params;
  int64_t head_depth;    // packed elements of one head: one element each, or a pair
  int64_t depth;         // of all heads
  int64_t depth_blocks;  // at least 1
  int64_t token_panels;  // of one sequence
  void* surrogates;      // [depth block][panel of clusters][k][cluster]
};

struct CastAffinityKernels {
  int64_t vector_tokens, panel_vectors;  // tokens in a vector, vectors in a panel of tokens
  int64_t element_depth;                 // elements of depth in a packed element
  int64_t packed_bytes;
  void (*pack)(const CastAffinityPlan&, int64_t begin, int64_t end);  // depth blocks
  void (*run)(const CastAffinityPlan&, int64_t begin, int64_t end);   // (sequences, panels of tokens)
};

}  // namespace cpu

namespace portable {
const cpu::CastAffinityKernels& cast_affinity_kernels(DType dtype);
}
namespace avx2 {
const cpu::CastAffinityKernels& cast_affinity_kernels(DType dtype);
}
namespace avx512 {
const cpu::CastAffinityKernels& cast_affinity_kernels(DType dtype);
}
namespace avx512_bf16 {
const cpu::CastAffinityKernels& cast_affinity_bf16_kernels();
}

}  // namespace sturdy
