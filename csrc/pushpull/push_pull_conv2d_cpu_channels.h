// Small things that the plans of the CPU kernels share. Seen by sources of the basic instruction set only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/half.h"
#include "pushpull/push_pull_conv2d.h"

namespace sturdy {
namespace cpu {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Cells of the pooling window around `at` that lie in the map.
inline int64_t window_cells(int64_t at, int64_t half, int64_t size) {
  return std::min(size - 1, at + half) - std::max<int64_t>(0, at - half) + 1;
}

inline double read_channel(const ChannelView& view, int64_t channel) {
  const int64_t at = channel * view.stride;
  switch (view.dtype) {
    case DType::f64:
      return static_cast<const double*>(view.data)[at];
    case DType::f16:
      return to_float(static_cast<const Half*>(view.data)[at]);
    case DType::bf16:
      return to_float(static_cast<const BFloat16*>(view.data)[at]);
    default:
      return static_cast<const float*>(view.data)[at];
  }
}

inline void write_channel(const ChannelView& view, int64_t channel, double value) {
  const int64_t at = channel * view.stride;
  switch (view.dtype) {
    case DType::f64:
      static_cast<double*>(view.data)[at] = value;
      break;
    case DType::f16:
      static_cast<Half*>(view.data)[at] = to_half(static_cast<float>(value));
      break;
    case DType::bf16:
      static_cast<BFloat16*>(view.data)[at] = to_bfloat16(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(view.data)[at] = static_cast<float>(value);
  }
}

}  // namespace cpu
}  // namespace sturdy
