// The array arguments of an op: NumPy arrays and DLPack tensors, seen through the C API without a copy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dlpack.h"
#include "sturdy/sturdy.h"

namespace sturdy::numpy_binding {

enum class Access { read, write };

// Keeps the memory alive that it shows. Made and destroyed with the GIL held, used without it.
class Array {
 public:
  Array() = default;  // absent

  // Raises TypeError for what is no array, BufferError for memory that is not on the CPU or, under Access::write, that
  // must not be written. The dtype is left for the core to judge.
  Array(const char* op, const char* name, const pybind11::object& object, Access access = Access::read);

  // None means absent.
  static Array optional(const char* op, const char* name, const pybind11::object& object, Access access = Access::read);

  sturdy_tensor* get() { return present_ ? &tensor_ : nullptr; }
  bool present() const { return present_; }
  const pybind11::object& object() const { return object_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int rank() const { return static_cast<int>(shape_.size()); }

  // View (C, H, W) as (1, C, H, W).
  void add_batch();

  // View one value, (), (1,), or (1, count, 1, 1) as (count,); other shapes stay what they are.
  void make_channels(int64_t count);

  // Channels lie side by side in memory, as in (N, H, W, C): outputs take that form then. The torch binding has the
  // same rule.
  bool is_channels_last() const;

  // A fresh NumPy array of this one's dtype. `name` is the argument to give where NumPy lacks the dtype.
  pybind11::array make_like(const char* op, const char* name, const std::vector<int64_t>& shape,
                            bool channels_last) const;

  // float64 for float64, else float32: what sums over this array's elements are kept in.
  pybind11::dtype accumulate_dtype() const;

 private:
  void from_numpy(const std::string& where, const pybind11::array& array, Access access);
  void from_dlpack(const std::string& where, const pybind11::object& producer, Access access);
  void set_layout(std::vector<int64_t> shape, std::vector<int64_t> strides);

  sturdy_tensor tensor_ = {};
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;  // in elements
  pybind11::object object_;
  std::optional<BorrowedTensor> borrowed_;
  bool present_ = false;
};

}  // namespace sturdy::numpy_binding
