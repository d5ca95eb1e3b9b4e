// The kernels of cast_affinity for one instruction set, as a template over how operands are packed and multiplied.
//
// A panel of tokens, some vectors of them, is multiplied with all surrogates, first its queries and then its keys, and
// finished while the scores are in the first-level cache. Tokens lie along vectors: a lane never meets another one, so
// what padding holds stays there, and clusters-first output is written in whole vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cast/cast_affinity_cpu_plan.h"
#include "common/gemm_blocks.h"
#include "common/scratch.h"
#include "common/vector_math.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Calls visit(head, first, count, k) for the parts of the packed elements [begin, end) of all heads that lie in one
// head: `count` from `first` on, which are those from k on of the range.
template <typename Visit>
STURDY_ALWAYS_INLINE void for_each_head(int64_t begin, int64_t end, int64_t head_depth, const Visit& visit) {
  for (int64_t k = begin; k < end;) {
    const int64_t first = k % head_depth;
    const int64_t count = std::min(end - k, head_depth - first);
    visit(k / head_depth, first, count, k - begin);
    k += count;
  }
}

template <typename S, typename Step, template <typename> class SourceOf>
class CastAffinityBlocks {
 public:
  using Kernel = VectorKernel<Step>;
  using Source = SourceOf<S>;
  using Packed = typename Step::Packed;
  using T = typename Step::Sum;

  static void pack(const cpu::CastAffinityPlan& plan, int64_t begin, int64_t end) {
    constexpr int64_t together = std::max<int64_t>(kLanes<Packed>, kGemmRows);  // what is packed in whole vectors
    Packed rows[together * cpu::kGemmDepthBlock];
    const CastSizes& sizes = plan.params.sizes;
    for (int64_t block = begin; block < end; block++) {
      const int64_t k0 = block * cpu::kGemmDepthBlock;
      const int64_t depth = block_depth(plan, block);
      for_each_head(k0, k0 + depth, plan.head_depth, [&](int64_t head, int64_t first, int64_t count, int64_t k) {
        const Source source = source_of(plan, plan.params.surrogates, 0, head);
        for (int64_t c = 0; c < sizes.clusters; c += together) {
          pack_rows<kGemmRows>(source, c, std::min(together, sizes.clusters - c), first, count, rows);
          for (int64_t part = c; part < std::min(c + together, sizes.clusters); part += kGemmRows) {
            const int64_t height = std::min<int64_t>(kGemmRows, sizes.clusters - part);
            std::memcpy(packed_surrogates(plan, block, part) + k * height, rows + (part - c) * count,
                        static_cast<size_t>(height * count) * sizeof(Packed));
          }
        }
      });
    }
  }

  static void run(const cpu::CastAffinityPlan& plan, int64_t begin, int64_t end) {
    Arena sizes(nullptr);
    Task task;
    place(plan, sizes, task);
    Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
    place(plan, arena, task);
    for (int64_t unit = begin; unit < end; unit++) {
      select(plan, unit, task);
      if (!read_gates(plan, task)) {
        fill(plan, task);
        continue;
      }
      multiply(plan, task, plan.params.q, task.query_scores);
      multiply(plan, task, plan.params.k, task.key_scores);
      finish(plan, task);
    }
  }

 private:
  static constexpr int kPanelTokens = kGemmVectors * kLanes<T>;

  struct Task {
    int64_t sequence, first, tokens, padded;
    Packed* panel;    // [k][token] of one block of depth
    T* query_scores;  // [cluster][token]
    T* key_scores;
    alignas(64) T gate[kPanelTokens];     // sigmoid of phi
    alignas(64) T padding[kPanelTokens];  // 1 where there is no token
  };

  static void place(const cpu::CastAffinityPlan& plan, Arena& arena, Task& task) {
    task.panel = arena.take<Packed>(std::min(plan.depth, cpu::kGemmDepthBlock) * kPanelTokens);
    task.query_scores = arena.take<T>(plan.params.sizes.clusters * kPanelTokens);
    task.key_scores = arena.take<T>(plan.params.sizes.clusters * kPanelTokens);
  }

  // The last two panels share their tokens where a last one alone would be one vector wide.
  static void select(const cpu::CastAffinityPlan& plan, int64_t unit, Task& task) {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t tokens = plan.params.sizes.tokens;
    const int64_t panel = unit % plan.token_panels;
    const int64_t last = plan.token_panels - 1;
    const int64_t vectors_in_last = (tokens - last * kPanelTokens + lanes - 1) / lanes;
    task.sequence = unit / plan.token_panels;
    task.first = panel * kPanelTokens;
    int64_t end = task.first + kPanelTokens;
    if (kGemmVectors > 2 && vectors_in_last == 1 && last > 0 && panel >= last - 1) {
      const int64_t shared = last * kPanelTokens - lanes;
      task.first = panel == last ? shared : task.first;
      end = panel == last ? tokens : shared;
    }
    task.tokens = std::min(end, tokens) - task.first;
    task.padded = (task.tokens + lanes - 1) / lanes * lanes;
  }

  static int64_t block_depth(const cpu::CastAffinityPlan& plan, int64_t block) {
    return std::min(cpu::kGemmDepthBlock, plan.depth - block * cpu::kGemmDepthBlock);
  }

  static Packed* packed_surrogates(const cpu::CastAffinityPlan& plan, int64_t block, int64_t cluster) {
    return static_cast<Packed*>(plan.surrogates) + block * cpu::kGemmDepthBlock * plan.params.sizes.clusters +
           cluster * block_depth(plan, block);
  }

  static Source source_of(const cpu::CastAffinityPlan& plan, const TokenView& view, int64_t sequence, int64_t head) {
    const S* data = static_cast<const S*>(view.data) + sequence * view.stride[0] + head * view.stride[1];
    return {data, view.stride[2], 1, plan.params.sizes.dim};
  }

  // Heads that lie one behind the other are one of all their depth.
  static bool heads_adjacent(const cpu::CastAffinityPlan& plan, const TokenView& view) {
    const CastSizes& sizes = plan.params.sizes;
    return sizes.heads == 1 || (view.stride[1] == sizes.dim && sizes.dim % Source::kDepth == 0);
  }

  static void multiply(const cpu::CastAffinityPlan& plan, Task& task, const TokenView& view, T* scores) {
    const int64_t clusters = plan.params.sizes.clusters;
    const bool adjacent = heads_adjacent(plan, view);
    for (int64_t block = 0; block < plan.depth_blocks; block++) {
      const int64_t k0 = block * cpu::kGemmDepthBlock;
      const int64_t depth = block_depth(plan, block);
      const auto pack_part = [&](int64_t head, int64_t first, int64_t count, int64_t k) {
        Source source = source_of(plan, view, task.sequence, head);
        source.depth = adjacent ? plan.params.sizes.heads * plan.params.sizes.dim : source.depth;
        pack_columns(source, task.first, task.tokens, first, count, kPanelTokens, kLanes<T>,
                     task.panel + k * task.padded);
      };
      for_each_head(k0, k0 + depth, adjacent ? plan.depth : plan.head_depth, pack_part);
      for (int64_t c = 0; c < clusters; c += kGemmRows) {
        Kernel::tile(std::min<int64_t>(kGemmRows, clusters - c), task.padded, packed_surrogates(plan, block, c),
                     task.panel, depth, scores + c * task.padded, task.padded, block > 0);
      }
    }
  }

  // False if there is no token in the panel.
  static bool read_gates(const cpu::CastAffinityPlan& plan, Task& task) {
    const PaddingView& padding = plan.params.padding;
    bool any = false;
    for (int64_t i = 0; i < kPanelTokens; i++) {
      const uint8_t* at = padding.data == nullptr
                              ? nullptr
                              : padding.data + task.sequence * padding.stride[0] + (task.first + i) * padding.stride[1];
      const bool blank = i >= task.tokens || (at != nullptr && *at != 0);
      task.padding[i] = blank ? T{1} : T{0};
      any = any || !blank;
    }
    const GateView& phi = plan.params.phi;
    for (int64_t i = 0; i < kPanelTokens; i++) {
      const int64_t at = task.sequence * phi.stride[0] + (task.first + i) * phi.stride[1];
      task.gate[i] = i >= task.tokens          ? T{0}
                     : phi.dtype == DType::f32 ? static_cast<T>(static_cast<const float*>(phi.data)[at])
                                               : to_accumulate(static_cast<const S*>(phi.data)[at]);
    }
    for (int64_t i = 0; i < kPanelTokens; i += kLanes<T>) {
      const Vec<T> one = broadcast(T{1});
      store(task.gate + i, Vec<T>{one.v / (one + exp(zero<T>() - load(task.gate + i))).v});
    }
    return any;
  }

  // Scores of `vector` of the panel become e^score; returns one over their sum.
  static STURDY_ALWAYS_INLINE Vec<T> exponentials(const cpu::CastAffinityPlan& plan, const Task& task, T* scores) {
    const int64_t clusters = plan.params.sizes.clusters;
    Vec<T> most = broadcast(-std::numeric_limits<T>::infinity());
    for (int64_t c = 0; c < clusters; c++) {
      const Vec<T> score = load(scores + c * task.padded);
      most.v = score.v > most.v ? score.v : most.v;
    }
    const Vec<T> scale = broadcast(static_cast<T>(1.0 / plan.params.tau_g));
    Vec<T> sum = zero<T>();
    for (int64_t c = 0; c < clusters; c++) {
      T* score = scores + c * task.padded;
      const Vec<T> value = exp((load(score) - most) * scale);
      store(score, value);
      sum += value;
    }
    return {broadcast(T{1}).v / sum.v};
  }

  static void finish(const cpu::CastAffinityPlan& plan, Task& task) {
    for (int64_t i = 0; i < task.padded; i += kLanes<T>) {
      const Vec<T> query_scale = exponentials(plan, task, task.query_scores + i);
      const Vec<T> key_scale = exponentials(plan, task, task.key_scores + i);
      const Vec<T> gate = load(task.gate + i);
      const Vec<T> padding = load(task.padding + i);
      const Vec<T> none = broadcast(-std::numeric_limits<T>::infinity());
      for (int64_t c = 0; c < plan.params.sizes.clusters; c++) {
        const Vec<T> pq = load(task.query_scores + c * task.padded + i) * query_scale;
        const Vec<T> pk = load(task.key_scores + c * task.padded + i) * key_scale;
        const Vec<T> value = multiply_add(gate, pq - pk, pk);
        write(plan, task, c, i, {padding.v != 0 ? none.v : value.v});
      }
    }
  }

  static void fill(const cpu::CastAffinityPlan& plan, const Task& task) {
    for (int64_t c = 0; c < plan.params.sizes.clusters; c++) {
      for (int64_t i = 0; i < task.padded; i += kLanes<T>) {
        write(plan, task, c, i, broadcast(-std::numeric_limits<T>::infinity()));
      }
    }
  }

  static STURDY_ALWAYS_INLINE void write(const cpu::CastAffinityPlan& plan, const Task& task, int64_t cluster,
                                         int64_t first, Vec<T> values) {
    const int64_t* stride = plan.params.affinity_stride;
    float* to =
        plan.params.affinity + task.sequence * stride[0] + (task.first + first) * stride[1] + cluster * stride[2];
    const int64_t count = std::min<int64_t>(kLanes<T>, task.tokens - first);
    float narrow[kLanes<T>];
    if constexpr (sizeof(T) == sizeof(float)) {
      if (stride[1] == 1) {
        return count == kLanes<T> ? store(to, values) : store_partial(to, values, count);
      }
      store(narrow, values);
    } else {
      typedef float Floats __attribute__((vector_size(kVectorBytes / 2)));
      const Floats converted = __builtin_convertvector(values.v, Floats);
      std::memcpy(narrow, &converted, sizeof narrow);
    }
    for (int64_t i = 0; i < count; i++) {
      to[i * stride[1]] = narrow[i];
    }
  }
};

template <typename S, typename Step, template <typename> class SourceOf>
static const cpu::CastAffinityKernels& cast_affinity_table() {
  using Blocks = CastAffinityBlocks<S, Step, SourceOf>;
  static constexpr cpu::CastAffinityKernels table = {kLanes<typename Step::Sum>,    kGemmVectors,  SourceOf<S>::kDepth,
                                                     sizeof(typename Step::Packed), &Blocks::pack, &Blocks::run};
  return table;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
