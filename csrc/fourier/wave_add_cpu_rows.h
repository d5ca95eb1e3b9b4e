// Sines of an axis, and the passes over rows of pixels that use them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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
STURDY_ALWAYS_INLINE Vec<T> series(const T (&coefficients)[count], Vec<T> z) {
  Vec<T> sum = broadcast(coefficients[count - 1]);
  STURDY_UNROLL
  for (int i = count - 2; i >= 0; i--) {
    sum.v = sum.v * z.v + coefficients[i];
  }
  return sum * z;
}

// Two halves of a vector side by side. Not through memory: a load of what two stores left would wait for both.
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef int32_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));
#if defined(__AVX512F__)
STURDY_ALWAYS_INLINE Vec<float> join(HalfFloats low, HalfFloats high) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
}
STURDY_ALWAYS_INLINE LaneIndex<float>::Native join(HalfWords low, HalfWords high) {
  return reinterpret_cast<LaneIndex<float>::Native>(
      _mm512_inserti32x8(_mm512_castsi256_si512(reinterpret_cast<__m256i>(low)), reinterpret_cast<__m256i>(high), 1));
}
#elif defined(__AVX2__)
STURDY_ALWAYS_INLINE Vec<float> join(HalfFloats low, HalfFloats high) { return {_mm256_set_m128(high, low)}; }
STURDY_ALWAYS_INLINE LaneIndex<float>::Native join(HalfWords low, HalfWords high) {
  return reinterpret_cast<LaneIndex<float>::Native>(
      _mm256_set_m128i(reinterpret_cast<__m128i>(high), reinterpret_cast<__m128i>(low)));
}
#else
STURDY_ALWAYS_INLINE Vec<float> join(HalfFloats low, HalfFloats high) {
  const Vec<float>::Native both = {low[0], low[1], high[0], high[1]};
  return {both};
}
STURDY_ALWAYS_INLINE LaneIndex<float>::Native join(HalfWords low, HalfWords high) {
  const LaneIndex<float>::Native both = {low[0], low[1], high[0], high[1]};
  return both;
}
#endif

// An angle as a number of quarter turns, of which the two lowest bits count, and what is left, in radians and at most
// an eighth of a turn.
template <typename T>
struct ReducedAngle {
  Vec<T> rest;
  typename LaneIndex<T>::Native quarters;
};

STURDY_ALWAYS_INLINE ReducedAngle<double> reduced_angle(Vec<double> quarter_turns) {
  constexpr double round = 0x1.8p52;  // adding it rounds to an integer, which then stands in the lowest bits
  constexpr double half_pi = 1.570796326794896619231;
  const Vec<double> shifted{quarter_turns.v + round};
  const Vec<double> rest{quarter_turns.v - (shifted.v - round)};
  return {{rest.v * half_pi}, reinterpret_cast<LaneIndex<double>::Native>(shifted.v)};
}

// Of lanes 0, 1, ... times `step`, in quarter turns from `start` on.
STURDY_ALWAYS_INLINE ReducedAngle<double> angles_from(double start, double step, Vec<double> lane, double /*tag*/) {
  return reduced_angle({lane.v * step + start});
}

STURDY_ALWAYS_INLINE ReducedAngle<float> angles_from(double start, double step, Vec<double> lane, float /*tag*/) {
  const ReducedAngle<double> low = reduced_angle({lane.v * step + start});
  const ReducedAngle<double> high = reduced_angle({(lane.v + kLanes<double>)*step + start});
  return {join(__builtin_convertvector(low.rest.v, HalfFloats), __builtin_convertvector(high.rest.v, HalfFloats)),
          join(__builtin_convertvector(low.quarters, HalfWords), __builtin_convertvector(high.quarters, HalfWords))};
}

template <typename T>
struct SineCosine {
  Vec<T> sine, cosine;
};

template <typename T>
STURDY_ALWAYS_INLINE SineCosine<T> sine_cosine(const ReducedAngle<T>& angle) {
  using Integers = typename LaneIndex<T>::Native;
  using Native = typename Vec<T>::Native;
  constexpr int to_sign = 8 * static_cast<int>(sizeof(T)) - 2;  // from the second lowest bit
  const Integers sign_bit = reinterpret_cast<Integers>(broadcast(T{-0.0}).v);
  const Integers n = angle.quarters;
  const Vec<T> x = angle.rest;
  const Vec<T> z = x * x;
  const Vec<T> s{x.v + x.v * series(SineSeries<T>::sine, z).v};
  const Vec<T> c{T(1) + series(SineSeries<T>::cosine, z).v};
  const Integers for_sine = reinterpret_cast<Integers>((n & 1) != 0 ? c.v : s.v);
  const Integers for_cosine = reinterpret_cast<Integers>((n & 1) != 0 ? s.v : c.v);
  const Integers sine_sign = (n << to_sign) & sign_bit;
  const Integers cosine_sign = ((n + 1) << to_sign) & sign_bit;
  return {{reinterpret_cast<Native>(for_sine ^ sine_sign)}, {reinterpret_cast<Native>(for_cosine ^ cosine_sign)}};
}

// The sines along an axis: of 2 pi (frequency * (start + i) + turns) for i = 0, 1, ... The angle is reduced to an
// eighth of a turn while it is a double.
class Axis {
 public:
  STURDY_ALWAYS_INLINE Axis(double frequency, double start, double turns)
      : frequency_(4.0 * frequency), first_(4.0 * (start * frequency + turns)) {
    STURDY_UNROLL
    for (int i = 0; i < kLanes<double>; i++) {
      lane_.v[i] = i;
    }
  }

  // Those of a whole vector, from i = begin on.
  template <typename T>
  STURDY_ALWAYS_INLINE SineCosine<T> at(int64_t begin) const {
    return sine_cosine(angles_from(first_ + frequency_ * static_cast<double>(begin), frequency_, lane_, T{}));
  }

  // Those for 0 <= i < count and on to the next multiple of lanes.
  template <typename T>
  STURDY_ALWAYS_INLINE void table(int64_t count, T* sine, T* cosine) const {
    for (int64_t begin = 0; begin < count; begin += kLanes<T>) {
      const SineCosine<T> v = at<T>(begin);
      store(sine + begin, v.sine);
      store(cosine + begin, v.cosine);
    }
  }

 private:
  double frequency_, first_;  // in quarter turns
  Vec<double> lane_;
};

// ---- pixels ----

// value / 255 for whole numbers up to 255, to the last bit what the division gives: with a fused product it takes 1 /
// 255 in two parts and no division, which would cost more than the rest of the pass.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> divide_by_255(Vec<T> value) {
#if defined(__FMA__)
  constexpr T high = T(1) / T(255);
  constexpr T low = static_cast<T>((1.0L - 255.0L * static_cast<long double>(high)) / 255.0L);
  Vec<T> quotient = value * broadcast(low);
  accumulate(quotient, value, broadcast(high));
  return quotient;
#else
  return {value.v / T(255)};
#endif
}

STURDY_ALWAYS_INLINE Vec<float> load_bytes(const uint8_t* from, float /*tag*/) {
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
  typedef int32_t Words __attribute__((vector_size(kVectorBytes)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)  // gcc 12 takes many more steps when left to itself
  const Words words = reinterpret_cast<Words>(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(bytes)));
#else
  const Words words = __builtin_convertvector(bytes, Words);
#endif
  return divide_by_255(Vec<float>{__builtin_convertvector(words, Vec<float>::Native)});
}

STURDY_ALWAYS_INLINE Vec<double> load_bytes(const uint8_t* from, double /*tag*/) {
  Vec<double> value;
  STURDY_UNROLL
  for (int i = 0; i < kLanes<double>; i++) {
    value.v[i] = static_cast<double>(from[i]);
  }
  return divide_by_255(value);
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

// Past the caches, which keep what they have; `to` must be a multiple of a vector's bytes. A reader on another thread
// has to wait for finish_streaming() on this one.
#if defined(__AVX512F__)
STURDY_ALWAYS_INLINE void store_past_caches(float* to, Vec<float> v) { _mm512_stream_ps(to, v.v); }
STURDY_ALWAYS_INLINE void finish_streaming() { _mm_sfence(); }
#elif defined(__AVX2__)
STURDY_ALWAYS_INLINE void store_past_caches(float* to, Vec<float> v) { _mm256_stream_ps(to, v.v); }
STURDY_ALWAYS_INLINE void finish_streaming() { _mm_sfence(); }
#else
STURDY_ALWAYS_INLINE void store_past_caches(float* to, Vec<float> v) { store(to, v); }
STURDY_ALWAYS_INLINE void finish_streaming() {}
#endif

// ---- waves on a row ----

// The waves along one row: to pixel j, wave k adds
//   row_sine[k * row_pitch] * cosine[k * pitch + j] + row_cosine[k * row_pitch] * sine[k * pitch + j]
// where row_sine and row_cosine are those of the row's angle times the amplitude.
template <typename T>
struct RowWaves {
  int64_t count;
  const T* row_sine;
  const T* row_cosine;
  int64_t row_pitch;
  const T* sine;
  const T* cosine;
  int64_t pitch;
};

// `known` is the number of waves, or 0 if that is not known beforehand.
template <int known, typename T, int vectors>
STURDY_ALWAYS_INLINE void add_waves(Vec<T> (&sum)[vectors], const RowWaves<T>& w, int64_t at) {
  const int64_t count = known > 0 ? known : w.count;
  for (int64_t k = 0; k < count; k++) {
    const Vec<T> row_sine = broadcast(w.row_sine[k * w.row_pitch]);
    const Vec<T> row_cosine = broadcast(w.row_cosine[k * w.row_pitch]);
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
// where both are T. With `streams` whole vectors go past the caches, for rows of float that begin at a multiple of one.
template <int known = 0, bool streams = false, typename T, typename From, typename To>
STURDY_ALWAYS_INLINE void add_to_row(const From* from, To* to, int64_t length, const RowWaves<T>& waves,
                                     const Bounds<T>& bounds) {
  constexpr int lanes = kLanes<T>;
  const auto put = [&](int64_t at, Vec<T> v) __attribute__((always_inline)) {
    if constexpr (streams) {
      store_past_caches(to + at, v);
    } else {
      store(to + at, v);
    }
  };
  constexpr int vectors = 4;
  int64_t at = 0;
  for (; at + vectors * lanes <= length; at += vectors * lanes) {
    Vec<T> sum[vectors];
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      sum[i] = load_pixels<T>(from + at + i * lanes);
    }
    add_waves<known>(sum, waves, at);
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      put(at + i * lanes, clamp(sum[i], bounds));
    }
  }
  for (; at + lanes <= length; at += lanes) {
    Vec<T> sum[1] = {load_pixels<T>(from + at)};
    add_waves<known>(sum, waves, at);
    put(at, clamp(sum[0], bounds));
  }
  if (at < length) {
    Vec<T> sum[1] = {load_pixels_partial<T>(from + at, length - at)};
    add_waves<known>(sum, waves, at);
    store_partial(to + at, clamp(sum[0], bounds), length - at);
  }
}

// The same for all rows of a plane of at most `vectors` vectors in width and for one wave, whose sines along the row
// are in registers. Rows lie from_stride and to_stride apart.
template <int vectors, typename T, typename From, typename To>
STURDY_ALWAYS_INLINE void add_to_narrow_plane(const From* from, int64_t from_stride, To* to, int64_t to_stride,
                                              int64_t rows, int64_t width, const T* row_sines, const T* row_cosines,
                                              const Vec<T> (&sine)[vectors], const Vec<T> (&cosine)[vectors],
                                              const Bounds<T>& bounds) {
  constexpr int lanes = kLanes<T>;
  constexpr int last = (vectors - 1) * lanes;
  const int64_t rest = width - last;
  const auto add_to_one = [&](int64_t row, auto whole) {
    const From* from_row = from + row * from_stride;
    To* to_row = to + row * to_stride;
    const Vec<T> row_sine = broadcast(row_sines[row]);
    const Vec<T> row_cosine = broadcast(row_cosines[row]);
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      const bool full = decltype(whole)::value || i + 1 < vectors;
      Vec<T> sum = full ? load_pixels<T>(from_row + i * lanes) : load_pixels_partial<T>(from_row + last, rest);
      accumulate(sum, row_sine, cosine[i]);
      accumulate(sum, row_cosine, sine[i]);
      sum = clamp(sum, bounds);
      if (full) {
        store(to_row + i * lanes, sum);
      } else {
        store_partial(to_row + last, sum, rest);
      }
    }
  };
  if (rest == lanes) {
    for (int64_t row = 0; row < rows; row++) {
      add_to_one(row, std::true_type{});
    }
  } else {
    for (int64_t row = 0; row < rows; row++) {
      add_to_one(row, std::false_type{});
    }
  }
}

// The same for a row whose channels lie side by side: pixel j is of channel j % channels, and the row's factors of a
// wave go on periodically for channels + lanes numbers.
template <typename T, typename From, typename To>
STURDY_ALWAYS_INLINE void add_to_merged_row(const From* from, To* to, int64_t length, const RowWaves<T>& waves,
                                            int64_t channels, const Bounds<T>& bounds) {
  constexpr int lanes = kLanes<T>;
  const int64_t step = lanes % channels;
  int64_t channel = 0;
  for (int64_t at = 0; at < length; at += lanes) {
    const bool whole = at + lanes <= length;
    Vec<T> sum = whole ? load_pixels<T>(from + at) : load_pixels_partial<T>(from + at, length - at);
    for (int64_t k = 0; k < waves.count; k++) {
      const int64_t factors = k * waves.row_pitch + channel;
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
