// What ops that change images share: sizes, the clamp, small tensors of parameters, and their checks.
#pragma once

#include <cstdint>
#include <utility>

#include "common/check.h"
#include "fourier/image_checks.h"

namespace sturdy {

struct ImageClip {
  bool on = false;
  double low = 0.0, high = 0.0;
};

// A small tensor of parameters for images; strides in elements, 0 along dimensions that are shared.
struct ImageParameter {
  const void* data = nullptr;
  int64_t stride[5] = {0, 0, 0, 0, 0};
  bool is_double = false;  // else float
};

inline ImageSizes image_sizes(const sturdy_tensor& tensor) {
  return {tensor.shape[0], tensor.shape[1], tensor.shape[2], tensor.shape[3]};
}

inline bool is_bytes(const sturdy_tensor& tensor) { return tensor.dtype.code == STURDY_UINT; }

template <typename Options>
ImageClip clip_of(Checker& check, const Options* options, uint32_t clip_flag) {
  ImageClip clip;
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags & ~clip_flag);
  if (!check.ok() || (options->flags & clip_flag) == 0) {
    return clip;
  }
  clip = {true, options->low, options->high};
  check_clip(check, clip.on, clip.low, clip.high);
  return clip;
}

// A parameter whose first `shareable` dimensions, images (N) and then channels (C), may be 1.
inline ImageParameter check_image_parameter(Checker& check, const char* name, const sturdy_tensor* tensor, int32_t rank,
                                            const char* axes, int shareable, const char* sized_name,
                                            const sturdy_tensor* sized) {
  ImageParameter parameter;
  check.present(name, tensor);
  check.rank(name, tensor, rank, axes);
  check.parameter_dtype(name, tensor);
  check.same_device(name, tensor, sized_name, sized);
  for (int dim = 0; check.ok() && dim < shareable; ++dim) {
    if (tensor->shape[dim] != 1) {
      check.size(name, tensor, dim, sized->shape[dim], dim == 0 ? "images (N) or 1" : "channels (C) or 1");
    }
  }
  if (!check.ok()) {
    return parameter;
  }
  parameter.data = data_of(*tensor);
  parameter.is_double = tensor->dtype.bits == 64;
  for (int dim = 0; dim < rank; ++dim) {
    const bool shared = dim < shareable && tensor->shape[dim] == 1;
    parameter.stride[dim] = shared ? 0 : stride_of(*tensor, dim);
  }
  return parameter;
}

// Device, data and memory of a tensor that is written, which must lie apart from everything that is read.
template <size_t count>
void check_written(Checker& check, const char* name, const sturdy_tensor* out, const char* like_name,
                   const sturdy_tensor* like, const std::pair<const char*, const sturdy_tensor*> (&inputs)[count]) {
  check.same_device(name, out, like_name, like);
  check.data(name, out);
  for (const auto& [other_name, other] : inputs) {
    if (other != nullptr) {
      check.data(other_name, other);
      check.separate(name, out, other_name, other);
    }
  }
}

// The output of a forward call: shape of x, whose name is given, its dtype or, for bytes, any floating one.
template <size_t count>
void check_image_out(Checker& check, const sturdy_tensor* out, const char* name, const sturdy_tensor* x,
                     const std::pair<const char*, const sturdy_tensor*> (&inputs)[count]) {
  check.present("out", out);
  if (check.ok()) {
    check.shape("out", out, {x->shape[0], x->shape[1], x->shape[2], x->shape[3]});
  }
  check.float_dtype("out", out);
  if (check.ok() && !is_bytes(*x)) {
    check.same_dtype("out", out, name, x);
  }
  check.dense4("out", out);
  check_written(check, "out", out, name, x, inputs);
}

// Fills in what `infer` of such an op says of its output.
inline void infer_image_out(Checker& check, const sturdy_tensor* x, sturdy_tensor* out) {
  if (check.ok() && (out == nullptr || out->shape == nullptr)) {
    check.fail(STURDY_EINVAL, "out.shape must not be NULL");
  }
  if (!check.ok()) {
    return;
  }
  if (!is_bytes(*x)) {
    out->dtype = x->dtype;
  } else if (out->dtype.bits == 0) {
    out->dtype = {STURDY_FLOAT, 32, 1};
  } else {
    check.float_dtype("dtype", out);
  }
  out->ndim = 4;
  out->device = x->device;
  for (int dim = 0; dim < 4; ++dim) {
    out->shape[dim] = x->shape[dim];
  }
}

}  // namespace sturdy
