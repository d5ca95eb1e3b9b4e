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

}  // namespace cpu
}  // namespace sturdy
