// Small transforms in the registers of a thread, for the CUDA kernels of the Fourier family.
#pragma once

#include "common/cuda.cuh"
#include "fourier/fft_cuda_plan.cuh"

namespace sturdy::cuda::fft {

// ---- complex numbers ----

template <typename T>
STURDY_DEVICE Complex<T> operator+(const Complex<T>& a, const Complex<T>& b) {
  return {a.re + b.re, a.im + b.im};
}

template <typename T>
STURDY_DEVICE Complex<T> operator-(const Complex<T>& a, const Complex<T>& b) {
  return {a.re - b.re, a.im - b.im};
}

template <typename T>
STURDY_DEVICE Complex<T> operator*(const Complex<T>& a, const Complex<T>& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <typename T>
STURDY_DEVICE Complex<T> operator*(const Complex<T>& a, T b) {
  return {a.re * b, a.im * b};
}

template <typename T>
STURDY_DEVICE Complex<T> swapped(const Complex<T>& a) {
  return {a.im, a.re};
}

template <typename T>
STURDY_DEVICE Complex<T> load_complex(const Complex<T>* at) {
  const Packed<T, 2> value = load_packed<2, Cache::read_only>(&at->re);
  return {value[0], value[1]};
}

// Times exp(-i angle), for the root (cos, sin) of that angle.
template <typename T>
STURDY_DEVICE Complex<T> rotate(const Complex<T>& a, const Complex<T>& root) {
  return {a.re * root.re + a.im * root.im, a.im * root.re - a.re * root.im};
}

// ---- butterflies ----

// cos and sin of k / N turns, for the compiler to work out: the angle is reduced to an eighth of a turn as a fraction.
template <int N>
struct ConstantRoots {
  double cos[N] = {};
  double sin[N] = {};

  constexpr ConstantRoots() {
    for (int k = 0; k < N; ++k) {
      const int octant = 8 * k / N;
      const int rest = 8 * k - octant * N;  // in eighths of 1 / N turns
      const double x = 0.78539816339744830962 * (octant % 2 == 1 ? N - rest : rest) / N;
      double c = 1;
      double s = x;
      double cosine_term = 1;
      double sine_term = x;
      for (int i = 1; i <= 10; ++i) {
        cosine_term *= -x * x / ((2 * i - 1) * (2 * i));
        sine_term *= -x * x / ((2 * i) * (2 * i + 1));
        c += cosine_term;
        s += sine_term;
      }
      const bool exchanged = (octant + 1) / 2 % 2 == 1;
      const double larger = exchanged ? s : c;
      const double other = exchanged ? c : s;
      cos[k] = octant >= 2 && octant < 6 ? -larger : larger;
      sin[k] = octant >= 4 ? -other : other;
    }
  }
};

// Times exp(-2 pi i k / N), where k is known to the compiler.
template <int N, typename T>
STURDY_DEVICE Complex<T> rotate_by(const Complex<T>& a, int k, const ConstantRoots<N>& roots) {
  if (k == 0) {
    return a;
  }
  if (4 * k == N) {
    return {a.im, -a.re};
  }
  if (2 * k == N) {
    return {-a.re, -a.im};
  }
  if (8 * k == N) {
    const T root = static_cast<T>(0.70710678118654752440);
    return {root * (a.re + a.im), root * (a.im - a.re)};
  }
  if (8 * k == 3 * N) {
    const T root = static_cast<T>(0.70710678118654752440);
    return {root * (a.im - a.re), -root * (a.re + a.im)};
  }
  return rotate(a, Complex<T>{static_cast<T>(roots.cos[k]), static_cast<T>(roots.sin[k])});
}

// An odd prime: sums and differences of the elements j and N - j.
template <int N>
struct Butterfly {
  template <typename T>
  STURDY_DEVICE static void run(Complex<T> (&v)[N]) {
    constexpr int h = N / 2;
    constexpr ConstantRoots<N> roots;
    Complex<T> sum[h];
    Complex<T> difference[h];
    Complex<T> total = v[0];
#pragma unroll
    for (int j = 0; j < h; ++j) {
      sum[j] = v[j + 1] + v[N - 1 - j];
      difference[j] = v[j + 1] - v[N - 1 - j];
      total = total + sum[j];
    }
#pragma unroll
    for (int k = 1; k <= h; ++k) {
      Complex<T> even = v[0];
      Complex<T> odd = {T(0), T(0)};
#pragma unroll
      for (int j = 1; j <= h; ++j) {
        const T c = static_cast<T>(roots.cos[j * k % N]);
        const T s = static_cast<T>(roots.sin[j * k % N]);
        even.re += sum[j - 1].re * c;
        even.im += sum[j - 1].im * c;
        odd.re += difference[j - 1].re * s;
        odd.im += difference[j - 1].im * s;
      }
      v[k] = {even.re + odd.im, even.im - odd.re};
      v[N - k] = {even.re - odd.im, even.im + odd.re};
    }
    v[0] = total;
  }
};

template <>
struct Butterfly<1> {
  template <typename T>
  STURDY_DEVICE static void run(Complex<T> (&)[1]) {}
};

template <>
struct Butterfly<2> {
  template <typename T>
  STURDY_DEVICE static void run(Complex<T> (&v)[2]) {
    const Complex<T> second = v[1];
    v[1] = v[0] - second;
    v[0] = v[0] + second;
  }
};

template <>
struct Butterfly<4> {
  template <typename T>
  STURDY_DEVICE static void run(Complex<T> (&v)[4]) {
    const Complex<T> even = v[0] + v[2];
    const Complex<T> even_difference = v[0] - v[2];
    const Complex<T> odd = v[1] + v[3];
    const Complex<T> odd_difference = v[1] - v[3];
    v[0] = even + odd;
    v[1] = {even_difference.re + odd_difference.im, even_difference.im - odd_difference.re};
    v[2] = even - odd;
    v[3] = {even_difference.re - odd_difference.im, even_difference.im + odd_difference.re};
  }
};

// N = A B: transforms over A of every B-th element, rotations, transforms over B.
template <int A, int B>
struct Composed {
  template <typename T>
  STURDY_DEVICE static void run(Complex<T> (&v)[A * B]) {
    constexpr int n = A * B;
    constexpr ConstantRoots<n> roots;
#pragma unroll
    for (int b = 0; b < B; ++b) {
      Complex<T> u[A];
#pragma unroll
      for (int a = 0; a < A; ++a) {
        u[a] = v[B * a + b];
      }
      Butterfly<A>::run(u);
#pragma unroll
      for (int a = 0; a < A; ++a) {
        v[B * a + b] = rotate_by<n>(u[a], a * b, roots);
      }
    }
    Complex<T> out[n];
#pragma unroll
    for (int a = 0; a < A; ++a) {
      Complex<T> u[B];
#pragma unroll
      for (int b = 0; b < B; ++b) {
        u[b] = v[B * a + b];
      }
      Butterfly<B>::run(u);
#pragma unroll
      for (int b = 0; b < B; ++b) {
        out[a + A * b] = u[b];
      }
    }
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] = out[i];
    }
  }
};

template <>
struct Butterfly<8> : Composed<2, 4> {};
template <>
struct Butterfly<12> : Composed<3, 4> {};
template <>
struct Butterfly<14> : Composed<2, 7> {};
template <>
struct Butterfly<16> : Composed<4, 4> {};

// A large prime R. Elements come from load(m); `roots` has cos and sin of k / (R * step) turns at k.
template <int R, typename T, typename Load>
STURDY_DEVICE void large_prime(const Load& load, const Complex<T>* roots, int step, Complex<T> (&v)[R]) {
  constexpr int h = R / 2;
  Complex<T> even[h];
  Complex<T> odd[h];
  Complex<T> total = load(0);
#pragma unroll
  for (int k = 0; k < h; ++k) {
    even[k] = total;
    odd[k] = {T(0), T(0)};
  }
#pragma unroll 1  // unrolled, the code of all primes would be many times as long
  for (int j = 1; j <= h; ++j) {
    const Complex<T> a = load(j);
    const Complex<T> b = load(R - j);
    const Complex<T> sum = a + b;
    const Complex<T> difference = a - b;
    total = total + sum;
    int at = 0;
#pragma unroll
    for (int k = 0; k < h; ++k) {
      at += j * step;
      at = at >= R * step ? at - R * step : at;
      const Complex<T> root = load_complex(roots + at);
      even[k].re += sum.re * root.re;
      even[k].im += sum.im * root.re;
      odd[k].re += difference.re * root.im;
      odd[k].im += difference.im * root.im;
    }
  }
  v[0] = total;
#pragma unroll
  for (int k = 0; k < h; ++k) {
    v[k + 1] = {even[k].re + odd[k].im, even[k].im - odd[k].re};
    v[R - 1 - k] = {even[k].re - odd[k].im, even[k].im + odd[k].re};
  }
}

}  // namespace sturdy::cuda::fft
