// How a call of cast_attention is laid out on the CPU.
//
// A "pair" is one head of one sequence. Two kinds of work alternate:
//
//   clusters  one cluster of one pair: queries against keys of the cluster, and its summary
//   mixing    a chunk of the tokens of one pair: what each token takes from each cluster
//
// In both, everything is a product of small matrices in scratch memory that the second-level cache holds. Rows of
// scratch are an odd number of cache lines apart, so that columns of a matrix do not fall on few sets of a cache, and
// there are zeros behind the last row, up to whole register tiles.
//
// Where work is cut depends on sizes alone, never on the number of threads or of sequences.
//
// Plain data and function pointers only: this header is seen by sources compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "cast/cast_attention.h"
#include "common/scratch.h"

namespace sturdy {
namespace cpu {

constexpr int64_t kCastRowStep = 8;     // rows of scratch come in multiples of this, as does any register tile's height
constexpr int64_t kCastQueryRows = 64;  // queries of a cluster that are worked on at a time
constexpr int64_t kCastKeys = 512;      // most keys that meet them at a time
constexpr int64_t kCastTokenRows = 64;  // tokens that are mixed at a time, fewer if there are many clusters
constexpr int64_t kCastMixingBlock = 32768;  // most elements of (tokens, clusters) at a time, beyond kCastRowStep rows

STURDY_ALWAYS_INLINE int64_t in_steps(int64_t size, int64_t step) { return (size + step - 1) / step; }
STURDY_ALWAYS_INLINE int64_t padded_rows(int64_t rows) { return in_steps(rows, kCastRowStep) * kCastRowStep; }

// Elements from one row of `columns` elements to the next.
template <typename T>
STURDY_ALWAYS_INLINE int64_t row_pitch(int64_t columns) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  return (in_steps(columns, line) | 1) * line;
}

// A place of a token in a cluster.
struct CastMembership {
  int32_t cluster, slot;
};

struct CastAttentionPlan {
  int64_t pairs;
  int64_t query_parts;   // a cluster's queries are cut into this many pieces, each a task of its own
  int64_t part_queries;  // in a piece, a multiple of kCastQueryRows
  int64_t chunk_tokens;  // tokens of a mixing task
  int64_t chunks;        // of one pair
  int64_t token_rows;    // tokens that are mixed at a time

  // Shared by all tasks of a call; A is double for double, else float.
  void* query_gate;             // (B, N), A: sp(phi) / tau_q; 0 for padding
  void* key_gate;               // (B, N), A: sp(-phi) / tau_k
  void* surrogates;             // (h, C, e), A, rows padded
  void* surrogate_columns;      // (h, e, C), A, rows padded
  void* absent;                 // (B, C), A, rows padded: -infinity for a cluster without tokens, 0 for others
  uint8_t* any_occupied;        // (B)
  int64_t* first_membership;    // (B, N + 1): those of token i are [i] to [i + 1], ascending in clusters
  CastMembership* memberships;  // (B, C * slots)

  // Forward works on `group` pairs at a time, from first_pair on. What it keeps begins with pair kept_from: 0, or where
  // nothing is kept first_pair, as there is room for the pairs of a group alone.
  int64_t first_pair, group, kept_from;
  void* intra;        // dtype of the tokens
  void* summaries;    // A
  void* lse_intra;    // A; may be null, as may the next two
  void* lse_summary;  // A
  void* lse_mix;      // A

  // Of backward, for all pairs.
  void* mix_weight;          // (B, h, C, slots), A: P of a member. Once used: dY ak / tau_k, its part of dphi
  void* mix_delta;           // (B, h, C, slots), A: P (grad_out . O) of a member
  void* gate_sums;           // (B, h, N), A: sum over c of dZ aq / tau_q
  void* chunk_surrogates;    // (B, h, chunks, C, e), A, rows padded: what mixing adds to grad_surrogates
  void* chunk_summaries;     // (B, h, chunks, C, e), A, rows padded: what mixing adds to the gradient of summaries
  void* cluster_surrogates;  // (B, h, C, e), A, rows padded: what clusters add to grad_surrogates

  // Tokens in several clusters, and fewer pairs than threads may want: gradients of some clusters at a time wait in
  // scratch, and are then added in the order of clusters. Otherwise one task goes through all clusters of a pair.
  int64_t wave_clusters;  // 0: no waves
  void* wave_rows;        // (pairs, wave_clusters, 3, slots, e), A, rows padded: of q, k and v
};

// Tasks of clusters are numbered (cluster, pair, part) and those of mixing (chunk, pair), with pairs counted from
// first_pair: heads of one sequence follow each other, as their rows are neighbours in memory.
struct CastAttentionKernels {
  void (*pack_surrogates)(const CastAttentionPlan&, const CastAttentionParams&, int64_t begin, int64_t end);  // heads
  void (*forward_clusters)(const CastAttentionPlan&, const CastAttentionParams&, int64_t begin, int64_t end);
  void (*forward_mixing)(const CastAttentionPlan&, const CastAttentionParams&, int64_t begin, int64_t end);

  void (*backward_mixing)(const CastAttentionPlan&, const CastAttentionBackwardParams&, int64_t begin, int64_t end);
  // Clusters that share no token, in any order.
  void (*backward_clusters)(const CastAttentionPlan&, const CastAttentionBackwardParams&, int64_t begin, int64_t end);
  // Numbered by pair: all of its clusters.
  void (*backward_pairs)(const CastAttentionPlan&, const CastAttentionBackwardParams&, int64_t begin, int64_t end);
  // The clusters from first_cluster on, into wave_rows; then, numbered (pair, tensor of three), out of it.
  void (*backward_wave)(const CastAttentionPlan&, const CastAttentionBackwardParams&, int64_t first_cluster,
                        int64_t clusters, int64_t begin, int64_t end);
  void (*add_wave)(const CastAttentionPlan&, const CastAttentionBackwardParams&, int64_t first_cluster,
                   int64_t clusters, int64_t begin, int64_t end);
};

}  // namespace cpu

namespace portable {
const cpu::CastAttentionKernels& cast_attention_kernels(DType dtype);
}
namespace avx2 {
const cpu::CastAttentionKernels& cast_attention_kernels(DType dtype);
}
namespace avx512 {
const cpu::CastAttentionKernels& cast_attention_kernels(DType dtype);
}

}  // namespace sturdy
