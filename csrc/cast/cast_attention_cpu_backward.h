// Backward of cast_attention on the CPU: mixing, then clusters. See cast_attention_cpu_plan.h.
//
// With G the gradient of out, P the mixing weights, D[i, c] = G_i . O[c, slot of i] for members and G_i . r_c for
// others, delta_i = sum over c of P[i, c] D[i, c], a the weights within a cluster and b those of its summary:
//
//   mixing    dZ = P (D - delta), of which come parts of dq, ds and dphi;  dr_c = sum over non-members of P[i, c] G_i
//   clusters  dO = P G;  dT = a (dO . v - dO . O);  dY = b (dr . v - dr . r), of which come dk, dv and the rest
//
// Each gradient of a token is the part of mixing, to which clusters add theirs in ascending order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cast/cast_attention_cpu_forward.h"
#include "cast/cast_attention_cpu_plan.h"
#include "cast/cast_attention_cpu_products.h"
#include "cast/cast_attention_cpu_rows.h"
#include "common/scratch.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// ---- mixing ----

template <typename S>
class BackwardMixing {
  using T = Accumulate<S>;

 public:
  BackwardMixing(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params)
      : plan_(plan),
        params_(params),
        p_(params.forward),
        dim_(p_.sizes.dim),
        clusters_(p_.sizes.clusters),
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
    const int64_t sums = (pair_index * plan_.chunks + chunk) * cpu::padded_rows(clusters_) * dim_pitch_;
    grad_surrogates_ = at<T>(plan_.chunk_surrogates, sums);
    grad_summaries_ = at<T>(plan_.chunk_summaries, sums);
    clear_gradients_of_loners(pair, first, end);
    if (plan_.any_occupied[pair.sequence] == 0) {
      std::fill_n(grad_surrogates_, clusters_ * dim_pitch_, T{0});
      std::fill_n(grad_summaries_, clusters_ * dim_pitch_, T{0});
      std::fill_n(at<T>(plan_.gate_sums, pair.index * p_.sizes.tokens + first), end - first, T{0});
      const HeadRows<S> grad_q = head_rows<S>(params_.grad_q, pair.sequence, pair.head);
      for (int64_t token = first; token < end; token++) {
        std::fill_n(grad_q.row(token), dim_, S{});
      }
      return;
    }
    transpose_rows(at<const T>(p_.summaries, pair_index * clusters_ * dim_), dim_, clusters_, dim_, summary_columns_,
                   cluster_pitch_);
    for (int64_t token = first; token < end; token += plan_.token_rows) {
      mix(pair, token, std::min(plan_.token_rows, end - token), token > first);
    }
  }

 private:
  void place(Arena& arena) {
    const int64_t rows = plan_.token_rows;
    tokens_ = arena.take<int32_t>(rows);
    queries_ = arena.take<T>(rows * dim_pitch_);
    grads_ = arena.take<T>(rows * dim_pitch_);
    grad_queries_ = arena.take<T>(rows * dim_pitch_);
    scores_ = arena.take<T>(rows * cluster_pitch_);
    weights_ = arena.take<T>(rows * cluster_pitch_);
    received_ = arena.take<T>(rows * cluster_pitch_);
    summary_columns_ = arena.take<T>(dim_ * cluster_pitch_);
  }

  // No cluster writes to the keys and values of tokens that are in none.
  void clear_gradients_of_loners(const Pair& pair, int64_t first, int64_t end) const {
    const int64_t* memberships = plan_.first_membership + pair.sequence * (p_.sizes.tokens + 1);
    const HeadRows<S> grad_k = head_rows<S>(params_.grad_k, pair.sequence, pair.head);
    const HeadRows<S> grad_v = head_rows<S>(params_.grad_v, pair.sequence, pair.head);
    for (int64_t token = first; token < end; token++) {
      if (memberships[token] == memberships[token + 1]) {
        std::fill_n(grad_k.row(token), dim_, S{});
        std::fill_n(grad_v.row(token), dim_, S{});
      }
    }
  }

  void mix(const Pair& pair, int64_t first, int64_t rows, bool add) {
    list_tokens(p_.padding, pair.sequence, first, rows, tokens_);
    prefetch_members<S>(plan_, p_, pair.sequence, p_.intra, pair.index, first, rows);
    gather_rows(head_rows<const S>(p_.q, pair.sequence, pair.head), tokens_, rows, dim_, queries_, dim_pitch_);
    gather_rows(head_rows<const S>(params_.grad_out, pair.sequence, pair.head), tokens_, rows, dim_, grads_,
                dim_pitch_);
    multiply(rows, clusters_, dim_, queries_, dim_pitch_,
             at<T>(plan_.surrogate_columns, pair.head * dim_ * cluster_pitch_), cluster_pitch_, scores_, cluster_pitch_,
             false);
    multiply(rows, clusters_, dim_, grads_, dim_pitch_, summary_columns_, cluster_pitch_, received_, cluster_pitch_,
             false);
    for (int64_t i = 0; i < rows; i++) {
      if (tokens_[i] < 0) {
        std::fill_n(weights_ + i * cluster_pitch_, in_vectors<T>(clusters_), T{0});
        std::fill_n(received_ + i * cluster_pitch_, in_vectors<T>(clusters_), T{0});
        *at<T>(plan_.gate_sums, pair.index * p_.sizes.tokens + first + i) = 0;
      } else {
        differentiate(pair, first + i, i);
      }
    }
    multiply(rows, dim_, clusters_, received_, cluster_pitch_,
             at<T>(plan_.surrogates, pair.head * cpu::padded_rows(clusters_) * dim_pitch_), dim_pitch_, grad_queries_,
             dim_pitch_, false);
    multiply<Left::transposed>(clusters_, dim_, rows, received_, cluster_pitch_, queries_, dim_pitch_, grad_surrogates_,
                               dim_pitch_, add);
    multiply<Left::transposed>(clusters_, dim_, rows, weights_, cluster_pitch_, grads_, dim_pitch_, grad_summaries_,
                               dim_pitch_, add);
    const HeadRows<S> grad_q = head_rows<S>(params_.grad_q, pair.sequence, pair.head);
    for (int64_t i = 0; i < rows; i++) {
      store_row(grad_q.row(first + i), grad_queries_ + i * dim_pitch_, T{1}, dim_);
    }
  }

  // Turns the row of D into that of the gradient of q . s, and leaves in `weights_` P of the clusters that the token is
  // not in.
  void differentiate(const Pair& pair, int64_t token, int64_t i) {
    const int64_t* memberships = plan_.first_membership + pair.sequence * (p_.sizes.tokens + 1);
    const cpu::CastMembership* places = plan_.memberships + pair.sequence * clusters_ * p_.slots;
    const T* absent = at<T>(plan_.absent, pair.sequence * cluster_pitch_);
    const int64_t pair_slots = pair.index * clusters_ * p_.slots;
    const T gate = *at<T>(plan_.query_gate, pair.sequence * p_.sizes.tokens + token);
    const T lse = *at<T>(p_.lse_mix, pair.index * p_.sizes.tokens + token);
    T* scores = scores_ + i * cluster_pitch_;
    T* weights = weights_ + i * cluster_pitch_;
    T* received = received_ + i * cluster_pitch_;
    for (int64_t c = 0; c < clusters_; c += kLanes<T>) {
      const Vec<T> score = multiply_add(load(scores + c), broadcast(gate), load(absent + c));
      store(weights + c, WeightPower<T>::of((score - broadcast(lse)) * broadcast(WeightPower<T>::kBase)));
    }
    for (int64_t m = memberships[token]; m < memberships[token + 1]; m++) {
      const int64_t cluster = places[m].cluster;
      const int64_t slot = pair_slots + cluster * p_.slots + places[m].slot;
      const T value = dot(grads_ + i * dim_pitch_, at<const S>(p_.intra, slot * dim_), dim_);
      received[cluster] = value;
      *at<T>(plan_.mix_weight, slot) = weights[cluster];
      *at<T>(plan_.mix_delta, slot) = weights[cluster] * value;
    }
    Vec<T> delta_lanes{};
    for (int64_t c = 0; c < clusters_; c += kLanes<T>) {
      accumulate(delta_lanes, load(weights + c), load(received + c));
    }
    const Vec<T> delta = broadcast(sum_of_lanes(delta_lanes));
    Vec<T> gate_lanes{};
    for (int64_t c = 0; c < clusters_; c += kLanes<T>) {
      const Vec<T> grad = load(weights + c) * (load(received + c) - delta);
      accumulate(gate_lanes, grad, load(scores + c));
      store(received + c, grad * broadcast(gate));
    }
    *at<T>(plan_.gate_sums, pair.index * p_.sizes.tokens + token) =
        sum_of_lanes(gate_lanes) * static_cast<T>(1.0 / p_.tau_q);
    for (int64_t m = memberships[token]; m < memberships[token + 1]; m++) {
      weights[places[m].cluster] = T{0};
    }
  }

  const CastAttentionPlan& plan_;
  const CastAttentionBackwardParams& params_;
  const CastAttentionParams& p_;
  const int64_t dim_, clusters_, dim_pitch_, cluster_pitch_;
  int32_t* tokens_;
  T *queries_, *grads_, *grad_queries_;
  T *scores_, *weights_, *received_;
  T* summary_columns_;
  T *grad_surrogates_ = nullptr, *grad_summaries_ = nullptr;
};

template <typename S>
static void backward_mixing(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params, int64_t begin,
                            int64_t end) {
  BackwardMixing<S> mixing(plan, params);
  for (int64_t task = begin; task < end; task++) {
    mixing.run(task % plan.pairs, task / plan.pairs);
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- clusters ----

// Gradients of the members of a cluster, (3, slots, e) with padded rows: of q, k and v.
template <typename T>
struct MemberGradients {
  T *q, *k, *v;

  MemberGradients() : q(nullptr), k(nullptr), v(nullptr) {}
  MemberGradients(T* rows, int64_t slots, int64_t pitch)
      : q(rows), k(rows + cpu::padded_rows(slots) * pitch), v(rows + 2 * cpu::padded_rows(slots) * pitch) {}
};

template <typename S>
class BackwardCluster {
  using T = Accumulate<S>;

 public:
  BackwardCluster(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params)
      : plan_(plan),
        params_(params),
        p_(params.forward),
        dropout_(params.forward),
        dim_(p_.sizes.dim),
        dim_pitch_(cpu::row_pitch<T>(dim_)),
        key_pitch_(cpu::row_pitch<T>(std::min(p_.slots, cpu::kCastKeys))) {
    Arena sizes(nullptr);
    place(sizes);
    Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
    place(arena);
  }

  // Of one cluster, into rows of the task's own or of `wave`.
  void run(int64_t pair_index, int64_t cluster, T* wave) {
    const Pair pair(p_.sizes, pair_index);
    grads_ = MemberGradients<T>(wave != nullptr ? wave : rows_, p_.slots, dim_pitch_);
    first_slot_ = (pair_index * p_.sizes.clusters + cluster) * p_.slots;
    list(pair, cluster);
    gather_queries(pair);
    sum_summary_gradient(pair, cluster);
    T* grad_surrogate = at<T>(plan_.cluster_surrogates, (pair_index * p_.sizes.clusters + cluster) * dim_pitch_);
    std::fill_n(grad_surrogate, dim_pitch_, T{0});
    for (int64_t key = 0; key < count_; key += cpu::kCastKeys) {
      const int64_t keys = std::min(cpu::kCastKeys, count_ - key);
      gather_keys(pair, key, keys);
      summary_gradients(pair, cluster, key, keys, grad_surrogate);
      for (int64_t query = 0; query < count_; query += cpu::kCastQueryRows) {
        attention_gradients(query, std::min(cpu::kCastQueryRows, count_ - query), key, keys);
      }
    }
  }

  // Adds what run() left to the gradients of the tokens, one tensor of the three at a time.
  void add(int64_t pair_index, int64_t cluster, T* wave, int tensor) {
    const Pair pair(p_.sizes, pair_index);
    if (wave != nullptr) {
      list(pair, cluster);
    }
    const MemberGradients<T> grads(wave != nullptr ? wave : rows_, p_.slots, dim_pitch_);
    const TokenView* const views[] = {&params_.grad_q, &params_.grad_k, &params_.grad_v};
    const T* const rows[] = {grads.q, grads.k, grads.v};
    const HeadRows<S> to = head_rows<S>(*views[tensor], pair.sequence, pair.head);
    const int64_t* memberships = plan_.first_membership + pair.sequence * (p_.sizes.tokens + 1);
    const cpu::CastMembership* places = plan_.memberships + pair.sequence * p_.sizes.clusters * p_.slots;
    for (int64_t j = 0; j < count_; j++) {
      const int64_t token = tokens_[j];
      const T* row = rows[tensor] + j * dim_pitch_;
      if (j + kAhead < count_) {
        prefetch_row(to.row(tokens_[j + kAhead]), dim_);
      }
      // The first cluster of a token finds nothing there yet, except the part that mixing has in dq.
      if (tensor != 0 && places[memberships[token]].cluster == cluster) {
        store_row(to.row(token), row, T{1}, dim_);
      } else {
        add_to_row(to.row(token), row, dim_);
      }
    }
  }

 private:
  void place(Arena& arena) {
    const int64_t most_keys = std::min(p_.slots, cpu::kCastKeys);
    const int64_t rows = cpu::padded_rows(p_.slots);
    tokens_ = arena.take<int32_t>(p_.slots + kListPadding);
    slots_ = arena.take<int32_t>(p_.slots + kListPadding);
    rows_ = plan_.wave_clusters > 0 ? nullptr : arena.take<T>(3 * rows * dim_pitch_);
    queries_ = arena.take<T>(rows * dim_pitch_);
    grad_outs_ = arena.take<T>(rows * dim_pitch_);
    keys_ = arena.take<T>(cpu::padded_rows(most_keys) * dim_pitch_);
    key_columns_ = arena.take<T>(dim_ * key_pitch_);
    value_columns_ = arena.take<T>(dim_ * key_pitch_);
    weights_ = arena.take<T>(cpu::kCastQueryRows * key_pitch_);
    grad_scores_ = arena.take<T>(cpu::kCastQueryRows * key_pitch_);
    similarity_ = arena.take<T>(key_pitch_);
    received_ = arena.take<T>(key_pitch_);
    keep_ = arena.take<T>(most_keys + kListPadding);
    grad_summary_ = arena.take<T>(dim_pitch_);
  }

  void list(const Pair& pair, int64_t cluster) {
    count_ =
        list_members(p_.index + (pair.sequence * p_.sizes.clusters + cluster) * p_.slots, p_.slots, tokens_, slots_);
  }

  void gather_queries(const Pair& pair) {
    const T* mix_weight = at<T>(plan_.mix_weight, first_slot_);
    gather_rows(head_rows<const S>(p_.q, pair.sequence, pair.head), tokens_, count_, dim_, queries_, dim_pitch_);
    gather_scaled_rows(head_rows<const S>(params_.grad_out, pair.sequence, pair.head), tokens_, count_, dim_,
                       grad_outs_, dim_pitch_, [&](int64_t j) { return mix_weight[slots_[j]]; });
  }

  void gather_keys(const Pair& pair, int64_t key, int64_t keys) {
    const HeadRows<const S> from = head_rows<const S>(p_.k, pair.sequence, pair.head);
    gather_rows(from, tokens_ + key, keys, dim_, keys_, dim_pitch_);
    transpose_rows(keys_, dim_pitch_, keys, dim_, key_columns_, key_pitch_);
    gather_columns(head_rows<const S>(p_.v, pair.sequence, pair.head), tokens_ + key, keys, dim_, value_columns_,
                   key_pitch_);
  }

  void sum_summary_gradient(const Pair& pair, int64_t cluster) {
    const int64_t chunk_step = cpu::padded_rows(p_.sizes.clusters) * dim_pitch_;
    const T* part = at<T>(plan_.chunk_summaries, pair.index * plan_.chunks * chunk_step + cluster * dim_pitch_);
    std::fill_n(grad_summary_, dim_pitch_, T{0});
    for (int64_t chunk = 0; chunk < plan_.chunks; chunk++, part += chunk_step) {
      for (int64_t d = 0; d < dim_; d++) {
        grad_summary_[d] += part[d];
      }
    }
  }

  // Gradients of the summary, which open the sums of dk and dv.
  void summary_gradients(const Pair& pair, int64_t cluster, int64_t key, int64_t keys, T* grad_surrogate) {
    const int64_t row = pair.head * cpu::padded_rows(p_.sizes.clusters) + cluster;
    const T* surrogate = at<T>(plan_.surrogates, row * dim_pitch_);
    const int64_t place = pair.index * p_.sizes.clusters + cluster;
    const T lse = *at<T>(p_.lse_summary, place);
    const T total = dot(grad_summary_, at<const T>(p_.summaries, place * dim_), dim_);
    const T* gates = at<T>(plan_.key_gate, pair.sequence * p_.sizes.tokens);
    T* gate_parts = at<T>(plan_.mix_weight, first_slot_);
    multiply_row(keys, dim_, surrogate, key_columns_, key_pitch_, similarity_, false);
    multiply_row(keys, dim_, grad_summary_, value_columns_, key_pitch_, received_, false);
    for (int64_t j = 0; j < keys; j++) {
      const T gate = gates[tokens_[key + j]];
      const T weight = std::exp(similarity_[j] * gate - lse);
      const T grad = weight * (received_[j] - total);
      gate_parts[slots_[key + j]] = grad * similarity_[j] * static_cast<T>(1.0 / p_.tau_k);
      similarity_[j] = grad * gate;
      store_row(grads_.v + (key + j) * dim_pitch_, grad_summary_, weight, in_vectors<T>(dim_));
      store_row(grads_.k + (key + j) * dim_pitch_, surrogate, similarity_[j], in_vectors<T>(dim_));
    }
    multiply_row(dim_, keys, similarity_, keys_, dim_pitch_, grad_surrogate, true);
  }

  void attention_gradients(int64_t query, int64_t rows, int64_t key, int64_t keys) {
    T* queries = queries_ + query * dim_pitch_;
    T* grad_outs = grad_outs_ + query * dim_pitch_;
    multiply(rows, keys, dim_, queries, dim_pitch_, key_columns_, key_pitch_, weights_, key_pitch_, false);
    multiply(rows, keys, dim_, grad_outs, dim_pitch_, value_columns_, key_pitch_, grad_scores_, key_pitch_, false);
    for (int64_t i = 0; i < rows; i++) {
      differentiate(slots_[query + i], key, keys, weights_ + i * key_pitch_, grad_scores_ + i * key_pitch_);
    }
    multiply<Left::transposed>(keys, dim_, rows, weights_, key_pitch_, grad_outs, dim_pitch_,
                               grads_.v + key * dim_pitch_, dim_pitch_, true);
    multiply<Left::transposed>(keys, dim_, rows, grad_scores_, key_pitch_, queries, dim_pitch_,
                               grads_.k + key * dim_pitch_, dim_pitch_, true);
    multiply(rows, dim_, keys, grad_scores_, key_pitch_, keys_, dim_pitch_, grads_.q + query * dim_pitch_, dim_pitch_,
             key > 0);
  }

  // Turns scores into weights and the gradients of weights into those of q . k.
  void differentiate(int64_t slot, int64_t key, int64_t keys, T* weights, T* grads) {
    const T shift = *at<T>(p_.lse_intra, first_slot_ + slot);
    const Vec<T> lse = broadcast(shift * WeightPower<T>::kBase);
    const Vec<T> factor = broadcast(static_cast<T>(1.0 / p_.tau) * WeightPower<T>::kBase);
    const Vec<T> delta = broadcast(*at<T>(plan_.mix_delta, first_slot_ + slot));
    const Vec<T> scale = broadcast(static_cast<T>(1.0 / p_.tau));
    if (!dropout_.active()) {
      for (int64_t j = 0; j < keys; j += kLanes<T>) {
        const Vec<T> weight = WeightPower<T>::of(load(weights + j) * factor - lse);
        store(grads + j, weight * (load(grads + j) - delta) * scale);
        store(weights + j, weight);
      }
      return;
    }
    dropout_row(dropout_, first_slot_ + slot, slots_ + key, keys, keep_);
    for (int64_t j = 0; j < keys; j += kLanes<T>) {
      const Vec<T> weight = WeightPower<T>::of(load(weights + j) * factor - lse);
      const Vec<T> keep = load(keep_ + j);
      store(grads + j, weight * (keep * load(grads + j) - delta) * scale);
      store(weights + j, weight * keep);
    }
  }

  const CastAttentionPlan& plan_;
  const CastAttentionBackwardParams& params_;
  const CastAttentionParams& p_;
  const Dropout<T> dropout_;
  const int64_t dim_, dim_pitch_, key_pitch_;
  int64_t count_ = 0;
  int64_t first_slot_ = 0;    // of the cluster, among all
  int32_t *tokens_, *slots_;  // of the members
  T* rows_;
  MemberGradients<T> grads_;
  T *queries_, *grad_outs_;  // of all members
  T *keys_, *key_columns_, *value_columns_;
  T *weights_, *grad_scores_;
  T *similarity_, *received_, *keep_;
  T* grad_summary_;
};

constexpr int kGradients = 3;  // of q, k and v

template <typename S>
static void run_whole_cluster(BackwardCluster<S>& work, int64_t pair, int64_t cluster) {
  work.run(pair, cluster, nullptr);
  for (int tensor = 0; tensor < kGradients; tensor++) {
    work.add(pair, cluster, nullptr, tensor);
  }
}

template <typename S>
static void backward_clusters(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params, int64_t begin,
                              int64_t end) {
  BackwardCluster<S> work(plan, params);
  for (int64_t task = begin; task < end; task++) {
    run_whole_cluster(work, task % plan.pairs, task / plan.pairs);
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
static void backward_pairs(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params, int64_t begin,
                           int64_t end) {
  BackwardCluster<S> work(plan, params);
  for (int64_t cluster = 0; cluster < params.forward.sizes.clusters; cluster++) {
    for (int64_t pair = begin; pair < end; pair++) {
      run_whole_cluster(work, pair, cluster);
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
STURDY_ALWAYS_INLINE Accumulate<S>* wave_rows(const CastAttentionPlan& plan, const CastAttentionParams& p, int64_t pair,
                                              int64_t in_wave) {
  using T = Accumulate<S>;
  const int64_t rows = kGradients * cpu::padded_rows(p.slots) * cpu::row_pitch<T>(p.sizes.dim);
  return at<T>(plan.wave_rows, (pair * plan.wave_clusters + in_wave) * rows);
}

template <typename S>
static void backward_wave(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params,
                          int64_t first_cluster, int64_t /*clusters*/, int64_t begin, int64_t end) {
  BackwardCluster<S> work(plan, params);
  for (int64_t task = begin; task < end; task++) {
    const int64_t pair = task % plan.pairs;
    const int64_t in_wave = task / plan.pairs;
    work.run(pair, first_cluster + in_wave, wave_rows<S>(plan, params.forward, pair, in_wave));
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
static void add_wave(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params, int64_t first_cluster,
                     int64_t clusters, int64_t begin, int64_t end) {
  BackwardCluster<S> work(plan, params);
  for (int64_t task = begin; task < end; task++) {
    const int64_t pair = task / kGradients;
    for (int64_t in_wave = 0; in_wave < clusters; in_wave++) {
      work.add(pair, first_cluster + in_wave, wave_rows<S>(plan, params.forward, pair, in_wave), task % kGradients);
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
