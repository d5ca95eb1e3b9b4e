// The elementwise part of the fast form of backward: from g and p to gp, one filter at a time, lanes along columns (the
// formulas are in push_pull_conv2d_cpu_backward.h). Planes of a tensor are contiguous, so nothing is transposed.
//
// Pooling sums columns first and rows second: a strip of one vector of columns is walked from top to bottom, and the
// row sums of the window slide through registers.
#pragma once

#include <type_traits>

#include "pushpull/push_pull_conv2d_cpu_winograd_transform.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Rows [first, last) of one plane of a tensor, one after the other without gaps: the tensor's own memory where it is
// like that, else a copy in `buffer`.
template <typename S>
static const float* plane_rows(const WinogradPlan& plan, const View4& view, int64_t n, int64_t channel, int64_t first,
                               int64_t last, float* buffer) {
  const int64_t width = plan.geometry.out_w;
  const S* from =
      static_cast<const S*>(view.data) + n * view.stride[0] + channel * view.stride[1] + first * view.stride[2];
  const bool whole = view.stride[2] == width * view.stride[3];
  if constexpr (std::is_same_v<S, float>) {
    if (whole && view.stride[3] == 1) {
      return from;
    }
  }
  if (whole) {
    gather_row(from, view.stride[3], buffer, (last - first) * width);
  } else {
    for (int64_t row = 0; row < last - first; row++) {
      gather_row(from + row * view.stride[2], view.stride[3], buffer + row * width, width);
    }
  }
  return buffer;
}

// One band of rows of one image and what is alike for all filters of a group.
struct GradientBand {
  int64_t first, last;            // rows of gp
  int64_t pull_first, pull_last;  // rows of gu that pooling gathers into those
  int64_t push_first, push_last;  // rows of p that these need
  const float* mean_box;          // [row from pull_first][column] without gaps, and a vector to spare

  // With pooling: p and gu / cells, [row][column] between zeros. Rows count from first - 2 * half_h and first - half_h.
  float* push;
  float* pull;
  float* window;  // sums of whole windows, where they are not small
  int64_t pitch;  // of the three
  int64_t left;   // zeros before the first column
};

// What one filter brings and where its results go.
struct FilterGradient {
  float range, inhibition;
  const float* grad_out;             // [row from pull_first][column] without gaps
  const float* push;                 // [row from push_first][column] without gaps
  int64_t grad_out_step, push_step;  // to the rows of the next filter, which are prefetched
  float* out;                        // gp, [row from first][column] without gaps; null: not wanted
  float* constant;                   // m * gq of the same rows is added here; null: not wanted
  float* sums;                       // {bias, inhibition, range}[lane]: those of the band are added
};

STURDY_ALWAYS_INLINE Vec<float> load_columns(const float* from, int64_t count) {
  return count == kLanes<float> ? load(from) : load_partial(from, count);
}

STURDY_ALWAYS_INLINE void store_columns(float* to, Vec<float> v, int64_t count) {
  if (count == kLanes<float>) {
    store(to, v);
  } else {
    store_partial(to, v, count);
  }
}

// The sums over pixels of one filter.
struct PixelSums {
  Vec<float> bias = zero<float>();
  Vec<float> inhibition = zero<float>();
  Vec<float> range = zero<float>();

  // One vector of pixels; returns gu.
  STURDY_ALWAYS_INLINE Vec<float> add(Vec<float> g, Vec<float> u, Vec<float> mean_box, Vec<float> minus_inhibition) {
    const Vec<float> grad_u = relu_backward(minus_inhibition * g, u);
    bias += g;
    accumulate(inhibition, g, relu(u));
    accumulate(range, grad_u, mean_box);
    return grad_u;
  }

  STURDY_ALWAYS_INLINE void add_to(float* sums) const {
    constexpr int lanes = kLanes<float>;
    store(sums, load(sums) + bias);
    store(sums + lanes, load(sums + lanes) - inhibition);
    store(sums + 2 * lanes, load(sums + 2 * lanes) + range);
  }
};

// ---- without pooling: a band is one long row ----

template <bool want_push, bool want_constant>
static void unpooled_gradient(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter) {
  constexpr int lanes = kLanes<float>;
  const int64_t count = (band.last - band.first) * plan.geometry.out_w;
  const Vec<float> range = broadcast(filter.range);
  const Vec<float> minus_inhibition = broadcast(-filter.inhibition);
  PixelSums sums;
  const auto step = [&](int64_t i, int64_t columns) __attribute__((always_inline)) {
    const Vec<float> grad = load_columns(filter.grad_out + i, columns);
    const Vec<float> push = load_columns(filter.push + i, columns);
    const Vec<float> mean_box = load_columns(band.mean_box + i, columns);
    const Vec<float> grad_q = sums.add(grad, range * mean_box - push, mean_box, minus_inhibition);
    if constexpr (want_push) {
      store_columns(filter.out + i, relu_backward(grad, push) - grad_q, columns);
    }
    if constexpr (want_constant) {
      float* constant = filter.constant + i;
      store_columns(constant, load_columns(constant, columns) + range * grad_q, columns);
    }
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    __builtin_prefetch(filter.grad_out + filter.grad_out_step + i, 0, 2);
    __builtin_prefetch(filter.push + filter.push_step + i, 0, 2);
    step(i, lanes);
  }
  if (i < count) {
    step(i, count - i);
  }
  sums.add_to(filter.sums);
}

// ---- with pooling ----

// Calls use(row, sum) for rows [first, last) with the sums of a strip's windows. `above` is the strip's first column in
// the row half windows above the row `first`.
template <int half>
struct SlidingWindows {
  template <typename Use>
  static STURDY_ALWAYS_INLINE void walk(const float* above, int64_t pitch, int64_t first, int64_t last,
                                        const Use& use) {
    constexpr int window = 2 * half + 1;
    const auto row_sum = [&](const float* at) __attribute__((always_inline)) {
      Vec<float> sum = load(at - half);
      STURDY_UNROLL
      for (int k = 1; k < window; k++) {
        sum += load(at - half + k);
      }
      return sum;
    };
    Vec<float> held[window];
    STURDY_UNROLL
    for (int k = 0; k + 1 < window; k++) {
      held[k] = row_sum(above + k * pitch);
    }
    const float* at = above + (window - 1) * pitch;
    for (int64_t row = first; row < last; row++) {
      held[window - 1] = row_sum(at);
      Vec<float> sum = held[0];
      STURDY_UNROLL
      for (int k = 1; k < window; k++) {
        sum += held[k];
      }
      use(row, sum);
      STURDY_UNROLL
      for (int k = 0; k + 1 < window; k++) {
        held[k] = held[k + 1];
      }
      at += pitch;
    }
  }
};

// The same where the sums have been taken before: `above` is then the strip's first column in the row `first`.
struct FinishedWindows {
  template <typename Use>
  static STURDY_ALWAYS_INLINE void walk(const float* above, int64_t pitch, int64_t first, int64_t last,
                                        const Use& use) {
    for (int64_t row = first; row < last; row++) {
      use(row, load(above + (row - first) * pitch));
    }
  }
};

// Sums of all windows of `rows` rows, from a padded plane whose first row lies half a window above; row sums go to the
// plane itself, over the columns that they were taken from.
static inline void sum_windows(const WinogradPlan& plan, const GradientBand& band, float* plane, int64_t rows) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = round_up_to_lanes<float>(plan.geometry.out_w);
  for (int64_t row = 0; row < rows + 2 * plan.half_h; row++) {
    float* at = plane + row * band.pitch + band.left;
    float* sums = band.window + row * band.pitch + band.left;
    for (int64_t column = 0; column < width; column += lanes) {
      Vec<float> sum = zero<float>();
      for (int64_t k = -plan.half_w; k <= plan.half_w; k++) {
        sum += load(at + column + k);
      }
      store(sums + column, sum);
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    float* sums = band.window + row * band.pitch + band.left;
    for (int64_t column = 0; column < width; column += lanes) {
      Vec<float> sum = zero<float>();
      for (int64_t k = 0; k <= 2 * plan.half_h; k++) {
        sum += load(sums + k * band.pitch + column);
      }
      store(sums + column, sum);
    }
  }
}

// gu / cells of a strip, and its pixels' part of the sums.
template <typename Windows>
static void pull_strip(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter,
                       const float* above, int64_t column, int64_t columns, PixelSums& own) {
  const Vec<float> range = broadcast(filter.range);
  const Vec<float> minus_inhibition = broadcast(-filter.inhibition);
  const Vec<float> column_weights = load(plan.column_weights + column);
  const float* row_weights = plan.row_weights;
  const int64_t width = plan.geometry.out_w;
  const float* g = filter.grad_out + column;
  const float* box = band.mean_box + column;
  float* to = band.pull + (band.pull_first - (band.first - plan.half_h)) * band.pitch + band.left + column;
  PixelSums sums = own;
  Windows::walk(above, band.pitch, band.pull_first, band.pull_last,
                [&](int64_t row, Vec<float> sum) __attribute__((always_inline)) {
                  if (row == band.first) {  // what came from the rows above belongs to another band
                    sums = own;
                  }
                  if (row == band.last) {
                    own = sums;
                  }
                  const Vec<float> weights = broadcast(row_weights[row]) * column_weights;
                  const Vec<float> mean_box = load_columns(box, columns);
                  const Vec<float> grad_u =
                      sums.add(load_columns(g, columns), range * mean_box - sum * weights, mean_box, minus_inhibition);
                  store(to, grad_u * weights);
                  __builtin_prefetch(g + filter.grad_out_step, 0, 2);
                  g += width;
                  box += width;
                  to += band.pitch;
                });
  if (band.pull_last == band.last) {
    own = sums;
  }
}

// gp of a strip.
template <typename Windows>
static void push_strip(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter,
                       const float* above, int64_t column, int64_t columns) {
  const Vec<float> range = broadcast(filter.range);
  const int64_t width = plan.geometry.out_w;
  const float* g = filter.grad_out + (band.first - band.pull_first) * width + column;
  const float* p = filter.push + (band.first - band.push_first) * width + column;
  float* to = filter.out + column;
  float* constant = filter.constant + column;
  Windows::walk(
      above, band.pitch, band.first, band.last, [&](int64_t, Vec<float> grad_q) __attribute__((always_inline)) {
        store_columns(to, relu_backward(load_columns(g, columns), load_columns(p, columns)) - grad_q, columns);
        __builtin_prefetch(p + filter.push_step, 0, 2);
        if (filter.constant != nullptr) {
          store_columns(constant, load_columns(constant, columns) + range * grad_q, columns);
          constant += width;
        }
        g += width;
        p += width;
        to += width;
      });
}

template <typename Windows>
static void pull_strips(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter,
                        const float* above) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  PixelSums sums;
  int64_t column = 0;
  for (; column + lanes <= width; column += lanes) {
    pull_strip<Windows>(plan, band, filter, above + column, column, lanes, sums);
  }
  if (column < width) {
    pull_strip<Windows>(plan, band, filter, above + column, column, width - column, sums);
  }
  sums.add_to(filter.sums);
}

template <typename Windows>
static void push_strips(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter,
                        const float* above) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  int64_t column = 0;
  for (; column + lanes <= width; column += lanes) {
    push_strip<Windows>(plan, band, filter, above + column, column, lanes);
  }
  if (column < width) {
    push_strip<Windows>(plan, band, filter, above + column, column, width - column);
  }
}

// Copies p between the zeros. The rows of g are asked for on the way: they are read in strips, which the hardware does
// not see coming.
static inline void pad_push(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  const float* g = filter.grad_out;
  for (int64_t row = band.push_first; row < band.push_last; row++) {
    const float* from = filter.push + (row - band.push_first) * width;
    float* to = band.push + (row - (band.first - 2 * plan.half_h)) * band.pitch + band.left;
    const bool prefetch = row < band.pull_last - band.pull_first + band.push_first;
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      if (prefetch) {
        __builtin_prefetch(g + i);
      }
      store(to + i, load(from + i));
    }
    if (i < width) {
      store_partial(to + i, load_partial(from + i, width - i), width - i);
    }
    g += width;
  }
}

template <int half>
static void pooled_gradient(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter) {
  pad_push(plan, band, filter);
  const int64_t skipped = band.pull_first - (band.first - plan.half_h);  // rows outside of the map
  const float* push = band.push + skipped * band.pitch + band.left;
  if constexpr (half > 0) {
    pull_strips<SlidingWindows<half>>(plan, band, filter, push);
    if (filter.out != nullptr) {
      push_strips<SlidingWindows<half>>(plan, band, filter, band.pull + band.left);
    }
  } else {
    const float* sums = band.window + band.left;
    sum_windows(plan, band, band.push + skipped * band.pitch, band.pull_last - band.pull_first);
    pull_strips<FinishedWindows>(plan, band, filter, sums);
    if (filter.out != nullptr) {
      sum_windows(plan, band, band.pull, band.last - band.first);
      push_strips<FinishedWindows>(plan, band, filter, sums);
    }
  }
}

// The sums of g alone, bit by bit what filter_gradient makes of them.
static inline void sum_gradient(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  const int64_t rows = band.last - band.first;
  const float* g = filter.grad_out;
  Vec<float> sum = zero<float>();
  if (plan.half_h == 0 && plan.half_w == 0) {
    const int64_t count = rows * width;
    for (int64_t i = 0; i < count; i += lanes) {
      sum += load_columns(g + i, least(lanes, count - i));
    }
  } else {
    for (int64_t i = 0; i < width; i += lanes) {
      for (int64_t row = 0; row < rows; row++) {
        sum += load_columns(g + row * width + i, least(lanes, width - i));
      }
    }
  }
  store(filter.sums, load(filter.sums) + sum);
}

static inline void filter_gradient(const WinogradPlan& plan, const GradientBand& band, const FilterGradient& filter) {
  if (plan.half_h == 0 && plan.half_w == 0) {
    const auto gradient = filter.out == nullptr        ? unpooled_gradient<false, false>
                          : filter.constant == nullptr ? unpooled_gradient<true, false>
                                                       : unpooled_gradient<true, true>;
    gradient(plan, band, filter);
  } else if (plan.half_h == 1 && plan.half_w == 1) {
    pooled_gradient<1>(plan, band, filter);
  } else if (plan.half_h == 2 && plan.half_w == 2) {
    pooled_gradient<2>(plan, band, filter);
  } else {
    pooled_gradient<0>(plan, band, filter);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
