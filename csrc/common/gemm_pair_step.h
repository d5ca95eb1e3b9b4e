// One step of the register tile for pairs of bfloat16, for sources compiled with AVX512-BF16, whose vdpbf16ps adds the
// products of two pairs to each float.
#pragma once

#include <cstdint>

#include "common/gemm_tile.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Products of bfloat16 are exact in float; the instruction adds the second one first, rounds each sum to nearest even,
// and takes subnormal numbers as zero and makes them zero.
struct PairStep {
  using Packed = uint32_t;
  using Sum = float;

  static STURDY_ALWAYS_INLINE Vec<uint32_t> spread(const uint32_t* a) {
    return {reinterpret_cast<Vec<uint32_t>::Native>(_mm512_set1_epi32(static_cast<int>(*a)))};
  }
  static STURDY_ALWAYS_INLINE Vec<uint32_t> columns(const uint32_t* b) { return load_same(b); }
  static STURDY_ALWAYS_INLINE void add(Vec<float>& sum, Vec<uint32_t> a, Vec<uint32_t> b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  }
};

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
