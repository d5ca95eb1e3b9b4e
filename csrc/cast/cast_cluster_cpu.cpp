// cast_cluster on the CPU: lays out one call and hands its parts to the kernels of the machine's instruction set.
#include <algorithm>
#include <new>

#include "cast/cast_cluster.h"
#include "cast/cast_cluster_cpu_plan.h"
#include "common/scratch.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kLeastAffinities = int64_t{1} << 15;  // that are worth a task

int64_t grain_of(int64_t affinities) {
  return std::max<int64_t>(kLeastAffinities / std::max<int64_t>(affinities, 1), 1);
}

void count_valid(const CastClusterPlan& plan, int64_t sequence) {
  const PaddingView& padding = plan.params.padding;
  int64_t valid = plan.params.tokens;
  if (padding.data != nullptr) {
    for (int64_t i = 0; i < plan.params.tokens; i++) {
      valid -= padding.data[sequence * padding.stride[0] + i * padding.stride[1]] != 0 ? 1 : 0;
    }
  }
  plan.valid[sequence] = valid;
}

// Tokens by the cluster that they ask first, those of a cluster in their order.
void sort_by_cluster(const CastClusterPlan& plan, int64_t sequence) {
  const CastClusterParams& params = plan.params;
  const int32_t* assignment = params.assignment + sequence * params.tokens;
  int64_t* starts = plan.starts + sequence * (params.clusters + 1);
  int32_t* sorted = plan.sorted + sequence * params.tokens;
  std::fill(starts, starts + params.clusters + 1, int64_t{0});
  for (int64_t i = 0; i < params.tokens; i++) {
    if (assignment[i] >= 0) {
      starts[assignment[i] + 1]++;
    }
  }
  for (int64_t c = 0; c < params.clusters; c++) {
    starts[c + 1] += starts[c];
  }
  for (int64_t i = 0; i < params.tokens; i++) {
    if (assignment[i] >= 0) {
      sorted[starts[assignment[i]]++] = static_cast<int32_t>(i);
    }
  }
  // Each has moved on to the end of its cluster, which is the beginning of the next.
  for (int64_t c = params.clusters; c > 0; c--) {
    starts[c] = starts[c - 1];
  }
  starts[0] = 0;
}

// Tokens ascend within a cluster; empty slots come last.
void write_index(const CastClusterParams& params, int64_t sequence) {
  int32_t* assignment = params.assignment + sequence * params.tokens;
  int32_t* counts = params.counts + sequence * params.clusters;
  int32_t* index = params.index + sequence * params.clusters * params.slots;
  std::fill(counts, counts + params.clusters, 0);
  for (int64_t i = 0; i < params.tokens; i++) {
    const int32_t c = assignment[i];
    if (c >= 0) {
      index[c * params.slots + counts[c]++] = static_cast<int32_t>(i);
    }
  }
  for (int64_t c = 0; c < params.clusters; c++) {
    std::fill(index + c * params.slots + counts[c], index + (c + 1) * params.slots, -1);
  }
}

Status assign_each(CastClusterPlan& plan, const CastClusterKernels& kernels, const Threads& threads) {
  const CastClusterParams& params = plan.params;
  plan.padded_clusters = (params.clusters + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  const auto place = [&](void* block) {
    Arena arena(block);
    plan.valid = arena.take<int64_t>(params.batch);
    plan.keys = arena.take<int32_t>(params.batch * params.tokens);
    plan.sorted = arena.take<int32_t>(params.batch * params.tokens);
    plan.starts = arena.take<int64_t>(params.batch * (params.clusters + 1));
    plan.least_keys = arena.take<int32_t>(params.batch * plan.padded_clusters);
    plan.least_tokens = arena.take<int32_t>(params.batch * plan.padded_clusters);
    return arena.used();
  };
  place(host_scratch(ScratchSlot::call, place(nullptr)));
  const int64_t block_grain = grain_of(kTokenBlock * params.clusters);
  Status status = threads(params.batch * plan.token_blocks, block_grain,
                          [&](int64_t begin, int64_t end) { kernels.ask(plan, begin, end); });
  if (status == Status::ok) {
    status = threads(params.batch, grain_of(params.tokens * 8), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++) {
        count_valid(plan, b);
        sort_by_cluster(plan, b);
      }
    });
  }
  if (status == Status::ok) {
    const int64_t grain = grain_of(params.tokens * 8 / params.clusters);
    status = threads(params.batch * params.clusters, grain, [&](int64_t begin, int64_t end) {
      kernels.choose(plan, begin, end);
      trim_host_scratch(ScratchSlot::task);
    });
  }
  if (status == Status::ok) {
    status = threads(params.batch, grain_of(params.tokens * 8), [&](int64_t begin, int64_t end) {
      kernels.settle(plan, begin, end);
      trim_host_scratch(ScratchSlot::task);
      for (int64_t b = begin; b < end; b++) {
        write_index(params, b);
      }
    });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

void sort_tokens(int32_t* tokens, int64_t count) { std::sort(tokens, tokens + count); }

Status cast_cluster(const CastClusterParams& params, const Threads& threads) {
  const CastClusterKernels& kernels = STURDY_ON_CPU_ISA(cast_cluster_kernels());
  CastClusterPlan plan{};
  plan.params = params;
  plan.token_blocks = (params.tokens + kTokenBlock - 1) / kTokenBlock;
  try {
    if (params.single_assignment) {
      return assign_each(plan, kernels, threads);
    }
    return threads(params.batch * params.clusters, grain_of(params.tokens), [&](int64_t begin, int64_t end) {
      kernels.top_k(plan, begin, end);
      trim_host_scratch(ScratchSlot::task);
    });
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

}  // namespace cpu
}  // namespace sturdy
