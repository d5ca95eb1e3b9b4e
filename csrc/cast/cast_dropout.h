// Which attention weights dropout keeps: a hash of the seed and of the weight's place, the same on every device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__CUDA_ARCH__)
#define STURDY_CAST_DROPOUT_FUNCTION __host__ __device__ inline
#else
#define STURDY_CAST_DROPOUT_FUNCTION inline
#endif

namespace sturdy {

// A permutation of 32-bit words in which each bit of the argument changes each bit of the result.
STURDY_CAST_DROPOUT_FUNCTION uint32_t mix_bits(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// Of one row of weights: row = ((sequence * heads + head) * clusters + cluster) * slots + slot of the query.
STURDY_CAST_DROPOUT_FUNCTION uint64_t dropout_row_key(int64_t seed, int64_t row) {
  uint64_t x = static_cast<uint64_t>(seed) + (static_cast<uint64_t>(row) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform over all 32-bit words; a weight is kept if it is at least dropout_threshold(p), and then divided by 1 - p.
STURDY_CAST_DROPOUT_FUNCTION uint32_t dropout_bits(uint64_t row_key, uint32_t key_slot) {
  const uint32_t first = mix_bits(static_cast<uint32_t>(row_key) ^ (key_slot * 0x9e3779b1u));
  return mix_bits(first + static_cast<uint32_t>(row_key >> 32));
}

STURDY_CAST_DROPOUT_FUNCTION uint32_t dropout_threshold(double p) { return static_cast<uint32_t>(p * 4294967296.0); }

}  // namespace sturdy
