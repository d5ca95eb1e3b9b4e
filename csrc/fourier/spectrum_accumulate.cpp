// spectrum_accumulate: argument checks, dispatch and the C entry points. The only code of the op that looks at tensors.
#include "fourier/spectrum_accumulate.h"

#include <string>

#include "fourier/image_checks.h"
#include "sturdy/fourier.h"

namespace sturdy {
namespace {

constexpr const char* op_name = "spectrum_accumulate";

using Options = sturdy_spectrum_accumulate_options;

// Checks all but the result and fills in all that is known without data.
SpectrumAccumulateParams check_arguments(Checker& check, const Options* options, const sturdy_tensor* x,
                                         const sturdy_tensor* group) {
  SpectrumAccumulateParams p = {};
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags & ~STURDY_SPECTRUM_ACCUMULATE_ADD);
  const ImageSizes sizes = check_image_with_pixels(check, "x", x);
  if (!check.ok()) {
    return p;
  }
  check.value("groups", options->groups >= 0, "be at least 0", options->groups);
  check.value("power", options->power == 1 || options->power == 2, "be 1 or 2", options->power);
  check_integers_per_image(check, "group", group, sizes.batch, "x", x);
  if (!check.ok()) {
    return p;
  }
  p.batch = sizes.batch;
  p.channels = sizes.channels;
  p.height = sizes.height;
  p.width = sizes.width;
  p.groups = options->groups;
  p.power = static_cast<int>(options->power);
  p.dtype = to_dtype(x->dtype);
  p.add = (options->flags & STURDY_SPECTRUM_ACCUMULATE_ADD) != 0;
  constexpr int64_t most = int64_t{1} << 58;
  const int64_t plane = p.height * (p.width / 2 + 1);
  if (p.groups > 0 && p.channels > 0 && p.groups > most / p.channels / plane) {
    check.fail(STURDY_EUNSUPPORTED, "the output would have more elements than can be addressed");
  }
  return p;
}

void check_out_dtype(Checker& check, const sturdy_tensor* out, const SpectrumAccumulateParams& p) {
  check.parameter_dtype("out", out);
  if (check.ok() && p.dtype == DType::f64 && out->dtype.bits != 64) {
    check.fail(STURDY_ETYPE, "out must be float64 for float64 images");
  }
}

sturdy_status accumulate(const sturdy_context* context, const Options* options, const sturdy_tensor* x,
                         const sturdy_tensor* group, sturdy_tensor* out) {
  Checker check(op_name);
  check.context(context);
  SpectrumAccumulateParams p = check_arguments(check, options, x, group);
  check.present("out", out);
  if (check.ok()) {
    check.shape("out", out, {p.groups, p.channels, p.height, p.width / 2 + 1});
  }
  check_out_dtype(check, out, p);
  check.same_device("out", out, "x", x);
  check.data("out", out);
  if (check.ok() && !is_contiguous(*out)) {
    check.fail(STURDY_EINVAL, "out must be contiguous");
  }
  check.data("x", x);
  check.separate("out", out, "x", x);
  check.data("group", group);
  check.separate("out", out, "group", group);
  check_values_per_image(check, "group", group, p.groups, "a group");
  const bool on_cuda = check.ok() && runs_on_cuda(*x);
  if (on_cuda) {
    check.workspace(context, cuda::spectrum_accumulate_workspace(p));
  }
  if (!check.ok()) {
    return check.result();
  }
  p.x = image_view(x);
  p.group = static_cast<const int64_t*>(data_of(*group));
  p.group_stride = stride_of(*group, 0);
  p.out = data_of(*out);
  p.out_is_double = out->dtype.bits == 64;
  if (element_count(*out) == 0) {
    return STURDY_OK;
  }
  return report(op_name, on_cuda ? cuda::spectrum_accumulate(p, workspace_of(context), stream_of(context))
                                 : cpu::spectrum_accumulate(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_spectrum_accumulate_infer(const sturdy_spectrum_accumulate_options* options,
                                               const sturdy_tensor* x, const sturdy_tensor* group, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name, [&] {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::SpectrumAccumulateParams p = sturdy::check_arguments(check, options, x, group);
    if (check.ok() && (out == nullptr || out->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "out.shape must not be NULL");
    }
    if (check.ok()) {
      if (out->dtype.bits == 0) {
        const uint8_t bits = p.dtype == sturdy::DType::f64 ? 64 : 32;
        out->dtype = {STURDY_FLOAT, bits, 1};
      }
      sturdy::check_out_dtype(check, out, p);
      out->device = x->device;
      out->ndim = 4;
      out->shape[0] = p.groups;
      out->shape[1] = p.channels;
      out->shape[2] = p.height;
      out->shape[3] = p.width / 2 + 1;
    }
    return check.result();
  });
}

size_t sturdy_spectrum_accumulate_workspace(const sturdy_spectrum_accumulate_options* options, const sturdy_tensor* x,
                                            const sturdy_tensor* group) {
  try {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::SpectrumAccumulateParams p = sturdy::check_arguments(check, options, x, group);
    return check.ok() && sturdy::runs_on_cuda(*x) ? sturdy::cuda::spectrum_accumulate_workspace(p) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status sturdy_spectrum_accumulate(const sturdy_context* context,
                                         const sturdy_spectrum_accumulate_options* options, const sturdy_tensor* x,
                                         const sturdy_tensor* group, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name, [&] { return sturdy::accumulate(context, options, x, group, out); });
}

}  // extern "C"
