// PushPull convolution for torch.
#include "sturdy/pushpull.h"

#include <stdexcept>
#include <string>
#include <tuple>

#include "call.h"

namespace sturdy::torch_binding {
namespace {

using IntList = std::vector<int64_t>;

// The schema's int[2] is a wish: a direct call may bring any number.
void expect_length(const char* name, const IntList& values, size_t wanted) {
  if (values.size() != wanted) {
    throw std::runtime_error(std::string("[sturdy:EINVAL] push_pull_conv2d: ") + name + " must have " +
                             std::to_string(wanted) + " values, got " + std::to_string(values.size()));
  }
}

sturdy_push_pull_conv2d_options make_options(const IntList& stride, const IntList& padding, const IntList& dilation,
                                             int64_t groups, const IntList& pool, bool channel_range, bool allow_tf32,
                                             double strength) {
  expect_length("stride", stride, 2);
  expect_length("padding", padding, 4);
  expect_length("dilation", dilation, 2);
  expect_length("pool", pool, 2);
  sturdy_push_pull_conv2d_options o = {};
  o.struct_size = sizeof o;
  o.flags = (channel_range ? STURDY_PUSH_PULL_CHANNEL_RANGE : 0) | (allow_tf32 ? STURDY_PUSH_PULL_ALLOW_TF32 : 0);
  for (int axis = 0; axis < 2; ++axis) {
    o.stride[axis] = stride[axis];
    o.dilation[axis] = dilation[axis];
    o.pool[axis] = pool[axis];
  }
  for (int side = 0; side < 4; ++side) {
    o.padding[side] = padding[side];
  }
  o.groups = groups;
  o.strength = strength;
  return o;
}

// The shape of the output, after every check.
IntList infer(const sturdy_push_pull_conv2d_options& options, View& input, View& weight, View& inhibition, View& bias) {
  int64_t shape[4] = {};
  sturdy_tensor out = {};
  out.shape = shape;
  check(sturdy_push_pull_conv2d_infer(&options, input.get(), weight.get(), inhibition.get(), bias.get(), &out));
  return IntList(shape, shape + 4);
}

std::tuple<Tensor, Tensor> push_pull_conv2d(const Tensor& input, const Tensor& weight,
                                            const std::optional<Tensor>& inhibition, double strength,
                                            const std::optional<Tensor>& bias, IntList stride, IntList padding,
                                            IntList dilation, int64_t groups, IntList pool, bool channel_range,
                                            bool allow_tf32, bool keep_push) {
  const auto options = make_options(stride, padding, dilation, groups, pool, channel_range, allow_tf32, strength);
  View in(input);
  View w(weight);
  View alpha(inhibition);
  View b(bias);
  const IntList shape = infer(options, in, w, alpha, b);
  const MemoryFormat format = output_format(input);
  Tensor out = make(input, shape, input.scalar_type(), format);
  Tensor push = keep_push ? make(input, shape, input.scalar_type(), format)
                          : make(input, {0}, input.scalar_type(), MemoryFormat::Contiguous);
  const Call call(input, sturdy_push_pull_conv2d_workspace(&options, in.get(), w.get()));
  View out_view(out);
  View push_view = keep_push ? View(push) : View();
  check(sturdy_push_pull_conv2d(call.context(), &options, in.get(), w.get(), alpha.get(), b.get(), out_view.get(),
                                push_view.get()));
  return {out, push};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> push_pull_conv2d_backward(
    const Tensor& grad_out, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& inhibition,
    double strength, const std::optional<Tensor>& push, IntList stride, IntList padding, IntList dilation,
    int64_t groups, IntList pool, bool channel_range, bool allow_tf32, bool need_input, bool need_weight,
    bool need_inhibition, bool need_bias) {
  const auto options = make_options(stride, padding, dilation, groups, pool, channel_range, allow_tf32, strength);
  View in(input);
  View w(weight);
  View alpha(inhibition);
  View no_bias;
  const IntList shape = infer(options, in, w, alpha, no_bias);
  const auto gradient_of = [](const Tensor& tensor, bool wanted) {
    const auto sizes = tensor.sizes();
    return wanted ? make(tensor, IntList(sizes.begin(), sizes.end()), tensor.scalar_type(), output_format(tensor))
                  : make(tensor, {0}, tensor.scalar_type(), MemoryFormat::Contiguous);
  };
  const auto channel_gradient = [&](bool wanted) {
    return make(input, {wanted ? shape[1] : 0}, accumulate_dtype(input), MemoryFormat::Contiguous);
  };
  Tensor grad_input = gradient_of(input, need_input);
  Tensor grad_weight = gradient_of(weight, need_weight);
  Tensor grad_inhibition = channel_gradient(need_inhibition);
  Tensor grad_bias = channel_gradient(need_bias);
  const Call call(input, sturdy_push_pull_conv2d_backward_workspace(&options, in.get(), w.get()));
  View grad(grad_out);
  View p(push);
  View to_input = need_input ? View(grad_input) : View();
  View to_weight = need_weight ? View(grad_weight) : View();
  View to_inhibition = need_inhibition ? View(grad_inhibition) : View();
  View to_bias = need_bias ? View(grad_bias) : View();
  check(sturdy_push_pull_conv2d_backward(call.context(), &options, grad.get(), in.get(), w.get(), alpha.get(), p.get(),
                                         to_input.get(), to_weight.get(), to_inhibition.get(), to_bias.get()));
  return {grad_input, grad_weight, grad_inhibition, grad_bias};
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("push_pull_conv2d", TORCH_BOX(&push_pull_conv2d));
  m.impl("push_pull_conv2d_backward", TORCH_BOX(&push_pull_conv2d_backward));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("push_pull_conv2d", TORCH_BOX(&push_pull_conv2d));
  m.impl("push_pull_conv2d_backward", TORCH_BOX(&push_pull_conv2d_backward));
}

}  // namespace sturdy::torch_binding
