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

  // Real and imaginary parts.
  template <int count>
  struct Line {
    Vec<T> r[count], i[count];
  };

  // out += the first `outputs` coefficients of a row times (r, i)
  template <int outputs>
  STURDY_ALWAYS_INLINE static void multiply(const T (&row)[m], Vec<T> r, Vec<T> i, Line<m>& out) {
    STURDY_UNROLL
    for (int b = 0; b < outputs; b++) {
      Vec<T> c = broadcast(row[b]);
#if defined(__AVX512F__)
      asm("" : "+v"(c.v));  // loaded once; as an operand of both products it would be loaded twice
#endif
      out.r[b] += r * c;
      out.i[b] += i * c;
    }
  }

  // One of the two matrices times its inputs, added to (r0, i0). Outputs go to put(begin, count, out) in two parts. One
  // at a time: the accumulators of both and what they are fed with would not stay in the registers.
  template <typename Put>
  STURDY_ALWAYS_INLINE static void transform(const T (&table)[3][m][m], const Line<h>& in, Vec<T> r0, Vec<T> i0,
                                             const Put& put) {
    Line<m> out;
    STURDY_UNROLL
    for (int b = 0; b < m; b++) {
      out.r[b] = r0;
      out.i[b] = i0;
    }
    STURDY_UNROLL
    for (int a = 0; a < h - m; a++) {
      multiply<m>(table[0][a], in.r[a] + in.r[a + m], in.i[a] + in.i[a + m], out);
    }
    if constexpr (m > h - m) {
      multiply<m>(table[0][m - 1], in.r[m - 1], in.i[m - 1], out);
    }
    const Line<m> common = out;
    STURDY_UNROLL
    for (int a = 0; a < m; a++) {
      multiply<m>(table[1][a], in.r[a], in.i[a], out);
    }
    put(std::integral_constant<int, 0>(), std::integral_constant<int, m>(), out);
    out = common;
    STURDY_UNROLL
    for (int a = m; a < h; a++) {
      multiply<h - m>(table[2][a - m], in.r[a], in.i[a], out);
    }
    put(std::integral_constant<int, m>(), std::integral_constant<int, h - m>(), out);
  }

  template <typename From, typename To>
  STURDY_ALWAYS_INLINE static void run_through(const From& from, const To& to) {
    Line<h> sum, dif, even;  // of mirrored samples; what becomes of the sums
    Vec<T> r0, i0;
    from(0, r0, i0);
    Vec<T> all_r = r0, all_i = i0;
    for_each_constant(std::make_integer_sequence<int, h>(), [&](auto index) STURDY_INLINE_LAMBDA {
      constexpr int a = decltype(index)::value, j = power(g, a);
      Vec<T> pr, pi, qr, qi;
      from(j, pr, pi);
      from(N - j, qr, qi);
      sum.r[a] = pr + qr;
      sum.i[a] = pi + qi;
      dif.r[a] = pr - qr;
      dif.i[a] = pi - qi;
      all_r += sum.r[a];
      all_i += sum.i[a];
    });
    transform(table.cos, sum, r0, i0, [&](auto begin, auto count, const Line<m>& out) STURDY_INLINE_LAMBDA {
      STURDY_UNROLL
      for (int b = 0; b < decltype(count)::value; b++) {
        even.r[decltype(begin)::value + b] = out.r[b];
        even.i[decltype(begin)::value + b] = out.i[b];
      }
    });
    const Vec<T> none = zero<T>();
    transform(table.sin, dif, none, none, [&](auto begin, auto count, const Line<m>& out) STURDY_INLINE_LAMBDA {
      for_each_constant(std::make_integer_sequence<int, decltype(count)::value>(),
                        [&](auto index) STURDY_INLINE_LAMBDA {
                          constexpr int b = decltype(index)::value, at = decltype(begin)::value + b, k = power(g, at);
                          to(k, even.r[at] + out.i[b], even.i[at] - out.r[b]);
                          to(N - k, even.r[at] - out.i[b], even.i[at] + out.r[b]);
                        });
    });
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
