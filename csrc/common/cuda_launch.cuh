// launch(): the one way to start a kernel.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <type_traits>
#include <utility>

#if defined(STURDY_SIMT)
#include <string>
#include <tuple>
#endif

#include "common/cuda_info.h"
#include "common/cuda_platform.cuh"
#include "common/types.h"

namespace sturdy {

void set_error_detail(const char* detail) noexcept;  // common/error.h

#if defined(STURDY_SIMT)

// Runs the kernel on the executor, to its end.
template <typename... Parameters, typename... Arguments>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* /*stream*/,
              Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters hold at most 4 KiB on every architecture");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied byte by byte");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto run_thread = [](void* closure) {
    const Call& c = *static_cast<const Call*>(closure);
    std::apply(c.kernel, c.parameters);  // by value: every thread has parameters of its own
  };
  const std::string error = simt::run(grid, block, shared_bytes, run_thread, &call);
  if (!error.empty()) {
    set_error_detail(error.c_str());
    return Status::cuda_error;
  }
  return Status::ok;
}

#else

// Turns a result of the CUDA runtime into a status. An error is taken back from the runtime, so that nobody else's next
// check reports it a second time.
inline Status cuda_status(cudaError_t error) {
  if (error == cudaSuccess) {
    return Status::ok;
  }
  if (error == cudaErrorInsufficientDriver) {
    set_driver_mismatch_detail();
  } else {
    set_error_detail(cudaGetErrorString(error));
  }
  cudaGetLastError();
  return Status::cuda_error;
}

// Whether STURDY_SYNC=1 asks for errors to surface where they arise, at the price of waiting for every kernel.
inline bool synchronise_after_launch() {
  static const bool wanted = [] {
    const char* value = std::getenv("STURDY_SYNC");
    return value != nullptr && value[0] == '1';
  }();
  return wanted;
}

// Starts `kernel` on `stream` (a cudaStream_t; null is the default stream). Launch errors come back at once; what goes
// wrong later surfaces at the next synchronisation.
template <typename... Parameters, typename... Arguments>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
              Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters hold at most 4 KiB on every architecture");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied byte by byte");
  constexpr size_t shared_bytes_without_asking = size_t{48} << 10;
  if (shared_bytes > shared_bytes_without_asking) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      return cuda_status(error);
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess && synchronise_after_launch()) {
    return cuda_status(cudaStreamSynchronize(config.stream));
  }
  return cuda_status(error);
}

#endif

}  // namespace sturdy
