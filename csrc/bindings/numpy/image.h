// What the functions on images share: with or without the batch, in either memory format, clamped or not.
#pragma once

#include <pybind11/numpy.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "array.h"

namespace sturdy::numpy_binding {

// The bounds of a clamp.
using Clip = std::optional<std::array<double, 2>>;

// True if the image came with N; if not it gets it.
bool prepare_image(const char* op, const char* name, Array& image);

// Refuses an image that has N where the first one lacked it, or the other way round; gives it N.
void match_image(const char* op, const char* name, Array& image, bool batched);

// A new image of `dtype` and of a shape that may lack N.
pybind11::array new_image(const pybind11::dtype& dtype, std::vector<int64_t> shape, bool channels_last);

}  // namespace sturdy::numpy_binding
