// What the ops of the Fourier family know of an image tensor.
#pragma once

#include <cstdint>

#include "common/check.h"
#include "sturdy/sturdy.h"

namespace sturdy {

// A four-dimensional view (N, C, H, W). Strides are in elements and may be 0 (expanded) or negative.
struct ImageView {
  void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
};

// An absent tensor gives a view without data.
inline ImageView image_view(const sturdy_tensor* tensor) {
  ImageView view;
  if (tensor != nullptr) {
    view.data = data_of(*tensor);
    for (int dim = 0; dim < 4; ++dim) {
      view.stride[dim] = stride_of(*tensor, dim);
    }
  }
  return view;
}

}  // namespace sturdy
