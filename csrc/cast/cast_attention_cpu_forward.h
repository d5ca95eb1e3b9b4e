// Forward of cast_attention on the CPU: clusters, then mixing. See cast_attention_cpu_plan.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cast/cast_attention_cpu_plan.h"
#include "cast/cast_attention_cpu_products.h"
#include "cast/cast_attention_cpu_rows.h"
#include "common/scratch.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::CastAttentionPlan;

// One head of one sequence.
struct Pair {
  int64_t index, sequence, head;

  Pair(const CastSizes& sizes, int64_t pair) : index(pair), sequence(pair / sizes.heads), head(pair % sizes.heads) {}
};

template <typename T>
STURDY_ALWAYS_INLINE T* at(void* data, int64_t offset) {
  return data == nullptr ? nullptr : static_cast<T*>(data) + offset;
}

// ---- surrogates ----

template <typename S>
static void pack_surrogates(const CastAttentionPlan& plan, const CastAttentionParams& p, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const int64_t clusters = p.sizes.clusters;
  const int64_t dim = p.sizes.dim;
  const int64_t dim_pitch = cpu::row_pitch<T>(dim);
  const int64_t cluster_pitch = cpu::row_pitch<T>(clusters);
  for (int64_t head = begin; head < end; head++) {
    const HeadRows<const S> from = head_rows<const S>(p.surrogates, 0, head);
    T* rows = at<T>(plan.surrogates, head * cpu::padded_rows(clusters) * dim_pitch);
    for (int64_t c = 0; c < cpu::padded_rows(clusters); c++) {
      for (int64_t d = 0; d < dim_pitch; d += kLanes<T>) {
        store(rows + c * dim_pitch + d, c < clusters && d < dim ? load_up_to(from.row(c) + d, dim - d) : zero<T>());
      }
    }
    transpose_rows(rows, dim_pitch, clusters, dim, at<T>(plan.surrogate_columns, head * dim * cluster_pitch),
                   cluster_pitch);
  }
}

// ---- clusters ----

// One cluster's keys and values, and its attention and summary.
template <typename S>
class ForwardCluster {
  using T = Accumulate<S>;

 public:
  ForwardCluster(const CastAttentionPlan& plan, const CastAttentionParams& p)
      : plan_(plan),
        p_(p),
        dropout_(p),
        dim_(p.sizes.dim),
        dim_pitch_(cpu::row_pitch<T>(p.sizes.dim)),
        key_pitch_(cpu::row_pitch<T>(std::min(p.slots, cpu::kCastKeys))) {
    Arena sizes(nullptr);
    place(sizes);
    Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
    place(arena);
  }

  void run(int64_t pair_index, int64_t cluster, int64_t part) {
    const Pair pair(p_.sizes, pair_index);
    const int64_t place = (pair_index - plan_.kept_from) * p_.sizes.clusters + cluster;
    const int32_t* index = p_.index + (pair.sequence * p_.sizes.clusters + cluster) * p_.slots;
    const int64_t count = list_members(index, p_.slots, tokens_, slots_);
    S* intra = at<S>(plan_.intra, place * p_.slots * dim_);
    T* lse = at<T>(plan_.lse_intra, place * p_.slots);
    if (part == 0) {
      clear_empty_slots(index, count, intra, lse);
    }
    const int64_t first = part * plan_.part_queries;
    const int64_t end = std::min(count, first + plan_.part_queries);
    if (first < end || part == 0) {
      gather_keys(pair, count);
    }
    if (part == 0) {
      summarize(pair, cluster, count, at<T>(plan_.summaries, place * dim_), at<T>(plan_.lse_summary, place));
    }
    const int64_t first_row = (pair_index * p_.sizes.clusters + cluster) * p_.slots;  // of weights, as dropout counts
    for (int64_t query = first; query < end; query += cpu::kCastQueryRows) {
      attend(pair, query, std::min(cpu::kCastQueryRows, end - query), count, first_row, intra, lse);
    }
  }

 private:
  void place(Arena& arena) {
    const int64_t blocks = cpu::in_steps(p_.slots, cpu::kCastKeys);
    tokens_ = arena.take<int32_t>(p_.slots + kListPadding);
    slots_ = arena.take<int32_t>(p_.slots + kListPadding);
    key_columns_ = arena.take<T>(blocks * dim_ * key_pitch_);
    values_ = arena.take<T>(cpu::padded_rows(p_.slots) * dim_pitch_);
    row_ = arena.take<T>(in_vectors<T>(std::max<int64_t>(p_.slots, 1)) + cpu::row_pitch<T>(dim_));
    queries_ = arena.take<T>(cpu::kCastQueryRows * dim_pitch_);
    scores_ = arena.take<T>(cpu::kCastQueryRows * key_pitch_);
    sums_ = arena.take<T>(cpu::kCastQueryRows * dim_pitch_);
    keep_ = arena.take<T>(std::min(p_.slots, cpu::kCastKeys) + kListPadding);
  }

  void clear_empty_slots(const int32_t* index, int64_t count, S* intra, T* lse) const {
    for (int64_t slot = 0; slot < p_.slots && count < p_.slots; slot++) {
      if (index[slot] < 0) {
        std::fill_n(intra + slot * dim_, dim_, S{});
        if (lse != nullptr) {
          lse[slot] = kMinusInfinity<T>;
        }
      }
    }
  }

  void gather_keys(const Pair& pair, int64_t count) {
    const HeadRows<const S> keys = head_rows<const S>(p_.k, pair.sequence, pair.head);
    for (int64_t key = 0; key < count; key += cpu::kCastKeys) {
      gather_columns(keys, tokens_ + key, std::min(cpu::kCastKeys, count - key), dim_,
                     key_columns_ + key / cpu::kCastKeys * dim_ * key_pitch_, key_pitch_);
    }
    gather_rows(head_rows<const S>(p_.v, pair.sequence, pair.head), tokens_, count, dim_, values_, dim_pitch_);
  }

  void summarize(const Pair& pair, int64_t cluster, int64_t count, T* summary, T* lse) {
    if (count == 0) {
      std::fill_n(summary, dim_, T{0});
      if (lse != nullptr) {
        *lse = kMinusInfinity<T>;
      }
      return;
    }
    const T* surrogate =
        at<T>(plan_.surrogates, (pair.head * cpu::padded_rows(p_.sizes.clusters) + cluster) * dim_pitch_);
    const T* gate = at<T>(plan_.key_gate, pair.sequence * p_.sizes.tokens);
    T* weights = row_;
    for (int64_t key = 0; key < count; key += cpu::kCastKeys) {
      multiply_row(std::min(cpu::kCastKeys, count - key), dim_, surrogate,
                   key_columns_ + key / cpu::kCastKeys * dim_ * key_pitch_, key_pitch_, weights + key, false);
    }
    for (int64_t j = 0; j < count; j++) {
      weights[j] *= gate[tokens_[j]];
    }
    close_row(weights, count);
    const T most = largest_of_row(weights, count);
    const T sum = exp_of_row(weights, count, most, T{1});
    T* result = row_ + in_vectors<T>(count);
    multiply_row(dim_, count, weights, values_, dim_pitch_, result, false);
    for (int64_t d = 0; d < dim_; d++) {
      summary[d] = result[d] / sum;
    }
    if (lse != nullptr) {
      *lse = most + std::log(sum);
    }
  }

  // Queries [query, query + rows) against all keys, some at a time.
  void attend(const Pair& pair, int64_t query, int64_t rows, int64_t count, int64_t first_row, S* intra, T* lse) {
    gather_rows(head_rows<const S>(p_.q, pair.sequence, pair.head), tokens_ + query, rows, dim_, queries_, dim_pitch_);
    T most[cpu::kCastQueryRows];
    T sum[cpu::kCastQueryRows];
    const T scale = static_cast<T>(1.0 / p_.tau);
    for (int64_t key = 0; key < count; key += cpu::kCastKeys) {
      const int64_t keys = std::min(cpu::kCastKeys, count - key);
      multiply(rows, keys, dim_, queries_, dim_pitch_, key_columns_ + key / cpu::kCastKeys * dim_ * key_pitch_,
               key_pitch_, scores_, key_pitch_, false);
      for (int64_t i = 0; i < rows; i++) {
        T* row = scores_ + i * key_pitch_;
        close_row(row, keys);
        const T largest = largest_of_row(row, keys);
        if (key == 0) {
          most[i] = largest;
          sum[i] = exp_of_row(row, keys, largest, scale);
        } else {
          const T before = most[i];
          most[i] = std::max(before, largest);
          const T shrink = std::exp((before - most[i]) * scale);
          sum[i] = sum[i] * shrink + exp_of_row(row, keys, most[i], scale);
          store_row(sums_ + i * dim_pitch_, sums_ + i * dim_pitch_, shrink, in_vectors<T>(dim_));
        }
        if (dropout_.active()) {
          drop(first_row + slots_[query + i], key, keys, row);
        }
      }
      multiply(rows, dim_, keys, scores_, key_pitch_, values_ + key * dim_pitch_, dim_pitch_, sums_, dim_pitch_,
               key > 0);
    }
    for (int64_t i = 0; i < rows; i++) {
      const int64_t slot = slots_[query + i];
      store_row(intra + slot * dim_, sums_ + i * dim_pitch_, T{1} / sum[i], dim_);
      if (lse != nullptr) {
        lse[slot] = most[i] * scale + std::log(sum[i]);
      }
    }
  }

  void drop(int64_t row, int64_t key, int64_t keys, T* weights) {
    dropout_row(dropout_, row, slots_ + key, keys, keep_);
    for (int64_t j = 0; j < keys; j += kLanes<T>) {
      store(weights + j, load(weights + j) * load(keep_ + j));
    }
  }

  const CastAttentionPlan& plan_;
  const CastAttentionParams& p_;
  const Dropout<T> dropout_;
  const int64_t dim_, dim_pitch_, key_pitch_;
  int32_t *tokens_, *slots_;  // of the members
  T* key_columns_;            // [block of keys][dim][key]
  T* values_;
  T* row_;  // weights of the summary, and the summary
  T *queries_, *scores_, *sums_, *keep_;
};

template <typename S>
static void forward_clusters(const CastAttentionPlan& plan, const CastAttentionParams& p, int64_t begin, int64_t end) {
  ForwardCluster<S> cluster(plan, p);
  for (int64_t task = begin; task < end; task++) {
    const int64_t whole = task / plan.query_parts;
    cluster.run(plan.first_pair + whole % plan.group, whole / plan.group, task % plan.query_parts);
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- mixing ----

// The tokens [first, first + rows) of a sequence, -1 where there is padding.
STURDY_ALWAYS_INLINE void list_tokens(const PaddingView& padding, int64_t sequence, int64_t first, int64_t rows,
                                      int32_t* tokens) {
  for (int64_t i = 0; i < rows; i++) {
    const bool none =
        padding.data != nullptr && padding.data[sequence * padding.stride[0] + (first + i) * padding.stride[1]] != 0;
    tokens[i] = none ? -1 : static_cast<int32_t>(first + i);
  }
}

// Fetches what tokens have of attention within their clusters, which lies anywhere; `pair` counts from `intra`.
template <typename S>
STURDY_ALWAYS_INLINE void prefetch_members(const CastAttentionPlan& plan, const CastAttentionParams& p,
                                           int64_t sequence, void* intra, int64_t pair, int64_t first, int64_t rows) {
  const int64_t slots = p.sizes.clusters * p.slots;
  const int64_t* memberships = plan.first_membership + sequence * (p.sizes.tokens + 1);
  const cpu::CastMembership* places = plan.memberships + sequence * slots;
  const S* from = at<S>(intra, pair * slots * p.sizes.dim);
  for (int64_t m = memberships[first]; m < memberships[first + rows]; m++) {
    prefetch_row(from + (places[m].cluster * p.slots + places[m].slot) * p.sizes.dim, p.sizes.dim);
  }
}

template <typename S>
class ForwardMixing {
  using T = Accumulate<S>;

 public:
  ForwardMixing(const CastAttentionPlan& plan, const CastAttentionParams& p)
      : plan_(plan),
        p_(p),
        dim_(p.sizes.dim),
        clusters_(p.sizes.clusters),
        dim_pitch_(cpu::row_pitch<T>(dim_)),
        cluster_pitch_(cpu::row_pitch<T>(clusters_)) {
    Arena sizes(nullptr);
    place(sizes);
    Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
    place(arena);
  }

  void run(int64_t pair_index, int64_t chunk) {
    const Pair pair(p_.sizes, pair_index);
    const int64_t first = chunk * plan_.chunk_tokens;
    const int64_t end = std::min(p_.sizes.tokens, first + plan_.chunk_tokens);
    const HeadRows<S> out = head_rows<S>(p_.out, pair.sequence, pair.head);
    if (plan_.any_occupied[pair.sequence] == 0) {
      clear_chunk(pair, first, end, out);
      return;
    }
    const int64_t local = pair_index - plan_.kept_from;
    const T* summaries = at<T>(plan_.summaries, local * clusters_ * dim_);
    for (int64_t c = 0; c < clusters_; c++) {
      copy_summary(summaries + c * dim_, summaries_ + c * dim_pitch_);
    }
    for (int64_t token = first; token < end; token += plan_.token_rows) {
      mix(pair, token, std::min(plan_.token_rows, end - token), out);
    }
  }

 private:
  void place(Arena& arena) {
    const int64_t rows = plan_.token_rows;
    tokens_ = arena.take<int32_t>(rows);
    queries_ = arena.take<T>(rows * dim_pitch_);
    weights_ = arena.take<T>(rows * cluster_pitch_);
    taken_ = arena.take<T>(rows * clusters_);
    inverse_ = arena.take<T>(rows);
    sums_ = arena.take<T>(rows * dim_pitch_);
    summaries_ = arena.take<T>(clusters_ * dim_pitch_);
  }

  void copy_summary(const T* from, T* to) const {
    for (int64_t d = 0; d < dim_; d += kLanes<T>) {
      store(to + d, load_up_to(from + d, dim_ - d));
    }
  }

  void clear_chunk(const Pair& pair, int64_t first, int64_t end, const HeadRows<S>& out) const {
    for (int64_t token = first; token < end; token++) {
      std::fill_n(out.row(token), dim_, S{});
      store_lse(pair, token, kMinusInfinity<T>);
    }
  }

  void store_lse(const Pair& pair, int64_t token, T value) const {
    if (plan_.lse_mix != nullptr) {
      *at<T>(plan_.lse_mix, (pair.index - plan_.kept_from) * p_.sizes.tokens + token) = value;
    }
  }

  void mix(const Pair& pair, int64_t first, int64_t rows, const HeadRows<S>& out) {
    const int64_t* memberships = plan_.first_membership + pair.sequence * (p_.sizes.tokens + 1);
    const cpu::CastMembership* places = plan_.memberships + pair.sequence * clusters_ * p_.slots;
    const T* absent = at<T>(plan_.absent, pair.sequence * cluster_pitch_);
    list_tokens(p_.padding, pair.sequence, first, rows, tokens_);
    prefetch_members<S>(plan_, p_, pair.sequence, plan_.intra, pair.index - plan_.kept_from, first, rows);
    gather_rows(head_rows<const S>(p_.q, pair.sequence, pair.head), tokens_, rows, dim_, queries_, dim_pitch_);
    multiply(rows, clusters_, dim_, queries_, dim_pitch_,
             at<T>(plan_.surrogate_columns, pair.head * dim_ * cluster_pitch_), cluster_pitch_, weights_,
             cluster_pitch_, false);
    const T* gate = at<T>(plan_.query_gate, pair.sequence * p_.sizes.tokens);
    const int64_t taken_from = memberships[first];
    for (int64_t i = 0; i < rows; i++) {
      T* row = weights_ + i * cluster_pitch_;
      if (tokens_[i] < 0) {
        store_lse(pair, first + i, kMinusInfinity<T>);
        continue;
      }
      const Vec<T> by = broadcast(gate[first + i]);
      for (int64_t c = 0; c < clusters_; c += kLanes<T>) {
        store(row + c, multiply_add(load(row + c), by, load(absent + c)));
      }
      const T most = largest_of_row(row, clusters_);
      const T sum = exp_of_row(row, clusters_, most, T{1});
      inverse_[i] = T{1} / sum;
      store_lse(pair, first + i, most + std::log(sum));
      // What members take of their own clusters is not the summary.
      for (int64_t m = memberships[first + i]; m < memberships[first + i + 1]; m++) {
        taken_[m - taken_from] = row[places[m].cluster];
        row[places[m].cluster] = T{0};
      }
    }
    const S* intra = at<S>(plan_.intra, (pair.index - plan_.kept_from) * clusters_ * p_.slots * dim_);
    multiply(rows, dim_, clusters_, weights_, cluster_pitch_, summaries_, dim_pitch_, sums_, dim_pitch_, false);
    for (int64_t i = 0; i < rows; i++) {
      if (tokens_[i] < 0) {
        std::fill_n(out.row(first + i), dim_, S{});
        continue;
      }
      T* row = sums_ + i * dim_pitch_;
      for (int64_t m = memberships[first + i]; m < memberships[first + i + 1]; m++) {
        const int64_t slot = places[m].cluster * p_.slots + places[m].slot;
        add_scaled(row, intra + slot * dim_, taken_[m - taken_from], dim_);
      }
      store_row(out.row(first + i), row, inverse_[i], dim_);
    }
  }

  const CastAttentionPlan& plan_;
  const CastAttentionParams& p_;
  const int64_t dim_, clusters_, dim_pitch_, cluster_pitch_;
  int32_t* tokens_;
  T *queries_, *weights_, *taken_, *inverse_, *sums_, *summaries_;
};

template <typename S>
static void forward_mixing(const CastAttentionPlan& plan, const CastAttentionParams& p, int64_t begin, int64_t end) {
  ForwardMixing<S> mixing(plan, p);
  for (int64_t task = begin; task < end; task++) {
    mixing.run(plan.first_pair + task % plan.group, task / plan.group);
  }
  trim_host_scratch(ScratchSlot::task);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
