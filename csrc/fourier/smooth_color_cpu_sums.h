// Sums of sines sum over k of c_k sin((first + k) pi x) of many x at once.
//
// Terms are taken kTerms at a time: with m the first frequency of a block and t = pi x,
//   sum over j of c_j sin((m + j) t) = sin(m t) sum of c_j cos(j t) + cos(m t) sum of c_j sin(j t),
// and both sums come from one recurrence. It is Reinsch's, in differences and with 4 sin^2(t / 2) in place of
// 2 cos(t): the textbook form of Clenshaw loses half of its digits where t is close to a multiple of pi, which is where
// black and white lie. x is reduced to the nearest whole number, whose parity changes the sign of every other term.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "fourier/wave_add_cpu_rows.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

constexpr int64_t kTerms = 32;  // a power of two, so that its multiples of x are exact
constexpr int kColorVectors = kVectorRegisters == 32 ? 6 : 3;

// Adding and taking it away rounds to an integer.
template <typename T>
constexpr T kToInteger = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);

template <typename T>
STURDY_ALWAYS_INLINE Vec<T> nearest(Vec<T> v) {
  return {(v.v + kToInteger<T>)-kToInteger<T>};
}

template <typename T>
struct Sine {
  Vec<T> sine, cosine;
};

// Of pi * half_turns, |half_turns| <= 1.
template <typename T>
STURDY_ALWAYS_INLINE Sine<T> sine_of(Vec<T> half_turns) {
  const Vec<T> q = nearest(Vec<T>{half_turns.v * T(2)});  // quarters, from -2 to 2
  const Vec<T> a{(half_turns.v - q.v * T(0.5)) * T(3.14159265358979323846)};
  const Vec<T> z = a * a;
  const Vec<T> s{a.v + a.v * series(SineSeries<T>::sine, z).v};
  const Vec<T> c{T(1) + series(SineSeries<T>::cosine, z).v};
  const Vec<T> for_sine{q.v * q.v == T(1) ? c.v : s.v};
  const Vec<T> for_cosine{q.v * q.v == T(1) ? s.v : c.v};
  const Vec<T> opposite_sine{q.v * q.v == T(4) ? -for_sine.v : for_sine.v};
  const Vec<T> opposite_cosine{q.v * q.v == T(4) ? -for_cosine.v : for_cosine.v};
  return {Vec<T>{q.v == T(-1) ? -opposite_sine.v : opposite_sine.v},
          Vec<T>{q.v == T(1) ? -opposite_cosine.v : opposite_cosine.v}};
}

// The high half of the digits.
STURDY_ALWAYS_INLINE Vec<float> leading_digits(Vec<float> v) {
  return {reinterpret_cast<Vec<float>::Native>(reinterpret_cast<LaneIndex<float>::Native>(v.v) & ~0xfff)};
}
STURDY_ALWAYS_INLINE Vec<double> leading_digits(Vec<double> v) {
  return {
      reinterpret_cast<Vec<double>::Native>(reinterpret_cast<LaneIndex<double>::Native>(v.v) & ~int64_t{0x3ffffff})};
}

// What of |x| <= 1/2 every frequency needs.
template <typename T>
struct Angle {
  Vec<T> rest;                    // x less the nearest whole number
  Vec<T> odd;                     // -1 where that number is odd, else 1
  Vec<T> half_sine, half_cosine;  // of pi * rest / 2

  STURDY_ALWAYS_INLINE explicit Angle(Vec<T> x) {
    const T range = kToInteger<T> / 3;  // beyond it, and for NaN, the sum is that at 0
    const Vec<T> whole{x.v * x.v < range * range ? nearest(x).v : typename Vec<T>::Native{}};
    rest.v = x.v * x.v < range * range ? x.v - whole.v : typename Vec<T>::Native{};
    const Vec<T> parity{whole.v - T(2) * nearest(Vec<T>{whole.v * T(0.5)}).v};  // -1, 0 or 1
    odd.v = T(1) - T(2) * (parity.v * parity.v);
    const Vec<T> a{rest.v * T(1.57079632679489661923)};
    const Vec<T> z = a * a;
    half_sine.v = a.v + a.v * series(SineSeries<T>::sine, z).v;
    half_cosine.v = T(1) + series(SineSeries<T>::cosine, z).v;
  }

  STURDY_ALWAYS_INLINE Vec<T> recurrence() const { return {T(-4) * (half_sine.v * half_sine.v)}; }

  // Of frequency * pi * rest, not rounded before it is reduced: a product of few digits, and what little is left.
  STURDY_ALWAYS_INLINE Sine<T> at(int64_t frequency) const {
    const T m = static_cast<T>(frequency);
    const Vec<T> high = leading_digits(rest);
    const Vec<T> product{high.v * m};
    const Vec<T> reduced{product.v - T(2) * nearest(Vec<T>{product.v * T(0.5)}).v};
    const Vec<T> sum{reduced.v + (rest.v - high.v) * m};
    return sine_of(Vec<T>{sum.v - T(2) * nearest(Vec<T>{sum.v * T(0.5)}).v});
  }
};

// sum += the terms at x; with `slope` the terms' derivatives by x, whose coefficients come multiplied by pi times the
// frequency.
template <bool slope, int vectors, typename T>
STURDY_ALWAYS_INLINE void add_terms(Vec<T> (&sum)[vectors], const Vec<T> (&x)[vectors], const T* coefficients,
                                    int64_t count, int64_t first) {
  if (count == 0) {
    return;
  }
  Vec<T> sine[vectors];  // of the block's first frequency
  Vec<T> cosine[vectors];
  Vec<T> step_sine[vectors];  // of kTerms
  Vec<T> step_cosine[vectors];
  Vec<T> recurrence[vectors];
  Vec<T> odd[vectors];
  Vec<T> one_sine[vectors];
  STURDY_UNROLL
  for (int i = 0; i < vectors; i++) {
    const Angle<T> angle(x[i]);
    recurrence[i] = angle.recurrence();
    odd[i] = angle.odd;
    one_sine[i].v = T(2) * (angle.half_sine.v * angle.half_cosine.v);
    const Sine<T> start = angle.at(first);
    const Vec<T> sign{first % 2 != 0 ? angle.odd.v : broadcast(T(1)).v};
    sine[i] = start.sine * sign;
    cosine[i] = start.cosine * sign;
    const Sine<T> step = count > kTerms ? angle.at(kTerms) : start;
    step_sine[i] = step.sine;
    step_cosine[i] = step.cosine;
  }
  for (int64_t begin = 0; begin < count; begin += kTerms) {
    const T* c = coefficients + begin;
    Vec<T> difference[vectors];
    Vec<T> b[vectors];
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      difference[i] = zero<T>();
      b[i] = zero<T>();
    }
    const auto even_term = [&](int64_t j) {
      const Vec<T> value = broadcast(c[j]);
      STURDY_UNROLL
      for (int i = 0; i < vectors; i++) {
        difference[i] += value;
        accumulate(difference[i], recurrence[i], b[i]);
        b[i] += difference[i];
      }
    };
    const auto odd_term = [&](int64_t j) {
      const Vec<T> value = broadcast(c[j]);
      STURDY_UNROLL
      for (int i = 0; i < vectors; i++) {
        accumulate(difference[i], odd[i], value);
        accumulate(difference[i], recurrence[i], b[i]);
        b[i] += difference[i];
      }
    };
    int64_t j = (count - begin < kTerms ? count - begin : kTerms) - 1;
    if (j > 0 && j % 2 == 0) {
      even_term(j);
      j--;
    }
    for (; j > 1; j -= 2) {
      odd_term(j);
      even_term(j - 1);
    }
    if (j == 1) {
      odd_term(1);
    }
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      const Vec<T> with_cosine{c[0] + difference[i].v + T(0.5) * (recurrence[i].v * b[i].v)};
      const Vec<T> with_sine = one_sine[i] * b[i];
      if (slope) {
        accumulate(sum[i], cosine[i], with_cosine);
        sum[i].v -= sine[i].v * with_sine.v;
      } else {
        accumulate(sum[i], sine[i], with_cosine);
        accumulate(sum[i], cosine[i], with_sine);
      }
    }
    if (begin + kTerms < count) {
      STURDY_UNROLL
      for (int i = 0; i < vectors; i++) {
        const Vec<T> next{sine[i].v * step_cosine[i].v + cosine[i].v * step_sine[i].v};
        cosine[i].v = cosine[i].v * step_cosine[i].v - sine[i].v * step_sine[i].v;
        sine[i] = next;
      }
    }
  }
}

// sums[k] += g . sin((first + k) pi x), lane by lane.
template <int vectors, typename T>
STURDY_ALWAYS_INLINE void add_products_with_sines(Vec<T>* sums, const Vec<T> (&g)[vectors], const Vec<T> (&x)[vectors],
                                                  int64_t count, int64_t first) {
  for (int64_t begin = 0; begin < count; begin += kTerms) {
    Vec<T> value[vectors];  // g times the sine
    Vec<T> difference[vectors];
    Vec<T> recurrence[vectors];
    Vec<T> odd[vectors];
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      const Angle<T> angle(x[i]);
      const Sine<T> start = angle.at(first + begin);
      recurrence[i] = angle.recurrence();
      odd[i] = angle.odd;
      value[i] = g[i] * start.sine;
      const Vec<T> rise{start.cosine.v * angle.half_cosine.v - start.sine.v * angle.half_sine.v};
      difference[i].v = T(2) * g[i].v * (angle.half_sine.v * rise.v);
    }
    const int64_t end = begin + kTerms < count ? begin + kTerms : count;
    for (int64_t k = begin; k < end; k++) {
      Vec<T> sum = sums[k];
      const bool plain = (first + k) % 2 == 0;
      STURDY_UNROLL
      for (int i = 0; i < vectors; i++) {
        if (plain) {
          sum += value[i];
        } else {
          accumulate(sum, odd[i], value[i]);
        }
        value[i] += difference[i];
        accumulate(difference[i], recurrence[i], value[i]);
      }
      sums[k] = sum;
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
