// CAST for NumPy arrays and DLPack tensors.
#include "cast.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <utility>
#include <vector>

#include "array.h"
#include "error.h"
#include "sturdy/cast.h"

namespace py = pybind11;

namespace sturdy::numpy_binding {
namespace {

constexpr const char* affinity_name = "cast_affinity";
constexpr const char* cluster_name = "cast_cluster";
constexpr const char* attention_name = "cast_attention";
constexpr const char* backward_name = "cast_attention_backward";

using Shape = std::vector<int64_t>;

// A fresh array of axes (0, 1, 2, ...) in which axes 1 and 2 lie in memory the other way round.
py::object make_swapped(py::array (*make)(const Array&, const char*, const Shape&), const Array& like, const char* op,
                        const Shape& shape) {
  Shape stored = shape;
  std::swap(stored[1], stored[2]);
  return make(like, op, stored).attr("swapaxes")(1, 2);
}

py::array make_alike(const Array& like, const char* op, const Shape& shape) {
  return like.make_like(op, "out", shape, false);
}

py::array make_float32(const Array& /*like*/, const char* /*op*/, const Shape& shape) {
  return py::array(py::dtype("float32"), shape);
}

py::object cast_affinity(const py::object& q, const py::object& k, const py::object& surrogates, const py::object& phi,
                         const py::object& padding, double tau_g, const py::object& out) {
  sturdy_cast_affinity_options options = {};
  options.struct_size = sizeof options;
  options.tau_g = tau_g;
  Array queries(affinity_name, "q", q);
  Array keys(affinity_name, "k", k);
  Array s(affinity_name, "surrogates", surrogates);
  Array gate(affinity_name, "phi", phi);
  Array missing = Array::optional(affinity_name, "padding", padding);
  Shape shape(3);
  sturdy_tensor inferred = {};
  inferred.shape = shape.data();
  check(sturdy_cast_affinity_infer(&options, queries.get(), keys.get(), s.get(), gate.get(), missing.get(), &inferred));
  const py::object result = out.is_none() ? make_swapped(&make_float32, queries, affinity_name, shape) : out;
  Array affinity(affinity_name, "out", result, Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_cast_affinity(nullptr, &options, queries.get(), keys.get(), s.get(), gate.get(), missing.get(),
                                  affinity.get());
  }
  check(status);
  return result;
}

// (index, counts, assignment or None)
py::tuple cast_cluster(const py::object& affinity, int64_t cluster_size, bool single_assignment,
                       const py::object& padding) {
  sturdy_cast_cluster_options options = {};
  options.struct_size = sizeof options;
  options.method = single_assignment ? STURDY_CAST_SA_TOP_K : STURDY_CAST_TOP_K;
  options.cluster_size = cluster_size;
  Array scores(cluster_name, "affinity", affinity);
  Array missing = Array::optional(cluster_name, "padding", padding);
  Shape shape(3);
  sturdy_tensor inferred = {};
  inferred.shape = shape.data();
  check(sturdy_cast_cluster_infer(&options, scores.get(), missing.get(), &inferred));
  const py::dtype int32("int32");
  py::tuple results(3);
  results[0] = py::array(int32, shape);
  results[1] = py::array(int32, Shape{shape[0], shape[1]});
  results[2] = py::none();
  if (single_assignment) {
    results[2] = py::array(int32, Shape{scores.shape()[0], scores.shape()[1]});
  }
  Array index(cluster_name, "index", results[0], Access::write);
  Array counts(cluster_name, "counts", results[1], Access::write);
  Array assignment = Array::optional(cluster_name, "assignment", results[2], Access::write);
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_cast_cluster(nullptr, &options, scores.get(), missing.get(), index.get(), counts.get(),
                                 assignment.get());
  }
  check(status);
  return results;
}

// The numbers of a call of attention: tau, tau_q, tau_k, dropout.
using Numbers = std::array<double, 4>;

sturdy_cast_attention_options attention_options(const Numbers& numbers, bool disjoint) {
  sturdy_cast_attention_options options = {};
  options.struct_size = sizeof options;
  options.flags = disjoint ? STURDY_CAST_DISJOINT : 0;
  options.tau = numbers[0];
  options.tau_q = numbers[1];
  options.tau_k = numbers[2];
  options.dropout = numbers[3];
  return options;
}

// What attention reads: q, k, v, surrogates, phi, index, padding, seed.
struct Inputs {
  Inputs(const char* op, const py::tuple& objects)
      : q(op, "q", objects[0]),
        k(op, "k", objects[1]),
        v(op, "v", objects[2]),
        surrogates(op, "surrogates", objects[3]),
        phi(op, "phi", objects[4]),
        index(op, "index", objects[5]),
        padding(Array::optional(op, "padding", objects[6])),
        seed(Array::optional(op, "seed", objects[7])) {}

  Array q, k, v, surrogates, phi, index, padding, seed;
};

// What forward keeps for backward, in the order of the C functions.
struct Kept {
  static constexpr std::array<const char*, 5> names = {"kept.intra", "kept.summaries", "kept.lse_intra",
                                                       "kept.lse_summary", "kept.lse_mix"};

  Kept(const char* op, const py::object& objects, Access access) {
    if (objects.is_none()) {
      return;
    }
    const py::tuple all = py::cast<py::tuple>(objects);
    for (size_t i = 0; i < names.size(); i++) {
      arrays[i] = Array::optional(op, names[i], all[i], access);
    }
  }

  std::array<Array, 5> arrays;
};

py::tuple make_kept(const Inputs& in) {
  const Shape& q = in.q.shape();
  const Shape& index = in.index.shape();
  const py::dtype wide = in.q.accumulate_dtype();
  py::tuple kept(5);
  kept[0] = make_alike(in.q, attention_name, {q[0], q[1], index[1], index[2], q[3]});
  kept[1] = py::array(wide, Shape{q[0], q[1], index[1], q[3]});
  kept[2] = py::array(wide, Shape{q[0], q[1], index[1], index[2]});
  kept[3] = py::array(wide, Shape{q[0], q[1], index[1]});
  kept[4] = py::array(wide, Shape{q[0], q[1], q[2]});
  return kept;
}

// (out, kept or None)
py::tuple cast_attention(const py::tuple& inputs, const Numbers& numbers, bool disjoint, bool keep,
                         const py::object& out) {
  const auto options = attention_options(numbers, disjoint);
  Inputs in(attention_name, inputs);
  Shape shape(4);
  sturdy_tensor inferred = {};
  inferred.shape = shape.data();
  check(sturdy_cast_attention_infer(&options, in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(), in.phi.get(),
                                    in.index.get(), in.padding.get(), in.seed.get(), &inferred));
  py::tuple results(2);
  results[0] = out.is_none() ? make_swapped(&make_alike, in.q, attention_name, shape) : out;
  results[1] = keep ? py::object(make_kept(in)) : py::none();
  Array to(attention_name, "out", results[0], Access::write);
  Kept kept(attention_name, results[1], Access::write);
  auto& arrays = kept.arrays;
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_cast_attention(nullptr, &options, in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(),
                                   in.phi.get(), in.index.get(), in.padding.get(), in.seed.get(), to.get(),
                                   arrays[0].get(), arrays[1].get(), arrays[2].get(), arrays[3].get(), arrays[4].get());
  }
  check(status);
  return results;
}

// (q, k, v, surrogates, phi)
py::tuple cast_attention_backward(const py::object& grad_out, const py::tuple& inputs, const py::object& out,
                                  const py::object& kept_by_forward, const Numbers& numbers, bool disjoint,
                                  const py::object& gradients) {
  const auto options = attention_options(numbers, disjoint);
  Array grad(backward_name, "grad_out", grad_out);
  Inputs in(backward_name, inputs);
  Array result(backward_name, "out", out);
  Kept kept(backward_name, kept_by_forward, Access::read);
  Shape shape(4);
  sturdy_tensor inferred = {};
  inferred.shape = shape.data();
  check(sturdy_cast_attention_infer(&options, in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(), in.phi.get(),
                                    in.index.get(), in.padding.get(), in.seed.get(), &inferred));
  py::tuple results(5);
  if (gradients.is_none()) {
    for (size_t i = 0; i < 3; i++) {
      results[i] = make_swapped(&make_alike, in.q, backward_name, shape);
    }
    results[3] = make_alike(in.surrogates, backward_name, in.surrogates.shape());
    results[4] = make_alike(in.phi, backward_name, in.phi.shape());
  } else {
    results = py::cast<py::tuple>(gradients);
  }
  Array to_q(backward_name, "gradients.q", results[0], Access::write);
  Array to_k(backward_name, "gradients.k", results[1], Access::write);
  Array to_v(backward_name, "gradients.v", results[2], Access::write);
  Array to_surrogates(backward_name, "gradients.surrogates", results[3], Access::write);
  Array to_phi(backward_name, "gradients.phi", results[4], Access::write);
  auto& arrays = kept.arrays;
  sturdy_status status;
  {
    const py::gil_scoped_release no_gil;
    status = sturdy_cast_attention_backward(nullptr, &options, grad.get(), in.q.get(), in.k.get(), in.v.get(),
                                            in.surrogates.get(), in.phi.get(), in.index.get(), in.padding.get(),
                                            in.seed.get(), result.get(), arrays[0].get(), arrays[1].get(),
                                            arrays[2].get(), arrays[3].get(), arrays[4].get(), to_q.get(), to_k.get(),
                                            to_v.get(), to_surrogates.get(), to_phi.get());
  }
  check(status);
  return results;
}

}  // namespace

void define_cast(py::module_& m) {
  m.def(affinity_name, &cast_affinity, py::arg("q"), py::arg("k"), py::arg("surrogates"), py::arg("phi"),
        py::arg("padding"), py::arg("tau_g"), py::arg("out"));
  m.def(cluster_name, &cast_cluster, py::arg("affinity"), py::arg("cluster_size"), py::arg("single_assignment"),
        py::arg("padding"));
  m.def(attention_name, &cast_attention, py::arg("inputs"), py::arg("numbers"), py::arg("disjoint"), py::arg("keep"),
        py::arg("out"));
  m.def(backward_name, &cast_attention_backward, py::arg("grad_out"), py::arg("inputs"), py::arg("out"),
        py::arg("kept"), py::arg("numbers"), py::arg("disjoint"), py::arg("gradients"));
}

}  // namespace sturdy::numpy_binding
