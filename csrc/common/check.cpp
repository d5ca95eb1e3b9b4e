#include "common/check.h"

#include <algorithm>
#include <limits>

namespace sturdy {
namespace {

std::string dtype_name(const sturdy_dtype& dtype) {
  if (dtype.lanes != 1) {
    return "a vector dtype";
  }
  const std::string bits = std::to_string(dtype.bits);
  switch (dtype.code) {
    case STURDY_FLOAT:
      return "float" + bits;
    case STURDY_BFLOAT:
      return "bfloat" + bits;
    case STURDY_INT:
      return "int" + bits;
    case STURDY_UINT:
      return "uint" + bits;
    case STURDY_COMPLEX:
      return "complex" + bits;
    case STURDY_BOOL:
      return "bool";
    default:
      return "dtype code " + std::to_string(dtype.code);
  }
}

std::string device_name(const sturdy_device& device) {
  switch (device.device_type) {
    case STURDY_CPU:
      return "cpu";
    case STURDY_CUDA:
      return "cuda:" + std::to_string(device.device_id);
    default:
      return "device type " + std::to_string(device.device_type);
  }
}

std::string shape_text(const int64_t* sizes, int64_t count) {
  std::string text = "(";
  for (int64_t i = 0; i < count; ++i) {
    text += std::to_string(sizes[i]) + (i + 1 < count ? ", " : count == 1 ? "," : "");
  }
  return text + ")";
}

bool same_type(const sturdy_dtype& a, const sturdy_dtype& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

// Dense in the order of dimensions given, slowest first.
bool is_dense(const sturdy_tensor& tensor, const int* order) {
  int64_t expected = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    const int dim = order[i];
    if (tensor.shape[dim] != 1 && stride_of(tensor, dim) != expected) {
      return false;
    }
    expected *= tensor.shape[dim];
  }
  return true;
}

constexpr int max_rank = 8;

// First and one past the last byte that a tensor's elements touch.
void byte_range(const sturdy_tensor& tensor, const char** begin, const char** end) {
  int64_t low = 0;
  int64_t high = 0;
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    const int64_t reach = (tensor.shape[dim] - 1) * stride_of(tensor, dim);
    low += std::min<int64_t>(reach, 0);
    high += std::max<int64_t>(reach, 0);
  }
  const int64_t bytes = item_size(tensor.dtype);
  const char* data = static_cast<const char*>(data_of(tensor));
  *begin = data + low * bytes;
  *end = data + (high + 1) * bytes;
}

}  // namespace

DType to_dtype(const sturdy_dtype& dtype) {
  if (dtype.code == STURDY_BFLOAT) {
    return DType::bf16;
  }
  switch (dtype.bits) {
    case 16:
      return DType::f16;
    case 64:
      return DType::f64;
    default:
      return DType::f32;
  }
}

int64_t item_size(const sturdy_dtype& dtype) { return (int64_t{dtype.bits} * dtype.lanes + 7) / 8; }

int64_t element_count(const sturdy_tensor& tensor) {
  int64_t count = 1;
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    count *= tensor.shape[dim];
  }
  return count;
}

int64_t stride_of(const sturdy_tensor& tensor, int dim) {
  if (tensor.strides != nullptr) {
    return tensor.strides[dim];
  }
  int64_t stride = 1;
  for (int i = dim + 1; i < tensor.ndim; ++i) {
    stride *= tensor.shape[i];
  }
  return stride;
}

void* data_of(const sturdy_tensor& tensor) {
  return tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
}

bool is_contiguous(const sturdy_tensor& tensor) {
  static const int order[max_rank] = {0, 1, 2, 3, 4, 5, 6, 7};
  return element_count(tensor) == 0 || is_dense(tensor, order);
}

bool is_channels_last(const sturdy_tensor& tensor) {
  static const int order[] = {0, 2, 3, 1};
  return tensor.ndim == 4 && (element_count(tensor) == 0 || is_dense(tensor, order));
}

void Checker::fail(sturdy_status status, const std::string& what) {
  if (ok()) {
    status_ = status;
    message_ = std::string(op_) + ": " + what;
  }
}

void Checker::options(const void* options, uint32_t got_size, size_t wanted_size, uint32_t flags,
                      uint32_t known_flags) {
  if (options == nullptr) {
    fail(STURDY_EINVAL, "options must not be NULL");
  } else if (got_size < wanted_size) {
    fail(STURDY_EINVAL,
         "options.struct_size must be at least " + std::to_string(wanted_size) + ", got " + std::to_string(got_size));
  } else if ((flags & ~known_flags) != 0) {
    const std::string allowed = known_flags == 0 ? "be 0" : "have no bits but those of " + std::to_string(known_flags);
    fail(STURDY_EINVAL, "options.flags must " + allowed + ", got " + std::to_string(flags));
  }
}

void Checker::context(const sturdy_context* context) {
  if (context == nullptr) {
    return;
  }
  if (context->struct_size < sizeof(sturdy_context)) {
    fail(STURDY_EINVAL, "context.struct_size must be at least " + std::to_string(sizeof(sturdy_context)) + ", got " +
                            std::to_string(context->struct_size));
  } else if (context->flags != 0) {
    fail(STURDY_EINVAL, "context.flags must be 0, got " + std::to_string(context->flags));
  }
}

void Checker::workspace(const sturdy_context* context, size_t wanted) {
  const size_t got = workspace_of(context) == nullptr ? 0 : context->workspace_bytes;
  if (got < wanted) {
    fail(STURDY_ENOMEM,
         "workspace must have at least " + std::to_string(wanted) + " bytes, got " + std::to_string(got));
  }
}

void Checker::present(const char* name, const sturdy_tensor* tensor) {
  if (!ok()) {
    return;
  }
  const std::string who(name);
  if (tensor == nullptr) {
    return fail(STURDY_EINVAL, who + " must not be NULL");
  }
  if (tensor->ndim < 0 || tensor->ndim > max_rank) {
    return fail(STURDY_EINVAL, who + " must have 0 to " + std::to_string(max_rank) + " dimensions, got " +
                                   std::to_string(tensor->ndim));
  }
  if (tensor->ndim > 0 && tensor->shape == nullptr) {
    return fail(STURDY_EINVAL, who + ".shape must not be NULL");
  }
  int64_t count = 1;
  bool too_many = false;
  for (int dim = 0; dim < tensor->ndim; ++dim) {
    const int64_t size = tensor->shape[dim];
    if (size < 0) {
      return fail(STURDY_EINVAL,
                  who + " must have sizes of at least 0, got " + shape_text(tensor->shape, tensor->ndim));
    }
    // 2^58 elements of eight bytes are the last that a byte offset can count.
    too_many = too_many || (size > 0 && count > (int64_t{1} << 58) / size);
    count = too_many ? count : count * size;
  }
  if (too_many && count != 0) {
    return fail(STURDY_EUNSUPPORTED,
                who + " has more elements than can be addressed: " + shape_text(tensor->shape, tensor->ndim));
  }
  if (tensor->device.device_type != STURDY_CPU && tensor->device.device_type != STURDY_CUDA) {
    fail(STURDY_EUNSUPPORTED, who + " must be on the CPU or on a CUDA device, got " + device_name(tensor->device));
  }
}

void Checker::value(const char* name, bool good, const char* rule, int64_t got) {
  if (!good) {
    fail(STURDY_EINVAL, std::string(name) + " must " + rule + ", got " + std::to_string(got));
  }
}

void Checker::rank(const char* name, const sturdy_tensor* tensor, int32_t rank, const char* axes) {
  if (ok() && tensor->ndim != rank) {
    fail(STURDY_EINVAL, std::string(name) + " must have " + std::to_string(rank) + " dimensions " + axes +
                            ", got shape " + shape_text(tensor->shape, tensor->ndim));
  }
}

void Checker::float_dtype(const char* name, const sturdy_tensor* tensor) {
  if (!ok()) {
    return;
  }
  const sturdy_dtype& t = tensor->dtype;
  const bool real = t.code == STURDY_FLOAT && (t.bits == 16 || t.bits == 32 || t.bits == 64);
  const bool brain = t.code == STURDY_BFLOAT && t.bits == 16;
  if (t.lanes != 1 || !(real || brain)) {
    fail(STURDY_ETYPE, std::string(name) + " must be float16, bfloat16, float32 or float64, got " + dtype_name(t));
  }
}

void Checker::image_dtype(const char* name, const sturdy_tensor* tensor) {
  if (!ok() || same_type(tensor->dtype, {STURDY_UINT, 8, 1})) {
    return;
  }
  const bool counts = tensor->dtype.code == STURDY_INT || tensor->dtype.code == STURDY_UINT;
  float_dtype(name, tensor);
  if (!ok()) {
    message_ = std::string(op_) + ": " + name + " must be uint8, float16, bfloat16, float32 or float64, got " +
               dtype_name(tensor->dtype) + (counts ? ": convert it to floating point in [0, 1], or to uint8" : "");
  }
}

void Checker::parameter_dtype(const char* name, const sturdy_tensor* tensor) {
  if (ok() && !same_type(tensor->dtype, {STURDY_FLOAT, 32, 1}) && !same_type(tensor->dtype, {STURDY_FLOAT, 64, 1})) {
    fail(STURDY_ETYPE, std::string(name) + " must be float32 or float64, got " + dtype_name(tensor->dtype));
  }
}

void Checker::same_dtype(const char* name, const sturdy_tensor* tensor, const char* other_name,
                         const sturdy_tensor* other) {
  if (ok() && !same_type(tensor->dtype, other->dtype)) {
    fail(STURDY_ETYPE, std::string(name) + " must have the dtype of " + other_name + ", " + dtype_name(other->dtype) +
                           ", got " + dtype_name(tensor->dtype));
  }
}

void Checker::dtype_of_or_float32(const char* name, const sturdy_tensor* tensor, const char* other_name,
                                  const sturdy_tensor* other) {
  if (ok() && !same_type(tensor->dtype, other->dtype) && !same_type(tensor->dtype, {STURDY_FLOAT, 32, 1})) {
    fail(STURDY_ETYPE, std::string(name) + " must be float32 or have the dtype of " + other_name + ", " +
                           dtype_name(other->dtype) + ", got " + dtype_name(tensor->dtype));
  }
}

void Checker::same_device(const char* name, const sturdy_tensor* tensor, const char* other_name,
                          const sturdy_tensor* other) {
  if (ok() && (tensor->device.device_type != other->device.device_type ||
               tensor->device.device_id != other->device.device_id)) {
    fail(STURDY_EINVAL, std::string(name) + " must be on the device of " + other_name + ", " +
                            device_name(other->device) + ", got " + device_name(tensor->device));
  }
}

void Checker::size(const char* name, const sturdy_tensor* tensor, int32_t dim, int64_t wanted, const char* meaning) {
  if (ok() && tensor->shape[dim] != wanted) {
    fail(STURDY_EINVAL, std::string(name) + " must have " + std::to_string(wanted) + " " + meaning + ", got " +
                            std::to_string(tensor->shape[dim]) + " in shape " +
                            shape_text(tensor->shape, tensor->ndim));
  }
}

void Checker::shape(const char* name, const sturdy_tensor* tensor, std::initializer_list<int64_t> wanted) {
  if (!ok()) {
    return;
  }
  const bool same =
      tensor->ndim == static_cast<int64_t>(wanted.size()) && std::equal(wanted.begin(), wanted.end(), tensor->shape);
  if (!same) {
    fail(STURDY_EINVAL, std::string(name) + " must have shape " +
                            shape_text(wanted.begin(), static_cast<int64_t>(wanted.size())) + ", got " +
                            shape_text(tensor->shape, tensor->ndim));
  }
}

void Checker::data(const char* name, const sturdy_tensor* tensor) {
  if (!ok() || element_count(*tensor) == 0) {
    return;
  }
  if (tensor->data == nullptr) {
    return fail(STURDY_EINVAL, std::string(name) + ".data must not be NULL");
  }
  if (reinterpret_cast<uintptr_t>(data_of(*tensor)) % static_cast<uintptr_t>(item_size(tensor->dtype)) != 0) {
    fail(STURDY_EINVAL, std::string(name) + ".data must be aligned to its elements");
  }
}

void Checker::dense4(const char* name, const sturdy_tensor* tensor) {
  if (ok() && !is_contiguous(*tensor) && !is_channels_last(*tensor)) {
    fail(STURDY_EINVAL, std::string(name) + " must be contiguous or channels-last");
  }
}

void Checker::separate(const char* name, const sturdy_tensor* out, const char* other_name, const sturdy_tensor* other) {
  if (!ok() || element_count(*out) == 0 || element_count(*other) == 0) {
    return;
  }
  const char *begin, *end, *other_begin, *other_end;
  byte_range(*out, &begin, &end);
  byte_range(*other, &other_begin, &other_end);
  if (begin < other_end && other_begin < end) {
    fail(STURDY_EINVAL, std::string(name) + " must not share memory with " + other_name);
  }
}

}  // namespace sturdy
