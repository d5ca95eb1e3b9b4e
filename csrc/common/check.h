// Argument checks. Each op runs them once, in its `infer`; everything behind that may rely on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "common/error.h"
#include "common/types.h"
#include "sturdy/sturdy.h"

namespace sturdy {

DType to_dtype(const sturdy_dtype& dtype);                // of a tensor that Checker::float_dtype accepted
int64_t item_size(const sturdy_dtype& dtype);             // bytes of one element
int64_t element_count(const sturdy_tensor& tensor);       // product of the sizes
int64_t stride_of(const sturdy_tensor& tensor, int dim);  // in elements, also where strides is NULL
void* data_of(const sturdy_tensor& tensor);               // with byte_offset applied; NULL stays NULL
bool is_contiguous(const sturdy_tensor& tensor);          // dimensions of size 1 and empty tensors do not matter
bool is_channels_last(const sturdy_tensor& tensor);       // the same for (N, C, H, W) stored as (N, H, W, C)

// Whether a call on this tensor goes to the CUDA kernels.
inline bool runs_on_cuda(const sturdy_tensor& tensor) {
#if defined(STURDY_SIMT)
  (void)tensor;
  return true;  // the test build runs the CUDA kernels on the CPU, on CPU tensors
#else
  return tensor.device.device_type == STURDY_CUDA;
#endif
}

// What a context brings, which may be NULL.
inline void* workspace_of(const sturdy_context* context) { return context == nullptr ? nullptr : context->workspace; }
inline void* stream_of(const sturdy_context* context) { return context == nullptr ? nullptr : context->stream; }

// Collects the first complaint. Every check names the op, the argument, what was wanted and what came; after a failed
// one the rest are skipped, so that later checks may rely on earlier ones.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  bool ok() const { return status_ == STURDY_OK; }

  // The status to return from the entry point, with the message set.
  sturdy_status result() const { return ok() ? STURDY_OK : sturdy::fail(status_, message_); }

  void fail(sturdy_status status, const std::string& what);

  // Pointers.
  void options(const void* options, uint32_t got_size, size_t wanted_size, uint32_t flags, uint32_t known_flags = 0);
  void context(const sturdy_context* context);
  void workspace(const sturdy_context* context, size_t wanted);  // device scratch that came with the call
  void present(const char* name, const sturdy_tensor* tensor);

  // Values. `rule` completes "<name> must ...".
  void value(const char* name, bool good, const char* rule, int64_t got);

  // Tensors that present() accepted.
  void rank(const char* name, const sturdy_tensor* tensor, int32_t rank, const char* axes);
  void float_dtype(const char* name, const sturdy_tensor* tensor);
  void image_dtype(const char* name, const sturdy_tensor* tensor);      // floating, or uint8
  void parameter_dtype(const char* name, const sturdy_tensor* tensor);  // float32 or float64
  void same_dtype(const char* name, const sturdy_tensor* tensor, const char* other_name, const sturdy_tensor* other);
  void dtype_of_or_float32(const char* name, const sturdy_tensor* tensor, const char* other_name,
                           const sturdy_tensor* other);
  void same_device(const char* name, const sturdy_tensor* tensor, const char* other_name, const sturdy_tensor* other);
  void size(const char* name, const sturdy_tensor* tensor, int32_t dim, int64_t wanted, const char* meaning);
  void shape(const char* name, const sturdy_tensor* tensor, std::initializer_list<int64_t> wanted);

  // Tensors whose data the call touches.
  void data(const char* name, const sturdy_tensor* tensor);
  void dense4(const char* name, const sturdy_tensor* tensor);  // contiguous or channels-last
  void separate(const char* name, const sturdy_tensor* out, const char* other_name, const sturdy_tensor* other);

 private:
  const char* op_;
  sturdy_status status_ = STURDY_OK;
  std::string message_;
};

}  // namespace sturdy
