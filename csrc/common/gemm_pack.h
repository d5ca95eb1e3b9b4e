// Packing helpers of matrix products: operands with any strides are copied into panels that a register tile reads in
// order, converted on the way to what they are summed in.
//
// Both operands are seen alike: "lanes" are rows of a or columns of b, "depth" is what is summed over.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

constexpr int kPrefetchRows = 3;

// The elements of a matrix, each one packed element.
template <typename S>
struct ElementSource {
  using Packed = Accumulate<S>;
  static constexpr int kDepth = 1;  // elements of depth in one packed element

  const S* data;
  int64_t lane_stride, depth_stride;  // in elements
  int64_t depth;                      // of the whole matrix

  bool depth_contiguous() const { return depth_stride == 1; }
  bool lane_contiguous() const { return lane_stride == 1; }

  STURDY_ALWAYS_INLINE Packed at(int64_t lane, int64_t k) const {
    return to_accumulate(data[lane * lane_stride + k * depth_stride]);
  }

  // `count` packed elements from (lane, k) on, along depth or along lanes; the rest of the vector is 0.
  STURDY_ALWAYS_INLINE Vec<Packed> along_depth(int64_t lane, int64_t k, int64_t count) const {
    const S* from = data + lane * lane_stride + k;
    return count >= kLanes<Packed> ? load(from) : load_partial(from, count);
  }
  // Past the end too: nothing is read.
  STURDY_ALWAYS_INLINE void prefetch_lanes(int64_t lane, int64_t k) const {
    __builtin_prefetch(data + lane + k * depth_stride);
  }
  STURDY_ALWAYS_INLINE Vec<Packed> along_lanes(int64_t lane, int64_t k, int64_t count) const {
    const S* from = data + lane + k * depth_stride;
    return count >= kLanes<Packed> ? load(from) : load_partial(from, count);
  }
};

// Two neighbours in depth of a bfloat16 matrix, as one 32-bit word: the first in the lower half. Past the end is 0.
struct PairSource {
  using Packed = uint32_t;
  static constexpr int kDepth = 2;

  const BFloat16* data;
  int64_t lane_stride, depth_stride;
  int64_t depth;

  bool depth_contiguous() const { return depth_stride == 1; }
  bool lane_contiguous() const { return lane_stride == 1; }

  STURDY_ALWAYS_INLINE uint32_t at(int64_t lane, int64_t k) const {
    const BFloat16* from = data + lane * lane_stride + 2 * k * depth_stride;
    const uint32_t first = 2 * k < depth ? from->bits : 0;
    const uint32_t second = 2 * k + 1 < depth ? from[depth_stride].bits : 0;
    return first | (second << 16);
  }

  STURDY_ALWAYS_INLINE Vec<uint32_t> along_depth(int64_t lane, int64_t k, int64_t count) const {
    const BFloat16* from = data + lane * lane_stride + 2 * k;
    Vec<uint32_t> words{};
    const int64_t elements = std::min<int64_t>(2 * std::min<int64_t>(count, kLanes<uint32_t>), depth - 2 * k);
    if (elements == 2 * kLanes<uint32_t>) {
      std::memcpy(&words, from, sizeof words);
    } else if (elements > 0) {
      std::memcpy(&words, from, static_cast<size_t>(elements) * sizeof(BFloat16));
    }
    return words;
  }

  STURDY_ALWAYS_INLINE void prefetch_lanes(int64_t lane, int64_t k) const {
    __builtin_prefetch(data + lane + 2 * k * depth_stride);
    __builtin_prefetch(data + lane + (2 * k + 1) * depth_stride);
  }
  STURDY_ALWAYS_INLINE Vec<uint32_t> along_lanes(int64_t lane, int64_t k, int64_t count) const {
    const BFloat16* from = data + lane + 2 * k * depth_stride;
    const WordVector first = 2 * k < depth ? halves(from, count) : WordVector{};
    const WordVector second = 2 * k + 1 < depth ? halves(from + depth_stride, count) : WordVector{};
    return {first | (second << 16)};
  }

 private:
  static STURDY_ALWAYS_INLINE WordVector halves(const BFloat16* from, int64_t count) {
    ShortVector narrow{};
    if (count >= kLanes<uint32_t>) {
      std::memcpy(&narrow, from, sizeof narrow);
    } else {
      std::memcpy(&narrow, from, static_cast<size_t>(count) * sizeof(BFloat16));
    }
    return __builtin_convertvector(narrow, WordVector);
  }
};

// Reads kLanes lanes x kLanes steps of depth from (lane, k) so that block[i] holds all lanes at depth k + i. Lanes
// and depth past `lane_end` and `end` (in packed elements) are 0. The source must be contiguous in depth.
template <typename Source>
STURDY_ALWAYS_INLINE void load_transposed(const Source& source, int64_t lane, int64_t lane_end, int64_t k, int64_t end,
                                          Vec<typename Source::Packed> (&block)[kLanes<typename Source::Packed>]) {
  constexpr int lanes = kLanes<typename Source::Packed>;
  STURDY_UNROLL
  for (int i = 0; i < lanes; i++) {
    block[i] = lane + i < lane_end ? source.along_depth(lane + i, k, end - k) : Vec<typename Source::Packed>{};
  }
  transpose(block);
}

// Columns of b: `width` columns from `first` on, `depth` packed elements from `k0` on, into `panels` of panel_columns
// columns each, [panel][k][column]. The width of the last panel is rounded up to `column_step`, a multiple of the lanes
// of a vector; columns behind the last one are 0.
//
// Rows that lie along columns are read from end to end, columns that lie along depth a vector's lanes at a time, so
// that memory is read in runs; and some way ahead, as runs end before the hardware sees them.
template <typename Source>
static void pack_columns(const Source& source, int64_t first, int64_t width, int64_t k0, int64_t depth,
                         int64_t panel_columns, int64_t column_step, typename Source::Packed* to) {
  using Packed = typename Source::Packed;
  constexpr int64_t lanes = kLanes<Packed>;
  const auto panel_at = [&](int64_t column, int64_t& pitch) {  // of the vector that starts at `column`
    const int64_t panel = column / panel_columns * panel_columns;
    const int64_t count = std::min(panel_columns, width - panel);
    pitch = (count + column_step - 1) / column_step * column_step;
    return to + panel * depth + (column - panel);
  };
  const int64_t whole = width / panel_columns * panel_columns;
  const int64_t padded = whole + (width - whole + column_step - 1) / column_step * column_step;
  if (source.lane_contiguous()) {
    for (int64_t k = 0; k < depth; k++) {
      Packed* at = to + k * panel_columns;
      for (int64_t panel = 0; panel < whole; panel += panel_columns, at += depth * panel_columns) {
        for (int64_t j = 0; j < panel_columns; j += lanes) {
          source.prefetch_lanes(first + panel + j, k0 + k + kPrefetchRows);
          store_same(at + j, source.along_lanes(first + panel + j, k0 + k, lanes));
        }
      }
      at = to + whole * depth + k * (padded - whole);
      for (int64_t column = whole; column < padded; column += lanes, at += lanes) {
        const int64_t count = width - column;
        store_same(at, count > 0 ? source.along_lanes(first + column, k0 + k, count) : Vec<Packed>{});
      }
    }
    return;
  }
  for (int64_t column = 0; column < padded; column += lanes) {
    int64_t pitch;
    Packed* at = panel_at(column, pitch);
    if (!source.depth_contiguous()) {
      for (int64_t k = 0; k < depth; k++, at += pitch) {
        for (int64_t lane = 0; lane < lanes; lane++) {
          at[lane] = column + lane < width ? source.at(first + column + lane, k0 + k) : Packed{};
        }
      }
      continue;
    }
    for (int64_t k = 0; k < depth; k += lanes, at += lanes * pitch) {
      Vec<Packed> block[lanes];
      load_transposed(source, first + column, first + width, k0 + k, k0 + depth, block);
      if (depth - k >= lanes) {
        STURDY_UNROLL
        for (int i = 0; i < lanes; i++) {
          store_same(at + i * pitch, block[i]);
        }
      } else {
        for (int64_t i = 0; i < depth - k; i++) {
          store_same(at + i * pitch, block[i]);
        }
      }
    }
  }
}

// Rows of a: `height` rows from `first` on, `depth` packed elements from `k0` on, into panels of panel_rows rows each,
// [panel][k][row]. The last panel has the rows that are left, without padding.
template <int panel_rows, typename Source>
static void pack_rows(const Source& source, int64_t first, int64_t height, int64_t k0, int64_t depth,
                      typename Source::Packed* to) {
  using Packed = typename Source::Packed;
  constexpr int lanes = kLanes<Packed>;
  constexpr int together = lanes > panel_rows ? lanes : panel_rows;  // rows of whole panels and whole vectors
  constexpr int piece = lanes < panel_rows ? lanes : panel_rows;     // neighbours in a panel that one vector holds
  int64_t row = 0;
  const auto scatter = [&](int64_t at, int64_t k, const Vec<Packed>& rows) {
    STURDY_UNROLL
    for (int in = 0; in < lanes; in += piece) {
      Packed* panel = to + (at + in) / panel_rows * panel_rows * depth;
      std::memcpy(panel + k * panel_rows + (at + in) % panel_rows,
                  reinterpret_cast<const char*>(&rows) + in * sizeof(Packed), piece * sizeof(Packed));
    }
  };
  if (source.depth_contiguous()) {
    for (; row + together <= height; row += together) {
      for (int64_t k = 0; k < depth; k += lanes) {
        const int64_t count = std::min<int64_t>(lanes, depth - k);
        for (int part = 0; part < together; part += lanes) {
          const int64_t at = row + part;
          Vec<Packed> block[lanes];
          load_transposed(source, first + at, first + at + lanes, k0 + k, k0 + depth, block);
          for (int64_t i = 0; i < count; i++) {
            scatter(at, k + i, block[i]);
          }
        }
      }
    }
  } else if (source.lane_contiguous()) {
    for (; row + together <= height; row += together) {
      for (int64_t k = 0; k < depth; k++) {
        for (int part = 0; part < together; part += lanes) {
          scatter(row + part, k, source.along_lanes(first + row + part, k0 + k, lanes));
        }
      }
    }
  }
  for (; row < height; row += panel_rows) {
    const int64_t rows = std::min<int64_t>(panel_rows, height - row);
    Packed* at = to + row * depth;
    for (int64_t k = 0; k < depth; k++) {
      for (int64_t i = 0; i < rows; i++) {
        *at++ = source.at(first + row + i, k0 + k);
      }
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
