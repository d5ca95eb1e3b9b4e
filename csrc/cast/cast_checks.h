// Checks of the arguments that the ops of the CAST family share.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "cast/cast.h"
#include "common/check.h"
#include "common/error.h"

namespace sturdy {

constexpr int64_t kMostTokens = (int64_t{1} << 31) - 1;  // an index is int32

// (B, h, N, e) with stride 1 along e.
inline void check_rows(Checker& check, const char* name, const sturdy_tensor* tensor) {
  const int last = tensor == nullptr ? 0 : tensor->ndim - 1;
  if (check.ok() && element_count(*tensor) > 0 && tensor->shape[last] > 1 && stride_of(*tensor, last) != 1) {
    check.fail(STURDY_EINVAL, std::string(name) + " must have stride 1 along its last dimension, got " +
                                  std::to_string(stride_of(*tensor, last)));
  }
}

// q, which the other arguments are measured by.
inline CastSizes check_queries(Checker& check, const sturdy_tensor* q) {
  check.present("q", q);
  check.rank("q", q, 4, "(B, h, N, e)");
  check.float_dtype("q", q);
  check_rows(check, "q", q);
  if (!check.ok()) {
    return {};
  }
  if (q->shape[2] > kMostTokens) {
    check.fail(STURDY_EUNSUPPORTED, "q must have at most 2^31 - 1 tokens, got " + std::to_string(q->shape[2]));
  }
  return {q->shape[0], q->shape[1], q->shape[2], q->shape[3], 0};
}

// A tensor of rows beside q, of its dtype and on its device.
inline void check_beside_queries(Checker& check, const char* name, const sturdy_tensor* tensor,
                                 const sturdy_tensor* q) {
  check.same_dtype(name, tensor, "q", q);
  check.same_device(name, tensor, "q", q);
  check_rows(check, name, tensor);
}

// (B, h, N, e) like q.
inline void check_tokens(Checker& check, const char* name, const sturdy_tensor* tensor, const sturdy_tensor* q) {
  check.present(name, tensor);
  if (check.ok()) {
    check.shape(name, tensor, {q->shape[0], q->shape[1], q->shape[2], q->shape[3]});
  }
  check_beside_queries(check, name, tensor, q);
}

// (h, C, e); fills in the number of clusters.
inline void check_surrogates(Checker& check, const sturdy_tensor* surrogates, const sturdy_tensor* q,
                             CastSizes& sizes) {
  check.present("surrogates", surrogates);
  check.rank("surrogates", surrogates, 3, "(h, C, e)");
  check.size("surrogates", surrogates, 0, sizes.heads, "heads, as many as q");
  check.size("surrogates", surrogates, 2, sizes.dim, "numbers per token (e), as many as q");
  if (check.ok()) {
    sizes.clusters = surrogates->shape[1];
    check.value("the number of surrogates C", sizes.clusters >= 1, "be at least 1", sizes.clusters);
  }
  check_beside_queries(check, "surrogates", surrogates, q);
}

// (B, N), of the dtype of q or float32.
inline void check_gates(Checker& check, const sturdy_tensor* phi, const sturdy_tensor* q) {
  check.present("phi", phi);
  if (check.ok()) {
    check.shape("phi", phi, {q->shape[0], q->shape[2]});
  }
  check.dtype_of_or_float32("phi", phi, "q", q);
  check.same_device("phi", phi, "q", q);
}

// (B, N) bool or uint8, or NULL.
inline void check_padding(Checker& check, const sturdy_tensor* padding, int64_t batch, int64_t tokens,
                          const char* beside_name, const sturdy_tensor* beside) {
  if (!check.ok() || padding == nullptr) {
    return;
  }
  check.present("padding", padding);
  check.shape("padding", padding, {batch, tokens});
  const sturdy_dtype& t = padding->dtype;
  if (check.ok() && !((t.code == STURDY_BOOL || t.code == STURDY_UINT) && t.bits == 8 && t.lanes == 1)) {
    check.fail(STURDY_ETYPE, "padding must be bool or uint8");
  }
  check.same_device("padding", padding, beside_name, beside);
}

// A temperature or the like: finite and above 0; 0 becomes `otherwise`.
inline double check_temperature(Checker& check, const char* name, double value, double otherwise) {
  if (check.ok() && !(value >= 0 && value <= 1e300)) {
    check.fail(STURDY_EINVAL, std::string(name) + " must be greater than 0 and finite, or 0 for its default, got " +
                                  std::to_string(value));
  }
  return value == 0 ? otherwise : value;
}

// Whether no two elements share memory.
inline bool keeps_elements_apart(const sturdy_tensor& tensor) {
  if (element_count(tensor) == 0) {
    return true;
  }
  std::array<std::array<int64_t, 2>, 8> steps = {};  // stride, size; those of one element reach nowhere
  for (int dim = 0; dim < tensor.ndim; dim++) {
    if (tensor.shape[dim] > 1) {
      const int64_t stride = stride_of(tensor, dim);
      steps[static_cast<size_t>(dim)] = {stride < 0 ? -stride : stride, tensor.shape[dim]};
    }
  }
  std::sort(steps.begin(), steps.end());
  int64_t reach = 1;
  for (const auto& [stride, size] : steps) {
    if (size > 1 && stride < reach) {
      return false;
    }
    reach += size > 1 ? stride * (size - 1) : 0;
  }
  return true;
}

inline void check_written_anywhere(Checker& check, const char* name, const sturdy_tensor* out) {
  check.data(name, out);
  if (check.ok() && !keeps_elements_apart(*out)) {
    check.fail(STURDY_EINVAL, std::string(name) + " must not have elements that share memory");
  }
}

inline void check_compact(Checker& check, const char* name, const sturdy_tensor* tensor) {
  check.data(name, tensor);
  if (check.ok() && !is_contiguous(*tensor)) {
    check.fail(STURDY_EINVAL, std::string(name) + " must be contiguous");
  }
}

inline void check_int32(Checker& check, const char* name, const sturdy_tensor* tensor) {
  if (!check.ok()) {
    return;
  }
  const sturdy_dtype& t = tensor->dtype;
  if (t.code != STURDY_INT || t.bits != 32 || t.lanes != 1) {
    check.fail(STURDY_ETYPE, std::string(name) + " must be int32");
  }
}

inline TokenView token_view(const sturdy_tensor* tensor) {
  return {data_of(*tensor), {stride_of(*tensor, 0), stride_of(*tensor, 1), stride_of(*tensor, 2)}};
}

inline TokenView surrogate_view(const sturdy_tensor* tensor) {
  return {data_of(*tensor), {0, stride_of(*tensor, 0), stride_of(*tensor, 1)}};
}

inline GateView gate_view(const sturdy_tensor* tensor) {
  return {data_of(*tensor), to_dtype(tensor->dtype), {stride_of(*tensor, 0), stride_of(*tensor, 1)}};
}

inline PaddingView padding_view(const sturdy_tensor* tensor) {
  if (tensor == nullptr) {
    return {};
  }
  return {static_cast<const uint8_t*>(data_of(*tensor)), {stride_of(*tensor, 0), stride_of(*tensor, 1)}};
}

}  // namespace sturdy
