// The sums over tiles of Winograd's form of backward: gp of a row of tiles into Winograd's domain, and the register
// tile that multiplies it with the transformed input. Lanes are filters.
#pragma once

#include <cstdint>
#include <utility>

#include "pushpull/push_pull_conv2d_cpu_rows.h"
#include "pushpull/push_pull_conv2d_cpu_tiles.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Half of Z, along rows only: of the left and of the right column of each tile in a row of tiles. `from` is the first
// of their rows of gp, of the panel's first filter; without a `second` row that one is zero. The other half is left to
// tile_sum, the signs of Z3 to `reduce`.
template <int vectors>
static void transform_gradient(const float* from, int64_t filter_pitch, int64_t width, bool second, float* z,
                               int64_t z_pitch) {
  constexpr int lanes = kLanes<float>;
  constexpr int panel = lanes * vectors;
  alignas(kVectorBytes) float pixels[2][lanes][panel];
  if (!second) {
    fill_zero(&pixels[1][0][0], lanes * panel);
  }
  for (int64_t column = 0; column < width; column += lanes) {
    const int64_t columns = least(lanes, width - column);
    for (int row = 0; row < (second ? 2 : 1); row++) {
      for (int j = 0; j < panel; j += lanes) {
        const float* at = from + j * filter_pitch + row * width + column;
        Vec<float> block[lanes];
        if (columns == lanes) {
          STURDY_UNROLL
          for (int i = 0; i < lanes; i++) {
            block[i] = load(at + i * filter_pitch);
          }
        } else {
          for (int i = 0; i < lanes; i++) {
            block[i] = load_partial(at + i * filter_pitch, columns);
          }
        }
        transpose(block);
        STURDY_UNROLL
        for (int i = 0; i < lanes; i++) {
          store(&pixels[row][i][j], block[i]);
        }
      }
    }
    for (int64_t i = 0; i < columns; i += 2) {
      STURDY_UNROLL
      for (int j = 0; j < panel; j += lanes) {
        float* to = z + j;
        STURDY_UNROLL
        for (int side = 0; side < 2; side++) {
          const Vec<float> first = load(&pixels[0][i + side][j]);
          const Vec<float> second_row = load(&pixels[1][i + side][j]);
          store(to, first);
          store(to + z_pitch, first + second_row);
          store(to + 2 * z_pitch, first - second_row);
          store(to + 3 * z_pitch, second_row);
          to += panel;
        }
      }
      z += 2 * panel;
    }
  }
}

// What a column pattern makes of the left and the right column of a tile.
enum class TileColumns { one, sum, difference };

// sums[plane][filter] += sum over tiles of transformed[plane][tile] * Z[tile][filter]; `z` points to the column read,
// or to the left of two. Not inlined, and with a barrier between tiles, for the reasons given with weight_tile.
template <TileColumns columns, int planes, int vectors>
__attribute__((noinline)) static void tile_sum(const float* transformed, int64_t plane_pitch, const float* z,
                                               int64_t tiles, float* sums) {
  constexpr int lanes = kLanes<float>;
  Vec<float> sum[planes][vectors];
  const float* at[planes];
  STURDY_UNROLL
  for (int i = 0; i < planes; i++) {
    at[i] = transformed + i * plane_pitch;
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      sum[i][j] = zero<float>();
    }
  }
  for (int64_t tile = 0; tile < tiles; tile++) {
    asm volatile("" ::: "memory");
    Vec<float> value[vectors];
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      value[j] = load(z + j * lanes);
      if constexpr (columns == TileColumns::sum) {
        value[j] = value[j] + load(z + (vectors + j) * lanes);
      } else if constexpr (columns == TileColumns::difference) {
        value[j] = value[j] - load(z + (vectors + j) * lanes);
      }
    }
    STURDY_UNROLL
    for (int i = 0; i < planes; i++) {
      const Vec<float> input = broadcast(at[i][tile]);
      STURDY_UNROLL
      for (int j = 0; j < vectors; j++) {
        accumulate(sum[i][j], input, value[j]);
      }
    }
    z += 2 * vectors * lanes;
  }
  STURDY_UNROLL
  for (int i = 0; i < planes; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      float* to = sums + (i * vectors + j) * lanes;
      store(to, load(to) + sum[i][j]);
    }
  }
}

using TileSum = void (*)(const float*, int64_t, const float*, int64_t, float*);

template <int vectors, typename Counts>
struct TileSums;
template <int vectors, int... n>
struct TileSums<vectors, std::integer_sequence<int, n...>> {
  static constexpr TileSum of_one[] = {tile_sum<TileColumns::one, n + 1, vectors>...};  // [planes - 1]
  static constexpr TileSum of_sum[] = {tile_sum<TileColumns::sum, n + 1, vectors>...};
  static constexpr TileSum of_difference[] = {tile_sum<TileColumns::difference, n + 1, vectors>...};
  static constexpr const TileSum* of_pattern[4] = {of_one, of_sum, of_difference, of_one};
};

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
