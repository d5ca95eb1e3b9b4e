// filter2d, smooth_color and sine_warp for NumPy arrays and DLPack tensors.
#include <pybind11/stl.h>

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

constexpr const char* filter2d_name = "filter2d";
constexpr const char* filter2d_backward_name = "filter2d_backward";
constexpr const char* smooth_color_name = "smooth_color";
constexpr const char* smooth_color_backward_name = "smooth_color_backward";
constexpr const char* sine_warp_name = "sine_warp";

template <typename Options>
Options with_clip(const Clip& clip, uint32_t flag) {
  Options o = {};
  o.struct_size = sizeof o;
  if (clip.has_value()) {
    o.flags = flag;
    o.low = (*clip)[0];
    o.high = (*clip)[1];
  }
  return o;
}

// The image of a call, with what is to be known of it before it gets N.
struct Image {
  Array array;
  std::vector<int64_t> shape;
  bool batched;

  Image(const char* op, const char* name, const py::object& object)
      : array(op, name, object), shape(array.shape()), batched(prepare_image(op, name, array)) {}
};

// Runs a forward call: infer(inferred out), then compute(out) without the GIL.
template <typename Infer, typename Compute>
py::object forward(const char* op, Image& x, const py::object& out, const Infer& infer, const Compute& compute) {
  std::vector<int64_t> inferred_shape(4);
  sturdy_tensor inferred = {};
  inferred.shape = inferred_shape.data();
  check(infer(&inferred));
  py::object result = out;
  if (out.is_none() && x.array.get()->dtype.code == STURDY_UINT) {
    result = new_image(py::dtype("float32"), x.shape, x.array.is_channels_last());
  } else if (out.is_none()) {
    result = x.array.make_like(op, "out", x.shape, x.array.is_channels_last());
  }
  Array image(op, "out", result, Access::write);
  match_image(op, "out", image, x.batched);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = compute(image.get());
  }
  check(status);
  return result;
}

// Runs a backward call with two gradients: of x, and of a parameter that has `rest` sizes after N and C.
template <typename Compute>
py::tuple backward(const char* op, const char* parameter, Image& grad, Array& x, const std::vector<int64_t>& rest,
                   const py::object& out, const Compute& compute) {
  match_image(op, "x", x, grad.batched);
  py::tuple results(2);
  if (out.is_none()) {
    std::vector<int64_t> sizes = {grad.array.shape()[0], grad.array.shape()[1]};
    sizes.insert(sizes.end(), rest.begin(), rest.end());
    results[0] = grad.array.make_like(op, "out", grad.shape, x.is_channels_last());
    results[1] = py::array(grad.array.accumulate_dtype(), sizes);
  } else {
    results = py::cast<py::tuple>(out);
  }
  Array to_x = Array::optional(op, "out.x", results[0], Access::write);
  match_image(op, "out.x", to_x, grad.batched);
  const std::string name = std::string("out.") + parameter;
  Array to_parameter = Array::optional(op, name.c_str(), results[1], Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = compute(to_x.get(), to_parameter.get());
  }
  check(status);
  return results;
}

py::object filter2d(const py::object& x, const py::object& kernel, const Clip& clip, const py::object& out) {
  const auto options = with_clip<sturdy_filter2d_options>(clip, STURDY_FILTER2D_CLIP);
  Image image(filter2d_name, "x", x);
  Array k(filter2d_name, "kernel", kernel);
  return forward(
      filter2d_name, image, out,
      [&](sturdy_tensor* to) { return sturdy_filter2d_infer(&options, image.array.get(), k.get(), to); },
      [&](sturdy_tensor* to) { return sturdy_filter2d(nullptr, &options, image.array.get(), k.get(), to); });
}

py::tuple filter2d_backward(const py::object& grad_out, const py::object& x, const py::object& kernel, const Clip& clip,
                            const py::object& out) {
  const auto options = with_clip<sturdy_filter2d_options>(clip, STURDY_FILTER2D_CLIP);
  Image grad(filter2d_backward_name, "grad_out", grad_out);
  Array in(filter2d_backward_name, "x", x);
  Array k(filter2d_backward_name, "kernel", kernel);
  return backward(
      filter2d_backward_name, "kernel", grad, in, {3, 3}, out, [&](sturdy_tensor* to_x, sturdy_tensor* to_kernel) {
        return sturdy_filter2d_backward(nullptr, &options, grad.array.get(), in.get(), k.get(), to_x, to_kernel);
      });
}

py::object smooth_color(const py::object& x, const py::object& coefficients, const py::object& first, const Clip& clip,
                        const py::object& out) {
  const auto options = with_clip<sturdy_smooth_color_options>(clip, STURDY_SMOOTH_COLOR_CLIP);
  Image image(smooth_color_name, "x", x);
  Array c(smooth_color_name, "coefficients", coefficients);
  Array f = Array::optional(smooth_color_name, "first", first);
  return forward(
      smooth_color_name, image, out,
      [&](sturdy_tensor* to) { return sturdy_smooth_color_infer(&options, image.array.get(), c.get(), f.get(), to); },
      [&](sturdy_tensor* to) {
        return sturdy_smooth_color(nullptr, &options, image.array.get(), c.get(), f.get(), to);
      });
}

py::tuple smooth_color_backward(const py::object& grad_out, const py::object& x, const py::object& coefficients,
                                const py::object& first, const Clip& clip, const py::object& out) {
  const auto options = with_clip<sturdy_smooth_color_options>(clip, STURDY_SMOOTH_COLOR_CLIP);
  Image grad(smooth_color_backward_name, "grad_out", grad_out);
  Array in(smooth_color_backward_name, "x", x);
  Array c(smooth_color_backward_name, "coefficients", coefficients);
  Array f = Array::optional(smooth_color_backward_name, "first", first);
  const int64_t count = c.rank() == 3 ? c.shape()[2] : 0;
  return backward(smooth_color_backward_name, "coefficients", grad, in, {count}, out,
                  [&](sturdy_tensor* to_x, sturdy_tensor* to_coefficients) {
                    return sturdy_smooth_color_backward(nullptr, &options, grad.array.get(), in.get(), c.get(), f.get(),
                                                        to_x, to_coefficients);
                  });
}

py::object sine_warp(const py::object& x, const py::object& coefficients, const py::object& out) {
  sturdy_sine_warp_options options = {};
  options.struct_size = sizeof options;
  Image image(sine_warp_name, "x", x);
  Array c(sine_warp_name, "coefficients", coefficients);
  return forward(
      sine_warp_name, image, out,
      [&](sturdy_tensor* to) { return sturdy_sine_warp_infer(&options, image.array.get(), c.get(), to); },
      [&](sturdy_tensor* to) { return sturdy_sine_warp(nullptr, &options, image.array.get(), c.get(), to); });
}

}  // namespace

void define_prime(py::module_& m) {
  m.def(filter2d_name, &filter2d, py::arg("x"), py::arg("kernel"), py::arg("clip"), py::arg("out"));
  m.def(filter2d_backward_name, &filter2d_backward, py::arg("grad_out"), py::arg("x"), py::arg("kernel"),
        py::arg("clip"), py::arg("out"));
  m.def(smooth_color_name, &smooth_color, py::arg("x"), py::arg("coefficients"), py::arg("first"), py::arg("clip"),
        py::arg("out"));
  m.def(smooth_color_backward_name, &smooth_color_backward, py::arg("grad_out"), py::arg("x"), py::arg("coefficients"),
        py::arg("first"), py::arg("clip"), py::arg("out"));
  m.def(sine_warp_name, &sine_warp, py::arg("x"), py::arg("coefficients"), py::arg("out"));
}

}  // namespace sturdy::numpy_binding
