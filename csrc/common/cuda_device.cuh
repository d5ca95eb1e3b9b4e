// What the launch of a kernel may ask of a device: shared memory, multiprocessors, cache.
#pragma once

#include <cstddef>
#include <cstdlib>

#include "common/cuda_launch.cuh"
#include "common/types.h"

namespace sturdy {

struct DeviceLimits {
  size_t shared_bytes;  // of one block, asked for at launch
  size_t cache_bytes;   // of the second level
  int multiprocessors;
};

#if defined(STURDY_SIMT)

// Those of a small part of a large GPU; the environment makes them smaller, so that a test reaches the kernels for
// planes that shared memory does not hold.
inline Status device_limits(int /*device*/, DeviceLimits* limits) {
  const auto setting = [](const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : static_cast<size_t>(std::strtoull(text, nullptr, 10));
  };
  limits->shared_bytes = setting("STURDY_SIMT_SHARED_BYTES", size_t{227} << 10);
  limits->cache_bytes = setting("STURDY_SIMT_CACHE_BYTES", size_t{40} << 20);
  limits->multiprocessors = 4;
  return Status::ok;
}

inline Status current_device_limits(DeviceLimits* limits) { return device_limits(0, limits); }

#else

inline Status device_limits(int device, DeviceLimits* limits) {
  int shared = 0;
  int cache = 0;
  int multiprocessors = 0;
  cudaError_t error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  *limits = {static_cast<size_t>(shared), static_cast<size_t>(cache), multiprocessors};
  return cuda_status(error);
}

inline Status current_device_limits(DeviceLimits* limits) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? device_limits(device, limits) : cuda_status(error);
}

#endif

}  // namespace sturdy
