// cast_affinity: argument checks, dispatch and the C entry points.
#include "cast/cast_affinity.h"

#include <algorithm>
#include <cmath>

#include "cast/cast_checks.h"
#include "sturdy/cast.h"

namespace sturdy {
namespace {

constexpr const char* op_name = "cast_affinity";

using Options = sturdy_cast_affinity_options;

// Checks all but the result and fills in all that is known without data.
CastAffinityParams check_arguments(Checker& check, const Options* options, const sturdy_tensor* q,
                                   const sturdy_tensor* k, const sturdy_tensor* surrogates, const sturdy_tensor* phi,
                                   const sturdy_tensor* padding) {
  CastAffinityParams p = {};
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags, STURDY_CAST_ALLOW_TF32);
  p.sizes = check_queries(check, q);
  check_tokens(check, "k", k, q);
  check_surrogates(check, surrogates, q, p.sizes);
  check_gates(check, phi, q);
  check_padding(check, padding, p.sizes.batch, p.sizes.tokens, "q", q);
  if (!check.ok()) {
    return p;
  }
  p.tau_g = check_temperature(check, "tau_g", options->tau_g,
                              std::sqrt(static_cast<double>(std::max<int64_t>(1, p.sizes.heads * p.sizes.dim))));
  p.dtype = to_dtype(q->dtype);
  p.allow_tf32 = (options->flags & STURDY_CAST_ALLOW_TF32) != 0;
  constexpr int64_t most = int64_t{1} << 58;
  if (check.ok() && p.sizes.batch > 0 && p.sizes.tokens > 0 &&
      p.sizes.clusters > most / p.sizes.batch / p.sizes.tokens) {
    check.fail(STURDY_EUNSUPPORTED, "the affinity would have more elements than can be addressed");
  }
  return p;
}

sturdy_status affinity(const sturdy_context* context, const Options* options, const sturdy_tensor* q,
                       const sturdy_tensor* k, const sturdy_tensor* surrogates, const sturdy_tensor* phi,
                       const sturdy_tensor* padding, sturdy_tensor* out) {
  Checker check(op_name);
  check.context(context);
  CastAffinityParams p = check_arguments(check, options, q, k, surrogates, phi, padding);
  check.present("affinity", out);
  if (check.ok()) {
    check.shape("affinity", out, {p.sizes.batch, p.sizes.tokens, p.sizes.clusters});
    if (check.ok() && !(out->dtype.code == STURDY_FLOAT && out->dtype.bits == 32 && out->dtype.lanes == 1)) {
      check.fail(STURDY_ETYPE, "affinity must be float32");
    }
  }
  check.same_device("affinity", out, "q", q);
  check_written_anywhere(check, "affinity", out);
  const struct {
    const char* name;
    const sturdy_tensor* tensor;
  } inputs[] = {{"q", q}, {"k", k}, {"surrogates", surrogates}, {"phi", phi}, {"padding", padding}};
  for (const auto& input : inputs) {
    if (input.tensor != nullptr) {
      check.data(input.name, input.tensor);
      check.separate("affinity", out, input.name, input.tensor);
    }
  }
  const bool on_cuda = check.ok() && runs_on_cuda(*q);
  if (on_cuda) {
    check.workspace(context, cuda::cast_affinity_workspace(p));
  }
  if (!check.ok()) {
    return check.result();
  }
  if (element_count(*out) == 0) {
    return STURDY_OK;
  }
  p.q = token_view(q);
  p.k = token_view(k);
  p.surrogates = surrogate_view(surrogates);
  p.phi = gate_view(phi);
  p.padding = padding_view(padding);
  p.affinity = static_cast<float*>(data_of(*out));
  for (int dim = 0; dim < 3; dim++) {
    p.affinity_stride[dim] = stride_of(*out, dim);
  }
  return report(op_name, on_cuda ? cuda::cast_affinity(p, workspace_of(context), stream_of(context))
                                 : cpu::cast_affinity(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_cast_affinity_infer(const sturdy_cast_affinity_options* options, const sturdy_tensor* q,
                                         const sturdy_tensor* k, const sturdy_tensor* surrogates,
                                         const sturdy_tensor* phi, const sturdy_tensor* padding, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name, [&] {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::CastAffinityParams p = sturdy::check_arguments(check, options, q, k, surrogates, phi, padding);
    if (check.ok() && (out == nullptr || out->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "affinity.shape must not be NULL");
    }
    if (check.ok()) {
      out->dtype = {STURDY_FLOAT, 32, 1};
      out->device = q->device;
      out->ndim = 3;
      out->shape[0] = p.sizes.batch;
      out->shape[1] = p.sizes.tokens;
      out->shape[2] = p.sizes.clusters;
    }
    return check.result();
  });
}

size_t sturdy_cast_affinity_workspace(const sturdy_cast_affinity_options* options, const sturdy_tensor* q,
                                      const sturdy_tensor* k, const sturdy_tensor* surrogates, const sturdy_tensor* phi,
                                      const sturdy_tensor* padding) {
  try {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::CastAffinityParams p = sturdy::check_arguments(check, options, q, k, surrogates, phi, padding);
    return check.ok() && sturdy::runs_on_cuda(*q) ? sturdy::cuda::cast_affinity_workspace(p) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status sturdy_cast_affinity(const sturdy_context* context, const sturdy_cast_affinity_options* options,
                                   const sturdy_tensor* q, const sturdy_tensor* k, const sturdy_tensor* surrogates,
                                   const sturdy_tensor* phi, const sturdy_tensor* padding, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::op_name,
                         [&] { return sturdy::affinity(context, options, q, k, surrogates, phi, padding, out); });
}

}  // extern "C"
