#include <cuda_runtime_api.h>

#include <cstdio>

#include "common/cuda_info.h"
#include "common/error.h"

namespace sturdy {

int cuda_runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

void set_driver_mismatch_detail() noexcept {
  const int runtime = cuda_runtime_version();
  const int driver = cuda_driver_version();
  char text[160];
  if (driver == 0) {
    std::snprintf(text, sizeof text, "the library holds the runtime of CUDA %d.%d, and no NVIDIA driver was found",
                  runtime / 1000, runtime % 1000 / 10);
  } else {
    std::snprintf(text, sizeof text, "the library holds the runtime of CUDA %d.%d, the NVIDIA driver serves CUDA %d.%d",
                  runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
  }
  set_error_detail(text);
}

}  // namespace sturdy
