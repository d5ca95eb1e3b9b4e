// What differs between nvcc and an ordinary compiler.
#pragma once

#if defined(STURDY_SIMT)

#include "cuda_api.hpp"  // tests/simt

// A function called from kernels.
#define STURDY_DEVICE inline

// `name` points to the block's dynamic shared memory, 128-byte aligned, of the size given to launch().
#define STURDY_DYNAMIC_SHARED(Type, name) Type* name = static_cast<Type*>(::simt::dynamic_shared())

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define STURDY_DEVICE __device__ __forceinline__

#define STURDY_DYNAMIC_SHARED(Type, name)                                 \
  extern __shared__ __align__(128) unsigned char sturdy_dynamic_shared[]; \
  Type* name = reinterpret_cast<Type*>(sturdy_dynamic_shared)

#endif

namespace sturdy {

inline constexpr int warp_size = 32;
inline constexpr unsigned full_warp = 0xffffffffu;  // the mask that names all lanes

// What a grid may count: the dimension that can grow goes on x.
inline constexpr int64_t max_grid_x = 0x7fffffff;
inline constexpr int64_t max_grid_yz = 65535;

template <typename Integer>
__host__ __device__ constexpr Integer ceil_div(Integer numerator, Integer denominator) {
  return (numerator + denominator - 1) / denominator;
}

}  // namespace sturdy
