// The part of a matrix product between the register tile and the caller: packs blocks of the operands, runs the tiles
// over them, and finishes the sums. A template over the kernel: the vector tile, or one for a matrix unit.
//
// A kernel is a struct with
//   Packed, Sum                      element types of packed operands and of sums
//   kPanelRows, kPanelColumns        of a tile
//   kColumnStep                      the last panel of columns is rounded up to this
//   kDepthStep                       packed depth is a multiple of this
//   pack_a                           packs rows; `depth` is a multiple of kDepthStep
//   kFewRows                         up to so many rows b is not packed but multiplied where it is; 0: never
//   few_rows(...)                    does that
//   tile(rows, columns, a, b, depth, out, out_step, add)
//   Session                          lives while a thread runs tiles
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/gemm.h"
#include "common/gemm_pack.h"
#include "common/gemm_tile.h"
#include "common/scratch.h"
#include "common/vector_math.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename Kernel, typename Source>
class GemmBlocks {
 public:
  using Packed = typename Kernel::Packed;
  using Sum = typename Kernel::Sum;

  static void pack(const cpu::GemmPlan& plan, int64_t begin, int64_t end) {
    const Source b = b_source(plan);
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t block = unit / plan.column_blocks;
      const Columns columns = column_block(plan, unit % plan.column_blocks);
      const int64_t k0 = block * cpu::kGemmDepthBlock;
      pack_columns(b, columns.first, columns.count, k0, block_depth(plan, block), plan.panel_columns,
                   Kernel::kColumnStep, packed_b(plan, block, columns));
    }
  }

  static void multiply(const cpu::GemmPlan& plan, int64_t begin, int64_t end) {
    typename Kernel::Session session;
    const bool direct = writes_out_directly(plan) && !has_few_rows(plan);
    Arena sizes(nullptr);
    Task task;
    place(plan, direct, sizes, task);
    Arena arena(host_scratch(ScratchSlot::product_task, sizes.used()));
    place(plan, direct, arena, task);
    const int64_t blocks = plan.row_blocks * plan.column_blocks;
    for (int64_t unit = begin; unit < end; unit++) {
      select(plan, unit % blocks, task);
      if (plan.partials != nullptr) {
        Sum* sums = static_cast<Sum*>(plan.partials) + unit * plan.tile_pitch;
        chunk(plan, task, unit / blocks, sums, false);
        continue;
      }
      chunk(plan, task, 0, task.sums, plan.chunks == 1);
      for (int64_t c = 1; c < plan.chunks; c++) {
        chunk(plan, task, c, task.chunk_sums, false);
        add_sums(plan, task.chunk_sums, task.sums);
      }
      if (plan.chunks > 1) {
        finish_block(plan, task);
      }
    }
  }

  static void reduce(const cpu::GemmPlan& plan, int64_t begin, int64_t end) {
    const int64_t blocks = plan.row_blocks * plan.column_blocks;
    Task task{};
    for (int64_t unit = begin; unit < end; unit++) {
      select(plan, unit, task);
      task.sums = static_cast<Sum*>(plan.partials) + unit * plan.tile_pitch;
      for (int64_t c = 1; c < plan.chunks; c++) {
        add_sums(plan, task.sums + c * blocks * plan.tile_pitch, task.sums);
      }
      finish_block(plan, task);
    }
  }

 private:
  struct Columns {
    int64_t first, count, padded;
  };

  struct Task {
    int64_t first_row, rows;
    Columns columns;
    Packed* a;
    Packed* b;        // where tasks pack their own
    Sum* sums;        // [panel of columns][panel of rows][row][column]
    Sum* chunk_sums;  // of a later chunk
    Sum* edge;        // one tile
    Sum* few;         // sums of a block of depth where b is not packed; else null
  };

  static Source a_source(const cpu::GemmPlan& plan) {
    const cpu::GemmParams& p = plan.params;
    return {static_cast<decltype(Source::data)>(p.a), p.a_row_stride, p.a_depth_stride, p.depth};
  }

  static Source b_source(const cpu::GemmPlan& plan) {
    const cpu::GemmParams& p = plan.params;
    return {static_cast<decltype(Source::data)>(p.b), p.b_column_stride, p.b_depth_stride, p.depth};
  }

  static int64_t padded_columns(int64_t columns) {
    return (columns + Kernel::kColumnStep - 1) / Kernel::kColumnStep * Kernel::kColumnStep;
  }

  static int64_t block_depth(const cpu::GemmPlan& plan, int64_t block) {
    return std::min(cpu::kGemmDepthBlock, plan.depth - block * cpu::kGemmDepthBlock);
  }

  static Columns column_block(const cpu::GemmPlan& plan, int64_t block) {
    const int64_t first = plan.first_column + block * plan.block_columns;
    const int64_t count = std::min(plan.block_columns, plan.end_column - first);
    return {first, count, padded_columns(count)};
  }

  static Packed* packed_b(const cpu::GemmPlan& plan, int64_t block, const Columns& columns) {
    const int64_t all = padded_columns(plan.end_column - plan.first_column);
    return static_cast<Packed*>(plan.packed_b) + block * cpu::kGemmDepthBlock * all +
           (columns.first - plan.first_column) * block_depth(plan, block);
  }

  // Whether tiles are stored straight to out: one block of depth, and nothing to do to the sums.
  static bool writes_out_directly(const cpu::GemmPlan& plan) {
    const cpu::GemmParams& p = plan.params;
    return plan.depth_blocks == 1 && p.out_column_stride == 1 && !has_epilogue(p.epilogue) &&
           p.out_dtype == (std::is_same<Sum, double>::value ? DType::f64 : DType::f32);
  }

  static bool has_epilogue(const cpu::GemmEpilogue& e) {
    return e.row_bias != nullptr || e.column_bias != nullptr || e.activation != cpu::GemmActivation::none ||
           e.visit != nullptr;
  }

  static void place(const cpu::GemmPlan& plan, bool direct, Arena& arena, Task& task) {
    const int64_t depth = std::min(cpu::kGemmDepthBlock, plan.depth);
    task.a = arena.take<Packed>(plan.block_rows * depth);
    const bool few = has_few_rows(plan);
    task.few = few ? arena.take<Sum>(plan.tile_pitch) : nullptr;
    task.b =
        plan.packed_b == nullptr && !few ? arena.take<Packed>(padded_columns(plan.block_columns) * depth) : nullptr;
    task.edge = arena.take<Sum>(Kernel::kPanelRows * Kernel::kPanelColumns);
    task.sums = direct || plan.partials != nullptr ? nullptr : arena.take<Sum>(plan.tile_pitch);
    task.chunk_sums = plan.partials == nullptr && plan.chunks > 1 ? arena.take<Sum>(plan.tile_pitch) : nullptr;
  }

  static void select(const cpu::GemmPlan& plan, int64_t block, Task& task) {
    task.columns = column_block(plan, block / plan.row_blocks);
    task.first_row = block % plan.row_blocks * plan.block_rows;
    task.rows = std::min(plan.block_rows, plan.params.rows - task.first_row);
  }

  // One chunk of depth for one block of out, into `sums`, or finished and stored if it is all there is.
  static void chunk(const cpu::GemmPlan& plan, Task& task, int64_t chunk, Sum* sums, bool all) {
    const int64_t begin = chunk * cpu::kGemmChunkBlocks;
    const int64_t end = std::min(plan.depth_blocks, begin + cpu::kGemmChunkBlocks);
    const Source a = a_source(plan);
    for (int64_t block = begin; block < end; block++) {
      const int64_t k0 = block * cpu::kGemmDepthBlock;
      const int64_t depth = block_depth(plan, block);
      Kernel::pack_a(a, task.first_row, task.rows, k0, depth, task.a);
      const bool last = all && block + 1 == end;
      if (task.few != nullptr) {
        few_rows(plan, task, k0, depth, sums, block > begin);
        if (last) {
          finish_block(plan, task);
        }
        continue;
      }
      const Packed* b = task.b;
      if (plan.packed_b != nullptr) {
        b = packed_b(plan, block, task.columns);
      } else {
        pack_columns(b_source(plan), task.columns.first, task.columns.count, k0, depth, plan.panel_columns,
                     Kernel::kColumnStep, task.b);
      }
      tiles(plan, task, b, depth, sums, block > begin, last);
    }
  }

  // Where b is used once or little more, packing it costs more than multiplying.
  static bool has_few_rows(const cpu::GemmPlan& plan) {
    const Source b = b_source(plan);
    return plan.params.rows <= Kernel::kFewRows && (b.lane_contiguous() || b.depth_contiguous());
  }

  static void few_rows(const cpu::GemmPlan& plan, Task& task, int64_t k0, int64_t depth, Sum* sums, bool add) {
    if constexpr (Kernel::kFewRows > 0) {
      Sum* out = add ? task.few : sums;
      Kernel::few_rows(b_source(plan), task.columns.first, task.columns.count, k0, depth, plan.panel_columns, task.rows,
                       task.a, out, plan.block_rows);
      if (add) {
        add_sums(plan, out, sums);
      }
    }
  }

  static void tiles(const cpu::GemmPlan& plan, Task& task, const Packed* b, int64_t depth, Sum* sums, bool add,
                    bool last) {
    const cpu::GemmParams& p = plan.params;
    for (int64_t column = 0; column < task.columns.count; column += plan.panel_columns) {
      const int64_t count = std::min(plan.panel_columns, task.columns.count - column);
      const int64_t padded = padded_columns(count);
      for (int64_t row = 0; row < task.rows; row += Kernel::kPanelRows) {
        const int64_t rows = std::min<int64_t>(Kernel::kPanelRows, task.rows - row);
        const Packed* a_panel = task.a + row * depth;
        const Packed* b_panel = b + column * depth;
        if (sums != nullptr) {
          Sum* tile = sums + column * plan.block_rows + row * padded;
          Kernel::tile(rows, padded, a_panel, b_panel, depth, tile, padded, add);
          if (last) {
            finish(p, tile, padded, task.first_row + row, rows, task.columns.first + column, count);
          }
        } else if (Kernel::kPaddedRows ? rows == Kernel::kPanelRows && count == padded : count == padded) {
          Sum* out = static_cast<Sum*>(p.out) + (task.first_row + row) * p.out_row_stride + task.columns.first + column;
          Kernel::tile(rows, padded, a_panel, b_panel, depth, out, p.out_row_stride, p.add);
        } else {
          Kernel::tile(rows, padded, a_panel, b_panel, depth, task.edge, padded, false);
          finish(p, task.edge, padded, task.first_row + row, rows, task.columns.first + column, count);
        }
      }
    }
  }

  static void add_sums(const cpu::GemmPlan& plan, const Sum* from, Sum* to) {
    for (int64_t i = 0; i < plan.tile_pitch; i += kLanes<Sum>) {
      store(to + i, load(to + i) + load(from + i));
    }
  }

  static void finish_block(const cpu::GemmPlan& plan, const Task& task) {
    for (int64_t column = 0; column < task.columns.count; column += plan.panel_columns) {
      const int64_t count = std::min(plan.panel_columns, task.columns.count - column);
      const int64_t padded = padded_columns(count);
      for (int64_t row = 0; row < task.rows; row += Kernel::kPanelRows) {
        const int64_t rows = std::min<int64_t>(Kernel::kPanelRows, task.rows - row);
        Sum* tile = task.sums + column * plan.block_rows + row * padded;
        finish(plan.params, tile, padded, task.first_row + row, rows, task.columns.first + column, count);
      }
    }
  }

  // ---- finished sums ----

  static void finish(const cpu::GemmParams& p, Sum* tile, int64_t step, int64_t row, int64_t rows, int64_t column,
                     int64_t columns) {
    switch (p.out_dtype) {
      case DType::f16:
        return finish_as<Half>(p, tile, step, row, rows, column, columns);
      case DType::bf16:
        return finish_as<BFloat16>(p, tile, step, row, rows, column, columns);
      default:
        return finish_as<Sum>(p, tile, step, row, rows, column, columns);
    }
  }

  template <typename Out>
  static void finish_as(const cpu::GemmParams& p, Sum* tile, int64_t step, int64_t row, int64_t rows, int64_t column,
                        int64_t columns) {
    if constexpr (std::is_same<Accumulate<Out>, Sum>::value) {
      const bool values = has_epilogue(p.epilogue);
      for (int64_t i = 0; i < rows; i++) {
        Sum* sums = tile + i * step;
        Out* out = static_cast<Out*>(p.out) + (row + i) * p.out_row_stride + column * p.out_column_stride;
        if (p.add) {
          add_old(out, p.out_column_stride, sums, columns);
        }
        if (values) {
          apply(p.epilogue, sums, row + i, column, columns);
        }
        store_row(sums, out, p.out_column_stride, columns);
      }
    }
  }

  template <typename Out>
  static void add_old(const Out* old, int64_t stride, Sum* sums, int64_t columns) {
    for (int64_t j = 0; j < columns; j++) {
      sums[j] = to_accumulate(old[j * stride]) + sums[j];
    }
  }

  static void apply(const cpu::GemmEpilogue& e, Sum* sums, int64_t row, int64_t column, int64_t columns) {
    const Sum* column_bias = static_cast<const Sum*>(e.column_bias);
    const Vec<Sum> row_bias = broadcast(e.row_bias == nullptr ? Sum{0} : static_cast<const Sum*>(e.row_bias)[row]);
    for (int64_t j = 0; j < columns; j += kLanes<Sum>) {
      Vec<Sum> value = load(sums + j);
      if (e.row_bias != nullptr) {
        value += row_bias;
      }
      if (column_bias != nullptr) {
        const int64_t count = std::min<int64_t>(kLanes<Sum>, columns - j);
        value += count == kLanes<Sum> ? load(column_bias + column + j) : load_partial(column_bias + column + j, count);
      }
      if (e.activation == cpu::GemmActivation::relu) {
        value = relu(value);
      } else if (e.activation == cpu::GemmActivation::gelu) {
        value = gelu(value);
      }
      store(sums + j, value);
    }
    if (e.visit != nullptr) {
      e.visit(e.context, sums, row, column, columns);
    }
  }

  template <typename Out>
  static void store_row(const Sum* sums, Out* out, int64_t stride, int64_t columns) {
    if (stride != 1) {
      for (int64_t j = 0; j < columns; j++) {
        assign(out[j * stride], sums[j]);
      }
      return;
    }
    int64_t j = 0;
    for (; j + kLanes<Sum> <= columns; j += kLanes<Sum>) {
      store(out + j, load(sums + j));
    }
    if (j < columns) {
      store_partial(out + j, load(sums + j), columns - j);
    }
  }
};

// ---- the kernel of the register tile ----

template <typename Step>
struct VectorKernel {
  using Packed = typename Step::Packed;
  using Sum = typename Step::Sum;
  static constexpr int kPanelRows = kGemmRows;
  static constexpr int kPanelColumns = kGemmVectors * kLanes<Sum>;
  static constexpr int kColumnStep = kLanes<Sum>;
  static constexpr int kDepthStep = 1;
  static constexpr bool kPaddedRows = false;
  static constexpr int kFewRows = 4;
  struct Session {
    Session() {}
  };

  template <typename Source>
  static void pack_a(const Source& a, int64_t first, int64_t rows, int64_t k0, int64_t depth, Packed* to) {
    pack_rows<kPanelRows>(a, first, rows, k0, depth, to);
  }

  // out[panel][row][column] = the product of packed rows of a and columns of b where they are: the same sums as those
  // of tiles. Panels are out_rows * panel_columns apart.
  template <typename Source>
  static void few_rows(const Source& b, int64_t first, int64_t columns, int64_t k0, int64_t depth,
                       int64_t panel_columns, int64_t rows, const Packed* a, Sum* out, int64_t out_rows) {
    few_of_rows<kFewRows>(b, first, columns, k0, depth, panel_columns, rows, a, out, out_rows);
  }

  static void tile(int64_t rows, int64_t columns, const Packed* a, const Packed* b, int64_t depth, Sum* out,
                   int64_t out_step, bool add) {
    of_rows<kPanelRows>(rows, columns, a, b, depth, out, out_step, add);
  }

 private:
  template <int rows, typename Source>
  static void few_of_rows(const Source& b, int64_t first, int64_t columns, int64_t k0, int64_t depth,
                          int64_t panel_columns, int64_t wanted, const Packed* a, Sum* out, int64_t out_rows) {
    if constexpr (rows > 1) {
      if (wanted < rows) {
        return few_of_rows<rows - 1>(b, first, columns, k0, depth, panel_columns, wanted, a, out, out_rows);
      }
    }
    const bool along_lanes = b.lane_contiguous();
    // Sums that stay in memory while rows of b pass, some at a time; or columns of b, each summed up in registers.
    for (int64_t k = 0; k < depth || k == 0; k += along_lanes ? kPass : std::max<int64_t>(depth, 1)) {
      for (int64_t panel = 0; panel < columns; panel += panel_columns) {
        const int64_t count = std::min(panel_columns, columns - panel);
        const int64_t padded = (count + kColumnStep - 1) / kColumnStep * kColumnStep;
        for (int64_t j = 0; j < count; j += kColumnStep) {
          Sum* to = out + panel * out_rows + j;
          if (!along_lanes) {
            transposed_columns<rows>(b, first + panel + j, first + columns, k0, depth, a, to, padded);
          } else if (depth - k >= kPass && count - j >= kColumnStep) {
            pass<rows, kPass>(b, first + panel + j, kColumnStep, k0 + k, a + k * rows, to, padded, k > 0);
          } else {
            for (int64_t i = k; i < std::min(depth, k + kPass); i++) {
              pass<rows, 1>(b, first + panel + j, count - j, k0 + i, a + i * rows, to, padded, i > 0);
            }
            if (depth == 0) {
              pass<rows, 0>(b, first, 0, k0, a, to, padded, false);
            }
          }
        }
      }
    }
  }

  static constexpr int kPass = 8;  // rows of b

  template <int rows, int steps, typename Source>
  static STURDY_ALWAYS_INLINE void pass(const Source& b, int64_t column, int64_t count, int64_t k, const Packed* a,
                                        Sum* out, int64_t out_step, bool add) {
    Vec<Sum> sum[rows];
    STURDY_UNROLL
    for (int i = 0; i < rows; i++) {
      sum[i] = add ? load(out + i * out_step) : zero<Sum>();
    }
    STURDY_UNROLL
    for (int step = 0; step < steps; step++) {
      b.prefetch_lanes(column, k + step + steps);
      const Vec<Packed> columns = b.along_lanes(column, k + step, count);
      STURDY_UNROLL
      for (int i = 0; i < rows; i++) {
        Step::add(sum[i], Step::spread(a + step * rows + i), columns);
      }
    }
    STURDY_UNROLL
    for (int i = 0; i < rows; i++) {
      store(out + i * out_step, sum[i]);
    }
  }

  template <int rows, typename Source>
  static void transposed_columns(const Source& b, int64_t column, int64_t last, int64_t k0, int64_t depth,
                                 const Packed* a, Sum* out, int64_t out_step) {
    constexpr int lanes = kLanes<Packed>;
    Vec<Sum> sum[rows];
    STURDY_UNROLL
    for (int i = 0; i < rows; i++) {
      sum[i] = zero<Sum>();
    }
    for (int64_t k = 0; k < depth; k += lanes) {
      Vec<Packed> block[lanes];
      load_transposed(b, column, last, k0 + k, k0 + depth, block);
      const auto add = [&](int64_t step) {
        STURDY_UNROLL
        for (int i = 0; i < rows; i++) {
          Step::add(sum[i], Step::spread(a + (k + step) * rows + i), block[step]);
        }
      };
      if (depth - k >= lanes) {  // unrolled, as what is indexed by a variable leaves the registers
        STURDY_UNROLL
        for (int step = 0; step < lanes; step++) {
          add(step);
        }
      } else {
        for (int64_t step = 0; step < depth - k; step++) {
          add(step);
        }
      }
    }
    STURDY_UNROLL
    for (int i = 0; i < rows; i++) {
      store(out + i * out_step, sum[i]);
    }
  }

  template <int rows>
  static STURDY_ALWAYS_INLINE void of_rows(int64_t wanted, int64_t columns, const Packed* a, const Packed* b,
                                           int64_t depth, Sum* out, int64_t out_step, bool add) {
    if constexpr (rows > 1) {
      if (wanted < rows) {
        return of_rows<rows - 1>(wanted, columns, a, b, depth, out, out_step, add);
      }
    }
    of_vectors<rows, kGemmVectors>(columns, a, b, depth, out, out_step, add);
  }

  template <int rows, int vectors>
  static STURDY_ALWAYS_INLINE void of_vectors(int64_t columns, const Packed* a, const Packed* b, int64_t depth,
                                              Sum* out, int64_t out_step, bool add) {
    if constexpr (vectors > 1) {
      if (columns < vectors * kColumnStep) {
        return of_vectors<rows, vectors - 1>(columns, a, b, depth, out, out_step, add);
      }
    }
    gemm_step_tile<Step, rows, vectors>(a, b, columns, depth, out, out_step, add);
  }
};

template <typename Kernel, typename Source>
static constexpr cpu::GemmKernels gemm_table() {
  using Blocks = GemmBlocks<Kernel, Source>;
  return {Kernel::kPanelRows,
          Kernel::kPanelColumns,
          Kernel::kColumnStep,
          Kernel::kDepthStep,
          Source::kDepth,
          sizeof(typename Kernel::Packed),
          sizeof(typename Kernel::Sum),
          &Blocks::pack,
          &Blocks::multiply,
          &Blocks::reduce};
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
