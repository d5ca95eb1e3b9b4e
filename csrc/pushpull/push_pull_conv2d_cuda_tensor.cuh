// What the tensor-core kernels of PushPull convolution share: how a tile of pixels, the input under it and the filters
// lie in shared memory, and the steps that stage and sum them. Nothing here has run on a GPU yet.
//
// The unit of the products is a word of 32 bits: two neighbours along the summed axis where elements have 16 bits, one
// element of float32 (tf32). mma.m16n8k16 for 16 bits and mma.m16n8k8 for tf32 both take eight words of that axis a
// step, and lane 4 g + t holds words t and t + 4 of row g in both, so one kernel serves all types. Which elements make
// a word is chosen so that one is found by adding an offset of the tap to an offset of the pixel, for any stride and
// dilation: either two channels of one input pixel, or one channel of an input pixel and of its neighbour under the
// next tap. The input lies in planes of such words.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda.cuh"
#include "pushpull/push_pull_conv2d_cuda.cuh"

namespace sturdy::cuda::push_pull {

constexpr int kTilePixels = 512;
constexpr int kWarpPixels = kTilePixels / kWarps;  // 64: four fragments of 16 pixels
constexpr int kPassFilters = 32;                   // filters multiplied at once
constexpr int kHalfFilters = 16;                   // filters whose p lies in shared memory at once
constexpr int kStepWords = 8;                      // of the summed axis in one mma
constexpr int kBlockWords = 32;                    // of shared memory for what a block works on
constexpr int kMaxTensorRadius = 3;                // of a pool's window; larger ones take the plain path
constexpr int kLeastTensorFilters = 8;             // of a group: one fragment; fewer would leave most of it unused

// A launch may ask for so much shared memory: what one block has on every GPU with these instructions (99 KiB on the
// smallest), and two blocks still fit on sm_90 and sm_100 (227 KiB).
constexpr int64_t kTensorSharedBudget = 96 * 1024;

// How the input lies in shared memory.
struct SourceLayout {
  bool channel_pairs;  // a word is two channels; else an element and its neighbour `shift` columns on
  int shift;
  int planes;           // of words, for all channels of a group
  int rows, columns;    // input pixels under a tile
  int plane_pitch;      // words from plane to plane
  bool channels_inner;  // neighbouring lanes take channels, not columns
  bool async;           // words are words of global memory as well
};

// A word of the summed axis within a chunk of planes.
struct TapWord {
  int plane, row, column;  // of the chunk, of the kernel
  int elements;            // taps or channels in it; 0: it only fills up the last step
};

struct TensorPlan {
  TileAxis rows, columns;
  int width;  // pixels from row to row of the tile: 8, 16 or 32; it has kTilePixels / width rows
  SourceLayout source;
  int chunk_planes, chunks, stages;  // planes are multiplied in chunks, of which one or two are in shared memory
  int tap_words;                     // along a row of the kernel
  bool planes_inner;                 // words run over the planes first
  int kernel_h, kernel_w;
  int words, padded_words;  // of the summed axis in a chunk; to a whole number of steps
  int passes;               // of kPassFilters filters that one block multiplies
  int filter_blocks;        // blocks that share a tile of pixels
  int area_words;           // for p of half a pass, before that for the box
  int stage_words;
  size_t shared_bytes;

  __host__ __device__ int tile_rows() const { return kTilePixels / width; }
  __host__ __device__ int weight_pitch() const { return padded_words + 4; }  // rows of eight on different banks
  __host__ __device__ int source_words() const { return chunk_planes * source.plane_pitch; }
  __host__ __device__ TapWord tap_word(int word) const {
    TapWord tap{};
    const int kernel_words = kernel_h * tap_words;
    const int place = planes_inner ? word / chunk_planes : word % kernel_words;
    tap.plane = planes_inner ? word % chunk_planes : word / kernel_words;
    tap.row = place / tap_words;
    const int span = tap_words == kernel_w ? 1 : 2;
    tap.column = place % tap_words * span;
    tap.elements = word >= words ? 0 : span == 1 || tap.column + 1 < kernel_w ? 2 : 1;
    return tap;
  }
};

// Closed choice: true where the tensor-core kernels take the convolution of this size. `wide` is for tf32.
bool plan_tensor(const Sizes& sizes, bool wide, int radius_h, int radius_w, TensorPlan* plan);

// The rows of packed weights: groups * filters of a group rounded up to whole passes.
inline int64_t packed_rows(const Sizes& s) {
  return int64_t{s.groups} * ceil_div(s.group_out, kPassFilters) * kPassFilters;
}
inline int64_t packed_words(const Sizes& s, const TensorPlan& plan) {
  return packed_rows(s) * plan.chunks * plan.padded_words;
}

// ------------------------------------------------------------------------------------------------------------- words

// The words that hold elements of type T: float means tf32.
template <typename T>
struct Words {
  static constexpr bool wide = sizeof(T) == 4;

  STURDY_DEVICE static uint32_t bits(T value) {
    if constexpr (wide) {
      return float_to_tf32(value);
    } else if constexpr (std::is_same_v<T, __half>) {
      return __half_as_ushort(value);
    } else {
      return __bfloat16_as_ushort(value);
    }
  }
  STURDY_DEVICE static float low(uint32_t word) {
    if constexpr (wide) {
      return __uint_as_float(word);
    } else if constexpr (std::is_same_v<T, __half>) {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    } else {
      return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(word)));
    }
  }
  STURDY_DEVICE static float high(uint32_t word) { return low(word >> 16); }
  // A word as mma takes it, from one of the input.
  STURDY_DEVICE static uint32_t operand(uint32_t word) {
    if constexpr (wide) {
      return float_to_tf32(low(word));
    } else {
      return word;
    }
  }
  STURDY_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (wide) {
      mma_m16n8k8_tf32(d, a, b);
    } else if constexpr (std::is_same_v<T, __half>) {
      mma_m16n8k16_f16(d, a, b);
    } else {
      mma_m16n8k16_bf16(d, a, b);
    }
  }
};

// -------------------------------------------------------------------------------------------------- staging the input

// The input of one image and group.
template <typename T>
struct Source {
  const T* data;
  int64_t channel, row, column;  // strides
  int channels, height, width;

  Source() = default;
  STURDY_DEVICE Source(const Sizes& s, const View4& input, int64_t image, int group)
      : data(static_cast<const T*>(input.data) + image * input.stride[0] +
             int64_t{group} * s.group_in * input.stride[1]),
        channel(input.stride[1]),
        row(input.stride[2]),
        column(input.stride[3]),
        channels(s.group_in),
        height(s.in_h),
        width(s.in_w) {}
};

// Fills `planes` planes from `first_plane` with the input from this row and column on; what lies outside becomes zero.
// Each warp takes a row of one plane, or of eight where channels are neighbours in memory.
template <typename T, int Unroll>
STURDY_DEVICE void stage_source(const SourceLayout& layout, const Source<T>& source, int first_row, int first_column,
                                int first_plane, int planes, uint32_t* target) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int plane_lanes = layout.channels_inner ? 8 : 1;
  const int lane_plane = layout.channels_inner ? lane % 8 : 0;
  const int lane_column = layout.channels_inner ? lane / 8 : lane;
  const int items = ceil_div(planes, plane_lanes) * layout.rows;
  for (int item = warp; item < items; item += kWarps) {
    const int plane = item / layout.rows * plane_lanes + lane_plane;
    const int row = item % layout.rows;
    if (plane >= planes) {
      continue;
    }
    const int channel = (first_plane + plane) * (layout.channel_pairs ? 2 : 1);
    const bool row_inside =
        channel < source.channels && static_cast<unsigned>(first_row + row) < static_cast<unsigned>(source.height);
    const T* from = source.data + channel * source.channel + (first_row + row) * source.row;
    uint32_t* to = target + plane * layout.plane_pitch + row * layout.columns;
#pragma unroll Unroll
    for (int at = lane_column; at < layout.columns; at += warp_size / plane_lanes) {
      const int column = first_column + at;
      const bool inside = row_inside && static_cast<unsigned>(column) < static_cast<unsigned>(source.width);
      const T* element = from + column * source.column;
      if (layout.async) {
        cp_async_zero_fill<4>(&to[at], inside ? element : source.data, inside ? 4 : 0);
        continue;
      }
      uint32_t word = 0;
      if constexpr (Words<T>::wide) {
        if (inside) {
          word = __float_as_uint(*element);
        }
      } else {
        if (inside) {
          word = Words<T>::bits(*element);
        }
        const bool second = layout.channel_pairs ? inside && channel + 1 < source.channels
                                                 : row_inside && static_cast<unsigned>(column + layout.shift) <
                                                                     static_cast<unsigned>(source.width);
        if (second) {
          word |= Words<T>::bits(layout.channel_pairs ? element[source.channel]
                                                      : from[(column + layout.shift) * source.column])
                  << 16;
        }
      }
      to[at] = word;
    }
  }
}

// -------------------------------------------------------------------------------------------------------------- taps

// What lane t of each group of four adds to a pixel's offset in one step, for words t and t + 4, and what it keeps of
// the words there. Masked-out halves are of input pixels that no tap meets and may be NaN.
struct alignas(16) TapPair {
  int offset0;
  uint32_t mask0;
  int offset1;
  uint32_t mask1;
};

// By the whole block.
STURDY_DEVICE void describe_taps(const TensorPlan& plan, int dilation_h, int dilation_w, TapPair* table) {
  for (int i = static_cast<int>(threadIdx.x); i < plan.padded_words / 2; i += kThreads) {
    int offset[2];
    uint32_t mask[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const TapWord tap = plan.tap_word(i / 4 * kStepWords + i % 4 + j * 4);
      offset[j] = tap.elements == 0 ? 0
                                    : tap.plane * plan.source.plane_pitch + tap.row * dilation_h * plan.source.columns +
                                          tap.column * dilation_w;
      mask[j] = tap.elements == 0 ? 0u : tap.elements == 1 ? 0xffffu : 0xffffffffu;
    }
    table[i] = TapPair{offset[0], mask[0], offset[1], mask[1]};
  }
}

// Starts the copies of one pass of packed weights for one chunk.
STURDY_DEVICE void stage_weights(const TensorPlan& plan, const uint32_t* packed, int64_t first_row, int chunk,
                                 uint32_t* target) {
  const int pieces = plan.padded_words / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kPassFilters * pieces; i += kThreads) {
    const int row = i / pieces;
    const int word = i % pieces * 4;
    cp_async<16>(&target[row * plan.weight_pitch() + word],
                 &packed[((first_row + row) * plan.chunks + chunk) * plan.padded_words + word]);
  }
}

// ------------------------------------------------------------------------------------------------------- the products

// The tile's place in the map.
struct TilePlace {
  int64_t image;
  int group, first_row, first_column;  // of the first pixel, which may lie before the map

  STURDY_DEVICE bool inside(const Sizes& s, const TensorPlan& plan, int row, int column) const {
    return row < plan.rows.tile && column < plan.columns.tile && first_row + row >= 0 && first_row + row < s.out_h &&
           first_column + column >= 0 && first_column + column < s.out_w;
  }
  STURDY_DEVICE float row_scale(const Sizes& s, int row) const {
    const int at = first_row + row;
    return 1.0f / static_cast<float>(window_end(at, s.radius_h, s.out_h) - window_begin(at, s.radius_h));
  }
  STURDY_DEVICE float column_scale(const Sizes& s, int column) const {
    const int at = first_column + column;
    return 1.0f / static_cast<float>(window_end(at, s.radius_w, s.out_w) - window_begin(at, s.radius_w));
  }
};

// The tile's pixel whose sums a thread has in row g (half 0) or g + 8 of its warp's fragment i.
STURDY_DEVICE int fragment_pixel(int i, int half) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  return warp * kWarpPixels + i * 16 + half * 8 + lane / 4;
}

// Where each pixel's first tap lies among the words of a plane; ~ of it for a pixel outside the map. By the whole
// block.
STURDY_DEVICE void describe_pixels(const Sizes& s, const TensorPlan& plan, const TilePlace& place, int* words) {
  for (int pixel = static_cast<int>(threadIdx.x); pixel < kTilePixels; pixel += kThreads) {
    // Pixels beyond the tile's last row or column read what its last one does; nobody uses their sums.
    const int row = min(pixel / plan.width, plan.rows.tile - 1);
    const int column = min(pixel % plan.width, plan.columns.tile - 1);
    const int word = row * s.stride_h * plan.source.columns + column * s.stride_w;
    words[pixel] = place.inside(s, plan, pixel / plan.width, pixel % plan.width) ? word : ~word;
  }
}

// sums[i][j] += pixels of fragment i times filters of fragment j, over one chunk.
template <typename T>
STURDY_DEVICE void multiply_chunk(const uint32_t* source, const uint32_t* weights, int weight_pitch,
                                  const TapPair* table, int steps, const int* pixel_words, float (&sums)[4][4][4]) {
  int pixels[4][2];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int word = pixel_words[fragment_pixel(i / 2, i % 2)];
    pixels[i / 2][i % 2] = word >= 0 ? word : ~word;
  }
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const uint32_t* weight_row = weights + (lane % 8 + lane / 16 * 8) * weight_pitch + lane / 8 % 2 * 4;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const TapPair taps = table[step * 4 + lane % 4];
    uint32_t b[4][2];
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t four[4];
      ldmatrix_x4(four, weight_row + j * 8 * weight_pitch + step * kStepWords);
      b[j][0] = four[0];
      b[j][1] = four[1];
      b[j + 1][0] = four[2];
      b[j + 1][1] = four[3];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t a[4] = {Words<T>::operand(source[pixels[i][0] + taps.offset0] & taps.mask0),
                             Words<T>::operand(source[pixels[i][1] + taps.offset0] & taps.mask0),
                             Words<T>::operand(source[pixels[i][0] + taps.offset1] & taps.mask1),
                             Words<T>::operand(source[pixels[i][1] + taps.offset1] & taps.mask1)};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Words<T>::multiply(sums[i][j], a, b[j]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ the box

// Sum over the channels of a chunk at every input pixel. A thread keeps its pixels from chunk to chunk.
template <typename T>
STURDY_DEVICE void add_channels(const SourceLayout& layout, const uint32_t* source, int planes, bool first,
                                float* channel_sums) {
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < layout.rows * layout.columns; at += kThreads) {
    float sum = first ? 0.0f : channel_sums[at];
#pragma unroll 2
    for (int plane = 0; plane < planes; ++plane) {
      const uint32_t word = source[plane * layout.plane_pitch + at];
      sum += Words<T>::low(word);
      if (!Words<T>::wide && layout.channel_pairs) {
        sum += Words<T>::high(word);
      }
    }
    channel_sums[at] = sum;
  }
}

// From channel sums in `area` to the pooled box of every pixel of the tile (right for those whose window the tile or
// the map's edge holds). Begins and ends with a barrier.
STURDY_DEVICE void make_mean_box(const Sizes& s, const TensorPlan& plan, const TilePlace& place, float* area,
                                 float* mean_box) {
  const SourceLayout& layout = plan.source;
  const int width = plan.width;
  float* along_rows = area + layout.rows * layout.columns;
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < layout.rows * width; at += kThreads) {
    const int column = min(at % width, plan.columns.tile - 1);
    along_rows[at] = sum_cells(area + at / width * layout.columns + column * s.stride_w, s.kernel_w, s.dilation_w);
  }
  __syncthreads();
  for (int pixel = static_cast<int>(threadIdx.x); pixel < kTilePixels; pixel += kThreads) {
    const int row = pixel / width;
    const int column = pixel % width;
    mean_box[pixel] = place.inside(s, plan, row, column)
                          ? sum_cells(along_rows + row * s.stride_h * width + column, s.kernel_h, s.dilation_h * width)
                          : 0.0f;
  }
  __syncthreads();
  if (!s.pooled()) {
    return;
  }
  for (int pixel = static_cast<int>(threadIdx.x); pixel < kTilePixels; pixel += kThreads) {
    const int column = pixel % width;
    const int begin = max(column - s.radius_w, 0);
    area[pixel] = sum_cells(mean_box + pixel - column + begin, min(column + s.radius_w + 1, width) - begin, 1);
  }
  __syncthreads();
  for (int pixel = static_cast<int>(threadIdx.x); pixel < kTilePixels; pixel += kThreads) {
    const int row = pixel / width;
    const int column = pixel % width;
    const int begin = max(row - s.radius_h, 0);
    const int cells = min(row + s.radius_h + 1, plan.tile_rows()) - begin;
    mean_box[pixel] = sum_cells(area + begin * width + column, cells, width) * place.row_scale(s, row) *
                      place.column_scale(s, column);
  }
  __syncthreads();
}

// ------------------------------------------------------------------------------------------- four neighbouring values

template <typename T>
STURDY_DEVICE Packed<T, 4> round_four(const float (&values)[4]) {
  Packed<T, 4> packed;
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    packed[v] = from_accumulate<T>(values[v]);
  }
  return packed;
}

// The last two values of the lane before this one, then the first two of this lane.
template <typename T>
STURDY_DEVICE Packed<T, 4> shift_by_two(const Packed<T, 4>& own) {
  constexpr int words = static_cast<int>(sizeof own) / 4;
  uint32_t from[words];
  uint32_t to[words];
  memcpy(from, &own, sizeof own);
#pragma unroll
  for (int i = 0; i < words / 2; ++i) {
    to[i] = __shfl_up_sync(full_warp, from[words / 2 + i], 1);
    to[words / 2 + i] = from[i];
  }
  Packed<T, 4> shifted;
  memcpy(&shifted, to, sizeof to);
  return shifted;
}

// ----------------------------------------------------------------------------------------------------------- pooling

// Walks down `Rows` rows of four neighbouring values each and adds up windows. quad(row) gives a row's values,
// add(row, sums) adds to them their neighbours along the row, emit(row, centre, window) takes a row's values and the
// sums of their windows.
template <int Radius, int Rows, typename Quad, typename Add, typename Emit>
STURDY_DEVICE void walk_rows(int first_row, int tile_rows, int radius_h, const Quad& quad, const Add& add,
                             const Emit& emit) {
  float sums[2 * Radius + 1][4] = {};
  Packed<float, 4> last = {};  // the values of the row before
#pragma unroll 1
  for (int step = -Radius; step < Rows + Radius; ++step) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
#pragma unroll
      for (int i = 0; i < 2 * Radius; ++i) {
        sums[i][v] = sums[i + 1][v];
      }
      sums[2 * Radius][v] = 0.0f;
    }
    const int row = first_row + step;
    Packed<float, 4> own = {};
    if (row >= 0 && row < tile_rows) {
      own = quad(row);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        sums[2 * Radius][v] = own[v];
      }
      add(row, sums[2 * Radius]);
    }
    const Packed<float, 4> before = last;
    last = own;
    if (step < Radius) {
      continue;
    }
    float window[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      window[v] = sums[Radius][v];
#pragma unroll
      for (int i = 1; i <= Radius; ++i) {
        if (i <= radius_h) {
          window[v] += sums[Radius - i][v] + sums[Radius + i][v];
        }
      }
    }
    if constexpr (Radius == 0) {
      emit(row, own, window);
    } else if constexpr (Radius == 1) {
      emit(row - 1, before, window);
    } else {
      emit(row - Radius, quad(row - Radius), window);  // read once more: the registers are dearer
    }
  }
}

}  // namespace sturdy::cuda::push_pull
