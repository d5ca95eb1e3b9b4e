// The one header that names torch's types: its stable ABI, as of torch 2.10, so that one binary serves every later one.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

// Absent from a CPU build of torch: a weak reference lets the same library load there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

// The test build registers the same ops under a name of its own.
#if !defined(STURDY_TORCH_NAMESPACE)
#define STURDY_TORCH_NAMESPACE sturdy
#endif
// One more level, so that the name is expanded before the library macros paste it.
#define STURDY_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define STURDY_TORCH_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

namespace sturdy::torch_binding {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

}  // namespace sturdy::torch_binding
