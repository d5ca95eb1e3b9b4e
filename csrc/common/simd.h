// Vectors of float and double, as wide as the instruction set this file is compiled for.
//
// A source that uses them is compiled once per instruction set, each time into another namespace
// (STURDY_ISA_NAMESPACE), so that no AVX-512 copy of a function can be linked in the place of a portable one.
// For the same reason everything here is always inlined.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/half.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // gcc 12 warns of its own header's undefined vectors
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#ifndef STURDY_ISA_NAMESPACE
#define STURDY_ISA_NAMESPACE portable
#endif

#if defined(__SANITIZE_ADDRESS__)
#define STURDY_UNROLL
#else
#define STURDY_UNROLL _Pragma("GCC unroll 32")
#endif

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct Vec {
  typedef T Native __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  Native v;
};

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> zero() {
  return {typename Vec<T>::Native{}};
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> broadcast(T value) {
  return {value - typename Vec<T>::Native{}};  // value - 0 is value for every value, and folds to a broadcast
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}

template <typename T>
STURDY_ALWAYS_INLINE Vec<T>& operator+=(Vec<T>& a, Vec<T> b) {
  a.v += b.v;
  return a;
}

// accumulator += a * b, always in the form that overwrites the addend: left to choose, gcc 12 mixes the three forms of
// the instruction in large register tiles, adds moves and spills.
STURDY_ALWAYS_INLINE void accumulate(Vec<float>& accumulator, Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(accumulator.v) : "v"(a.v), "v"(b.v));
#elif defined(__AVX2__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(accumulator.v) : "x"(a.v), "x"(b.v));
#else
  accumulator.v += a.v * b.v;
#endif
}

STURDY_ALWAYS_INLINE void accumulate(Vec<double>& accumulator, Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
  asm("vfmadd231pd %2, %1, %0" : "+v"(accumulator.v) : "v"(a.v), "v"(b.v));
#elif defined(__AVX2__)
  asm("vfmadd231pd %2, %1, %0" : "+x"(accumulator.v) : "x"(a.v), "x"(b.v));
#else
  accumulator.v += a.v * b.v;
#endif
}

// max(0, v); a NaN stays a NaN.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> relu(Vec<T> v) {
  return {v.v <= 0 ? typename Vec<T>::Native{} : v.v};
}

#if defined(__AVX512F__)
// The instruction returns its second operand when one is a NaN.
STURDY_ALWAYS_INLINE Vec<float> relu(Vec<float> v) { return {_mm512_max_ps(_mm512_setzero_ps(), v.v)}; }
STURDY_ALWAYS_INLINE Vec<double> relu(Vec<double> v) { return {_mm512_max_pd(_mm512_setzero_pd(), v.v)}; }
#elif defined(__AVX2__)
STURDY_ALWAYS_INLINE Vec<float> relu(Vec<float> v) { return {_mm256_max_ps(_mm256_setzero_ps(), v.v)}; }
STURDY_ALWAYS_INLINE Vec<double> relu(Vec<double> v) { return {_mm256_max_pd(_mm256_setzero_pd(), v.v)}; }
#endif

// The gradient of relu at `at`: `gradient` where at > 0, 0 where at <= 0, and `gradient` where at is a NaN.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> relu_backward(Vec<T> gradient, Vec<T> at) {
  return {at.v <= 0 ? typename Vec<T>::Native{} : gradient.v};
}

// ---- loads and stores, converting between storage and accumulate type; no alignment is required ----

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> load_same(const T* from) {
  return {*reinterpret_cast<const typename Vec<T>::Unaligned*>(from)};
}

STURDY_ALWAYS_INLINE Vec<float> load(const float* from) { return load_same(from); }
STURDY_ALWAYS_INLINE Vec<double> load(const double* from) { return load_same(from); }

template <typename T>
STURDY_ALWAYS_INLINE void store_same(T* to, Vec<T> v) {
  *reinterpret_cast<typename Vec<T>::Unaligned*>(to) = v.v;
}

STURDY_ALWAYS_INLINE void store(float* to, Vec<float> v) { store_same(to, v); }
STURDY_ALWAYS_INLINE void store(double* to, Vec<double> v) { store_same(to, v); }

typedef uint16_t ShortVector __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordVector __attribute__((vector_size(kVectorBytes)));

STURDY_ALWAYS_INLINE Vec<float> load(const BFloat16* from) {
  ShortVector narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  const WordVector bits = __builtin_convertvector(narrow, WordVector) << 16;
  return {reinterpret_cast<Vec<float>::Native>(bits)};
}

STURDY_ALWAYS_INLINE void store(BFloat16* to, Vec<float> v) {
  const WordVector bits = reinterpret_cast<WordVector>(v.v);
  const WordVector rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const WordVector quiet = (bits >> 16) | 0x40u;
  const WordVector chosen = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
  const ShortVector narrow = __builtin_convertvector(chosen, ShortVector);
  std::memcpy(to, &narrow, sizeof narrow);
}

STURDY_ALWAYS_INLINE Vec<float> load(const Half* from) {
#if defined(__AVX512F__)
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
#elif defined(__F16C__)
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; i++) {
    v.v[i] = to_float(from[i]);
  }
  return v;
#endif
}

STURDY_ALWAYS_INLINE void store(Half* to, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; i++) {
    to[i] = to_half(v.v[i]);
  }
#endif
}

// The first `count` elements, 0 <= count <= lanes; the other lanes are 0, and memory behind them is not touched.
template <typename S>
STURDY_ALWAYS_INLINE Vec<Accumulate<S>> load_partial(const S* from, int64_t count) {
  S buffer[kLanes<Accumulate<S>>] = {};
  for (int64_t i = 0; i < count; i++) {
    buffer[i] = from[i];
  }
  return load(buffer);
}

template <typename S>
STURDY_ALWAYS_INLINE void store_partial(S* to, Vec<Accumulate<S>> v, int64_t count) {
  S buffer[kLanes<Accumulate<S>>];
  store(buffer, v);
  for (int64_t i = 0; i < count; i++) {
    to[i] = buffer[i];
  }
}

#if defined(__AVX512F__)
STURDY_ALWAYS_INLINE Vec<float> load_partial(const float* from, int64_t count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from)};
}
STURDY_ALWAYS_INLINE Vec<double> load_partial(const double* from, int64_t count) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from)};
}
STURDY_ALWAYS_INLINE void store_partial(float* to, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v.v);
}
STURDY_ALWAYS_INLINE void store_partial(double* to, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v.v);
}
#endif

// ---- transpose of a square block: lane j of row i goes to lane i of row j ----

template <typename T>
struct LaneIndex;
template <>
struct LaneIndex<float> {
  typedef int32_t Native __attribute__((vector_size(kVectorBytes)));
};
template <>
struct LaneIndex<uint32_t> {
  typedef int32_t Native __attribute__((vector_size(kVectorBytes)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t Native __attribute__((vector_size(kVectorBytes)));
};

// a0 b0 a1 b1 ... of the lower (upper == 0) or upper halves of a and b.
template <typename T, int upper>
STURDY_ALWAYS_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  constexpr int lanes = kLanes<T>;
  typename LaneIndex<T>::Native index{};
  STURDY_UNROLL
  for (int i = 0; i < lanes; i++) {
    index[i] = upper * lanes / 2 + i / 2 + (i % 2) * lanes;
  }
  return {__builtin_shuffle(a.v, b.v, index)};
}

template <typename T>
STURDY_ALWAYS_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
  Vec<T> next[lanes];
  STURDY_UNROLL
  for (int step = 1; step < lanes; step *= 2) {  // each step is a perfect shuffle of all elements
    STURDY_UNROLL
    for (int i = 0; i < lanes / 2; i++) {
      next[2 * i] = interleave<T, 0>(rows[i], rows[i + lanes / 2]);
      next[2 * i + 1] = interleave<T, 1>(rows[i], rows[i + lanes / 2]);
    }
    STURDY_UNROLL
    for (int i = 0; i < lanes; i++) {
      rows[i] = next[i];
    }
  }
}

#if defined(__AVX512F__)
// The same by shuffles within 128-bit parts and of whole parts, each half as dear as a shuffle over two registers.
STURDY_ALWAYS_INLINE void transpose(Vec<float> (&rows)[16]) {
  __m512 a[16], b[16];
  STURDY_UNROLL
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  STURDY_UNROLL
  for (int i = 0; i < 16; i += 4) {  // part p of b[i + j] is column 4 p + j of rows i to i + 3
    STURDY_UNROLL
    for (int j = 0; j < 2; j++) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  STURDY_UNROLL
  for (int j = 0; j < 4; j++) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    rows[j].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[j + 4].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[j + 8].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[j + 12].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

STURDY_ALWAYS_INLINE void transpose(Vec<double> (&rows)[8]) {
  __m512d a[8];
  STURDY_UNROLL
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm512_unpacklo_pd(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_pd(rows[i].v, rows[i + 1].v);
  }
  STURDY_UNROLL
  for (int j = 0; j < 2; j++) {  // part p of a[i + j] is column 2 p + j of rows i and i + 1
    const __m512d even_low = _mm512_shuffle_f64x2(a[j], a[j + 2], 0x88);
    const __m512d odd_low = _mm512_shuffle_f64x2(a[j], a[j + 2], 0xdd);
    const __m512d even_high = _mm512_shuffle_f64x2(a[j + 4], a[j + 6], 0x88);
    const __m512d odd_high = _mm512_shuffle_f64x2(a[j + 4], a[j + 6], 0xdd);
    rows[j].v = _mm512_shuffle_f64x2(even_low, even_high, 0x88);
    rows[j + 2].v = _mm512_shuffle_f64x2(odd_low, odd_high, 0x88);
    rows[j + 4].v = _mm512_shuffle_f64x2(even_low, even_high, 0xdd);
    rows[j + 6].v = _mm512_shuffle_f64x2(odd_low, odd_high, 0xdd);
  }
}
#endif

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
