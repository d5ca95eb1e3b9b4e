// sine_warp on CUDA. A block takes a few rows of an image: it multiplies the coefficients by the sines of these rows,
// keeps what comes out in shared memory, and then each thread makes the field of its columns and samples all channels.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/cuda.cuh"
#include "fourier/image_change_cuda.cuh"
#include "fourier/prime.h"

// ptxas-budget: sine_warp_kernel 128

namespace sturdy::cuda {
namespace warp_tiles {

constexpr int kThreads = 256;
constexpr int kMostRows = 4;                       // of a block
constexpr size_t kUsualBytes = 48 * 1024;          // of shared memory, which a launch need not ask for
constexpr size_t kMostBytes = 64 * 1024;           // which every architecture from 7.5 on has
constexpr int64_t kMostExtent = int64_t{1} << 20;  // of an axis

struct Tiling {
  int channels, height, width, rows, strips;
  int terms;                        // different sines along columns
  int64_t column_terms, row_terms;  // coefficients along both

  __host__ __device__ int column_period() const { return width < 2 ? 1 : 2 * (width - 1); }
  __host__ __device__ int row_period() const { return height < 2 ? 1 : 2 * (height - 1); }
  size_t values() const { return size_t{2} * rows * terms + column_period() + row_period(); }
};

// sin(pi q / (length - 1)) for one period of q. All threads of the block.
template <typename A>
STURDY_DEVICE void fill_sines(A* to, int period) {
  for (int q = static_cast<int>(threadIdx.x); q < period; q += kThreads) {
    const double turns = 2.0 * q / period;  // in half turns
    to[q] = period == 1 || 2 * q % period == 0 ? A(0) : static_cast<A>(sinpi(turns));
  }
}

// Splits a coordinate into a pixel and a rest. A NaN stays in the rest, and is not made an index of.
template <typename A>
STURDY_DEVICE int split(A at, int most, A* rest) {
  const A raised = at < A(0) ? A(0) : at;
  const A bounded = raised > static_cast<A>(most) ? static_cast<A>(most) : raised;
  const int whole = bounded == bounded ? static_cast<int>(bounded) : 0;
  *rest = bounded - static_cast<A>(whole);
  return whole;
}

// Two blocks a multiprocessor: left to itself ptxas aims at more, and spills.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads, 2) sine_warp_kernel(SineWarpParams p, Tiling t) {
  using A = Accumulate<Out>;
  STURDY_DYNAMIC_SHARED(A, memory);
  A* const column_sines = memory;
  A* const row_sines = column_sines + t.column_period();
  A* const middle = row_sines + t.row_period();  // [field][term][row]
  const int64_t image = blockIdx.x / t.strips;
  const int first_row = static_cast<int>(blockIdx.x % t.strips) * t.rows;
  const int rows = min(t.rows, t.height - first_row);
  fill_sines(column_sines, t.column_period());
  fill_sines(row_sines, t.row_period());
  __syncthreads();

  // Frequencies that are one sine on the pixels of a row are added up: term, period + term ... and period - term ...
  const ImageParameter& c = p.coefficients;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * t.terms; i += kThreads) {
    const int field = i / t.terms;
    const int term = i % t.terms + 1;
    A sums[kMostRows] = {};
    for (int64_t turn = 0; turn - term <= t.column_terms; turn += t.column_period()) {
      for (int sign = -1; sign <= 1; sign += 2) {
        const int64_t frequency = turn + sign * term;
        if (frequency < 1 || frequency > t.column_terms) {
          continue;
        }
        const int64_t start = image * c.stride[0] + field * c.stride[1] + (frequency - 1) * c.stride[2];
        int at[kMostRows] = {};
        for (int64_t j = 0; j < t.row_terms; ++j) {
          const A value = static_cast<A>(sign * read_parameter(c, start + j * c.stride[3]));
#pragma unroll
          for (int r = 0; r < kMostRows; ++r) {
            if (r < rows) {
              at[r] += first_row + r;
              at[r] -= at[r] >= t.row_period() ? t.row_period() : 0;
              sums[r] += value * row_sines[at[r]];
            }
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kMostRows; ++r) {
      if (r < t.rows) {
        middle[i * t.rows + r] = sums[r];
      }
    }
  }
  __syncthreads();

  for (int column = static_cast<int>(threadIdx.x); column < t.width; column += kThreads) {
    A x[kMostRows] = {};
    A y[kMostRows] = {};
    int at = 0;
    for (int i = 0; i < t.terms; ++i) {
      at += column;
      at -= at >= t.column_period() ? t.column_period() : 0;
      const A sine = column_sines[at];
#pragma unroll
      for (int r = 0; r < kMostRows; ++r) {
        if (r < t.rows) {
          x[r] += middle[i * t.rows + r] * sine;
          y[r] += middle[(t.terms + i) * t.rows + r] * sine;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kMostRows; ++r) {
      if (r >= rows) {
        break;
      }
      A right;
      A down;
      const int left = split(static_cast<A>(column) - x[r], t.width - 1, &right);
      const int upper = split(static_cast<A>(first_row + r) - y[r], t.height - 1, &down);
      // A neighbour that does not count is not looked at: it may be beyond the image, or a NaN.
      const int64_t next = right > A(0) ? p.image.input.stride[3] : 0;
      const int64_t below = down > A(0) ? p.image.input.stride[2] : 0;
      for (int channel = 0; channel < t.channels; ++channel) {
        const In* corner = image_address<const In>(p.image.input, image, channel, upper, left);
        const A a = image_value<A>(corner[0]);
        const A b = image_value<A>(corner[next]);
        const A d = image_value<A>(corner[below]);
        const A e = image_value<A>(corner[next + below]);
        const A above = a + right * (b - a);
        const A under = d + right * (e - d);
        *image_address<Out>(p.image.out, image, channel, first_row + r, column) =
            from_accumulate<Out>(above + down * (under - above));
      }
    }
  }
}

template <typename In, typename Out>
Status run(const SineWarpParams& p, void* stream) {
  using A = Accumulate<Out>;
  const ImageSizes& sizes = p.image.sizes;
  if (sizes.channels > kMostExtent || sizes.height > kMostExtent || sizes.width > kMostExtent) {
    return Status::unsupported_size;
  }
  Tiling t = {};
  t.channels = static_cast<int>(sizes.channels);
  t.height = static_cast<int>(sizes.height);
  t.width = static_cast<int>(sizes.width);
  t.terms = static_cast<int>(different_sines(p.column_terms, sizes.width));
  t.column_terms = p.column_terms;
  t.row_terms = p.row_terms;
  t.rows = std::min(kMostRows, t.height);
  while (t.rows > 1 && t.values() * sizeof(A) > kUsualBytes) {
    t.rows /= 2;
  }
  t.strips = ceil_div(t.height, t.rows);
  if (t.values() * sizeof(A) > kMostBytes || sizes.batch > max_grid_x / t.strips) {
    return Status::unsupported_size;
  }
  return launch(sine_warp_kernel<In, Out>, dim3(static_cast<unsigned>(sizes.batch * t.strips)), dim3(kThreads),
                t.values() * sizeof(A), stream, p, t);
}

}  // namespace warp_tiles

Status sine_warp(const SineWarpParams& p, void* stream) {
  return for_dtype(p.image.dtype, [&](auto element) {
    using Out = decltype(element);
    return p.image.input_is_bytes ? warp_tiles::run<uint8_t, Out>(p, stream) : warp_tiles::run<Out, Out>(p, stream);
  });
}

}  // namespace sturdy::cuda
