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

// Rows of affinities, which lie apart where clusters come first, are read once and kept, as far as memory for them
// goes.
class Settlement {
 public:
  Settlement(const cpu::CastClusterPlan& plan, Arena& arena) : plan_(plan), params_(plan.params) {
    const int64_t row_bytes = plan.padded_clusters * static_cast<int64_t>(sizeof(int32_t));
    kept_rows_ = std::clamp<int64_t>(kKeptBytes / row_bytes, 1, params_.tokens);
    waiting_ = arena.take<int32_t>(params_.tokens);
    next_ = arena.take<int32_t>(params_.tokens);
    row_of_ = arena.take<int32_t>(params_.tokens);
    heap_of_ = arena.take<uint64_t*>(params_.clusters);
    all_heaps_ = arena.take<uint64_t>(params_.tokens + params_.clusters);
    rows_ = arena.take<int32_t>((kept_rows_ + kBlock) * plan.padded_clusters);
  }

  void run(int64_t sequence) {
    sequence_ = sequence;
    keys_ = plan_.keys + sequence * params_.tokens;
    assignment_ = params_.assignment + sequence * params_.tokens;
    counts_ = params_.counts + sequence * params_.clusters;
    least_keys_ = plan_.least_keys + sequence * plan_.padded_clusters;
    least_tokens_ = plan_.least_tokens + sequence * plan_.padded_clusters;
    std::memset(heap_of_, 0, static_cast<size_t>(params_.clusters) * sizeof heap_of_[0]);
    heaps_ = all_heaps_;
    for (int64_t c = params_.clusters; c < plan_.padded_clusters; c++) {
      least_keys_[c] = cpu::kNoKey;
      least_tokens_[c] = 0;
    }
    int64_t waiting = 0;
    for (int64_t i = 0; i < params_.tokens; i++) {
      waiting_[waiting] = static_cast<int32_t>(i);
      waiting += assignment_[i] == cpu::kFreeToken ? 1 : 0;
    }
    if (waiting > 0) {
      std::memset(row_of_, 0xff, static_cast<size_t>(params_.tokens) * sizeof(int32_t));
    }
    used_rows_ = 0;
    while (waiting > 0) {
      next_count_ = 0;
      for (int64_t at = 0; at < waiting; at += kBlock) {
        const int64_t count = std::min(kBlock, waiting - at);
        find_rows(waiting_ + at, count);
        for (int64_t i = 0; i < count; i++) {
          __builtin_prefetch(row(block_rows_[std::min(i + kAhead, count - 1)]));
          ask(waiting_[at + i], row(block_rows_[i]));
        }
      }
      std::swap(waiting_, next_);
      waiting = next_count_;
      cpu::sort_tokens(waiting_, waiting);
    }
  }

 private:
  static constexpr int64_t kKeptBytes = int64_t{64} << 20;
  static constexpr int64_t kBlock = 64;  // tokens whose rows are read together
  static constexpr int64_t kAhead = 4;
  static constexpr int64_t kLeastTransposed = 4;  // of a vector of tokens, else they are read one by one

  int32_t* row(int64_t number) const { return rows_ + number * plan_.padded_clusters; }

  // Where the rows of tokens are, after reading those that have not been.
  void find_rows(const int32_t* tokens, int64_t count) {
    int32_t missing[kBlock];
    int32_t* missing_rows[kBlock];
    int64_t missing_count = 0;
    for (int64_t i = 0; i < count; i++) {
      int64_t number = row_of_[tokens[i]];
      if (number < 0) {
        number = used_rows_ < kept_rows_ ? used_rows_++ : kept_rows_ + i;
        row_of_[tokens[i]] = number < kept_rows_ ? static_cast<int32_t>(number) : -1;
        missing[missing_count] = tokens[i];
        missing_rows[missing_count++] = row(number);
      }
      block_rows_[i] = number;
    }
    for (int64_t i = 0; i < missing_count;) {
      const int64_t first = missing[i] / kKeyLanes * kKeyLanes;
      int64_t end = i + 1;
      while (end < missing_count && missing[end] < first + kKeyLanes) {
        end++;
      }
      if (params_.affinity_stride[1] == 1 && first + kKeyLanes <= params_.tokens && end - i >= kLeastTransposed) {
        transpose_rows(first, missing + i, missing_rows + i, end - i);
      } else {
        read_rows(missing + i, missing_rows + i, end - i);
      }
      i = end;
    }
  }

  void read_rows(const int32_t* tokens, int32_t* const* rows, int64_t count) {
    const int64_t stride = params_.affinity_stride[1];
    for (int64_t c = 0; c < params_.clusters; c++) {
      const float* column = column_of(params_, sequence_, c);
      for (int64_t r = 0; r < count; r++) {
        rows[r][c] = order_key(column[tokens[r] * stride]);
      }
    }
    for (int64_t r = 0; r < count; r++) {
      std::memset(rows[r] + params_.clusters, 0,
                  static_cast<size_t>(plan_.padded_clusters - params_.clusters) * sizeof(int32_t));
    }
  }

  // Of a vector of tokens from `first` on, of which `count` are wanted.
  void transpose_rows(int64_t first, const int32_t* tokens, int32_t* const* rows, int64_t count) {
    for (int64_t c = 0; c < params_.clusters; c += kKeyLanes) {
      Vec<float> block[kKeyLanes];
      STURDY_UNROLL
      for (int i = 0; i < kKeyLanes; i++) {
        block[i] = c + i < params_.clusters ? load(column_of(params_, sequence_, c + i) + first) : zero<float>();
      }
      transpose(block);
      int32_t keys[kKeyLanes * kKeyLanes];
      STURDY_UNROLL
      for (int i = 0; i < kKeyLanes; i++) {
        store_words(keys + i * kKeyLanes, order_keys(bits_of(block[i])));
      }
      for (int64_t r = 0; r < count; r++) {
        std::memcpy(rows[r] + c, keys + (tokens[r] - first) * kKeyLanes, kKeyLanes * sizeof(int32_t));
      }
    }
  }

  // The token goes to its best cluster of those that would have it.
  void ask(int32_t token, const int32_t* row) {
    Keys best = Keys{} + cpu::kPaddingKey, choice = Keys{}, cluster;
    for (int i = 0; i < kKeyLanes; i++) {
      cluster[i] = i;
    }
    for (int64_t c = 0; c < plan_.padded_clusters; c += kKeyLanes, cluster += kKeyLanes) {
      const Keys key = load_words(row + c);
      const Keys least = load_words(least_keys_ + c);
      const Keys welcome = (key > least) | ((key == least) & (load_words(least_tokens_ + c) > token));
      const Keys better = welcome & (key > best);
      best = better ? key : best;
      choice = better ? cluster : choice;
    }
    const int32_t key = largest(best);
    if (key == cpu::kPaddingKey) {  // no room anywhere, which the sizes of clusters exclude
      assignment_[token] = -1;
      return;
    }
    keys_[token] = key;
    const Keys others = Keys{} + cpu::kNoKey;
    join(token, -largest(-(best == key ? choice : others)));
  }

  void join(int32_t token, int32_t cluster) {
    const int64_t capacity = plan_.capacity(sequence_, cluster);
    assignment_[token] = cluster;
    if (counts_[cluster] < capacity) {
      plan_.members(sequence_, cluster)[counts_[cluster]++] = token;
      if (counts_[cluster] == capacity) {
        make_heap(cluster, capacity);
        set_least(cluster);
      }
      return;
    }
    if (heap_of_[cluster] == nullptr) {
      make_heap(cluster, capacity);
    }
    const int32_t last = token_of(heap_of_[cluster][0]);
    assignment_[last] = cpu::kFreeToken;
    next_[next_count_++] = last;
    sift(heap_of_[cluster], capacity, 0, rank_of(token));
    set_least(cluster);
  }

  // ---- heaps of the members of full clusters, the last in order first ----

  // Grows from the last in order to the first.
  uint64_t rank_of(int32_t token) const {
    const uint32_t key = static_cast<uint32_t>(keys_[token]) ^ 0x80000000u;
    return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(token));
  }

  static int32_t token_of(uint64_t rank) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank)); }

  void set_least(int32_t cluster) {
    const uint64_t rank = heap_of_[cluster][0];
    least_keys_[cluster] = static_cast<int32_t>(static_cast<uint32_t>(rank >> 32) ^ 0x80000000u);
    least_tokens_[cluster] = token_of(rank);
  }

  // A cluster that is full stays so, so heaps of all of them hold no more than all tokens. Behind each is a rank above
  // all others.
  void make_heap(int32_t cluster, int64_t count) {
    const int32_t* members = plan_.members(sequence_, cluster);
    uint64_t* heap = heaps_;
    heaps_ += count + 1;
    heap_of_[cluster] = heap;
    for (int64_t i = 0; i < count; i++) {
      heap[i] = rank_of(members[i]);
    }
    heap[count] = ~uint64_t{0};
    for (int64_t at = count / 2 - 1; at >= 0; at--) {
      sift(heap, count, at, heap[at]);
    }
  }

  // Puts `rank` at `at`, or further down.
  static void sift(uint64_t* heap, int64_t count, int64_t at, uint64_t rank) {
    for (;;) {
      int64_t child = 2 * at + 1;
      if (child >= count) {
        break;
      }
      child += heap[child + 1] < heap[child] ? 1 : 0;
      if (heap[child] >= rank) {
        break;
      }
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = rank;
  }

  const cpu::CastClusterPlan& plan_;
  const CastClusterParams& params_;
  int32_t *waiting_, *next_;
  int64_t next_count_ = 0;
  uint64_t** heap_of_;  // by cluster; null: not made yet
  uint64_t *all_heaps_, *heaps_ = nullptr;
  int32_t* rows_;    // of keys: the kept ones, and those of one block
  int32_t* row_of_;  // by token; -1: not kept
  int64_t kept_rows_, used_rows_ = 0;
  int64_t block_rows_[kBlock];

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
