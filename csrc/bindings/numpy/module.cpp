// The Python module sturdy._numpy. What users call, with its documentation, is in sturdy/numpy/.
#include <pybind11/pybind11.h>

#include <string>

#include "cast.h"
#include "error.h"
#include "fourier.h"
#include "pushpull.h"
#include "sturdy/sturdy.h"

namespace py = pybind11;

PYBIND11_MODULE(_numpy, m, py::mod_gil_not_used()) {
  if (sturdy_abi_version() != STURDY_ABI_VERSION) {
    throw py::import_error("sturdy._numpy was built for ABI " + std::to_string(STURDY_ABI_VERSION) +
                           " of libsturdy_core, found " + std::to_string(sturdy_abi_version()) +
                           ": build both from one version");
  }
  sturdy::numpy_binding::register_exceptions();
  sturdy::numpy_binding::define_amplitude_mix(m);
  sturdy::numpy_binding::define_cast(m);
  sturdy::numpy_binding::define_prime(m);
  sturdy::numpy_binding::define_pushpull(m);
  sturdy::numpy_binding::define_spectral_filter(m);
  sturdy::numpy_binding::define_spectrum_accumulate(m);
  sturdy::numpy_binding::define_wave_add(m);
}
