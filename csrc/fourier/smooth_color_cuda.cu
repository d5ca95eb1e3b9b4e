// smooth_color on CUDA: the sums of smooth_color_cpu_sums.h, a few pixels a thread, coefficients in shared memory.
#include <cstdint>

#include "common/cuda.cuh"
#include "fourier/image_change_cuda.cuh"
#include "fourier/prime.h"

// ptxas-budget: smooth_color_kernel 128
// ptxas-budget: smooth_color_bytes_kernel 128
// ptxas-budget: smooth_color_backward_kernel 255

namespace sturdy::cuda {
namespace color {

constexpr int kThreads = 256;
constexpr int kPixelsPerThread = 4;
constexpr int kBytesPerThread = 32;  // pixels, where a table says what becomes of each value
constexpr int kTerms = 32;           // summed at a time
constexpr int64_t kMostTerms = 4096;
constexpr int64_t kMostExtent = int64_t{1} << 30;

struct Plane {
  int64_t image, channel;
  int pixels, width;

  STURDY_DEVICE Plane(const ImageSizes& sizes, int64_t index)
      : image(index / sizes.channels),
        channel(index % sizes.channels),
        pixels(static_cast<int>(sizes.height * sizes.width)),
        width(static_cast<int>(sizes.width)) {}

  template <typename Element>
  STURDY_DEVICE Element* address(const ImageView& view, int pixel) const {
    return image_address<Element>(view, image, channel, pixel / width, pixel % width);
  }
};

STURDY_DEVICE float product(float a, float b, float* lost) {
  const float rounded = a * b;
  *lost = __fmaf_rn(a, b, -rounded);
  return rounded;
}
STURDY_DEVICE double product(double a, double b, double* lost) {
  const double rounded = a * b;
  *lost = __fma_rn(a, b, -rounded);
  return rounded;
}
STURDY_DEVICE void sine_of_half_turns(float x, float* sine, float* cosine) { sincospif(x, sine, cosine); }
STURDY_DEVICE void sine_of_half_turns(double x, double* sine, double* cosine) { sincospi(x, sine, cosine); }

template <typename A>
struct Angle {
  A rest, odd, half_sine, half_cosine;

  STURDY_DEVICE explicit Angle(A x) {
    const A range = sizeof(A) == 4 ? A(0x1p22) : A(0x1p51);
    const bool usual = x < range && x > -range;  // beyond, and for a NaN, the sum is that at 0
    const A whole = usual ? rint(x) : A(0);
    rest = usual ? x - whole : A(0);
    const A parity = whole - A(2) * rint(whole * A(0.5));
    odd = A(1) - A(2) * parity * parity;
    sine_of_half_turns(rest * A(0.5), &half_sine, &half_cosine);
  }

  STURDY_DEVICE A recurrence() const { return A(-4) * half_sine * half_sine; }

  // Sine and cosine of frequency * pi * rest, and the sign for an odd number of half turns.
  STURDY_DEVICE void at(int64_t frequency, A* sine, A* cosine) const {
    A lost;
    const A turns = product(static_cast<A>(frequency), rest, &lost);
    sine_of_half_turns(turns - A(2) * rint(turns * A(0.5)) + lost, sine, cosine);
    if (frequency % 2 != 0) {
      *sine *= odd;
      *cosine *= odd;
    }
  }
};

// The terms at a pixel; with `slope` their derivatives by it.
template <bool slope, typename A>
STURDY_DEVICE A sum_of_terms(const Angle<A>& angle, const A* coefficients, int count, int64_t first) {
  const A recurrence = angle.recurrence();
  A sum = A(0);
  for (int begin = 0; begin < count; begin += kTerms) {
    const A* c = coefficients + begin;
    const int terms = min(kTerms, count - begin);
    const auto value = [&](int j) {
      const A scale = slope ? A(3.14159265358979323846) * static_cast<A>(first + begin + j) : A(1);
      return (j % 2 != 0 ? angle.odd * c[j] : c[j]) * scale;
    };
    A difference = A(0);
    A b = A(0);
    for (int j = terms - 1; j > 0; --j) {
      difference += value(j) + recurrence * b;
      b += difference;
    }
    const A with_cosine = value(0) + difference + A(0.5) * recurrence * b;
    const A with_sine = A(2) * angle.half_sine * angle.half_cosine * b;
    A sine;
    A cosine;
    angle.at(first + begin, &sine, &cosine);
    sum += slope ? cosine * with_cosine - sine * with_sine : sine * with_cosine + cosine * with_sine;
  }
  return sum;
}

// All threads of the block; the coefficients are ready when it returns.
template <typename A>
STURDY_DEVICE void read_coefficients(const ColorTerms& terms, const Plane& plane, A* to) {
  const ImageParameter& c = terms.coefficients;
  const int64_t start = plane.image * c.stride[0] + plane.channel * c.stride[1];
  for (int k = static_cast<int>(threadIdx.x); k < terms.count; k += kThreads) {
    to[k] = static_cast<A>(read_parameter(c, start + k * c.stride[2]));
  }
  __syncthreads();
}

STURDY_DEVICE int64_t first_of(const ColorTerms& terms, const Plane& plane) {
  return terms.first == nullptr ? 1 : terms.first[plane.image * terms.first_stride];
}

template <typename S>
__global__ void __launch_bounds__(kThreads) smooth_color_kernel(SmoothColorParams p, int tiles) {
  using A = Accumulate<S>;
  STURDY_DYNAMIC_SHARED(A, coefficients);
  const Plane plane(p.image.sizes, blockIdx.x / tiles);
  read_coefficients(p.terms, plane, coefficients);
  const int64_t first = first_of(p.terms, plane);
  const int count = static_cast<int>(p.terms.count);
  const int begin = static_cast<int>(blockIdx.x % tiles) * kThreads * kPixelsPerThread;
  for (int step = 0; step < kPixelsPerThread; ++step) {
    const int pixel = begin + step * kThreads + static_cast<int>(threadIdx.x);
    if (pixel < plane.pixels) {
      const A x = to_accumulate(*plane.address<const S>(p.image.input, pixel));
      const A sum = sum_of_terms<false>(Angle<A>(x), coefficients, count, first);
      *plane.address<S>(p.image.out, pixel) = from_accumulate<S>(clipped(p.terms.clip, x + sum));
    }
  }
}

template <typename Out>
__global__ void __launch_bounds__(kThreads) smooth_color_bytes_kernel(SmoothColorParams p, int tiles) {
  using A = Accumulate<Out>;
  STURDY_DYNAMIC_SHARED(A, coefficients);
  __shared__ A table[256];
  static_assert(kThreads == 256, "a thread for each value");
  const Plane plane(p.image.sizes, blockIdx.x / tiles);
  read_coefficients(p.terms, plane, coefficients);
  const A x = byte_value(static_cast<A>(threadIdx.x));
  const A sum =
      sum_of_terms<false>(Angle<A>(x), coefficients, static_cast<int>(p.terms.count), first_of(p.terms, plane));
  table[threadIdx.x] = clipped(p.terms.clip, x + sum);
  __syncthreads();
  const int begin = static_cast<int>(blockIdx.x % tiles) * kThreads * kBytesPerThread;
  for (int step = 0; step < kBytesPerThread; ++step) {
    const int pixel = begin + step * kThreads + static_cast<int>(threadIdx.x);
    if (pixel < plane.pixels) {
      *plane.address<Out>(p.image.out, pixel) =
          from_accumulate<Out>(table[*plane.address<const uint8_t>(p.image.input, pixel)]);
    }
  }
}

// One block a plane, so that sums over it are added in one fixed order. For the gradient of coefficients the plane is
// gone through once for every kTerms of them.
template <typename In, typename S>
__global__ void __launch_bounds__(kThreads) smooth_color_backward_kernel(SmoothColorBackwardParams p) {
  using A = Accumulate<S>;
  STURDY_DYNAMIC_SHARED(A, coefficients);
  __shared__ A scratch[warp_size];
  const Plane plane(p.image.sizes, blockIdx.x);
  read_coefficients(p.terms, plane, coefficients);
  const int64_t first = first_of(p.terms, plane);
  const int count = static_cast<int>(p.terms.count);
  const auto masked = [&](int pixel, A x, const Angle<A>& angle) {
    const A g = to_accumulate(*plane.address<const S>(p.image.grad_out, pixel));
    return passes(p.terms.clip, p.terms.clip.on ? x + sum_of_terms<false>(angle, coefficients, count, first) : A(0))
               ? g
               : A(0);
  };
  if (p.image.grad_input.data != nullptr) {
    for (int pixel = static_cast<int>(threadIdx.x); pixel < plane.pixels; pixel += kThreads) {
      const A x = image_value<A>(*plane.address<const In>(p.image.input, pixel));
      const Angle<A> angle(x);
      const A slope = A(1) + sum_of_terms<true>(angle, coefficients, count, first);
      *plane.address<S>(p.image.grad_input, pixel) = from_accumulate<S>(masked(pixel, x, angle) * slope);
    }
  }
  if (p.grad_coefficients == nullptr) {
    return;
  }
  for (int begin = 0; begin < count; begin += kTerms) {
    A sums[kTerms] = {};
    for (int pixel = static_cast<int>(threadIdx.x); pixel < plane.pixels; pixel += kThreads) {
      const A x = image_value<A>(*plane.address<const In>(p.image.input, pixel));
      const Angle<A> angle(x);
      const A g = masked(pixel, x, angle);
      const A recurrence = angle.recurrence();
      A sine;
      A cosine;
      angle.at(first + begin, &sine, &cosine);
      A value = g * sine;
      A difference = A(2) * g * angle.half_sine * (cosine * angle.half_cosine - sine * angle.half_sine);
#pragma unroll
      for (int j = 0; j < kTerms; ++j) {
        sums[j] += j % 2 != 0 ? angle.odd * value : value;
        value += difference;
        difference += recurrence * value;
      }
    }
#pragma unroll
    for (int j = 0; j < kTerms; ++j) {
      const A sum = block_sum(sums[j], scratch);
      if (threadIdx.x == 0 && begin + j < count) {
        static_cast<A*>(p.grad_coefficients)[int64_t{blockIdx.x} * count + begin + j] = sum;
      }
    }
  }
}

bool supported(const ImageSizes& sizes, const ColorTerms& terms) {
  const bool small_sides = sizes.height <= kMostExtent && sizes.width <= kMostExtent;
  return small_sides && sizes.height * sizes.width <= kMostExtent && terms.count <= kMostTerms;
}

template <typename Out>
Status forward(const SmoothColorParams& p, void* stream) {
  const ImageSizes& sizes = p.image.sizes;
  const int per_block = kThreads * (p.image.input_is_bytes ? kBytesPerThread : kPixelsPerThread);
  const int64_t tiles = ceil_div<int64_t>(sizes.height * sizes.width, per_block);
  const int64_t planes = sizes.batch * sizes.channels;
  if (!supported(sizes, p.terms) || planes > max_grid_x / tiles) {
    return Status::unsupported_size;
  }
  const size_t shared = static_cast<size_t>(p.terms.count) * sizeof(Accumulate<Out>);
  return launch(p.image.input_is_bytes ? smooth_color_bytes_kernel<Out> : smooth_color_kernel<Out>,
                dim3(static_cast<unsigned>(planes * tiles)), dim3(kThreads), shared, stream, p,
                static_cast<int>(tiles));
}

template <typename In, typename S>
Status backward(const SmoothColorBackwardParams& p, void* stream) {
  const int64_t planes = p.image.sizes.batch * p.image.sizes.channels;
  if (!supported(p.image.sizes, p.terms) || planes > max_grid_x) {
    return Status::unsupported_size;
  }
  const size_t shared = static_cast<size_t>(p.terms.count) * sizeof(Accumulate<S>);
  return launch(smooth_color_backward_kernel<In, S>, dim3(static_cast<unsigned>(planes)), dim3(kThreads), shared,
                stream, p);
}

}  // namespace color

Status smooth_color(const SmoothColorParams& p, void* stream) {
  return for_dtype(p.image.dtype, [&](auto element) { return color::forward<decltype(element)>(p, stream); });
}

Status smooth_color_backward(const SmoothColorBackwardParams& p, void* stream) {
  return for_dtype(p.image.dtype, [&](auto element) {
    using S = decltype(element);
    return p.image.input_is_bytes ? color::backward<uint8_t, S>(p, stream) : color::backward<S, S>(p, stream);
  });
}

}  // namespace sturdy::cuda
