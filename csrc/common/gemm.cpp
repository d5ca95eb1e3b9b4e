// Lays out one matrix product and hands its parts to the kernels of the machine's instruction set.
#include "common/gemm.h"

#include <algorithm>
#include <new>
#include <utility>

#include "common/gemm_kernels.h"
#include "common/scratch.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kMostBlockRows = 128;
constexpr int64_t kLeastBlockRows = 32;
constexpr int64_t kBlockBytes = 384 << 10;           // of packed b: with the sums it fits a second-level cache of 1 MiB
constexpr int64_t kTasksWanted = 16;                 // enough for any machine's threads to share a small product
constexpr int64_t kPackedBytes = int64_t{48} << 20;  // of b packed for all tasks
constexpr int64_t kPartialBytes = int64_t{64} << 20;  // of sums that chunks of depth leave

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Blocks of at most `most` panels, as even as can be, and at least `wanted` of them unless that takes blocks of less
// than `least` panels. Returns the panels of a block.
int64_t block_panels(int64_t panels, int64_t wanted, int64_t least, int64_t most) {
  const int64_t panels_wanted = std::clamp(divide_up(panels, wanted), least, most);
  return divide_up(panels, divide_up(panels, panels_wanted));
}

void cut(GemmPlan& plan, const GemmKernels& kernels) {
  const GemmParams& p = plan.params;
  plan.depth = round_up(divide_up(p.depth, kernels.element_depth), kernels.depth_step);
  plan.depth_blocks = std::max<int64_t>(1, divide_up(plan.depth, kGemmDepthBlock));
  plan.chunks = divide_up(plan.depth_blocks, kGemmChunkBlocks);

  // A last panel of one vector takes as long as one of two: with few columns, better panels of two each.
  plan.panel_columns = kernels.panel_columns;
  const int64_t steps = divide_up(p.columns, kernels.column_step);
  if (kernels.panel_columns == 3 * kernels.column_step && steps > 1 && steps <= 10 && steps % 3 == 1) {
    plan.panel_columns = 2 * kernels.column_step;
  }
  const int64_t row_panels = divide_up(p.rows, kernels.panel_rows);
  const int64_t column_panels = divide_up(p.columns, plan.panel_columns);
  const int64_t least_rows = std::max<int64_t>(1, kLeastBlockRows / kernels.panel_rows);
  const int64_t most_rows = std::max<int64_t>(1, kMostBlockRows / kernels.panel_rows);
  const int64_t panel_bytes = plan.panel_columns * kGemmDepthBlock * kernels.packed_bytes;
  const int64_t most_columns = std::max<int64_t>(1, kBlockBytes / panel_bytes);
  // With few rows each part of b is used by one task, which packs it for itself.
  int64_t row_block = most_rows;
  int64_t column_block = most_columns;
  if (row_panels <= most_rows) {
    column_block = block_panels(column_panels, kTasksWanted, 2, most_columns);
    const int64_t tasks = divide_up(column_panels, column_block) * plan.chunks;
    row_block = tasks * 2 > kTasksWanted ? most_rows : least_rows;
  } else {
    row_block = block_panels(row_panels, kTasksWanted, least_rows, most_rows);
    column_block = block_panels(column_panels, 1, 1, most_columns);
  }
  plan.block_rows = std::min(row_block, row_panels) * kernels.panel_rows;
  plan.block_columns = column_block * plan.panel_columns;
  plan.row_blocks = divide_up(p.rows, plan.block_rows);
  plan.tile_pitch = plan.block_rows * std::min(plan.block_columns, round_up(p.columns, kernels.column_step));
}

// The columns of one round, and where their packed form and the sums of chunks lie.
Status multiply_round(GemmPlan& plan, const Threads& threads, const GemmKernels& kernels, bool pack) {
  const int64_t columns = plan.end_column - plan.first_column;
  plan.column_blocks = divide_up(columns, plan.block_columns);
  const int64_t blocks = plan.row_blocks * plan.column_blocks;
  const int64_t partial_bytes = plan.chunks * blocks * plan.tile_pitch * kernels.sum_bytes;
  const bool split = plan.chunks > 1 && blocks < kTasksWanted && partial_bytes <= kPartialBytes;
  const int64_t packed = pack ? plan.depth * round_up(columns, kernels.column_step) * kernels.packed_bytes : 0;
  Arena arena(
      host_scratch(ScratchSlot::product, static_cast<size_t>(round_up(packed, 64) + (split ? partial_bytes : 0))));
  plan.packed_b = pack ? arena.take<char>(packed) : nullptr;
  plan.partials = split ? arena.take<char>(partial_bytes) : nullptr;
  Status status = Status::ok;
  if (pack) {
    status = threads(plan.depth_blocks * plan.column_blocks, 1,
                     [&](int64_t begin, int64_t end) { kernels.pack(plan, begin, end); });
  }
  if (status == Status::ok) {
    status = threads(split ? plan.chunks * blocks : blocks, 1,
                     [&](int64_t begin, int64_t end) { kernels.multiply(plan, begin, end); });
  }
  if (status == Status::ok && split) {
    status = threads(blocks, 1, [&](int64_t begin, int64_t end) { kernels.reduce(plan, begin, end); });
  }
  return status;
}

// Sums are the same either way round, and kernels store along columns.
GemmParams with_contiguous_columns(const GemmParams& params) {
  GemmParams p = params;
  if (p.out_column_stride == 1 || p.out_row_stride != 1 || p.epilogue.visit != nullptr) {
    return p;
  }
  std::swap(p.rows, p.columns);
  std::swap(p.a, p.b);
  std::swap(p.a_row_stride, p.b_column_stride);
  std::swap(p.a_depth_stride, p.b_depth_stride);
  std::swap(p.out_row_stride, p.out_column_stride);
  std::swap(p.epilogue.row_bias, p.epilogue.column_bias);
  return p;
}

}  // namespace

const GemmKernels& gemm_kernels(GemmLevel level, DType dtype) {
  switch (level) {
#if defined(__x86_64__)
#if defined(STURDY_HAVE_AMX)
    case GemmLevel::amx:
      return dtype == DType::bf16 ? amx::bf16_gemm_kernels() : avx512::gemm_kernels(dtype);
#endif
#if defined(STURDY_HAVE_AVX512_BF16)
    case GemmLevel::avx512_bf16:
      return dtype == DType::bf16 ? avx512_bf16::bf16_gemm_kernels() : avx512::gemm_kernels(dtype);
#endif
    case GemmLevel::avx512:
      return avx512::gemm_kernels(dtype);
    case GemmLevel::avx2:
      return avx2::gemm_kernels(dtype);
#endif
    default:
      return portable::gemm_kernels(dtype);
  }
}

GemmLevel gemm_level() {
  switch (cpu_isa()) {
    case Isa::avx512:
      break;
    case Isa::avx2:
      return GemmLevel::avx2;
    default:
      return GemmLevel::portable;
  }
  switch (cpu_bf16_isa()) {
    case Bf16Isa::amx:
      return GemmLevel::amx;
    case Bf16Isa::avx512_bf16:
      return GemmLevel::avx512_bf16;
    default:
      return GemmLevel::avx512;
  }
}

Status gemm(const GemmParams& params, const Threads& threads, const GemmKernels& kernels) {
  if (params.rows <= 0 || params.columns <= 0) {
    return Status::ok;
  }
  GemmPlan plan{};
  plan.params = with_contiguous_columns(params);
  cut(plan, kernels);
  // Rounds over the columns bound the memory for packed b; where even one block of columns takes too much, tasks pack
  // their own part, again for every block of rows.
  const int64_t columns = plan.params.columns;
  const int64_t block_bytes = plan.depth * plan.block_columns * kernels.packed_bytes;
  const bool pack = plan.row_blocks > 1 && block_bytes <= kPackedBytes;
  const int64_t blocks = pack ? std::max<int64_t>(1, kPackedBytes / std::max<int64_t>(1, block_bytes)) : columns;
  const int64_t round = std::min(columns, pack ? blocks * plan.block_columns : columns);
  Status status = Status::ok;
  try {
    for (int64_t first = 0; first < columns && status == Status::ok; first += round) {
      plan.first_column = first;
      plan.end_column = std::min(columns, first + round);
      status = multiply_round(plan, threads, kernels, pack);
    }
  } catch (const std::bad_alloc&) {
    status = Status::out_of_memory;
  }
  trim_host_scratch(ScratchSlot::product);
  return status;
}

Status gemm(const GemmParams& params, const Threads& threads) {
  return gemm(params, threads, gemm_kernels(gemm_level(), params.dtype));
}

}  // namespace cpu
}  // namespace sturdy
