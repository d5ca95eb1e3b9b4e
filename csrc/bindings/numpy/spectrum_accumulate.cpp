// spectrum_accumulate for NumPy arrays and DLPack tensors.
#include <pybind11/stl.h>

#include <vector>

#include "array.h"
#include "error.h"
#include "fourier.h"
#include "sturdy/fourier.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

constexpr const char* spectrum_accumulate_name = "spectrum_accumulate";

py::object spectrum_accumulate(const py::object& x, const py::object& group, int64_t groups, int64_t power, bool add,
                               const py::object& out) {
  sturdy_spectrum_accumulate_options options = {};
  options.struct_size = sizeof options;
  options.flags = add ? STURDY_SPECTRUM_ACCUMULATE_ADD : 0;
  options.groups = groups;
  options.power = power;
  Array images(spectrum_accumulate_name, "x", x);
  Array g(spectrum_accumulate_name, "group", group);
  std::vector<int64_t> shape(4);
  sturdy_tensor inferred = {};
  inferred.shape = shape.data();
  check(sturdy_spectrum_accumulate_infer(&options, images.get(), g.get(), &inferred));
  const py::object result = out.is_none() ? py::object(py::array(images.accumulate_dtype(), shape)) : out;
  Array sums(spectrum_accumulate_name, "out", result, Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_spectrum_accumulate(nullptr, &options, images.get(), g.get(), sums.get());
  }
  check(status);
  return result;
}

}  // namespace

void define_spectrum_accumulate(py::module_& m) {
  m.def(spectrum_accumulate_name, &spectrum_accumulate, py::arg("x"), py::arg("group"), py::arg("groups"),
        py::arg("power"), py::arg("add"), py::arg("out"));
}

}  // namespace sturdy::numpy_binding
