#include "fourier/fft_plan.h"

#include <algorithm>
#include <complex>
#include <limits>
#include <numeric>
#include <vector>

#include "fourier/fft_roots.h"

namespace sturdy {
namespace cpu {
namespace {

// What one sample costs in a stage of this radix: arithmetic of the butterfly, and `kPassCost` for load, rotation and
// store. Rough counts of vector operations; only their order matters.
struct Radix {
  int radix;
  double cost;
};
constexpr double kPassCost = 5;
constexpr Radix kRadices[] = {{2, 2},   {3, 5.3}, {4, 4},   {5, 8},    {6, 7.3}, {7, 11},  {8, 6.5},
                              {9, 11},  {10, 10}, {11, 17}, {12, 9.3}, {13, 19}, {14, 13}, {16, 9.5},
                              {17, 24}, {19, 26}, {23, 31}, {29, 39},  {31, 41}};

bool has_small_factors(int64_t n) {
  for (int p = 2; p <= kLargestRadix; p++) {
    while (n % p == 0) {
      n /= p;
    }
  }
  return n == 1;
}

struct Split {
  double cost = std::numeric_limits<double>::infinity();
  std::vector<int> radices;
};

// The cheapest way to write n as a product of radices that do not exceed `most`, in falling order.
Split cheapest_split(int64_t n, int most) {
  Split best;
  if (n == 1) {
    best.cost = 0;
    return best;
  }
  for (const Radix& r : kRadices) {
    if (r.radix <= most && n % r.radix == 0) {
      Split rest = cheapest_split(n / r.radix, r.radix);
      const double cost = rest.cost + r.cost + kPassCost;
      if (cost < best.cost) {
        best.cost = cost;
        best.radices = std::move(rest.radices);
        best.radices.insert(best.radices.begin(), r.radix);
      }
    }
  }
  return best;
}

// The least length from `least` on that is a power of two times 1, 3, 5 or 9.
int64_t convolution_length(int64_t least) {
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int64_t odd : {1, 3, 5, 9}) {
    int64_t n = odd;
    while (n < least) {
      n *= 2;
    }
    best = std::min(best, n);
  }
  return best;
}

bool are_coprime(const std::vector<int>& radices) {
  return radices.size() == 2 && radices[0] % 2 == 1 && radices[1] % 2 == 1 && radices[1] <= kLargestCoprimeLast &&
         std::gcd(radices[0], radices[1]) == 1;
}

// Which frequency stands at position p after the stages.
template <typename T>
int64_t frequency_at(const FftAxis<T>& axis, int64_t p) {
  if (axis.coprime) {
    const int64_t a = axis.stages[0].radix, b = axis.stages[1].radix;
    int64_t k = p / b;
    while (k % b != p % b) {
      k += a;
    }
    return k;
  }
  int64_t frequency = 0;
  int64_t weight = 1;
  for (int s = 0; s < axis.stage_count; s++) {
    const FftStage& stage = axis.stages[s];
    frequency += weight * (p / stage.spacing);
    p %= stage.spacing;
    weight *= stage.radix;
  }
  return frequency;
}

using Complex = std::complex<double>;

// Plain recursive transform in natural order, for the chirp's table: out[k] = sum_j in[j * stride] w^(j k).
void transform(const Complex* in, int64_t stride, Complex* out, int64_t n) {
  if (n == 1) {
    out[0] = in[0];
    return;
  }
  int64_t p = 2;
  while (n % p != 0) {
    p++;
  }
  const int64_t m = n / p;
  std::vector<Complex> parts(static_cast<size_t>(n));
  for (int64_t a = 0; a < p; a++) {
    transform(in + a * stride, stride * p, parts.data() + a * m, m);
  }
  for (int64_t k = 0; k < n; k++) {
    Complex sum = 0;
    for (int64_t a = 0; a < p; a++) {
      const Root w = root(a * k, n);
      sum += parts[static_cast<size_t>(a * m + k % m)] * Complex(w.cos, -w.sin);
    }
    out[k] = sum;
  }
}

template <typename T>
void fill_chirp(const FftAxis<T>& axis) {
  T* chirp = const_cast<T*>(axis.chirp);
  T* response = const_cast<T*>(axis.response);
  std::vector<Complex> signal(static_cast<size_t>(axis.length));
  std::vector<Complex> spectrum(static_cast<size_t>(axis.length));
  int64_t square = 0;  // j^2 modulo 2 size
  for (int64_t j = 0; j < axis.size; j++) {
    const Root w = root(square, 2 * axis.size);
    chirp[2 * j] = static_cast<T>(w.cos);
    chirp[2 * j + 1] = static_cast<T>(w.sin);
    signal[static_cast<size_t>(j)] = Complex(w.cos, w.sin);
    signal[static_cast<size_t>(j == 0 ? 0 : axis.length - j)] = Complex(w.cos, w.sin);
    square = (square + 2 * j + 1) % (2 * axis.size);
  }
  transform(signal.data(), 1, spectrum.data(), axis.length);
  for (int64_t p = 0; p < axis.length; p++) {
    const Complex value = spectrum[static_cast<size_t>(frequency_at(axis, p))] / static_cast<double>(axis.length);
    response[2 * p] = static_cast<T>(value.real());
    response[2 * p + 1] = static_cast<T>(value.imag());
  }
}

template <typename T, typename Radices>
void set_stages(FftAxis<T>& axis, const Radices& radices) {
  int64_t rest = axis.length;
  int64_t rotation = 0;
  for (int radix : radices) {
    FftStage& stage = axis.stages[axis.stage_count++];
    stage.radix = radix;
    stage.blocks = axis.length / rest;
    rest /= radix;
    stage.spacing = rest;
    stage.rotation = rotation;
    rotation += axis.coprime ? 0 : (rest - 1) * (radix - 1) * 2;
  }
}

}  // namespace

template <typename T>
FftAxis<T> make_fft_axis(int64_t size) {
  FftAxis<T> axis = {};
  axis.size = size;
  axis.chirped = !has_small_factors(size);
  axis.length = axis.chirped ? convolution_length(2 * size - 1) : size;
  std::vector<int> radices = cheapest_split(axis.length, kLargestRadix).radices;
  // An even radix last, where there is one: the rows of frequencies 0 and size / 2 come out of one butterfly then.
  const auto even = std::find_if(radices.rbegin(), radices.rend(), [](int radix) { return radix % 2 == 0; });
  if (even != radices.rend()) {
    std::rotate(even.base() - 1, even.base(), radices.end());
  }
  axis.coprime = !axis.chirped && are_coprime(radices);
  set_stages(axis, radices);
  return axis;
}

template <typename T>
FftAxis<T> make_fft_axis(std::initializer_list<int> radices) {
  FftAxis<T> axis = {};
  axis.size = 1;
  for (int radix : radices) {
    axis.size *= radix;
  }
  axis.length = axis.size;
  set_stages(axis, radices);
  return axis;
}

template <typename T>
void place_fft_axis(FftAxis<T>& axis, Arena& arena) {
  int64_t rotations = 0;
  for (int s = 0; s < axis.stage_count && !axis.coprime; s++) {
    rotations += (axis.stages[s].spacing - 1) * (axis.stages[s].radix - 1) * 2;
  }
  axis.rotations = arena.take<T>(rotations);
  axis.places = arena.take<int64_t>(axis.size);
  axis.slots = axis.coprime ? arena.take<int64_t>(axis.size) : nullptr;
  axis.chirp = arena.take<T>(axis.chirped ? 2 * axis.size : 0);
  axis.response = arena.take<T>(axis.chirped ? 2 * axis.length : 0);
}

template <typename T>
void fill_fft_axis(FftAxis<T>& axis) {
  for (int s = 0; s < axis.stage_count && !axis.coprime; s++) {
    const FftStage& stage = axis.stages[s];
    T* at = const_cast<T*>(axis.rotations) + stage.rotation;
    for (int64_t n = 1; n < stage.spacing; n++) {
      for (int64_t k = 1; k < stage.radix; k++) {
        const Root w = root(n * k, stage.spacing * stage.radix);
        *at++ = static_cast<T>(w.cos);
        *at++ = static_cast<T>(w.sin);
      }
    }
  }
  if (axis.chirped) {
    fill_chirp(axis);
  }
  int64_t* places = const_cast<int64_t*>(axis.places);
  for (int64_t p = 0; p < axis.length; p++) {
    if (axis.chirped) {  // leaves its results in natural order
      if (p < axis.size) {
        places[p] = p;
      }
    } else {
      places[frequency_at(axis, p)] = p;
    }
  }
  if (axis.coprime) {
    int64_t* slots = const_cast<int64_t*>(axis.slots);
    const int64_t a = axis.stages[0].radix, b = axis.stages[1].radix;
    for (int64_t slot = 0; slot < axis.size; slot++) {
      slots[(slot / b * b + slot % b * a) % axis.size] = slot;
    }
  }
}

template FftAxis<float> make_fft_axis<float>(int64_t);
template FftAxis<double> make_fft_axis<double>(int64_t);
template FftAxis<float> make_fft_axis<float>(std::initializer_list<int>);
template FftAxis<double> make_fft_axis<double>(std::initializer_list<int>);
template void place_fft_axis<float>(FftAxis<float>&, Arena&);
template void place_fft_axis<double>(FftAxis<double>&, Arena&);
template void fill_fft_axis<float>(FftAxis<float>&);
template void fill_fft_axis<double>(FftAxis<double>&);

}  // namespace cpu
}  // namespace sturdy
