// What the kernels of the CAST family share: views of tokens, gates and padding.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace sturdy {

// (B, h, N, e) with stride 1 along e, strides in elements. Also (h, C, e), where stride[0] is not used.
struct TokenView {
  void* data;
  int64_t stride[3];  // sequence, head, token
};

// phi: one number per token, in the dtype of the tokens or in float32.
struct GateView {
  const void* data;
  DType dtype;
  int64_t stride[2];  // sequence, token
};

// Not 0 where there is no token. data may be null: no padding.
struct PaddingView {
  const uint8_t* data;
  int64_t stride[2];  // sequence, token
};

struct CastSizes {
  int64_t batch, heads, tokens, dim, clusters;  // clusters at least 1; any other may be 0
};

}  // namespace sturdy
