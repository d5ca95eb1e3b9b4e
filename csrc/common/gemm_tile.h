// The register tile of a matrix product: what every CPU kernel that multiplies matrices spends its time in.
//
// Rows of the result are broadcasts from a packed panel of a, columns are vectors of b. A tile of kGemmRows x
// kGemmVectors fills the registers: 24 accumulators of 32 with AVX-512, 12 of 16 with AVX2, and 8 of 16 where the
// product needs a register of its own.
//
// Every tile, whatever its size, adds up an element of the result in the order of k, from zero: an element has the
// same bits in a tile of one row as in a tile of eight.
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

// One step of a tile, for operands that are packed as what they are summed in. A tile for another packing (pairs of
// bfloat16) brings a struct with the same members.
template <typename T>
struct MultiplyAdd {
  using Packed = T;  // an element of a packed panel
  using Sum = T;     // an element of the result

  static STURDY_ALWAYS_INLINE Vec<T> spread(const T* a) { return broadcast(*a); }
  static STURDY_ALWAYS_INLINE Vec<T> columns(const T* b) { return load(b); }
  static STURDY_ALWAYS_INLINE void add(Vec<T>& sum, Vec<T> a, Vec<T> b) { accumulate(sum, a, b); }
};

// sum[row][vector] += sum over k < depth of a[k * rows + row] * b[k * b_step + column].
// With a barrier between steps: gcc 12 otherwise shares broadcasts between steps and spills.
template <typename Step, int rows, int vectors>
STURDY_ALWAYS_INLINE void add_panel_product(Vec<typename Step::Sum> (&sum)[rows][vectors],
                                            const typename Step::Packed* a, const typename Step::Packed* b,
                                            int64_t b_step, int64_t depth) {
  constexpr int lanes = kLanes<typename Step::Packed>;
  for (int64_t k = 0; k < depth; k++) {
    asm volatile("" ::: "memory");
    Vec<typename Step::Packed> column[vectors];
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      column[j] = Step::columns(b + j * lanes);
    }
    STURDY_UNROLL
    for (int i = 0; i < rows; i++) {
      const Vec<typename Step::Packed> value = Step::spread(a + i);
      STURDY_UNROLL
      for (int j = 0; j < vectors; j++) {
        Step::add(sum[i][j], value, column[j]);
      }
    }
    a += rows;
    b += b_step;
  }
}

template <typename T, int rows, int vectors>
STURDY_ALWAYS_INLINE void clear(Vec<T> (&sum)[rows][vectors]) {
  STURDY_UNROLL
  for (int i = 0; i < rows; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      sum[i][j] = zero<T>();
    }
  }
}

// The tile for any kind of step: out[row][column] (+)= the product of the panels. Not inlined, so that what surrounds
// it does not cost it registers.
template <typename Step, int rows, int vectors>
__attribute__((noinline)) static void gemm_step_tile(const typename Step::Packed* a, const typename Step::Packed* b,
                                                     int64_t b_step, int64_t depth, typename Step::Sum* out,
                                                     int64_t out_step, bool add) {
  using Sum = typename Step::Sum;
  Vec<Sum> sum[rows][vectors];
  clear(sum);
  add_panel_product<Step>(sum, a, b, b_step, depth);
  STURDY_UNROLL
  for (int i = 0; i < rows; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      Sum* to = out + i * out_step + j * kLanes<Sum>;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
  }
}

// out[row][column] (+)= sum over k < depth of a[k * rows + row] * b[k * b_step + column], for `rows` rows and
// `vectors` vectors of columns; rows of out are out_step elements apart. Nothing needs to be aligned.
template <typename T, int rows, int vectors>
STURDY_ALWAYS_INLINE void gemm_tile(const T* a, const T* b, int64_t b_step, int64_t depth, T* out, int64_t out_step,
                                    bool add) {
  gemm_step_tile<MultiplyAdd<T>, rows, vectors>(a, b, b_step, depth, out, out_step, add);
}

// One pair of panels of a batch-reduce product.
template <typename Packed>
struct GemmTerm {
  const Packed* a;  // [k][rows]
  const Packed* b;  // [k][b_step]
  int64_t depth;
};

// Batch-reduce: the sum over a list of panel products, which never leaves the registers. Each finished vector goes
// once to done(row, vector, value), which adds a bias, applies an activation, converts, stores, or all of it. A `done`
// that needs many registers of its own makes the compiler spill the tile: let it store to a small buffer instead, and
// go over that while it is in the first-level cache.
template <typename Step, int rows, int vectors, typename Done>
__attribute__((noinline)) static void gemm_reduce_tile(const GemmTerm<typename Step::Packed>* terms, int64_t count,
                                                       int64_t b_step, const Done& done) {
  Vec<typename Step::Sum> sum[rows][vectors];
  clear(sum);
  for (int64_t t = 0; t < count; t++) {
    add_panel_product<Step>(sum, terms[t].a, terms[t].b, b_step, terms[t].depth);
  }
  STURDY_UNROLL
  for (int i = 0; i < rows; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      done(i, j, sum[i][j]);
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
