// What the test library's sources for one instruction set each offer to its entry points.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace sturdy {

enum class MathFunction : int32_t { exp, sin, cos, erf, gelu };

// A batch-reduce product of `count` pairs of panels, finished by a bias, relu, and rounding to bfloat16.
struct ReduceRequest {
  int32_t count;
  const float* const* a;  // each [depth][rows]
  const float* const* b;  // each [depth][columns]
  const int64_t* depths;
  const float* bias;  // (columns)
  uint16_t* out;      // (rows, columns) bfloat16
};

struct CoreTests {
  int64_t tile_rows, tile_columns;
  void (*map_floats)(MathFunction function, const float* x, float* out, int64_t count);
  void (*map_doubles)(MathFunction function, const double* x, double* out, int64_t count);
  void (*reduce)(const ReduceRequest& request);  // of tile_rows x tile_columns
  // gemm_tile of every size up to the largest, vectors in columns / lanes.
  bool (*tile)(int64_t rows, int64_t columns, const float* a, const float* b, int64_t b_step, int64_t depth, float* out,
               int64_t out_step, bool add);
  // At least `count` multiply-adds of floats in registers; returns something of their result.
  float (*multiply_adds)(int64_t count);
};

namespace portable {
const CoreTests& core_tests();
}
namespace avx2 {
const CoreTests& core_tests();
}
namespace avx512 {
const CoreTests& core_tests();
}

namespace cpu {
struct GemmKernels;
}
namespace amx_on_twin {
const cpu::GemmKernels& bf16_gemm_kernels();
}

}  // namespace sturdy
