// The gradient of the weights of PushPull convolution on tensor cores: a product of gp and the input under the taps,
// summed over pixels, which are cut into pieces whose sums are added up in order. Part of
// push_pull_conv2d_cuda_tensor_gradient.cu, which states its budgets.
//
// A word is two neighbouring pixels of a row (16 bits) or one pixel (tf32): of gp as it lies in memory, of the input an
// element and the one `stride` columns on, as in the other kernels.
#pragma once

#include <algorithm>

#include "pushpull/push_pull_conv2d_cuda_tensor.cuh"

namespace sturdy::cuda::push_pull {

namespace {

constexpr int kWeightPixels = 256;
constexpr int kWeightFilters = 64;      // of a block: two warps of 32
constexpr int kWeightTaps = 160;        // of a block: four warps of 40; a 7 x 7 stem of three channels has 147
constexpr int kWeightFragments = 5;     // of eight taps in a warp
constexpr int64_t kTensorPieces = 512;  // blocks that fill a device of 132 multiprocessors; more only add partial sums

struct TensorWeightPlan {
  TileAxis rows, columns;
  int width;
  SourceLayout source;
  int block_taps;  // (channel, tap row, tap column) of a block, at most kWeightTaps
  int filter_blocks, tap_blocks;
  int64_t tiles, piece_tiles, pieces;
  int gradient_pitch;  // words of a filter in shared memory
  size_t shared_bytes;
};

template <typename T>
constexpr int kWordPixels = 4 / static_cast<int>(sizeof(T));

template <typename T>
bool plan_tensor_weight(const Sizes& s, TensorWeightPlan* plan) {
  TensorWeightPlan p{};
  p.width = s.out_w > 16 ? 32 : s.out_w > 8 ? 16 : 8;
  p.rows = plan_axis(s.out_h, std::min(s.out_h, kWeightPixels / p.width), 0);
  p.columns = plan_axis(s.out_w, std::min(s.out_w, p.width), 0);
  const int64_t rows = (int64_t{p.rows.tile} - 1) * s.stride_h + (int64_t{s.kernel_h} - 1) * s.dilation_h + 1;
  const int64_t columns = (int64_t{p.columns.tile} - 1) * s.stride_w + (int64_t{s.kernel_w} - 1) * s.dilation_w + 1;
  const int64_t most_words = kTensorSharedBudget / 4;
  const int64_t taps = int64_t{s.kernel_h} * s.kernel_w;
  if (rows > most_words || columns > most_words || rows * columns > most_words) {
    return false;
  }
  SourceLayout& source = p.source;
  source.channel_pairs = false;
  source.shift = s.stride_w;
  source.rows = static_cast<int>(rows);
  source.columns = static_cast<int>(columns);
  source.plane_pitch = static_cast<int>((rows * columns + 23) / 32 * 32 + 8);
  p.gradient_pitch = kWeightPixels / kWordPixels<T> + 4;  // rows of eight filters on different banks
  const int64_t fixed = kWeightFilters * p.gradient_pitch + 2 * (kWeightPixels / kWordPixels<T>);
  const int64_t most_planes = (most_words - fixed) / source.plane_pitch;
  if (taps <= kWeightTaps) {
    const int64_t planes = std::min({most_planes, kWeightTaps / taps, int64_t{s.group_in}});
    if (planes < 1) {
      return false;
    }
    source.planes = static_cast<int>(planes);
    p.block_taps = static_cast<int>(planes * taps);
  } else {
    source.planes = std::min(s.group_in, 2);
    p.block_taps = kWeightTaps;
    if (most_planes < source.planes) {
      return false;
    }
  }
  p.filter_blocks = ceil_div(s.group_out, kWeightFilters);
  p.tap_blocks = static_cast<int>(ceil_div(s.group_in * taps, int64_t{p.block_taps}));
  p.tiles = s.batch * p.rows.count * p.columns.count;
  const int64_t products = int64_t{p.filter_blocks} * p.tap_blocks * s.groups;
  p.piece_tiles = ceil_div(p.tiles, std::max(int64_t{1}, kTensorPieces / products));
  p.pieces = ceil_div(p.tiles, p.piece_tiles);
  p.shared_bytes = static_cast<size_t>(fixed + int64_t{source.planes} * source.plane_pitch) * 4;
  *plan = p;
  return true;
}

// gp as the gradient kernel leaves it: planes as in Sizes::map_plane, rows of `pitch` elements that start on 16 bytes.
template <typename T>
struct GradientMap {
  T* data;
  int pitch;

  STURDY_DEVICE T* row(const Sizes& s, int64_t plane, int at) const {
    return data + (plane * s.out_h + at) * int64_t{pitch};
  }
};

// partials(piece, filter, tap) = sum over the piece's pixels of gp * the input under the tap.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    tensor_weight_kernel(Sizes s, TensorWeightPlan plan, View4 input, GradientMap<T> gradient, float* partials) {
  STURDY_DYNAMIC_SHARED(uint32_t, shared);
  constexpr int steps = kWeightPixels / kWordPixels<T> / kStepWords;
  uint32_t* gradients = shared;
  TapPair* pixels = reinterpret_cast<TapPair*>(gradients + kWeightFilters * plan.gradient_pitch);
  uint32_t* source_words = reinterpret_cast<uint32_t*>(pixels + steps * 4);

  unsigned index = blockIdx.x;
  const int filter_block = static_cast<int>(index % plan.filter_blocks);
  index /= plan.filter_blocks;
  const int tap_block = static_cast<int>(index % plan.tap_blocks);
  index /= plan.tap_blocks;
  const int group = static_cast<int>(index % s.groups);
  const int64_t piece = index / s.groups;

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warp_size;
  const int warp = thread / warp_size;
  const int taps = s.kernel_h * s.kernel_w;
  const int depth = s.group_in * taps;
  const int first_tap = tap_block * plan.block_taps;
  const int first_plane = first_tap / taps;
  const int first_filter = filter_block * kWeightFilters;
  const int own_filter = warp % 2 * 32;  // of the block
  const int own_tap = warp / 2 * kWeightFragments * 8;

  int tap_words[kWeightFragments];
#pragma unroll
  for (int j = 0; j < kWeightFragments; ++j) {
    const int at = own_tap + j * 8 + lane / 4;
    const int tap = at < plan.block_taps && first_tap + at < depth ? first_tap + at : first_tap;
    tap_words[j] = (tap / taps - first_plane) * plan.source.plane_pitch +
                   tap % taps / s.kernel_w * s.dilation_h * plan.source.columns + tap % s.kernel_w * s.dilation_w;
  }

  float sums[2][kWeightFragments][4] = {};
  const int64_t end = min((piece + 1) * plan.piece_tiles, plan.tiles);
#pragma unroll 1
  for (int64_t tile = piece * plan.piece_tiles; tile < end; ++tile) {
    const int64_t image = tile / (plan.rows.count * plan.columns.count);
    const int tile_in_image = static_cast<int>(tile % (plan.rows.count * plan.columns.count));
    const int first_row = plan.rows.origin(tile_in_image / plan.columns.count);
    const int first_column = plan.columns.origin(tile_in_image % plan.columns.count);

    // gp, 16 bytes at a time.
    constexpr int piece_pixels = packed_width<T>;
    const int row_pieces = plan.width / piece_pixels;
    const int64_t first_map = s.box_plane(image, group) - s.group_out + first_filter;
    for (int i = thread; i < kWeightFilters * (kWeightPixels / piece_pixels); i += kThreads) {
      const int filter = i / (kWeightPixels / piece_pixels);
      const int within = i % (kWeightPixels / piece_pixels);
      const int row = first_row + within / row_pieces;
      const int column = first_column + within % row_pieces * piece_pixels;
      const bool inside = first_filter + filter < s.group_out && row < s.out_h && column < gradient.pitch;
      cp_async_zero_fill<16>(&gradients[filter * plan.gradient_pitch + within * 4],
                             inside ? gradient.row(s, first_map + filter, row) + column : gradient.data,
                             inside ? 16 : 0);
    }
    const Source<T> source(s, input, image, group);
    const int planes = min(plan.source.planes, s.group_in - first_plane);
    stage_source<T, 2>(plan.source, source, first_row * s.stride_h - s.pad_top, first_column * s.stride_w - s.pad_left,
                       first_plane, planes, source_words);
    // Words of pixels; masked out outside the map, where gp is 0 but the input may be NaN.
    for (int i = thread; i < steps * 4; i += kThreads) {
      int offset[2];
      uint32_t mask[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int pixel = (i / 4 * kStepWords + i % 4 + j * 4) * kWordPixels<T>;
        const int row = pixel / plan.width;
        const int column = pixel % plan.width;
        const int inside = first_row + row < s.out_h ? s.out_w - first_column - column : 0;  // pixels from here on
        offset[j] = inside > 0 ? row * s.stride_h * plan.source.columns + column * s.stride_w : 0;
        mask[j] = inside <= 0 ? 0u : inside < kWordPixels<T> ? 0xffffu : 0xffffffffu;
      }
      pixels[i] = TapPair{offset[0], mask[0], offset[1], mask[1]};
    }
    cp_async_wait_all();
    __syncthreads();

    const uint32_t* rows = gradients + (own_filter + lane % 16) * plan.gradient_pitch + lane / 16 * 4;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const TapPair pixel = pixels[step * 4 + lane % 4];
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ldmatrix_x4(a[i], rows + i * 16 * plan.gradient_pitch + step * kStepWords);
#pragma unroll
        for (uint32_t& word : a[i]) {
          word = Words<T>::operand(word);
        }
      }
#pragma unroll
      for (int j = 0; j < kWeightFragments; ++j) {
        const uint32_t b[2] = {Words<T>::operand(source_words[tap_words[j] + pixel.offset0] & pixel.mask0),
                               Words<T>::operand(source_words[tap_words[j] + pixel.offset1] & pixel.mask1)};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Words<T>::multiply(sums[i][j], a[i], b);
        }
      }
    }
    __syncthreads();
  }

  float* piece_partials = partials + (piece * s.out_channels + int64_t{group} * s.group_out + first_filter) * depth;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kWeightFragments; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int filter = own_filter + i * 16 + e / 2 * 8 + lane / 4;
        const int tap = own_tap + j * 8 + lane % 4 * 2 + e % 2;
        if (first_filter + filter < s.group_out && tap < plan.block_taps && first_tap + tap < depth) {
          piece_partials[int64_t{filter} * depth + first_tap + tap] = sums[i][j][e];
        }
      }
    }
  }
}

}  // namespace

}  // namespace sturdy::cuda::push_pull
