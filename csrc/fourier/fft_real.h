// Discrete Fourier transforms of a few real samples held in vectors: every lane carries a transform of its own.
//
// For N samples, N even, there are N / 2 - 1 complex frequencies and two real ones, 0 and N / 2. They are handed over
// one by one, to and by function objects whose index is a constant once everything is inlined:
//
//   to.real(k, v), to.complex(k, r, i)        take frequency k
//   from.real(k), from.complex(k, r, i)       give frequency k
//
// With w = exp(-2 pi i / N) the even frequencies are those of N / 2 sums x[j] + x[j + N / 2], and the odd ones, or
// their conjugates, are 4 m + 1 = 1, 5, 9, ...: of differences d[j] = x[j] - x[j + N / 2] they are the transform of N /
// 4 complex samples (d[j] - i d[j + N / 4]) w^j.
//
// Back, the two real frequencies must come halved, and what is given then is half of the sum without a factor 1 / N.
#pragma once

#include "fourier/fft_butterflies.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Odd N: one real frequency, 0, and (N - 1) / 2 complex ones, in arrays; the imaginary part of frequency k is i[k].
template <typename T, int N>
struct OddRealButterfly {
  static constexpr int h = (N - 1) / 2;

  STURDY_ALWAYS_INLINE static void forward(const Vec<T> (&x)[N], Vec<T> (&r)[h + 1], Vec<T> (&i)[h + 1]) {
    r[0] = x[0];
    STURDY_UNROLL
    for (int j = 1; j <= h; j++) {
      r[0] += x[j] + x[N - j];
    }
    for_each_constant(std::make_integer_sequence<int, h>(), [&](auto index) STURDY_INLINE_LAMBDA {
      constexpr int k = decltype(index)::value + 1;
      r[k] = x[0];
      i[k] = zero<T>();
      for_each_constant(std::make_integer_sequence<int, h>(), [&](auto other) STURDY_INLINE_LAMBDA {
        constexpr int j = decltype(other)::value + 1;
        constexpr cpu::Root w = cpu::root(j * k, N);
        r[k] += (x[j] + x[N - j]) * broadcast(static_cast<T>(w.cos));
        i[k] += (x[N - j] - x[j]) * broadcast(static_cast<T>(w.sin));
      });
    });
  }

  // r[0] halved, half of the samples.
  STURDY_ALWAYS_INLINE static void inverse(const Vec<T> (&r)[h + 1], const Vec<T> (&i)[h + 1], Vec<T> (&x)[N]) {
    x[0] = r[0];
    STURDY_UNROLL
    for (int k = 1; k <= h; k++) {
      x[0] += r[k];
    }
    for_each_constant(std::make_integer_sequence<int, h>(), [&](auto index) STURDY_INLINE_LAMBDA {
      constexpr int j = decltype(index)::value + 1;
      Vec<T> even = r[0], odd = zero<T>();
      for_each_constant(std::make_integer_sequence<int, h>(), [&](auto other) STURDY_INLINE_LAMBDA {
        constexpr int k = decltype(other)::value + 1;
        constexpr cpu::Root w = cpu::root(j * k, N);
        even += r[k] * broadcast(static_cast<T>(w.cos));
        odd += i[k] * broadcast(static_cast<T>(w.sin));
      });
      x[j] = even - odd;
      x[N - j] = even + odd;
    });
  }
};

// Frequencies of half as many samples, seen as those of all: k stands for 2 k.
template <typename Target>
struct EvenFrequencies {
  const Target& target;

  template <typename T>
  STURDY_ALWAYS_INLINE void real(int k, Vec<T> v) const {
    target.real(2 * k, v);
  }
  template <typename T>
  STURDY_ALWAYS_INLINE void complex(int k, Vec<T> r, Vec<T> i) const {
    target.complex(2 * k, r, i);
  }
};

template <typename Source>
struct EvenFrequenciesOf {
  const Source& source;

  STURDY_ALWAYS_INLINE auto real(int k) const { return source.real(2 * k); }
  template <typename T>
  STURDY_ALWAYS_INLINE void complex(int k, Vec<T>& r, Vec<T>& i) const {
    source.complex(2 * k, r, i);
  }
};

// The odd frequencies of N samples, N a multiple of 4.
template <typename T, int N>
struct OddFrequencies {
  static constexpr int M = N / 4;

  // (r, i) hold d[j] and -d[j + M].
  template <typename To>
  STURDY_ALWAYS_INLINE static void forward(Vec<T> (&r)[M], Vec<T> (&i)[M], const To& to) {
    for_each_constant(std::make_integer_sequence<int, M>(), [&](auto j) STURDY_INLINE_LAMBDA {
      rotate<decltype(j)::value, N>(r[decltype(j)::value], i[decltype(j)::value]);
    });
    Butterfly<T, M>::run(r, i);
    STURDY_UNROLL
    for (int m = 0; m < M; m++) {
      if (4 * m + 1 < N / 2) {
        to.complex(4 * m + 1, r[m], i[m]);
      } else {
        to.complex(N - 4 * m - 1, r[m], zero<T>() - i[m]);
      }
    }
  }

  // What is left in (r, i) are half of d[j] and of -d[j + M].
  template <typename From>
  STURDY_ALWAYS_INLINE static void inverse(const From& from, Vec<T> (&r)[M], Vec<T> (&i)[M]) {
    STURDY_UNROLL
    for (int m = 0; m < M; m++) {
      if (4 * m + 1 < N / 2) {
        from.complex(4 * m + 1, r[m], i[m]);
      } else {
        from.complex(N - 4 * m - 1, r[m], i[m]);
        i[m] = zero<T>() - i[m];
      }
    }
    Butterfly<T, M>::run(i, r);
    for_each_constant(std::make_integer_sequence<int, M>(), [&](auto j) STURDY_INLINE_LAMBDA {
      rotate<(N - decltype(j)::value) % N, N>(r[decltype(j)::value], i[decltype(j)::value]);
    });
  }
};

template <typename T, int N>
struct RealButterfly {
  static_assert(N % 2 == 0, "an odd number of samples has one real frequency alone");

  // Changes x.
  template <typename To>
  STURDY_ALWAYS_INLINE static void forward(Vec<T> (&x)[N], const To& to) {
    if constexpr (N % 4 == 0) {
      constexpr int M = N / 4;
      Vec<T> sum[N / 2], r[M], i[M];
      STURDY_UNROLL
      for (int j = 0; j < M; j++) {
        r[j] = x[j] - x[j + N / 2];
        i[j] = x[j + N / 2 + M] - x[j + M];
      }
      STURDY_UNROLL
      for (int j = 0; j < N / 2; j++) {
        sum[j] = x[j] + x[j + N / 2];
      }
      OddFrequencies<T, N>::forward(r, i, to);
      RealButterfly<T, N / 2>::forward(sum, EvenFrequencies<To>{to});
    } else {  // two transforms of h samples, the second with frequencies counted from h
      constexpr int h = N / 2;
      Vec<T> x0[h], x1[h], r[h / 2 + 1], i[h / 2 + 1];
      STURDY_UNROLL
      for (int j = 0; j < h; j++) {
        x0[j] = x[j] + x[j + h];
        x1[j] = j % 2 == 0 ? x[j] - x[j + h] : x[j + h] - x[j];
      }
      OddRealButterfly<T, h>::forward(x0, r, i);
      to.real(0, r[0]);
      STURDY_UNROLL
      for (int k = 1; k <= h / 2; k++) {
        to.complex(2 * k, r[k], i[k]);
      }
      OddRealButterfly<T, h>::forward(x1, r, i);
      to.real(h, r[0]);
      STURDY_UNROLL
      for (int k = 1; k <= h / 2; k++) {
        to.complex(h - 2 * k, r[k], zero<T>() - i[k]);
      }
    }
  }

  template <typename From>
  STURDY_ALWAYS_INLINE static void inverse(const From& from, Vec<T> (&x)[N]) {
    if constexpr (N % 4 == 0) {
      constexpr int M = N / 4;
      Vec<T> sum[N / 2], r[M], i[M];
      OddFrequencies<T, N>::inverse(from, r, i);
      RealButterfly<T, N / 2>::inverse(EvenFrequenciesOf<From>{from}, sum);
      STURDY_UNROLL
      for (int j = 0; j < M; j++) {
        x[j] = sum[j] + r[j];
        x[j + M] = sum[j + M] - i[j];
        x[j + 2 * M] = sum[j] - r[j];
        x[j + 3 * M] = sum[j + M] + i[j];
      }
    } else {
      constexpr int h = N / 2;
      Vec<T> x0[h], x1[h], r[h / 2 + 1], i[h / 2 + 1];
      r[0] = from.real(0);
      STURDY_UNROLL
      for (int k = 1; k <= h / 2; k++) {
        from.complex(2 * k, r[k], i[k]);
      }
      OddRealButterfly<T, h>::inverse(r, i, x0);
      r[0] = from.real(h);
      STURDY_UNROLL
      for (int k = 1; k <= h / 2; k++) {
        from.complex(h - 2 * k, r[k], i[k]);
        i[k] = zero<T>() - i[k];
      }
      OddRealButterfly<T, h>::inverse(r, i, x1);
      STURDY_UNROLL
      for (int j = 0; j < h; j++) {
        x[j] = j % 2 == 0 ? x0[j] + x1[j] : x0[j] - x1[j];
        x[j + h] = j % 2 == 0 ? x0[j] - x1[j] : x0[j] + x1[j];
      }
    }
  }
};

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
