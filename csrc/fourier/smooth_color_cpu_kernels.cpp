// The CPU kernels of smooth_color for one instruction set. Compiled once for each.
#include <cstdint>

#include "common/scratch.h"
#include "fourier/prime_cpu_rows.h"
#include "fourier/smooth_color_cpu_sums.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlockPixels = 1536;  // of intermediate values
constexpr double kPi = 3.14159265358979323846;

int64_t first_of(const ColorTerms& terms, int64_t image) {
  return terms.first == nullptr ? 1 : terms.first[image * terms.first_stride];
}

// The coefficients of a plane, less zeros at their end, as numbers; returns how many there are. With `slopes` those of
// the derivative follow at slopes.
template <typename T>
int64_t read_coefficients(const ColorTerms& terms, int64_t image, int64_t channel, T* to, T* slopes) {
  const ImageParameter& c = terms.coefficients;
  const int64_t first = first_of(terms, image);
  int64_t count = 0;
  for (int64_t k = 0; k < terms.count; k++) {
    const double value = cpu::read_parameter(c, image * c.stride[0] + channel * c.stride[1] + k * c.stride[2]);
    to[k] = static_cast<T>(value);
    if (slopes != nullptr) {
      slopes[k] = static_cast<T>(value * kPi * static_cast<double>(first + k));
    }
    count = value != 0.0 ? k + 1 : count;
  }
  return count;
}

// to[j] = clamp(x[j] + terms), not inlined so that the same bits come out wherever it is called from.
template <typename T>
__attribute__((noinline)) void color(const T* x, T* to, int64_t length, const T* coefficients, int64_t count,
                                     int64_t first, const Bounds<T>& bounds) {
  constexpr int64_t step = kColorVectors * kLanes<T>;
  for (int64_t at = 0; at < length; at += step) {
    Vec<T> value[kColorVectors];
    Vec<T> sum[kColorVectors];
    const bool whole = at + step <= length;
    STURDY_UNROLL
    for (int i = 0; i < kColorVectors; i++) {
      const int64_t begin = at + i * kLanes<T>;
      const int64_t rest = length - begin;
      value[i] = whole || rest >= kLanes<T> ? load(x + begin) : rest > 0 ? load_partial(x + begin, rest) : zero<T>();
      sum[i] = zero<T>();
    }
    add_terms<false>(sum, value, coefficients, count, first);
    STURDY_UNROLL
    for (int i = 0; i < kColorVectors; i++) {
      const int64_t begin = at + i * kLanes<T>;
      const int64_t rest = length - begin;
      const Vec<T> result = clamp(value[i] + sum[i], bounds);
      if (whole || rest >= kLanes<T>) {
        store(to + begin, result);
      } else if (rest > 0) {
        store_partial(to + begin, result, rest);
      }
    }
  }
}

// A plane's rows one after another are one long row where memory has no gaps.
struct Span {
  int64_t rows, length;

  Span(const ImageSizes& sizes, int64_t unit_rows, const ImageView& a, const ImageView& b) {
    const auto dense = [&](const ImageView& v) { return v.stride[2] == sizes.width * v.stride[3] || unit_rows == 1; };
    const bool whole = dense(a) && dense(b);
    rows = whole ? 1 : unit_rows;
    length = whole ? unit_rows * sizes.width : sizes.width;
  }
};

template <typename In, typename Out>
void forward(const SmoothColorParams& p, const cpu::ImageCut& cut, int64_t begin, int64_t end) {
  using T = Accumulate<Out>;
  const ImageView& input = p.image.input;
  const ImageView& out = p.image.out;
  T* coefficients = nullptr;
  T* buffer = nullptr;
  const auto place = [&](Arena arena) {
    coefficients = arena.take<T>(p.terms.count);
    buffer = arena.take<T>(kBlockPixels);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  const Bounds<T> bounds = bounds_of<T>(p.terms.clip);
  for (int64_t index = begin; index < end; index++) {
    const cpu::ImageUnit unit(cut, p.image.sizes, index);
    const int64_t first = first_of(p.terms, unit.image);
    const Span span(p.image.sizes, unit.rows, input, out);
    for (int64_t channel = unit.channel; channel < unit.channel + unit.channels; channel++) {
      const int64_t count = read_coefficients<T>(p.terms, unit.image, channel, coefficients, nullptr);
      Out table[256];  // what becomes of each byte
      if constexpr (sizeof(In) == 1) {
        for (int value = 0; value < 256; value++) {
          buffer[value] = pixel<T>(static_cast<uint8_t>(value));
        }
        color(buffer, buffer, 256, coefficients, count, first, bounds);
        write_row(buffer, table, 1, 256);
      }
      for (int64_t row = 0; row < span.rows; row++) {
        const In* from =
            static_cast<const In*>(input.data) + cpu::image_offset(input, unit.image, channel, unit.first_row + row);
        Out* to = static_cast<Out*>(out.data) + cpu::image_offset(out, unit.image, channel, unit.first_row + row);
        if constexpr (sizeof(In) == 1) {
          for (int64_t j = 0; j < span.length; j++) {
            to[j * out.stride[3]] = table[from[j * input.stride[3]]];
          }
        } else {
          for (int64_t at = 0; at < span.length; at += kBlockPixels) {
            const int64_t length = std::min(kBlockPixels, span.length - at);
            if constexpr (std::is_same_v<In, T>) {
              if (input.stride[3] == 1 && out.stride[3] == 1) {
                color(from + at, to + at, length, coefficients, count, first, bounds);
                continue;
              }
            }
            read_row(from + at * input.stride[3], input.stride[3], buffer, length);
            color(buffer, buffer, length, coefficients, count, first, bounds);
            write_row(buffer, to + at * out.stride[3], out.stride[3], length);
          }
        }
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- backward ----

template <typename In, typename S>
void backward(const SmoothColorBackwardParams& p, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr int vectors = 3;
  const ImageSizes& sizes = p.image.sizes;
  const ColorTerms& terms = p.terms;
  T* coefficients = nullptr;
  T* slopes = nullptr;
  T* x = nullptr;
  T* value = nullptr;
  T* grad = nullptr;
  T* sums = nullptr;
  double* totals = nullptr;
  const auto place = [&](Arena arena) {
    coefficients = arena.take<T>(terms.count);
    slopes = arena.take<T>(terms.count);
    x = arena.take<T>(kBlockPixels);
    value = arena.take<T>(kBlockPixels);
    grad = arena.take<T>(kBlockPixels);
    sums = arena.take<T>(terms.count * lanes);
    totals = arena.take<double>(terms.count);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  const Bounds<T> bounds = bounds_of<T>(terms.clip);
  const T infinity = std::numeric_limits<T>::infinity();
  const Bounds<T> unbounded = {-infinity, infinity};
  for (int64_t plane = begin; plane < end; plane++) {
    const int64_t image = plane / sizes.channels;
    const int64_t channel = plane % sizes.channels;
    const int64_t first = first_of(terms, image);
    const int64_t count = read_coefficients(terms, image, channel, coefficients, slopes);
    std::fill(totals, totals + terms.count, 0.0);
    for (int64_t row = 0; row < sizes.height; row++) {
      const In* from =
          static_cast<const In*>(p.image.input.data) + cpu::image_offset(p.image.input, image, channel, row);
      const S* from_grad =
          static_cast<const S*>(p.image.grad_out.data) + cpu::image_offset(p.image.grad_out, image, channel, row);
      for (int64_t at = 0; at < sizes.width; at += kBlockPixels) {
        const int64_t length = std::min(kBlockPixels, sizes.width - at);
        const int64_t whole = padded(length, vectors * lanes);
        read_row(from + at * p.image.input.stride[3], p.image.input.stride[3], x, length);
        read_row(from_grad + at * p.image.grad_out.stride[3], p.image.grad_out.stride[3], grad, length);
        std::fill(x + length, x + whole, T(0));
        std::fill(grad + length, grad + whole, T(0));
        if (terms.clip.on) {
          color(static_cast<const T*>(x), value, length, coefficients, count, first, unbounded);
          mask_row(value, grad, grad, length, bounds);
        }
        if (p.grad_coefficients != nullptr) {
          std::fill(sums, sums + terms.count * lanes, T(0));
          for (int64_t j = 0; j < whole; j += vectors * lanes) {
            Vec<T> g[vectors];
            Vec<T> here[vectors];
            for (int i = 0; i < vectors; i++) {
              g[i] = load(grad + j + i * lanes);
              here[i] = load(x + j + i * lanes);
            }
            add_products_with_sines(reinterpret_cast<Vec<T>*>(sums), g, here, terms.count, first);
          }
          for (int64_t k = 0; k < terms.count; k++) {
            for (int64_t lane = 0; lane < lanes; lane++) {
              totals[k] += static_cast<double>(sums[k * lanes + lane]);
            }
          }
        }
        if (p.image.grad_input.data != nullptr) {
          for (int64_t j = 0; j < whole; j += vectors * lanes) {
            Vec<T> here[vectors];
            Vec<T> slope[vectors];
            for (int i = 0; i < vectors; i++) {
              here[i] = load(x + j + i * lanes);
              slope[i] = broadcast(T(1));
            }
            add_terms<true>(slope, here, slopes, count, first);
            for (int i = 0; i < vectors; i++) {
              store(value + j + i * lanes, load(grad + j + i * lanes) * slope[i]);
            }
          }
          S* to = static_cast<S*>(p.image.grad_input.data) + cpu::image_offset(p.image.grad_input, image, channel, row);
          write_row(value, to + at * p.image.grad_input.stride[3], p.image.grad_input.stride[3], length);
        }
      }
    }
    if (p.grad_coefficients != nullptr) {
      for (int64_t k = 0; k < terms.count; k++) {
        static_cast<T*>(p.grad_coefficients)[plane * terms.count + k] = static_cast<T>(totals[k]);
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
void fill(bool input_is_bytes, cpu::PrimeKernels& kernels) {
  kernels.smooth_color = input_is_bytes ? forward<uint8_t, S> : forward<S, S>;
  kernels.smooth_color_backward = input_is_bytes ? backward<uint8_t, S> : backward<S, S>;
}

}  // namespace

void fill_smooth_color(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels) {
  switch (dtype) {
    case DType::f64:
      return fill<double>(input_is_bytes, kernels);
    case DType::f16:
      return fill<Half>(input_is_bytes, kernels);
    case DType::bf16:
      return fill<BFloat16>(input_is_bytes, kernels);
    default:
      return fill<float>(input_is_bytes, kernels);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
