// cos and sin of fractions of a turn as compile-time constants. Tables that a constructor fills at load time would run
// code of the widest instruction set on machines that do not have it.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace sturdy {
namespace cpu {

constexpr double kTurn = 6.283185307179586476925286766559;

// Taylor series on [0, pi / 4]: the first term left out is below 1e-19.
STURDY_ALWAYS_INLINE constexpr double cos_series(double x) {
  double term = 1;
  double sum = 1;
  for (int n = 1; n <= 10; n++) {
    term *= -x * x / ((2 * n - 1) * (2 * n));
    sum += term;
  }
  return sum;
}

STURDY_ALWAYS_INLINE constexpr double sin_series(double x) {
  double term = x;
  double sum = x;
  for (int n = 1; n <= 10; n++) {
    term *= -x * x / ((2 * n) * (2 * n + 1));
    sum += term;
  }
  return sum;
}

struct Root {
  double cos, sin;
};

// cos and sin of `part / whole` turns, exact to the last bit or two: the angle is reduced while it is a fraction.
STURDY_ALWAYS_INLINE constexpr Root root(int64_t part, int64_t whole) {
  int64_t eighths = part % whole * 8;  // in units of 1 / (8 whole) turns
  eighths = eighths < 0 ? eighths + 8 * whole : eighths;
  const int64_t octant = eighths / whole;
  const int64_t rest = eighths - octant * whole;
  const bool mirrored = octant % 2 == 1;
  const double angle = kTurn / 8 * (static_cast<double>(mirrored ? whole - rest : rest) / static_cast<double>(whole));
  const double c = cos_series(angle);
  const double s = sin_series(angle);
  switch (octant) {
    case 0:
      return {c, s};
    case 1:
      return {s, c};
    case 2:
      return {-s, c};
    case 3:
      return {-c, s};
    case 4:
      return {-c, -s};
    case 5:
      return {-s, -c};
    case 6:
      return {s, -c};
    default:
      return {c, -s};
  }
}

}  // namespace cpu
}  // namespace sturdy
