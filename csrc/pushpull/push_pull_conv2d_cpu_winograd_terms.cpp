// The products into which Winograd's algorithm turns the taps of one axis.
#include <algorithm>

#include "pushpull/push_pull_conv2d_cpu_winograd_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kLongestPiece = 3;

// Calls use(pattern, first, first_sign, second, second_sign, weights) for each product of a piece of `length` taps;
// first and second count inputs of the piece's phase.
template <typename Use>
void for_each_product(int64_t length, const Use& use) {
  switch (length) {
    case 1:
      use(0, 0, 1, 0, 0, {1, 0, 0});
      use(3, 1, -1, 1, 0, {1, 0, 0});
      break;
    case 2:
      use(0, 0, 1, 1, -1, {1, 0, 0});
      use(1, 1, 1, 1, 0, {1, 1, 0});
      use(3, 1, 1, 2, -1, {0, 1, 0});
      break;
    default:
      use(0, 0, 1, 2, -1, {1, 0, 0});
      use(1, 1, 1, 2, 1, {0.5f, 0.5f, 0.5f});
      use(2, 2, 1, 1, -1, {0.5f, -0.5f, 0.5f});
      use(3, 1, 1, 3, -1, {0, 0, 1});
  }
}

// Calls use(first tap, number of taps) for each piece.
template <typename Use>
void for_each_piece(int64_t kernel, int64_t stride, const Use& use) {
  for (int64_t phase = 0; phase < std::min(kernel, stride); phase++) {
    const int64_t taps = (kernel - phase + stride - 1) / stride;
    for (int64_t i = 0; i < taps; i += kLongestPiece) {
      use(phase + i * stride, std::min(kLongestPiece, taps - i));
    }
  }
}

struct Weights {
  float of_tap[3];
};

}  // namespace

int64_t winograd_terms(int64_t kernel, int64_t stride) {
  int64_t count = 0;
  for_each_piece(kernel, stride, [&](int64_t, int64_t length) { count += length + 1; });
  return count;
}

void fill_winograd_axis(WinogradAxis& axis, int64_t kernel, int64_t stride) {
  axis.count = 0;
  for (int pattern = 0; pattern < 4; pattern++) {
    axis.begin[pattern] = axis.count;
    for_each_piece(kernel, stride, [&](int64_t tap, int64_t length) {
      for_each_product(length, [&](int of, int64_t first, float first_sign, int64_t second, float second_sign,
                                   const Weights& weights) {
        if (of != pattern) {
          return;
        }
        WinogradTerm& term = axis.terms[axis.count++];
        term.pattern = of;
        term.first = static_cast<int32_t>(tap + first * stride);
        term.second = static_cast<int32_t>(tap + second * stride);
        term.first_sign = first_sign;
        term.second_sign = second_sign;
        term.tap = static_cast<int32_t>(tap);
        std::copy(weights.of_tap, weights.of_tap + 3, term.weight);
      });
    });
  }
  axis.begin[4] = axis.count;
}

}  // namespace cpu
}  // namespace sturdy
