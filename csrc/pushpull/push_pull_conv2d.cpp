// PushPull convolution: argument checks, dispatch and the C entry points. The only code here that looks at tensors.
#include "pushpull/push_pull_conv2d.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "sturdy/pushpull.h"

namespace sturdy {
namespace {

constexpr const char* forward_name = "push_pull_conv2d";
constexpr const char* backward_name = "push_pull_conv2d_backward";

using Options = sturdy_push_pull_conv2d_options;

constexpr uint32_t known_flags = STURDY_PUSH_PULL_CHANNEL_RANGE | STURDY_PUSH_PULL_ALLOW_TF32;

void check_options(Checker& check, const Options* options) {
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags, known_flags);
  if (!check.ok()) {
    return;
  }
  for (int axis = 0; axis < 2; ++axis) {
    check.value("stride", options->stride[axis] >= 1, "be at least 1", options->stride[axis]);
    check.value("dilation", options->dilation[axis] >= 1, "be at least 1", options->dilation[axis]);
    check.value("avg_kernel_size", options->pool[axis] >= 1 && options->pool[axis] % 2 == 1, "be odd and at least 1",
                options->pool[axis]);
  }
  for (int side = 0; side < 4; ++side) {
    check.value("padding", options->padding[side] >= 0, "be at least 0", options->padding[side]);
  }
  check.value("groups", options->groups >= 1, "be at least 1", options->groups);
}

// Padding, dilation and stride may be any 64-bit number, so sizes are computed in 128 bits before they are judged.
using Wide = __int128;

std::string to_text(Wide value) {
  const Wide most = std::numeric_limits<int64_t>::max();
  return value > most ? "more than " + std::to_string(static_cast<int64_t>(most))
                      : std::to_string(static_cast<int64_t>(value));
}

// Size of the output along one axis, or a negative number when the kernel does not fit.
Wide output_size(int64_t input, int64_t pad_before, int64_t pad_after, int64_t kernel, int64_t dilation,
                 int64_t stride) {
  const Wide padded = Wide{input} + pad_before + pad_after;
  const Wide extent = Wide{dilation} * (kernel - 1) + 1;
  return padded < extent ? -1 : (padded - extent) / stride + 1;
}

// Checks options, input, weight and the channel vectors, and fills in the geometry. Reads no data.
PushPullGeometry check_arguments(Checker& check, const Options* options, const sturdy_tensor* input,
                                 const sturdy_tensor* weight, const sturdy_tensor* inhibition,
                                 const sturdy_tensor* bias) {
  PushPullGeometry g = {};
  check_options(check, options);
  check.present("input", input);
  check.present("weight", weight);
  check.rank("input", input, 4, "(N, C, H, W)");
  check.rank("weight", weight, 4, "(O, C / groups, kH, kW)");
  check.float_dtype("input", input);
  check.same_dtype("weight", weight, "input", input);
  check.same_device("weight", weight, "input", input);
  if (!check.ok()) {
    return g;
  }
  g.batch = input->shape[0];
  g.in_channels = input->shape[1];
  g.in_h = input->shape[2];
  g.in_w = input->shape[3];
  g.out_channels = weight->shape[0];
  g.kernel_h = weight->shape[2];
  g.kernel_w = weight->shape[3];
  g.groups = options->groups;
  g.stride_h = options->stride[0];
  g.stride_w = options->stride[1];
  g.dilation_h = options->dilation[0];
  g.dilation_w = options->dilation[1];
  g.pad_top = options->padding[0];
  g.pad_left = options->padding[2];
  g.pool_h = options->pool[0];
  g.pool_w = options->pool[1];
  g.strength = options->strength;
  g.dtype = to_dtype(input->dtype);
  g.channel_range = (options->flags & STURDY_PUSH_PULL_CHANNEL_RANGE) != 0;
  g.allow_tf32 = (options->flags & STURDY_PUSH_PULL_ALLOW_TF32) != 0;

  check.value("input channels", g.in_channels % g.groups == 0, "be divisible by groups", g.in_channels);
  check.value("output channels", g.out_channels % g.groups == 0, "be divisible by groups", g.out_channels);
  check.size("weight", weight, 1, g.in_channels / g.groups, "input channels (in_channels / groups)");
  check.value("weight input channels", g.in_channels >= 1, "be at least 1", g.in_channels);
  check.value("kernel height", g.kernel_h >= 1, "be at least 1", g.kernel_h);
  check.value("kernel width", g.kernel_w >= 1, "be at least 1", g.kernel_w);
  for (const auto& [name, vector] : {std::pair{"inhibition", inhibition}, std::pair{"bias", bias}}) {
    if (vector != nullptr) {
      check.present(name, vector);
      check.shape(name, vector, {g.out_channels});
      check.dtype_of_or_float32(name, vector, "input", input);
      check.same_device(name, vector, "input", input);
    }
  }
  if (!check.ok()) {
    return g;
  }

  const Wide out_h = output_size(g.in_h, g.pad_top, options->padding[1], g.kernel_h, g.dilation_h, g.stride_h);
  const Wide out_w = output_size(g.in_w, g.pad_left, options->padding[3], g.kernel_w, g.dilation_w, g.stride_w);
  if (out_h < 1 || out_w < 1) {
    const bool rows = out_h < 1;
    const Wide extent = rows ? Wide{g.dilation_h} * (g.kernel_h - 1) + 1 : Wide{g.dilation_w} * (g.kernel_w - 1) + 1;
    const Wide padded =
        rows ? Wide{g.in_h} + g.pad_top + options->padding[1] : Wide{g.in_w} + g.pad_left + options->padding[3];
    check.fail(STURDY_EINVAL, std::string("kernel ") + (rows ? "height" : "width") + " of " + to_text(extent) +
                                  " (with dilation) must not exceed the padded input of " + to_text(padded));
    return g;
  }
  constexpr Wide most = Wide{1} << 58;
  constexpr Wide most_rows = Wide{1} << 40;
  if (Wide{g.in_h} + g.pad_top + options->padding[1] > most_rows ||
      Wide{g.in_w} + g.pad_left + options->padding[3] > most_rows) {
    check.fail(STURDY_EUNSUPPORTED, "the padded input would have more rows or columns than can be addressed");
    return g;
  }
  if (out_h > most_rows || out_w > most_rows || out_h * out_w > most ||
      out_h * out_w * (Wide{g.batch} * g.out_channels) > most) {
    check.fail(STURDY_EUNSUPPORTED, "the output would have more elements than can be addressed");
    return g;
  }
  g.out_h = static_cast<int64_t>(out_h);
  g.out_w = static_cast<int64_t>(out_w);
  // An option that has no effect, or no more effect, takes its least value, so that no kernel need fear a large one.
  g.stride_h = g.out_h == 1 ? 1 : g.stride_h;
  g.stride_w = g.out_w == 1 ? 1 : g.stride_w;
  g.dilation_h = g.kernel_h == 1 ? 1 : g.dilation_h;
  g.dilation_w = g.kernel_w == 1 ? 1 : g.dilation_w;
  g.pool_h = std::min(g.pool_h, 2 * g.out_h - 1);
  g.pool_w = std::min(g.pool_w, 2 * g.out_w - 1);
  return g;
}

View4 view(const sturdy_tensor* tensor) {
  View4 v;
  if (tensor != nullptr) {
    v.data = data_of(*tensor);
    for (int dim = 0; dim < 4; ++dim) {
      v.stride[dim] = stride_of(*tensor, dim);
    }
  }
  return v;
}

ChannelView channel_view(const sturdy_tensor* tensor) {
  ChannelView v;
  if (tensor != nullptr) {
    v.data = data_of(*tensor);
    v.stride = stride_of(*tensor, 0);
    v.dtype = to_dtype(tensor->dtype);
  }
  return v;
}

// An output map: shape of out, dtype and device of input, dense.
void check_map(Checker& check, const char* name, const sturdy_tensor* map, const PushPullGeometry& g,
               const sturdy_tensor* input) {
  check.present(name, map);
  check.shape(name, map, {g.batch, g.out_channels, g.out_h, g.out_w});
  check.same_dtype(name, map, "input", input);
  check.same_device(name, map, "input", input);
  check.data(name, map);
}

// Device scratch of a call with these arguments; 0 where it needs none.
size_t workspace(const Options* options, const sturdy_tensor* input, const sturdy_tensor* weight,
                 size_t (*query)(const PushPullGeometry&)) noexcept {
  try {
    Checker check(forward_name);
    const PushPullGeometry g = check_arguments(check, options, input, weight, nullptr, nullptr);
    return check.ok() && runs_on_cuda(*input) ? query(g) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status forward(const sturdy_context* context, const Options* options, const sturdy_tensor* input,
                      const sturdy_tensor* weight, const sturdy_tensor* inhibition, const sturdy_tensor* bias,
                      sturdy_tensor* out, sturdy_tensor* push) {
  Checker check(forward_name);
  check.context(context);
  PushPullForwardParams p;
  p.geometry = check_arguments(check, options, input, weight, inhibition, bias);
  check.data("input", input);
  check.data("weight", weight);
  check_map(check, "out", out, p.geometry, input);
  check.dense4("out", out);
  check.separate("out", out, "input", input);
  check.separate("out", out, "weight", weight);
  for (const auto& [name, vector] : {std::pair{"inhibition", inhibition}, std::pair{"bias", bias}}) {
    if (vector != nullptr) {
      check.data(name, vector);
      check.separate("out", out, name, vector);
    }
  }
  if (push != nullptr) {
    check_map(check, "push", push, p.geometry, input);
    check.separate("push", push, "input", input);
    check.separate("push", push, "weight", weight);
    check.separate("push", push, "out", out);
    if (check.ok() &&
        !((is_contiguous(*out) && is_contiguous(*push)) || (is_channels_last(*out) && is_channels_last(*push)))) {
      check.fail(STURDY_EINVAL, "push must have the memory format of out");
    }
  }
  if (!check.ok()) {
    return check.result();
  }
  p.input = view(input);
  p.weight = view(weight);
  p.inhibition = channel_view(inhibition);
  p.bias = channel_view(bias);
  p.out = view(out);
  p.push = view(push);
  if (!runs_on_cuda(*input)) {
    return report(forward_name, cpu::push_pull_conv2d(p, Threads(context)));
  }
  check.workspace(context, cuda::push_pull_conv2d_workspace(p.geometry));
  if (!check.ok()) {
    return check.result();
  }
  return report(forward_name, cuda::push_pull_conv2d(p, workspace_of(context), stream_of(context)));
}

sturdy_status backward(const sturdy_context* context, const Options* options, const sturdy_tensor* grad_out,
                       const sturdy_tensor* input, const sturdy_tensor* weight, const sturdy_tensor* inhibition,
                       const sturdy_tensor* push, sturdy_tensor* grad_input, sturdy_tensor* grad_weight,
                       sturdy_tensor* grad_inhibition, sturdy_tensor* grad_bias) {
  Checker check(backward_name);
  check.context(context);
  PushPullBackwardParams p;
  p.geometry = check_arguments(check, options, input, weight, inhibition, nullptr);
  const PushPullGeometry& g = p.geometry;
  check.data("input", input);
  check.data("weight", weight);
  if (inhibition != nullptr) {
    check.data("inhibition", inhibition);
  }
  check_map(check, "grad_out", grad_out, g, input);
  if (push != nullptr) {
    check_map(check, "push", push, g, input);
  }
  const std::pair<const char*, const sturdy_tensor*> inputs[] = {
      {"grad_out", grad_out}, {"input", input}, {"weight", weight}, {"inhibition", inhibition}, {"push", push}};
  auto check_gradient = [&](const char* name, sturdy_tensor* gradient, const sturdy_tensor* of) {
    if (gradient == nullptr) {
      return;
    }
    check.present(name, gradient);
    if (of != nullptr && check.ok()) {
      check.shape(name, gradient, {of->shape[0], of->shape[1], of->shape[2], of->shape[3]});
      check.same_dtype(name, gradient, "input", input);
      check.dense4(name, gradient);
    } else {
      check.shape(name, gradient, {g.out_channels});
      check.dtype_of_or_float32(name, gradient, "input", input);
      if (check.ok() && g.out_channels > 1 && stride_of(*gradient, 0) == 0) {
        check.fail(STURDY_EINVAL, std::string(name) + " must have memory for each of its elements, got a stride of 0");
      }
    }
    check.same_device(name, gradient, "input", input);
    check.data(name, gradient);
    for (const auto& [other_name, other] : inputs) {
      if (other != nullptr) {
        check.separate(name, gradient, other_name, other);
      }
    }
  };
  check_gradient("grad_input", grad_input, input);
  check_gradient("grad_weight", grad_weight, weight);
  check_gradient("grad_inhibition", grad_inhibition, nullptr);
  check_gradient("grad_bias", grad_bias, nullptr);
  const std::pair<const char*, const sturdy_tensor*> outputs[] = {{"grad_input", grad_input},
                                                                  {"grad_weight", grad_weight},
                                                                  {"grad_inhibition", grad_inhibition},
                                                                  {"grad_bias", grad_bias}};
  for (const auto& [name, output] : outputs) {
    for (const auto& [other_name, other] : outputs) {
      if (output != nullptr && other != nullptr && name != other_name) {
        check.separate(name, output, other_name, other);
      }
    }
  }
  if (!check.ok()) {
    return check.result();
  }
  p.grad_out = view(grad_out);
  p.input = view(input);
  p.weight = view(weight);
  p.inhibition = channel_view(inhibition);
  p.push = view(push);
  p.grad_input = view(grad_input);
  p.grad_weight = view(grad_weight);
  p.grad_inhibition = channel_view(grad_inhibition);
  p.grad_bias = channel_view(grad_bias);
  if (!runs_on_cuda(*input)) {
    return report(backward_name, cpu::push_pull_conv2d_backward(p, Threads(context)));
  }
  check.workspace(context, cuda::push_pull_conv2d_backward_workspace(g));
  if (!check.ok()) {
    return check.result();
  }
  return report(backward_name, cuda::push_pull_conv2d_backward(p, workspace_of(context), stream_of(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_push_pull_conv2d_infer(const sturdy_push_pull_conv2d_options* options, const sturdy_tensor* input,
                                            const sturdy_tensor* weight, const sturdy_tensor* inhibition,
                                            const sturdy_tensor* bias, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::forward_name, [&] {
    sturdy::Checker check(sturdy::forward_name);
    const sturdy::PushPullGeometry g = sturdy::check_arguments(check, options, input, weight, inhibition, bias);
    if (check.ok() && (out == nullptr || out->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "out.shape must not be NULL");
    }
    if (check.ok()) {
      out->ndim = 4;
      out->dtype = input->dtype;
      out->device = input->device;
      out->shape[0] = g.batch;
      out->shape[1] = g.out_channels;
      out->shape[2] = g.out_h;
      out->shape[3] = g.out_w;
    }
    return check.result();
  });
}

size_t sturdy_push_pull_conv2d_workspace(const sturdy_push_pull_conv2d_options* options, const sturdy_tensor* input,
                                         const sturdy_tensor* weight) {
  return sturdy::workspace(options, input, weight, sturdy::cuda::push_pull_conv2d_workspace);
}

size_t sturdy_push_pull_conv2d_backward_workspace(const sturdy_push_pull_conv2d_options* options,
                                                  const sturdy_tensor* input, const sturdy_tensor* weight) {
  return sturdy::workspace(options, input, weight, sturdy::cuda::push_pull_conv2d_backward_workspace);
}

sturdy_status sturdy_push_pull_conv2d(const sturdy_context* context, const sturdy_push_pull_conv2d_options* options,
                                      const sturdy_tensor* input, const sturdy_tensor* weight,
                                      const sturdy_tensor* inhibition, const sturdy_tensor* bias, sturdy_tensor* out,
                                      sturdy_tensor* push) {
  return sturdy::guarded(sturdy::forward_name,
                         [&] { return sturdy::forward(context, options, input, weight, inhibition, bias, out, push); });
}

sturdy_status sturdy_push_pull_conv2d_backward(
    const sturdy_context* context, const sturdy_push_pull_conv2d_options* options, const sturdy_tensor* grad_out,
    const sturdy_tensor* input, const sturdy_tensor* weight, const sturdy_tensor* inhibition, const sturdy_tensor* push,
    sturdy_tensor* grad_input, sturdy_tensor* grad_weight, sturdy_tensor* grad_inhibition, sturdy_tensor* grad_bias) {
  return sturdy::guarded(sturdy::backward_name, [&] {
    return sturdy::backward(context, options, grad_out, input, weight, inhibition, push, grad_input, grad_weight,
                            grad_inhibition, grad_bias);
  });
}

}  // extern "C"
