// cast_attention: argument checks, dispatch and the C entry points.
#include "cast/cast_attention.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <vector>

#include "cast/cast_checks.h"
#include "sturdy/cast.h"

namespace sturdy {
namespace {

constexpr const char* op_name = "cast_attention";
constexpr const char* backward_name = "cast_attention_backward";

using Options = sturdy_cast_attention_options;

// What a call reads besides what forward kept.
struct Inputs {
  const sturdy_tensor *q, *k, *v, *surrogates, *phi, *index, *padding, *seed;
};

// What forward keeps for backward; all are NULL or none is.
struct Kept {
  sturdy_tensor *intra, *summaries, *lse_intra, *lse_summary, *lse_mix;
};

struct Named {
  const char* name;
  const sturdy_tensor* tensor;
};

void check_options(Checker& check, const Options* options) {
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags, STURDY_CAST_ALLOW_TF32 | STURDY_CAST_DISJOINT);
}

void fill_options(Checker& check, const Options& options, CastAttentionParams& p) {
  const double root = std::sqrt(static_cast<double>(std::max<int64_t>(1, p.sizes.dim)));
  p.tau = check_temperature(check, "tau", options.tau, root);
  p.tau_q = check_temperature(check, "tau_q", options.tau_q, root);
  p.tau_k = check_temperature(check, "tau_k", options.tau_k, root);
  p.dropout = options.dropout;
  if (check.ok() && !(p.dropout >= 0 && p.dropout < 1)) {
    check.fail(STURDY_EINVAL, "dropout must be in [0, 1), got " + std::to_string(p.dropout));
  }
  p.disjoint = (options.flags & STURDY_CAST_DISJOINT) != 0;
  p.allow_tf32 = (options.flags & STURDY_CAST_ALLOW_TF32) != 0;
}

void check_seed(Checker& check, const sturdy_tensor* seed, double dropout, const sturdy_tensor* q) {
  if (!check.ok() || dropout == 0) {
    return;
  }
  check.present("seed", seed);
  if (!check.ok()) {
    return;
  }
  const sturdy_dtype& t = seed->dtype;
  if (t.code != STURDY_INT || t.bits != 64 || t.lanes != 1) {
    check.fail(STURDY_ETYPE, "seed must be int64");
  }
  check.value("seed", element_count(*seed) == 1, "have one element", element_count(*seed));
  check.same_device("seed", seed, "q", q);
}

// Checks the inputs and fills in all that is known without data.
CastAttentionParams check_arguments(Checker& check, const Options* options, const Inputs& in) {
  CastAttentionParams p = {};
  check_options(check, options);
  p.sizes = check_queries(check, in.q);
  check_tokens(check, "k", in.k, in.q);
  check_tokens(check, "v", in.v, in.q);
  check_surrogates(check, in.surrogates, in.q, p.sizes);
  check_gates(check, in.phi, in.q);
  check.present("index", in.index);
  check.rank("index", in.index, 3, "(B, C, kappa)");
  check.size("index", in.index, 0, p.sizes.batch, "sequences, as many as q");
  check.size("index", in.index, 1, p.sizes.clusters, "clusters, as many as surrogates");
  if (check.ok()) {
    check_int32(check, "index", in.index);
    check.same_device("index", in.index, "q", in.q);
  }
  check_padding(check, in.padding, p.sizes.batch, p.sizes.tokens, "q", in.q);
  if (!check.ok()) {
    return p;
  }
  p.slots = in.index->shape[2];
  p.dtype = to_dtype(in.q->dtype);
  fill_options(check, *options, p);
  check_seed(check, in.seed, p.dropout, in.q);
  return p;
}

// Tokens in the slots exist and are no padding, where that can be read here.
void check_index_values(Checker& check, const Inputs& in, const CastAttentionParams& p) {
#if !defined(STURDY_SIMT)
  if (!check.ok() || in.index->device.device_type != STURDY_CPU) {
    return;
  }
  for (int64_t b = 0; b < p.sizes.batch; b++) {
    const int32_t* slots = p.index + b * p.sizes.clusters * p.slots;
    int32_t least = 0;
    int32_t most = -1;
    for (int64_t slot = 0; slot < p.sizes.clusters * p.slots; slot++) {
      least = std::min(least, slots[slot]);
      most = std::max(most, slots[slot]);
    }
    if (least < -1 || most >= p.sizes.tokens) {
      check.fail(STURDY_EINVAL, "index must hold tokens 0 to N - 1 = " + std::to_string(p.sizes.tokens - 1) +
                                    ", or -1 for an empty slot, got " + std::to_string(least < -1 ? least : most) +
                                    " for sequence " + std::to_string(b));
      return;
    }
    for (int64_t slot = 0; p.padding.data != nullptr && slot < p.sizes.clusters * p.slots; slot++) {
      const int64_t token = slots[slot];
      if (token >= 0 && p.padding.data[b * p.padding.stride[0] + token * p.padding.stride[1]] != 0) {
        check.fail(STURDY_EINVAL, "index must not hold padding, got token " + std::to_string(token) + " for sequence " +
                                      std::to_string(b));
        return;
      }
    }
  }
#else
  (void)check, (void)in, (void)p;
#endif
}

// Checks that the inputs' data are there and takes their addresses.
void fill_inputs(Checker& check, const Inputs& in, CastAttentionParams& p) {
  const Named inputs[] = {{"q", in.q},
                          {"k", in.k},
                          {"v", in.v},
                          {"surrogates", in.surrogates},
                          {"phi", in.phi},
                          {"index", in.index},
                          {"padding", in.padding}};
  for (const Named& input : inputs) {
    if (input.tensor != nullptr) {
      check.data(input.name, input.tensor);
    }
  }
  if (check.ok() && !is_contiguous(*in.index)) {
    check.fail(STURDY_EINVAL, "index must be contiguous");
  }
  if (check.ok() && p.dropout != 0) {
    check.data("seed", in.seed);
  }
  if (!check.ok()) {
    return;
  }
  p.q = token_view(in.q);
  p.k = token_view(in.k);
  p.v = token_view(in.v);
  p.surrogates = surrogate_view(in.surrogates);
  p.phi = gate_view(in.phi);
  p.index = static_cast<const int32_t*>(data_of(*in.index));
  p.padding = padding_view(in.padding);
  p.seed = p.dropout == 0 ? nullptr : static_cast<const int64_t*>(data_of(*in.seed));
  check_index_values(check, in, p);
}

// What forward keeps: shape, dtype and place.
void check_kept(Checker& check, const Kept& kept, const CastAttentionParams& p, const sturdy_tensor* q) {
  const int64_t batch = p.sizes.batch;
  const int64_t heads = p.sizes.heads;
  const int64_t clusters = p.sizes.clusters;
  const auto one = [&](const char* name, const sturdy_tensor* tensor, std::initializer_list<int64_t> shape) {
    check.present(name, tensor);
    check.shape(name, tensor, shape);
    if (tensor == kept.intra) {
      check.same_dtype(name, tensor, "q", q);
    } else if (check.ok()) {
      check.parameter_dtype(name, tensor);
      if (check.ok() && (tensor->dtype.bits == 64) != (p.dtype == DType::f64)) {
        check.fail(STURDY_ETYPE, std::string(name) + " must be float64 for float64 q, else float32");
      }
    }
    check.same_device(name, tensor, "q", q);
    check_compact(check, name, tensor);
  };
  one("intra", kept.intra, {batch, heads, clusters, p.slots, p.sizes.dim});
  one("summaries", kept.summaries, {batch, heads, clusters, p.sizes.dim});
  one("lse_intra", kept.lse_intra, {batch, heads, clusters, p.slots});
  one("lse_summary", kept.lse_summary, {batch, heads, clusters});
  one("lse_mix", kept.lse_mix, {batch, heads, p.sizes.tokens});
}

void fill_kept(const Kept& kept, CastAttentionParams& p) {
  p.intra = data_of(*kept.intra);
  p.summaries = data_of(*kept.summaries);
  p.lse_intra = data_of(*kept.lse_intra);
  p.lse_summary = data_of(*kept.lse_summary);
  p.lse_mix = data_of(*kept.lse_mix);
}

// Outputs share memory neither with the inputs nor with each other.
void check_separate(Checker& check, const std::vector<Named>& outputs, const std::vector<Named>& inputs) {
  for (size_t i = 0; i < outputs.size(); i++) {
    for (const Named& input : inputs) {
      if (check.ok() && outputs[i].tensor != nullptr && input.tensor != nullptr) {
        check.separate(outputs[i].name, outputs[i].tensor, input.name, input.tensor);
      }
    }
    for (size_t other = i + 1; other < outputs.size(); other++) {
      if (check.ok() && outputs[i].tensor != nullptr && outputs[other].tensor != nullptr) {
        check.separate(outputs[i].name, outputs[i].tensor, outputs[other].name, outputs[other].tensor);
      }
    }
  }
}

std::vector<Named> named(const Inputs& in) {
  return {{"q", in.q},
          {"k", in.k},
          {"v", in.v},
          {"surrogates", in.surrogates},
          {"phi", in.phi},
          {"index", in.index},
          {"padding", in.padding},
          {"seed", in.seed}};
}

std::vector<Named> named(const Kept& kept) {
  return {{"intra", kept.intra},
          {"summaries", kept.summaries},
          {"lse_intra", kept.lse_intra},
          {"lse_summary", kept.lse_summary},
          {"lse_mix", kept.lse_mix}};
}

sturdy_status forward(const sturdy_context* context, const Options* options, const Inputs& in, sturdy_tensor* out,
                      const Kept& kept) {
  Checker check(op_name);
  check.context(context);
  CastAttentionParams p = check_arguments(check, options, in);
  fill_inputs(check, in, p);
  check_tokens(check, "out", out, in.q);
  if (check.ok()) {
    check_written_anywhere(check, "out", out);
  }
  const bool keep = kept.intra != nullptr || kept.summaries != nullptr || kept.lse_intra != nullptr ||
                    kept.lse_summary != nullptr || kept.lse_mix != nullptr;
  if (keep) {
    check_kept(check, kept, p, in.q);
  }
  std::vector<Named> outputs = named(kept);
  outputs.push_back({"out", out});
  check_separate(check, outputs, named(in));
  const bool on_cuda = check.ok() && runs_on_cuda(*in.q);
  if (on_cuda) {
    check.workspace(context, cuda::cast_attention_workspace(p, keep));
  }
  if (!check.ok()) {
    return check.result();
  }
  p.out = token_view(out);
  if (keep) {
    fill_kept(kept, p);
  }
  return report(op_name, on_cuda ? cuda::cast_attention(p, workspace_of(context), stream_of(context))
                                 : cpu::cast_attention(p, Threads(context)));
}

struct Gradients {
  sturdy_tensor *q, *k, *v, *surrogates, *phi;
};

sturdy_status backward(const sturdy_context* context, const Options* options, const sturdy_tensor* grad_out,
                       const Inputs& in, const sturdy_tensor* out, const Kept& kept, const Gradients& grads) {
  Checker check(backward_name);
  check.context(context);
  CastAttentionBackwardParams p = {};
  p.forward = check_arguments(check, options, in);
  fill_inputs(check, in, p.forward);
  check_tokens(check, "grad_out", grad_out, in.q);
  check_tokens(check, "out", out, in.q);
  if (check.ok()) {
    check.data("grad_out", grad_out);
    check.data("out", out);
  }
  check_kept(check, kept, p.forward, in.q);
  const Named token_gradients[] = {{"grad_q", grads.q}, {"grad_k", grads.k}, {"grad_v", grads.v}};
  for (const Named& gradient : token_gradients) {
    check_tokens(check, gradient.name, gradient.tensor, in.q);
    if (check.ok()) {
      check_written_anywhere(check, gradient.name, gradient.tensor);
    }
  }
  const Named parameter_gradients[] = {{"grad_surrogates", grads.surrogates}, {"grad_phi", grads.phi}};
  for (const Named& gradient : parameter_gradients) {
    const sturdy_tensor* like = gradient.tensor == grads.phi ? in.phi : in.surrogates;
    const char* like_name = gradient.tensor == grads.phi ? "phi" : "surrogates";
    check.present(gradient.name, gradient.tensor);
    if (check.ok() && gradient.tensor == grads.phi) {
      check.shape(gradient.name, gradient.tensor, {like->shape[0], like->shape[1]});
    } else if (check.ok()) {
      check.shape(gradient.name, gradient.tensor, {like->shape[0], like->shape[1], like->shape[2]});
    }
    check.same_dtype(gradient.name, gradient.tensor, like_name, like);
    check.same_device(gradient.name, gradient.tensor, like_name, like);
    if (check.ok()) {
      check_compact(check, gradient.name, gradient.tensor);
    }
  }
  std::vector<Named> inputs = named(in);
  for (const Named& one : named(kept)) {
    inputs.push_back(one);
  }
  inputs.push_back({"grad_out", grad_out});
  inputs.push_back({"out", out});
  check_separate(check,
                 {{"grad_q", grads.q},
                  {"grad_k", grads.k},
                  {"grad_v", grads.v},
                  {"grad_surrogates", grads.surrogates},
                  {"grad_phi", grads.phi}},
                 inputs);
  const bool on_cuda = check.ok() && runs_on_cuda(*in.q);
  if (on_cuda) {
    check.workspace(context, cuda::cast_attention_backward_workspace(p.forward));
  }
  if (!check.ok()) {
    return check.result();
  }
  fill_kept(kept, p.forward);
  p.forward.out = token_view(out);
  p.grad_out = token_view(grad_out);
  p.grad_q = token_view(grads.q);
  p.grad_k = token_view(grads.k);
  p.grad_v = token_view(grads.v);
  p.grad_surrogates = data_of(*grads.surrogates);
  p.grad_phi = data_of(*grads.phi);
  return report(backward_name, on_cuda ? cuda::cast_attention_backward(p, workspace_of(context), stream_of(context))
                                       : cpu::cast_attention_backward(p, Threads(context)));
}

// What sizes of scratch depend on; false where the call itself will complain.
bool measure(const Options* options, const sturdy_tensor* q, const sturdy_tensor* surrogates,
             const sturdy_tensor* index, CastAttentionParams& p) {
  Checker check(op_name);
  check_options(check, options);
  p.sizes = check_queries(check, q);
  check_surrogates(check, surrogates, q, p.sizes);
  check.present("index", index);
  check.rank("index", index, 3, "(B, C, kappa)");
  if (!check.ok() || !runs_on_cuda(*q)) {
    return false;
  }
  p.slots = index->shape[2];
  p.dtype = to_dtype(q->dtype);
  fill_options(check, *options, p);
  return check.ok();
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_cast_attention_infer(const sturdy_cast_attention_options* options, const sturdy_tensor* q,
                                          const sturdy_tensor* k, const sturdy_tensor* v,
                                          const sturdy_tensor* surrogates, const sturdy_tensor* phi,
                                          const sturdy_tensor* index, const sturdy_tensor* padding,
                                          const sturdy_tensor* seed, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name, [&] {
    sturdy::Checker check(sturdy::op_name);
    sturdy::check_arguments(check, options, {q, k, v, surrogates, phi, index, padding, seed});
    if (check.ok() && (out == nullptr || out->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "out.shape must not be NULL");
    }
    if (check.ok()) {
      out->dtype = q->dtype;
      out->device = q->device;
      out->ndim = 4;
      std::copy(q->shape, q->shape + 4, out->shape);
    }
    return check.result();
  });
}

size_t sturdy_cast_attention_workspace(const sturdy_cast_attention_options* options, const sturdy_tensor* q,
                                       const sturdy_tensor* surrogates, const sturdy_tensor* index, int32_t keep) {
  try {
    sturdy::CastAttentionParams p = {};
    return sturdy::measure(options, q, surrogates, index, p) ? sturdy::cuda::cast_attention_workspace(p, keep != 0) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status sturdy_cast_attention(const sturdy_context* context, const sturdy_cast_attention_options* options,
                                    const sturdy_tensor* q, const sturdy_tensor* k, const sturdy_tensor* v,
                                    const sturdy_tensor* surrogates, const sturdy_tensor* phi,
                                    const sturdy_tensor* index, const sturdy_tensor* padding, const sturdy_tensor* seed,
                                    sturdy_tensor* out, sturdy_tensor* intra, sturdy_tensor* summaries,
                                    sturdy_tensor* lse_intra, sturdy_tensor* lse_summary, sturdy_tensor* lse_mix) {
  return sturdy::guarded(sturdy::op_name, [&] {
    return sturdy::forward(context, options, {q, k, v, surrogates, phi, index, padding, seed}, out,
                           {intra, summaries, lse_intra, lse_summary, lse_mix});
  });
}

size_t sturdy_cast_attention_backward_workspace(const sturdy_cast_attention_options* options, const sturdy_tensor* q,
                                                const sturdy_tensor* surrogates, const sturdy_tensor* index) {
  try {
    sturdy::CastAttentionParams p = {};
    return sturdy::measure(options, q, surrogates, index, p) ? sturdy::cuda::cast_attention_backward_workspace(p) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status sturdy_cast_attention_backward(
    const sturdy_context* context, const sturdy_cast_attention_options* options, const sturdy_tensor* grad_out,
    const sturdy_tensor* q, const sturdy_tensor* k, const sturdy_tensor* v, const sturdy_tensor* surrogates,
    const sturdy_tensor* phi, const sturdy_tensor* index, const sturdy_tensor* padding, const sturdy_tensor* seed,
    const sturdy_tensor* out, const sturdy_tensor* intra, const sturdy_tensor* summaries,
    const sturdy_tensor* lse_intra, const sturdy_tensor* lse_summary, const sturdy_tensor* lse_mix,
    sturdy_tensor* grad_q, sturdy_tensor* grad_k, sturdy_tensor* grad_v, sturdy_tensor* grad_surrogates,
    sturdy_tensor* grad_phi) {
  return sturdy::guarded(sturdy::backward_name, [&] {
    // The kept tensors are only read: the struct that forward writes through is used for both.
    const auto readable = [](const sturdy_tensor* tensor) { return const_cast<sturdy_tensor*>(tensor); };
    return sturdy::backward(
        context, options, grad_out, {q, k, v, surrogates, phi, index, padding, seed}, out,
        {readable(intra), readable(summaries), readable(lse_intra), readable(lse_summary), readable(lse_mix)},
        {grad_q, grad_k, grad_v, grad_surrogates, grad_phi});
  });
}

}  // extern "C"
