// filter2d, smooth_color and sine_warp for torch.
#include <tuple>

#include "call.h"
#include "clip.h"
#include "sturdy/fourier.h"

namespace sturdy::torch_binding {
namespace {

template <typename Options>
Options with_clip(const char* op, const std::vector<double>& clip, uint32_t flag) {
  check_clip(op, clip);
  Options o = {};
  o.struct_size = sizeof o;
  if (!clip.empty()) {
    o.flags = flag;
    o.low = clip[0];
    o.high = clip[1];
  }
  return o;
}

sturdy_filter2d_options filter2d_options(const std::vector<double>& clip) {
  return with_clip<sturdy_filter2d_options>("filter2d", clip, STURDY_FILTER2D_CLIP);
}

sturdy_smooth_color_options smooth_color_options(const std::vector<double>& clip) {
  return with_clip<sturdy_smooth_color_options>("smooth_color", clip, STURDY_SMOOTH_COLOR_CLIP);
}

ScalarType result_dtype(const Tensor& x, std::optional<ScalarType> dtype) {
  return x.scalar_type() == ScalarType::Byte ? dtype.value_or(ScalarType::Float) : x.scalar_type();
}

// The output of an op on images, once infer(out) has accepted the arguments.
template <typename Infer>
Tensor make_out(const Tensor& x, std::optional<ScalarType> dtype, const Infer& infer) {
  int64_t shape[4] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  inferred.dtype = to_sturdy(result_dtype(x, dtype));
  check(infer(&inferred));
  return make(x, std::vector<int64_t>(shape, shape + 4), result_dtype(x, dtype), output_format(x));
}

// The gradients of an op on images: of x, and one for each image and channel of a parameter that has `rest` sizes more.
std::tuple<Tensor, Tensor> make_gradients(const Tensor& grad_out, const Tensor& x, bool need_x, bool need_parameter,
                                          const std::vector<int64_t>& rest) {
  Tensor grad_x = need_x ? make(grad_out, sizes_of(grad_out), grad_out.scalar_type(), output_format(x))
                         : make(grad_out, {0}, grad_out.scalar_type(), MemoryFormat::Contiguous);
  std::vector<int64_t> sizes = {0};
  if (need_parameter && grad_out.dim() == 4) {
    sizes = {grad_out.size(0), grad_out.size(1)};
    sizes.insert(sizes.end(), rest.begin(), rest.end());
  }
  return {grad_x, make(grad_out, sizes, accumulate_dtype(grad_out), MemoryFormat::Contiguous)};
}

Tensor filter2d(const Tensor& x, const Tensor& kernel, std::vector<double> clip, std::optional<ScalarType> dtype) {
  const auto options = filter2d_options(clip);
  View in(x);
  View k(kernel);
  Tensor out = make_out(
      x, dtype, [&](sturdy_tensor* inferred) { return sturdy_filter2d_infer(&options, in.get(), k.get(), inferred); });
  const Call call(x, 0);
  View to(out);
  check(sturdy_filter2d(call.context(), &options, in.get(), k.get(), to.get()));
  return out;
}

std::tuple<Tensor, Tensor> filter2d_backward(const Tensor& grad_out, const Tensor& x, const Tensor& kernel,
                                             std::vector<double> clip, bool need_x, bool need_kernel) {
  const auto options = filter2d_options(clip);
  View grad(grad_out);
  View in(x);
  View k(kernel);
  auto [grad_x, grad_kernel] = make_gradients(grad_out, x, need_x, need_kernel, {3, 3});
  const Call call(grad_out, 0);
  View to_x = need_x ? View(grad_x) : View();
  View to_kernel = need_kernel ? View(grad_kernel) : View();
  check(sturdy_filter2d_backward(call.context(), &options, grad.get(), in.get(), k.get(), to_x.get(), to_kernel.get()));
  return {grad_x, grad_kernel};
}

Tensor smooth_color(const Tensor& x, const Tensor& coefficients, const std::optional<Tensor>& first,
                    std::vector<double> clip, std::optional<ScalarType> dtype) {
  const auto options = smooth_color_options(clip);
  View in(x);
  View c(coefficients);
  View f(first);
  Tensor out = make_out(x, dtype, [&](sturdy_tensor* inferred) {
    return sturdy_smooth_color_infer(&options, in.get(), c.get(), f.get(), inferred);
  });
  const Call call(x, 0);
  View to(out);
  check(sturdy_smooth_color(call.context(), &options, in.get(), c.get(), f.get(), to.get()));
  return out;
}

std::tuple<Tensor, Tensor> smooth_color_backward(const Tensor& grad_out, const Tensor& x, const Tensor& coefficients,
                                                 const std::optional<Tensor>& first, std::vector<double> clip,
                                                 bool need_x, bool need_coefficients) {
  const auto options = smooth_color_options(clip);
  View grad(grad_out);
  View in(x);
  View c(coefficients);
  View f(first);
  const int64_t count = coefficients.dim() == 3 ? coefficients.size(2) : 0;
  auto [grad_x, grad_coefficients] = make_gradients(grad_out, x, need_x, need_coefficients, {count});
  const Call call(grad_out, 0);
  View to_x = need_x ? View(grad_x) : View();
  View to_coefficients = need_coefficients ? View(grad_coefficients) : View();
  check(sturdy_smooth_color_backward(call.context(), &options, grad.get(), in.get(), c.get(), f.get(), to_x.get(),
                                     to_coefficients.get()));
  return {grad_x, grad_coefficients};
}

Tensor sine_warp(const Tensor& x, const Tensor& coefficients, std::optional<ScalarType> dtype) {
  sturdy_sine_warp_options options = {};
  options.struct_size = sizeof options;
  View in(x);
  View c(coefficients);
  Tensor out = make_out(
      x, dtype, [&](sturdy_tensor* inferred) { return sturdy_sine_warp_infer(&options, in.get(), c.get(), inferred); });
  const Call call(x, 0);
  View to(out);
  check(sturdy_sine_warp(call.context(), &options, in.get(), c.get(), to.get()));
  return out;
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("filter2d", TORCH_BOX(&filter2d));
  m.impl("filter2d_backward", TORCH_BOX(&filter2d_backward));
  m.impl("smooth_color", TORCH_BOX(&smooth_color));
  m.impl("smooth_color_backward", TORCH_BOX(&smooth_color_backward));
  m.impl("sine_warp", TORCH_BOX(&sine_warp));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("filter2d", TORCH_BOX(&filter2d));
  m.impl("filter2d_backward", TORCH_BOX(&filter2d_backward));
  m.impl("smooth_color", TORCH_BOX(&smooth_color));
  m.impl("smooth_color_backward", TORCH_BOX(&smooth_color_backward));
  m.impl("sine_warp", TORCH_BOX(&sine_warp));
}

}  // namespace sturdy::torch_binding
