// Compiled once for each instruction set.
#include <algorithm>

#include "common/gemm_tile.h"
#include "common/vector_math.h"
#include "core_tests.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename T>
static Vec<T> apply(MathFunction function, Vec<T> x) {
  switch (function) {
    case MathFunction::sin:
      return sincos(x).sin;
    case MathFunction::cos:
      return sincos(x).cos;
    case MathFunction::erf:
      return erf(x);
    case MathFunction::gelu:
      return gelu(x);
    default:
      return exp(x);
  }
}

template <typename T>
static void map(MathFunction function, const T* x, T* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int64_t left = std::min<int64_t>(kLanes<T>, count - i);
    store_partial(out + i, apply(function, load_partial(x + i, left)), left);
  }
}

static void reduce(const ReduceRequest& request) {
  constexpr int columns = kGemmVectors * kLanes<float>;
  GemmTerm<float> terms[64];
  for (int32_t i = 0; i < request.count; i++) {
    terms[i] = {request.a[i], request.b[i], request.depths[i]};
  }
  const auto done = [&](int row, int vector, Vec<float> value) {
    const int column = vector * kLanes<float>;
    value = relu(value + load(request.bias + column));
    store(reinterpret_cast<BFloat16*>(request.out) + row * columns + column, value);
  };
  gemm_reduce_tile<MultiplyAdd<float>, kGemmRows, kGemmVectors>(terms, request.count, columns, done);
}

template <int rows, int vectors>
static bool tile_of(int64_t wanted_rows, int64_t columns, const float* a, const float* b, int64_t b_step, int64_t depth,
                    float* out, int64_t out_step, bool add) {
  if constexpr (rows == 0) {
    return false;
  } else if constexpr (vectors == 0) {
    return tile_of<rows - 1, kGemmVectors>(wanted_rows, columns, a, b, b_step, depth, out, out_step, add);
  } else {
    if (wanted_rows == rows && columns == vectors * kLanes<float>) {
      gemm_tile<float, rows, vectors>(a, b, b_step, depth, out, out_step, add);
      return true;
    }
    return tile_of<rows, vectors - 1>(wanted_rows, columns, a, b, b_step, depth, out, out_step, add);
  }
}

static float multiply_adds(int64_t count) {
  constexpr int sums = 12;  // enough to cover the latency of two units
  Vec<float> sum[sums];
  const Vec<float> factor = broadcast(0.5f);
  STURDY_UNROLL
  for (int i = 0; i < sums; i++) {
    sum[i] = zero<float>();
  }
  for (int64_t done = 0; done < count; done += sums * kLanes<float>) {
    STURDY_UNROLL
    for (int i = 0; i < sums; i++) {
      accumulate(sum[i], factor, factor);
    }
  }
  STURDY_UNROLL
  for (int i = 1; i < sums; i++) {
    sum[0] += sum[i];
  }
  return sum[0].v[0];
}

const CoreTests& core_tests() {
  static constexpr CoreTests table = {kGemmRows, kGemmVectors * kLanes<float>,      &map<float>,   &map<double>,
                                      &reduce,   &tile_of<kGemmRows, kGemmVectors>, &multiply_adds};
  return table;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
