// Element types and the types they are summed in.
#pragma once

#include <type_traits>

#include "common/cuda_platform.cuh"

namespace sturdy {

// float16, bfloat16 and float32 are summed in float32, float64 in float64.
template <typename T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateType<T>::type;

STURDY_DEVICE float to_accumulate(float x) { return x; }
STURDY_DEVICE double to_accumulate(double x) { return x; }
STURDY_DEVICE float to_accumulate(__half x) { return __half2float(x); }
STURDY_DEVICE float to_accumulate(__nv_bfloat16 x) { return __bfloat162float(x); }

// To the storage type T, rounding to nearest even.
template <typename T>
STURDY_DEVICE T from_accumulate(Accumulate<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "float, double, __half or __nv_bfloat16");
    return x;
  }
}

}  // namespace sturdy
