#include "fourier/fft_plane_plan.h"

#include <algorithm>

namespace sturdy {
namespace cpu {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

template <typename T>
FftPlanePlan<T> make_fft_plane_plan(int64_t height, int64_t width, int64_t lanes, bool may_pack) {
  FftPlanePlan<T> plan = {};
  plan.height = height;
  plan.width = width;
  plan.lanes = lanes;
  plan.columns = make_fft_axis<T>(height);
  plan.rows = make_fft_axis<T>(width);
  plan.kept = height / 2 + 1;
  const FftAxis<T>& columns = plan.columns;
  plan.last_radix = columns.chirped || columns.stage_count == 0 ? 1 : columns.stages[columns.stage_count - 1].radix;
  // The two rows of a packed one must come out of the same butterfly, and their product with a mask is no coprime
  // stage.
  plan.packed = may_pack && !plan.rows.coprime && plan.last_radix % 2 == 0 &&
                divide_up(plan.kept - 1, lanes) < divide_up(plan.kept, lanes);
  plan.kept -= plan.packed ? 1 : 0;
  plan.strips = divide_up(plan.kept, lanes);
  plan.ring_rows = 1;  // of a butterfly's rows all may wait, and one less than a strip
  while (plan.ring_rows < lanes + plan.last_radix) {
    plan.ring_rows *= 2;
  }
  plan.blocks = divide_up(width, 2 * lanes);
  if (width >= lanes) {
    plan.left_columns = plan.blocks * lanes;
    plan.right_begin = width - plan.blocks * lanes;
  } else {
    plan.left_columns = divide_up(width, 2);
    plan.right_begin = plan.left_columns;
  }
  plan.spectrum_size = plan.strips * width * lanes;
  // Along the rows a transform works in the spectrum itself, unless it goes through a longer convolution.
  plan.work_size = std::max(plan.columns.length, plan.rows.chirped ? plan.rows.length : 0) * lanes;
  return plan;
}

template <typename T>
FftPlanePlan<T> make_small_fft_plane_plan(int64_t height, int64_t width, int64_t lanes) {
  FftPlanePlan<T> plan = make_fft_plane_plan<T>(height, width, lanes, true);
  plan.rows = make_fft_axis<T>({2, static_cast<int>(width / 2)});
  plan.last_radix = static_cast<int>(height);
  plan.packed = true;
  plan.kept = height / 2;
  plan.strips = 1;
  plan.spectrum_size = width * lanes;
  return plan;
}

template <typename T>
void place_fft_plane_plan(FftPlanePlan<T>& plan, Arena& arena) {
  place_fft_axis(plan.columns, arena);
  place_fft_axis(plan.rows, arena);
  plan.frequencies = arena.take<int64_t>(plan.strips * plan.lanes);
  plan.rows_of = arena.take<int64_t>(plan.height);
}

template <typename T>
void fill_fft_plane_plan(FftPlanePlan<T>& plan) {
  fill_fft_axis(plan.columns);
  fill_fft_axis(plan.rows);
  // The order in which the last stage down the columns gives its rows, see fft_columns.h.
  std::fill(plan.rows_of, plan.rows_of + plan.height, int64_t{-1});
  const int64_t radix = plan.last_radix, blocks = plan.height / radix;
  int64_t row = 0;
  const auto add = [&](int64_t frequency) {
    plan.rows_of[frequency] = row;
    plan.frequencies[row++] = frequency;
  };
  for (int64_t f = 0; 2 * f <= blocks; f++) {
    int64_t count = radix;
    if (f == 0) {
      count = radix / 2 + (plan.packed ? 0 : 1);
    } else if (2 * f == blocks) {
      count = (radix + 1) / 2;
    }
    for (int64_t k = 0; k < count; k++) {
      int64_t frequency = f + k * blocks;
      if (plan.columns.coprime) {
        for (frequency = f; frequency % radix != k; frequency += blocks) {
        }
      }
      add(frequency);
    }
  }
  for (; row < plan.strips * plan.lanes; row++) {
    plan.frequencies[row] = plan.frequencies[0];
  }
}

template FftPlanePlan<float> make_fft_plane_plan<float>(int64_t, int64_t, int64_t, bool);
template FftPlanePlan<double> make_fft_plane_plan<double>(int64_t, int64_t, int64_t, bool);
template FftPlanePlan<float> make_small_fft_plane_plan<float>(int64_t, int64_t, int64_t);
template FftPlanePlan<double> make_small_fft_plane_plan<double>(int64_t, int64_t, int64_t);
template void place_fft_plane_plan<float>(FftPlanePlan<float>&, Arena&);
template void place_fft_plane_plan<double>(FftPlanePlan<double>&, Arena&);
template void fill_fft_plane_plan<float>(FftPlanePlan<float>&);
template void fill_fft_plane_plan<double>(FftPlanePlan<double>&);

}  // namespace cpu
}  // namespace sturdy
