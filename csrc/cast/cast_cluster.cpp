// cast_cluster: argument checks, dispatch and the C entry points.
#include "cast/cast_cluster.h"

#include <algorithm>
#include <string>

#include "cast/cast_checks.h"
#include "sturdy/cast.h"

namespace sturdy {
namespace {

constexpr const char* op_name = "cast_cluster";

using Options = sturdy_cast_cluster_options;

// Checks all but the results and fills in all that is known without data.
CastClusterParams check_arguments(Checker& check, const Options* options, const sturdy_tensor* affinity,
                                  const sturdy_tensor* padding) {
  CastClusterParams p = {};
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags);
  check.present("affinity", affinity);
  check.rank("affinity", affinity, 3, "(B, N, C)");
  if (!check.ok()) {
    return p;
  }
  const sturdy_dtype& t = affinity->dtype;
  if (t.code != STURDY_FLOAT || t.bits != 32 || t.lanes != 1) {
    check.fail(STURDY_ETYPE, "affinity must be float32, in which ties and order are decided");
  }
  p.batch = affinity->shape[0];
  p.tokens = affinity->shape[1];
  p.clusters = affinity->shape[2];
  check.value("the number of clusters C", p.clusters >= 1, "be at least 1", p.clusters);
  check.value("method", options->method == STURDY_CAST_TOP_K || options->method == STURDY_CAST_SA_TOP_K,
              "be STURDY_CAST_TOP_K or STURDY_CAST_SA_TOP_K", options->method);
  check.value("cluster_size", options->cluster_size >= 0, "be at least 1, or 0 for its default", options->cluster_size);
  if (check.ok() && p.tokens > kMostTokens) {
    check.fail(STURDY_EUNSUPPORTED, "affinity must have at most 2^31 - 1 tokens, got " + std::to_string(p.tokens));
  }
  check_padding(check, padding, p.batch, p.tokens, "affinity", affinity);
  if (!check.ok()) {
    return p;
  }
  p.single_assignment = options->method == STURDY_CAST_SA_TOP_K;
  const int64_t balanced = (p.tokens + p.clusters - 1) / p.clusters;
  const int64_t size = options->cluster_size == 0 ? balanced : options->cluster_size;
  p.slots = std::min(size, p.tokens);
  p.capacity = p.single_assignment && options->cluster_size != 0 ? p.slots : 0;
  if (p.single_assignment && p.slots < balanced) {
    check.fail(STURDY_EINVAL, "with sa_topk every token needs a slot: capacity C * cluster_size = " +
                                  std::to_string(p.clusters) + " * " + std::to_string(size) + " = " +
                                  std::to_string(p.clusters * size) + " < N = " + std::to_string(p.tokens));
  }
  return p;
}

sturdy_status cluster(const sturdy_context* context, const Options* options, const sturdy_tensor* affinity,
                      const sturdy_tensor* padding, sturdy_tensor* index, sturdy_tensor* counts,
                      sturdy_tensor* assignment) {
  Checker check(op_name);
  check.context(context);
  CastClusterParams p = check_arguments(check, options, affinity, padding);
  check.present("index", index);
  check.present("counts", counts);
  if (check.ok()) {
    check.shape("index", index, {p.batch, p.clusters, p.slots});
    check.shape("counts", counts, {p.batch, p.clusters});
    if (p.single_assignment) {
      check.present("assignment", assignment);
    } else if (assignment != nullptr) {
      check.fail(STURDY_EINVAL, "assignment must be NULL with STURDY_CAST_TOP_K, where tokens may be in many clusters");
    }
  }
  if (check.ok() && assignment != nullptr) {
    check.shape("assignment", assignment, {p.batch, p.tokens});
  }
  const struct {
    const char* name;
    sturdy_tensor* tensor;
  } results[] = {{"index", index}, {"counts", counts}, {"assignment", assignment}};
  for (const auto& result : results) {
    if (result.tensor == nullptr || !check.ok()) {
      continue;
    }
    check_int32(check, result.name, result.tensor);
    check.same_device(result.name, result.tensor, "affinity", affinity);
    check_compact(check, result.name, result.tensor);
    check.separate(result.name, result.tensor, "affinity", affinity);
    if (padding != nullptr) {
      check.separate(result.name, result.tensor, "padding", padding);
    }
    for (const auto& other : results) {
      if (other.tensor != nullptr && other.tensor != result.tensor) {
        check.separate(result.name, result.tensor, other.name, other.tensor);
      }
    }
  }
  check.data("affinity", affinity);
  if (padding != nullptr) {
    check.data("padding", padding);
  }
  const bool on_cuda = check.ok() && runs_on_cuda(*affinity);
  if (on_cuda) {
    check.workspace(context, cuda::cast_cluster_workspace(p));
  }
  if (!check.ok()) {
    return check.result();
  }
  if (p.batch == 0) {
    return STURDY_OK;
  }
  p.affinity = static_cast<const float*>(data_of(*affinity));
  for (int dim = 0; dim < 3; dim++) {
    p.affinity_stride[dim] = stride_of(*affinity, dim);
  }
  p.padding = padding_view(padding);
  p.index = static_cast<int32_t*>(data_of(*index));
  p.counts = static_cast<int32_t*>(data_of(*counts));
  p.assignment = assignment == nullptr ? nullptr : static_cast<int32_t*>(data_of(*assignment));
  return report(op_name, on_cuda ? cuda::cast_cluster(p, workspace_of(context), stream_of(context))
                                 : cpu::cast_cluster(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_cast_cluster_infer(const sturdy_cast_cluster_options* options, const sturdy_tensor* affinity,
                                        const sturdy_tensor* padding, sturdy_tensor* index) {
  return sturdy::guarded(sturdy::op_name, [&] {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::CastClusterParams p = sturdy::check_arguments(check, options, affinity, padding);
    if (check.ok() && (index == nullptr || index->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "index.shape must not be NULL");
    }
    if (check.ok()) {
      index->dtype = {STURDY_INT, 32, 1};
      index->device = affinity->device;
      index->ndim = 3;
      index->shape[0] = p.batch;
      index->shape[1] = p.clusters;
      index->shape[2] = p.slots;
    }
    return check.result();
  });
}

size_t sturdy_cast_cluster_workspace(const sturdy_cast_cluster_options* options, const sturdy_tensor* affinity,
                                     const sturdy_tensor* padding) {
  try {
    sturdy::Checker check(sturdy::op_name);
    const sturdy::CastClusterParams p = sturdy::check_arguments(check, options, affinity, padding);
    return check.ok() && sturdy::runs_on_cuda(*affinity) ? sturdy::cuda::cast_cluster_workspace(p) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status sturdy_cast_cluster(const sturdy_context* context, const sturdy_cast_cluster_options* options,
                                  const sturdy_tensor* affinity, const sturdy_tensor* padding, sturdy_tensor* index,
                                  sturdy_tensor* counts, sturdy_tensor* assignment) {
  return sturdy::guarded(
      sturdy::op_name, [&] { return sturdy::cluster(context, options, affinity, padding, index, counts, assignment); });
}

}  // extern "C"
