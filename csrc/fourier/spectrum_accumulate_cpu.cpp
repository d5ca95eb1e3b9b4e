// spectrum_accumulate on the CPU: lays out one call and hands its parts to the kernels of the machine's instruction
// set.
#include <algorithm>
#include <new>

#include "common/scratch.h"
#include "fourier/spectrum_accumulate.h"
#include "fourier/spectrum_accumulate_cpu_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kPieces = 16;             // sums of all groups together: enough threads can share a single one
constexpr int64_t kLeastImagesInPiece = 8;  // fewer are not worth sums of their own

template <typename T>
const SpectrumAccumulateKernels<T>& kernels(DType dtype);

template <>
const SpectrumAccumulateKernels<float>& kernels<float>(DType dtype) {
  return STURDY_ON_CPU_ISA(spectrum_accumulate_kernels(dtype));
}

template <>
const SpectrumAccumulateKernels<double>& kernels<double>(DType /*dtype*/) {
  return STURDY_ON_CPU_ISA(spectrum_accumulate_kernels_f64());
}

// Images by group, those of a group in their order.
template <typename T>
void sort_by_group(const SpectrumAccumulateParams& params, SpectrumAccumulatePlan<T>& plan) {
  const auto group_of = [&](int64_t n) { return params.group[n * params.group_stride]; };
  std::fill(plan.starts, plan.starts + params.groups + 1, int64_t{0});
  for (int64_t n = 0; n < params.batch; n++) {
    if (group_of(n) >= 0) {
      plan.starts[group_of(n) + 1]++;
    }
  }
  for (int64_t g = 0; g < params.groups; g++) {
    plan.starts[g + 1] += plan.starts[g];
  }
  for (int64_t n = 0; n < params.batch; n++) {
    if (group_of(n) >= 0) {
      plan.images[plan.starts[group_of(n)]++] = n;
    }
  }
  // Each has moved on to the end of its group, which is the beginning of the next.
  for (int64_t g = params.groups; g > 0; g--) {
    plan.starts[g] = plan.starts[g - 1];
  }
  plan.starts[0] = 0;
}

template <typename Out, typename T>
void finish_spectrum_as(const SpectrumAccumulatePlan<T>& plan, const SpectrumAccumulateParams& params, int64_t id,
                        const double* sum) {
  const FftPlanePlan<T>& p = plan.plane;
  const int64_t columns = params.width / 2 + 1;
  Out* out = static_cast<Out*>(params.out) + id * params.height * columns;
  if (sum == nullptr) {
    if (!params.add) {
      std::fill(out, out + params.height * columns, Out(0));
    }
    return;
  }
  const double scale = params.power == 1 ? 0.5 : 0.25;  // the separation of the columns' spectra doubles them
  for (int64_t k = 0; k < params.height; k++) {
    const bool packed = p.packed && 2 * k == params.height;
    const bool mirrored = !packed && p.rows_of[k] < 0;
    const int64_t row = packed ? p.strips * p.lanes : p.rows_of[mirrored ? params.height - k : k];
    const double* strip = sum + row / p.lanes * params.width * p.lanes + row % p.lanes;
    for (int64_t l = 0; l < columns; l++) {
      const int64_t at = p.rows.places[mirrored && l > 0 ? params.width - l : l];
      const double value = scale * strip[at * p.lanes];
      *out = static_cast<Out>(params.add ? static_cast<double>(*out) + value : value);
      out++;
    }
  }
}

template <typename T>
Status run(const SpectrumAccumulateParams& params, const Threads& threads) {
  const SpectrumAccumulateKernels<T>& kernel = kernels<T>(params.dtype);
  const int64_t sums = params.groups * params.channels;
  SpectrumAccumulatePlan<T> plan = {};
  plan.plane = make_fft_plane_plan<T>(params.height, params.width, kernel.lanes, true);
  plan.sum_size = plan.plane.spectrum_size + (plan.plane.packed ? params.width * plan.plane.lanes : 0);
  plan.pieces =
      std::clamp<int64_t>(std::min(kPieces / sums, params.batch / params.groups / kLeastImagesInPiece), 1, kPieces);
  const auto place = [&](void* block) {
    Arena arena(block);
    place_fft_plane_plan(plan.plane, arena);
    plan.starts = arena.take<int64_t>(params.groups + 1);
    plan.images = arena.take<int64_t>(params.batch);
    plan.partials = plan.pieces > 1 ? arena.take<double>(sums * plan.pieces * plan.sum_size) : nullptr;
    return arena.used();
  };
  place(host_scratch(ScratchSlot::call, place(nullptr)));
  fill_fft_plane_plan(plan.plane);
  sort_by_group(params, plan);
  Status status = threads(sums * plan.pieces, 1, [&](int64_t begin, int64_t end) {
    kernel.add(plan, params, begin, end);
    trim_host_scratch(ScratchSlot::task);
  });
  if (plan.partials != nullptr && status == Status::ok) {
    status = threads(sums, 1, [&](int64_t begin, int64_t end) {
      for (int64_t id = begin; id < end; id++) {
        double* sum = plan.partials + id * plan.pieces * plan.sum_size;
        for (int64_t piece = 1; piece < plan.pieces; piece++) {
          for (int64_t at = 0; at < plan.sum_size; at++) {
            sum[at] += sum[piece * plan.sum_size + at];
          }
        }
        finish_spectrum(plan, params, id, plan.is_empty(id / params.channels) ? nullptr : sum);
      }
    });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

template <typename T>
void finish_spectrum(const SpectrumAccumulatePlan<T>& plan, const SpectrumAccumulateParams& params, int64_t id,
                     const double* sum) {
  if (params.out_is_double) {
    finish_spectrum_as<double>(plan, params, id, sum);
  } else {
    finish_spectrum_as<float>(plan, params, id, sum);
  }
}

template void finish_spectrum<float>(const SpectrumAccumulatePlan<float>&, const SpectrumAccumulateParams&, int64_t,
                                     const double*);
template void finish_spectrum<double>(const SpectrumAccumulatePlan<double>&, const SpectrumAccumulateParams&, int64_t,
                                      const double*);

Status spectrum_accumulate(const SpectrumAccumulateParams& params, const Threads& threads) {
  if (params.groups == 0 || params.channels == 0) {
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
