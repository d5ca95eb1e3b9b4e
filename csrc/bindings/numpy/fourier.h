// The Fourier family for NumPy arrays and DLPack tensors.
#pragma once

#include <pybind11/pybind11.h>

namespace sturdy::numpy_binding {

void define_amplitude_mix(pybind11::module_& m);
void define_prime(pybind11::module_& m);
void define_spectral_filter(pybind11::module_& m);
void define_spectrum_accumulate(pybind11::module_& m);
void define_wave_add(pybind11::module_& m);

}  // namespace sturdy::numpy_binding
