#include "fourier.h"

#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "array.h"
#include "error.h"
#include "sturdy/fourier.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

// ---- wave_add
// --------------------------------------------------------------------------------------------------------

constexpr const char* wave_add_name = "wave_add";
constexpr const char* wave_add_backward_name = "wave_add_backward";

using Clip = std::optional<std::array<double, 2>>;

sturdy_wave_add_options wave_add_options(const Clip& clip) {
  sturdy_wave_add_options o = {};
  o.struct_size = sizeof o;
  if (clip.has_value()) {
    o.flags = STURDY_WAVE_ADD_CLIP;
    o.low = (*clip)[0];
    o.high = (*clip)[1];
  }
  return o;
}

// True if the image came with N; if not it gets it.
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

// A new image of `dtype` in the memory format of `like`, whose shape may lack N.
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

py::object wave_add(const py::object& input, const py::object& frequency, const py::object& amplitude,
                    const py::object& phase, const Clip& clip, const py::object& out) {
  const auto options = wave_add_options(clip);
  Array in(wave_add_name, "input", input);
  Array f(wave_add_name, "frequency", frequency);
  Array a(wave_add_name, "amplitude", amplitude);
  Array p(wave_add_name, "phase", phase);
  std::vector<int64_t> shape = in.shape();
  const bool batched = prepare_image(wave_add_name, "input", in);
  std::vector<int64_t> inferred_shape(4);
  sturdy_tensor inferred = {};
  inferred.shape = inferred_shape.data();
  check(sturdy_wave_add_infer(&options, in.get(), f.get(), a.get(), p.get(), &inferred));
  py::object result = out;
  if (out.is_none() && in.get()->dtype.code == STURDY_UINT) {
    result = new_image(py::dtype("float32"), shape, in.is_channels_last());
  } else if (out.is_none()) {
    result = in.make_like(wave_add_name, "out", shape, in.is_channels_last());
  }
  Array image(wave_add_name, "out", result, Access::write);
  match_image(wave_add_name, "out", image, batched);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_wave_add(nullptr, &options, in.get(), f.get(), a.get(), p.get(), image.get());
  }
  check(status);
  return result;
}

py::tuple wave_add_backward(const py::object& grad_out, const py::object& input, const py::object& frequency,
                            const py::object& amplitude, const py::object& phase, const Clip& clip,
                            const py::object& out) {
  const auto options = wave_add_options(clip);
  Array grad(wave_add_backward_name, "grad_out", grad_out);
  Array in = Array::optional(wave_add_backward_name, "input", input);
  Array f(wave_add_backward_name, "frequency", frequency);
  Array a(wave_add_backward_name, "amplitude", amplitude);
  Array p(wave_add_backward_name, "phase", phase);
  const std::vector<int64_t> shape = grad.shape();
  const bool batched = prepare_image(wave_add_backward_name, "grad_out", grad);
  match_image(wave_add_backward_name, "input", in, batched);
  py::tuple results(2);
  if (out.is_none()) {
    const Array& like = in.present() ? in : grad;
    const int64_t waves = f.rank() == 4 ? f.shape()[2] : 0;
    results[0] = grad.make_like(wave_add_backward_name, "out", shape, like.is_channels_last());
    results[1] = py::array(grad.accumulate_dtype(), std::vector<int64_t>{grad.shape()[0], grad.shape()[1], waves});
  } else {
    results = py::cast<py::tuple>(out);
  }
  Array to_input = Array::optional(wave_add_backward_name, "out.input", results[0], Access::write);
  match_image(wave_add_backward_name, "out.input", to_input, batched);
  Array to_amplitude = Array::optional(wave_add_backward_name, "out.amplitude", results[1], Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_wave_add_backward(nullptr, &options, grad.get(), in.get(), f.get(), a.get(), p.get(),
                                      to_input.get(), to_amplitude.get());
  }
  check(status);
  return results;
}

// ---- spectral_filter ----

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

void define_fourier(py::module_& m) {
  m.def(wave_add_name, &wave_add, py::arg("input"), py::arg("frequency"), py::arg("amplitude"), py::arg("phase"),
        py::arg("clip"), py::arg("out"));
  m.def(wave_add_backward_name, &wave_add_backward, py::arg("grad_out"), py::arg("input"), py::arg("frequency"),
        py::arg("amplitude"), py::arg("phase"), py::arg("clip"), py::arg("out"));
  m.def(spectral_filter_name, &spectral_filter, py::arg("x"), py::arg("mask"), py::arg("half"), py::arg("index"),
        py::arg("clip"), py::arg("out"));
  m.def(spectral_filter_backward_name, &spectral_filter_backward, py::arg("grad_out"), py::arg("x"), py::arg("mask"),
        py::arg("half"), py::arg("index"), py::arg("clip"), py::arg("out"));
}

}  // namespace sturdy::numpy_binding
