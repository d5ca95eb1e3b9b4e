// Checks that several ops on images share.
#pragma once

#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/error.h"
#include "fourier/image.h"

namespace sturdy {

struct ImageSizes {
  int64_t batch, channels, height, width;
};

// An image of a floating dtype with pixels, not too large for squares of its sizes to fit in 64 bits.
inline ImageSizes check_image_with_pixels(Checker& check, const char* name, const sturdy_tensor* tensor) {
  constexpr int64_t most = int64_t{1} << 24;
  check.present(name, tensor);
  check.rank(name, tensor, 4, "(N, C, H, W)");
  check.float_dtype(name, tensor);
  if (!check.ok()) {
    return {};
  }
  const ImageSizes sizes = {tensor->shape[0], tensor->shape[1], tensor->shape[2], tensor->shape[3]};
  check.value("image height", sizes.height >= 1, "be at least 1", sizes.height);
  check.value("image width", sizes.width >= 1, "be at least 1", sizes.width);
  if (check.ok() && (sizes.height > most || sizes.width > most)) {
    check.fail(STURDY_EUNSUPPORTED, std::string(name) + " must have at most " + std::to_string(most) +
                                        " rows and columns, got (" + std::to_string(sizes.height) + ", " +
                                        std::to_string(sizes.width) + ")");
  }
  return sizes;
}

// Clamps are in order where there is one.
inline void check_clip(Checker& check, bool clip, double low, double high) {
  if (check.ok() && clip && !(low <= high)) {
    check.fail(STURDY_EINVAL, "clip must be (low, high) with low <= high, got (" + std::to_string(low) + ", " +
                                  std::to_string(high) + ")");
  }
}

// (N,) int64 beside N images, on whose device it is.
inline void check_integers_per_image(Checker& check, const char* name, const sturdy_tensor* tensor, int64_t batch,
                                     const char* images_name, const sturdy_tensor* images) {
  check.present(name, tensor);
  check.rank(name, tensor, 1, "(N,)");
  if (check.ok() && !(tensor->dtype.code == STURDY_INT && tensor->dtype.bits == 64 && tensor->dtype.lanes == 1)) {
    check.fail(STURDY_ETYPE, std::string(name) + " must be int64");
  }
  check.size(name, tensor, 0, batch, "entries, one per image (N)");
  check.same_device(name, tensor, images_name, images);
}

// -1 or below `count`, where the values are in memory that can be read here. `meaning` says what there are `count` of.
inline void check_values_per_image(Checker& check, const char* name, const sturdy_tensor* tensor, int64_t count,
                                   const char* meaning) {
  if (!check.ok() || tensor->device.device_type != STURDY_CPU) {
    return;
  }
  const int64_t* values = static_cast<const int64_t*>(data_of(*tensor));
  const int64_t stride = stride_of(*tensor, 0);
  for (int64_t n = 0; n < tensor->shape[0]; ++n) {
    const int64_t value = values[n * stride];
    if (value < -1 || value >= count) {
      check.fail(STURDY_EINVAL, std::string(name) + " must be -1 or " + meaning + ", 0 to " +
                                    std::to_string(count - 1) + ", got " + std::to_string(value) + " for image " +
                                    std::to_string(n));
      return;
    }
  }
}

}  // namespace sturdy
