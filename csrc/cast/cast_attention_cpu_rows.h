// Rows of the kernels of cast_attention: gathered from tokens into scratch, turned into weights, and stored again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cast/cast_attention_cpu_plan.h"
#include "cast/cast_dropout.h"
#include "common/simd.h"
#include "common/vector_math.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename T>
constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

template <typename T>
STURDY_ALWAYS_INLINE int64_t in_vectors(int64_t columns) {
  return cpu::in_steps(columns, kLanes<T>) * kLanes<T>;
}

// ---- sums and maxima over the lanes of a vector ----

template <int by, typename T>
STURDY_ALWAYS_INLINE Vec<T> rotate(Vec<T> v) {
  Lanes<T> from{};
  STURDY_UNROLL
  for (int i = 0; i < kLanes<T>; i++) {
    from[i] = (i + by) % kLanes<T>;
  }
  return {__builtin_shuffle(v.v, from)};
}

// b where one of them is a NaN.
template <typename T>
STURDY_ALWAYS_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return {a.v > b.v ? a.v : b.v};
}
#if defined(__AVX512F__)
STURDY_ALWAYS_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return {_mm512_max_ps(a.v, b.v)}; }
STURDY_ALWAYS_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return {_mm512_max_pd(a.v, b.v)}; }
#elif defined(__AVX2__)
STURDY_ALWAYS_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
STURDY_ALWAYS_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
#endif

template <typename T, int by = kLanes<T> / 2>
STURDY_ALWAYS_INLINE T sum_of_lanes(Vec<T> v) {
  if constexpr (by == 0) {
    return v.v[0];
  } else {
    return sum_of_lanes<T, by / 2>(v + rotate<by>(v));
  }
}

template <typename T, int by = kLanes<T> / 2>
STURDY_ALWAYS_INLINE T largest_lane(Vec<T> v) {
  if constexpr (by == 0) {
    return v.v[0];
  } else {
    return largest_lane<T, by / 2>(larger(v, rotate<by>(v)));
  }
}

// ---- rows of tokens ----

// The rows of one head of one sequence.
template <typename S>
struct HeadRows {
  S* data;
  int64_t step;

  STURDY_ALWAYS_INLINE S* row(int64_t token) const { return data + token * step; }
};

template <typename S>
STURDY_ALWAYS_INLINE HeadRows<S> head_rows(const TokenView& view, int64_t sequence, int64_t head) {
  return {static_cast<S*>(view.data) + sequence * view.stride[0] + head * view.stride[1], view.stride[2]};
}

template <typename S>
STURDY_ALWAYS_INLINE Vec<Accumulate<S>> load_up_to(const S* from, int64_t count) {
  return count >= kLanes<Accumulate<S>> ? load(from) : load_partial(from, count);
}

template <typename S>
STURDY_ALWAYS_INLINE void store_up_to(S* to, Vec<Accumulate<S>> value, int64_t count) {
  if (count >= kLanes<Accumulate<S>>) {
    store(to, value);
  } else {
    store_partial(to, value, count);
  }
}

constexpr int64_t kAhead = 16;  // rows that are fetched before their turn: scattered rows are not foreseen by hardware

template <typename S>
STURDY_ALWAYS_INLINE void prefetch_row(const S* row, int64_t dim) {
  for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(S))) {
    __builtin_prefetch(row + d);
  }
}

// to[i][.] = factor(i) * the row of tokens[i], zeros where that is negative and up to whole tiles of rows. Columns are
// zero up to whole vectors.
template <typename S, typename T, typename Factor>
static void gather_scaled_rows(HeadRows<const S> from, const int32_t* tokens, int64_t count, int64_t dim, T* to,
                               int64_t pitch, const Factor& factor) {
  for (int64_t i = 0; i < cpu::padded_rows(count); i++, to += pitch) {
    if (i + kAhead < count && tokens[i + kAhead] >= 0) {
      prefetch_row(from.row(tokens[i + kAhead]), dim);
    }
    if (i >= count || tokens[i] < 0) {
      std::fill_n(to, in_vectors<T>(dim), T{0});
      continue;
    }
    const S* row = from.row(tokens[i]);
    const Vec<T> by = broadcast(factor(i));
    for (int64_t d = 0; d < dim; d += kLanes<T>) {
      store(to + d, by * load_up_to(row + d, dim - d));
    }
  }
}

template <typename S, typename T>
static void gather_rows(HeadRows<const S> from, const int32_t* tokens, int64_t count, int64_t dim, T* to,
                        int64_t pitch) {
  gather_scaled_rows(from, tokens, count, dim, to, pitch, [](int64_t) { return T{1}; });
}

// to[d][i] = element d of row(i), zeros from `count` up to whole vectors.
template <typename T, typename Row>
STURDY_ALWAYS_INLINE void gather_transposed(const Row& row, int64_t count, int64_t dim, T* to, int64_t pitch) {
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < count; i += lanes) {
    for (int64_t next = i + lanes; next < std::min<int64_t>(count, i + 2 * lanes); next++) {
      prefetch_row(row(next), dim);
    }
    for (int64_t d = 0; d < dim; d += lanes) {
      Vec<T> block[lanes];
      STURDY_UNROLL
      for (int lane = 0; lane < lanes; lane++) {
        block[lane] = i + lane < count ? load_up_to(row(i + lane) + d, dim - d) : Vec<T>{};
      }
      transpose(block);
      if (dim - d >= lanes) {
        STURDY_UNROLL
        for (int r = 0; r < lanes; r++) {
          store(to + (d + r) * pitch + i, block[r]);
        }
      } else {
        for (int64_t r = 0; r < dim - d; r++) {
          store(to + (d + r) * pitch + i, block[r]);
        }
      }
    }
  }
}

// to[d][i] of the tokens of a list, none of them negative.
template <typename S, typename T>
static void gather_columns(HeadRows<const S> from, const int32_t* tokens, int64_t count, int64_t dim, T* to,
                           int64_t pitch) {
  gather_transposed([&](int64_t i) { return from.row(tokens[i]); }, count, dim, to, pitch);
}

// to[column][row] = from[row][column].
template <typename T>
static void transpose_rows(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t pitch) {
  gather_transposed([&](int64_t i) { return from + i * from_pitch; }, rows, columns, to, pitch);
}

// to = from * factor, converted.
template <typename S, typename T>
STURDY_ALWAYS_INLINE void store_row(S* to, const T* from, T factor, int64_t dim) {
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    store_up_to(to + d, load(from + d) * broadcast(factor), dim - d);
  }
}

template <typename S, typename T>
STURDY_ALWAYS_INLINE void add_to_row(S* to, const T* from, int64_t dim) {
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    store_up_to(to + d, load_up_to(static_cast<const S*>(to) + d, dim - d) + load(from + d), dim - d);
  }
}

// to += from * factor, where `to` is scratch.
template <typename S, typename T>
STURDY_ALWAYS_INLINE void add_scaled(T* to, const S* from, T factor, int64_t dim) {
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    store(to + d, multiply_add(load_up_to(from + d, dim - d), broadcast(factor), load(to + d)));
  }
}

// a is scratch, with zeros behind dim.
template <typename S, typename T>
STURDY_ALWAYS_INLINE T dot(const T* a, const S* b, int64_t dim) {
  Vec<T> sum{};
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    accumulate(sum, load(a + d), load_up_to(b + d, dim - d));
  }
  return sum_of_lanes(sum);
}

// ---- softmax ----

// Powers for weights of at most 1, in the base that is cheapest: of(x * kBase) = e^x. 0 for -infinity, and NaN stays.
template <typename T>
struct WeightPower {
  static constexpr T kBase = 1;
  static STURDY_ALWAYS_INLINE Vec<T> of(Vec<T> x) { return exp(x); }
};

// 2^x: reducing x is exact. Within 1.5 ulp, and 1 at 0.
template <>
struct WeightPower<float> {
  static constexpr float kBase = 0x1.715476p+0f;  // log2(e)
  static constexpr float kLeast = -151.0f;        // below: 0
  // (2^r - 1) / r, |r| <= 1/2
  static constexpr float kPower[] = {0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba14p-10f};

  static STURDY_ALWAYS_INLINE Vec<float> of(Vec<float> x) {
    using C = MathConstants<float>;
    const Vec<float> bounded = larger(broadcast(kLeast), x);
    const Vec<float> shifted = bounded + broadcast(C::kRound);
    const Vec<float> whole = shifted - broadcast(C::kRound);
    const Vec<float> r = bounded - whole;
    const Vec<float> power = multiply_add(r, polynomial(kPower, r), broadcast(1.0f));
#if defined(__AVX512F__)
    Vec<float> result;
    asm("vscalefps %2, %1, %0" : "=v"(result.v) : "v"(power.v), "v"(whole.v));
    return result;
#else
    return scale(power, bits_of(shifted) - bits_of(broadcast(C::kRound)));
#endif
  }
};

// The largest element; those behind `count` count too, up to whole vectors.
template <typename T>
STURDY_ALWAYS_INLINE T largest_of_row(const T* row, int64_t count) {
  constexpr int together = 4;
  Vec<T> most[together];
  STURDY_UNROLL
  for (int i = 0; i < together; i++) {
    most[i] = broadcast(kMinusInfinity<T>);
  }
  int64_t j = 0;
  for (; j + together * kLanes<T> <= count; j += together * kLanes<T>) {
    STURDY_UNROLL
    for (int i = 0; i < together; i++) {
      most[i] = larger(load(row + j + i * kLanes<T>), most[i]);
    }
  }
  for (; j < count; j += kLanes<T>) {
    most[0] = larger(load(row + j), most[0]);
  }
  return largest_lane(larger(larger(most[0], most[1]), larger(most[2], most[3])));
}

// Sets the elements behind `count` to -infinity, up to whole vectors.
template <typename T>
STURDY_ALWAYS_INLINE void close_row(T* row, int64_t count) {
  std::fill(row + count, row + in_vectors<T>(count), kMinusInfinity<T>);
}

// row = exp((row - shift) * scale); returns the sum, of whole vectors.
template <typename T>
STURDY_ALWAYS_INLINE T exp_of_row(T* row, int64_t count, T shift, T scale) {
  const Vec<T> shifts = broadcast(shift);
  const Vec<T> factor = broadcast(scale * WeightPower<T>::kBase);
  Vec<T> sum{};
  for (int64_t j = 0; j < count; j += kLanes<T>) {
    const Vec<T> value = WeightPower<T>::of((load(row + j) - shifts) * factor);
    sum += value;
    store(row + j, value);
  }
  return sum_of_lanes(sum);
}

// ---- dropout ----

template <typename T>
struct Dropout {
  uint32_t threshold;
  T scale;  // of what is kept
  int64_t seed;

  explicit Dropout(const CastAttentionParams& p)
      : threshold(dropout_threshold(p.dropout)),
        scale(static_cast<T>(1.0 / (1.0 - p.dropout))),
        seed(p.dropout > 0 ? *p.seed : 0) {}

  STURDY_ALWAYS_INLINE bool active() const { return threshold != 0; }
};

static STURDY_ALWAYS_INLINE WordVector mix_words(WordVector x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// keep[j] = scale or 0 for the weights of one row; slots has whole vectors of words.
template <typename T>
static void dropout_row(const Dropout<T>& dropout, int64_t row, const int32_t* slots, int64_t count, T* keep) {
  constexpr int words = kLanes<float>;
  const uint64_t key = dropout_row_key(dropout.seed, row);
  for (int64_t j = 0; j < count; j += words) {
    WordVector slot;
    std::memcpy(&slot, slots + j, sizeof slot);
    const WordVector first = mix_words(static_cast<uint32_t>(key) ^ (slot * 0x9e3779b1u));
    const WordVector bits = mix_words(first + static_cast<uint32_t>(key >> 32));
    for (int64_t i = 0; i < words; i++) {
      keep[j + i] = bits[i] >= dropout.threshold ? dropout.scale : T{0};
    }
  }
}

// ---- members of a cluster ----

constexpr int64_t kListPadding = 16;  // whole vectors of words behind the end of a list

// The tokens of a cluster and their slots, empty slots left out; then zeros up to whole vectors. Returns how many.
STURDY_ALWAYS_INLINE int64_t list_members(const int32_t* index, int64_t slots, int32_t* tokens, int32_t* places) {
  int64_t count = 0;
  for (int64_t slot = 0; slot < slots; slot++) {
    tokens[count] = index[slot];
    places[count] = static_cast<int32_t>(slot);
    count += index[slot] >= 0 ? 1 : 0;
  }
  std::fill(places + count, places + cpu::in_steps(count, kListPadding) * kListPadding, 0);
  return count;
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
