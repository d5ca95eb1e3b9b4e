#include "pushpull.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "array.h"
#include "error.h"
#include "sturdy/pushpull.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

using Pair = std::array<int64_t, 2>;
using Sides = std::array<int64_t, 4>;
using Options = sturdy_push_pull_conv2d_options;

constexpr const char* forward_name = "push_pull_conv2d";
constexpr const char* backward_name = "push_pull_conv2d_backward";

Options make_options(const Pair& stride, const Sides& padding, const Pair& dilation, int64_t groups, const Pair& pool,
                     bool channel_range, double strength) {
  Options o = {};
  o.struct_size = sizeof o;
  o.flags = channel_range ? STURDY_PUSH_PULL_CHANNEL_RANGE : 0;
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

// Checks all that can be checked without the outputs, and returns the shape of the map, (N, O, Ho, Wo).
std::vector<int64_t> infer(const Options& options, Array& input, Array& weight, Array& inhibition, Array& bias) {
  std::vector<int64_t> shape(4);
  sturdy_tensor out = {};
  out.shape = shape.data();
  check(sturdy_push_pull_conv2d_infer(&options, input.get(), weight.get(), inhibition.get(), bias.get(), &out));
  return shape;
}

// (1, C, H, W) without the 1 if `batched` is false.
std::vector<int64_t> outer_shape(const std::vector<int64_t>& shape, bool batched) {
  return std::vector<int64_t>(shape.begin() + (batched ? 0 : 1), shape.end());
}

// Gives a map argument the rank that the core wants; it must have come with N exactly if the input did.
void match_batch(const char* op, const char* name, Array& map, bool batched) {
  if (!map.present()) {
    return;
  }
  const int wanted = batched ? 4 : 3;
  if (map.rank() != wanted) {
    throw CallError(STURDY_EINVAL, std::string(op) + ": " + name + " must have " + std::to_string(wanted) +
                                       " dimensions, as input has, got " + std::to_string(map.rank()));
  }
  if (!batched) {
    map.add_batch();
  }
}

// Input and weight brought into shape: true if the input came with N.
bool prepare(const char* op, Array& input, Array& weight, Array& inhibition) {
  const bool batched = input.rank() != 3;
  if (batched && input.rank() != 4) {
    throw CallError(STURDY_EINVAL, std::string(op) + ": input must be (N, C, H, W) or (C, H, W), got " +
                                       std::to_string(input.rank()) + " dimensions");
  }
  if (!batched) {
    input.add_batch();
  }
  if (inhibition.present() && weight.rank() == 4) {
    inhibition.make_channels(weight.shape()[0]);
  }
  return batched;
}

py::object push_pull_conv2d(const py::object& input, const py::object& weight, const py::object& inhibition,
                            double strength, const py::object& bias, const Pair& stride, const Sides& padding,
                            const Pair& dilation, int64_t groups, const Pair& pool, bool channel_range,
                            const py::object& out, const py::object& push) {
  const Options options = make_options(stride, padding, dilation, groups, pool, channel_range, strength);
  Array in(forward_name, "input", input);
  Array w(forward_name, "weight", weight);
  Array alpha = Array::optional(forward_name, "inhibition", inhibition);
  Array b = Array::optional(forward_name, "bias", bias);
  const bool batched = prepare(forward_name, in, w, alpha);
  const std::vector<int64_t> shape = infer(options, in, w, alpha, b);
  const py::object result =
      out.is_none() ? in.make_like(forward_name, "out", outer_shape(shape, batched), in.is_channels_last()) : out;
  Array map(forward_name, "out", result, Access::write);
  match_batch(forward_name, "out", map, batched);
  Array kept = Array::optional(forward_name, "push", push, Access::write);
  match_batch(forward_name, "push", kept, batched);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_push_pull_conv2d(nullptr, &options, in.get(), w.get(), alpha.get(), b.get(), map.get(), kept.get());
  }
  check(status);
  return result;
}

py::tuple push_pull_conv2d_backward(const py::object& grad_out, const py::object& input, const py::object& weight,
                                    const py::object& inhibition, double strength, const py::object& push,
                                    const Pair& stride, const Sides& padding, const Pair& dilation, int64_t groups,
                                    const Pair& pool, bool channel_range, const py::object& out) {
  const Options options = make_options(stride, padding, dilation, groups, pool, channel_range, strength);
  Array grad(backward_name, "grad_out", grad_out);
  Array in(backward_name, "input", input);
  Array w(backward_name, "weight", weight);
  Array alpha = Array::optional(backward_name, "inhibition", inhibition);
  Array p = Array::optional(backward_name, "push", push);
  const bool batched = prepare(backward_name, in, w, alpha);
  match_batch(backward_name, "grad_out", grad, batched);
  match_batch(backward_name, "push", p, batched);
  Array no_bias;
  const std::vector<int64_t> shape = infer(options, in, w, alpha, no_bias);

  py::tuple results(4);
  if (out.is_none()) {
    results[0] = in.make_like(backward_name, "out", outer_shape(in.shape(), batched), in.is_channels_last());
    results[1] = w.make_like(backward_name, "out", w.shape(), w.is_channels_last());
    results[2] = py::array(in.accumulate_dtype(), std::vector<int64_t>{shape[1]});
    results[3] = py::array(in.accumulate_dtype(), std::vector<int64_t>{shape[1]});
  } else {
    results = py::cast<py::tuple>(out);
  }
  Array to_input = Array::optional(backward_name, "out.input", results[0], Access::write);
  match_batch(backward_name, "out.input", to_input, batched);
  Array to_weight = Array::optional(backward_name, "out.weight", results[1], Access::write);
  Array to_inhibition = Array::optional(backward_name, "out.inhibition", results[2], Access::write);
  Array to_bias = Array::optional(backward_name, "out.bias", results[3], Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_push_pull_conv2d_backward(nullptr, &options, grad.get(), in.get(), w.get(), alpha.get(), p.get(),
                                              to_input.get(), to_weight.get(), to_inhibition.get(), to_bias.get());
  }
  check(status);
  return results;
}

}  // namespace

void define_pushpull(py::module_& m) {
  m.def(forward_name, &push_pull_conv2d, py::arg("input"), py::arg("weight"), py::arg("inhibition"),
        py::arg("strength"), py::arg("bias"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("groups"), py::arg("pool"), py::arg("channel_range"), py::arg("out"), py::arg("push"));
  m.def(backward_name, &push_pull_conv2d_backward, py::arg("grad_out"), py::arg("input"), py::arg("weight"),
        py::arg("inhibition"), py::arg("strength"), py::arg("push"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("groups"), py::arg("pool"), py::arg("channel_range"), py::arg("out"));
}

}  // namespace sturdy::numpy_binding
