// spectral_filter for NumPy arrays and DLPack tensors.
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "array.h"
#include "error.h"
#include "fourier.h"
#include "image.h"
#include "sturdy/fourier.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

constexpr const char* spectral_filter_name = "spectral_filter";
constexpr const char* spectral_filter_backward_name = "spectral_filter_backward";

sturdy_spectral_filter_options spectral_filter_options(bool half, const Clip& clip) {
  sturdy_spectral_filter_options o = {};
  o.struct_size = sizeof o;
  o.flags = half ? STURDY_SPECTRAL_FILTER_HALF : 0;
  if (clip.has_value()) {
    o.flags |= STURDY_SPECTRAL_FILTER_CLIP;
    o.low = (*clip)[0];
    o.high = (*clip)[1];
  }
  return o;
}

// The result of a mask of five dimensions has one more than the images.
void match_result(const char* op, const char* name, Array& result, const Array& mask, bool batched) {
  const int wanted = (batched ? 4 : 3) + (mask.rank() == 5 ? 1 : 0);
  if (result.rank() != wanted) {
    throw CallError(STURDY_EINVAL, std::string(op) + ": " + name + " must have " + std::to_string(wanted) +
                                       " dimensions, got " + std::to_string(result.rank()));
  }
  if (!batched) {
    result.add_batch();
  }
}

py::object spectral_filter(const py::object& x, const py::object& mask, bool half, const py::object& index,
                           const Clip& clip, const py::object& out) {
  const auto options = spectral_filter_options(half, clip);
  Array image(spectral_filter_name, "x", x);
  Array m(spectral_filter_name, "mask", mask);
  Array i = Array::optional(spectral_filter_name, "index", index);
  const bool batched = prepare_image(spectral_filter_name, "x", image);
  std::vector<int64_t> shape(5);
  sturdy_tensor inferred = {};
  inferred.shape = shape.data();
  check(sturdy_spectral_filter_infer(&options, image.get(), m.get(), i.get(), &inferred));
  shape.resize(static_cast<size_t>(inferred.ndim));
  if (!batched) {
    shape.erase(shape.begin());
  }
  const bool channels_last = inferred.ndim == 4 && image.is_channels_last();
  const py::object result = out.is_none() ? image.make_like(spectral_filter_name, "out", shape, channels_last) : out;
  Array filtered(spectral_filter_name, "out", result, Access::write);
  match_result(spectral_filter_name, "out", filtered, m, batched);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_spectral_filter(nullptr, &options, image.get(), m.get(), i.get(), filtered.get());
  }
  check(status);
  return result;
}

py::tuple spectral_filter_backward(const py::object& grad_out, const py::object& x, const py::object& mask, bool half,
                                   const py::object& index, const Clip& clip, const py::object& out) {
  const auto options = spectral_filter_options(half, clip);
  Array grad(spectral_filter_backward_name, "grad_out", grad_out);
  Array image(spectral_filter_backward_name, "x", x);
  Array m(spectral_filter_backward_name, "mask", mask);
  Array i = Array::optional(spectral_filter_backward_name, "index", index);
  const std::vector<int64_t> shape = image.shape();
  const bool batched = prepare_image(spectral_filter_backward_name, "x", image);
  match_result(spectral_filter_backward_name, "grad_out", grad, m, batched);
  py::tuple results(2);
  if (out.is_none()) {
    results[0] = image.make_like(spectral_filter_backward_name, "out", shape, image.is_channels_last());
    results[1] = py::array(image.accumulate_dtype(), m.shape());
  } else {
    results = py::cast<py::tuple>(out);
  }
  Array to_x = Array::optional(spectral_filter_backward_name, "out.x", results[0], Access::write);
  match_image(spectral_filter_backward_name, "out.x", to_x, batched);
  Array to_mask = Array::optional(spectral_filter_backward_name, "out.mask", results[1], Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_spectral_filter_backward(nullptr, &options, grad.get(), image.get(), m.get(), i.get(), to_x.get(),
                                             to_mask.get());
  }
  check(status);
  return results;
}

}  // namespace

void define_spectral_filter(py::module_& m) {
  m.def(spectral_filter_name, &spectral_filter, py::arg("x"), py::arg("mask"), py::arg("half"), py::arg("index"),
        py::arg("clip"), py::arg("out"));
  m.def(spectral_filter_backward_name, &spectral_filter_backward, py::arg("grad_out"), py::arg("x"), py::arg("mask"),
        py::arg("half"), py::arg("index"), py::arg("clip"), py::arg("out"));
}

}  // namespace sturdy::numpy_binding
