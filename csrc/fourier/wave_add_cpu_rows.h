// Sines of an axis, and the passes over rows of pixels that use them.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// ---- sines ----

// The Taylor series of sine and cosine on |x| <= pi / 4: of sin(x) / x - 1 and of cos(x) - 1, in powers of x^2. What
// they leave out is below 2e-9 in float and below 2e-18 in double.
template <typename T>
struct SineSeries;
template <>
struct SineSeries<float> {
  static constexpr float sine[] = {-1.0f / 6, 1.0f / 120, -1.0f / 5040, 1.0f / 362880};
  static constexpr float cosine[] = {-1.0f / 2, 1.0f / 24, -1.0f / 720, 1.0f / 40320, -1.0f / 3628800};
};
template <>
struct SineSeries<double> {
  static constexpr double sine[] = {-1.0 / 6,        1.0 / 120,        -1.0 / 5040,         1.0 / 362880,
                                    -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368e3, 1.0 / 355687428096e3};
  static constexpr double cosine[] = {-1.0 / 2,       1.0 / 24,        -1.0 / 720,         1.0 / 40320,
                                      -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888e3};
};

// Sums coefficients[i] * z^(i + 1).
template <typename T, int count>
STURDY_ALWAYS_INLINE T series(const T (&coefficients)[count], T z) {
  T sum = coefficients[count - 1];
  STURDY_UNROLL
  for (int i = count - 2; i >= 0; i--) {
    sum = sum * z + coefficients[i];
  }
  return sum * z;
}

// sine[i], cosine[i] of 2 pi (frequency * (start + i) + turns), 0 <= i < count. The angle is reduced to an eighth of a
// turn while it is a double. Both loops are written for the compiler to vectorise.
template <typename T>
inline void sine_table(double frequency, double start, double turns, int64_t count, T* sine, T* cosine) {
  constexpr double round = 0x1.8p52;  // adding and taking it away rounds to an integer
  constexpr double two_pi = 6.283185307179586476925;
  constexpr int64_t block = 64;
  T angle[block];    // within an eighth of a turn, in radians
  T quarter[block];  // of a turn, from -2 to 2
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t size = count - begin < block ? count - begin : block;
    const double first = start + static_cast<double>(begin);
    for (int64_t i = 0; i < size; i++) {
      const double whole = frequency * (first + static_cast<double>(static_cast<int32_t>(i))) + turns;
      const double turn = whole - ((whole + round) - round);
      const double quarters = (turn * 4.0 + round) - round;
      angle[i] = static_cast<T>((turn - quarters * 0.25) * two_pi);
      quarter[i] = static_cast<T>(quarters);
    }
    for (int64_t i = 0; i < size; i++) {
      const T x = angle[i];
      const T z = x * x;
      const T s = x + x * series(SineSeries<T>::sine, z);
      const T c = T(1) + series(SineSeries<T>::cosine, z);
      const T q = quarter[i];
      const bool odd = q == T(1) || q == T(-1);
      const T for_sine = odd ? c : s;
      const T for_cosine = odd ? s : c;
      sine[begin + i] = q == T(-1) || q * q == T(4) ? -for_sine : for_sine;
      cosine[begin + i] = q == T(1) || q * q == T(4) ? -for_cosine : for_cosine;
    }
  }
}

// ---- pixels ----

STURDY_ALWAYS_INLINE Vec<float> load_bytes(const uint8_t* from, float /*tag*/) {
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
  typedef int32_t Words __attribute__((vector_size(kVectorBytes)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  const Vec<float> value{__builtin_convertvector(__builtin_convertvector(bytes, Words), Vec<float>::Native)};
  return {value.v / 255.0f};  // as exact as the quotient of scalars
}

STURDY_ALWAYS_INLINE Vec<double> load_bytes(const uint8_t* from, double /*tag*/) {
  Vec<double> value;
  STURDY_UNROLL
  for (int i = 0; i < kLanes<double>; i++) {
    value.v[i] = static_cast<double>(from[i]);
  }
  return {value.v / 255.0};
}

// Elements of an image as numbers to calculate with; bytes become value / 255.
template <typename T, typename S>
STURDY_ALWAYS_INLINE Vec<T> load_pixels(const S* from) {
  if constexpr (sizeof(S) == 1) {
    return load_bytes(from, T{});
  } else {
    return load(from);
  }
}

template <typename T, typename S>
STURDY_ALWAYS_INLINE Vec<T> load_pixels_partial(const S* from, int64_t count) {
  if constexpr (sizeof(S) == 1) {
    uint8_t buffer[kLanes<T>] = {};
    for (int64_t i = 0; i < count; i++) {
      buffer[i] = from[i];
    }
    return load_bytes(buffer, T{});
  } else {
    return load_partial(from, count);
  }
}

template <typename T, typename S>
STURDY_ALWAYS_INLINE T pixel(S value) {
  if constexpr (sizeof(S) == 1) {
    return static_cast<T>(value) / T(255);
  } else {
    return to_accumulate(value);
  }
}

// Bounds of the result; infinite ones change nothing.
template <typename T>
struct Bounds {
  T low, high;
};

// A NaN stays.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> clamp(Vec<T> v, const Bounds<T>& bounds) {
  const Vec<T> low = broadcast(bounds.low);
  const Vec<T> high = broadcast(bounds.high);
  const Vec<T> raised{v.v < low.v ? low.v : v.v};
  return {raised.v > high.v ? high.v : raised.v};
}
#if defined(__AVX512F__)
// The instructions return their second operand when one is a NaN.
STURDY_ALWAYS_INLINE Vec<float> clamp(Vec<float> v, const Bounds<float>& bounds) {
  return {_mm512_min_ps(_mm512_set1_ps(bounds.high), _mm512_max_ps(_mm512_set1_ps(bounds.low), v.v))};
}
#elif defined(__AVX2__)
STURDY_ALWAYS_INLINE Vec<float> clamp(Vec<float> v, const Bounds<float>& bounds) {
  return {_mm256_min_ps(_mm256_set1_ps(bounds.high), _mm256_max_ps(_mm256_set1_ps(bounds.low), v.v))};
}
#endif

// ---- waves on a row ----

// The waves along one row: wave k adds row_sine[k] * cosine[k * pitch + j] + row_cosine[k] * sine[k * pitch + j] to
// pixel j, where row_sine and row_cosine are those of the row's angle times the amplitude.
template <typename T>
struct RowWaves {
  int64_t count;
  const T* row_sine;
  const T* row_cosine;
  const T* sine;
  const T* cosine;
  int64_t pitch;
};

template <typename T, int vectors>
STURDY_ALWAYS_INLINE void add_waves(Vec<T> (&sum)[vectors], const RowWaves<T>& w, int64_t at) {
  for (int64_t k = 0; k < w.count; k++) {
    const Vec<T> row_sine = broadcast(w.row_sine[k]);
    const Vec<T> row_cosine = broadcast(w.row_cosine[k]);
    const T* cosine = w.cosine + k * w.pitch + at;
    const T* sine = w.sine + k * w.pitch + at;
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      accumulate(sum[i], row_sine, load(cosine + i * kLanes<T>));
      accumulate(sum[i], row_cosine, load(sine + i * kLanes<T>));
    }
  }
}

// to = clamp(from + waves) for `length` pixels. The tables may be read up to a whole vector. `from` may be `to` itself
// where both are T.
template <typename T, typename From, typename To>
STURDY_ALWAYS_INLINE void add_to_row(const From* from, To* to, int64_t length, const RowWaves<T>& waves,
                                     const Bounds<T>& bounds) {
  constexpr int lanes = kLanes<T>;
  constexpr int vectors = 4;
  int64_t at = 0;
  for (; at + vectors * lanes <= length; at += vectors * lanes) {
    Vec<T> sum[vectors];
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      sum[i] = load_pixels<T>(from + at + i * lanes);
    }
    add_waves(sum, waves, at);
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      store(to + at + i * lanes, clamp(sum[i], bounds));
    }
  }
  for (; at + lanes <= length; at += lanes) {
    Vec<T> sum[1] = {load_pixels<T>(from + at)};
    add_waves(sum, waves, at);
    store(to + at, clamp(sum[0], bounds));
  }
  if (at < length) {
    Vec<T> sum[1] = {load_pixels_partial<T>(from + at, length - at)};
    add_waves(sum, waves, at);
    store_partial(to + at, clamp(sum[0], bounds), length - at);
  }
}

// The same for a row whose channels lie side by side: pixel j is of channel j % channels, and the row's factors of wave
// k begin at k * row_pitch and go on periodically for channels + lanes numbers.
template <typename T, typename From, typename To>
STURDY_ALWAYS_INLINE void add_to_merged_row(const From* from, To* to, int64_t length, const RowWaves<T>& waves,
                                            int64_t channels, int64_t row_pitch, const Bounds<T>& bounds) {
  constexpr int lanes = kLanes<T>;
  const int64_t step = lanes % channels;
  int64_t channel = 0;
  for (int64_t at = 0; at < length; at += lanes) {
    const bool whole = at + lanes <= length;
    Vec<T> sum = whole ? load_pixels<T>(from + at) : load_pixels_partial<T>(from + at, length - at);
    for (int64_t k = 0; k < waves.count; k++) {
      const int64_t factors = k * row_pitch + channel;
      accumulate(sum, load(waves.row_sine + factors), load(waves.cosine + k * waves.pitch + at));
      accumulate(sum, load(waves.row_cosine + factors), load(waves.sine + k * waves.pitch + at));
    }
    sum = clamp(sum, bounds);
    if (whole) {
      store(to + at, sum);
    } else {
      store_partial(to + at, sum, length - at);
    }
    channel += step;
    channel -= channel >= channels ? channels : 0;
  }
}

// Where `sum` lies outside the bounds, 0; elsewhere the gradient. The gradient goes to `masked`, which may be `sum`.
template <typename T, typename Grad>
STURDY_ALWAYS_INLINE void mask_row(const T* sum, const Grad* grad, T* masked, int64_t length, const Bounds<T>& bounds) {
  constexpr int lanes = kLanes<T>;
  const Vec<T> low = broadcast(bounds.low);
  const Vec<T> high = broadcast(bounds.high);
  const Vec<T> nothing = zero<T>();
  const auto choose = [&](Vec<T> v, Vec<T> g) {
    const Vec<T> above{v.v >= low.v ? g.v : nothing.v};
    return Vec<T>{v.v <= high.v ? above.v : nothing.v};
  };
  int64_t at = 0;
  for (; at + lanes <= length; at += lanes) {
    store(masked + at, choose(load(sum + at), load(grad + at)));
  }
  if (at < length) {
    const int64_t rest = length - at;
    store_partial(masked + at, choose(load_partial(sum + at, rest), load_partial(grad + at, rest)), rest);
  }
}

// sum += row_sine * (values . cosine) + row_cosine * (values . sine), lane by lane. Tables may be read up to a whole
// vector.
template <typename T>
STURDY_ALWAYS_INLINE void add_products(const T* values, const T* sine, const T* cosine, int64_t length, T row_sine,
                                       T row_cosine, Vec<T>& sum) {
  constexpr int lanes = kLanes<T>;
  Vec<T> with_sine = zero<T>();
  Vec<T> with_cosine = zero<T>();
  int64_t at = 0;
  for (; at + lanes <= length; at += lanes) {
    const Vec<T> value = load(values + at);
    accumulate(with_sine, value, load(sine + at));
    accumulate(with_cosine, value, load(cosine + at));
  }
  if (at < length) {
    const Vec<T> value = load_partial(values + at, length - at);
    accumulate(with_sine, value, load(sine + at));
    accumulate(with_cosine, value, load(cosine + at));
  }
  accumulate(sum, broadcast(row_sine), with_cosine);
  accumulate(sum, broadcast(row_cosine), with_sine);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
