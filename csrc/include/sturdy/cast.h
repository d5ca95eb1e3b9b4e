/* CAST: clustered attention with surrogate tokens (van Engelenhoven, Strisciuglio, Talavera, CAST, 2024).
 *
 * Tokens are gathered into C clusters by their similarity to C learnable surrogate tokens; tokens of a cluster attend
 * to each other, and every token receives a summary of each cluster it is not in. Three ops:
 *
 *   affinity    how much each token belongs with each cluster
 *   cluster     which tokens each cluster takes: the best ones of each cluster, or every token once
 *   attention   attention within clusters, mixed with summaries of the others; forward and backward
 *
 * B sequences, h heads, N tokens, head dimension e, C clusters, kappa slots in a cluster.
 */
#ifndef STURDY_CAST_H_
#define STURDY_CAST_H_

#include "sturdy/sturdy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tensors that occur throughout. All strides are free unless said otherwise; q, k, v, their gradients and out need
 * stride 1 along e, and so do the surrogates.
 *   q, k, v     (B, h, N, e)   float16, bfloat16, float32 or float64; one dtype and one device for all
 *   surrogates  (h, C, e)      dtype of q; C at least 1
 *   phi         (B, N)         dtype of q, or float32: logit of each token's gate
 *   padding     (B, N) bool or uint8, or NULL: not 0 where there is no token. What q, k, v and phi hold there does
 *                              not matter
 *   index       (B, C, kappa) int32, contiguous: token in each slot of each cluster, -1: none. No token twice in
 *                              a cluster
 */

/* ---- affinity ----
 *
 *   pq = softmax over c of (sum over heads of q_i . s_c) / tau_g,  pk likewise of k
 *   affinity[i, c] = pk + sigmoid(phi_i) (pq - pk)
 */

typedef struct sturdy_cast_affinity_options {
  uint32_t struct_size; /* sizeof(sturdy_cast_affinity_options) as the caller was compiled */
  uint32_t flags;       /* 0, or STURDY_CAST_ALLOW_TF32 */
  double tau_g;         /* greater than 0; 0 means sqrt(h e) */
} sturdy_cast_affinity_options;

/* On CUDA, float32 may be multiplied on tensor cores, after rounding to 10 fraction bits (tf32). */
#define STURDY_CAST_ALLOW_TF32 1u

/* affinity (B, N, C) float32, any strides that keep its elements apart; kernels are fastest where N is contiguous.
 * Rows of padding are -infinity. */

/* Checks everything and writes the sizes of the output into out->shape, which must hold three. Reads no data. */
STURDY_API sturdy_status sturdy_cast_affinity_infer(const sturdy_cast_affinity_options* options, const sturdy_tensor* q,
                                                    const sturdy_tensor* k, const sturdy_tensor* surrogates,
                                                    const sturdy_tensor* phi, const sturdy_tensor* padding,
                                                    sturdy_tensor* affinity);

/* Bytes that context->workspace must have for the call; 0 on the CPU, and where the arguments are wrong. */
STURDY_API size_t sturdy_cast_affinity_workspace(const sturdy_cast_affinity_options* options, const sturdy_tensor* q,
                                                 const sturdy_tensor* k, const sturdy_tensor* surrogates,
                                                 const sturdy_tensor* phi, const sturdy_tensor* padding);

STURDY_API sturdy_status sturdy_cast_affinity(const sturdy_context* context,
                                              const sturdy_cast_affinity_options* options, const sturdy_tensor* q,
                                              const sturdy_tensor* k, const sturdy_tensor* surrogates,
                                              const sturdy_tensor* phi, const sturdy_tensor* padding,
                                              sturdy_tensor* affinity);

/* ---- cluster ----
 *
 * Pairs of a token and a cluster are ordered by affinity, the larger first, then by token, then by cluster, the smaller
 * first; NaN comes last, and -0 equals 0.
 *
 *   STURDY_CAST_TOP_K     each cluster takes its first kappa tokens; a token may be in none, one or several clusters
 *   STURDY_CAST_SA_TOP_K  going through all pairs in order, a token that is still free joins a cluster that still has
 *                         room: each token is in one cluster. With N_v tokens, cluster c has room for
 *                         N_v / C + (c < N_v mod C) of them if cluster_size is 0, else for cluster_size
 */

#define STURDY_CAST_TOP_K 0
#define STURDY_CAST_SA_TOP_K 1

typedef struct sturdy_cast_cluster_options {
  uint32_t struct_size; /* sizeof(sturdy_cast_cluster_options) as the caller was compiled */
  uint32_t flags;       /* must be 0 */
  int32_t method;       /* STURDY_CAST_TOP_K or STURDY_CAST_SA_TOP_K */
  int64_t cluster_size; /* at least 1; 0 means N / C rounded up */
} sturdy_cast_cluster_options;

/* Shapes and dtypes:
 *   affinity    (B, N, C) float32; any strides; kernels are fastest where N is contiguous
 *   padding     (B, N) bool or uint8, or NULL
 *   index       (B, C, kappa) int32, contiguous; kappa = min(cluster_size, N). Tokens ascend within a cluster; empty
 *               slots come last and hold -1
 *   counts      (B, C) int32, contiguous: tokens in each cluster
 *   assignment  (B, N) int32, contiguous: cluster of each token, -1 for padding. With STURDY_CAST_SA_TOP_K alone; NULL
 *               otherwise
 *
 * With STURDY_CAST_SA_TOP_K, C cluster_size must be at least N: what is padding is not looked at for that.
 */

/* Checks everything and writes the sizes of index into index->shape, which must hold three. Reads no data. */
STURDY_API sturdy_status sturdy_cast_cluster_infer(const sturdy_cast_cluster_options* options,
                                                   const sturdy_tensor* affinity, const sturdy_tensor* padding,
                                                   sturdy_tensor* index);

STURDY_API size_t sturdy_cast_cluster_workspace(const sturdy_cast_cluster_options* options,
                                                const sturdy_tensor* affinity, const sturdy_tensor* padding);

STURDY_API sturdy_status sturdy_cast_cluster(const sturdy_context* context, const sturdy_cast_cluster_options* options,
                                             const sturdy_tensor* affinity, const sturdy_tensor* padding,
                                             sturdy_tensor* index, sturdy_tensor* counts, sturdy_tensor* assignment);

/* ---- attention ----
 *
 * With sp(x) = log(1 + e^x) + 1, token i = index[c, j] in slot j of cluster c, and for each head:
 *
 *   O[c, j] = sum over slots l of softmax_l(q_i . k_l / tau) v_l                   attention within the cluster
 *   r_c     = sum over slots j of softmax_j(k_i . s_c sp(-phi_i) / tau_k) v_i      summary of the cluster
 *   P[i, c] = softmax over clusters that have tokens of (q_i . s_c sp(phi_i) / tau_q)
 *   out_i   = sum over clusters that i is in of P[i, c] O[c, slot of i]
 *           + sum over the others of P[i, c] r_c
 *
 * Rows of padding are 0, and so is everything where no cluster has a token. No gradient goes through `index`.
 */

#define STURDY_CAST_DISJOINT 2u /* no token is in more than one cluster, which saves work */

typedef struct sturdy_cast_attention_options {
  uint32_t struct_size; /* sizeof(sturdy_cast_attention_options) as the caller was compiled */
  uint32_t flags;       /* 0, or of STURDY_CAST_ALLOW_TF32 and STURDY_CAST_DISJOINT */
  double tau;           /* temperatures, greater than 0; 0 means sqrt(e) */
  double tau_q;
  double tau_k;
  double dropout; /* probability with which a weight within a cluster becomes 0, in [0, 1); needs seed unless 0 */
} sturdy_cast_attention_options;

/* Shapes and dtypes beyond those above:
 *   seed         one int64 on the device of q, or NULL without dropout: what is dropped depends on it and on the place
 *                alone
 *   out          (B, h, N, e); dtype of q
 * What backward needs; all of them or none, which is NULL. With A = float64 for float64 q, else float32:
 *   intra        (B, h, C, kappa, e) dtype of q, contiguous: O; 0 in empty slots
 *   summaries    (B, h, C, e) A, contiguous: r; 0 for empty clusters
 *   lse_intra    (B, h, C, kappa) A, contiguous: log of the sum of e^score of each softmax of O; -infinity if empty
 *   lse_summary  (B, h, C) A, contiguous: the same for r
 *   lse_mix      (B, h, N) A, contiguous: the same for P; -infinity for padding
 *
 * Values of index are checked on the CPU; on a GPU a slot whose token does not exist is empty.
 */

/* Checks everything and writes the sizes of the output into out->shape, which must hold four. Reads no data. */
STURDY_API sturdy_status sturdy_cast_attention_infer(const sturdy_cast_attention_options* options,
                                                     const sturdy_tensor* q, const sturdy_tensor* k,
                                                     const sturdy_tensor* v, const sturdy_tensor* surrogates,
                                                     const sturdy_tensor* phi, const sturdy_tensor* index,
                                                     const sturdy_tensor* padding, const sturdy_tensor* seed,
                                                     sturdy_tensor* out);

/* `keep`: 1 if the call will be given the outputs that backward needs, 0 if they will be NULL. */
STURDY_API size_t sturdy_cast_attention_workspace(const sturdy_cast_attention_options* options, const sturdy_tensor* q,
                                                  const sturdy_tensor* surrogates, const sturdy_tensor* index,
                                                  int32_t keep);

STURDY_API sturdy_status sturdy_cast_attention(const sturdy_context* context,
                                               const sturdy_cast_attention_options* options, const sturdy_tensor* q,
                                               const sturdy_tensor* k, const sturdy_tensor* v,
                                               const sturdy_tensor* surrogates, const sturdy_tensor* phi,
                                               const sturdy_tensor* index, const sturdy_tensor* padding,
                                               const sturdy_tensor* seed, sturdy_tensor* out, sturdy_tensor* intra,
                                               sturdy_tensor* summaries, sturdy_tensor* lse_intra,
                                               sturdy_tensor* lse_summary, sturdy_tensor* lse_mix);

STURDY_API size_t sturdy_cast_attention_backward_workspace(const sturdy_cast_attention_options* options,
                                                           const sturdy_tensor* q, const sturdy_tensor* surrogates,
                                                           const sturdy_tensor* index);

/* Gradients of sum(grad_out * out), all of them:
 *   grad_q, grad_k, grad_v  (B, h, N, e); dtype of q; stride 1 along e
 *   grad_surrogates         (h, C, e); dtype of q; contiguous
 *   grad_phi                (B, N); dtype of phi; contiguous
 * grad_out has the shape and dtype of out and stride 1 along e; out and what follows is what forward wrote.
 */
STURDY_API sturdy_status sturdy_cast_attention_backward(
    const sturdy_context* context, const sturdy_cast_attention_options* options, const sturdy_tensor* grad_out,
    const sturdy_tensor* q, const sturdy_tensor* k, const sturdy_tensor* v, const sturdy_tensor* surrogates,
    const sturdy_tensor* phi, const sturdy_tensor* index, const sturdy_tensor* padding, const sturdy_tensor* seed,
    const sturdy_tensor* out, const sturdy_tensor* intra, const sturdy_tensor* summaries,
    const sturdy_tensor* lse_intra, const sturdy_tensor* lse_summary, const sturdy_tensor* lse_mix,
    sturdy_tensor* grad_q, sturdy_tensor* grad_k, sturdy_tensor* grad_v, sturdy_tensor* grad_surrogates,
    sturdy_tensor* grad_phi);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* STURDY_CAST_H_ */
