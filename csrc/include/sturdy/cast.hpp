// CAST for C++: options with the usual defaults, and calls that throw.
#ifndef STURDY_CAST_HPP_
#define STURDY_CAST_HPP_

#include "sturdy/cast.h"
#include "sturdy/sturdy.hpp"

namespace sturdy {

// A temperature of sqrt(h e).
inline sturdy_cast_affinity_options cast_affinity_options() {
  sturdy_cast_affinity_options options = {};
  options.struct_size = sizeof options;
  return options;
}

// Clusters of N / C slots, rounded up, unless a size is given.
inline sturdy_cast_cluster_options cast_cluster_options(int32_t method = STURDY_CAST_TOP_K, int64_t cluster_size = 0) {
  sturdy_cast_cluster_options options = {};
  options.struct_size = sizeof options;
  options.method = method;
  options.cluster_size = cluster_size;
  return options;
}

// Temperatures of sqrt(e), no dropout. With the clusters of STURDY_CAST_SA_TOP_K set STURDY_CAST_DISJOINT.
inline sturdy_cast_attention_options cast_attention_options(uint32_t flags = 0) {
  sturdy_cast_attention_options options = {};
  options.struct_size = sizeof options;
  options.flags = flags;
  return options;
}

// Writes the result into `affinity`; on the CPU, with the built-in threads unless `context` brings others. So do the
// others.
inline void cast_affinity(const sturdy_cast_affinity_options& options, TensorView q, TensorView k,
                          TensorView surrogates, TensorView phi, TensorView affinity,
                          const sturdy_tensor* padding = nullptr, const sturdy_context* context = nullptr) {
  check(sturdy_cast_affinity(context, &options, q, k, surrogates, phi, padding, affinity));
}

// `assignment` is for STURDY_CAST_SA_TOP_K alone.
inline void cast_cluster(const sturdy_cast_cluster_options& options, TensorView affinity, TensorView index,
                         TensorView counts, sturdy_tensor* assignment = nullptr, const sturdy_tensor* padding = nullptr,
                         const sturdy_context* context = nullptr) {
  check(sturdy_cast_cluster(context, &options, affinity, padding, index, counts, assignment));
}

// Without what backward needs.
inline void cast_attention(const sturdy_cast_attention_options& options, TensorView q, TensorView k, TensorView v,
                           TensorView surrogates, TensorView phi, TensorView index, TensorView out,
                           const sturdy_tensor* padding = nullptr, const sturdy_tensor* seed = nullptr,
                           const sturdy_context* context = nullptr) {
  check(sturdy_cast_attention(context, &options, q, k, v, surrogates, phi, index, padding, seed, out, nullptr, nullptr,
                              nullptr, nullptr, nullptr));
}

}  // namespace sturdy

#endif  // STURDY_CAST_HPP_
