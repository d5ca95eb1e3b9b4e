// CAST for NumPy arrays and DLPack tensors.
#pragma once

#include <pybind11/pybind11.h>

namespace sturdy::numpy_binding {

void define_cast(pybind11::module_& m);

}  // namespace sturdy::numpy_binding
