// The CPU kernels of cast_cluster for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "cast/cast_cluster_cpu_select.h"
#include "common/scratch.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

STURDY_ALWAYS_INLINE const float* column_of(const CastClusterParams& params, int64_t sequence, int64_t cluster) {
  return params.affinity + sequence * params.affinity_stride[0] + cluster * params.affinity_stride[2];
}

STURDY_ALWAYS_INLINE bool is_padding(const CastClusterParams& params, int64_t sequence, int64_t token) {
  const PaddingView& padding = params.padding;
  return padding.data != nullptr && padding.data[sequence * padding.stride[0] + token * padding.stride[1]] != 0;
}

// ---- Top-K ----

// Keys of one column; returns the number of tokens that are not padding.
static int64_t read_column(const CastClusterParams& params, int64_t sequence, int64_t cluster, int32_t* keys) {
  const float* column = column_of(params, sequence, cluster);
  const int64_t stride = params.affinity_stride[1];
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kKeyLanes <= params.tokens; i += kKeyLanes) {
      store_words(keys + i, order_keys(load_words(column + i)));
    }
  }
  for (; i < params.tokens; i++) {
    keys[i] = order_key(column[i * stride]);
  }
  if (params.padding.data == nullptr) {
    return params.tokens;
  }
  int64_t valid = 0;
  for (i = 0; i < params.tokens; i++) {
    const bool blank = is_padding(params, sequence, i);
    keys[i] = blank ? cpu::kPaddingKey : keys[i];
    valid += blank ? 0 : 1;
  }
  return valid;
}

static void top_k(const cpu::CastClusterPlan& plan, int64_t begin, int64_t end) {
  const CastClusterParams& params = plan.params;
  Arena sizes(nullptr);
  sizes.take<int32_t>(params.tokens);
  Selection(sizes, params.tokens);
  Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
  int32_t* keys = arena.take<int32_t>(params.tokens);
  Selection selection(arena, params.tokens);
  for (int64_t item = begin; item < end; item++) {
    const int64_t valid = read_column(params, item / params.clusters, item % params.clusters, keys);
    const int64_t wanted = std::min(params.slots, valid);
    int32_t* index = params.index + item * params.slots;
    int64_t taken = 0;
    if (wanted > 0) {
      const Cut cut = selection.find(keys, params.tokens, wanted);
      for_each_taken(keys, params.tokens, cut, wanted, [&](Keys tokens, uint32_t mask) {
        taken += store_named(index + taken, tokens, mask, params.slots - taken);
      });
    }
    params.counts[item] = static_cast<int32_t>(taken);
    for (; taken < params.slots; taken++) {
      index[taken] = -1;
    }
  }
}

// ---- SA Top-K: all tokens ask ----

// The best cluster of `vectors` vectors of tokens from `first` on.
template <int vectors>
static void ask_vectors(const cpu::CastClusterPlan& plan, int64_t sequence, int64_t first) {
  const CastClusterParams& params = plan.params;
  Keys best[vectors], choice[vectors];
  STURDY_UNROLL
  for (int v = 0; v < vectors; v++) {
    best[v] = Keys{} + cpu::kPaddingKey;
    choice[v] = Keys{};
  }
  for (int64_t c = 0; c < params.clusters; c++) {
    const float* column = column_of(params, sequence, c) + first;
    const Keys cluster = Keys{} + static_cast<int32_t>(c);
    STURDY_UNROLL
    for (int v = 0; v < vectors; v++) {
      const Keys key = order_keys(load_words(column + v * kKeyLanes));
      const Keys better = key > best[v];
      best[v] = better ? key : best[v];
      choice[v] = better ? cluster : choice[v];
    }
  }
  STURDY_UNROLL
  for (int v = 0; v < vectors; v++) {
    const int64_t at = sequence * params.tokens + first + v * kKeyLanes;
    store_words(plan.keys + at, best[v]);
    store_words(params.assignment + at, choice[v]);
  }
}

static void ask_one(const cpu::CastClusterPlan& plan, int64_t sequence, int64_t token) {
  const CastClusterParams& params = plan.params;
  int32_t best = cpu::kPaddingKey, choice = 0;
  for (int64_t c = 0; c < params.clusters; c++) {
    const int32_t key = order_key(column_of(params, sequence, c)[token * params.affinity_stride[1]]);
    choice = key > best ? static_cast<int32_t>(c) : choice;
    best = std::max(best, key);
  }
  plan.keys[sequence * params.tokens + token] = best;
  params.assignment[sequence * params.tokens + token] = choice;
}

static void ask(const cpu::CastClusterPlan& plan, int64_t begin, int64_t end) {
  constexpr int kVectors = 8;
  const CastClusterParams& params = plan.params;
  for (int64_t item = begin; item < end; item++) {
    const int64_t sequence = item / plan.token_blocks;
    const int64_t first = item % plan.token_blocks * cpu::kTokenBlock;
    const int64_t last = std::min(first + cpu::kTokenBlock, params.tokens);
    int64_t i = first;
    if (params.affinity_stride[1] == 1) {
      for (; i + kVectors * kKeyLanes <= last; i += kVectors * kKeyLanes) {
        ask_vectors<kVectors>(plan, sequence, i);
      }
      for (; i + kKeyLanes <= last; i += kKeyLanes) {
        ask_vectors<1>(plan, sequence, i);
      }
    }
    for (; i < last; i++) {
      ask_one(plan, sequence, i);
    }
    for (i = first; i < last && params.padding.data != nullptr; i++) {
      if (is_padding(params, sequence, i)) {
        params.assignment[sequence * params.tokens + i] = -1;
      }
    }
  }
}

// ---- SA Top-K: clusters choose among the tokens that asked them first ----

static void choose(const cpu::CastClusterPlan& plan, int64_t begin, int64_t end) {
  const CastClusterParams& params = plan.params;
  Arena sizes(nullptr);
  sizes.take<int32_t>(params.tokens);
  Selection(sizes, params.tokens);
  Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
  int32_t* keys = arena.take<int32_t>(params.tokens);
  Selection selection(arena, params.tokens);
  for (int64_t item = begin; item < end; item++) {
    const int64_t sequence = item / params.clusters, cluster = item % params.clusters;
    const int64_t* starts = plan.starts + sequence * (params.clusters + 1);
    const int64_t asking = starts[cluster + 1] - starts[cluster];
    const int32_t* tokens = plan.sorted + sequence * params.tokens + starts[cluster];
    const int32_t* token_keys = plan.keys + sequence * params.tokens;
    int32_t* assignment = params.assignment + sequence * params.tokens;
    const int64_t capacity = plan.capacity(sequence, cluster);
    int32_t* members = plan.members(sequence, cluster);
    int64_t taken = 0;
    Cut cut{cpu::kPaddingKey, 0};
    for (int64_t i = 0; i < asking; i++) {
      keys[i] = token_keys[tokens[i]];
    }
    if (asking >= capacity && capacity > 0) {
      cut = selection.find(keys, asking, capacity);
    } else if (capacity == 0) {
      cut.key = cpu::kNoKey;
    }
    int64_t ties = cut.ties;
    int32_t least_token = 0;
    for (int64_t i = 0; i < asking; i++) {
      const bool tie = keys[i] == cut.key && ties > 0;
      if (tie) {
        ties--;
        least_token = tokens[i];
      }
      if (keys[i] > cut.key || tie) {
        members[taken++] = tokens[i];
      } else {
        assignment[tokens[i]] = cpu::kFreeToken;
      }
    }
    params.counts[item] = static_cast<int32_t>(taken);
    plan.least_keys[sequence * plan.padded_clusters + cluster] = cut.key;
    plan.least_tokens[sequence * plan.padded_clusters + cluster] = least_token;
  }
}

// ---- SA Top-K: tokens ask one by one ----

class Settlement {
 public:
  Settlement(const cpu::CastClusterPlan& plan, Arena& arena) : plan_(plan), params_(plan.params) {
    const int64_t row_bytes = plan.padded_clusters * static_cast<int64_t>(sizeof(float));
    block_ = std::clamp<int64_t>(kRowBytes / row_bytes, 1, kMostRows);
    waiting_ = arena.take<int32_t>(params_.tokens);
    next_ = arena.take<int32_t>(params_.tokens);
    is_heap_ = arena.take<uint8_t>(params_.clusters);
    rows_ = arena.take<float>(block_ * plan.padded_clusters);
  }

  void run(int64_t sequence) {
    sequence_ = sequence;
    keys_ = plan_.keys + sequence * params_.tokens;
    assignment_ = params_.assignment + sequence * params_.tokens;
    counts_ = params_.counts + sequence * params_.clusters;
    least_keys_ = plan_.least_keys + sequence * plan_.padded_clusters;
    least_tokens_ = plan_.least_tokens + sequence * plan_.padded_clusters;
    std::memset(is_heap_, 0, static_cast<size_t>(params_.clusters));
    for (int64_t c = params_.clusters; c < plan_.padded_clusters; c++) {
      least_keys_[c] = cpu::kNoKey;
      least_tokens_[c] = 0;
    }
    for (int64_t at = 0; at < block_ * plan_.padded_clusters; at++) {
      rows_[at] = 0;
    }
    int64_t waiting = 0;
    for (int64_t i = 0; i < params_.tokens; i++) {
      waiting_[waiting] = static_cast<int32_t>(i);
      waiting += assignment_[i] == cpu::kFreeToken ? 1 : 0;
    }
    while (waiting > 0) {
      next_count_ = 0;
      for (int64_t at = 0; at < waiting; at += block_) {
        const int64_t count = std::min(block_, waiting - at);
        read_rows(waiting_ + at, count);
        for (int64_t r = 0; r < count; r++) {
          ask(waiting_[at + r], rows_ + r * plan_.padded_clusters);
        }
      }
      std::swap(waiting_, next_);
      waiting = next_count_;
      cpu::sort_tokens(waiting_, waiting);
    }
  }

 private:
  static constexpr int64_t kRowBytes = int64_t{16} << 10;  // of affinities that lie along clusters at a time
  static constexpr int64_t kMostRows = 64;

  void read_rows(const int32_t* tokens, int64_t count) {
    const int64_t stride = params_.affinity_stride[1];
    for (int64_t c = 0; c < params_.clusters; c++) {
      const float* column = column_of(params_, sequence_, c);
      for (int64_t r = 0; r < count; r++) {
        rows_[r * plan_.padded_clusters + c] = column[tokens[r] * stride];
      }
    }
  }

  // The token goes to its best cluster of those that would have it.
  void ask(int32_t token, const float* row) {
    Keys best = Keys{} + cpu::kPaddingKey, choice = Keys{}, cluster;
    for (int i = 0; i < kKeyLanes; i++) {
      cluster[i] = i;
    }
    for (int64_t c = 0; c < plan_.padded_clusters; c += kKeyLanes, cluster += kKeyLanes) {
      const Keys key = order_keys(load_words(row + c));
      const Keys least = load_words(least_keys_ + c);
      const Keys welcome = (key > least) | ((key == least) & (load_words(least_tokens_ + c) > token));
      const Keys better = welcome & (key > best);
      best = better ? key : best;
      choice = better ? cluster : choice;
    }
    int32_t best_key = cpu::kPaddingKey, best_cluster = -1;
    for (int i = 0; i < kKeyLanes; i++) {
      if (best[i] > best_key || (best[i] == best_key && choice[i] < best_cluster)) {
        best_key = best[i];
        best_cluster = choice[i];
      }
    }
    if (best_cluster < 0) {  // no room anywhere, which the sizes of clusters exclude
      assignment_[token] = -1;
      return;
    }
    keys_[token] = best_key;
    assignment_[token] = best_cluster;
    join(token, best_cluster);
  }

  void join(int32_t token, int32_t cluster) {
    int32_t* members = plan_.members(sequence_, cluster);
    const int64_t capacity = plan_.capacity(sequence_, cluster);
    if (counts_[cluster] < capacity) {
      members[counts_[cluster]++] = token;
      if (counts_[cluster] == capacity) {
        make_heap(members, capacity, cluster);
      }
    } else {
      if (is_heap_[cluster] == 0) {
        make_heap(members, capacity, cluster);
      }
      assignment_[members[0]] = cpu::kFreeToken;
      next_[next_count_++] = members[0];
      members[0] = token;
      sift(members, capacity, 0);
    }
    if (is_heap_[cluster] != 0) {
      least_keys_[cluster] = keys_[members[0]];
      least_tokens_[cluster] = members[0];
    }
  }

  // A heap whose first one is the last in order.
  void make_heap(int32_t* members, int64_t count, int32_t cluster) {
    for (int64_t at = count / 2 - 1; at >= 0; at--) {
      sift(members, count, at);
    }
    is_heap_[cluster] = 1;
  }

  bool is_after(int32_t a, int32_t b) const { return keys_[a] < keys_[b] || (keys_[a] == keys_[b] && a > b); }

  void sift(int32_t* members, int64_t count, int64_t at) {
    const int32_t token = members[at];
    for (;;) {
      int64_t child = 2 * at + 1;
      if (child >= count) {
        break;
      }
      child += child + 1 < count && is_after(members[child + 1], members[child]) ? 1 : 0;
      if (!is_after(members[child], token)) {
        break;
      }
      members[at] = members[child];
      at = child;
    }
    members[at] = token;
  }

  const cpu::CastClusterPlan& plan_;
  const CastClusterParams& params_;
  int64_t block_;
  int32_t *waiting_, *next_;
  int64_t next_count_ = 0;
  uint8_t* is_heap_;  // by cluster
  float* rows_;

  int64_t sequence_ = 0;
  int32_t *keys_ = nullptr, *assignment_ = nullptr, *counts_ = nullptr;
  int32_t *least_keys_ = nullptr, *least_tokens_ = nullptr;
};

static void settle(const cpu::CastClusterPlan& plan, int64_t begin, int64_t end) {
  Arena sizes(nullptr);
  Settlement(plan, sizes);
  Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
  Settlement settlement(plan, arena);
  for (int64_t sequence = begin; sequence < end; sequence++) {
    settlement.run(sequence);
  }
}

const cpu::CastClusterKernels& cast_cluster_kernels() {
  static constexpr cpu::CastClusterKernels table = {kKeyLanes, top_k, ask, choose, settle};
  return table;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
