// filter2d, smooth_color and sine_warp: argument checks, dispatch and the C entry points.
#include "fourier/prime.h"

#include <string>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "sturdy/fourier.h"

namespace sturdy {
namespace {

void check_image(Checker& check, const char* name, const sturdy_tensor* x) {
  check.present(name, x);
  check.rank(name, x, 4, "(N, C, H, W)");
}

ImageToImage to_params(const sturdy_tensor& x, const sturdy_tensor& out) {
  return {image_sizes(x), image_view(&x), image_view(&out), is_bytes(x), to_dtype(out.dtype)};
}

// Everything about the images of a backward call and where they go; `parameter` is read too.
ImageGradient check_gradient(Checker& check, const sturdy_tensor* grad_out, const sturdy_tensor* x, const char* name,
                             const sturdy_tensor* parameter, const sturdy_tensor* grad_x) {
  ImageGradient gradient = {};
  check.present("x", x);
  check.image_dtype("x", x);
  if (check.ok()) {
    check.shape("x", x, {grad_out->shape[0], grad_out->shape[1], grad_out->shape[2], grad_out->shape[3]});
    check.same_device("x", x, "grad_out", grad_out);
  }
  if (check.ok() && !is_bytes(*x)) {
    check.same_dtype("grad_out", grad_out, "x", x);
  }
  if (grad_x != nullptr) {
    check.present("grad_x", grad_x);
    if (check.ok()) {
      check.shape("grad_x", grad_x, {x->shape[0], x->shape[1], x->shape[2], x->shape[3]});
    }
    check.same_dtype("grad_x", grad_x, "grad_out", grad_out);
    check.dense4("grad_x", grad_x);
    check_written(check, "grad_x", grad_x, "grad_out", grad_out, {{"grad_out", grad_out}, {"x", x}, {name, parameter}});
  }
  if (check.ok()) {
    gradient = {image_sizes(*x),    image_view(grad_out), image_view(x),
                image_view(grad_x), is_bytes(*x),         to_dtype(grad_out->dtype)};
  }
  return gradient;
}

// The gradient of a parameter: one for each image and channel, compact.
void check_parameter_gradient(Checker& check, const char* name, const sturdy_tensor* grad,
                              std::initializer_list<int64_t> shape, const sturdy_tensor* grad_out,
                              const sturdy_tensor* x, const char* parameter_name, const sturdy_tensor* parameter,
                              const sturdy_tensor* grad_x) {
  check.present(name, grad);
  check.shape(name, grad, shape);
  check.parameter_dtype(name, grad);
  if (check.ok() && (grad->dtype.bits == 64) != (grad_out->dtype.bits == 64)) {
    check.fail(STURDY_ETYPE, std::string(name) + " must be float64 for float64 gradients and float32 for others");
  }
  if (check.ok() && !is_contiguous(*grad)) {
    check.fail(STURDY_EINVAL, std::string(name) + " must be contiguous");
  }
  check_written(check, name, grad, "grad_out", grad_out,
                {{"grad_out", grad_out}, {"x", x}, {parameter_name, parameter}, {"grad_x", grad_x}});
}

// ---- filter2d ----

constexpr const char* filter2d_name = "filter2d";
constexpr const char* filter2d_backward_name = "filter2d_backward";

ImageParameter check_kernel(Checker& check, const sturdy_tensor* kernel, const char* sized_name,
                            const sturdy_tensor* sized) {
  const ImageParameter parameter =
      check_image_parameter(check, "kernel", kernel, 4, "(N or 1, C or 1, 3, 3)", 2, sized_name, sized);
  for (int dim = 2; dim < 4; ++dim) {
    check.size("kernel", kernel, dim, 3, dim == 2 ? "rows" : "columns");
  }
  return parameter;
}

sturdy_status filter2d_forward(const sturdy_context* context, const sturdy_filter2d_options* options,
                               const sturdy_tensor* x, const sturdy_tensor* kernel, sturdy_tensor* out) {
  Checker check(filter2d_name);
  check.context(context);
  Filter2dParams p = {};
  p.clip = clip_of(check, options, STURDY_FILTER2D_CLIP);
  check_image(check, "x", x);
  check.image_dtype("x", x);
  p.kernel = check_kernel(check, kernel, "x", x);
  check_image_out(check, out, "x", x, {{"x", x}, {"kernel", kernel}});
  if (!check.ok()) {
    return check.result();
  }
  p.image = to_params(*x, *out);
  if (element_count(*out) == 0) {
    return STURDY_OK;
  }
  return report(filter2d_name,
                runs_on_cuda(*x) ? cuda::filter2d(p, stream_of(context)) : cpu::filter2d(p, Threads(context)));
}

sturdy_status filter2d_gradients(const sturdy_context* context, const sturdy_filter2d_options* options,
                                 const sturdy_tensor* grad_out, const sturdy_tensor* x, const sturdy_tensor* kernel,
                                 sturdy_tensor* grad_x, sturdy_tensor* grad_kernel) {
  Checker check(filter2d_backward_name);
  check.context(context);
  Filter2dBackwardParams p = {};
  p.clip = clip_of(check, options, STURDY_FILTER2D_CLIP);
  check_image(check, "grad_out", grad_out);
  check.float_dtype("grad_out", grad_out);
  p.kernel = check_kernel(check, kernel, "grad_out", grad_out);
  p.image = check_gradient(check, grad_out, x, "kernel", kernel, grad_x);
  if (grad_kernel != nullptr) {
    check_parameter_gradient(check, "grad_kernel", grad_kernel, {p.image.sizes.batch, p.image.sizes.channels, 3, 3},
                             grad_out, x, "kernel", kernel, grad_x);
  }
  if (!check.ok()) {
    return check.result();
  }
  p.grad_kernel = grad_kernel == nullptr ? nullptr : data_of(*grad_kernel);
  if (p.image.sizes.batch * p.image.sizes.channels == 0) {
    return STURDY_OK;
  }
  return report(filter2d_backward_name, runs_on_cuda(*x) ? cuda::filter2d_backward(p, stream_of(context))
                                                         : cpu::filter2d_backward(p, Threads(context)));
}

// ---- smooth_color ----

constexpr const char* smooth_color_name = "smooth_color";
constexpr const char* smooth_color_backward_name = "smooth_color_backward";

ColorTerms check_terms(Checker& check, const sturdy_tensor* coefficients, const sturdy_tensor* first,
                       const char* sized_name, const sturdy_tensor* sized) {
  ColorTerms terms = {};
  terms.coefficients =
      check_image_parameter(check, "coefficients", coefficients, 3, "(N or 1, C or 1, K)", 2, sized_name, sized);
  if (first != nullptr) {
    check.present("first", first);
    check.rank("first", first, 1, "(N or 1,)");
    if (check.ok() && (first->dtype.code != STURDY_INT || first->dtype.bits != 64 || first->dtype.lanes != 1)) {
      check.fail(STURDY_ETYPE, "first must be int64");
    }
    check.same_device("first", first, sized_name, sized);
    if (check.ok() && first->shape[0] != 1) {
      check.size("first", first, 0, sized->shape[0], "images (N) or 1");
    }
  }
  if (check.ok()) {
    terms.count = coefficients->shape[2];
    terms.first = first == nullptr ? nullptr : static_cast<const int64_t*>(data_of(*first));
    terms.first_stride = first == nullptr || first->shape[0] == 1 ? 0 : stride_of(*first, 0);
  }
  return terms;
}

sturdy_status smooth_color_forward(const sturdy_context* context, const sturdy_smooth_color_options* options,
                                   const sturdy_tensor* x, const sturdy_tensor* coefficients,
                                   const sturdy_tensor* first, sturdy_tensor* out) {
  Checker check(smooth_color_name);
  check.context(context);
  SmoothColorParams p = {};
  const ImageClip clip = clip_of(check, options, STURDY_SMOOTH_COLOR_CLIP);
  check_image(check, "x", x);
  check.image_dtype("x", x);
  p.terms = check_terms(check, coefficients, first, "x", x);
  p.terms.clip = clip;
  check_image_out(check, out, "x", x, {{"x", x}, {"coefficients", coefficients}, {"first", first}});
  if (!check.ok()) {
    return check.result();
  }
  p.image = to_params(*x, *out);
  if (element_count(*out) == 0) {
    return STURDY_OK;
  }
  return report(smooth_color_name,
                runs_on_cuda(*x) ? cuda::smooth_color(p, stream_of(context)) : cpu::smooth_color(p, Threads(context)));
}

sturdy_status smooth_color_gradients(const sturdy_context* context, const sturdy_smooth_color_options* options,
                                     const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                     const sturdy_tensor* coefficients, const sturdy_tensor* first,
                                     sturdy_tensor* grad_x, sturdy_tensor* grad_coefficients) {
  Checker check(smooth_color_backward_name);
  check.context(context);
  SmoothColorBackwardParams p = {};
  const ImageClip clip = clip_of(check, options, STURDY_SMOOTH_COLOR_CLIP);
  check_image(check, "grad_out", grad_out);
  check.float_dtype("grad_out", grad_out);
  p.terms = check_terms(check, coefficients, first, "grad_out", grad_out);
  p.terms.clip = clip;
  p.image = check_gradient(check, grad_out, x, "coefficients", coefficients, grad_x);
  if (grad_coefficients != nullptr) {
    check_parameter_gradient(check, "grad_coefficients", grad_coefficients,
                             {p.image.sizes.batch, p.image.sizes.channels, p.terms.count}, grad_out, x, "coefficients",
                             coefficients, grad_x);
  }
  if (!check.ok()) {
    return check.result();
  }
  p.grad_coefficients = grad_coefficients == nullptr ? nullptr : data_of(*grad_coefficients);
  if (p.image.sizes.batch * p.image.sizes.channels == 0) {
    return STURDY_OK;
  }
  return report(smooth_color_backward_name, runs_on_cuda(*x) ? cuda::smooth_color_backward(p, stream_of(context))
                                                             : cpu::smooth_color_backward(p, Threads(context)));
}

// ---- sine_warp ----

constexpr const char* sine_warp_name = "sine_warp";

ImageParameter check_fields(Checker& check, const sturdy_tensor* coefficients, const sturdy_tensor* x) {
  const ImageParameter parameter =
      check_image_parameter(check, "coefficients", coefficients, 4, "(N or 1, 2, I, J)", 1, "x", x);
  check.size("coefficients", coefficients, 1, 2, "fields (along columns, along rows)");
  return parameter;
}

void check_warp_options(Checker& check, const sturdy_sine_warp_options* options) {
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(*options),
                options == nullptr ? 0 : options->flags);
}

sturdy_status sine_warp_forward(const sturdy_context* context, const sturdy_sine_warp_options* options,
                                const sturdy_tensor* x, const sturdy_tensor* coefficients, sturdy_tensor* out) {
  Checker check(sine_warp_name);
  check.context(context);
  SineWarpParams p = {};
  check_warp_options(check, options);
  check_image(check, "x", x);
  check.image_dtype("x", x);
  p.coefficients = check_fields(check, coefficients, x);
  check_image_out(check, out, "x", x, {{"x", x}, {"coefficients", coefficients}});
  if (!check.ok()) {
    return check.result();
  }
  p.image = to_params(*x, *out);
  p.column_terms = coefficients->shape[2];
  p.row_terms = coefficients->shape[3];
  if (element_count(*out) == 0) {
    return STURDY_OK;
  }
  return report(sine_warp_name,
                runs_on_cuda(*x) ? cuda::sine_warp(p, stream_of(context)) : cpu::sine_warp(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_filter2d_infer(const sturdy_filter2d_options* options, const sturdy_tensor* x,
                                    const sturdy_tensor* kernel, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::filter2d_name, [&] {
    sturdy::Checker check(sturdy::filter2d_name);
    sturdy::clip_of(check, options, STURDY_FILTER2D_CLIP);
    sturdy::check_image(check, "x", x);
    check.image_dtype("x", x);
    sturdy::check_kernel(check, kernel, "x", x);
    sturdy::infer_image_out(check, x, out);
    return check.result();
  });
}

sturdy_status sturdy_filter2d(const sturdy_context* context, const sturdy_filter2d_options* options,
                              const sturdy_tensor* x, const sturdy_tensor* kernel, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::filter2d_name,
                         [&] { return sturdy::filter2d_forward(context, options, x, kernel, out); });
}

sturdy_status sturdy_filter2d_backward(const sturdy_context* context, const sturdy_filter2d_options* options,
                                       const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                       const sturdy_tensor* kernel, sturdy_tensor* grad_x, sturdy_tensor* grad_kernel) {
  return sturdy::guarded(sturdy::filter2d_backward_name, [&] {
    return sturdy::filter2d_gradients(context, options, grad_out, x, kernel, grad_x, grad_kernel);
  });
}

sturdy_status sturdy_smooth_color_infer(const sturdy_smooth_color_options* options, const sturdy_tensor* x,
                                        const sturdy_tensor* coefficients, const sturdy_tensor* first,
                                        sturdy_tensor* out) {
  return sturdy::guarded(sturdy::smooth_color_name, [&] {
    sturdy::Checker check(sturdy::smooth_color_name);
    sturdy::clip_of(check, options, STURDY_SMOOTH_COLOR_CLIP);
    sturdy::check_image(check, "x", x);
    check.image_dtype("x", x);
    sturdy::check_terms(check, coefficients, first, "x", x);
    sturdy::infer_image_out(check, x, out);
    return check.result();
  });
}

sturdy_status sturdy_smooth_color(const sturdy_context* context, const sturdy_smooth_color_options* options,
                                  const sturdy_tensor* x, const sturdy_tensor* coefficients, const sturdy_tensor* first,
                                  sturdy_tensor* out) {
  return sturdy::guarded(sturdy::smooth_color_name,
                         [&] { return sturdy::smooth_color_forward(context, options, x, coefficients, first, out); });
}

sturdy_status sturdy_smooth_color_backward(const sturdy_context* context, const sturdy_smooth_color_options* options,
                                           const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                           const sturdy_tensor* coefficients, const sturdy_tensor* first,
                                           sturdy_tensor* grad_x, sturdy_tensor* grad_coefficients) {
  return sturdy::guarded(sturdy::smooth_color_backward_name, [&] {
    return sturdy::smooth_color_gradients(context, options, grad_out, x, coefficients, first, grad_x,
                                          grad_coefficients);
  });
}

sturdy_status sturdy_sine_warp_infer(const sturdy_sine_warp_options* options, const sturdy_tensor* x,
                                     const sturdy_tensor* coefficients, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::sine_warp_name, [&] {
    sturdy::Checker check(sturdy::sine_warp_name);
    sturdy::check_warp_options(check, options);
    sturdy::check_image(check, "x", x);
    check.image_dtype("x", x);
    sturdy::check_fields(check, coefficients, x);
    sturdy::infer_image_out(check, x, out);
    return check.result();
  });
}

sturdy_status sturdy_sine_warp(const sturdy_context* context, const sturdy_sine_warp_options* options,
                               const sturdy_tensor* x, const sturdy_tensor* coefficients, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::sine_warp_name,
                         [&] { return sturdy::sine_warp_forward(context, options, x, coefficients, out); });
}

}  // extern "C"
