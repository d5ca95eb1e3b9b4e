// amplitude_mix: argument checks, dispatch and the C entry points. The only code of the op that looks at tensors.
#include "fourier/amplitude_mix.h"

#include <cmath>
#include <string>
#include <utility>

#include "fourier/image_checks.h"
#include "sturdy/fourier.h"

namespace sturdy {
namespace {

constexpr const char* op_name = "amplitude_mix";
constexpr uint32_t kFlags = STURDY_AMPLITUDE_MIX_CLIP | STURDY_AMPLITUDE_MIX_WINDOW | STURDY_AMPLITUDE_MIX_COLOR;

using Options = sturdy_amplitude_mix_options;

// What a call is given beside options and result.
struct Arguments {
  const sturdy_tensor *x, *other, *index, *strength, *window;
};

void check_options(Checker& check, const Options* options) {
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags & ~kFlags);
  if (check.ok()) {
    check_clip(check, (options->flags & STURDY_AMPLITUDE_MIX_CLIP) != 0, options->low, options->high);
  }
}

void check_partners(Checker& check, const Arguments& given, AmplitudeMixParams& p) {
  const sturdy_tensor* x = given.x;
  p.from_x = given.other == nullptr;
  p.others = p.batch;
  if (!p.from_x) {
    check.present("other", given.other);
    check.rank("other", given.other, 4, "(M, C, H, W)");
    check.same_dtype("other", given.other, "x", x);
    check.same_device("other", given.other, "x", x);
    check.size("other", given.other, 1, p.channels, "channels (C), as x has");
    check.size("other", given.other, 2, p.height, "rows (H), as x has");
    check.size("other", given.other, 3, p.width, "columns (W), as x has");
    p.others = check.ok() ? given.other->shape[0] : 0;
  } else if (check.ok() && given.index == nullptr) {
    check.fail(STURDY_EINVAL, "index must say which images of x amplitudes are taken from where no other is given");
  }
  if (given.index != nullptr) {
    check_integers_per_image(check, "index", given.index, p.batch, "x", x);
  } else if (check.ok() && p.others != 1) {
    check.size("other", given.other, 0, p.batch, "images (N) or 1, as there is no index");
  }
}

void check_strength(Checker& check, const Options* options, const Arguments& given, AmplitudeMixParams& p) {
  const sturdy_tensor* strength = given.strength;
  if (strength == nullptr) {
    if (check.ok() && !std::isfinite(options->strength)) {
      check.fail(STURDY_EINVAL, "strength must be finite, got " + std::to_string(options->strength));
    }
    p.strength = check.ok() ? options->strength : 0;
    return;
  }
  check.present("strength", strength);
  check.rank("strength", strength, 1, "(N or 1,)");
  check.parameter_dtype("strength", strength);
  check.same_device("strength", strength, "x", given.x);
  if (check.ok() && strength->shape[0] != 1) {
    check.size("strength", strength, 0, p.batch, "images (N) or 1");
  }
  if (check.ok()) {
    p.strengths = data_of(*strength);
    p.strengths_are_double = strength->dtype.bits == 64;
    p.strengths_stride = strength->shape[0] == 1 ? 0 : stride_of(*strength, 0);
  }
}

void check_window(Checker& check, const Options* options, const Arguments& given, AmplitudeMixParams& p) {
  const sturdy_tensor* window = given.window;
  if (!check.ok()) {
    return;
  }
  p.windowed = (options->flags & STURDY_AMPLITUDE_MIX_WINDOW) != 0;
  p.window[0] = options->window[0];
  p.window[1] = options->window[1];
  if (window == nullptr) {
    return;
  }
  check.present("window", window);
  if (check.ok() && !p.windowed) {
    check.fail(STURDY_EINVAL, "window must be NULL without STURDY_AMPLITUDE_MIX_WINDOW");
  }
  check.rank("window", window, 2, "(N or 1, 2)");
  if (check.ok() && !(window->dtype.code == STURDY_INT && window->dtype.bits == 64 && window->dtype.lanes == 1)) {
    check.fail(STURDY_ETYPE, "window must be int64");
  }
  check.size("window", window, 1, 2, "half-widths (rows, columns)");
  check.same_device("window", window, "x", given.x);
  if (check.ok() && window->shape[0] != 1) {
    check.size("window", window, 0, p.batch, "images (N) or 1");
  }
  if (check.ok()) {
    p.windows = static_cast<const int64_t*>(data_of(*window));
    p.windows_stride[0] = window->shape[0] == 1 ? 0 : stride_of(*window, 0);
    p.windows_stride[1] = stride_of(*window, 1);
  }
}

// Checks all but the result and fills in all that is known without data.
AmplitudeMixParams check_arguments(Checker& check, const Options* options, const Arguments& given) {
  AmplitudeMixParams p = {};
  check_options(check, options);
  const ImageSizes sizes = check_image_with_pixels(check, "x", given.x);
  if (!check.ok()) {
    return p;
  }
  p.batch = sizes.batch;
  p.channels = sizes.channels;
  p.height = sizes.height;
  p.width = sizes.width;
  p.dtype = to_dtype(given.x->dtype);
  p.color = (options->flags & STURDY_AMPLITUDE_MIX_COLOR) != 0;
  p.clip = (options->flags & STURDY_AMPLITUDE_MIX_CLIP) != 0;
  p.low = options->low;
  p.high = options->high;
  check_partners(check, given, p);
  check_strength(check, options, given, p);
  check_window(check, options, given, p);
  return p;
}

sturdy_status mix(const sturdy_context* context, const Options* options, const Arguments& given, sturdy_tensor* out) {
  Checker check(op_name);
  check.context(context);
  AmplitudeMixParams p = check_arguments(check, options, given);
  check.present("out", out);
  if (check.ok()) {
    check.shape("out", out, {p.batch, p.channels, p.height, p.width});
  }
  check.same_dtype("out", out, "x", given.x);
  check.same_device("out", out, "x", given.x);
  check.data("out", out);
  check.dense4("out", out);
  for (const auto& [name, tensor] :
       {std::pair{"x", given.x}, std::pair{"other", given.other}, std::pair{"index", given.index},
        std::pair{"strength", given.strength}, std::pair{"window", given.window}}) {
    if (tensor != nullptr) {
      check.data(name, tensor);
      check.separate("out", out, name, tensor);
    }
  }
  if (given.index != nullptr) {
    check_values_per_image(check, "index", given.index, p.others, p.from_x ? "an image of x" : "an image of other");
  }
  const bool on_cuda = check.ok() && runs_on_cuda(*given.x);
  if (on_cuda) {
    check.workspace(context, cuda::amplitude_mix_workspace(p));
  }
  if (!check.ok()) {
    return check.result();
  }
  p.x = image_view(given.x);
  p.other = p.from_x ? p.x : image_view(given.other);
  p.out = image_view(out);
  if (given.index != nullptr) {
    p.index = static_cast<const int64_t*>(data_of(*given.index));
    p.index_stride = stride_of(*given.index, 0);
  }
  if (p.batch == 0 || p.channels == 0) {
    return STURDY_OK;
  }
  return report(op_name, on_cuda ? cuda::amplitude_mix(p, workspace_of(context), stream_of(context))
                                 : cpu::amplitude_mix(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_amplitude_mix_infer(const sturdy_amplitude_mix_options* options, const sturdy_tensor* x,
                                         const sturdy_tensor* other, const sturdy_tensor* index,
                                         const sturdy_tensor* strength, const sturdy_tensor* window,
                                         sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name, [&] {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::AmplitudeMixParams p = sturdy::check_arguments(check, options, {x, other, index, strength, window});
    if (check.ok() && (out == nullptr || out->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "out.shape must not be NULL");
    }
    if (check.ok()) {
      out->dtype = x->dtype;
      out->device = x->device;
      out->ndim = 4;
      out->shape[0] = p.batch;
      out->shape[1] = p.channels;
      out->shape[2] = p.height;
      out->shape[3] = p.width;
    }
    return check.result();
  });
}

size_t sturdy_amplitude_mix_workspace(const sturdy_amplitude_mix_options* options, const sturdy_tensor* x,
                                      const sturdy_tensor* other, const sturdy_tensor* index,
                                      const sturdy_tensor* strength, const sturdy_tensor* window) {
  try {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::AmplitudeMixParams p = sturdy::check_arguments(check, options, {x, other, index, strength, window});
    return check.ok() && sturdy::runs_on_cuda(*x) ? sturdy::cuda::amplitude_mix_workspace(p) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status sturdy_amplitude_mix(const sturdy_context* context, const sturdy_amplitude_mix_options* options,
                                   const sturdy_tensor* x, const sturdy_tensor* other, const sturdy_tensor* index,
                                   const sturdy_tensor* strength, const sturdy_tensor* window, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name,
                         [&] { return sturdy::mix(context, options, {x, other, index, strength, window}, out); });
}

}  // extern "C"
