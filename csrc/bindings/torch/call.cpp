#include "call.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sturdy::torch_binding {
namespace {

void torch_parallel(void* /*pool*/, int64_t n, int64_t grain, sturdy_body body, void* arg) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(arg, begin, end); });
}

void* current_stream(int32_t device_index) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error("[sturdy:ECUDA] this torch has no CUDA support");
  }
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device_index, &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("[sturdy:ECUDA] torch has no current CUDA stream on device " +
                             std::to_string(device_index));
  }
  return stream;
}

const char* status_name(sturdy_status status) {
  switch (status) {
    case STURDY_OK:
      return "OK";
    case STURDY_EINVAL:
      return "EINVAL";
    case STURDY_ETYPE:
      return "ETYPE";
    case STURDY_EUNSUPPORTED:
      return "EUNSUPPORTED";
    case STURDY_ENOMEM:
      return "ENOMEM";
    case STURDY_ECUDA:
      return "ECUDA";
    case STURDY_EINTERNAL:
      return "EINTERNAL";
  }
  return "EINTERNAL";
}

// Fresh pages cost more than many a kernel that fills them; huge ones cost less. Only advice, so failure is no matter.
void advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t worth_it = int64_t{4} << 20;
  constexpr uintptr_t page = 4096;
  if (bytes >= worth_it) {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(page - 1);
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace

std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

sturdy_dtype to_sturdy(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return {STURDY_FLOAT, 32, 1};
    case ScalarType::Double:
      return {STURDY_FLOAT, 64, 1};
    case ScalarType::Half:
      return {STURDY_FLOAT, 16, 1};
    case ScalarType::BFloat16:
      return {STURDY_BFLOAT, 16, 1};
    case ScalarType::Bool:
      return {STURDY_BOOL, 8, 1};
    case ScalarType::Byte:
      return {STURDY_UINT, 8, 1};
    case ScalarType::Char:
      return {STURDY_INT, 8, 1};
    case ScalarType::Short:
      return {STURDY_INT, 16, 1};
    case ScalarType::Int:
      return {STURDY_INT, 32, 1};
    case ScalarType::Long:
      return {STURDY_INT, 64, 1};
    case ScalarType::ComplexFloat:
      return {STURDY_COMPLEX, 64, 1};
    case ScalarType::ComplexDouble:
      return {STURDY_COMPLEX, 128, 1};
    default:
      return {UINT8_MAX, 8, 1};  // no op accepts it, so the check will name its code
  }
}

View::View(const Tensor& tensor) { fill(tensor); }

View::View(const std::optional<Tensor>& tensor) {
  if (tensor.has_value()) {
    fill(*tensor);
  }
}

void View::fill(const Tensor& tensor) {
  present_ = true;
  tensor_.data = tensor.data_ptr();
  if (tensor.is_cuda()) {
    tensor_.device = {STURDY_CUDA, tensor.get_device_index()};
  } else {
    tensor_.device = {tensor.is_cpu() ? STURDY_CPU : 0, 0};
  }
  tensor_.ndim = static_cast<int32_t>(tensor.dim());
  tensor_.dtype = to_sturdy(tensor.scalar_type());
  // The C API does not write through these pointers; DLPack's layout has no const in it.
  tensor_.shape = const_cast<int64_t*>(tensor.sizes().data());
  tensor_.strides = const_cast<int64_t*>(tensor.strides().data());
}

Tensor make(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format) {
  const torch::headeronly::IntHeaderOnlyArrayRef size_ref(sizes.data(), sizes.size());
  Tensor out = torch::stable::empty(size_ref, dtype, std::nullopt, like.device(), std::nullopt, format);
  if (out.is_cpu()) {
    advise_huge_pages(out.data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  }
  return out;
}

MemoryFormat output_format(const Tensor& input) {
  const bool channels_last = input.dim() == 4 && input.size(1) > 1 && input.stride(1) == 1 && !input.is_contiguous();
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

ScalarType accumulate_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check(sturdy_status status) {
  if (status != STURDY_OK) {
    throw std::runtime_error(std::string("[sturdy:") + status_name(status) + "] " + sturdy_last_error());
  }
}

Call::Call(const Tensor& like, size_t workspace_bytes) {
  context_.struct_size = sizeof(sturdy_context);
  if (like.is_cuda()) {
    guard_.emplace(like.get_device_index());
    context_.stream = current_stream(like.get_device_index());
  } else {
    context_.parallel_for = torch_parallel;
  }
  if (workspace_bytes > 0) {
    workspace_ = make(like, {static_cast<int64_t>(workspace_bytes)}, ScalarType::Byte, MemoryFormat::Contiguous);
    context_.workspace = workspace_->data_ptr();
    context_.workspace_bytes = workspace_bytes;
#if defined(STURDY_SIMT)
    // A kernel that reads scratch before writing it must not be right by luck: all ones is NaN.
    std::memset(context_.workspace, 0xff, workspace_bytes);
#endif
  }
}

}  // namespace sturdy::torch_binding
