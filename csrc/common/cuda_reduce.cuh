// Reductions over a warp and over a block. The order of additions is fixed, and all lanes get the same bits.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/cuda_platform.cuh"

namespace sturdy {

// The value of the lane whose number differs in the bits of `lane_mask`. T is any trivially copyable type of a multiple
// of four bytes, or a number of two.
template <typename T>
STURDY_DEVICE T shuffle_xor(T value, int lane_mask, unsigned lanes = full_warp) {
  static_assert(std::is_trivially_copyable_v<T>, "a value moves byte by byte");
  if constexpr (sizeof(T) == 2) {
    return __shfl_xor_sync(lanes, value, lane_mask);
  } else {
    static_assert(sizeof(T) % 4 == 0, "a value moves in words of four bytes");
    unsigned words[sizeof(T) / 4];
    memcpy(words, &value, sizeof value);
#pragma unroll
    for (unsigned& word : words) {
      word = __shfl_xor_sync(lanes, word, lane_mask);
    }
    memcpy(&value, words, sizeof value);
    return value;
  }
}

// What a reduction does to two values. Each is commutative, which is what makes all lanes agree.
struct Sum {
  template <typename T>
  STURDY_DEVICE T operator()(const T& a, const T& b) const {
    return a + b;
  }
};

// Of two numbers the larger; NaN if either is.
struct Max {
  template <typename T>
  STURDY_DEVICE T operator()(const T& a, const T& b) const {
    return a > b || a != a ? a : b;
  }
};

struct Min {
  template <typename T>
  STURDY_DEVICE T operator()(const T& a, const T& b) const {
    return a < b || a != a ? a : b;
  }
};

// Combines the values of each `Width` neighbouring lanes (a power of two); every lane gets the result. All 32 lanes
// must take part.
template <int Width = warp_size, typename T, typename Operation>
STURDY_DEVICE T warp_reduce(T value, const Operation& operation) {
  static_assert(Width > 0 && Width <= warp_size && (Width & (Width - 1)) == 0, "a power of two up to 32");
#pragma unroll
  for (int lane_mask = Width / 2; lane_mask > 0; lane_mask /= 2) {
    value = operation(value, shuffle_xor(value, lane_mask));
  }
  return value;
}

template <int Width = warp_size, typename T>
STURDY_DEVICE T warp_sum(T value) {
  return warp_reduce<Width>(value, Sum{});
}

template <int Width = warp_size, typename T>
STURDY_DEVICE T warp_max(T value) {
  return warp_reduce<Width>(value, Max{});
}

template <int Width = warp_size, typename T>
STURDY_DEVICE T warp_min(T value) {
  return warp_reduce<Width>(value, Min{});
}

// The number of the thread in its block, x fastest.
STURDY_DEVICE int thread_in_block() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

// Combines the values of all threads of a block whose size is a multiple of 32; every thread gets the result.
// `identity` changes nothing when combined; `scratch` is shared memory for one value a warp (32 are always enough). All
// threads must call it. It may be called again with the same scratch at once.
template <typename T, typename Operation>
STURDY_DEVICE T block_reduce(T value, T identity, T* scratch, const Operation& operation) {
  const int thread = thread_in_block();
  const int warp = thread / warp_size;
  const int lane = thread % warp_size;
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / warp_size;
  value = warp_reduce(value, operation);
  if (lane == 0) {
    scratch[warp] = value;
  }
  __syncthreads();
  value = warp_reduce(lane < warps ? scratch[lane] : identity, operation);
  __syncthreads();  // scratch is free again
  return value;
}

template <typename T>
STURDY_DEVICE T block_sum(T value, T* scratch) {
  return block_reduce(value, T{}, scratch, Sum{});
}

}  // namespace sturdy
