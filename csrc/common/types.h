// What kernels and dispatch share: element types and the status a kernel returns.
#pragma once

#include <cstdint>

namespace sturdy {

enum class DType : uint8_t { f32, f64, f16, bf16 };

// What a kernel returns. Dispatch turns it into a sturdy_status with a message.
enum class Status : uint8_t {
  ok,
  unsupported_size,   // larger than the kernel can index or launch
  unsupported_dtype,  // no code for this element type
  out_of_memory,      // host scratch, or a workspace that is too small
  cuda_error,         // the runtime's text is already in the message
  not_built,          // this build has no kernels for the device
  internal_error,     // a worker threw
};

}  // namespace sturdy
