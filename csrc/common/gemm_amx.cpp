// Products of bfloat16 matrices on the tile registers of AMX. Compiled a second time against the twin of the
// instructions, in the test library; the instructions themselves have not been run (amx.h).
#include "common/amx.h"
#include "common/gemm_blocks.h"
#include "common/gemm_kernels.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// A tile of the result is 2 x 2 tile registers, so that each operand register that is loaded is used twice.
//
// Packed words are pairs of bfloat16. b is packed as for vectors, [k][column], whose rows are those of a b register.
// A row of an a register holds 16 words of depth of one row: panels of a are [16 words of depth][row][word].
struct AmxKernel {
  using Packed = uint32_t;
  using Sum = float;
  static constexpr int kPanelRows = 2 * kTileRows;
  static constexpr int kPanelColumns = 2 * kTileWords;
  static constexpr int kColumnStep = kTileWords;
  static constexpr int kDepthStep = kTileWords;
  static constexpr bool kPaddedRows = true;
  static constexpr int kFewRows = 0;
  using Session = TileSession;

  static void pack_a(const PairSource& a, int64_t first, int64_t height, int64_t k0, int64_t depth, uint32_t* to) {
    for (int64_t panel = 0; panel < height; panel += kPanelRows) {
      const int64_t rows = std::min<int64_t>(kPanelRows, height - panel);
      for (int64_t k = 0; k < depth; k += kTileWords) {
        std::fill(to + rows * kTileWords, to + kPanelRows * kTileWords, 0u);
        pack_register(a, first + panel, rows, k0 + k, to);
        to += kPanelRows * kTileWords;
      }
    }
  }

  static void tile(int64_t rows, int64_t columns, const uint32_t* a, const uint32_t* b, int64_t depth, float* out,
                   int64_t out_step, bool add) {
    if (rows > kTileRows) {
      columns > kTileWords ? registers<2, 2>(a, b, depth, out, out_step, add)
                           : registers<2, 1>(a, b, depth, out, out_step, add);
    } else {
      columns > kTileWords ? registers<1, 2>(a, b, depth, out, out_step, add)
                           : registers<1, 1>(a, b, depth, out, out_step, add);
    }
  }

 private:
  // One register's columns of a panel of a: 16 words of depth from k on, of `rows` rows.
  static void pack_register(const PairSource& a, int64_t first, int64_t rows, int64_t k, uint32_t* to) {
    constexpr int lanes = kLanes<uint32_t>;
    if (a.lane_contiguous() && !a.depth_contiguous()) {
      for (int64_t row = 0; row < rows; row += lanes) {
        for (int word = 0; word < kTileWords; word += lanes) {
          Vec<uint32_t> block[lanes];
          for (int i = 0; i < lanes; i++) {
            block[i] = a.along_lanes(first + row, k + word + i, rows - row);
          }
          transpose(block);
          for (int i = 0; i < lanes; i++) {
            store_same(to + (row + i) * kTileWords + word, block[i]);
          }
        }
      }
      return;
    }
    const bool whole = a.depth_contiguous() && 2 * (k + kTileWords) <= a.depth;
    for (int64_t row = 0; row < rows; row++, to += kTileWords) {
      if (whole) {
        std::memcpy(to, a.data + (first + row) * a.lane_stride + 2 * k, kTileWords * sizeof(uint32_t));
      } else {
        for (int i = 0; i < kTileWords; i++) {
          to[i] = a.at(first + row, k + i);
        }
      }
    }
  }

  // Registers 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 columns of b.
  template <int row_tiles, int column_tiles>
  static void registers(const uint32_t* a, const uint32_t* b, int64_t depth, float* out, int64_t out_step, bool add) {
    constexpr int64_t kRowBytes = kTileWords * 4;
    constexpr int64_t kColumnsBytes = column_tiles * kRowBytes;
    float* const lower = out + kTileRows * out_step;
    const int64_t out_bytes = out_step * static_cast<int64_t>(sizeof(float));
    tile_zero<0>();
    if constexpr (column_tiles == 2) tile_zero<1>();
    if constexpr (row_tiles == 2) tile_zero<2>();
    if constexpr (row_tiles == 2 && column_tiles == 2) tile_zero<3>();
    for (int64_t k = 0; k < depth; k += kTileWords) {
      tile_load<4>(a, kRowBytes);
      tile_load<6>(b, kColumnsBytes);
      tile_dot_bf16<0, 4, 6>();
      if constexpr (column_tiles == 2) {
        tile_load<7>(b + kTileWords, kColumnsBytes);
        tile_dot_bf16<1, 4, 7>();
      }
      if constexpr (row_tiles == 2) {
        tile_load<5>(a + kTileRows * kTileWords, kRowBytes);
        tile_dot_bf16<2, 5, 6>();
      }
      if constexpr (row_tiles == 2 && column_tiles == 2) {
        tile_dot_bf16<3, 5, 7>();
      }
      a += kPanelRows * kTileWords;
      b += column_tiles * kTileWords * kTileWords;
    }
    finish<0>(out, out_step, out_bytes, add);
    if constexpr (column_tiles == 2) finish<1>(out + kTileWords, out_step, out_bytes, add);
    if constexpr (row_tiles == 2) finish<2>(lower, out_step, out_bytes, add);
    if constexpr (row_tiles == 2 && column_tiles == 2) finish<3>(lower + kTileWords, out_step, out_bytes, add);
  }

  // Old values are added to finished sums, not summed up from, as the vector tile does it.
  template <int tile>
  static void finish(float* out, int64_t out_step, int64_t out_bytes, bool add) {
    if (!add) {
      tile_store<tile>(out, out_bytes);
      return;
    }
    alignas(64) float sums[kTileRows][kTileWords];
    tile_store<tile>(sums, sizeof sums[0]);
    for (int i = 0; i < kTileRows; i++) {
      float* to = out + i * out_step;
      for (int j = 0; j < kTileWords; j += kLanes<float>) {
        store(to + j, load(to + j) + load(sums[i] + j));
      }
    }
  }
};

const cpu::GemmKernels& bf16_gemm_kernels() {
  static constexpr cpu::GemmKernels table = gemm_table<AmxKernel, PairSource>();
  return table;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
