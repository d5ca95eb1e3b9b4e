// Discrete Fourier transforms of a few samples held in vectors: every lane carries a transform of its own.
//
// Butterfly<T, N>::run(r, i) replaces N complex samples by their forward transform, exp(-2 pi i j k / N), natural order
// in and out, no scaling. With r and i exchanged it is the inverse transform.
#pragma once

#include <utility>

#include "common/simd.h"
#include "fourier/fft_roots.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Calls body(std::integral_constant<int, 0>), ..., <int, N - 1>.
template <typename Body, int... I>
STURDY_ALWAYS_INLINE void for_each_constant(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>{}), ...);
}

#define STURDY_INLINE_LAMBDA __attribute__((always_inline))

// (r, i) *= exp(-2 pi i part / whole)
template <int part, int whole, typename T>
STURDY_ALWAYS_INLINE void rotate(Vec<T>& r, Vec<T>& i) {
  constexpr int p = part % whole;
  if constexpr (p == 0) {
    return;
  } else if constexpr (4 * p == whole) {
    const Vec<T> t = r;
    r = i;
    i = zero<T>() - t;
  } else if constexpr (2 * p == whole) {
    r = zero<T>() - r;
    i = zero<T>() - i;
  } else if constexpr (4 * p == 3 * whole) {
    const Vec<T> t = r;
    r = zero<T>() - i;
    i = t;
  } else {
    constexpr cpu::Root w = cpu::root(p, whole);
    const Vec<T> c = broadcast(static_cast<T>(w.cos));
    const Vec<T> s = broadcast(static_cast<T>(w.sin));
    const Vec<T> t = r;
    r = t * c + i * s;
    i = i * c - t * s;
  }
}

// Odd N that is no product of smaller ones here: sums and differences of mirrored samples, h = (N - 1) / 2 of each, and
// then h x h real coefficients for each of the four parts.
template <typename T, int N>
struct Butterfly {
  static_assert(N % 2 == 1, "even sizes are composed of smaller ones below");
  static constexpr int h = (N - 1) / 2;

  struct Table {
    T cos[h][h], sin[h][h];
    constexpr Table() : cos(), sin() {
      for (int j = 0; j < h; j++) {
        for (int k = 0; k < h; k++) {
          const cpu::Root w = cpu::root((j + 1) * (k + 1), N);
          cos[j][k] = static_cast<T>(w.cos);
          sin[j][k] = static_cast<T>(w.sin);
        }
      }
    }
  };
  static constexpr Table table = Table();

  // Outputs [first, first + count) and their mirrors, in 4 count accumulators.
  template <int first, int count>
  STURDY_ALWAYS_INLINE static void outputs(const Vec<T>* sum_r, const Vec<T>* sum_i, const Vec<T>* dif_r,
                                           const Vec<T>* dif_i, Vec<T> r0, Vec<T> i0, Vec<T>* r, Vec<T>* i) {
    Vec<T> ar[count], ai[count], br[count], bi[count];
    STURDY_UNROLL
    for (int k = 0; k < count; k++) {
      ar[k] = r0;
      ai[k] = i0;
      br[k] = zero<T>();
      bi[k] = zero<T>();
    }
    const auto add = [&](int j) STURDY_INLINE_LAMBDA {
      const Vec<T> sr = sum_r[j], si = sum_i[j], dr = dif_r[j], di = dif_i[j];
      STURDY_UNROLL
      for (int k = 0; k < count; k++) {
        const Vec<T> c = broadcast(table.cos[j][first + k]);
        const Vec<T> s = broadcast(table.sin[j][first + k]);
        ar[k] += sr * c;
        ai[k] += si * c;
        br[k] += dr * s;
        bi[k] += di * s;
      }
    };
    if constexpr (N <= 7) {
      STURDY_UNROLL
      for (int j = 0; j < h; j++) {
        add(j);
      }
    } else {  // rolled: the inputs stay in memory, the accumulators in registers
      _Pragma("GCC unroll 1") for (int j = 0; j < h; j++) { add(j); }
    }
    STURDY_UNROLL
    for (int k = 0; k < count; k++) {
      const int at = first + k + 1;
      r[at] = ar[k] + bi[k];
      i[at] = ai[k] - br[k];
      r[N - at] = ar[k] - bi[k];
      i[N - at] = ai[k] + br[k];
    }
  }

  STURDY_ALWAYS_INLINE static void run(Vec<T>* r, Vec<T>* i) {
    Vec<T> sum_r[h], sum_i[h], dif_r[h], dif_i[h];
    const Vec<T> r0 = r[0], i0 = i[0];
    Vec<T> all_r = r0, all_i = i0;
    STURDY_UNROLL
    for (int j = 0; j < h; j++) {
      sum_r[j] = r[j + 1] + r[N - 1 - j];
      dif_r[j] = r[j + 1] - r[N - 1 - j];
      sum_i[j] = i[j + 1] + i[N - 1 - j];
      dif_i[j] = i[j + 1] - i[N - 1 - j];
      all_r += sum_r[j];
      all_i += sum_i[j];
    }
    r[0] = all_r;
    i[0] = all_i;
    constexpr int most = kVectorRegisters == 32 ? 6 : 2;
    constexpr int block = h < most ? h : most;
    for_each_constant(std::make_integer_sequence<int, (h + block - 1) / block>(), [&](auto b) STURDY_INLINE_LAMBDA {
      constexpr int first = decltype(b)::value * block;
      constexpr int count = h - first < block ? h - first : block;
      outputs<first, count>(sum_r, sum_i, dif_r, dif_i, r0, i0, r, i);
    });
  }
};

template <typename T>
struct Butterfly<T, 1> {
  STURDY_ALWAYS_INLINE static void run(Vec<T>*, Vec<T>*) {}
};

template <typename T>
struct Butterfly<T, 2> {
  STURDY_ALWAYS_INLINE static void run(Vec<T>* r, Vec<T>* i) {
    const Vec<T> r1 = r[1], i1 = i[1];
    r[1] = r[0] - r1;
    i[1] = i[0] - i1;
    r[0] += r1;
    i[0] += i1;
  }
};

template <typename T>
struct Butterfly<T, 4> {
  STURDY_ALWAYS_INLINE static void run(Vec<T>* r, Vec<T>* i) {
    const Vec<T> even_r = r[0] + r[2], even_i = i[0] + i[2];
    const Vec<T> even_dr = r[0] - r[2], even_di = i[0] - i[2];
    const Vec<T> odd_r = r[1] + r[3], odd_i = i[1] + i[3];
    const Vec<T> odd_dr = r[1] - r[3], odd_di = i[1] - i[3];
    r[0] = even_r + odd_r;
    i[0] = even_i + odd_i;
    r[1] = even_dr + odd_di;
    i[1] = even_di - odd_dr;
    r[2] = even_r - odd_r;
    i[2] = even_i - odd_i;
    r[3] = even_dr - odd_di;
    i[3] = even_di + odd_dr;
  }
};

// N = A B by Cooley and Tukey: A-point transforms of every B-th sample, rotations, B-point transforms.
template <typename T, int A, int B>
struct Composed {
  STURDY_ALWAYS_INLINE static void run(Vec<T>* r, Vec<T>* i) {
    Vec<T> ur[B][A], ui[B][A];
    for_each_constant(std::make_integer_sequence<int, B>(), [&](auto b) STURDY_INLINE_LAMBDA {
      STURDY_UNROLL
      for (int a = 0; a < A; a++) {
        ur[b][a] = r[B * a + b];
        ui[b][a] = i[B * a + b];
      }
      Butterfly<T, A>::run(ur[b], ui[b]);
      for_each_constant(std::make_integer_sequence<int, A>(), [&](auto k) STURDY_INLINE_LAMBDA {
        rotate<decltype(b)::value* decltype(k)::value, A * B>(ur[b][k], ui[b][k]);
      });
    });
    STURDY_UNROLL
    for (int k = 0; k < A; k++) {
      Vec<T> vr[B], vi[B];
      STURDY_UNROLL
      for (int b = 0; b < B; b++) {
        vr[b] = ur[b][k];
        vi[b] = ui[b][k];
      }
      Butterfly<T, B>::run(vr, vi);
      STURDY_UNROLL
      for (int m = 0; m < B; m++) {
        r[k + A * m] = vr[m];
        i[k + A * m] = vi[m];
      }
    }
  }
};

constexpr int inverse_modulo(int value, int modulus) {
  for (int y = 1; y < modulus; y++) {
    if (value * y % modulus == 1) {
      return y;
    }
  }
  return 1;
}

// N = A B without a common divisor: Good's numbering needs no rotations.
template <typename T, int A, int B>
struct Coprime {
  STURDY_ALWAYS_INLINE static void run(Vec<T>* r, Vec<T>* i) {
    constexpr int n = A * B;
    constexpr int step_a = B * inverse_modulo(B % A, A);
    constexpr int step_b = A * inverse_modulo(A % B, B);
    Vec<T> ur[B][A], ui[B][A];
    STURDY_UNROLL
    for (int b = 0; b < B; b++) {
      STURDY_UNROLL
      for (int a = 0; a < A; a++) {
        ur[b][a] = r[(a * B + b * A) % n];
        ui[b][a] = i[(a * B + b * A) % n];
      }
      Butterfly<T, A>::run(ur[b], ui[b]);
    }
    STURDY_UNROLL
    for (int a = 0; a < A; a++) {
      Vec<T> vr[B], vi[B];
      STURDY_UNROLL
      for (int b = 0; b < B; b++) {
        vr[b] = ur[b][a];
        vi[b] = ui[b][a];
      }
      Butterfly<T, B>::run(vr, vi);
      STURDY_UNROLL
      for (int b = 0; b < B; b++) {
        r[(a * step_a + b * step_b) % n] = vr[b];
        i[(a * step_a + b * step_b) % n] = vi[b];
      }
    }
  }
};

template <typename T>
struct Butterfly<T, 6> : Coprime<T, 3, 2> {};
template <typename T>
struct Butterfly<T, 8> : Composed<T, 2, 4> {};
template <typename T>
struct Butterfly<T, 9> : Composed<T, 3, 3> {};
template <typename T>
struct Butterfly<T, 10> : Coprime<T, 5, 2> {};
template <typename T>
struct Butterfly<T, 12> : Coprime<T, 3, 4> {};
template <typename T>
struct Butterfly<T, 14> : Coprime<T, 7, 2> {};
template <typename T>
struct Butterfly<T, 16> : Composed<T, 4, 4> {};

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
