// C entry points of the test library. Levels are numbered as cpu::GemmLevel is; one more stands for the kernel of the
// tile registers on their twin.
#include "core_tests.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/amx_twin.h"
#include "common/cpu_features.h"
#include "common/gemm.h"
#include "common/half.h"

#define STURDY_TEST_API extern "C" __attribute__((visibility("default")))

namespace {

using namespace sturdy;

constexpr int32_t kTwin = 5;

const cpu::GemmKernels& kernels_of(int32_t level, DType dtype) {
  if (level == kTwin) {
    return dtype == DType::bf16 ? amx_on_twin::bf16_gemm_kernels() : cpu::gemm_kernels(cpu::GemmLevel::portable, dtype);
  }
  return cpu::gemm_kernels(static_cast<cpu::GemmLevel>(level), dtype);
}

const CoreTests& tests_of(int32_t level) {
#if defined(__x86_64__)
  if (level >= 2) {
    return avx512::core_tests();
  }
  if (level == 1) {
    return avx2::core_tests();
  }
#endif
  (void)level;
  return portable::core_tests();
}

// A pool of this many; making one anew takes longer than a small product.
void use_threads(int32_t threads) {
  static int32_t current = 0;
  if (current != threads) {
    set_pool_threads(threads);
    current = threads;
  }
}

// Every unit in a call of its own, the last one first.
void backwards(void*, int64_t n, int64_t, sturdy_body body, void* arg) {
  for (int64_t i = n - 1; i >= 0; i--) {
    body(arg, i, i + 1);
  }
}

struct Request {
  int64_t rows, columns, depth;
  const void* a;
  int64_t a_row_stride, a_depth_stride;
  const void* b;
  int64_t b_depth_stride, b_column_stride;
  void* out;
  int64_t out_row_stride, out_column_stride;
  const void* row_bias;
  const void* column_bias;
  int32_t dtype, out_dtype;
  int32_t add, activation;
  int32_t visit;    // multiply by 2 and add the element's number, row * columns + column
  int32_t threads;  // of the pool; 0: as many as there are; -1: `backwards`
  int32_t level;    // -1: what this process runs on
};

template <typename T>
void number(void* context, void* values, int64_t row, int64_t column, int64_t count) {
  const int64_t columns = *static_cast<const int64_t*>(context);
  for (int64_t i = 0; i < count; i++) {
    T& value = static_cast<T*>(values)[i];
    value = 2 * value + static_cast<T>(row * columns + column + i);
  }
}

// Distance from the true value in ulps of the type whose numbers have `digits` bits. Overflow counts as the next power
// of two, so that rounding to infinity is judged as any rounding.
template <typename Wide>
double ulp_error(Wide got, Wide exact, int digits, int least_exponent, int most_exponent) {
  if (std::isnan(got) || std::isnan(exact)) {
    return std::isnan(got) && std::isnan(exact) ? 0 : std::numeric_limits<double>::infinity();
  }
  const Wide most = std::ldexp(Wide{1}, most_exponent);
  got = std::clamp(got, -most, most);
  exact = std::clamp(exact, -most, most);
  int exponent = least_exponent;
  if (exact != 0) {
    std::frexp(exact, &exponent);
    exponent = std::clamp(exponent, least_exponent, most_exponent);
  }
  return static_cast<double>(std::fabs(got - exact) / std::ldexp(Wide{1}, exponent - digits));
}

template <typename Wide>
Wide exact_value(MathFunction function, Wide x) {
  switch (function) {
    case MathFunction::sin:
      return std::sin(x);
    case MathFunction::cos:
      return std::cos(x);
    case MathFunction::erf:
      return std::erf(x);
    case MathFunction::gelu:
      return x * std::erfc(-x * std::sqrt(Wide{0.5})) / 2;
    default:
      return std::exp(x);
  }
}

template <typename T, typename Wide>
void worst_of(MathFunction function, const T* x, const T* got, int64_t count, double* worst, double* at) {
  using Limits = std::numeric_limits<T>;
  for (int64_t i = 0; i < count; i++) {
    const Wide exact = exact_value<Wide>(function, static_cast<Wide>(x[i]));
    double error = 0;
    if (function == MathFunction::gelu) {  // in units of eps * |x|
      const Wide room = std::max<Wide>(std::fabs(static_cast<Wide>(x[i])) * Limits::epsilon(), Limits::min());
      error = static_cast<double>(std::fabs(static_cast<Wide>(got[i]) - exact) / room);
      error = std::isnan(got[i]) != std::isnan(x[i]) ? std::numeric_limits<double>::infinity() : error;
    } else {
      error =
          ulp_error<Wide>(static_cast<Wide>(got[i]), exact, Limits::digits, Limits::min_exponent, Limits::max_exponent);
    }
    if (error > *worst) {
      *worst = error;
      *at = static_cast<double>(x[i]);
    }
  }
}

}  // namespace

// Whether this build and this machine have the level.
STURDY_TEST_API int32_t core_test_has(int32_t level) {
  const int32_t vectors = static_cast<int32_t>(machine_isa());
  const int32_t pairs = static_cast<int32_t>(machine_bf16_isa());
  switch (level) {
    case 3:
      return pairs >= 1;
    case 4:
      return pairs >= 2;
    case kTwin:
      return 1;
    default:
      return level <= vectors;
  }
}

// The level that this process runs on, from what the machine has and STURDY_ISA.
STURDY_TEST_API int32_t core_test_level() { return static_cast<int32_t>(cpu::gemm_level()); }

STURDY_TEST_API int32_t core_test_gemm(const Request* r) {
  cpu::GemmParams p{};
  p.rows = r->rows;
  p.columns = r->columns;
  p.depth = r->depth;
  p.dtype = static_cast<DType>(r->dtype);
  p.a = r->a;
  p.a_row_stride = r->a_row_stride;
  p.a_depth_stride = r->a_depth_stride;
  p.b = r->b;
  p.b_depth_stride = r->b_depth_stride;
  p.b_column_stride = r->b_column_stride;
  p.out_dtype = static_cast<DType>(r->out_dtype);
  p.out = r->out;
  p.out_row_stride = r->out_row_stride;
  p.out_column_stride = r->out_column_stride;
  p.add = r->add != 0;
  p.epilogue.row_bias = r->row_bias;
  p.epilogue.column_bias = r->column_bias;
  p.epilogue.activation = static_cast<cpu::GemmActivation>(r->activation);
  int64_t columns = r->columns;
  if (r->visit != 0) {
    p.epilogue.visit = p.dtype == DType::f64 ? &number<double> : &number<float>;
    p.epilogue.context = &columns;
  }
  sturdy_context context{};
  if (r->threads < 0) {
    context.parallel_for = &backwards;
  } else {
    use_threads(r->threads);
  }
  const Threads threads(&context);
  const Status status = r->level < 0 ? cpu::gemm(p, threads) : cpu::gemm(p, threads, kernels_of(r->level, p.dtype));
  return static_cast<int32_t>(status);
}

// About as many multiply-adds, shared by the threads, on the best vectors: the rate that a product can reach at best.
STURDY_TEST_API void core_test_multiply_adds(int64_t count, int32_t threads) {
  use_threads(threads);
  constexpr int64_t kPiece = 1 << 16;
  const CoreTests& tests = tests_of(static_cast<int32_t>(cpu_isa()));
  const int64_t pieces = (count + kPiece - 1) / kPiece;
  const Threads share(nullptr);
  share(pieces, 1, [&](int64_t begin, int64_t end) {
    volatile float kept = tests.multiply_adds(std::min(count, (end - begin) * kPiece));
    (void)kept;
  });
}

STURDY_TEST_API int64_t core_test_twin_configured() { return amx_twin::configured_threads(); }
STURDY_TEST_API int64_t core_test_twin_configurations() { return amx_twin::configurations(); }

STURDY_TEST_API void core_test_tile_size(int32_t level, int64_t* rows, int64_t* columns) {
  *rows = tests_of(level).tile_rows;
  *columns = tests_of(level).tile_columns;
}

STURDY_TEST_API int32_t core_test_tile(int32_t level, int64_t rows, int64_t columns, const float* a, const float* b,
                                       int64_t b_step, int64_t depth, float* out, int64_t out_step, int32_t add) {
  return tests_of(level).tile(rows, columns, a, b, b_step, depth, out, out_step, add != 0) ? 1 : 0;
}

STURDY_TEST_API void core_test_reduce(int32_t level, const ReduceRequest* request) { tests_of(level).reduce(*request); }

STURDY_TEST_API void core_test_map(int32_t level, int32_t function, int32_t doubles, const void* x, void* out,
                                   int64_t count) {
  const auto f = static_cast<MathFunction>(function);
  if (doubles != 0) {
    tests_of(level).map_doubles(f, static_cast<const double*>(x), static_cast<double*>(out), count);
  } else {
    tests_of(level).map_floats(f, static_cast<const float*>(x), static_cast<float*>(out), count);
  }
}

// The largest error over given arguments, in ulps (gelu: in eps * |x|), and where it is.
STURDY_TEST_API void core_test_worst(int32_t level, int32_t function, int32_t doubles, const void* x, int64_t count,
                                     double* worst, double* at) {
  const auto f = static_cast<MathFunction>(function);
  if (doubles != 0) {
    std::vector<double> got(static_cast<size_t>(count));
    core_test_map(level, function, 1, x, got.data(), count);
    worst_of<double, long double>(f, static_cast<const double*>(x), got.data(), count, worst, at);
  } else {
    std::vector<float> got(static_cast<size_t>(count));
    core_test_map(level, function, 0, x, got.data(), count);
    worst_of<float, double>(f, static_cast<const float*>(x), got.data(), count, worst, at);
  }
}

// The same for the floats whose bits are first, first + step, ... below 2^32.
STURDY_TEST_API void core_test_sweep(int32_t level, int32_t function, uint32_t first, uint32_t step, double* worst,
                                     double* at) {
  std::vector<float> x;
  uint64_t bits = first;
  while (bits < uint64_t{1} << 32) {
    x.clear();
    for (; x.size() < 4096 && bits < uint64_t{1} << 32; bits += step) {
      x.push_back(float_from_bits(static_cast<uint32_t>(bits)));
    }
    core_test_worst(level, function, 0, x.data(), static_cast<int64_t>(x.size()), worst, at);
  }
}
