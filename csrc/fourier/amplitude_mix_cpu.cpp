// amplitude_mix on the CPU: lays out one call and hands its parts to the kernels of the machine's instruction set.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "common/scratch.h"
#include "fourier/amplitude_mix.h"
#include "fourier/amplitude_mix_cpu_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTaskPixels = 16384;  // of images or planes in a task, at the least

template <typename T>
const AmplitudeMixKernels<T>& kernels(DType dtype);

template <>
const AmplitudeMixKernels<float>& kernels<float>(DType dtype) {
  return STURDY_ON_CPU_ISA(amplitude_mix_kernels(dtype));
}

template <>
const AmplitudeMixKernels<double>& kernels<double>(DType /*dtype*/) {
  return STURDY_ON_CPU_ISA(amplitude_mix_kernels_f64());
}

// All images, each followed by its partner where that has not come before. `seen` is memory for the work.
void order_by_partner(const AmplitudeMixParams& params, bool* seen, int64_t* order) {
  std::fill(seen, seen + params.batch, false);
  for (int64_t n = 0; n < params.batch; n++) {
    for (int64_t image = n; image >= 0 && !seen[image]; image = params.index[image * params.index_stride]) {
      seen[image] = true;
      *order++ = image;
    }
  }
}

template <typename T>
Status run(const AmplitudeMixParams& params, const Threads& threads) {
  const int64_t height = params.height, width = params.width;
  const AmplitudeMixKernels<T>& kernel = kernels<T>(params.dtype);
  AmplitudeMixPlan<T> plan = {};
  plan.plane = make_fft_plane_plan<T>(height, width, kernel.lanes, true);
  plan.together = params.color ? params.channels : 1;
  plan.channels = make_fft_axis<T>(plan.together);
  bool* seen = nullptr;
  const auto place = [&](void* block) {
    Arena arena(block);
    place_fft_plane_plan(plan.plane, arena);
    place_fft_axis(plan.channels, arena);
    plan.nearest = arena.take<int64_t>(plan.plane.strips);
    plan.order = arena.take<int64_t>(params.batch);
    seen = arena.take<bool>(params.batch);
    return arena.used();
  };
  place(host_scratch(ScratchSlot::call, place(nullptr)));
  fill_fft_plane_plan(plan.plane);
  fill_fft_axis(plan.channels);
  const int64_t lanes = plan.plane.lanes;
  for (int64_t strip = 0; strip < plan.plane.strips; strip++) {
    plan.nearest[strip] = height;
    for (int64_t row = strip * lanes; row < (strip + 1) * lanes; row++) {
      const int64_t k = plan.plane.frequencies[row];
      plan.nearest[strip] = std::min({plan.nearest[strip], k, height - k});
    }
  }
  if (params.from_x) {
    order_by_partner(params, seen, plan.order);
  } else {
    for (int64_t n = 0; n < params.batch; n++) {
      plan.order[n] = n;
    }
  }
  // The separation of the columns' spectra doubles them.
  const double rows = static_cast<double>(height), columns = static_cast<double>(width);
  const double samples = rows * columns * static_cast<double>(plan.together);
  const double least = 2 * kLeastAmplitude * samples;
  plan.scale = static_cast<T>(0.5 / samples);
  plan.scale_of_columns = static_cast<T>(0.5 / rows);
  plan.least_square = static_cast<T>(least * least);

  const int64_t grain = std::max<int64_t>(1, kTaskPixels / (height * width * plan.together));
  const int64_t items = params.batch * params.channels / plan.together;
  const Status status = threads(items, grain, [&](int64_t begin, int64_t end) {
    kernel.mix(plan, params, begin, end);
    trim_host_scratch(ScratchSlot::task);
  });
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

Status amplitude_mix(const AmplitudeMixParams& params, const Threads& threads) {
  if (params.batch == 0 || params.channels == 0) {
    return Status::ok;
  }
  try {
    return params.dtype == DType::f64 ? run<double>(params, threads) : run<float>(params, threads);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

}  // namespace cpu
}  // namespace sturdy
