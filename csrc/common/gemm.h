// Matrix products on the CPU: out = a b, or out += a b, for operands with any strides.
//
// An element of the result is a fixed sum: depth is cut into blocks of a fixed length, each added up in order from
// zero, blocks are added up into chunks of a fixed number of blocks and chunks into the result. That depends on depth
// and on the kernel alone, so results do not depend on the number of threads, on the other sizes, on strides or on how
// work is cut up: a row of a product equals the product of that row.
//
// Sources that are compiled per instruction set find the register tile in gemm_tile.h and the packing helpers in
// gemm_pack.h, and can fuse what they like around them.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/parallel.h"
#include "common/types.h"

namespace sturdy {
namespace cpu {

enum class GemmActivation : uint8_t { none, relu, gelu };  // gelu is the exact one, x * (1 + erf(x / sqrt(2))) / 2

// What is done to the finished sums while they are in the first-level cache, before their one store; in this order.
// Values are in accumulate type: double for a double product, else float.
struct GemmEpilogue {
  const void* row_bias = nullptr;     // (rows), accumulate type
  const void* column_bias = nullptr;  // (columns), accumulate type
  GemmActivation activation = GemmActivation::none;
  // May change the `count` values of out[row, column ...]. Called from several threads, once for each element.
  void (*visit)(void* context, void* values, int64_t row, int64_t column, int64_t count) = nullptr;
  void* context = nullptr;
};

// Strides are in elements and may be anything, 0 and negative included; those of out must not make elements meet.
// out overlaps neither operand.
struct GemmParams {
  int64_t rows, columns, depth;
  DType dtype;    // of a and b; f16 and bf16 are summed in float
  const void* a;  // (rows, depth)
  int64_t a_row_stride, a_depth_stride;
  const void* b;  // (depth, columns)
  int64_t b_depth_stride, b_column_stride;
  DType out_dtype;  // f64 exactly where dtype is
  void* out;        // (rows, columns)
  int64_t out_row_stride, out_column_stride;
  bool add = false;  // start the epilogue from out + a b instead of a b
  GemmEpilogue epilogue;
};

// How one product is cut up. Depths are in packed elements: of one element each, or of a pair.
struct GemmPlan {
  GemmParams params;
  int64_t depth;         // packed elements, rounded up to what the kernel takes at a time
  int64_t depth_blocks;  // at least 1
  int64_t chunks;        // at least 1
  int64_t row_blocks, block_rows;
  int64_t column_blocks, block_columns;
  int64_t first_column, end_column;  // of this round
  int64_t panel_columns;             // of packed b: the kernel's, or less where that leaves no narrow last panel
  int64_t tile_pitch;                // elements of the sums of one block
  void* packed_b;  // all of this round's columns: [depth block][panel][k][column]; null: tasks pack their own
  void* partials;  // sums by [chunk][block], where chunks are tasks of their own; else null
};

// The kernels of one instruction set for one element type. Functions work on the units [begin, end).
struct GemmKernels {
  int64_t panel_rows, panel_columns, column_step;
  int64_t depth_step;     // packed depth is a multiple of it
  int64_t element_depth;  // elements of depth in a packed element
  int64_t packed_bytes, sum_bytes;
  void (*pack)(const GemmPlan&, int64_t begin, int64_t end);      // depth blocks * column blocks of this round
  void (*multiply)(const GemmPlan&, int64_t begin, int64_t end);  // [chunks *] column blocks * row blocks
  void (*reduce)(const GemmPlan&, int64_t begin, int64_t end);    // column blocks * row blocks, after chunks
};

constexpr int64_t kGemmDepthBlock = 256;  // packed elements
constexpr int64_t kGemmChunkBlocks = 16;

// Which kernels multiply two bfloat16 matrices: the best that this machine has, or those named.
enum class GemmLevel : uint8_t { portable, avx2, avx512, avx512_bf16, amx };

// The kernels for operands of `dtype`. Levels above avx512 differ from it for bfloat16 alone. The level must be one
// that this build and this machine have.
const GemmKernels& gemm_kernels(GemmLevel level, DType dtype);

// What this machine runs on, see cpu_features.h.
GemmLevel gemm_level();

Status gemm(const GemmParams& params, const Threads& threads, const GemmKernels& kernels);
Status gemm(const GemmParams& params, const Threads& threads);

}  // namespace cpu
}  // namespace sturdy
