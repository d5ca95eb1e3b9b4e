// C++17 over the C interface: exceptions instead of statuses, views of memory that the caller owns. Header only.
//
//   std::vector<float> pixels(3 * 32 * 32);
//   sturdy::TensorView image(pixels.data(), {1, 3, 32, 32});
//   sturdy::check(sturdy_push_pull_conv2d(nullptr, &options, image, weight, nullptr, nullptr, out, nullptr));
#ifndef STURDY_STURDY_HPP_
#define STURDY_STURDY_HPP_

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "sturdy/sturdy.h"

namespace sturdy {

// What a call that did not return STURDY_OK becomes.
class Error : public std::runtime_error {
 public:
  Error(sturdy_status status, const std::string& message) : std::runtime_error(message), status_(status) {}

  sturdy_status status() const noexcept { return status_; }

 private:
  sturdy_status status_;
};

// Throws Error unless `status` is STURDY_OK. Call it on the thread that made the call.
inline void check(sturdy_status status) {
  if (status != STURDY_OK) {
    throw Error(status, sturdy_last_error());
  }
}

constexpr sturdy_dtype float16 = {STURDY_FLOAT, 16, 1};
constexpr sturdy_dtype bfloat16 = {STURDY_BFLOAT, 16, 1};
constexpr sturdy_dtype float32 = {STURDY_FLOAT, 32, 1};
constexpr sturdy_dtype float64 = {STURDY_FLOAT, 64, 1};

// A strided view, which does not own the memory. Pass it wherever the C interface takes a sturdy_tensor*.
class TensorView {
 public:
  // Memory on the CPU. `strides` are in elements; without them the memory is compact and row-major. A view of const
  // memory may only be an input.
  template <typename T, typename = std::enable_if_t<std::is_floating_point_v<T>>>
  TensorView(T* data, std::vector<int64_t> shape, std::vector<int64_t> strides = {})
      : TensorView(const_cast<std::remove_const_t<T>*>(data), sizeof(T) == 8 ? float64 : float32, std::move(shape),
                   std::move(strides)) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "float and double; give other types by their sturdy_dtype");
  }

  // Any dtype, any device.
  TensorView(void* data, sturdy_dtype dtype, std::vector<int64_t> shape, std::vector<int64_t> strides = {},
             sturdy_device device = {STURDY_CPU, 0})
      : shape_(std::move(shape)), strides_(std::move(strides)) {
    if (!strides_.empty() && strides_.size() != shape_.size()) {
      throw Error(STURDY_EINVAL, "TensorView: there must be a stride for every size");
    }
    tensor_.data = data;
    tensor_.device = device;
    tensor_.dtype = dtype;
  }

  const std::vector<int64_t>& shape() const noexcept { return shape_; }

  // Valid until this view is changed or gone.
  sturdy_tensor* get() noexcept {
    tensor_.ndim = static_cast<int32_t>(shape_.size());
    tensor_.shape = shape_.data();
    tensor_.strides = strides_.empty() ? nullptr : strides_.data();
    return &tensor_;
  }
  operator sturdy_tensor*() noexcept { return get(); }

 private:
  sturdy_tensor tensor_ = {};
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;
};

}  // namespace sturdy

#endif  // STURDY_STURDY_HPP_
