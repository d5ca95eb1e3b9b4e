// amplitude_mix on images: the spectra of two of them, a walk over both, and one spectrum back.
#pragma once

#include "fourier/amplitude_mix_cpu_plan.h"
#include "fourier/plane_spectrum.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// The half spectra of the planes that are transformed together, and whose they are.
template <typename T>
struct ImageSpectrum {
  T *r, *i;
  int64_t stride;           // elements from a plane to the next
  int64_t image = -1;       // of `x` or `other`, as the call goes; -1: nobody's
  int64_t channel = 0;      // the first
  int64_t row_window = -1;  // strips with rows nearer to 0 than this are transformed along the rows, too
};

template <typename T>
struct MixTask {
  cpu::FftPlaneWork<T> work;  // without a spectrum of its own
  ImageSpectrum<T> own, partner;
  T* colors;  // (8, channels.length, lanes): a frequency of all channels, for DynamicColors
  T* copy;    // a compact plane

  static cpu::FftPlanePlan<T> columns_only(cpu::FftPlanePlan<T> plan) {
    plan.spectrum_size = 0;
    return plan;
  }

  MixTask(const cpu::AmplitudeMixPlan<T>& plan, Arena& arena, bool dynamic_colors, bool copies)
      : work(columns_only(plan.plane), arena), colors(nullptr), copy(nullptr) {
    constexpr int64_t apart = 192 / static_cast<int64_t>(sizeof(T));  // see FftPlaneWork
    for (ImageSpectrum<T>* spectrum : {&own, &partner}) {
      spectrum->stride = plan.plane.spectrum_size + apart;
      spectrum->r = arena.take<T>(spectrum->stride * plan.together);
      spectrum->i = arena.take<T>(spectrum->stride * plan.together);
    }
    if (dynamic_colors) {
      colors = arena.take<T>(8 * plan.channels.length * kLanes<T>);
    }
    if (copies) {
      copy = arena.take<T>(plan.plane.height * plan.plane.width);
    }
  }

  cpu::FftPlaneWork<T> with(const ImageSpectrum<T>& spectrum, int64_t plane) const {
    cpu::FftPlaneWork<T> one = work;
    one.spectrum_r = spectrum.r + plane * spectrum.stride;
    one.spectrum_i = spectrum.i + plane * spectrum.stride;
    return one;
  }
};

// ---- one frequency of all channels, transformed along them ----

template <typename T>
struct Complex {
  Vec<T> r, i;
};

// In registers.
template <typename T, int C>
struct StaticColors {
  static_assert(C == 1 || C == 3, "those that are worth it");
  Vec<T> r[C], i[C];

  STURDY_ALWAYS_INLINE StaticColors(const cpu::AmplitudeMixPlan<T>&, const MixTask<T>&, int) {}

  // body(c, the frequency that mirrors it)
  template <typename Body>
  static STURDY_ALWAYS_INLINE void each(const Body& body) {
    STURDY_UNROLL
    for (int c = 0; c < C; c++) {
      body(c, (C - c) % C);
    }
  }

  STURDY_ALWAYS_INLINE void load_from(const ImageSpectrum<T>& spectrum, int64_t at) {
    STURDY_UNROLL
    for (int c = 0; c < C; c++) {
      r[c] = load(spectrum.r + c * spectrum.stride + at);
      i[c] = load(spectrum.i + c * spectrum.stride + at);
    }
    if constexpr (C > 1) {
      Butterfly<T, C>::run(r, i);
    }
  }
  STURDY_ALWAYS_INLINE void store_to(const ImageSpectrum<T>& spectrum, int64_t at) {
    if constexpr (C > 1) {
      Butterfly<T, C>::run(i, r);
    }
    STURDY_UNROLL
    for (int c = 0; c < C; c++) {
      store(spectrum.r + c * spectrum.stride + at, r[c]);
      store(spectrum.i + c * spectrum.stride + at, i[c]);
    }
  }
  STURDY_ALWAYS_INLINE Complex<T> get(int64_t c) const { return {r[c], i[c]}; }
  STURDY_ALWAYS_INLINE void set(int64_t c, Complex<T> value) {
    r[c] = value.r;
    i[c] = value.i;
  }
};

// In memory, any number of them.
template <typename T>
struct DynamicColors {
  const cpu::FftAxis<T>* axis;
  T *r, *i;

  DynamicColors(const cpu::AmplitudeMixPlan<T>& plan, const MixTask<T>& task, int which) : axis(&plan.channels) {
    const int64_t size = axis->length * kLanes<T>;
    r = task.colors + 2 * which * size;
    i = r + size;
  }

  template <typename Body>
  STURDY_ALWAYS_INLINE void each(const Body& body) const {
    for (int64_t c = 0; c < axis->size; c++) {
      body(c, c == 0 ? 0 : axis->size - c);
    }
  }

  void load_from(const ImageSpectrum<T>& spectrum, int64_t at) {
    Prefetch none;
    forward_axis<T>(*axis, spectrum.r + at, spectrum.i + at, spectrum.stride, r, i, none);
  }
  void store_to(const ImageSpectrum<T>& spectrum, int64_t at) {
    Prefetch none;
    inverse_axis<T>(*axis, r, i, spectrum.r + at, spectrum.i + at, spectrum.stride, none);
  }
  STURDY_ALWAYS_INLINE Complex<T> get(int64_t c) const {
    const int64_t at = axis->places[c] * kLanes<T>;
    return {load(r + at), load(i + at)};
  }
  STURDY_ALWAYS_INLINE void set(int64_t c, Complex<T> value) {
    const int64_t at = axis->places[c] * kLanes<T>;
    store(r + at, value.r);
    store(i + at, value.i);
  }
};

// ---- the mixture ----

// Of one image, with everything in it that scales.
template <typename T>
struct Mixture {
  T keep, take;   // (1 - strength) and strength
  T scale;        // for frequencies outside of the window that are transformed along the channels
  T plane_scale;  // and for those that are not
  T least_square;
  int64_t row_window, column_window;
};

// What one strip's rows make of it: a row outside of the window takes nothing.
template <typename T>
struct StripMixture {
  Vec<T> keep, take;
};

template <typename T>
STURDY_ALWAYS_INLINE Complex<T> mixed(Complex<T> own, Complex<T> partner, const StripMixture<T>& mixture,
                                      Vec<T> least_square) {
  const Vec<T> one = broadcast(T(1));
  Vec<T> square = own.r * own.r + own.i * own.i;
  const Vec<T> wanted = square_root(partner.r * partner.r + partner.i * partner.i) * mixture.take;
  const auto noise = square.v < least_square.v;  // not where there is a NaN
  square.v = noise ? one.v : square.v;
  const Vec<T> amplitude = square_root(square);
  Vec<T> gain = {wanted.v / amplitude.v};
  gain.v = noise ? zero<T>().v : gain.v;
  gain = gain + mixture.keep;
  Vec<T> added = wanted;
  added.v = noise ? added.v : zero<T>().v;
  return {own.r * gain + added, own.i * gain};
}

// Lane j of a strip holds the row of frequency frequencies[j]; `half` stands in for the first lane of a packed strip's
// other spectrum, -1 for none.
template <typename T>
StripMixture<T> strip_mixture(const Mixture<T>& mixture, const int64_t* frequencies, int64_t height, int64_t half) {
  T keep[kLanes<T>], take[kLanes<T>];
  for (int64_t lane = 0; lane < kLanes<T>; lane++) {
    const int64_t k = lane == 0 && half >= 0 ? half : frequencies[lane];
    const bool inside = lesser(k, height - k) <= mixture.row_window;
    keep[lane] = inside ? mixture.keep : mixture.scale;
    take[lane] = inside ? mixture.take : T(0);
  }
  return {load(keep), load(take)};
}

template <typename T>
void scale_vectors(const ImageSpectrum<T>& spectrum, int64_t planes, int64_t at, T scale) {
  const Vec<T> s = broadcast(scale);
  for (int64_t plane = 0; plane < planes; plane++) {
    T* r = spectrum.r + plane * spectrum.stride + at;
    T* i = spectrum.i + plane * spectrum.stride + at;
    store(r, load(r) * s);
    store(i, load(i) * s);
  }
}

// The strip whose first lane holds two spectra. The mirror image of frequency (c, l) of row 0 or H / 2 is (-c, -l).
template <typename T, typename Colors>
void mix_packed_strip(const cpu::AmplitudeMixPlan<T>& plan, const MixTask<T>& task, const Mixture<T>& mixture) {
  const int64_t width = plan.plane.width, height = plan.plane.height;
  const int64_t* places = plan.plane.rows.places;
  const StripMixture<T> first = strip_mixture(mixture, plan.plane.frequencies, height, -1);
  const StripMixture<T> second = strip_mixture(mixture, plan.plane.frequencies, height, height / 2);
  const Vec<T> least_square = broadcast(mixture.least_square);
  for (int64_t l = 0; 2 * l <= width; l++) {
    const int64_t at = places[l] * kLanes<T>, mirrored = places[l == 0 ? 0 : width - l] * kLanes<T>;
    if (l > mixture.column_window) {
      scale_vectors(task.own, plan.together, at, mixture.plane_scale);
      if (mirrored != at) {
        scale_vectors(task.own, plan.together, mirrored, mixture.plane_scale);
      }
      continue;
    }
    Colors own_a(plan, task, 0), own_b(plan, task, 1), partner_a(plan, task, 2), partner_b(plan, task, 3);
    own_a.load_from(task.own, at);
    own_b.load_from(task.own, mirrored);
    partner_a.load_from(task.partner, at);
    partner_b.load_from(task.partner, mirrored);
    own_a.each([&](int64_t c, int64_t mirrored_c) STURDY_INLINE_LAMBDA {
      Complex<T> a = own_a.get(c), b = own_b.get(mirrored_c);
      Complex<T> pa = partner_a.get(c), pb = partner_b.get(mirrored_c);
      unpack(a.r, a.i, b.r, b.i);
      unpack(pa.r, pa.i, pb.r, pb.i);
      a = mixed(a, pa, first, least_square);
      b = mixed(b, pb, second, least_square);
      pack(a.r, a.i, b.r, b.i);
      own_a.set(c, a);
      own_b.set(mirrored_c, b);
    });
    own_a.store_to(task.own, at);
    own_b.store_to(task.own, mirrored);  // the same again where a frequency is its own mirror image
  }
}

template <typename T, typename Colors>
STURDY_ALWAYS_INLINE void mix_bin(const cpu::AmplitudeMixPlan<T>& plan, const MixTask<T>& task, int64_t at,
                                  const StripMixture<T>& mixture, Vec<T> least_square) {
  Colors own(plan, task, 0), partner(plan, task, 1);
  own.load_from(task.own, at);
  partner.load_from(task.partner, at);
  own.each([&](int64_t c, int64_t)
               STURDY_INLINE_LAMBDA { own.set(c, mixed(own.get(c), partner.get(c), mixture, least_square)); });
  own.store_to(task.own, at);
}

template <typename T, typename Colors>
void mix_strip(const cpu::AmplitudeMixPlan<T>& plan, const MixTask<T>& task, const Mixture<T>& mixture, int64_t strip) {
  const int64_t width = plan.plane.width, begin = strip * width * kLanes<T>;
  const StripMixture<T> rows =
      strip_mixture(mixture, plan.plane.frequencies + strip * kLanes<T>, plan.plane.height, -1);
  const Vec<T> least_square = broadcast(mixture.least_square);
  if (2 * mixture.column_window >= width - 1) {
    for (int64_t j = 0; j < width; j++) {
      mix_bin<T, Colors>(plan, task, begin + j * kLanes<T>, rows, least_square);
    }
    return;
  }
  for (int64_t l = 0; l < width; l++) {
    const int64_t at = begin + plan.plane.rows.places[l] * kLanes<T>;
    if (lesser(l, width - l) > mixture.column_window) {
      scale_vectors(task.own, plan.together, at, mixture.plane_scale);
    } else {
      mix_bin<T, Colors>(plan, task, at, rows, least_square);
    }
  }
}

// From the columns' spectra of both to those of the mixture, a strip at a time.
template <typename T, typename Colors>
void mix_rows(const cpu::AmplitudeMixPlan<T>& plan, const MixTask<T>& task, const Mixture<T>& mixture, bool own_is_done,
              bool partner_is_done, Prefetch& with_own, Prefetch& with_partner) {
  const int64_t strip_size = plan.plane.width * kLanes<T>;
  for (int64_t strip = 0; strip < plan.plane.strips; strip++) {
    const int64_t begin = strip * strip_size;
    if (plan.nearest[strip] > mixture.row_window) {
      for (int64_t at = begin; at < begin + strip_size; at += kLanes<T>) {
        scale_vectors(task.own, plan.together, at, plan.scale_of_columns);
      }
      continue;
    }
    for (int64_t p = 0; p < plan.together; p++) {
      if (!own_is_done) {
        const int64_t at = p * task.own.stride + begin;
        forward_strip(plan.plane, task.work, task.own.r + at, task.own.i + at, with_own);
      }
      if (!partner_is_done) {
        const int64_t at = p * task.partner.stride + begin;
        forward_strip(plan.plane, task.work, task.partner.r + at, task.partner.i + at, with_partner);
      }
    }
    if (strip == 0 && plan.plane.packed) {
      mix_packed_strip<T, Colors>(plan, task, mixture);
    } else {
      mix_strip<T, Colors>(plan, task, mixture, strip);
    }
    for (int64_t p = 0; p < plan.together; p++) {
      const int64_t at = p * task.own.stride + begin;
      inverse_strip(plan.plane, task.work, task.own.r + at, task.own.i + at, with_partner);
    }
  }
}

// ---- the op ----

template <typename T>
Mixture<T> mixture_of(const cpu::AmplitudeMixPlan<T>& plan, const AmplitudeMixParams& params, int64_t image) {
  double strength = params.strength;
  if (params.strengths != nullptr) {
    const int64_t at = image * params.strengths_stride;
    strength = params.strengths_are_double ? static_cast<const double*>(params.strengths)[at]
                                           : static_cast<const float*>(params.strengths)[at];
  }
  Mixture<T> mixture;
  mixture.keep = static_cast<T>((1 - strength) * plan.scale);
  mixture.take = static_cast<T>(strength * plan.scale);
  mixture.scale = plan.scale;
  mixture.plane_scale = plan.scale * static_cast<T>(plan.together);
  mixture.least_square = plan.least_square;
  mixture.row_window = plan.plane.height;
  mixture.column_window = plan.plane.width;
  if (params.windowed) {
    const int64_t* at = params.windows == nullptr ? params.window : params.windows + image * params.windows_stride[0];
    const int64_t step = params.windows == nullptr ? 1 : params.windows_stride[1];
    mixture.row_window = at[0];
    mixture.column_window = at[step];
    if (mixture.column_window < 0) {
      mixture.row_window = -1;
    }
    // Windows that reach as far are the same: spectra kept for one serve the other.
    mixture.row_window = greater(-1, lesser(mixture.row_window, plan.plane.height));
    mixture.column_window = lesser(mixture.column_window, plan.plane.width);
  }
  return mixture;
}

// The image of `other` whose amplitudes an image takes, -1 for none.
inline int64_t partner_of(const AmplitudeMixParams& params, int64_t image) {
  if (params.index != nullptr) {
    return params.index[image * params.index_stride];
  }
  return params.others == 1 ? 0 : image;
}

template <typename T>
int64_t strips_inside(const cpu::AmplitudeMixPlan<T>& plan, const Mixture<T>& mixture) {
  int64_t count = 0;
  for (int64_t strip = 0; strip < plan.plane.strips; strip++) {
    count += plan.nearest[strip] <= mixture.row_window ? 1 : 0;
  }
  return count;
}

template <typename S, typename T>
void columns_of(const cpu::AmplitudeMixPlan<T>& plan, const MixTask<T>& task, const ImageView& view, int64_t image,
                int64_t channel, int64_t row_window, ImageSpectrum<T>& spectrum) {
  for (int64_t p = 0; p < plan.together; p++) {
    strided_columns_forward<S, T>(plan.plane, strided_plane<const S>(view, image, channel + p), task.with(spectrum, p),
                                  task.copy);
  }
  spectrum.image = image;
  spectrum.channel = channel;
  spectrum.row_window = row_window;
}

template <typename S>
void copy_plane_of(const AmplitudeMixParams& params, int64_t image, int64_t channel) {
  const StridedPlane<const S> from = strided_plane<const S>(params.x, image, channel);
  const StridedPlane<S> to = strided_plane<S>(params.out, image, channel);
  for (int64_t h = 0; h < params.height; h++) {
    const S* source = from.data + h * from.row;
    S* target = to.data + h * to.row;
    if (from.column == 1 && to.column == 1) {
      std::memcpy(target, source, static_cast<size_t>(params.width) * sizeof(S));
      continue;
    }
    for (int64_t w = 0; w < params.width; w++) {
      target[w * to.column] = source[w * from.column];
    }
  }
}

template <typename S, typename Colors>
void mix_items(const cpu::AmplitudeMixPlan<Accumulate<S>>& plan, const AmplitudeMixParams& params, int64_t begin,
               int64_t end) {
  using T = Accumulate<S>;
  const bool copies = needs_copy(params.x, params.width) || needs_copy(params.other, params.width) ||
                      needs_copy(params.out, params.width);
  const bool dynamic = std::is_same_v<Colors, DynamicColors<T>>;
  Arena size(nullptr);
  MixTask<T>(plan, size, dynamic, copies);
  Arena arena(host_scratch(ScratchSlot::task, size.used()));
  MixTask<T> task(plan, arena, dynamic, copies);
  const Bounds<T> bounds = {params.clip, static_cast<T>(params.low), static_cast<T>(params.high)};
  const auto holds = [](const ImageSpectrum<T>& spectrum, int64_t image, int64_t channel, int64_t row_window) {
    return spectrum.image == image && spectrum.channel == channel && spectrum.row_window == row_window;
  };
  for (int64_t item = begin; item < end; item++) {
    const int64_t n = plan.order[item % params.batch], channel = item / params.batch;
    const int64_t from = partner_of(params, n);
    if (from < 0) {
      for (int64_t p = 0; p < plan.together; p++) {
        copy_plane_of<S>(params, n, channel + p);
      }
      continue;
    }
    Mixture<T> mixture = mixture_of(plan, params, n);
    if (params.from_x && from == n) {
      mixture.row_window = -1;  // an image's own amplitudes
    }
    const bool own_is_done = params.from_x && holds(task.partner, n, channel, mixture.row_window);
    if (own_is_done) {
      std::swap(task.own, task.partner);
      task.partner.image = -1;
    } else {
      columns_of<S, T>(plan, task, params.x, n, channel, mixture.row_window, task.own);
    }
    const bool partner_is_done = holds(task.partner, from, channel, mixture.row_window);
    if (!partner_is_done && mixture.row_window >= 0) {
      columns_of<S, T>(plan, task, params.other, from, channel, mixture.row_window, task.partner);
    }
    // What comes next is asked for while rows are transformed: its partner's planes and the lines of this result, and
    // its own planes where they are not its predecessor's partner's.
    Prefetch with_own, with_partner;
    if (item + 1 < end && mixture.row_window >= 0) {
      const int64_t strips = plan.together * strips_inside(plan, mixture);
      const int64_t after = plan.order[(item + 1) % params.batch], after_channel = (item + 1) / params.batch;
      const int64_t after_from = greater(0, partner_of(params, after));
      with_partner = planes_ahead<S, T>(plan.plane, params.other, params.out, after_from, n, after_channel,
                                        plan.together, partner_is_done ? strips : 2 * strips);
      if (!own_is_done) {
        with_own =
            planes_ahead<S, T>(plan.plane, params.x, params.x, after, after, after_channel, plan.together, strips);
      }
    }
    mix_rows<T, Colors>(plan, task, mixture, own_is_done, partner_is_done, with_own, with_partner);
    for (int64_t p = 0; p < plan.together; p++) {
      strided_columns_inverse<S, T>(plan.plane, task.with(task.own, p), strided_plane<S>(params.out, n, channel + p),
                                    bounds, task.copy);
    }
  }
}

template <typename S>
void mix_amplitudes(const cpu::AmplitudeMixPlan<Accumulate<S>>& plan, const AmplitudeMixParams& params, int64_t begin,
                    int64_t end) {
  using T = Accumulate<S>;
  switch (plan.together) {
    case 1:
      return mix_items<S, StaticColors<T, 1>>(plan, params, begin, end);
    case 3:
      return mix_items<S, StaticColors<T, 3>>(plan, params, begin, end);
    default:
      return mix_items<S, DynamicColors<T>>(plan, params, begin, end);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
