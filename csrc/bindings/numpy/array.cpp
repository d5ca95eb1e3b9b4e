#include "array.h"

#include <utility>

#include "error.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

bool is_bfloat16(const py::dtype& dtype) {
  return dtype.kind() == 'V' && dtype.itemsize() == 2 && dtype.attr("name").cast<std::string>() == "bfloat16";
}

// The codes of a NumPy dtype that is made of numbers in the machine's byte order.
std::optional<sturdy_dtype> to_sturdy(const py::dtype& dtype) {
  if (dtype.byteorder() == '<' || dtype.byteorder() == '>') {
    return std::nullopt;
  }
  const auto bits = static_cast<uint8_t>(dtype.itemsize() * 8);
  switch (dtype.kind()) {
    case 'f':
      return sturdy_dtype{STURDY_FLOAT, bits, 1};
    case 'i':
      return sturdy_dtype{STURDY_INT, bits, 1};
    case 'u':
      return sturdy_dtype{STURDY_UINT, bits, 1};
    case 'c':
      return sturdy_dtype{STURDY_COMPLEX, bits, 1};
    case 'b':
      return sturdy_dtype{STURDY_BOOL, bits, 1};
    default:
      break;
  }
  if (is_bfloat16(dtype)) {  // NumPy has none of its own; the ml_dtypes package adds one
    return sturdy_dtype{STURDY_BFLOAT, 16, 1};
  }
  return std::nullopt;
}

std::vector<int64_t> compact_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  uint64_t stride = 1;  // unsigned: a tensor without elements may have sizes whose product is too large
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = static_cast<int64_t>(stride);
    stride *= static_cast<uint64_t>(shape[i]);
  }
  return strides;
}

std::string type_name(const py::object& object) { return Py_TYPE(object.ptr())->tp_name; }

}  // namespace

Array::Array(const char* op, const char* name, const py::object& object, Access access)
    : object_(object), present_(true) {
  const std::string where = std::string(op) + ": " + name;
  if (py::isinstance<py::array>(object)) {
    from_numpy(where, py::reinterpret_borrow<py::array>(object), access);
  } else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__")) {
    from_dlpack(where, object, access);
  } else {
    throw py::type_error(where + " must be a NumPy array or offer __dlpack__, got " + type_name(object));
  }
}

Array Array::optional(const char* op, const char* name, const py::object& object, Access access) {
  return object.is_none() ? Array() : Array(op, name, object, access);
}

void Array::from_numpy(const std::string& where, const py::array& array, Access access) {
  const py::dtype dtype = array.dtype();
  const std::optional<sturdy_dtype> code = to_sturdy(dtype);
  if (!code.has_value()) {
    throw py::type_error(where + " must hold floating point numbers in native byte order, got dtype " +
                         py::str(static_cast<const py::object&>(dtype)).cast<std::string>());
  }
  if (access == Access::write && !array.writeable()) {
    throw py::buffer_error(where + " is read-only");
  }
  std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
  std::vector<int64_t> strides(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t bytes = array.strides(static_cast<py::ssize_t>(i));
    if (shape[i] > 1 && bytes % array.itemsize() != 0) {
      throw CallError(STURDY_EINVAL, where +
                                         " has elements that are not a whole number of elements apart: strides of " +
                                         py::str(array.attr("strides")).cast<std::string>() + " bytes for " +
                                         std::to_string(array.itemsize()) + "-byte elements");
    }
    strides[i] = bytes / array.itemsize();
  }
  tensor_.data = const_cast<void*>(array.data());
  tensor_.device = {STURDY_CPU, 0};
  tensor_.dtype = *code;
  set_layout(std::move(shape), std::move(strides));
}

void Array::from_dlpack(const std::string& where, const py::object& producer, Access access) {
  borrowed_.emplace(where.c_str(), producer);
  if (access == Access::write && !borrowed_->writable()) {
    throw py::buffer_error(where + " is read-only, or its library does not say that it may be written");
  }
  const sturdy_tensor& tensor = borrowed_->tensor();
  std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<int64_t> strides = tensor.strides == nullptr
                                     ? compact_strides(shape)
                                     : std::vector<int64_t>(tensor.strides, tensor.strides + tensor.ndim);
  tensor_ = tensor;
  tensor_.device = {STURDY_CPU, 0};
  set_layout(std::move(shape), std::move(strides));
}

void Array::set_layout(std::vector<int64_t> shape, std::vector<int64_t> strides) {
  shape_ = std::move(shape);
  strides_ = std::move(strides);
  tensor_.ndim = static_cast<int32_t>(shape_.size());
  tensor_.shape = shape_.data();
  tensor_.strides = strides_.data();
}

void Array::add_batch() {
  std::vector<int64_t> shape = shape_;
  std::vector<int64_t> strides = strides_;
  shape.insert(shape.begin(), 1);
  strides.insert(strides.begin(), 0);
  set_layout(std::move(shape), std::move(strides));
}

void Array::make_channels(int64_t count) {
  if (shape_.empty() || (rank() == 1 && shape_[0] == 1)) {
    set_layout({count}, {0});
  } else if (shape_ == std::vector<int64_t>{1, count, 1, 1}) {
    set_layout({count}, {strides_[1]});
  }
}

bool Array::is_channels_last() const {
  if (rank() != 4 || shape_[1] <= 1 || strides_[1] != 1) {
    return false;
  }
  const std::vector<int64_t> compact = compact_strides(shape_);
  bool contiguous = true;
  for (int i = 0; i < 4; ++i) {
    if (shape_[i] == 0) {
      return false;
    }
    contiguous = contiguous && (shape_[i] == 1 || strides_[i] == compact[i]);
  }
  return !contiguous;
}

py::array Array::make_like(const char* op, const char* name, const std::vector<int64_t>& shape,
                           bool channels_last) const {
  py::dtype dtype("float32");
  if (!borrowed_.has_value()) {
    dtype = py::reinterpret_borrow<py::array>(object_).dtype();
  } else if (tensor_.dtype.code == STURDY_FLOAT) {
    dtype = py::dtype("float" + std::to_string(tensor_.dtype.bits));
  } else {
    throw py::type_error(std::string(op) + ": NumPy has no bfloat16 to return the result in; give " + name +
                         ", a bfloat16 tensor to write it into");
  }
  if (!channels_last) {
    return py::array(dtype, shape);
  }
  const size_t rank = shape.size();
  std::vector<int64_t> stored(shape);
  stored.erase(stored.begin() + static_cast<int64_t>(rank) - 3);
  stored.push_back(shape[rank - 3]);
  return py::module_::import("numpy").attr("moveaxis")(py::array(dtype, stored), -1, -3);
}

py::dtype Array::accumulate_dtype() const {
  const bool wide = tensor_.dtype.code == STURDY_FLOAT && tensor_.dtype.bits == 64;
  return py::dtype(wide ? "float64" : "float32");
}

}  // namespace sturdy::numpy_binding
