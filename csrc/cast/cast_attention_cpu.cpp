// cast_attention on the CPU: lays out a call and hands its parts to the kernels of the machine's instruction set.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cast/cast_attention.h"
#include "cast/cast_attention_cpu_plan.h"
#include "common/cpu_features.h"
#include "common/half.h"
#include "common/scratch.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTasksWanted = 16;      // fewer are cut further
constexpr int64_t kLeastChunk = 256;      // tokens of a mixing task
constexpr int64_t kWaveShare = 8;         // a wave's clusters hold this part of the tokens at most
constexpr int64_t kTokensPerCluster = 8;  // in a mixing task, so that its sums over clusters are few beside its tokens
constexpr int64_t kGateGrain = 2048;      // tokens
constexpr int64_t kGroupBytes = int64_t{8} << 20;  // of O, which mixing reads while caches still have it

const CastAttentionKernels& kernels(DType dtype) { return STURDY_ON_CPU_ISA(cast_attention_kernels(dtype)); }

int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// ---- gates ----

template <typename T>
T gate_logit(const GateView& phi, int64_t sequence, int64_t token) {
  const int64_t at = sequence * phi.stride[0] + token * phi.stride[1];
  switch (phi.dtype) {
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(phi.data)[at]);
    case DType::f16:
      return to_float(static_cast<const Half*>(phi.data)[at]);
    case DType::bf16:
      return to_float(static_cast<const BFloat16*>(phi.data)[at]);
    default:
      return static_cast<const float*>(phi.data)[at];
  }
}

bool is_padding(const PaddingView& padding, int64_t sequence, int64_t token) {
  return padding.data != nullptr && padding.data[sequence * padding.stride[0] + token * padding.stride[1]] != 0;
}

// log(1 + e^x) + 1.
template <typename T>
T shifted_softplus(T x) {
  return std::max(x, T{0}) + std::log1p(std::exp(-std::abs(x))) + 1;
}

template <typename T>
void fill_gates(const CastAttentionPlan& plan, const CastAttentionParams& p, int64_t begin, int64_t end) {
  T* query = static_cast<T*>(plan.query_gate);
  T* key = static_cast<T*>(plan.key_gate);
  for (int64_t i = begin; i < end; i++) {
    const int64_t sequence = i / p.sizes.tokens;
    const int64_t token = i % p.sizes.tokens;
    query[i] = 0;
    key[i] = 0;
    if (!is_padding(p.padding, sequence, token)) {
      const T phi = gate_logit<T>(p.phi, sequence, token);
      query[i] = static_cast<T>(shifted_softplus(phi) / p.tau_q);
      key[i] = static_cast<T>(shifted_softplus(-phi) / p.tau_k);
    }
  }
}

// ---- clusters ----

// Which clusters have tokens, and for each token where it is, clusters ascending.
template <typename T>
void list_memberships(const CastAttentionPlan& plan, const CastAttentionParams& p, int64_t sequence) {
  const int64_t clusters = p.sizes.clusters;
  const int64_t tokens = p.sizes.tokens;
  const int32_t* index = p.index + sequence * clusters * p.slots;
  T* absent = static_cast<T*>(plan.absent) + sequence * row_pitch<T>(clusters);
  int64_t* first = plan.first_membership + sequence * (tokens + 1);
  CastMembership* places = plan.memberships + sequence * clusters * p.slots;
  std::fill_n(first, tokens + 1, int64_t{0});
  std::fill_n(absent, row_pitch<T>(clusters), -std::numeric_limits<T>::infinity());
  for (int64_t c = 0; c < clusters; c++) {
    for (int64_t slot = 0; slot < p.slots; slot++) {
      const int64_t token = index[c * p.slots + slot];
      if (token >= 0) {
        first[token + 1]++;
        absent[c] = 0;
      }
    }
  }
  for (int64_t token = 0; token < tokens; token++) {
    first[token + 1] += first[token];
  }
  plan.any_occupied[sequence] = first[tokens] > 0 ? 1 : 0;
  for (int64_t c = 0; c < clusters; c++) {
    for (int64_t slot = 0; slot < p.slots; slot++) {
      const int64_t token = index[c * p.slots + slot];
      if (token >= 0) {  // `first` runs to the end of each token's places, which is the beginning of the next one's
        places[first[token]++] = {static_cast<int32_t>(c), static_cast<int32_t>(slot)};
      }
    }
  }
  for (int64_t token = tokens; token > 0; token--) {
    first[token] = first[token - 1];
  }
  first[0] = 0;
}

// ---- layout ----

CastAttentionPlan make_plan(const CastAttentionParams& p) {
  CastAttentionPlan plan{};
  plan.pairs = p.sizes.batch * p.sizes.heads;
  // Of one sequence alone, so that the batch does not decide how sums are cut.
  plan.token_rows = std::clamp<int64_t>(kCastMixingBlock / p.sizes.clusters / kCastRowStep * kCastRowStep, kCastRowStep,
                                        kCastTokenRows);
  plan.chunk_tokens =
      in_steps(std::max(kLeastChunk, kTokensPerCluster * p.sizes.clusters), kCastTokenRows) * kCastTokenRows;
  plan.chunks = in_steps(p.sizes.tokens, plan.chunk_tokens);
  // Queries do not see each other, so these may be cut as suits the whole call.
  const int64_t tasks = std::max<int64_t>(1, plan.pairs * p.sizes.clusters);
  const int64_t blocks = in_steps(std::max<int64_t>(1, p.slots), kCastQueryRows);
  const int64_t part_blocks = in_steps(blocks, in_steps(kTasksWanted, tasks));
  plan.part_queries = part_blocks * kCastQueryRows;
  plan.query_parts = in_steps(blocks, part_blocks);
  plan.intra = p.intra;
  plan.summaries = p.summaries;
  plan.lse_intra = p.lse_intra;
  plan.lse_summary = p.lse_summary;
  plan.lse_mix = p.lse_mix;
  return plan;
}

template <typename T>
void place_shared(CastAttentionPlan& plan, const CastAttentionParams& p, Arena& arena) {
  const CastSizes& s = p.sizes;
  plan.query_gate = arena.take<T>(s.batch * s.tokens);
  plan.key_gate = arena.take<T>(s.batch * s.tokens);
  plan.surrogates = arena.take<T>(s.heads * padded_rows(s.clusters) * row_pitch<T>(s.dim));
  plan.surrogate_columns = arena.take<T>(s.heads * s.dim * row_pitch<T>(s.clusters));
  plan.absent = arena.take<T>(s.batch * row_pitch<T>(s.clusters));
  plan.any_occupied = arena.take<uint8_t>(s.batch);
  plan.first_membership = arena.take<int64_t>(s.batch * (s.tokens + 1));
  plan.memberships = arena.take<CastMembership>(s.batch * s.clusters * p.slots);
}

// What forward does not keep, for `pairs` pairs at a time.
template <typename T>
void place_unkept(CastAttentionPlan& plan, const CastAttentionParams& p, int64_t pairs, Arena& arena) {
  plan.intra = arena.take<char>(pairs * p.sizes.clusters * p.slots * p.sizes.dim * element_size(p.dtype));
  plan.summaries = arena.take<T>(pairs * p.sizes.clusters * p.sizes.dim);
}

template <typename T>
void place_backward(CastAttentionPlan& plan, const CastAttentionParams& p, Arena& arena) {
  const CastSizes& s = p.sizes;
  const int64_t slots = plan.pairs * s.clusters * p.slots;
  const int64_t chunk_rows = plan.pairs * plan.chunks * padded_rows(s.clusters);
  plan.mix_weight = arena.take<T>(slots);
  plan.mix_delta = arena.take<T>(slots);
  plan.gate_sums = arena.take<T>(plan.pairs * s.tokens);
  plan.chunk_surrogates = arena.take<T>(chunk_rows * row_pitch<T>(s.dim));
  plan.chunk_summaries = arena.take<T>(chunk_rows * row_pitch<T>(s.dim));
  plan.cluster_surrogates = arena.take<T>(plan.pairs * s.clusters * row_pitch<T>(s.dim));
  plan.wave_rows = arena.take<T>(plan.pairs * plan.wave_clusters * 3 * padded_rows(p.slots) * row_pitch<T>(s.dim));
}

template <typename T>
Status fill_shared(const CastAttentionPlan& plan, const CastAttentionParams& p, const Threads& threads) {
  Status status = threads(p.sizes.batch * p.sizes.tokens, kGateGrain,
                          [&](int64_t begin, int64_t end) { fill_gates<T>(plan, p, begin, end); });
  if (status == Status::ok) {
    status = threads(p.sizes.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t sequence = begin; sequence < end; sequence++) {
        list_memberships<T>(plan, p, sequence);
      }
    });
  }
  if (status == Status::ok) {
    status = threads(p.sizes.heads, 1,
                     [&](int64_t begin, int64_t end) { kernels(p.dtype).pack_surrogates(plan, p, begin, end); });
  }
  return status;
}

// ---- forward ----

template <typename T>
Status forward(const CastAttentionParams& p, const Threads& threads) {
  if (p.sizes.tokens > std::numeric_limits<int32_t>::max()) {
    return Status::unsupported_size;
  }
  const CastAttentionKernels& kernel = kernels(p.dtype);
  CastAttentionPlan plan = make_plan(p);
  const bool keep = p.lse_summary != nullptr;  // the others may have no elements, and then no address
  const int64_t tasks = p.sizes.clusters * plan.query_parts;
  const int64_t pair_bytes = std::max<int64_t>(1, p.sizes.clusters * p.slots * p.sizes.dim * element_size(p.dtype));
  const int64_t most_pairs = std::min(plan.pairs, std::max(in_steps(kTasksWanted, tasks), kGroupBytes / pair_bytes));
  const auto place = [&](Arena arena) {
    place_shared<T>(plan, p, arena);
    if (!keep) {
      place_unkept<T>(plan, p, most_pairs, arena);
    }
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::call, place(Arena(nullptr)))));
  Status status = fill_shared<T>(plan, p, threads);
  for (int64_t first = 0; first < plan.pairs && status == Status::ok; first += most_pairs) {
    plan.first_pair = first;
    plan.kept_from = keep ? 0 : first;
    plan.group = std::min(most_pairs, plan.pairs - first);
    status = threads(plan.group * tasks, 1,
                     [&](int64_t begin, int64_t end) { kernel.forward_clusters(plan, p, begin, end); });
    if (status == Status::ok) {
      status = threads(plan.group * plan.chunks, 1,
                       [&](int64_t begin, int64_t end) { kernel.forward_mixing(plan, p, begin, end); });
    }
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

// ---- backward ----

template <typename T, typename Out>
void sum_surrogate_gradient(const CastAttentionPlan& plan, const CastAttentionParams& p, Out* out, int64_t begin,
                            int64_t end) {
  const CastSizes& s = p.sizes;
  const int64_t pitch = row_pitch<T>(s.dim);
  const int64_t chunk_step = padded_rows(s.clusters) * pitch;
  for (int64_t row = begin; row < end; row++) {
    const int64_t head = row / s.clusters;
    const int64_t cluster = row % s.clusters;
    for (int64_t d = 0; d < s.dim; d++) {
      T sum = 0;
      for (int64_t sequence = 0; sequence < s.batch; sequence++) {
        const int64_t pair = sequence * s.heads + head;
        const T* chunks = static_cast<const T*>(plan.chunk_surrogates) + pair * plan.chunks * chunk_step;
        for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
          sum += chunks[chunk * chunk_step + cluster * pitch + d];
        }
        sum += static_cast<const T*>(plan.cluster_surrogates)[(pair * s.clusters + cluster) * pitch + d];
      }
      assign(out[row * s.dim + d], sum);
    }
  }
}

template <typename T, typename Out>
void sum_gate_gradient(const CastAttentionPlan& plan, const CastAttentionParams& p, Out* out, int64_t begin,
                       int64_t end) {
  const CastSizes& s = p.sizes;
  for (int64_t i = begin; i < end; i++) {
    const int64_t sequence = i / s.tokens;
    const int64_t token = i % s.tokens;
    T sum = 0;
    if (!is_padding(p.padding, sequence, token)) {
      const T phi = gate_logit<T>(p.phi, sequence, token);
      const int64_t* memberships = plan.first_membership + sequence * (s.tokens + 1) + token;
      const CastMembership* places = plan.memberships + sequence * s.clusters * p.slots;
      T of_queries = 0;
      T of_keys = 0;
      for (int64_t head = 0; head < s.heads; head++) {
        const int64_t pair = sequence * s.heads + head;
        of_queries += static_cast<const T*>(plan.gate_sums)[pair * s.tokens + token];
        for (int64_t m = memberships[0]; m < memberships[1]; m++) {
          const int64_t cluster = pair * s.clusters + places[m].cluster;
          of_keys += static_cast<const T*>(plan.mix_weight)[cluster * p.slots + places[m].slot];
        }
      }
      sum = of_queries / (1 + std::exp(-phi)) - of_keys / (1 + std::exp(phi));
    }
    assign(out[i], sum);
  }
}

// Calls body with a null pointer of the type.
template <typename T, typename Body>
void with_storage(DType dtype, const Body& body) {
  if constexpr (sizeof(T) == 8) {
    if (dtype == DType::f64) {
      return body(static_cast<double*>(nullptr));
    }
  }
  switch (dtype) {
    case DType::f16:
      return body(static_cast<Half*>(nullptr));
    case DType::bf16:
      return body(static_cast<BFloat16*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

// Clusters whose gradients wait in scratch at a time: enough for threads to share, not more than a share of what the
// gradients themselves take.
int64_t wave_clusters(const CastAttentionPlan& plan, const CastAttentionParams& p) {
  if (p.disjoint || plan.pairs == 0 || plan.pairs >= kTasksWanted / 2) {
    return 0;
  }
  const int64_t affordable = p.sizes.tokens / kWaveShare / std::max<int64_t>(1, p.slots);
  const int64_t wanted = in_steps(kTasksWanted, plan.pairs);
  const int64_t wave = std::min({wanted, affordable, p.sizes.clusters});
  return wave > 1 ? wave : 0;
}

template <typename T>
Status backward_of_clusters(const CastAttentionPlan& plan, const CastAttentionBackwardParams& params,
                            const Threads& threads) {
  const CastAttentionParams& p = params.forward;
  const CastAttentionKernels& kernel = kernels(p.dtype);
  const int64_t clusters = p.sizes.clusters;
  if (p.disjoint) {
    return threads(plan.pairs * clusters, 1,
                   [&](int64_t begin, int64_t end) { kernel.backward_clusters(plan, params, begin, end); });
  }
  if (plan.wave_clusters == 0) {
    return threads(plan.pairs, 1, [&](int64_t begin, int64_t end) { kernel.backward_pairs(plan, params, begin, end); });
  }
  Status status = Status::ok;
  for (int64_t first = 0; first < clusters && status == Status::ok; first += plan.wave_clusters) {
    const int64_t count = std::min(plan.wave_clusters, clusters - first);
    status = threads(plan.pairs * count, 1,
                     [&](int64_t begin, int64_t end) { kernel.backward_wave(plan, params, first, count, begin, end); });
    if (status == Status::ok) {
      status = threads(plan.pairs * 3, 1,
                       [&](int64_t begin, int64_t end) { kernel.add_wave(plan, params, first, count, begin, end); });
    }
  }
  return status;
}

template <typename T>
Status backward(const CastAttentionBackwardParams& params, const Threads& threads) {
  const CastAttentionParams& p = params.forward;
  const CastAttentionKernels& kernel = kernels(p.dtype);
  CastAttentionPlan plan = make_plan(p);
  plan.wave_clusters = wave_clusters(plan, p);
  const auto place = [&](Arena arena) {
    place_shared<T>(plan, p, arena);
    place_backward<T>(plan, p, arena);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::call, place(Arena(nullptr)))));
  Status status = fill_shared<T>(plan, p, threads);
  if (status == Status::ok) {
    status = threads(plan.pairs * plan.chunks, 1,
                     [&](int64_t begin, int64_t end) { kernel.backward_mixing(plan, params, begin, end); });
  }
  if (status == Status::ok) {
    status = backward_of_clusters<T>(plan, params, threads);
  }
  if (status == Status::ok) {
    with_storage<T>(p.dtype, [&](auto* type) {
      status = threads(p.sizes.heads * p.sizes.clusters, 16, [&](int64_t begin, int64_t end) {
        sum_surrogate_gradient<T>(plan, p, static_cast<decltype(type)>(params.grad_surrogates), begin, end);
      });
    });
  }
  if (status == Status::ok) {
    with_storage<T>(p.phi.dtype, [&](auto* type) {
      status = threads(p.sizes.batch * p.sizes.tokens, kGateGrain, [&](int64_t begin, int64_t end) {
        sum_gate_gradient<T>(plan, p, static_cast<decltype(type)>(params.grad_phi), begin, end);
      });
    });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

Status cast_attention(const CastAttentionParams& params, const Threads& threads) {
  return params.dtype == DType::f64 ? forward<double>(params, threads) : forward<float>(params, threads);
}

Status cast_attention_backward(const CastAttentionBackwardParams& params, const Threads& threads) {
  return params.forward.dtype == DType::f64 ? backward<double>(params, threads) : backward<float>(params, threads);
}

}  // namespace cpu
}  // namespace sturdy
