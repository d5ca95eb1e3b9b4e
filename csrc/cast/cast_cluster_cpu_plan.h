// How the CPU kernels of cast_cluster lay out one call, and the table of kernels that one instruction set offers. Plain
// data and function pointers only: this header is seen by sources compiled for different instruction sets.
//
// SA Top-K takes pairs of a token and a cluster in one order, in which no two are equal, so tokens rank clusters and
// clusters rank tokens by that order and there is one stable matching, which is what going through all pairs finds.
// Deferred acceptance finds it too, whichever token asks next: a token asks the best cluster that would have it, and
// a cluster that is full lets go of its worst token. Here all tokens first ask at once, and clusters that are asked by
// too many select. The few that are left then ask one by one.
#pragma once

#include <cstdint>

#include "cast/cast_cluster.h"
#include "common/cpu_features.h"

namespace sturdy {
namespace cpu {

// Affinities are compared as these words: larger ones for larger values, 0 and -0 alike.
constexpr int32_t kPaddingKey = -0x7fffffff - 1;  // below all others
constexpr int32_t kNanKey = -0x7fffffff;
constexpr int32_t kNoKey = 0x7fffffff;  // above all others

// A token that has no cluster yet; padding has -1.
constexpr int32_t kFreeToken = -2;

struct CastClusterPlan {
  CastClusterParams params;
  int64_t token_blocks;  // of one sequence, of kTokenBlock tokens

  // SA Top-K. By sequence:
  int64_t* valid;   // tokens that are not padding
  int32_t* keys;    // (tokens) affinity to the cluster of `assignment`
  int32_t* sorted;  // (tokens) tokens by the cluster that they asked first
  int64_t* starts;  // (clusters + 1) where in `sorted` those of a cluster begin
  // By sequence and cluster. A cluster has `params.counts` tokens, which are `members`; once it is full it takes only
  // what is before (least key, least token), its last one:
  int32_t* least_keys;  // (padded clusters), kPaddingKey while there is room, kNoKey in clusters that there are not
  int32_t* least_tokens;
  int64_t padded_clusters;  // a multiple of the lanes

  int64_t capacity(int64_t sequence, int64_t cluster) const {
    if (params.capacity > 0) {
      return params.capacity < params.slots ? params.capacity : params.slots;
    }
    return valid[sequence] / params.clusters + (cluster < valid[sequence] % params.clusters ? 1 : 0);
  }
  // The tokens of a cluster in any order, until it is full.
  int32_t* members(int64_t sequence, int64_t cluster) const {
    return params.index + (sequence * params.clusters + cluster) * params.slots;
  }
};

constexpr int64_t kTokenBlock = 512;

struct CastClusterKernels {
  int64_t lanes;
  void (*top_k)(const CastClusterPlan&, int64_t begin, int64_t end);   // (sequences, clusters)
  void (*ask)(const CastClusterPlan&, int64_t begin, int64_t end);     // (sequences, blocks of tokens)
  void (*choose)(const CastClusterPlan&, int64_t begin, int64_t end);  // (sequences, clusters)
  void (*settle)(const CastClusterPlan&, int64_t begin, int64_t end);  // sequences
};

void sort_tokens(int32_t* tokens, int64_t count);

}  // namespace cpu

namespace portable {
const cpu::CastClusterKernels& cast_cluster_kernels();
}
namespace avx2 {
const cpu::CastClusterKernels& cast_cluster_kernels();
}
namespace avx512 {
const cpu::CastClusterKernels& cast_cluster_kernels();
}

}  // namespace sturdy
