// The CPU kernels of spectrum_accumulate for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "fourier/plane_spectrum.h"
#include "fourier/spectrum_accumulate_cpu_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

constexpr int64_t kImagesInBlock = 16;  // added up in the type of the transforms before they go to float64

template <typename T>
struct AccumulateTask {
  cpu::FftPlaneWork<T> work;
  T* block;
  double* total;
  T* copy;  // a compact plane

  AccumulateTask(const cpu::SpectrumAccumulatePlan<T>& plan, Arena& arena, bool copies)
      : work(plan.plane, arena), copy(nullptr) {
    block = arena.take<T>(plan.sum_size);
    total = plan.partials == nullptr ? arena.take<double>(plan.sum_size) : nullptr;
    if (copies) {
      copy = arena.take<T>(plan.plane.height * plan.plane.width);
    }
  }
};

template <typename T, int power>
STURDY_ALWAYS_INLINE Vec<T> amplitude(Vec<T> r, Vec<T> i) {
  const Vec<T> square = r * r + i * i;
  return power == 2 ? square : square_root(square);
}

template <typename T, int power>
void add_packed_strip(const cpu::SpectrumAccumulatePlan<T>& plan, const T* r, const T* i, T* sum) {
  const int64_t width = plan.plane.width;
  const int64_t* places = plan.plane.rows.places;
  T* behind = sum + plan.plane.spectrum_size;
  for (int64_t l = 0; 2 * l <= width; l++) {
    const int64_t a = places[l] * kLanes<T>, b = places[l == 0 ? 0 : width - l] * kLanes<T>;
    Vec<T> ar = load(r + a), ai = load(i + a), br = load(r + b), bi = load(i + b);
    unpack(ar, ai, br, bi);
    const Vec<T> first = amplitude<T, power>(ar, ai), second = amplitude<T, power>(br, bi);
    store(behind + a, load(behind + a) + second);  // its first lane alone is looked at
    store(sum + a, load(sum + a) + first);
    if (b != a) {  // row 0 is read at l, its other half's sums stay incomplete
      store(sum + b, load(sum + b) + second);
    }
  }
}

template <typename T, int power>
void add_plane(const cpu::SpectrumAccumulatePlan<T>& plan, const cpu::FftPlaneWork<T>& work, Prefetch prefetch,
               T* sum) {
  const int64_t strip_size = plan.plane.width * kLanes<T>;
  for (int64_t strip = 0; strip < plan.plane.strips; strip++) {
    const int64_t begin = strip * strip_size;
    T *r = work.spectrum_r + begin, *i = work.spectrum_i + begin;
    forward_strip(plan.plane, work, r, i, prefetch);
    if (strip == 0 && plan.plane.packed) {
      add_packed_strip<T, power>(plan, r, i, sum);
      continue;
    }
    for (int64_t at = 0; at < strip_size; at += kLanes<T>) {
      const Vec<T> value = amplitude<T, power>(load(r + at), load(i + at));
      store(sum + begin + at, load(sum + begin + at) + value);
    }
  }
}

// Adds a block to the total and begins another.
template <typename T>
void flush(T* block, double* total, int64_t size) {
  for (int64_t at = 0; at < size; at++) {
    total[at] += static_cast<double>(block[at]);
    block[at] = 0;
  }
}

template <typename S>
void add_spectra(const cpu::SpectrumAccumulatePlan<Accumulate<S>>& plan, const SpectrumAccumulateParams& params,
                 int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const bool copies = needs_copy(params.x, params.width);
  Arena size(nullptr);
  AccumulateTask<T>(plan, size, copies);
  Arena arena(host_scratch(ScratchSlot::task, size.used()));
  AccumulateTask<T> task(plan, arena, copies);
  for (int64_t item = begin; item < end; item++) {
    const int64_t id = item / plan.pieces, piece = item % plan.pieces;
    const int64_t group = id / params.channels, channel = id % params.channels;
    double* total = plan.partials == nullptr ? task.total : plan.partials + item * plan.sum_size;
    if (!plan.is_empty(group)) {
      std::memset(total, 0, static_cast<size_t>(plan.sum_size) * sizeof(double));
      std::memset(task.block, 0, static_cast<size_t>(plan.sum_size) * sizeof(T));
      int64_t waiting = 0;
      for (int64_t at = plan.starts[group] + piece; at < plan.starts[group + 1]; at += plan.pieces) {
        strided_columns_forward<S, T>(plan.plane, strided_plane<const S>(params.x, plan.images[at], channel), task.work,
                                      task.copy);
        const int64_t next = at + plan.pieces;
        Prefetch ahead;
        if (next < plan.starts[group + 1]) {
          ahead = planes_ahead<S, T>(plan.plane, params.x, params.x, plan.images[next], plan.images[next], channel, 1,
                                     plan.plane.strips);
        }
        if (params.power == 1) {
          add_plane<T, 1>(plan, task.work, ahead, task.block);
        } else {
          add_plane<T, 2>(plan, task.work, ahead, task.block);
        }
        if (++waiting == kImagesInBlock) {
          flush(task.block, total, plan.sum_size);
          waiting = 0;
        }
      }
      flush(task.block, total, plan.sum_size);
    }
    if (plan.partials == nullptr) {
      cpu::finish_spectrum(plan, params, id, plan.is_empty(group) ? nullptr : total);
    }
  }
}

template <typename S>
static const cpu::SpectrumAccumulateKernels<Accumulate<S>>& kernels() {
  static constexpr cpu::SpectrumAccumulateKernels<Accumulate<S>> table = {kLanes<Accumulate<S>>, add_spectra<S>};
  return table;
}

const cpu::SpectrumAccumulateKernels<float>& spectrum_accumulate_kernels(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kernels<Half>();
    case DType::bf16:
      return kernels<BFloat16>();
    default:
      return kernels<float>();
  }
}

const cpu::SpectrumAccumulateKernels<double>& spectrum_accumulate_kernels_f64() { return kernels<double>(); }

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
