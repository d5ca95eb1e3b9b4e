// How the CUDA kernels of the Fourier family cut transforms into steps. A plan is plain data: the host makes it,
// kernels get it as a parameter.
//
// A transform of length n runs in place, in steps of small radices. Going forward (decimation in frequency) samples are
// in their natural order and frequencies end up in the order of their digits; going back starts from that order, so
// nothing is ever put into order: a mask is laid out as its frequencies come. A length with a large prime factor (above
// 31, or 23 in double precision, where a butterfly of 29 elements does not fit in registers) goes
// through a circular convolution with a chirp (Bluestein), whose own length m has small factors; frequencies then come
// in natural order.
//
// A plane of real pixels is transformed along its columns first. Column c is the real part and column c + pairs, of the
// right half, the imaginary part of one vector; sums and differences of its frequencies k and -k tell the two apart.
// Kept of the spectrum are rows k of which -k is not kept, K = H / 2 + 1 of them, in the order in which they lie in
// memory. Such a row has W complex numbers. The first `half` of them stay where frequency k was, the others move to
// where -k was, or, for the rows that are their own mirror images, to rows beyond the plane.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cuda_platform.cuh"

namespace sturdy::cuda::fft {

constexpr int kMostStages = 10;
constexpr int kMostSteps = 64;

// The largest prime factor without a chirp: the largest butterfly that fits in registers.
template <typename T>
constexpr int kLargestRadix = sizeof(T) == 8 ? 23 : 31;
constexpr int kMaxLength = 1 << 15;  // of an axis

// 11, 13, 17, 19, 23, 29, 31: their sums run in a loop, and they hold no product in the middle of a step.
__host__ __device__ constexpr bool is_large_prime(int radix) { return radix > 7 && radix % 2 == 1; }

template <typename T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

// One axis: its length n and the length m of the steps, equal but for a chirp.
struct Axis {
  int n, m, stages;
  int radix[kMostStages];

  __host__ __device__ bool chirped() const { return m != n; }

  // Where frequency k stands.
  __host__ __device__ int position(int k) const {
    if (chirped()) {
      return k;
    }
    int at = 0;
    int block = m;
    for (int s = 0; s < stages; ++s) {
      block /= radix[s];
      at += k % radix[s] * block;
      k /= radix[s];
    }
    return at;
  }

  // The frequency that stands at a position.
  __host__ __device__ int frequency(int at) const { return chirped() ? at : step_frequency(at); }

  // The same for the transform of length m.
  __host__ __device__ int step_frequency(int at) const {
    int k = 0;
    int block = m;
    int weight = 1;
    for (int s = 0; s < stages; ++s) {
      block /= radix[s];
      k += at / block * weight;
      at %= block;
      weight *= radix[s];
    }
    return k;
  }
};

// What a step does. Those with a radix load the elements of a butterfly, store what becomes of them in the same places,
// and do in between, in this order, what their flags say. Those without do one thing to all elements.
enum StepFlags : unsigned {
  kRows = 1u << 0,     // along rows of the spectrum, else along columns
  kSplit = 1u << 1,    // loads tell the two halves of columns apart
  kInverse = 1u << 2,  // a step back: rotations come before the butterfly
  kMiddle = 1u << 3,   // the butterfly forward, the product with the mask, the butterfly back
  kMask = 1u << 4,     // a product with the mask
  kMerge = 1u << 5,    // stores put the two halves of columns together
  // Without a radix alone:
  kSource = 1u << 6,     // elements come from outside
  kTarget = 1u << 7,     // elements go outside
  kChirpIn = 1u << 8,    // times the chirp; zero from n on
  kSpectrum = 1u << 9,   // times the transform of the chirp
  kChirpOut = 1u << 10,  // times the chirp
  kSwapped = 1u << 11,   // of an inverse transform: real and imaginary parts change places outside
};

struct Step {
  int radix;  // 0: none
  unsigned flags;
  int span;         // between the elements of a butterfly
  int butterflies;  // of a line
  int root_step;    // in the table of roots, for the rotations between steps
};

struct Program {
  int count;
  Step step[kMostSteps];
};

struct PlanePlan {
  int height, width;
  int pairs;      // columns of a plane as complex vectors, (W + 1) / 2
  int kept;       // rows of the half spectrum, H / 2 + 1
  int half;       // elements of a row of the spectrum that lie in the first of its two rows in memory
  int rows;       // in memory
  Axis down;      // along columns, length H
  Axis across;    // along rows, length W
  bool separate;  // telling halves apart is a step of its own
};

// ---- host ----

namespace detail {

constexpr int kRadices[] = {31, 29, 23, 19, 17, 16, 14, 13, 12, 11, 8, 7, 5, 4, 3, 2};
constexpr int kRadixCount = static_cast<int>(sizeof kRadices / sizeof kRadices[0]);

// The fewest radices with product n, then those of the least sum: they leave most butterflies to share out.
inline void search_radices(int n, int from, int depth, int sum, int (&chosen)[kMostStages], Axis* best, int* best_sum) {
  if (n == 1) {
    if (depth < best->stages || (depth == best->stages && sum < *best_sum)) {
      best->stages = depth;
      *best_sum = sum;
      std::copy(chosen, chosen + depth, best->radix);
    }
    return;
  }
  if (depth >= best->stages || depth == kMostStages) {
    return;
  }
  for (int i = from; i < kRadixCount; ++i) {
    if (n % kRadices[i] == 0) {
      chosen[depth] = kRadices[i];
      search_radices(n / kRadices[i], i, depth + 1, sum + kRadices[i], chosen, best, best_sum);
    }
  }
}

inline bool has_only_small_factors(int n, int largest) {
  for (int p = 2; p <= largest; ++p) {
    while (n % p == 0) {
      n /= p;
    }
  }
  return n == 1;
}

}  // namespace detail

// `largest_radix`: a prime factor above it makes a chirp. `even_first`: an even length begins with an even radix, whose
// butterflies hold column c and column c + n / 2.
inline Axis make_axis(int n, int largest_radix, bool even_first) {
  Axis axis = {};
  axis.n = axis.m = n;
  if (!detail::has_only_small_factors(n, largest_radix)) {
    axis.m = 2 * n - 1;
    while (!detail::has_only_small_factors(axis.m, 7)) {
      ++axis.m;
    }
  }
  if (n == 1) {
    axis.stages = 1;
    axis.radix[0] = 1;
    return axis;
  }
  axis.stages = kMostStages + 1;
  int chosen[kMostStages] = {};
  int sum = 0;
  detail::search_radices(axis.m, 0, 0, 0, chosen, &axis, &sum);
  // Large primes first, then ascending: the last step is the one that can hold a product and the butterfly back.
  int* const end = axis.radix + axis.stages;
  std::sort(axis.radix, end,
            [](int a, int b) { return is_large_prime(a) != is_large_prime(b) ? is_large_prime(a) : a < b; });
  if (even_first && n % 2 == 0 && !axis.chirped()) {
    int* const even = std::find_if(axis.radix, end, [](int r) { return r % 2 == 0; });
    std::rotate(axis.radix, even, even + 1);
  }
  return axis;
}

template <typename T>
PlanePlan make_plane_plan(int height, int width) {
  PlanePlan plan = {};
  plan.height = height;
  plan.width = width;
  plan.pairs = (width + 1) / 2;
  plan.kept = height / 2 + 1;
  plan.down = make_axis(height, kLargestRadix<T>, false);
  plan.across = make_axis(width, kLargestRadix<T>, true);
  plan.half = plan.across.chirped() ? (plan.across.m + 1) / 2 : plan.pairs;
  plan.rows = std::max(height + 2, plan.down.m);
  plan.separate = width % 2 != 0 || plan.across.chirped();
  return plan;
}

// Appends the steps of programs.
class ProgramBuilder {
 public:
  explicit ProgramBuilder(Program* program) : program_(program) { program_->count = 0; }

  void special(unsigned flags) { program_->step[program_->count++] = Step{0, flags, 0, 0, 0}; }

  // A transform, with flags for its first and last step; `along` is kRows or 0.
  void transform(const Axis& axis, unsigned along, bool inverse, unsigned first, unsigned last) {
    if (axis.chirped()) {
      const unsigned ends = along | (inverse ? kSwapped : 0u);
      special(kChirpIn | ends | first);
      steps(axis, along, false, 0, 0);
      special(kSpectrum | along);
      steps(axis, along, true, 0, 0);
      special(kChirpOut | ends | last);
    } else {
      steps(axis, along, inverse, first, last);
    }
  }

  // Rows forward, times the mask, and back.
  void filter(const Axis& axis, unsigned first, unsigned last) {
    const int s = axis.stages - 1;
    if (axis.chirped() || is_large_prime(axis.radix[s])) {
      transform(axis, kRows, false, first, kMask);
      transform(axis, kRows, true, 0, last);
      return;
    }
    for (int i = 0; i < s; ++i) {
      add(axis, i, kRows | (i == 0 ? first : 0u));
    }
    add(axis, s, kRows | kMiddle | (s == 0 ? first | last : 0u));
    for (int i = s - 1; i >= 0; --i) {
      add(axis, i, kRows | kInverse | (i == 0 ? last : 0u));
    }
  }

 private:
  void steps(const Axis& axis, unsigned along, bool inverse, unsigned first, unsigned last) {
    for (int i = 0; i < axis.stages; ++i) {
      const unsigned ends = (i == 0 ? first : 0u) | (i == axis.stages - 1 ? last : 0u);
      add(axis, inverse ? axis.stages - 1 - i : i, along | ends | (inverse ? kInverse : 0u));
    }
  }

  void add(const Axis& axis, int stage, unsigned flags) {
    int block = axis.m;
    for (int s = 0; s < stage; ++s) {
      block /= axis.radix[s];
    }
    const int radix = axis.radix[stage];
    program_->step[program_->count++] = Step{radix, flags, block / radix, axis.m / radix, axis.m / block};
  }

  Program* program_;
};

// Columns forward, rows forward, times the mask and back, columns back: all of a filter.
inline Program make_filter_program(const PlanePlan& plan) {
  Program program;
  ProgramBuilder builder(&program);
  builder.special(kSource);
  builder.transform(plan.down, 0, false, 0, 0);
  if (plan.separate) {
    builder.special(kSplit);
  }
  builder.filter(plan.across, plan.separate ? 0u : kSplit, plan.separate ? 0u : kMerge);
  if (plan.separate) {
    builder.special(kMerge);
  }
  builder.transform(plan.down, 0, true, 0, 0);
  builder.special(kTarget);
  return program;
}

// A transform alone, of lines that are in shared memory.
inline Program make_program(const Axis& axis, unsigned along, bool inverse) {
  Program program;
  ProgramBuilder(&program).transform(axis, along, inverse, 0, 0);
  return program;
}

}  // namespace sturdy::cuda::fft
