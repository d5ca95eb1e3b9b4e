// The two 16-bit storage formats and their scalar conversions, rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define STURDY_ALWAYS_INLINE inline  // a kernel inlined into one function, with its checks, takes a compiler minutes
#else
#define STURDY_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace sturdy {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

STURDY_ALWAYS_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

STURDY_ALWAYS_INLINE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

STURDY_ALWAYS_INLINE float to_float(BFloat16 value) { return float_from_bits(uint32_t{value.bits} << 16); }

STURDY_ALWAYS_INLINE float to_float(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
    return float_from_bits(sign | float_bits(static_cast<float>(mantissa) * 0x1p-24f));
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + (127 - 15);
  return float_from_bits(sign | (wide_exponent << 23) | (mantissa << 13));
}

STURDY_ALWAYS_INLINE BFloat16 to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN: rounding up could turn it into infinity
    return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

STURDY_ALWAYS_INLINE Half to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    return {static_cast<uint16_t>(sign | 0x7c00u)};
  }
  const uint32_t exponent = magnitude >> 23;
  if (exponent >= 127 - 14) {
    const uint32_t rebiased = magnitude - ((127u - 15u) << 23);
    return {static_cast<uint16_t>(sign | ((rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13))};
  }
  if (exponent < 127 - 25) {  // below half of the least subnormal
    return {sign};
  }
  // Subnormal: shift the mantissa, with its leading one, to units of 2^-24.
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t shift = 126 - exponent;
  const uint32_t halfway = 1u << (shift - 1);
  const uint32_t truncated = mantissa >> shift;
  return {static_cast<uint16_t>(sign | ((mantissa + halfway - 1 + (truncated & 1u)) >> shift))};
}

// What a storage type is computed in.
template <typename Storage>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <typename Storage>
using Accumulate = typename AccumulateType<Storage>::type;

STURDY_ALWAYS_INLINE float to_accumulate(float value) { return value; }
STURDY_ALWAYS_INLINE double to_accumulate(double value) { return value; }
STURDY_ALWAYS_INLINE float to_accumulate(Half value) { return to_float(value); }
STURDY_ALWAYS_INLINE float to_accumulate(BFloat16 value) { return to_float(value); }

STURDY_ALWAYS_INLINE void assign(float& out, float value) { out = value; }
STURDY_ALWAYS_INLINE void assign(double& out, double value) { out = value; }
STURDY_ALWAYS_INLINE void assign(Half& out, float value) { out = to_half(value); }
STURDY_ALWAYS_INLINE void assign(BFloat16& out, float value) { out = to_bfloat16(value); }

}  // namespace sturdy
