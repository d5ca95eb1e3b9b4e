// Borrowing a tensor from any library that speaks DLPack, on the CPU.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "sturdy/sturdy.h"

namespace sturdy::numpy_binding {

// sturdy_tensor stands in for DLTensor, whose layout DLPack fixes for 64-bit machines.
static_assert(sizeof(sturdy_tensor) == 48 && alignof(sturdy_tensor) == 8);
static_assert(offsetof(sturdy_tensor, data) == 0 && sizeof(sturdy_tensor::data) == 8);
static_assert(offsetof(sturdy_tensor, device) == 8 && sizeof(sturdy_device) == 8);
static_assert(offsetof(sturdy_tensor, ndim) == 16 && sizeof(sturdy_tensor::ndim) == 4);
static_assert(offsetof(sturdy_tensor, dtype) == 20 && sizeof(sturdy_dtype) == 4);
static_assert(offsetof(sturdy_tensor, shape) == 24 && sizeof(*sturdy_tensor::shape) == 8);
static_assert(offsetof(sturdy_tensor, strides) == 32 && sizeof(*sturdy_tensor::strides) == 8);
static_assert(offsetof(sturdy_tensor, byte_offset) == 40 && sizeof(sturdy_tensor::byte_offset) == 8);
static_assert(offsetof(sturdy_device, device_type) == 0 && offsetof(sturdy_device, device_id) == 4);
static_assert(offsetof(sturdy_dtype, code) == 0 && offsetof(sturdy_dtype, bits) == 1 &&
              offsetof(sturdy_dtype, lanes) == 2 && sizeof(sturdy_dtype::lanes) == 2);

// A tensor on loan, given back on destruction, which needs the GIL: producers run Python code when they take it back.
class BorrowedTensor {
 public:
  // `where` opens error messages: "<op>: <argument>". Raises BufferError for other devices; what the producer raises
  // (torch: for tensors that require gradients) passes through.
  BorrowedTensor(const char* where, const pybind11::object& producer);

  const sturdy_tensor& tensor() const { return *tensor_; }

  // Only the newer kind of capsule can say that memory is read-only, so the older kind is taken to be.
  bool writable() const { return writable_; }

 private:
  std::shared_ptr<void> owner_;
  const sturdy_tensor* tensor_ = nullptr;
  bool writable_ = false;
};

}  // namespace sturdy::numpy_binding
