// wave_add for NumPy arrays and DLPack tensors.
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

constexpr const char* wave_add_name = "wave_add";
constexpr const char* wave_add_backward_name = "wave_add_backward";

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

}  // namespace

void define_wave_add(py::module_& m) {
  m.def(wave_add_name, &wave_add, py::arg("input"), py::arg("frequency"), py::arg("amplitude"), py::arg("phase"),
        py::arg("clip"), py::arg("out"));
  m.def(wave_add_backward_name, &wave_add_backward, py::arg("grad_out"), py::arg("input"), py::arg("frequency"),
        py::arg("amplitude"), py::arg("phase"), py::arg("clip"), py::arg("out"));
}

}  // namespace sturdy::numpy_binding
