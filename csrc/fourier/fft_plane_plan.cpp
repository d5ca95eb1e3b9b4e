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
  plan.packed = may_pack && height % 2 == 0 && divide_up(plan.kept - 1, lanes) < divide_up(plan.kept, lanes);
  plan.kept -= plan.packed ? 1 : 0;
  plan.strips = divide_up(plan.kept, lanes);
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
void place_fft_plane_plan(FftPlanePlan<T>& plan, Arena& arena) {
  place_fft_axis(plan.columns, arena);
  place_fft_axis(plan.rows, arena);
  plan.mirrors = arena.take<int64_t>(plan.strips * plan.lanes * 2);
}

template <typename T>
void fill_fft_plane_plan(FftPlanePlan<T>& plan) {
  fill_fft_axis(plan.columns);
  fill_fft_axis(plan.rows);
  const int64_t* places = plan.columns.places;
  for (int64_t at = 0; at < plan.strips * plan.lanes; at++) {
    const int64_t k = std::min(at, plan.kept - 1);  // lanes beyond the last row compute it once more
    plan.mirrors[2 * at] = places[k] * plan.lanes;
    plan.mirrors[2 * at + 1] = places[(plan.height - k) % plan.height] * plan.lanes;
  }
  plan.half_place = places[plan.height / 2] * plan.lanes;
}

template FftPlanePlan<float> make_fft_plane_plan<float>(int64_t, int64_t, int64_t, bool);
template FftPlanePlan<double> make_fft_plane_plan<double>(int64_t, int64_t, int64_t, bool);
template void place_fft_plane_plan<float>(FftPlanePlan<float>&, Arena&);
template void place_fft_plane_plan<double>(FftPlanePlan<double>&, Arena&);
template void fill_fft_plane_plan<float>(FftPlanePlan<float>&);
template void fill_fft_plane_plan<double>(FftPlanePlan<double>&);

}  // namespace cpu
}  // namespace sturdy
