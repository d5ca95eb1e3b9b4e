// The two register tiles in which nearly all time is spent, and the loops that cover a row or a filter with them.
#pragma once

#include <cstdint>
#include <utility>

#include "common/simd.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Sums longer than this are added up in blocks of about this many terms, which keeps rounding errors near those of a
// blocked library convolution, and the weights of a block (18 KB) in the first-level cache.
constexpr int64_t kTapBlock = 160;

// Outputs of a convolution tile, for two vectors of channels: 14 x 2 accumulators of 32 registers, 6 x 2 of 16 with a
// fused multiply-add, 4 x 2 where the product needs a register.
#if defined(__AVX512F__)
constexpr int kTileColumns = 14;
constexpr int kTileTaps = 12;  // 12 addresses in general registers
#elif defined(__AVX2__)
constexpr int kTileColumns = 6;
constexpr int kTileTaps = 6;
#else
constexpr int kTileColumns = 4;
constexpr int kTileTaps = 4;
#endif

// out[column][channel] (+)= sum over taps of x[offset + column] * filters[tap][channel].
// Not inlined, and with a barrier between taps: gcc 12 otherwise shares broadcasts between taps and spills.
template <typename T, int columns, int vectors>
__attribute__((noinline)) static void conv_tile(const T* x, const int64_t* offsets, int64_t taps, const T* filters,
                                                T* out, int64_t out_step, bool add) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[columns][vectors];
  STURDY_UNROLL
  for (int i = 0; i < columns; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      sum[i][j] = zero<T>();
    }
  }
  for (int64_t tap = 0; tap < taps; tap++) {
    const T* at = x + offsets[tap];
    asm volatile("" ::: "memory");
    Vec<T> filter[vectors];
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      filter[j] = load(filters + j * lanes);
    }
    STURDY_UNROLL
    for (int i = 0; i < columns; i++) {
      const Vec<T> value = broadcast(at[i]);
      STURDY_UNROLL
      for (int j = 0; j < vectors; j++) {
        accumulate(sum[i][j], value, filter[j]);
      }
    }
    filters += vectors * lanes;
  }
  STURDY_UNROLL
  for (int i = 0; i < columns; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      T* to = out + i * out_step + j * lanes;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
  }
}

template <typename T>
using ConvTile = void (*)(const T*, const int64_t*, int64_t, const T*, T*, int64_t, bool);

template <typename T, int vectors, typename Counts>
struct ConvTiles;
template <typename T, int vectors, int... n>
struct ConvTiles<T, vectors, std::integer_sequence<int, n...>> {
  static constexpr ConvTile<T> of_columns[] = {conv_tile<T, n + 1, vectors>...};  // [columns - 1]
};

// One row of a convolution: out[column][channel] for columns [0, width), columns out_step elements apart. Every output
// is summed in the same order however the row is cut into tiles.
template <typename T, int vectors>
static void conv_row(const T* x, const int64_t* offsets, int64_t taps, const T* filters, int64_t width, T* out,
                     int64_t out_step) {
  using Tiles = ConvTiles<T, vectors, std::make_integer_sequence<int, kTileColumns>>;
  const int64_t tiles = (width + kTileColumns - 1) / kTileColumns;
  const int64_t blocks = taps <= kTapBlock ? 1 : (taps + kTapBlock - 1) / kTapBlock;  // no taps: one block, zeros
  for (int64_t i = 0; i < blocks; i++) {
    const int64_t first = taps * i / blocks;
    const int64_t count = taps * (i + 1) / blocks - first;
    int64_t column = 0;
    for (int64_t tile = 0; tile < tiles; tile++) {  // as even as possible
      const int64_t next = width * (tile + 1) / tiles;
      Tiles::of_columns[next - column - 1](x + column, offsets + first, count, filters + first * vectors * kLanes<T>,
                                           out + column * out_step, out_step, first > 0);
      column = next;
    }
  }
}

// gradient[tap][channel] += sum over rows and columns of x[offset + column] * output_gradient[column][channel].
template <typename T, int taps, int vectors>
__attribute__((noinline)) static void weight_tile(const T* x, const int64_t* offsets, int64_t x_row_step,
                                                  const T* output_gradient, int64_t row_step, int64_t rows,
                                                  int64_t width, T* gradient) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[taps][vectors];
  STURDY_UNROLL
  for (int i = 0; i < taps; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      sum[i][j] = zero<T>();
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    const T* at[taps];
    STURDY_UNROLL
    for (int i = 0; i < taps; i++) {
      at[i] = x + offsets[i] + row * x_row_step;
    }
    const T* from = output_gradient + row * row_step;
    for (int64_t column = 0; column < width; column++) {
      asm volatile("" ::: "memory");
      Vec<T> value[vectors];
      STURDY_UNROLL
      for (int j = 0; j < vectors; j++) {
        value[j] = load(from + j * lanes);
      }
      STURDY_UNROLL
      for (int i = 0; i < taps; i++) {
        const Vec<T> tap = broadcast(at[i][column]);
        STURDY_UNROLL
        for (int j = 0; j < vectors; j++) {
          accumulate(sum[i][j], tap, value[j]);
        }
      }
      from += vectors * lanes;
    }
  }
  STURDY_UNROLL
  for (int i = 0; i < taps; i++) {
    STURDY_UNROLL
    for (int j = 0; j < vectors; j++) {
      T* to = gradient + (i * vectors + j) * lanes;
      store(to, load(to) + sum[i][j]);
    }
  }
}

template <typename T>
using WeightTile = void (*)(const T*, const int64_t*, int64_t, const T*, int64_t, int64_t, int64_t, T*);

template <typename T, int vectors, typename Counts>
struct WeightTiles;
template <typename T, int vectors, int... n>
struct WeightTiles<T, vectors, std::integer_sequence<int, n...>> {
  static constexpr WeightTile<T> of_taps[] = {weight_tile<T, n + 1, vectors>...};  // [taps - 1]
};

// The same for all taps of a panel: gradient[tap][channel].
template <typename T, int vectors>
static void weight_gradient(const T* x, const int64_t* offsets, int64_t taps, int64_t x_row_step,
                            const T* output_gradient, int64_t row_step, int64_t rows, int64_t width, T* gradient) {
  using Tiles = WeightTiles<T, vectors, std::make_integer_sequence<int, kTileTaps>>;
  const int64_t tiles = (taps + kTileTaps - 1) / kTileTaps;
  int64_t tap = 0;
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t next = taps * (tile + 1) / tiles;
    Tiles::of_taps[next - tap - 1](x, offsets + tap, x_row_step, output_gradient, row_step, rows, width,
                                   gradient + tap * vectors * kLanes<T>);
    tap = next;
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
