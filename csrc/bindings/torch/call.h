// What every op's binding does around the C function: views, output allocation, device guard, stream, threads, errors.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "compat.h"
#include "sturdy/sturdy.h"

namespace sturdy::torch_binding {

// A torch tensor seen through the C API. Lives no longer than the tensor.
class View {
 public:
  View() = default;  // absent
  explicit View(const Tensor& tensor);
  explicit View(const std::optional<Tensor>& tensor);

  sturdy_tensor* get() { return present_ ? &tensor_ : nullptr; }

 private:
  void fill(const Tensor& tensor);

  sturdy_tensor tensor_ = {};
  bool present_ = false;
};

// An uninitialised tensor on the device of `like`.
Tensor make(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format);

// The memory format that outputs of an op on `input` take: channels-last if it is stored so, else contiguous.
// sturdy.functional has the same rule for its fake kernels.
MemoryFormat output_format(const Tensor& input);

// The sizes as `make` takes them.
std::vector<int64_t> sizes_of(const Tensor& tensor);

// The dtype codes of the C API.
sturdy_dtype to_sturdy(ScalarType type);

// float64 for float64, else float32: what sums over the elements of `tensor` are kept in.
ScalarType accumulate_dtype(const Tensor& tensor);

// Throws "[sturdy:<status>] <message>", which sturdy.functional turns into the documented exception.
void check(sturdy_status status);

// One call into the core: the device of `like` is current while it lives, and context() runs on its stream and on
// torch's threads.
class Call {
 public:
  Call(const Tensor& like, size_t workspace_bytes);

  const sturdy_context* context() const { return &context_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  std::optional<Tensor> workspace_;
  sturdy_context context_ = {};
};

}  // namespace sturdy::torch_binding
