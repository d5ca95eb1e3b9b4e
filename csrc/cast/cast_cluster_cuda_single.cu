// SA Top-K on CUDA, by deferred acceptance (see cast_cluster_cpu_plan.h for why that is what going through all pairs
// finds). Every token first asks its best cluster; then one block for each sequence goes round: clusters that more
// tokens asked than they have room for keep the first ones, and those that are refused ask again, each the best cluster
// that would have it.
//
// A cluster's last token is found by counting digits of ranks, for all clusters at once. Counting stops as soon as what
// a cluster takes is known, which need not be its exact last token: whoever gets past that and is not among the first
// is refused in the next round.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cast/cast_cluster.h"
#include "cast/cast_cluster_cuda.cuh"
#include "common/cuda.cuh"
#include "common/cuda_workspace.cuh"

// ptxas-budget: cast_first_ask_kernel 64
// ptxas-budget: cast_settle_kernel 80
// ptxas-budget: cast_write_clusters_kernel 64

namespace sturdy::cuda {
namespace cast_clusters {

constexpr int kAskThreads = 256;
constexpr int kSettleThreads = 768;          // more would leave a thread too few registers
constexpr int64_t kSharedState = 96 * 1024;  // every GPU of sm_80 and later has so much for a block
constexpr int kMostDigitBits = 8, kLeastDigitBits = 4;

// Of a cluster, beside its counts of digits.
struct ClusterState {
  uint64_t threshold;  // takes tokens of this rank and above
  uint64_t prefix;     // digits of the last rank taken that are known
  uint64_t bound;      // relative ranks below it are refused
  int count;           // of its tokens
  int rest;            // tokens wanted of those with the prefix
  int open;            // digits are still to be found
  int unused;
};
constexpr int kStateWords = static_cast<int>(sizeof(ClusterState) / sizeof(uint64_t));

struct SingleCall {
  CastClusterParams params;
  uint32_t* keys;    // (batch, tokens) affinity to the cluster that a token is with
  int32_t* waiting;  // (batch, tokens) tokens that were refused
  uint64_t* states;  // (batch, state words), where shared memory does not hold them
  int64_t state_words;
  int digit_bits;
};

// ranks[...] of a pair of a token and a cluster: larger for those that come first. A token that was refused has
// -2 - its last cluster in `assignment`.
STURDY_DEVICE uint64_t rank_of(uint32_t key, int token) {
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(token));
}

__global__ void __launch_bounds__(kAskThreads) cast_first_ask_kernel(SingleCall call, int blocks) {
  const CastClusterParams& p = call.params;
  const int64_t sequence = blockIdx.x / blocks;
  const int64_t token = static_cast<int64_t>(blockIdx.x % blocks) * kAskThreads + threadIdx.x;
  if (token >= p.tokens) {
    return;
  }
  const int64_t at = sequence * p.tokens + token;
  if (is_padding(p.padding, sequence, token)) {
    p.assignment[at] = -1;
    return;
  }
  const float* row = p.affinity + sequence * p.affinity_stride[0] + token * p.affinity_stride[1];
  uint32_t best = kPaddingKey;
  int32_t choice = 0;
#pragma unroll 4
  for (int32_t c = 0; c < static_cast<int32_t>(p.clusters); c++) {
    const uint32_t key = order_key(row[c * p.affinity_stride[2]]);
    if (key > best) {
      best = key;
      choice = c;
    }
  }
  call.keys[at] = best;
  p.assignment[at] = choice;
}

class Settlement {
 public:
  struct Shared {
    int valid, waiting;
    uint32_t least, most;  // of the keys of tokens with a cluster that is too full
  };

  STURDY_DEVICE Settlement(const SingleCall& call, uint64_t* states, Shared& shared)
      : p_(call.params), digit_bits_(call.digit_bits), shared_(shared) {
    sequence_ = blockIdx.x;
    tokens_ = static_cast<int>(p_.tokens);
    clusters_ = static_cast<int>(p_.clusters);
    affinity_ = p_.affinity + sequence_ * p_.affinity_stride[0];
    keys_ = call.keys + sequence_ * p_.tokens;
    waiting_ = call.waiting + sequence_ * p_.tokens;
    assignment_ = p_.assignment + sequence_ * p_.tokens;
    states_ = reinterpret_cast<ClusterState*>(states);
    digits_ = reinterpret_cast<uint32_t*>(states + p_.clusters * kStateWords);
  }

  STURDY_DEVICE void run() {
    count_tokens();
    while (is_any_too_full()) {
      find_bounds();
      refuse();
      ask();
    }
  }

 private:
  STURDY_DEVICE int capacity(int cluster) const {
    if (p_.capacity > 0) {
      return static_cast<int>(min(p_.capacity, p_.slots));
    }
    return shared_.valid / clusters_ + (cluster < shared_.valid % clusters_ ? 1 : 0);
  }

  STURDY_DEVICE bool is_too_full(int cluster) const { return states_[cluster].count > capacity(cluster); }

  // Grows as rank_of does; `bits` bits, of which the lower ones are the token's.
  STURDY_DEVICE uint64_t relative_rank(int token) const {
    return uint64_t{keys_[token] - shared_.least} << token_bits() | static_cast<uint32_t>(tokens_ - 1 - token);
  }
  STURDY_DEVICE int token_bits() const { return 32 - __clz(tokens_ - 1); }

  STURDY_DEVICE void count_tokens() {
    if (threadIdx.x == 0) {
      shared_.valid = 0;
    }
    for (int c = threadIdx.x; c < clusters_; c += blockDim.x) {
      states_[c].count = 0;
    }
    __syncthreads();
    int valid = 0;
    for (int token = threadIdx.x; token < tokens_; token += blockDim.x) {
      if (assignment_[token] >= 0) {
        valid++;
        atomicAdd(&states_[assignment_[token]].count, 1);
      }
    }
    atomicAdd(&shared_.valid, valid);
    __syncthreads();
    for (int c = threadIdx.x; c < clusters_; c += blockDim.x) {
      states_[c].threshold = capacity(c) > 0 ? 0 : ~uint64_t{0};
    }
  }

  STURDY_DEVICE bool is_any_too_full() const {
    bool any = false;
    for (int c = threadIdx.x; c < clusters_; c += blockDim.x) {
      any = any || is_too_full(c);
    }
    return __syncthreads_or(any ? 1 : 0) != 0;
  }

  // For each cluster that is too full, the relative rank below which it takes nobody.
  STURDY_DEVICE void find_bounds() {
    for (int c = threadIdx.x; c < clusters_; c += blockDim.x) {
      ClusterState& state = states_[c];
      const int room = capacity(c);
      state.prefix = 0;
      state.rest = room;
      state.open = state.count > room && room > 0 ? 1 : 0;
      state.bound = state.count > room ? ~uint64_t{0} : 0;
    }
    find_range();
    const uint32_t width = shared_.most - shared_.least;
    int below = 32 - __clz(static_cast<int>(width)) + token_bits();  // digits that are not known, in bits
    bool any = true;
    while (any) {
      const int bits = min(digit_bits_, below);
      below -= bits;
      count_digits(bits, below);
      any = find_digits(bits, below);
    }
  }

  STURDY_DEVICE void find_range() {
    if (threadIdx.x == 0) {
      shared_.least = 0xffffffffu;
      shared_.most = 0;
    }
    __syncthreads();
    uint32_t least = 0xffffffffu;
    uint32_t most = 0;
    for (int token = threadIdx.x; token < tokens_; token += blockDim.x) {
      if (assignment_[token] >= 0 && is_too_full(assignment_[token])) {
        least = min(least, keys_[token]);
        most = max(most, keys_[token]);
      }
    }
    least = warp_min(least);
    most = warp_max(most);
    if (threadIdx.x % warp_size == 0) {
      atomicMin(&shared_.least, least);
      atomicMax(&shared_.most, most);
    }
    __syncthreads();
  }

  STURDY_DEVICE void count_digits(int bits, int below) {
    for (int64_t i = threadIdx.x; i < static_cast<int64_t>(clusters_) << digit_bits_; i += blockDim.x) {
      digits_[i] = 0;
    }
    __syncthreads();
    for (int token = threadIdx.x; token < tokens_; token += blockDim.x) {
      const int c = assignment_[token];
      if (c < 0 || states_[c].open == 0) {
        continue;
      }
      const uint64_t rank = relative_rank(token) >> below;
      if (rank >> bits == states_[c].prefix) {
        const uint32_t digit = static_cast<uint32_t>(rank) & ((1u << bits) - 1);
        atomicAdd(&digits_[(static_cast<int64_t>(c) << digit_bits_) + digit], 1u);
      }
    }
    __syncthreads();
  }

  // A warp for each cluster: one more digit of its last rank. Whether any cluster wants another one.
  STURDY_DEVICE bool find_digits(int bits, int below) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    const int warps = static_cast<int>(blockDim.x) / warp_size;
    const int share = max((1 << bits) / warp_size, 1);
    bool any = false;
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x) / warp_size; c < clusters_; c += warps) {
      ClusterState& state = states_[c];
      if (state.open == 0) {
        continue;
      }
      const uint32_t* digits = digits_ + (static_cast<int64_t>(c) << digit_bits_);
      const int last = (1 << bits) - 1 - lane * share;
      int sum = 0;
#pragma unroll 1
      for (int digit = last; digit > last - share && digit >= 0; digit--) {
        sum += static_cast<int>(digits[digit]);
      }
      const int before = warp_sum_before(sum);
      const int wanted = state.rest;
      __syncwarp();
      bool open = false;
      if (before < wanted && wanted <= before + sum) {
        int digit = last;
        int rest = wanted - before;
        while (static_cast<int>(digits[digit]) < rest) {
          rest -= static_cast<int>(digits[digit]);
          digit--;
        }
        open = static_cast<int>(digits[digit]) > rest;  // else all with these digits stay, whatever the others
        state.prefix = state.prefix << bits | static_cast<uint32_t>(digit);
        state.rest = rest;
        state.bound = state.prefix << below;
        state.open = open ? 1 : 0;
      }
      any = any || open;
    }
    return __syncthreads_or(any ? 1 : 0) != 0;
  }

  // Tokens below the bound of their cluster go to the list of those that wait.
  STURDY_DEVICE void refuse() {
    if (threadIdx.x == 0) {
      shared_.waiting = 0;
    }
    __syncthreads();
    for (int token = threadIdx.x; token < tokens_; token += blockDim.x) {
      const int c = assignment_[token];
      if (c >= 0 && states_[c].bound != 0 && relative_rank(token) < states_[c].bound) {
        assignment_[token] = -2 - c;
        waiting_[atomicAdd(&shared_.waiting, 1)] = token;
      }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < clusters_; c += blockDim.x) {
      ClusterState& state = states_[c];
      const int room = capacity(c);
      if (state.count > room) {
        state.count = room;
        if (room > 0) {
          const uint32_t key = static_cast<uint32_t>(state.bound >> token_bits()) + shared_.least;
          const uint32_t token_mask = (1u << token_bits()) - 1;
          const int token = tokens_ - 1 - static_cast<int>(static_cast<uint32_t>(state.bound) & token_mask);
          state.threshold = max(state.threshold, rank_of(key, token));
        }
      }
    }
    __syncthreads();
  }

  // Each goes to its best cluster of those that would have it. None is better than the one that last refused it, so an
  // equal one that comes later ends the search.
  STURDY_DEVICE void ask() {
    const int waiting = shared_.waiting;
#pragma unroll 1
    for (int i = threadIdx.x; i < waiting; i += blockDim.x) {
      const int token = waiting_[i];
      const int last = -2 - assignment_[token];
      const uint32_t last_key = keys_[token];
      const float* row = affinity_ + token * p_.affinity_stride[1];
      uint32_t best = kPaddingKey;
      int choice = -1;
      for (int step = 1; step < clusters_; step++) {
        const int c = last + step < clusters_ ? last + step : last + step - clusters_;
        const uint32_t key = order_key(row[c * p_.affinity_stride[2]]);
        if ((key > best || (key == best && c < choice)) && rank_of(key, token) >= states_[c].threshold) {
          best = key;
          choice = c;
          if (key == last_key && c > last) {
            break;
          }
        }
      }
      assignment_[token] = choice;  // -1, no room anywhere, is what the sizes of clusters exclude
      if (choice >= 0) {
        keys_[token] = best;
        atomicAdd(&states_[choice].count, 1);
      }
    }
    __syncthreads();
  }

  const CastClusterParams& p_;
  int digit_bits_;
  Shared& shared_;
  int64_t sequence_;
  int tokens_, clusters_;
  const float* affinity_;
  uint32_t* keys_;
  int32_t* waiting_;
  int32_t* assignment_;
  ClusterState* states_;
  uint32_t* digits_;  // (clusters, 2^digit bits)
};

__global__ void __launch_bounds__(kSettleThreads) cast_settle_kernel(SingleCall call) {
  STURDY_DYNAMIC_SHARED(uint64_t, states);
  __shared__ Settlement::Shared shared;
  Settlement(call, call.states == nullptr ? states : call.states + blockIdx.x * call.state_words, shared).run();
}

__global__ void __launch_bounds__(kMostThreads) cast_write_clusters_kernel(CastClusterParams p) {
  __shared__ int counts[2 * warp_size];
  const int64_t item = blockIdx.x;
  const int32_t cluster = static_cast<int32_t>(item % p.clusters);
  const int32_t* assignment = p.assignment + item / p.clusters * p.tokens;
  const int taken = write_tokens(static_cast<int>(p.tokens), 0, p.slots, p.index + item * p.slots, counts,
                                 [&](int token) { return assignment[token] == cluster ? kTaken : kNotTaken; });
  if (threadIdx.x == 0) {
    p.counts[item] = taken;
  }
}

// Words of 8 bytes for the clusters of one sequence.
static int64_t state_words(int64_t clusters, int digit_bits) {
  return clusters * kStateWords + ((clusters << digit_bits) + 1) / 2;
}

static size_t place(const CastClusterParams& params, void* workspace, SingleCall* call) {
  Workspace space(workspace);
  call->params = params;
  call->digit_bits = kMostDigitBits;
  const auto bytes = [&] { return state_words(params.clusters, call->digit_bits) * int64_t{sizeof(uint64_t)}; };
  while (call->digit_bits > kLeastDigitBits && bytes() > kSharedState) {
    call->digit_bits--;
  }
  call->state_words = state_words(params.clusters, call->digit_bits);
  call->keys = space.take<uint32_t>(params.batch * params.tokens);
  call->waiting = space.take<int32_t>(params.batch * params.tokens);
  call->states = bytes() > kSharedState ? space.take<uint64_t>(params.batch * call->state_words) : nullptr;
  return space.bytes();
}

size_t single_workspace(const CastClusterParams& params) {
  SingleCall call{};
  return place(params, nullptr, &call);
}

Status cluster_single(const CastClusterParams& params, void* workspace, void* stream) {
  SingleCall call{};
  place(params, workspace, &call);
  const int64_t blocks = ceil_div<int64_t>(params.tokens, kAskThreads);
  if (params.batch * params.clusters > max_grid_x || blocks > max_grid_x / params.batch) {
    return Status::unsupported_size;
  }
  Status status = Status::ok;
  if (blocks > 0) {
    status = launch(cast_first_ask_kernel, dim3(static_cast<unsigned>(params.batch * blocks)), dim3(kAskThreads), 0,
                    stream, call, static_cast<int>(blocks));
    if (status == Status::ok) {
      const unsigned threads = static_cast<unsigned>(
          std::clamp<int64_t>(ceil_div<int64_t>(params.tokens, 4 * warp_size) * warp_size, warp_size, kSettleThreads));
      const size_t bytes = call.states == nullptr ? static_cast<size_t>(call.state_words) * sizeof(uint64_t) : 0;
      status =
          launch(cast_settle_kernel, dim3(static_cast<unsigned>(params.batch)), dim3(threads), bytes, stream, call);
    }
  }
  if (status == Status::ok) {
    status = launch(cast_write_clusters_kernel, dim3(static_cast<unsigned>(params.batch * params.clusters)),
                    dim3(block_threads(params.tokens)), 0, stream, params);
  }
  return status;
}

}  // namespace cast_clusters
}  // namespace sturdy::cuda
