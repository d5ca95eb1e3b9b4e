// The register tile of a matrix product: what every CPU kernel that multiplies matrices spends its time in.
//
// Rows of the result are broadcasts from a packed panel of a, columns are vectors of b. A tile of kGemmRows x
// kGemmVectors fills the registers: 24 accumulators of 32 with AVX-512, 12 of 16 with AVX2, and 8 of 16 where the
// product needs a register of its own.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kGemmRows = 8;
constexpr int kGemmVectors = 3;
#elif defined(__AVX2__)
constexpr int kGemmRows = 4;
constexpr int kGemmVectors = 3;
#else
constexpr int kGemmRows = 4;
constexpr int kGemmVectors = 2;
#endif

// out[row][column] (+)= sum over k < depth of a[k * rows + row] * b[k * b_step + column], for `rows` rows and
// `vectors` vectors of columns; rows of out are out_step elements apart. Nothing needs to be aligned.
// Not inlined, and with a barrier between steps: gcc 12 otherwise shares broadcasts between steps and spills.
template <typename T, int rows, int vectors>
__attribute__((noinline)) static void gemm_tile(const T* a, const T* b, int64_t b_step, int64_t depth, T* out,
                                                int64_t out_step, bool add) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[rows][vectors];
  STURDY_UNROLL
  for (int i = 0; i < rows; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      sum[i][j] = zero<T>();
    }
  }
  for (int64_t k = 0; k < depth; k++) {
    asm volatile("" ::: "memory");
    Vec<T> column[vectors];
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      column[j] = load(b + j * lanes);
    }
    STURDY_UNROLL
    for (int i = 0; i < rows; i++) {
      const Vec<T> value = broadcast(a[i]);
      STURDY_UNROLL
      for (int j = 0; j < vectors; j++) {
        accumulate(sum[i][j], value, column[j]);
      }
    }
    a += rows;
    b += b_step;
  }
  STURDY_UNROLL
  for (int i = 0; i < rows; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      T* to = out + i * out_step + j * lanes;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
