// cast_cluster on CUDA, and its Top-K. A block selects for one cluster: it counts the keys of the column in bins over
// their range, goes on with those of the bin that the last one taken is in, and writes what is above, in order. Keys
// lie in shared memory; those of a long column are made again from the affinities whenever they are looked at.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cast/cast_cluster.h"
#include "cast/cast_cluster_cuda.cuh"
#include "common/cuda.cuh"

// ptxas-budget: cast_top_k_kernel 64

namespace sturdy::cuda {
namespace cast_clusters {

constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr int64_t kResidentTokens = 16384;

struct Selection {
  uint32_t bins[kBins];
  int counts[2 * warp_size];
  int valid;
  uint32_t least, most;
  uint32_t bin;
  int rest;
};

// The keys of one column.
template <bool resident>
class Column {
 public:
  STURDY_DEVICE Column(const CastClusterParams& params, int64_t sequence, int64_t cluster, uint32_t* shared)
      : padding_(params.padding), sequence_(sequence), stride_(params.affinity_stride[1]), shared_(shared) {
    affinity_ = params.affinity + sequence * params.affinity_stride[0] + cluster * params.affinity_stride[2];
  }

  STURDY_DEVICE uint32_t read(int token) const {
    return is_padding(padding_, sequence_, token) ? kPaddingKey : order_key(affinity_[token * stride_]);
  }
  STURDY_DEVICE void keep(int token, uint32_t key) {
    if constexpr (resident) {
      shared_[token] = key;
    }
  }
  STURDY_DEVICE uint32_t operator()(int token) const {
    if constexpr (resident) {
      return shared_[token];
    } else {
      return read(token);
    }
  }

 private:
  PaddingView padding_;
  int64_t sequence_, stride_;
  const float* affinity_;
  uint32_t* shared_;
};

// The number of tokens, and the range of their keys, for all threads.
template <bool resident>
STURDY_DEVICE void read_column(Column<resident>& column, int tokens, Selection& shared) {
  if (threadIdx.x == 0) {
    shared.valid = 0;
    shared.least = 0xffffffffu;
    shared.most = 0;
  }
  __syncthreads();
  int valid = 0;
  uint32_t least = 0xffffffffu;
  uint32_t most = 0;
  for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
    const uint32_t key = column.read(token);
    column.keep(token, key);
    if (key != kPaddingKey) {
      valid++;
      least = min(least, key);
      most = max(most, key);
    }
  }
  valid = warp_sum(valid);
  least = warp_min(least);
  most = warp_max(most);
  if (threadIdx.x % warp_size == 0) {
    atomicAdd(&shared.valid, valid);
    atomicMin(&shared.least, least);
    atomicMax(&shared.most, most);
  }
  __syncthreads();
}

// The bin, from the last one down, in which the k-th key is, and how many of that bin are still wanted then.
STURDY_DEVICE void find_bin(int bins, int k, Selection& shared) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int share = ceil_div(bins, static_cast<int>(blockDim.x));
  const int last = bins - 1 - static_cast<int>(threadIdx.x) * share;
  int sum = 0;
  for (int bin = last; bin > last - share && bin >= 0; bin--) {
    sum += static_cast<int>(shared.bins[bin]);
  }
  int before = warp_sum_before(sum);
  if (lane == warp_size - 1) {
    shared.counts[warp] = before + sum;
  }
  __syncthreads();
  for (int other = 0; other < warp; other++) {
    before += shared.counts[other];
  }
  if (before < k && k <= before + sum) {
    int bin = last;
    int rest = k - before;
    while (static_cast<int>(shared.bins[bin]) < rest) {
      rest -= static_cast<int>(shared.bins[bin]);
      bin--;
    }
    shared.bin = static_cast<uint32_t>(bin);
    shared.rest = rest;
  }
  __syncthreads();
}

template <bool resident>
__global__ void __launch_bounds__(kMostThreads) cast_top_k_kernel(CastClusterParams params) {
  STURDY_DYNAMIC_SHARED(uint32_t, keys);
  __shared__ Selection shared;
  const int64_t item = blockIdx.x;
  const int tokens = static_cast<int>(params.tokens);
  Column<resident> column(params, item / params.clusters, item % params.clusters, keys);
  read_column(column, tokens, shared);
  const int wanted = static_cast<int>(min(params.slots, static_cast<int64_t>(shared.valid)));
  uint32_t least = shared.least;
  uint32_t most = shared.most;
  int rest = wanted;
  while (wanted > 0 && least != most) {
    const uint32_t width = most - least;
    const int shift = max(32 - __clz(static_cast<int>(width)) - kBinBits, 0);
    const int bins = static_cast<int>(width >> shift) + 1;
    for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) {
      shared.bins[bin] = 0;
    }
    __syncthreads();
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
      const uint32_t key = column(token);
      if (key >= least && key <= most) {
        atomicAdd(&shared.bins[(key - least) >> shift], 1u);
      }
    }
    __syncthreads();
    find_bin(bins, rest, shared);
    least += shared.bin << shift;
    most = min(most, least + ((1u << shift) - 1));
    rest = shared.rest;
  }
  __syncthreads();
  const uint32_t cut = least;
  const int taken = write_tokens(wanted > 0 ? tokens : 0, rest, params.slots, params.index + item * params.slots,
                                 shared.counts, [&](int token) {
                                   const uint32_t key = column(token);
                                   return key > cut ? kTaken : key == cut ? kTie : kNotTaken;
                                 });
  if (threadIdx.x == 0) {
    params.counts[item] = taken;
  }
}

static Status top_k(const CastClusterParams& params, void* stream) {
  const int64_t blocks = params.batch * params.clusters;
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  const dim3 grid(static_cast<unsigned>(blocks));
  const dim3 block(block_threads(params.tokens));
  if (params.tokens <= kResidentTokens) {
    const size_t bytes = static_cast<size_t>(params.tokens) * sizeof(uint32_t);
    return launch(cast_top_k_kernel<true>, grid, block, bytes, stream, params);
  }
  return launch(cast_top_k_kernel<false>, grid, block, 0, stream, params);
}

}  // namespace cast_clusters

size_t cast_cluster_workspace(const CastClusterParams& params) {
  return params.single_assignment ? cast_clusters::single_workspace(params) : 0;
}

Status cast_cluster(const CastClusterParams& params, void* workspace, void* stream) {
  if (params.batch == 0) {
    return Status::ok;
  }
  return params.single_assignment ? cast_clusters::cluster_single(params, workspace, stream)
                                  : cast_clusters::top_k(params, stream);
}

}  // namespace sturdy::cuda
