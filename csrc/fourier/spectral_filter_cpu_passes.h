// spectral_filter on planes: forward, the gradient of the planes and that of the masks.
#pragma once

#include <cstring>

#include "fourier/fft_kernels.h"
#include "fourier/fft_plane.h"
#include "fourier/spectral_filter_cpu_plan.h"
#include "fourier/spectral_filter_cpu_small.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename T>
using Plan = cpu::SpectralFilterPlan<T>;
template <typename T>
using Work = cpu::FftPlaneWork<T>;

// One plane in memory.
template <typename S>
struct PlaneView {
  S* data;
  int64_t row, column;  // strides
};

template <typename S>
PlaneView<S> plane_view(const Planes& planes, int64_t image, int64_t filtered, int64_t channel) {
  const int64_t at = image * planes.image + filtered * planes.filtered + channel * planes.channel;
  return {static_cast<S*>(planes.data) + at, planes.row, planes.column};
}

// What a task holds: the memory of one transform and what only some calls need.
template <typename T>
struct Task {
  Work<T> work;
  Work<T> other;  // shares the columns of `work`; with many masks alone, or for the gradient of masks
  T* mask;        // prepared here; null where the plan has them all
  int64_t mask_id;
  T* staging;  // a compact plane
  T* sum;      // of the gradient of a mask

  Task(const Plan<T>& plan, Arena& arena, bool two_spectra, bool stages, bool sums)
      : work(plan.plane, arena), other(work), mask(nullptr), mask_id(-1), staging(nullptr), sum(nullptr) {
    if (two_spectra) {
      other.spectrum_r = arena.take<T>(plan.plane.spectrum_size);
      other.spectrum_i = arena.take<T>(plan.plane.spectrum_size);
    }
    if (plan.masks == nullptr) {
      mask = arena.take<T>(plan.mask_size);
    }
    if (stages) {
      staging = arena.take<T>(plan.plane.height * plan.plane.width);
    }
    if (sums) {
      sum = arena.take<T>(plan.plane.spectrum_size);
    }
  }
};

template <typename T>
Task<T> make_task(const Plan<T>& plan, bool two_spectra, bool stages, bool sums) {
  Arena size(nullptr);
  Task<T>(plan, size, two_spectra, stages, sums);
  Arena arena(host_scratch(ScratchSlot::task, size.used()));
  return Task<T>(plan, arena, two_spectra, stages, sums);
}

template <typename T>
const T* prepared_mask(const Plan<T>& plan, Task<T>& task, int64_t id) {
  if (plan.masks != nullptr) {
    return plan.masks + id * plan.mask_size;
  }
  if (task.mask_id != id) {
    cpu::prepare_mask(plan, id, task.mask);
    task.mask_id = id;
  }
  return task.mask;
}

// ---- planes in and out ----

template <typename S, typename T>
void forward_plane(const Plan<T>& plan, PlaneView<const S> plane, const Work<T>& work, T* staging) {
  const int64_t height = plan.plane.height, width = plan.plane.width;
  if (plane.column == 1 || width == 1) {
    forward_columns<S, T>(plan.plane, {plane.data, plane.row}, work);
    return;
  }
  for (int64_t h = 0; h < height; h++) {
    for (int64_t w = 0; w < width; w++) {
      staging[h * width + w] = to_accumulate(plane.data[h * plane.row + w * plane.column]);
    }
  }
  forward_columns<T, T>(plan.plane, {staging, width}, work);
}

template <typename S, typename T>
void inverse_plane(const Plan<T>& plan, const Work<T>& work, PlaneView<S> plane, const Bounds<T>& bounds, T* staging) {
  const int64_t height = plan.plane.height, width = plan.plane.width;
  if (plane.column == 1 || width == 1) {
    inverse_columns<S, T>(plan.plane, work, {plane.data, plane.row}, bounds);
    return;
  }
  inverse_columns<T, T>(plan.plane, work, {staging, width}, bounds);
  for (int64_t h = 0; h < height; h++) {
    for (int64_t w = 0; w < width; w++) {
      assign(plane.data[h * plane.row + w * plane.column], staging[h * width + w]);
    }
  }
}

template <typename S>
void copy_plane(PlaneView<const S> from, PlaneView<S> to, int64_t height, int64_t width) {
  for (int64_t h = 0; h < height; h++) {
    const S* source = from.data + h * from.row;
    S* target = to.data + h * to.row;
    if (from.column == 1 && to.column == 1) {
      std::memcpy(target, source, static_cast<size_t>(width) * sizeof(S));
    } else {
      for (int64_t w = 0; w < width; w++) {
        target[w * to.column] = source[w * from.column];
      }
    }
  }
}

// The same between element types.
template <typename From, typename To>
void copy_plane_as(PlaneView<const From> from, PlaneView<To> to, int64_t height, int64_t width) {
  for (int64_t h = 0; h < height; h++) {
    const From* source = from.data + h * from.row;
    To* target = to.data + h * to.row;
    for (int64_t w = 0; w < width; w++) {
      assign(target[w * to.column], to_accumulate(source[w * from.column]));
    }
  }
}

template <typename S>
bool needs_staging(const Planes& planes, const SpectralFilterGeometry& g) {
  return planes.data != nullptr && planes.column != 1 && g.width != 1;
}

// ---- products with a prepared mask ----

template <typename T>
void multiply_strip(const T* from_r, const T* from_i, const T* mask, T* to_r, T* to_i, int64_t size) {
  for (int64_t at = 0; at < size; at += kLanes<T>) {
    const Vec<T> m = load(mask + at);
    store(to_r + at, load(from_r + at) * m);
    store(to_i + at, load(from_i + at) * m);
  }
}

// The strip whose first row holds two spectra: p z(l) + q conj z(-l).
template <typename T>
void multiply_packed_strip(const Plan<T>& plan, const T* from_r, const T* from_i, const T* p, T* to_r, T* to_i) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = plan.plane.width;
  const int64_t* places = plan.plane.rows.places;
  const T* q = p + plan.plane.spectrum_size;
  for (int64_t l = 0; 2 * l <= width; l++) {
    const int64_t a = places[l] * lanes, b = places[l == 0 ? 0 : width - l] * lanes;
    const Vec<T> ar = load(from_r + a), ai = load(from_i + a), br = load(from_r + b), bi = load(from_i + b);
    const Vec<T> pa = load(p + a), pb = load(p + b), qa = load(q + a);  // q is even
    store(to_r + a, pa * ar + qa * br);
    store(to_i + a, pa * ai - qa * bi);
    store(to_r + b, pb * br + qa * ar);
    store(to_i + b, pb * bi - qa * ai);
  }
}

template <typename T>
void multiply_spectrum(const Plan<T>& plan, const Work<T>& from, const T* mask, const Work<T>& to) {
  const int64_t strip = plan.plane.width * kLanes<T>;
  int64_t done = 0;
  if (plan.plane.packed) {
    multiply_packed_strip(plan, from.spectrum_r, from.spectrum_i, mask, to.spectrum_r, to.spectrum_i);
    done = strip;
  }
  multiply_strip(from.spectrum_r + done, from.spectrum_i + done, mask + done, to.spectrum_r + done,
                 to.spectrum_i + done, plan.plane.spectrum_size - done);
}

// Rows forward, times the mask, and back, a strip at a time.
template <typename T>
void filter_rows(const Plan<T>& plan, const Work<T>& work, const T* mask, Prefetch& prefetch) {
  constexpr int64_t lanes = kLanes<T>;
  const cpu::FftAxis<T>& axis = plan.plane.rows;
  const int64_t strip = plan.plane.width * lanes;
  for (int64_t s = 0; s < plan.plane.strips; s++) {
    T *r = work.spectrum_r + s * strip, *i = work.spectrum_i + s * strip;
    const bool packed = plan.plane.packed && s == 0;
    if (!axis.chirped && axis.stage_count > 0) {
      filter_axis<T>(axis, r, i, mask + s * strip, packed ? mask + plan.plane.spectrum_size : nullptr, prefetch);
      continue;
    }
    T* at_r = axis.chirped ? work.column_r : r;
    T* at_i = axis.chirped ? work.column_i : i;
    forward_axis<T>(axis, r, i, lanes, at_r, at_i, prefetch);
    if (packed) {
      multiply_packed_strip(plan, at_r, at_i, mask, at_r, at_i);
    } else {
      multiply_strip(at_r, at_i, mask + s * strip, at_r, at_i, strip);
    }
    inverse_axis<T>(axis, at_r, at_i, r, i, lanes, prefetch);
  }
}

// ---- the op ----

template <typename T>
Bounds<T> bounds_of(const SpectralFilterGeometry& g) {
  return {g.clip, static_cast<T>(g.low), static_cast<T>(g.high)};
}

// Asks for the pixels of `next` and the lines of `out` while the rows are transformed, where both are compact.
template <typename S, typename T>
Prefetch prefetch_of(const Plan<T>& plan, PlaneView<const S> next, PlaneView<S> out) {
  const cpu::FftPlanePlan<T>& p = plan.plane;
  Prefetch prefetch;
  if (next.column != 1 || next.row != p.width || out.column != 1 || out.row != p.width || p.rows.stage_count == 0) {
    return prefetch;
  }
  int64_t butterflies = 0;
  for (int s = 0; s < p.rows.stage_count; s++) {
    butterflies += (s + 1 < p.rows.stage_count ? 2 : 1) * p.rows.length / p.rows.stages[s].radix;
  }
  prefetch.read = reinterpret_cast<const char*>(next.data);
  prefetch.write = reinterpret_cast<const char*>(out.data);
  const int64_t lines = (p.height * p.width * static_cast<int64_t>(sizeof(S)) + 63) / 64;
  const int64_t steps = p.strips * butterflies;
  prefetch.bytes = (lines + steps - 1) / steps * 64;
  prefetch.near = lines <= 128;
  return prefetch;
}

template <typename S, int H, int W>
void filter_small_planes(const Plan<Accumulate<S>>& plan, const SpectralFilterParams& params, int64_t begin,
                         int64_t end) {
  using T = Accumulate<S>;
  using Small = SmallPlane<T, H, W>;
  const SpectralFilterGeometry& g = params.geometry;
  const bool reads_directly = std::is_same_v<S, T> && params.x.column == 1 && params.x.row == W;
  const bool writes_directly = std::is_same_v<S, T> && params.out.column == 1 && params.out.row == W;
  T* mask = nullptr;
  T* work = nullptr;
  T* staging = nullptr;
  const auto place = [&](Arena arena) {
    work = arena.take<T>(Small::work_size);
    mask = arena.take<T>(plan.masks == nullptr ? plan.mask_size : 0);
    staging = arena.take<T>(H * W);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  const Bounds<T> bounds = bounds_of<T>(g);
  int64_t prepared = -1;
  for (int64_t item = begin; item < end; item++) {
    const int64_t n = item / g.channels, c = item % g.channels;
    const PlaneView<const S> in = plane_view<const S>(params.x, n, 0, c);
    const PlaneView<S> out = plane_view<S>(params.out, n, 0, c);
    const int64_t entry = plan.entry(n);
    if (entry < 0) {
      copy_plane<S>(in, out, H, W);
      continue;
    }
    const int64_t id = plan.mask_id(entry, 0, c);
    if (plan.masks == nullptr && prepared != id) {
      cpu::prepare_mask(plan, id, mask);
      prepared = id;
    }
    const Small plane(plan.masks == nullptr ? mask : plan.masks + id * plan.mask_size, work);
    const T* from = staging;
    T* to = staging;
    Prefetch prefetch;
    if constexpr (std::is_same_v<S, T>) {
      from = reads_directly ? in.data : from;
      to = writes_directly ? out.data : to;
    }
    if (reads_directly && writes_directly) {
      const int64_t after = item + 1 < end ? item + 1 : item;
      prefetch.read =
          reinterpret_cast<const char*>(plane_view<const S>(params.x, after / g.channels, 0, after % g.channels).data);
      prefetch.write = reinterpret_cast<const char*>(out.data);
      prefetch.bytes = (H * W * sizeof(S) / Small::steps + 63) / 64 * 64;
      prefetch.near = true;
    }
    if (!reads_directly) {
      copy_plane_as<S>(in, PlaneView<T>{staging, W, 1}, H, W);
    }
    if (g.clip) {
      plane.template run<true>(from, to, bounds, prefetch);
    } else {
      plane.template run<false>(from, to, bounds, prefetch);
    }
    if (!writes_directly) {
      copy_plane_as<T>(PlaneView<const T>{staging, W, 1}, out, H, W);
    }
  }
}

template <typename S>
void filter_planes(const Plan<Accumulate<S>>& plan, const SpectralFilterParams& params, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const SpectralFilterGeometry& g = params.geometry;
  if constexpr (cpu::is_small_plane(32, 32, kLanes<T>)) {
    if (plan.small) {
      return g.height == 28 ? filter_small_planes<S, 28, 28>(plan, params, begin, end)
                            : filter_small_planes<S, 32, 32>(plan, params, begin, end);
    }
  }
  const bool stages = needs_staging<S>(params.x, g) || needs_staging<S>(params.out, g);
  Task<T> task = make_task<T>(plan, g.many > 1, stages, false);
  const Bounds<T> bounds = bounds_of<T>(g);
  for (int64_t item = begin; item < end; item++) {
    const int64_t n = item / g.channels, c = item % g.channels;
    const PlaneView<const S> in = plane_view<const S>(params.x, n, 0, c);
    const int64_t entry = plan.entry(n);
    if (entry < 0) {
      copy_plane<S>(in, plane_view<S>(params.out, n, 0, c), g.height, g.width);
      continue;
    }
    forward_plane<S, T>(plan, in, task.work, task.staging);
    if (g.many == 1) {
      const int64_t after = item + 1 < end ? item + 1 : item;
      const PlaneView<S> out = plane_view<S>(params.out, n, 0, c);
      const PlaneView<const S> next = plane_view<const S>(params.x, after / g.channels, 0, after % g.channels);
      Prefetch prefetch = prefetch_of<S, T>(plan, next, out);
      filter_rows(plan, task.work, prepared_mask(plan, task, plan.mask_id(entry, 0, c)), prefetch);
      inverse_plane<S, T>(plan, task.work, out, bounds, task.staging);
      continue;
    }
    forward_rows(plan.plane, task.work);
    for (int64_t t = 0; t < g.many; t++) {
      multiply_spectrum(plan, task.work, prepared_mask(plan, task, plan.mask_id(entry, t, c)), task.other);
      inverse_rows(plan.plane, task.other, 0, plan.plane.strips);
      inverse_plane<S, T>(plan, task.other, plane_view<S>(params.out, n, t, c), bounds, task.staging);
    }
  }
}

// The gradient at the unclamped result, forward along both axes: grad_out, or 0 where the clamp holds, which the filter
// is run again to see. The result is in `work`; `spare` is used on the way where there is a clamp.
template <typename S, typename T>
void forward_gradient(const Plan<T>& plan, const SpectralFilterBackwardParams& params, Task<T>& task, int64_t n,
                      int64_t t, int64_t c, const Work<T>& work) {
  const SpectralFilterGeometry& g = params.geometry;
  const PlaneView<const S> grad = plane_view<const S>(params.grad_out, n, t, c);
  if (!g.clip) {
    forward_plane<S, T>(plan, grad, work, task.staging);
    return;
  }
  Prefetch none;
  const Bounds<T> bounds = bounds_of<T>(g), unbounded = {false, 0, 0};
  forward_plane<S, T>(plan, plane_view<const S>(params.x, n, 0, c), work, task.staging);
  filter_rows(plan, work, prepared_mask(plan, task, plan.mask_id(plan.entry(n), t, c)), none);
  inverse_columns<T, T>(plan.plane, work, {task.staging, g.width}, unbounded);
  for (int64_t h = 0; h < g.height; h++) {
    for (int64_t w = 0; w < g.width; w++) {
      T& at = task.staging[h * g.width + w];
      at = at >= bounds.low && at <= bounds.high ? to_accumulate(grad.data[h * grad.row + w * grad.column]) : T(0);
    }
  }
  forward_columns<T, T>(plan.plane, {task.staging, g.width}, work);
}

template <typename S>
void grad_x(const Plan<Accumulate<S>>& plan, const SpectralFilterBackwardParams& params, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const SpectralFilterGeometry& g = params.geometry;
  const bool stages = g.clip || needs_staging<S>(params.grad_out, g) || needs_staging<S>(params.grad_x, g);
  Task<T> task = make_task<T>(plan, g.many > 1, stages, false);
  const Bounds<T> unbounded = {false, 0, 0};
  Prefetch none;
  for (int64_t item = begin; item < end; item++) {
    const int64_t n = item / g.channels, c = item % g.channels;
    const PlaneView<S> to = plane_view<S>(params.grad_x, n, 0, c);
    const int64_t entry = plan.entry(n);
    if (entry < 0) {
      copy_plane<S>(plane_view<const S>(params.grad_out, n, 0, c), to, g.height, g.width);
      continue;
    }
    if (g.many == 1) {
      forward_gradient<S, T>(plan, params, task, n, 0, c, task.work);
      filter_rows(plan, task.work, prepared_mask(plan, task, plan.mask_id(entry, 0, c)), none);
      inverse_plane<S, T>(plan, task.work, to, unbounded, task.staging);
      continue;
    }
    const int64_t size = plan.plane.spectrum_size;
    for (int64_t at = 0; at < size; at += kLanes<T>) {
      store(task.other.spectrum_r + at, zero<T>());
      store(task.other.spectrum_i + at, zero<T>());
    }
    for (int64_t t = 0; t < g.many; t++) {
      forward_gradient<S, T>(plan, params, task, n, t, c, task.work);
      forward_rows(plan.plane, task.work);
      multiply_spectrum(plan, task.work, prepared_mask(plan, task, plan.mask_id(entry, t, c)), task.work);
      for (int64_t at = 0; at < size; at += kLanes<T>) {
        store(task.other.spectrum_r + at, load(task.other.spectrum_r + at) + load(task.work.spectrum_r + at));
        store(task.other.spectrum_i + at, load(task.other.spectrum_i + at) + load(task.work.spectrum_i + at));
      }
    }
    inverse_rows(plan.plane, task.other, 0, plan.plane.strips);
    inverse_plane<S, T>(plan, task.other, to, unbounded, task.staging);
  }
}

template <typename S>
void grad_mask(const Plan<Accumulate<S>>& plan, const SpectralFilterBackwardParams& params, int64_t begin,
               int64_t end) {
  using T = Accumulate<S>;
  const SpectralFilterGeometry& g = params.geometry;
  const bool stages = g.clip || needs_staging<S>(params.grad_out, g) || needs_staging<S>(params.x, g);
  Task<T> task = make_task<T>(plan, true, stages, plan.partials == nullptr);
  const int64_t size = plan.plane.spectrum_size;
  for (int64_t item = begin; item < end; item++) {
    const int64_t id = item / plan.pieces, piece = item % plan.pieces;
    const int64_t entry = id / (g.many * g.mask_channels), t = id / g.mask_channels % g.many;
    const int64_t first_channel = g.mask_channels > 1 ? id % g.mask_channels : 0;
    const int64_t channels = g.mask_channels > 1 ? 1 : g.channels;
    T* sum = plan.partials == nullptr ? task.sum : plan.partials + item * size;
    for (int64_t at = 0; at < size; at += kLanes<T>) {
      store(sum + at, zero<T>());
    }
    int64_t of_entry = 0;  // images of this entry so far: each `pieces`-th is this task's
    for (int64_t n = 0; n < g.batch; n++) {
      if (plan.entry(n) != entry || of_entry++ % plan.pieces != piece) {
        continue;
      }
      for (int64_t c = first_channel; c < first_channel + channels; c++) {
        forward_gradient<S, T>(plan, params, task, n, t, c, task.other);
        forward_rows(plan.plane, task.other);
        forward_plane<S, T>(plan, plane_view<const S>(params.x, n, 0, c), task.work, task.staging);
        forward_rows(plan.plane, task.work);
        for (int64_t at = 0; at < size; at += kLanes<T>) {
          const Vec<T> real = load(task.work.spectrum_r + at) * load(task.other.spectrum_r + at);
          const Vec<T> imaginary = load(task.work.spectrum_i + at) * load(task.other.spectrum_i + at);
          store(sum + at, load(sum + at) + (real + imaginary));
        }
      }
    }
    if (plan.partials == nullptr) {
      cpu::finish_mask_gradient(plan, params.grad_mask, id, sum);
    }
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
