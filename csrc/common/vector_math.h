// exp, sin and cos, erf of whole vectors, and gelu built of it.
//
// Largest error, in units in the last place (ulp) of the true result, over all arguments:
//
//               float    double
//   exp         1.25     1.25
//   sincos      1.0      1.0
//   erf         1.75     1.75
//
// NaN gives NaN. exp overflows to infinity and underflows through the subnormal numbers to 0; erf(+-inf) = +-1; sin
// and erf keep the sign of zero, and both are right for subnormal arguments; sin and cos of an infinity are NaN.
// gelu(x) is within 2 * eps * |x| + the least normal number of its true value; gelu(-inf) is NaN, as 0 * inf is.
//
// sincos is fast for |x| <= kSincosRange and right beyond: a vector with a larger argument sends those lanes one by
// one through the C library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

constexpr double kSincosRange = 0x1p20;

template <typename T>
using Lanes = typename LaneIndex<T>::Native;  // integers as wide as T; also what comparisons give: -1 or 0

// a * b + c, rounded once where the machine has the instruction. What follows is right either way.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {a.v * b.v + c.v};
}
#if defined(__AVX512F__)
STURDY_ALWAYS_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
STURDY_ALWAYS_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
#elif defined(__AVX2__)
STURDY_ALWAYS_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
STURDY_ALWAYS_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
#endif

// coefficients[0] + x * (coefficients[1] + x * (...)).
template <typename T, int count>
STURDY_ALWAYS_INLINE Vec<T> polynomial(const T (&coefficients)[count], Vec<T> x) {
  Vec<T> sum = broadcast(coefficients[count - 1]);
  STURDY_UNROLL
  for (int i = count - 2; i >= 0; i--) {
    sum = multiply_add(sum, x, broadcast(coefficients[i]));
  }
  return sum;
}

template <typename T>
STURDY_ALWAYS_INLINE Lanes<T> bits_of(Vec<T> v) {
  return reinterpret_cast<Lanes<T>>(v.v);
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> from_bits(Lanes<T> bits) {
  return {reinterpret_cast<typename Vec<T>::Native>(bits)};
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> absolute(Vec<T> v) {
  return from_bits<T>(bits_of(v) & ~bits_of(broadcast(T{-0.0})));
}

// |magnitude| with the sign of `sign`; magnitude must not be negative.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> with_sign(Vec<T> magnitude, Vec<T> sign) {
  return from_bits<T>(bits_of(magnitude) | (bits_of(sign) & bits_of(broadcast(T{-0.0}))));
}

// Numbers of each type: the constants of the functions below. Polynomials are minimax fits (Remez) of this project's
// own; constants in two or three parts have trailing zeros in all but the last, so that small integers multiply them
// without rounding.
template <typename T>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr float kRound = 0x1.8p23f;  // adding and taking it away rounds to an integer
  static constexpr int kExponentBias = 127, kFractionBits = 23;
  static constexpr float kExpLeast = -104.0f, kExpMost = 89.0f;  // beyond: exp is 0, or infinite
  static constexpr float kLn2[] = {0x1.62e4p-1f, 0x1.7f7d1cp-20f};
  // (exp(r) - 1 - r) / r^2
  static constexpr float kExp[] = {0x1.000000p-1f, 0x1.55548ep-3f, 0x1.55545ep-5f, 0x1.123bdep-7f, 0x1.6db4dep-10f};
  // (sin(r) / r - 1) / r^2 and (cos(r) - 1 + r^2 / 2) / r^4, of r^2
  static constexpr float kSin[] = {-0x1.555546p-3f, 0x1.11075cp-7f, -0x1.994cfap-13f};
  static constexpr float kCos[] = {0x1.55554ap-5f, -0x1.6c0c86p-10f, 0x1.9a00cep-16f};
  // erf(x) / x - 1 of x^2 below 1
  static constexpr float kErf[] = {0x1.06eba8p-3f, -0x1.81273ep-2f,  0x1.ce2d20p-4f, -0x1.b7fbb4p-6f,
                                   0x1.5419f6p-8f, -0x1.a485f6p-11f, 0x1.4ae4eap-14f};
  // -log(1 - erf(x)) of x - 1 up to kErfEnd, where erf rounds to 1
  static constexpr float kErfEnd = 4.0f;
  static constexpr float kErfTail[] = {0x1.d97fc0p+0f,   0x1.51c9b0p+1f,  0x1.afabb2p-1f,
                                       0x1.5480dap-5f,   -0x1.496254p-7f, 0x1.08dbb0p-9f,
                                       -0x1.3758a2p-12f, 0x1.a0c6eep-16f, -0x1.1c48c8p-21f};
};

template <>
struct MathConstants<double> {
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kExponentBias = 1023, kFractionBits = 52;
  static constexpr double kExpLeast = -746.0, kExpMost = 710.0;
  static constexpr double kLn2[] = {0x1.62e42fefa38p-1, 0x1.ef35793c7673p-45};
  static constexpr double kExp[] = {0x1.000000000000cp-1,  0x1.5555555555561p-3,  0x1.555555554ff92p-5,
                                    0x1.111111110d5d6p-7,  0x1.6c16c185cadccp-10, 0x1.a01a01bb0494ep-13,
                                    0x1.a0199630aa6ebp-16, 0x1.71dddf7dcbdc9p-19, 0x1.28b0a716ec7d1p-22,
                                    0x1.af860595d8b67p-26};
  static constexpr double kSin[] = {-0x1.5555555555549p-3, 0x1.111111110f861p-7,   -0x1.a01a019c0e4a6p-13,
                                    0x1.71de3574b93edp-19, -0x1.ae5e63ccd798ep-26, 0x1.5d9246a365beep-33};
  static constexpr double kCos[] = {0x1.555555555554cp-5,   -0x1.6c16c16c15162p-10, 0x1.a01a019caef49p-16,
                                    -0x1.27e4f807d6f4bp-22, 0x1.1ee9ea6d4aa9ep-29,  -0x1.8fadd0b247007p-37};
  static constexpr double kErf[] = {0x1.06eba8214db69p-3,   -0x1.812746b0379e6p-2,  0x1.ce2f21a042b34p-4,
                                    -0x1.b82ce31284f38p-6,  0x1.565bcd0dbd922p-8,   -0x1.c02db3db4989dp-11,
                                    0x1.f9a321e4bc150p-14,  -0x1.f4d1e4351d222p-17, 0x1.b9df306299835p-20,
                                    -0x1.5f1f4134f49bep-23, 0x1.f7b9a036e904bp-27,  -0x1.38ac2bcb75734p-30,
                                    0x1.062774aa4295dp-34};
  static constexpr double kErfEnd = 6.0;
  static constexpr double kErfTail[] = {0x1.d97fbf27aa2a1p+0,   0x1.51c9b0006c23dp+1,   0x1.afabc11a28f40p-1,
                                        0x1.5477f09ca84b1p-5,   -0x1.48c9d40bcf8ecp-7,  0x1.033f698d8c66dp-9,
                                        -0x1.f1b4b99eb308bp-13, -0x1.b8be7c6dbd136p-16, 0x1.c759f05382538p-16,
                                        -0x1.41593a293c08ap-17, 0x1.0ec96dc004415p-19,  -0x1.b07c2f1f7abcap-24,
                                        -0x1.162b5416d92b9p-23, 0x1.2ea891db57e0fp-24,  -0x1.8a09ac4818607p-26,
                                        0x1.77f0f1770d169p-28,  -0x1.0efbb82e49d87p-30, 0x1.215a6a6b991edp-33,
                                        -0x1.b08e95233bd75p-37, 0x1.938e89b8c4a91p-41,  -0x1.60d4dd9c68701p-46};
};

// v * 2^n, rounded once. Two factors, as one would overflow before the result does, or lose it before it is 0.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> scale(Vec<T> v, Lanes<T> n) {
  using C = MathConstants<T>;
  const Lanes<T> half = n >> 1;
  const Vec<T> first = from_bits<T>((half + C::kExponentBias) << C::kFractionBits);
  const Vec<T> second = from_bits<T>((n - half + C::kExponentBias) << C::kFractionBits);
  return v * first * second;
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> exp(Vec<T> x) {
  using C = MathConstants<T>;
  const Vec<T> least = broadcast(C::kExpLeast);
  const Vec<T> most = broadcast(C::kExpMost);
  Vec<T> bounded{x.v < least.v ? least.v : x.v};  // a NaN stays
  bounded.v = bounded.v > most.v ? most.v : bounded.v;
  // exp(x) = 2^n exp(r), |r| <= log(2) / 2
  const Vec<T> shifted = multiply_add(bounded, broadcast(T(0x1.71547652b82fep+0)), broadcast(C::kRound));
  const Vec<T> whole = shifted - broadcast(C::kRound);
  const Lanes<T> n = bits_of(shifted) - bits_of(broadcast(C::kRound));
  Vec<T> r = multiply_add(whole, broadcast(-C::kLn2[0]), bounded);
  r = multiply_add(whole, broadcast(-C::kLn2[1]), r);
  const Vec<T> power = multiply_add(r * r, polynomial(C::kExp, r), r) + broadcast(T{1});
#if defined(__AVX512F__)
  (void)n;
  Vec<T> result;  // by asm: gcc 12 warns of undefined vectors in its own header
  if constexpr (sizeof(T) == 4) {
    asm("vscalefps %2, %1, %0" : "=v"(result.v) : "v"(power.v), "v"(whole.v));
  } else {
    asm("vscalefpd %2, %1, %0" : "=v"(result.v) : "v"(power.v), "v"(whole.v));
  }
  return result;
#else
  return scale(power, n);
#endif
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> erf(Vec<T> x) {
  using C = MathConstants<T>;
  const Vec<T> size = absolute(x);
  const Vec<T> inner = multiply_add(x, polynomial(C::kErf, x * x), x);
  const Vec<T> end = broadcast(C::kErfEnd);
  const Vec<T> at = Vec<T>{size.v > end.v ? end.v : size.v} - broadcast(T{1});
  const Vec<T> tail = broadcast(T{1}) - exp(zero<T>() - polynomial(C::kErfTail, at));
  return {size.v < T{1} ? inner.v : with_sign(tail, x).v};
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> gelu(Vec<T> x) {
  return broadcast(T{0.5}) * x * (broadcast(T{1}) + erf(x * broadcast(T(0x1.6a09e667f3bcdp-1))));
}

// ---- sine and cosine ----

template <typename T>
struct SinCos {
  Vec<T> sin, cos;
};

template <typename T>
STURDY_ALWAYS_INLINE bool any(Lanes<T> condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)condition, (__m256i)condition);
#else
  int64_t words[kVectorBytes / 8];
  std::memcpy(words, &condition, sizeof words);
  return (words[0] | words[1]) != 0;
#endif
}

// Lanes that are out of range; the others keep what they have.
template <typename T>
__attribute__((noinline)) static void sincos_by_lane(const Vec<T>& x, SinCos<T>& result) {
  for (int i = 0; i < kLanes<T>; i++) {
    const double at = static_cast<double>(x.v[i]);
    if (!(std::fabs(at) <= kSincosRange)) {
      result.sin.v[i] = static_cast<T>(std::sin(at));
      result.cos.v[i] = static_cast<T>(std::cos(at));
    }
  }
}

// pi / 2 in parts: whole numbers up to 2^20 multiply the first two without rounding.
constexpr double kHalfPi[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34, 0x1.3198a2e037073p-69};

// sin and cos of (r + rest + n * pi / 2), |r| <= pi / 4 and rest less than half an ulp of r.
template <typename T>
STURDY_ALWAYS_INLINE SinCos<T> sincos_of_rest(Vec<T> x, Vec<T> r, Vec<T> rest, Lanes<T> n) {
  using C = MathConstants<T>;
  const Vec<T> z = r * r;
  const Vec<T> sine = r + multiply_add(r * z, polynomial(C::kSin, z), rest);
  const Vec<T> half_z = broadcast(T{0.5}) * z;
  const Vec<T> flat = broadcast(T{1}) - half_z;
  const Vec<T> lost = (broadcast(T{1}) - flat) - half_z;  // what rounding took from `flat`
  const Vec<T> small = multiply_add(z * z, polynomial(C::kCos, z), lost - r * rest);
  const Vec<T> cosine = flat + small;
  const Lanes<T> swapped = -(n & 1);
  const Lanes<T> sign = bits_of(broadcast(T{-0.0}));
  const Lanes<T> sine_sign = (n & 2) != 0 ? sign : Lanes<T>{};
  const Lanes<T> cosine_sign = ((n + 1) & 2) != 0 ? sign : Lanes<T>{};
  const Vec<T> for_sine{swapped != 0 ? cosine.v : sine.v};
  const Vec<T> for_cosine{swapped != 0 ? sine.v : cosine.v};
  SinCos<T> result{from_bits<T>(bits_of(for_sine) ^ sine_sign), from_bits<T>(bits_of(for_cosine) ^ cosine_sign)};
  result.sin.v = x.v == 0 ? x.v : result.sin.v;  // the sign of zero
  return result;
}

STURDY_ALWAYS_INLINE SinCos<double> sincos(Vec<double> x) {
  using C = MathConstants<double>;
  const Vec<double> shifted = multiply_add(x, broadcast(0x1.45f306dc9c883p-1), broadcast(C::kRound));
  const Vec<double> whole = shifted - broadcast(C::kRound);
  const Lanes<double> n = bits_of(shifted) - bits_of(broadcast(C::kRound));
  // The first difference is exact, the rounding of the second one is kept.
  const Vec<double> first = multiply_add(whole, broadcast(-kHalfPi[0]), x);
  const Vec<double> part = whole * broadcast(kHalfPi[1]);
  const Vec<double> second = first - part;
  Vec<double> lost = (first - second) - part;
  lost = multiply_add(whole, broadcast(-kHalfPi[2]), lost);
  const Vec<double> r = second + lost;
  const Vec<double> rest = (second - r) + lost;
  SinCos<double> result = sincos_of_rest(x, r, rest, n);
  const Lanes<double> far = ~(absolute(x).v <= broadcast(kSincosRange).v);
  if (__builtin_expect(any<double>(far), 0)) {
    sincos_by_lane(x, result);
  }
  return result;
}

typedef float HalfVector __attribute__((vector_size(kVectorBytes / 2)));

// x - n * pi / 2 for half a vector of floats, in double; n is added to `whole`.
STURDY_ALWAYS_INLINE Vec<double> reduce_half(HalfVector x, HalfVector& whole) {
  const Vec<double> wide{__builtin_convertvector(x, Vec<double>::Native)};
  const Vec<double> round = broadcast(MathConstants<double>::kRound);
  const Vec<double> n = multiply_add(wide, broadcast(0x1.45f306dc9c883p-1), round) - round;
  whole = __builtin_convertvector(n.v, HalfVector);
  const Vec<double> first = multiply_add(n, broadcast(-kHalfPi[0]), wide);
  return multiply_add(n, broadcast(-(kHalfPi[1] + kHalfPi[2])), first);
}

STURDY_ALWAYS_INLINE SinCos<float> sincos(Vec<float> x) {
  HalfVector halves[2];
  HalfVector whole[2];
  HalfVector r_parts[2];
  HalfVector rest_parts[2];
  std::memcpy(halves, &x, sizeof x);
  STURDY_UNROLL
  for (int i = 0; i < 2; i++) {
    const Vec<double> exact = reduce_half(halves[i], whole[i]);
    r_parts[i] = __builtin_convertvector(exact.v, HalfVector);
    const Vec<double> rounded{__builtin_convertvector(r_parts[i], Vec<double>::Native)};
    rest_parts[i] = __builtin_convertvector((exact - rounded).v, HalfVector);
  }
  Vec<float> number;
  Vec<float> r;
  Vec<float> rest;
  std::memcpy(&number, whole, sizeof number);
  std::memcpy(&r, r_parts, sizeof r);
  std::memcpy(&rest, rest_parts, sizeof rest);
  const Vec<float> far_limit = broadcast(static_cast<float>(kSincosRange));
  const Lanes<float> far = ~(absolute(x).v <= far_limit.v);
  const Vec<float> bounded{far != 0 ? zero<float>().v : number.v};  // an integer that fits
  SinCos<float> result = sincos_of_rest(x, r, rest, __builtin_convertvector(bounded.v, Lanes<float>));
  if (__builtin_expect(any<float>(far), 0)) {
    sincos_by_lane(x, result);
  }
  return result;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
