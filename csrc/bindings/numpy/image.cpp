#include "image.h"

#include <string>

#include "error.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {

bool prepare_image(const char* op, const char* name, Array& image) {
  if (image.rank() != 3 && image.rank() != 4) {
    throw CallError(STURDY_EINVAL, std::string(op) + ": " + name + " must be (N, C, H, W) or (C, H, W), got " +
                                       std::to_string(image.rank()) + " dimensions");
  }
  if (image.rank() == 4) {
    return true;
  }
  image.add_batch();
  return false;
}

void match_image(const char* op, const char* name, Array& image, bool batched) {
  if (image.present() && image.rank() != (batched ? 4 : 3)) {
    throw CallError(STURDY_EINVAL, std::string(op) + ": " + name + " must have " + (batched ? "4" : "3") +
                                       " dimensions, as the other image has, got " + std::to_string(image.rank()));
  }
  if (image.present() && !batched) {
    image.add_batch();
  }
}

py::array new_image(const py::dtype& dtype, std::vector<int64_t> shape, bool channels_last) {
  if (!channels_last) {
    return py::array(dtype, shape);
  }
  const size_t rank = shape.size();
  const int64_t channels = shape[rank - 3];
  shape.erase(shape.begin() + static_cast<int64_t>(rank) - 3);
  shape.push_back(channels);
  return py::module_::import("numpy").attr("moveaxis")(py::array(dtype, shape), -1, -3);
}

}  // namespace sturdy::numpy_binding
