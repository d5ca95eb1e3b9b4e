// filter2d on CUDA. A block takes a tile of a plane with its neighbours into shared memory.
#include <cstdint>

#include "common/cuda.cuh"
#include "fourier/image_change_cuda.cuh"
#include "fourier/prime.h"

// ptxas-budget: filter2d_kernel 64
// ptxas-budget: filter2d_backward_kernel 128
// ptxas-budget: filter2d_no_pixels_kernel 16

namespace sturdy::cuda {
namespace filter2d_tiles {

constexpr int kThreads = 256;
constexpr int kColumns = 64;  // of a tile
constexpr int kRows = 16;
constexpr int kMostExtent = 1 << 30;

struct Tiling {
  int channels, height, width, row_tiles, column_tiles;

  __host__ __device__ int64_t tiles() const { return int64_t{row_tiles} * column_tiles; }
};

bool make_tiling(const ImageSizes& sizes, Tiling* t) {
  if (sizes.channels > kMostExtent || sizes.height > kMostExtent || sizes.width > kMostExtent) {
    return false;
  }
  t->channels = static_cast<int>(sizes.channels);
  t->height = static_cast<int>(sizes.height);
  t->width = static_cast<int>(sizes.width);
  t->row_tiles = ceil_div(t->height, kRows);
  t->column_tiles = ceil_div(t->width, kColumns);
  return true;
}

template <typename A>
STURDY_DEVICE void read_kernel(const ImageParameter& kernel, int64_t image, int64_t channel, A (&taps)[9]) {
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    taps[tap] = static_cast<A>(read_parameter(kernel, image * kernel.stride[0] + channel * kernel.stride[1] +
                                                          tap / 3 * kernel.stride[2] + tap % 3 * kernel.stride[3]));
  }
}

// Puts the tile from (first_row, first_column) with a border into shared memory, zeros beyond the image.
template <typename In, int border, typename A>
STURDY_DEVICE void fetch(const ImageView& view, const Tiling& t, int64_t image, int64_t channel, int first_row,
                         int first_column, A* to) {
  constexpr int columns = kColumns + 2 * border;
  for (int i = static_cast<int>(threadIdx.x); i < (kRows + 2 * border) * columns; i += kThreads) {
    const int row = first_row + i / columns - border;
    const int column = first_column + i % columns - border;
    const bool inside = row >= 0 && row < t.height && column >= 0 && column < t.width;
    to[i] = inside ? image_value<A>(*image_address<const In>(view, image, channel, row, column)) : A(0);
  }
}

// The sum at the pixel whose upper left neighbour is `at`.
template <int pitch, typename A>
STURDY_DEVICE A filter(const A* at, const A (&taps)[9]) {
  A sum = A(0);
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    sum += taps[tap] * at[tap / 3 * pitch + tap % 3];
  }
  return sum;
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads) filter2d_kernel(Filter2dParams p, Tiling t) {
  using A = Accumulate<Out>;
  constexpr int pitch = kColumns + 2;
  __shared__ A x[(kRows + 2) * pitch];
  const int64_t plane = blockIdx.x / t.tiles();
  const int tile = static_cast<int>(blockIdx.x % t.tiles());
  const int64_t image = plane / t.channels;
  const int64_t channel = plane % t.channels;
  const int first_row = tile / t.column_tiles * kRows;
  const int first_column = tile % t.column_tiles * kColumns;
  A taps[9];
  read_kernel(p.kernel, image, channel, taps);
  fetch<In, 1>(p.image.input, t, image, channel, first_row, first_column, x);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
    const int row = i / kColumns;
    const int column = i % kColumns;
    if (first_row + row < t.height && first_column + column < t.width) {
      const A value = clipped(p.clip, filter<pitch>(x + row * pitch + column, taps));
      *image_address<Out>(p.image.out, image, channel, first_row + row, first_column + column) =
          from_accumulate<Out>(value);
    }
  }
}

// A block takes `tiles_per_block` tiles of a plane in order: all of it where sums over it are wanted.
template <typename In, typename S>
__global__ void __launch_bounds__(kThreads)
    filter2d_backward_kernel(Filter2dBackwardParams p, Tiling t, int tiles_per_block) {
  using A = Accumulate<S>;
  constexpr int x_pitch = kColumns + 4;
  constexpr int pitch = kColumns + 2;
  __shared__ A x[(kRows + 4) * x_pitch];
  __shared__ A grad[(kRows + 2) * pitch];  // behind the clamp, with a border
  __shared__ A scratch[warp_size];
  A taps[9];
  A sums[9] = {};
  int64_t plane = 0;
  for (int turn = 0; turn < tiles_per_block; ++turn) {
    const int64_t index = int64_t{blockIdx.x} * tiles_per_block + turn;
    plane = index / t.tiles();
    const int tile = static_cast<int>(index % t.tiles());
    const int64_t image = plane / t.channels;
    const int64_t channel = plane % t.channels;
    const int first_row = tile / t.column_tiles * kRows;
    const int first_column = tile % t.column_tiles * kColumns;
    read_kernel(p.kernel, image, channel, taps);
    __syncthreads();  // nobody reads the former tile any more
    fetch<In, 2>(p.image.input, t, image, channel, first_row, first_column, x);
    fetch<S, 1>(p.image.grad_out, t, image, channel, first_row, first_column, grad);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < (kRows + 2) * pitch; i += kThreads) {
      const A value = filter<x_pitch>(x + i / pitch * x_pitch + i % pitch, taps);
      if (!passes(p.clip, value)) {
        grad[i] = A(0);
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns;
      const int column = i % kColumns;
      if (first_row + row >= t.height || first_column + column >= t.width) {
        continue;
      }
      if (p.image.grad_input.data != nullptr) {
        A sum = A(0);
#pragma unroll
        for (int tap = 0; tap < 9; ++tap) {
          sum += taps[8 - tap] * grad[(row + tap / 3) * pitch + column + tap % 3];
        }
        *image_address<S>(p.image.grad_input, image, channel, first_row + row, first_column + column) =
            from_accumulate<S>(sum);
      }
      const A g = grad[(row + 1) * pitch + column + 1];
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
        sums[tap] += g * x[(row + 1 + tap / 3) * x_pitch + column + 1 + tap % 3];
      }
    }
  }
  if (p.grad_kernel == nullptr) {
    return;
  }
  for (int tap = 0; tap < 9; ++tap) {
    const A sum = block_sum(sums[tap], scratch);
    if (threadIdx.x == 0) {
      static_cast<A*>(p.grad_kernel)[plane * 9 + tap] = sum;
    }
  }
}

// Planes without pixels have a gradient of 0.
template <typename A>
__global__ void filter2d_no_pixels_kernel(A* grad_kernel, int64_t count) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) {
    grad_kernel[at] = A(0);
  }
}

template <typename In, typename Out>
Status forward(const Filter2dParams& p, void* stream) {
  Tiling t;
  const int64_t planes = p.image.sizes.batch * p.image.sizes.channels;
  if (!make_tiling(p.image.sizes, &t) || planes > max_grid_x / t.tiles()) {
    return Status::unsupported_size;
  }
  return launch(filter2d_kernel<In, Out>, dim3(static_cast<unsigned>(planes * t.tiles())), dim3(kThreads), 0, stream, p,
                t);
}

template <typename In, typename S>
Status backward(const Filter2dBackwardParams& p, void* stream) {
  using A = Accumulate<S>;
  Tiling t;
  const int64_t planes = p.image.sizes.batch * p.image.sizes.channels;
  if (!make_tiling(p.image.sizes, &t)) {
    return Status::unsupported_size;
  }
  if (t.tiles() == 0) {
    if (p.grad_kernel == nullptr) {
      return Status::ok;
    }
    return launch(filter2d_no_pixels_kernel<A>, dim3(static_cast<unsigned>(ceil_div<int64_t>(9 * planes, kThreads))),
                  dim3(kThreads), 0, stream, static_cast<A*>(p.grad_kernel), 9 * planes);
  }
  const int64_t per_block = p.grad_kernel == nullptr ? 1 : t.tiles();
  const int64_t blocks = planes * (t.tiles() / per_block);
  if (planes > max_grid_x / t.tiles() || per_block > kMostExtent) {
    return Status::unsupported_size;
  }
  return launch(filter2d_backward_kernel<In, S>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p, t,
                static_cast<int>(per_block));
}

}  // namespace filter2d_tiles

Status filter2d(const Filter2dParams& p, void* stream) {
  return for_dtype(p.image.dtype, [&](auto element) {
    using Out = decltype(element);
    return p.image.input_is_bytes ? filter2d_tiles::forward<uint8_t, Out>(p, stream)
                                  : filter2d_tiles::forward<Out, Out>(p, stream);
  });
}

Status filter2d_backward(const Filter2dBackwardParams& p, void* stream) {
  return for_dtype(p.image.dtype, [&](auto element) {
    using S = decltype(element);
    return p.image.input_is_bytes ? filter2d_tiles::backward<uint8_t, S>(p, stream)
                                  : filter2d_tiles::backward<S, S>(p, stream);
  });
}

}  // namespace sturdy::cuda
