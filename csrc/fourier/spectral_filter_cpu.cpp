// spectral_filter on the CPU: lays out one call and hands its parts to the kernels of the machine's instruction set.
// How work is cut up depends on sizes alone, so results do not depend on the number of threads.
#include <algorithm>
#include <new>

#include "common/cpu_features.h"
#include "common/half.h"
#include "common/scratch.h"
#include "fourier/spectral_filter.h"
#include "fourier/spectral_filter_cpu_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTaskPixels = 16384;                 // of planes in a task, at the least
constexpr int64_t kMaskBytes = int64_t{4} << 20;       // of masks prepared before a call: what stays in a cache
constexpr int64_t kManyMaskBytes = int64_t{64} << 20;  // the same where each serves every plane
constexpr int64_t kPieces = 16;                        // sums of a mask's gradient: enough threads can share one mask

template <typename T>
const SpectralFilterKernels<T>& kernels(DType dtype);

template <>
const SpectralFilterKernels<float>& kernels<float>(DType dtype) {
  return STURDY_ON_CPU_ISA(spectral_filter_kernels(dtype));
}

template <>
const SpectralFilterKernels<double>& kernels<double>(DType /*dtype*/) {
  return STURDY_ON_CPU_ISA(spectral_filter_kernels_f64());
}

// A mask as given, read as the symmetric mask that it stands for: the mean of the values at (k, l) and (-k, -l).
template <typename M>
class SymmetricMask {
 public:
  SymmetricMask(const M* data, const Masks& masks, const SpectralFilterGeometry& g)
      : data_(data), row_(masks.row), column_(masks.column), height_(g.height), width_(g.width), half_(g.half) {}

  double operator()(int64_t k, int64_t l) const {
    const int64_t mirrored_k = k == 0 ? 0 : height_ - k;
    const int64_t mirrored_l = l == 0 ? 0 : width_ - l;
    if (half_ && l != mirrored_l) {
      return 2 * l < width_ ? value(k, l) : value(mirrored_k, mirrored_l);
    }
    if (half_) {
      return 0.5 * (value(k, l) + value(mirrored_k, l));
    }
    return 0.5 * (value(centred(k, height_), centred(l, width_)) +
                  value(centred(mirrored_k, height_), centred(mirrored_l, width_)));
  }

 private:
  static int64_t centred(int64_t k, int64_t n) { return k + n / 2 < n ? k + n / 2 : k + n / 2 - n; }
  double value(int64_t row, int64_t column) const { return to_accumulate(data_[row * row_ + column * column_]); }

  const M* data_;
  int64_t row_, column_, height_, width_;
  bool half_;
};

template <typename M, typename T>
void prepare_strip_of(const SpectralFilterPlan<T>& plan, int64_t at, int64_t strip, T* to) {
  const SpectralFilterGeometry& g = plan.geometry;
  const FftPlanePlan<T>& p = plan.plane;
  const SymmetricMask<M> mask(static_cast<const M*>(plan.mask.data) + at, plan.mask, g);
  // Both transforms are left unscaled, and so is the separation of the columns' spectra; small planes have none, but
  // halve what they give back, all but the real frequencies of the columns.
  const double unscaled = 1 / (static_cast<double>(g.height) * static_cast<double>(g.width));
  const double real_scale = plan.small ? unscaled : 0.5 * unscaled;
  const double complex_scale = plan.small ? 2 * unscaled : 0.5 * unscaled;
  for (int64_t lane = 0; lane < p.lanes; lane++) {
    const int64_t k = p.frequencies[strip * p.lanes + lane];
    const double scale = k == 0 || 2 * k == g.height ? real_scale : complex_scale;
    T* const column = to + strip * g.width * p.lanes + lane;
    for (int64_t l = 0; l < g.width; l++) {
      column[p.rows.places[l] * p.lanes] = static_cast<T>(mask(k, l) * scale);
    }
  }
  if (!p.packed || strip != 0) {
    return;
  }
  T* second = to + p.spectrum_size;
  std::fill(second, second + g.width * p.lanes, T(0));
  for (int64_t l = 0; l < g.width; l++) {
    const int64_t place = p.rows.places[l] * p.lanes;
    const double zero = mask(0, l) * real_scale, half = mask(g.height / 2, l) * real_scale;
    to[place] = static_cast<T>(0.5 * (zero + half));
    second[place] = static_cast<T>(0.5 * (zero - half));
  }
}

// One strip of mask `id`; `to` is the mask's.
template <typename T>
void prepare_strip(const SpectralFilterPlan<T>& plan, int64_t id, int64_t strip, T* to) {
  const SpectralFilterGeometry& g = plan.geometry;
  const int64_t entry = id / (g.many * g.mask_channels), t = id / g.mask_channels % g.many;
  const int64_t at = entry * plan.mask.entry + t * plan.mask.filtered + id % g.mask_channels * plan.mask.channel;
  switch (plan.mask.dtype) {
    case DType::f64:
      return prepare_strip_of<double>(plan, at, strip, to);
    case DType::f16:
      return prepare_strip_of<Half>(plan, at, strip, to);
    case DType::bf16:
      return prepare_strip_of<BFloat16>(plan, at, strip, to);
    default:
      return prepare_strip_of<float>(plan, at, strip, to);
  }
}

// Everything but the memory.
template <typename T>
SpectralFilterPlan<T> make_plan(const SpectralFilterGeometry& g, const Masks& mask, int64_t lanes, bool may_pack,
                                bool may_be_small) {
  SpectralFilterPlan<T> plan = {};
  plan.geometry = g;
  plan.mask = mask;
  plan.small = may_be_small && g.many == 1 && is_small_plane(g.height, g.width, lanes);
  plan.plane = plan.small ? make_small_fft_plane_plan<T>(g.height, g.width, lanes)
                          : make_fft_plane_plan<T>(g.height, g.width, lanes, may_pack);
  plan.mask_size = plan.plane.spectrum_size + (plan.plane.packed ? g.width * lanes : 0);
  plan.mask_count = g.mask_entries * g.many * g.mask_channels;
  plan.pieces = 1;
  return plan;
}

template <typename T>
bool prepares_all_masks(const SpectralFilterPlan<T>& plan) {
  const int64_t most = plan.geometry.many > 1 ? kManyMaskBytes : kMaskBytes;
  return plan.mask_count <= 1 || plan.mask_count <= most / (plan.mask_size * static_cast<int64_t>(sizeof(T)));
}

// Memory of the call and all that is in it, `masks` among it where they are to be prepared.
template <typename T>
Status set_up(SpectralFilterPlan<T>& plan, bool masks, const Threads& threads) {
  const auto place = [&](void* block) {
    Arena arena(block);
    place_fft_plane_plan(plan.plane, arena);
    plan.masks = masks ? arena.take<T>(plan.mask_count * plan.mask_size) : nullptr;
    plan.partials = plan.pieces > 1 ? arena.take<T>(plan.mask_count * plan.pieces * plan.plane.spectrum_size) : nullptr;
    return arena.used();
  };
  place(host_scratch(ScratchSlot::call, place(nullptr)));
  fill_fft_plane_plan(plan.plane);
  if (!masks) {
    return Status::ok;
  }
  // By strips, so that threads can share a single large mask.
  const int64_t strips = plan.plane.strips;
  const int64_t grain = std::max<int64_t>(1, kTaskPixels / (plan.mask_size / strips));
  return threads(plan.mask_count * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t id = i / strips;
      prepare_strip(plan, id, i % strips, plan.masks + id * plan.mask_size);
    }
  });
}

template <typename T>
int64_t plane_grain(const SpectralFilterPlan<T>& plan) {
  return std::max<int64_t>(1, kTaskPixels / (plan.geometry.height * plan.geometry.width));
}

template <typename T>
Status run_forward(const SpectralFilterParams& params, const Threads& threads) {
  const SpectralFilterGeometry& g = params.geometry;
  if (g.batch == 0 || g.channels == 0 || g.many == 0) {
    return Status::ok;
  }
  const SpectralFilterKernels<T>& kernel = kernels<T>(g.dtype);
  SpectralFilterPlan<T> plan = make_plan<T>(g, params.mask, kernel.lanes, true, true);
  Status status = set_up(plan, prepares_all_masks(plan), threads);
  if (status == Status::ok) {
    status = threads(g.batch * g.channels, plane_grain(plan), [&](int64_t begin, int64_t end) {
      kernel.forward(plan, params, begin, end);
      trim_host_scratch(ScratchSlot::task);
    });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

template <typename T>
Status run_backward(const SpectralFilterBackwardParams& params, const Threads& threads) {
  const SpectralFilterGeometry& g = params.geometry;
  const bool want_mask = params.grad_mask.data != nullptr;
  bool want_input = params.grad_x.data != nullptr;
  if (want_input && !g.clip && g.many == 1) {  // the filter is its own transpose
    const Status status = run_forward<T>({g, params.grad_out, params.mask, params.grad_x}, threads);
    if (status != Status::ok || !want_mask) {
      return status;
    }
    want_input = false;
  }
  const SpectralFilterKernels<T>& kernel = kernels<T>(g.dtype);
  SpectralFilterPlan<T> plan = make_plan<T>(g, params.mask, kernel.lanes, !want_mask, false);
  if (want_mask) {
    plan.pieces =
        std::clamp<int64_t>(kPieces / std::max<int64_t>(1, plan.mask_count), 1, std::max<int64_t>(1, g.batch));
  }
  Status status = set_up(plan, (want_input || g.clip) && prepares_all_masks(plan), threads);
  if (want_input && status == Status::ok) {
    status = threads(g.batch * g.channels, plane_grain(plan), [&](int64_t begin, int64_t end) {
      kernel.grad_x(plan, params, begin, end);
      trim_host_scratch(ScratchSlot::task);
    });
  }
  if (want_mask && status == Status::ok) {
    status = threads(plan.mask_count * plan.pieces, 1, [&](int64_t begin, int64_t end) {
      kernel.grad_mask(plan, params, begin, end);
      trim_host_scratch(ScratchSlot::task);
    });
  }
  if (plan.partials != nullptr && status == Status::ok) {
    status = threads(plan.mask_count, 1, [&](int64_t begin, int64_t end) {
      const int64_t size = plan.plane.spectrum_size;
      for (int64_t id = begin; id < end; id++) {
        T* sum = plan.partials + id * plan.pieces * size;
        for (int64_t piece = 1; piece < plan.pieces; piece++) {
          for (int64_t at = 0; at < size; at++) {
            sum[at] += sum[piece * size + at];
          }
        }
        finish_mask_gradient(plan, params.grad_mask, id, sum);
      }
    });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace

template <typename T>
void prepare_mask(const SpectralFilterPlan<T>& plan, int64_t id, T* to) {
  for (int64_t strip = 0; strip < plan.plane.strips; strip++) {
    prepare_strip(plan, id, strip, to);
  }
}

template <typename T>
void finish_mask_gradient(const SpectralFilterPlan<T>& plan, const Masks& gradient, int64_t id, const T* sum) {
  const SpectralFilterGeometry& g = plan.geometry;
  const FftPlanePlan<T>& p = plan.plane;
  const int64_t entry = id / (g.many * g.mask_channels), t = id / g.mask_channels % g.many;
  T* to = static_cast<T*>(gradient.data) + entry * gradient.entry + t * gradient.filtered +
          id % g.mask_channels * gradient.channel;
  // Both spectra are doubled, and each value of a half mask inside stands for two.
  const double scale = 0.25 / (static_cast<double>(g.height) * static_cast<double>(g.width));
  const int64_t columns = g.half ? g.width / 2 + 1 : g.width;
  for (int64_t row = 0; row < g.height; row++) {
    for (int64_t column = 0; column < columns; column++) {
      int64_t k = g.half ? row : (row + g.height - g.height / 2) % g.height;
      int64_t l = g.half ? column : (column + g.width - g.width / 2) % g.width;
      const bool twice = g.half && l != 0 && 2 * l != g.width;
      if (p.rows_of[k] < 0) {
        k = g.height - k;
        l = l == 0 ? 0 : g.width - l;
      }
      const int64_t kept = p.rows_of[k];
      const int64_t at = (kept / p.lanes * g.width + p.rows.places[l]) * p.lanes + kept % p.lanes;
      to[row * gradient.row + column * gradient.column] =
          static_cast<T>(static_cast<double>(sum[at]) * (twice ? 2 * scale : scale));
    }
  }
}

template void prepare_mask<float>(const SpectralFilterPlan<float>&, int64_t, float*);
template void prepare_mask<double>(const SpectralFilterPlan<double>&, int64_t, double*);
template void finish_mask_gradient<float>(const SpectralFilterPlan<float>&, const Masks&, int64_t, const float*);
template void finish_mask_gradient<double>(const SpectralFilterPlan<double>&, const Masks&, int64_t, const double*);

Status spectral_filter(const SpectralFilterParams& params, const Threads& threads) {
  try {
    return params.geometry.dtype == DType::f64 ? run_forward<double>(params, threads)
                                               : run_forward<float>(params, threads);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

Status spectral_filter_backward(const SpectralFilterBackwardParams& params, const Threads& threads) {
  try {
    return params.geometry.dtype == DType::f64 ? run_backward<double>(params, threads)
                                               : run_backward<float>(params, threads);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

}  // namespace cpu
}  // namespace sturdy
