// Scores within a cluster and their dropout, for forward and backward.
#pragma once

#include <cstdint>

#include "cast/cast_attention_cuda_tiles.cuh"

namespace sturdy::cuda::clustered {

// A tile of a cluster's slots, for one head. Tiles of one cluster are neighbours in the grid, then its heads: what they
// share comes from the cache.
struct SlotTile {
  int64_t sequence;
  int cluster, head, first;  // slot
  int length;                // of the cluster
  int64_t row;               // of (B, h, C)

  STURDY_DEVICE SlotTile(const Problem& p, int rows) {
    const unsigned tiles = static_cast<unsigned>(ceil_div(p.slots, rows));
    unsigned index = blockIdx.x;
    first = static_cast<int>(index % tiles) * rows;
    index /= tiles;
    head = static_cast<int>(index % p.heads);
    index /= p.heads;
    cluster = static_cast<int>(index % p.clusters);
    sequence = index / p.clusters;
    length = p.membership.lengths[sequence * p.clusters + cluster];
    row = p.cluster_row(sequence, head, cluster);
  }
  STURDY_DEVICE const int32_t* members(const Problem& p) const {
    return p.membership.members + (sequence * p.clusters + cluster) * p.slots;
  }
};

inline int64_t slot_tiles(const Problem& p, int rows) {
  return p.batch * p.heads * p.clusters * ceil_div(int64_t{p.slots}, int64_t{rows});
}

// Copies the tokens of `count` slots from `first`; -1 beyond the cluster. By the whole block.
STURDY_DEVICE void look_up_tokens(const int32_t* members, int length, int64_t first, int count, int* tokens) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    tokens[i] = first + i < length ? members[first + i] : -1;
  }
}

// Whether the weight of a query and a key survives dropout, and what it is multiplied with.
STURDY_DEVICE uint64_t dropout_key(const Problem& p, int64_t cluster_row, int query_slot) {
  return p.seed == nullptr ? 0 : dropout_row_key(*p.seed, cluster_row * p.slots + query_slot);
}
template <typename A>
STURDY_DEVICE A dropout_factor(const Problem& p, uint64_t row_key, int key_slot) {
  if (p.seed == nullptr) {
    return A(1);
  }
  return dropout_bits(row_key, static_cast<uint32_t>(key_slot)) >= p.dropout_threshold ? static_cast<A>(p.dropout_scale)
                                                                                       : A(0);
}

}  // namespace sturdy::cuda::clustered
