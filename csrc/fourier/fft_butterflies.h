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

template <typename T, int N>
struct HankelButterfly;

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

  // Sums and differences of mirrored samples.
  struct Pairs {
    Vec<T> sum_r[h], sum_i[h], dif_r[h], dif_i[h];
  };

  template <typename From>
  STURDY_ALWAYS_INLINE static void read_pair(const From& from, int j, Pairs& pairs) {
    Vec<T> ar, ai, br, bi;
    from(j + 1, ar, ai);
    from(N - 1 - j, br, bi);
    pairs.sum_r[j] = ar + br;
    pairs.sum_i[j] = ai + bi;
    pairs.dif_r[j] = ar - br;
    pairs.dif_i[j] = ai - bi;
  }

  // Outputs [first, first + count) and their mirrors, in 4 count accumulators. The first block also reads the samples,
  // whose sums and stores hide behind its products, and has output 0.
  template <int first, int count, typename From, typename To>
  STURDY_ALWAYS_INLINE static void outputs(const From& from, Vec<T> r0, Vec<T> i0, Pairs& pairs, const To& to) {
    Vec<T> ar[count], ai[count], br[count], bi[count];
    Vec<T> all_r = r0, all_i = i0;
    STURDY_UNROLL
    for (int k = 0; k < count; k++) {
      ar[k] = r0;
      ai[k] = i0;
      br[k] = zero<T>();
      bi[k] = zero<T>();
    }
    const auto add = [&](int j) STURDY_INLINE_LAMBDA {
      if constexpr (first == 0) {
        read_pair(from, j, pairs);
      }
      const Vec<T> sr = pairs.sum_r[j], si = pairs.sum_i[j], dr = pairs.dif_r[j], di = pairs.dif_i[j];
      if constexpr (first == 0) {
        all_r += sr;
        all_i += si;
      }
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
    if constexpr (first == 0) {
      to(0, all_r, all_i);
    }
    STURDY_UNROLL
    for (int k = 0; k < count; k++) {
      const int at = first + k + 1;
      to(at, ar[k] + bi[k], ai[k] - br[k]);
      to(N - at, ar[k] - bi[k], ai[k] + br[k]);
    }
  }

  // from(k, r, i) gives sample k, to(k, r, i) takes frequency k; all that is given is given before anything is taken.
  // Large sizes have more samples than there are registers: this way each is in memory once between the two.
  template <typename From, typename To>
  STURDY_ALWAYS_INLINE static void run_through(const From& from, const To& to) {
    if constexpr (kVectorRegisters == 32 && N >= 13 && N <= 23) {
      return HankelButterfly<T, N>::run_through(from, to);
    }
    Pairs pairs;
    Vec<T> r0, i0;
    from(0, r0, i0);
    // Blocks of as many outputs as there are registers for; the first one, which has to read, is not the largest.
    constexpr int most = kVectorRegisters == 32 ? 6 : 2;
    constexpr int wanted = h < most ? 1 : 1 + h / most;
    constexpr int block = (h + wanted - 1) / wanted;
    constexpr int parts = (h + block - 1) / block;
    constexpr int start = h - (parts - 1) * block;
    outputs<0, start>(from, r0, i0, pairs, to);
    for_each_constant(std::make_integer_sequence<int, parts - 1>(), [&](auto b) STURDY_INLINE_LAMBDA {
      outputs<start + decltype(b)::value * block, block>(from, r0, i0, pairs, to);
    });
  }

  STURDY_ALWAYS_INLINE static void run(Vec<T>* r, Vec<T>* i) {
    run_through(
        [&](int k, Vec<T>& to_r, Vec<T>& to_i) STURDY_INLINE_LAMBDA {
          to_r = r[k];
          to_i = i[k];
        },
        [&](int k, Vec<T> from_r, Vec<T> from_i) STURDY_INLINE_LAMBDA {
          r[k] = from_r;
          i[k] = from_i;
        });
  }
};

// Whether Butterfly<T, N> has run_through, and samples enough for it to matter.
constexpr bool is_large_prime(int n) { return n == 11 || n == 13 || n >= 17; }

// Prime N between 13 and 23 where there are 32 registers: the same sums and differences, with fewer products.
//
// With g a primitive root of N, sample g^a has in frequency g^b the coefficients cos and sin of 2 pi g^(a + b) / N: for
// a, b in [0, h) they stand for all samples and frequencies up to mirroring, and the matrices depend on a + b alone. In
// halves of m, with inputs u, v and blocks F_0, F_1, F_2 of the matrix, where a + b begins at 0, m and 2 m,
//
//   F_0 u + F_1 v = F_1 (u + v) + (F_0 - F_1) u
//   F_1 u + F_2 v = F_1 (u + v) + (F_2 - F_1) v
//
// which is three products of blocks where the plain form has four.
template <typename T, int N>
struct HankelButterfly {
  static constexpr int h = (N - 1) / 2;
  static constexpr int m = (h + 1) / 2;

  static constexpr int power(int base, int exponent) {
    int result = 1;
    for (int i = 0; i < exponent; i++) {
      result = result * base % N;
    }
    return result;
  }

  static constexpr int primitive_root() {
    for (int g = 2;; g++) {
      int order = 1;
      while (power(g, order) != 1) {
        order++;
      }
      if (order == N - 1) {
        return g;
      }
    }
  }

  static constexpr int g = primitive_root();

  struct Table {
    T cos[3][m][m], sin[3][m][m];  // F_1, F_0 - F_1, F_2 - F_1
    constexpr Table() : cos(), sin() {
      for (int a = 0; a < m; a++) {
        for (int b = 0; b < m; b++) {
          const cpu::Root f0 = cpu::root(power(g, a + b), N);
          const cpu::Root f1 = cpu::root(power(g, a + b + m), N);
          const cpu::Root f2 = cpu::root(power(g, a + b + 2 * m), N);
          cos[0][a][b] = static_cast<T>(f1.cos);
          sin[0][a][b] = static_cast<T>(f1.sin);
          cos[1][a][b] = static_cast<T>(f0.cos - f1.cos);
          sin[1][a][b] = static_cast<T>(f0.sin - f1.sin);
          cos[2][a][b] = static_cast<T>(f2.cos - f1.cos);
          sin[2][a][b] = static_cast<T>(f2.sin - f1.sin);
        }
      }
    }
  };
  static constexpr Table table = Table();

  struct Samples {
    int at[h];
    constexpr Samples() : at() {
      for (int a = 0; a < h; a++) {
        at[a] = power(g, a);
      }
    }
  };
  static constexpr Samples samples = Samples();

  // Sums and differences of mirrored samples, or what becomes of them.
  template <int count>
  struct Pairs {
    Vec<T> sum_r[count], sum_i[count], dif_r[count], dif_i[count];
  };

  // out += block * a row of it times (sr, si, dr, di)
  template <int block, int outputs>
  STURDY_ALWAYS_INLINE static void multiply(int a, Vec<T> sr, Vec<T> si, Vec<T> dr, Vec<T> di, Pairs<m>& out) {
    STURDY_UNROLL
    for (int b = 0; b < outputs; b++) {
      const Vec<T> c = broadcast(table.cos[block][a][b]);
      const Vec<T> s = broadcast(table.sin[block][a][b]);
      out.sum_r[b] += sr * c;
      out.sum_i[b] += si * c;
      out.dif_r[b] += dr * s;
      out.dif_i[b] += di * s;
    }
  }

  template <int first, int count, typename To>
  STURDY_ALWAYS_INLINE static void put(const Pairs<m>& out, const To& to) {
    for_each_constant(std::make_integer_sequence<int, count>(), [&](auto index) STURDY_INLINE_LAMBDA {
      constexpr int b = decltype(index)::value;
      constexpr int k = power(g, first + b);
      to(k, out.sum_r[b] + out.dif_i[b], out.sum_i[b] - out.dif_r[b]);
      to(N - k, out.sum_r[b] - out.dif_i[b], out.sum_i[b] + out.dif_r[b]);
    });
  }

  template <typename From>
  STURDY_ALWAYS_INLINE static void read_pair(const From& from, int a, Pairs<h>& in) {
    Vec<T> ar, ai, br, bi;
    const int j = samples.at[a];
    from(j, ar, ai);
    from(N - j, br, bi);
    in.sum_r[a] = ar + br;
    in.sum_i[a] = ai + bi;
    in.dif_r[a] = ar - br;
    in.dif_i[a] = ai - bi;
  }

  template <typename From, typename To>
  STURDY_ALWAYS_INLINE static void run_through(const From& from, const To& to) {
    Pairs<h> in;
    Pairs<m> out;
    Vec<T> r0, i0;
    from(0, r0, i0);
    Vec<T> all_r = r0, all_i = i0;
    STURDY_UNROLL
    for (int b = 0; b < m; b++) {
      out.sum_r[b] = r0;
      out.sum_i[b] = i0;
      out.dif_r[b] = zero<T>();
      out.dif_i[b] = zero<T>();
    }
    // Rolled loops: the inputs stay in memory, the accumulators in registers. The first reads on the way.
    _Pragma("GCC unroll 1") for (int a = 0; a < h - m; a++) {
      read_pair(from, a, in);
      read_pair(from, a + m, in);
      multiply<0, m>(a, in.sum_r[a] + in.sum_r[a + m], in.sum_i[a] + in.sum_i[a + m], in.dif_r[a] + in.dif_r[a + m],
                     in.dif_i[a] + in.dif_i[a + m], out);
    }
    if constexpr (m > h - m) {
      read_pair(from, m - 1, in);
      multiply<0, m>(m - 1, in.sum_r[m - 1], in.sum_i[m - 1], in.dif_r[m - 1], in.dif_i[m - 1], out);
    }
    const Pairs<m> common = out;
    _Pragma("GCC unroll 1") for (int a = 0; a < m; a++) {
      multiply<1, m>(a, in.sum_r[a], in.sum_i[a], in.dif_r[a], in.dif_i[a], out);
      all_r += in.sum_r[a];
      all_i += in.sum_i[a];
    }
    put<0, m>(out, to);
    out = common;
    _Pragma("GCC unroll 1") for (int a = 0; a < h - m; a++) {
      multiply<2, h - m>(a, in.sum_r[m + a], in.sum_i[m + a], in.dif_r[m + a], in.dif_i[m + a], out);
      all_r += in.sum_r[m + a];
      all_i += in.sum_i[m + a];
    }
    put<m, h - m>(out, to);
    to(0, all_r, all_i);
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
