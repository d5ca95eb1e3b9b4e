// amplitude_mix for NumPy arrays and DLPack tensors.
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

constexpr const char* amplitude_mix_name = "amplitude_mix";

using Window = std::optional<std::array<int64_t, 2>>;

sturdy_amplitude_mix_options amplitude_mix_options(double strength, const Window& window, bool windows, bool color,
                                                   const Clip& clip) {
  sturdy_amplitude_mix_options o = {};
  o.struct_size = sizeof o;
  o.flags = color ? STURDY_AMPLITUDE_MIX_COLOR : 0;
  o.strength = strength;
  if (window.has_value() || windows) {
    o.flags |= STURDY_AMPLITUDE_MIX_WINDOW;
  }
  if (window.has_value()) {
    o.window[0] = (*window)[0];
    o.window[1] = (*window)[1];
  }
  if (clip.has_value()) {
    o.flags |= STURDY_AMPLITUDE_MIX_CLIP;
    o.low = (*clip)[0];
    o.high = (*clip)[1];
  }
  return o;
}

py::object amplitude_mix(const py::object& x, const py::object& other, const py::object& index, double strength,
                         const py::object& strengths, const Window& window, const py::object& windows, bool color_fft,
                         const Clip& clip, const py::object& out) {
  const auto options = amplitude_mix_options(strength, window, !windows.is_none(), color_fft, clip);
  Array image(amplitude_mix_name, "x", x);
  Array o = Array::optional(amplitude_mix_name, "other", other);
  Array i = Array::optional(amplitude_mix_name, "index", index);
  Array s = Array::optional(amplitude_mix_name, "strength", strengths);
  Array w = Array::optional(amplitude_mix_name, "window", windows);
  const std::vector<int64_t> shape = image.shape();
  const bool batched = prepare_image(amplitude_mix_name, "x", image);
  if (o.present() && !batched && o.rank() == 3) {
    o.add_batch();
  }
  std::vector<int64_t> inferred_shape(4);
  sturdy_tensor inferred = {};
  inferred.shape = inferred_shape.data();
  check(sturdy_amplitude_mix_infer(&options, image.get(), o.get(), i.get(), s.get(), w.get(), &inferred));
  const py::object result =
      out.is_none() ? image.make_like(amplitude_mix_name, "out", shape, image.is_channels_last()) : out;
  Array mixed(amplitude_mix_name, "out", result, Access::write);
  match_image(amplitude_mix_name, "out", mixed, batched);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_amplitude_mix(nullptr, &options, image.get(), o.get(), i.get(), s.get(), w.get(), mixed.get());
  }
  check(status);
  return result;
}

}  // namespace

void define_amplitude_mix(py::module_& m) {
  m.def(amplitude_mix_name, &amplitude_mix, py::arg("x"), py::arg("other"), py::arg("index"), py::arg("strength"),
        py::arg("strengths"), py::arg("window"), py::arg("windows"), py::arg("color_fft"), py::arg("clip"),
        py::arg("out"));
}

}  // namespace sturdy::numpy_binding
