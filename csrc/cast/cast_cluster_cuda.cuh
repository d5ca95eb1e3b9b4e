// What the kernels of cast_cluster share: keys of affinities, and writing the tokens of a cluster in their order.
// Nothing here has run on a GPU yet.
#pragma once

#include <cstdint>

#include "cast/cast_cluster.h"
#include "common/cuda.cuh"

namespace sturdy::cuda::cast_clusters {

constexpr uint32_t kPaddingKey = 0;  // below all others
constexpr uint32_t kNanKey = 1;      // below all numbers

// Affinities are compared as these words: larger ones for larger values, 0 and -0 alike.
STURDY_DEVICE uint32_t order_key(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return kNanKey;
  }
  if (magnitude == 0) {
    return 0x80000000u;
  }
  return bits == magnitude ? bits | 0x80000000u : ~bits;
}

STURDY_DEVICE bool is_padding(const PaddingView& padding, int64_t sequence, int64_t token) {
  return padding.data != nullptr && padding.data[sequence * padding.stride[0] + token * padding.stride[1]] != 0;
}

// The sum of the values of all lanes before this one.
STURDY_DEVICE int warp_sum_before(int value) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  int sum = value;
#pragma unroll
  for (int step = 1; step < warp_size; step *= 2) {
    const int other = __shfl_up_sync(full_warp, sum, step);
    sum += lane >= step ? other : 0;
  }
  return sum - value;
}

// Of which kind a token is for a cluster: it takes all of the first kind, and those of the second in their order while
// there is room.
enum Kind { kNotTaken = 0, kTaken = 1, kTie = 2 };

// Writes the tokens that kind(token) takes, with so many ties, in their order; empty slots follow. All threads of the
// block call it; `counts` is shared memory for two values a warp. Returns how many were taken.
template <typename KindOf>
STURDY_DEVICE int write_tokens(int tokens, int ties, int64_t slots, int32_t* index, int* counts, const KindOf& kind) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int warps = static_cast<int>(blockDim.x) / warp_size;
  const int groups = ceil_div(tokens, warp_size);
  const int share = ceil_div(groups, warps);  // of the groups of 32 tokens, for each warp
  const int begin = min(warp * share, groups);
  const int end = min(begin + share, groups);
  int taken = 0;
  int tied = 0;
  for (int group = begin; group < end; group++) {
    const int token = group * warp_size + lane;
    const int of = token < tokens ? kind(token) : kNotTaken;
    taken += of == kTaken ? 1 : 0;
    tied += of == kTie ? 1 : 0;
  }
  taken = warp_sum(taken);
  tied = warp_sum(tied);
  if (lane == 0) {
    counts[2 * warp] = taken;
    counts[2 * warp + 1] = tied;
  }
  __syncthreads();
  int place = 0;
  int ties_before = 0;
  int all = 0;
  int all_ties = 0;
  for (int other = 0; other < warps; other++) {
    if (other == warp) {
      place = all;
      ties_before = all_ties;
    }
    all += counts[2 * other];
    all_ties += counts[2 * other + 1];
  }
  all += min(all_ties, ties);
  place += min(ties_before, ties);
  const unsigned before = (1u << lane) - 1;
  for (int group = begin; group < end; group++) {
    const int token = group * warp_size + lane;
    const int of = token < tokens ? kind(token) : kNotTaken;
    const unsigned tie_lanes = __ballot_sync(full_warp, of == kTie);
    const bool joins = of == kTaken || (of == kTie && ties_before + __popc(tie_lanes & before) < ties);
    const unsigned lanes = __ballot_sync(full_warp, joins);
    if (joins) {
      index[place + __popc(lanes & before)] = token;
    }
    place += __popc(lanes);
    ties_before += __popc(tie_lanes);
  }
  for (int64_t slot = all + static_cast<int64_t>(threadIdx.x); slot < slots; slot += blockDim.x) {
    index[slot] = -1;
  }
  return all;
}

// Threads of a block that goes over so many tokens.
inline unsigned block_threads(int64_t tokens) { return tokens <= 1024 ? 128 : tokens <= 4096 ? 256 : 512; }
constexpr int kMostThreads = 512;

// SA Top-K, in cast_cluster_cuda_single.cu.
size_t single_workspace(const CastClusterParams& params);
Status cluster_single(const CastClusterParams& params, void* workspace, void* stream);

}  // namespace sturdy::cuda::cast_clusters
