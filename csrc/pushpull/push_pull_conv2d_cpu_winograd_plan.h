// The fast form of the CPU kernels: the convolution by Winograd's algorithm, whatever kernel and stride.
//
// Along each axis outputs are computed in pairs. Taps whose positions are equal modulo the stride read one phase of the
// input, of which neighbouring outputs read neighbouring elements; the taps of a phase are cut into pieces of three,
// two or one, and each piece is an F(2, r): r + 1 products instead of 2 r. With the weights g and the inputs d of a
// piece, the pair (y0, y1) is put together from four sums of products,
//
//   y0 = P0 + P1 + P2        r = 3   P0 += (d0 - d2) g0                    P2 += (d2 - d1) (g0 - g1 + g2) / 2
//   y1 = P1 - P2 - P3                P1 += (d1 + d2) (g0 + g1 + g2) / 2    P3 += (d1 - d3) g2
//                            r = 2   P0 += (d0 - d1) g0    P1 += d1 (g0 + g1)    P3 += (d1 - d2) g1
//                            r = 1   P0 += d0 g0           P3 += (-d1) g0
//
// so all pieces of all phases and channels add to the same four. On two axes that makes 16 sums, "patterns", for each
// 2 x 2 tile of outputs: 2.25 times fewer products than a 3 x 3 kernel takes, 1.96 times fewer than 7 x 7 with
// stride 2. The coefficients are 0, 1, -1 and 1/2, an output depends on no input outside its window, and the error
// stays within about twice that of the direct sum.
//
// Lanes of a vector are tiles. Each pattern is a matrix product of transformed filters (rows) and transformed inputs
// (columns), see common/gemm_tile.h.
//
// Plain data and function pointers only: this header is seen by sources compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "common/scratch.h"
#include "pushpull/push_pull_conv2d.h"

namespace sturdy {
namespace cpu {

constexpr int kWinogradPatterns = 16;  // (row pattern) * 4 + column pattern

// One product of one axis. Positions count from the first input of the pair's window, (2 * pair) * stride - padding.
struct WinogradTerm {
  int32_t pattern;    // 0 ... 3: P0 ... P3
  int32_t first;      // the input is x[first] * first_sign + x[second] * second_sign
  int32_t second;     // equal to first, with second_sign 0, where one input is read
  float first_sign;   // 1 or -1
  float second_sign;  // 1, -1 or 0
  int32_t tap;        // the weight is sum over i < 3 of weight[i] * w[tap + i * stride]
  float weight[3];    // 0 beyond the kernel
};

// The terms of one axis in the order of their patterns.
struct WinogradAxis {
  WinogradTerm* terms;
  int64_t count;
  int64_t begin[5];  // terms [begin[i], begin[i + 1]) belong to pattern i
};

// How many terms an axis has: products for a pair of outputs. The direct sum has 2 * kernel.
int64_t winograd_terms(int64_t kernel, int64_t stride);

// Fills axis.terms, which has room for winograd_terms(), and the rest.
void fill_winograd_axis(WinogradAxis& axis, int64_t kernel, int64_t stride);

// How one call is laid out. All arithmetic is in float.
//
// A "band" is what is transformed at a time: some rows of tiles of one image and group. Its tiles are numbered row by
// row, tile (row, column) is (row - first row) * tiles_w + column, so that vectors of tiles run over the ends of rows.
// A "plane" is one value per tile of a band: the transformed input of one channel, row term and column term. The planes
// of a pattern follow each other, in the order (row term, column term, channel).
struct WinogradPlan {
  PushPullGeometry geometry;
  int64_t in_group, out_group;  // channels per group
  int64_t lanes;

  // Filters are multiplied in blocks, which never cross a group; missing filters of a block are zeros.
  int64_t block;  // filters
  int64_t blocks_per_group, blocks;

  WinogradAxis vertical, horizontal;
  int64_t planes;
  int64_t plane_begin[kWinogradPatterns + 1];
  int64_t* term_planes;  // (vertical.count, horizontal.count): the plane of the first channel

  int64_t tiles_h, tiles_w;
  int64_t band_tile_rows;  // the most in a band
  int64_t plane_pitch;     // of the planes of a band; room for whole vectors behind the last tile

  // The input of a band: rows of the image between zeros, cut into 2 * stride_w phases, [phase][column].
  int64_t extent_h, extent_w;  // inputs that a tile's outputs see
  int64_t phases, phase_pitch;
  int64_t row_pitch;          // phases * phase_pitch
  int64_t* position_offsets;  // (extent_w): of a position of the first tile's window in a row that is cut into phases
  int64_t tile_pitch;         // tiles_w in whole vectors

  // Pooling. A window that covers more than the map is clipped, so half windows never exceed it.
  int64_t half_h, half_w;
  float* row_weights;     // (2 * tiles_h): 1 / rows of the clipped window, 0 behind the map
  float* column_weights;  // (2 * tiles_w and a vector)

  // Per-filter values, (blocks * block), 0 for missing filters.
  float* filters;  // transformed, [block][plane][filter]
  float* lowest;   // least and greatest entry of each filter
  float* highest;
  float* lowest_share;  // 1 / number of entries equal to it
  float* highest_share;
  float* range;  // lowest + highest, the m of the pull kernel m - w
  float* inhibition;
  float* bias;

  // Forward. An item is a range of rows of tiles of one image, a task one chunk of the filter blocks of an item.
  int64_t item_tile_rows, items_per_image;
  int64_t block_chunks;
  int64_t lag;  // how many rows of tiles pooling waits for: ceil(half_h / 2)
};

// Bytes of transformed input that a band should hold: about half a second-level cache.
constexpr int64_t kWinogradBandBytes = int64_t{512} << 10;

// Everything that follows from sizes alone; bands have as many rows as fit kWinogradBandBytes.
WinogradPlan make_winograd_plan(const PushPullGeometry& geometry, int64_t lanes, int64_t block);

// Sets band_tile_rows, and the sizes that depend on it.
void set_winograd_band(WinogradPlan& plan, int64_t tile_rows);

// Takes the plan's arrays; to be called after make_winograd_plan, on a null arena first.
void place_winograd(WinogradPlan& plan, Arena& arena);

// Fills what the filters' values do not enter. A view without data: geometry.strength, no bias.
void fill_winograd(WinogradPlan& plan, const ChannelView& inhibition, const ChannelView& bias);

// Has this form kernels for the call, and fewer products by enough?
bool winograd_gains(const PushPullGeometry& geometry);

// Products for a tile of outputs, an input channel and a filter. The direct sum has 4 * kernel_h * kernel_w.
int64_t winograd_products(const PushPullGeometry& geometry);

// Does this path serve the convolution, and is it the faster one?
bool winograd_applies(const PushPullForwardParams& params);

Status winograd_forward(const PushPullForwardParams& params, const Threads& threads);

// All functions work on the units [begin, end).
struct WinogradKernels {
  int64_t lanes, block;
  void (*pack_filters)(const WinogradPlan&, const View4& weight, int64_t begin, int64_t end);      // blocks
  void (*forward)(const WinogradPlan&, const PushPullForwardParams&, int64_t begin, int64_t end);  // tasks
};

const WinogradKernels& winograd_kernels(DType dtype);

}  // namespace cpu

namespace portable {
const cpu::WinogradKernels& winograd_kernels(DType dtype);
}
namespace avx2 {
const cpu::WinogradKernels& winograd_kernels(DType dtype);
}
namespace avx512 {
const cpu::WinogradKernels& winograd_kernels(DType dtype);
}

}  // namespace sturdy
