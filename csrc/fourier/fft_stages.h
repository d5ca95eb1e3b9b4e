// The stages of a transform along one axis, for a row of vectors: sample j is the vector at r + j * stride (and i), so
// each lane carries a transform of its own. fft_plan.h says how the stages fit together.
#pragma once

#include <cstddef>

#include "fourier/fft_butterflies.h"
#include "fourier/fft_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Cache lines to ask for on the way, a few with each butterfly: the next plane's pixels, this plane's results. May go a
// few lines past them, which does no harm.
struct Prefetch {
  const char* read = nullptr;
  const char* write = nullptr;
  ptrdiff_t bytes = 0;  // of each, with a butterfly: a multiple of a line
  bool near = false;    // into the first level of the cache, for planes that leave room there

  STURDY_ALWAYS_INLINE void step() {
    const char* from = read;
    const char* to = write;
    for (const char* const end = from + bytes; from < end; from += 64, to += 64) {
      if (near) {
        __builtin_prefetch(from, 0, 3);
      } else {
        __builtin_prefetch(from, 0, 2);
      }
#if defined(__AVX512F__)  // every machine that has it can also ask for a line to write
      asm volatile("prefetchw %0" : : "m"(*to));
#else
      __builtin_prefetch(to, 1, 3);
#endif
    }
    read = from;
    write = to;
  }
};

template <typename T>
struct StageCall {
  const T *from_r, *from_i;
  T *to_r, *to_i;
  ptrdiff_t from_stride, to_stride;  // elements between samples
  int64_t blocks, spacing;           // see FftStage
  const T* rotations;
  const T* mask;  // (blocks, radix, lanes), for filter stages
  Prefetch* prefetch;
};

// A transform of what get(k, r, i) gives, to put(k, r, i).
template <typename T, int R, typename Get, typename Put>
STURDY_ALWAYS_INLINE void run_butterfly(const Get& get, const Put& put) {
  if constexpr (is_large_prime(R)) {
    Butterfly<T, R>::run_through(get, put);
  } else {
    Vec<T> r[R], i[R];
    STURDY_UNROLL
    for (int k = 0; k < R; k++) {
      get(k, r[k], i[k]);
    }
    Butterfly<T, R>::run(r, i);
    STURDY_UNROLL
    for (int k = 0; k < R; k++) {
      put(k, r[k], i[k]);
    }
  }
}

template <typename T, int R, bool rotated>
STURDY_ALWAYS_INLINE void forward_butterfly(const T* from_r, const T* from_i, ptrdiff_t from_step, T* to_r, T* to_i,
                                            ptrdiff_t to_step, const T* rotation) {
  const auto get = [&](int k, Vec<T>& r, Vec<T>& i) STURDY_INLINE_LAMBDA {
    r = load(from_r + k * from_step);
    i = load(from_i + k * from_step);
  };
  const auto put = [&](int k, Vec<T> r, Vec<T> i) STURDY_INLINE_LAMBDA {
    if (rotated && k > 0) {
      const Vec<T> c = broadcast(rotation[2 * k - 2]), s = broadcast(rotation[2 * k - 1]);
      const Vec<T> t = r * c + i * s;
      i = i * c - r * s;
      r = t;
    }
    store(to_r + k * to_step, r);
    store(to_i + k * to_step, i);
  };
  run_butterfly<T, R>(get, put);
}

template <typename T, int R, bool rotated>
STURDY_ALWAYS_INLINE void inverse_butterfly(const T* from_r, const T* from_i, ptrdiff_t from_step, T* to_r, T* to_i,
                                            ptrdiff_t to_step, const T* rotation) {
  // The inverse is the transform of real and imaginary parts exchanged.
  const auto get = [&](int k, Vec<T>& i, Vec<T>& r) STURDY_INLINE_LAMBDA {
    r = load(from_r + k * from_step);
    i = load(from_i + k * from_step);
    if (rotated && k > 0) {
      const Vec<T> c = broadcast(rotation[2 * k - 2]), s = broadcast(rotation[2 * k - 1]);
      const Vec<T> t = r * c - i * s;
      i = i * c + r * s;
      r = t;
    }
  };
  const auto put = [&](int k, Vec<T> i, Vec<T> r) STURDY_INLINE_LAMBDA {
    store(to_r + k * to_step, r);
    store(to_i + k * to_step, i);
  };
  run_butterfly<T, R>(get, put);
}

template <typename T, int R>
void forward_stage(const StageCall<T>& call) {
  const ptrdiff_t from_step = call.spacing * call.from_stride;
  const ptrdiff_t to_step = call.spacing * call.to_stride;
  for (int64_t b = 0; b < call.blocks; b++) {
    const T* from_r = call.from_r + b * R * from_step;
    const T* from_i = call.from_i + b * R * from_step;
    T* to_r = call.to_r + b * R * to_step;
    T* to_i = call.to_i + b * R * to_step;
    forward_butterfly<T, R, false>(from_r, from_i, from_step, to_r, to_i, to_step, nullptr);
    call.prefetch->step();
    const T* rotation = call.rotations;
    for (int64_t n = 1; n < call.spacing; n++) {
      from_r += call.from_stride;
      from_i += call.from_stride;
      to_r += call.to_stride;
      to_i += call.to_stride;
      forward_butterfly<T, R, true>(from_r, from_i, from_step, to_r, to_i, to_step, rotation);
      call.prefetch->step();
      rotation += 2 * (R - 1);
    }
  }
}

template <typename T, int R>
void inverse_stage(const StageCall<T>& call) {
  const ptrdiff_t from_step = call.spacing * call.from_stride;
  const ptrdiff_t to_step = call.spacing * call.to_stride;
  for (int64_t b = 0; b < call.blocks; b++) {
    const T* from_r = call.from_r + b * R * from_step;
    const T* from_i = call.from_i + b * R * from_step;
    T* to_r = call.to_r + b * R * to_step;
    T* to_i = call.to_i + b * R * to_step;
    inverse_butterfly<T, R, false>(from_r, from_i, from_step, to_r, to_i, to_step, nullptr);
    call.prefetch->step();
    const T* rotation = call.rotations;
    for (int64_t n = 1; n < call.spacing; n++) {
      from_r += call.from_stride;
      from_i += call.from_stride;
      to_r += call.to_stride;
      to_i += call.to_stride;
      inverse_butterfly<T, R, true>(from_r, from_i, from_step, to_r, to_i, to_step, rotation);
      call.prefetch->step();
      rotation += 2 * (R - 1);
    }
  }
}

// The first stage of a coprime axis: butterfly n takes the samples n * shift + k * spacing modulo the size. The shift
// is R where samples have their natural order, 1 where they stand in their slots.
template <typename T, int R>
void forward_coprime_stage(const StageCall<T>& call, ptrdiff_t shift) {
  const ptrdiff_t spacing = call.spacing, size = R * spacing;
  for (ptrdiff_t n = 0; n < spacing; n++) {
    const auto get = [&](int k, Vec<T>& r, Vec<T>& i) STURDY_INLINE_LAMBDA {
      const ptrdiff_t turn = n * shift + k * spacing;
      const ptrdiff_t at = (turn < size ? turn : turn - size) * call.from_stride;
      r = load(call.from_r + at);
      i = load(call.from_i + at);
    };
    const auto put = [&](int k, Vec<T> r, Vec<T> i) STURDY_INLINE_LAMBDA {
      const ptrdiff_t at = (n + k * spacing) * call.to_stride;
      store(call.to_r + at, r);
      store(call.to_i + at, i);
    };
    run_butterfly<T, R>(get, put);
    call.prefetch->step();
  }
}

// The last stage back, its results in either order.
template <typename T, int R>
void inverse_coprime_stage(const StageCall<T>& call, ptrdiff_t shift) {
  const ptrdiff_t spacing = call.spacing, size = R * spacing;
  for (ptrdiff_t n = 0; n < spacing; n++) {
    const auto get = [&](int k, Vec<T>& i, Vec<T>& r) STURDY_INLINE_LAMBDA {
      const ptrdiff_t at = (n + k * spacing) * call.from_stride;
      r = load(call.from_r + at);
      i = load(call.from_i + at);
    };
    const auto put = [&](int k, Vec<T> i, Vec<T> r) STURDY_INLINE_LAMBDA {
      const ptrdiff_t turn = n * shift + k * spacing;
      const ptrdiff_t at = (turn < size ? turn : turn - size) * call.to_stride;
      store(call.to_r + at, r);
      store(call.to_i + at, i);
    };
    run_butterfly<T, R>(get, put);
    call.prefetch->step();
  }
}

// The last stage forward, a product with the mask, and the first stage of the inverse, in registers and in place.
template <typename T, int R>
void filter_stage(const StageCall<T>& call) {
  constexpr int lanes = kLanes<T>;
  for (int64_t b = 0; b < call.blocks; b++) {
    T* at_r = call.to_r + b * R * lanes;
    T* at_i = call.to_i + b * R * lanes;
    const T* mask = call.mask + b * R * lanes;
    Vec<T> r[R], i[R];
    const auto get = [&](int k, Vec<T>& to_r, Vec<T>& to_i) STURDY_INLINE_LAMBDA {
      to_r = load(at_r + k * lanes);
      to_i = load(at_i + k * lanes);
    };
    const auto multiply = [&](int k, Vec<T> from_r, Vec<T> from_i) STURDY_INLINE_LAMBDA {
      const Vec<T> m = load(mask + k * lanes);
      r[k] = from_r * m;
      i[k] = from_i * m;
    };
    run_butterfly<T, R>(get, multiply);
    const auto get_product = [&](int k, Vec<T>& to_i, Vec<T>& to_r) STURDY_INLINE_LAMBDA {
      to_r = r[k];
      to_i = i[k];
    };
    const auto put = [&](int k, Vec<T> from_i, Vec<T> from_r) STURDY_INLINE_LAMBDA {
      store(at_r + k * lanes, from_r);
      store(at_i + k * lanes, from_i);
    };
    run_butterfly<T, R>(get_product, put);
    call.prefetch->step();
  }
}

// p z(l) + q conj z(-l) for a pair of frequencies l and -l; q is even.
template <typename T>
STURDY_ALWAYS_INLINE void mix_pair(Vec<T>& ar, Vec<T>& ai, Vec<T>& br, Vec<T>& bi, Vec<T> pa, Vec<T> pb, Vec<T> q) {
  const Vec<T> xr = ar, xi = ai, yr = br, yi = bi;
  ar = pa * xr + q * yr;
  ai = pa * xi - q * yi;
  br = pb * yr + q * xr;
  bi = pb * yi - q * xi;
}

// The same as filter_stage for a row that holds two spectra: with the masks p and q, see mix_pair. A block holds the
// frequencies f + k * blocks, so that of -f holds their mirror images, and the two are worked on together.
template <typename T, int R>
void packed_filter_stage(const StageCall<T>& call, const T* q_mask, const int64_t* places) {
  constexpr int lanes = kLanes<T>;
  const int64_t blocks = call.blocks;
  for (int64_t f = 0; 2 * f <= blocks; f++) {
    const int64_t a = places[f] * lanes;
    T *ar = call.to_r + a, *ai = call.to_i + a;
    const T *pa = call.mask + a, *q = q_mask + a;
    Vec<T> r[R], i[R];
    STURDY_UNROLL
    for (int k = 0; k < R; k++) {
      r[k] = load(ar + k * lanes);
      i[k] = load(ai + k * lanes);
    }
    Butterfly<T, R>::run(r, i);
    if (f == 0 || 2 * f == blocks) {  // its own mirror image
      const auto mix = [&](int k, int m) STURDY_INLINE_LAMBDA {
        Vec<T> yr = r[m], yi = i[m];
        mix_pair(r[k], i[k], yr, yi, load(pa + k * lanes), load(pa + m * lanes), load(q + k * lanes));
        if (m != k) {
          r[m] = yr;
          i[m] = yi;
        }
      };
      if (f == 0) {
        STURDY_UNROLL
        for (int k = 0; 2 * k <= R; k++) {
          mix(k, (R - k) % R);
        }
      } else {
        STURDY_UNROLL
        for (int k = 0; 2 * k < R; k++) {
          mix(k, R - 1 - k);
        }
      }
    } else {
      const int64_t b = places[blocks - f] * lanes;
      T *br = call.to_r + b, *bi = call.to_i + b;
      const T* pb = call.mask + b;
      Vec<T> u[R], v[R];
      STURDY_UNROLL
      for (int k = 0; k < R; k++) {
        u[k] = load(br + k * lanes);
        v[k] = load(bi + k * lanes);
      }
      Butterfly<T, R>::run(u, v);
      STURDY_UNROLL
      for (int k = 0; k < R; k++) {
        const int m = R - 1 - k;
        mix_pair(r[k], i[k], u[m], v[m], load(pa + k * lanes), load(pb + m * lanes), load(q + k * lanes));
      }
      Butterfly<T, R>::run(v, u);
      STURDY_UNROLL
      for (int k = 0; k < R; k++) {
        store(br + k * lanes, u[k]);
        store(bi + k * lanes, v[k]);
      }
      call.prefetch->step();
    }
    Butterfly<T, R>::run(i, r);
    STURDY_UNROLL
    for (int k = 0; k < R; k++) {
      store(ar + k * lanes, r[k]);
      store(ai + k * lanes, i[k]);
    }
    call.prefetch->step();
  }
}

template <typename T>
struct StageKernels {
  void (*forward)(const StageCall<T>&);
  void (*inverse)(const StageCall<T>&);
  void (*filter)(const StageCall<T>&);
  void (*packed_filter)(const StageCall<T>&, const T* q_mask, const int64_t* places);
  void (*forward_coprime)(const StageCall<T>&, ptrdiff_t shift);  // of odd radices
  void (*inverse_coprime)(const StageCall<T>&, ptrdiff_t shift);
};

template <typename T, int R>
constexpr StageKernels<T> kernels_of_stage() {
  StageKernels<T> kernels = {
      forward_stage<T, R>, inverse_stage<T, R>, filter_stage<T, R>, packed_filter_stage<T, R>, nullptr, nullptr};
  if constexpr (R % 2 == 1) {
    kernels.forward_coprime = forward_coprime_stage<T, R>;
    kernels.inverse_coprime = inverse_coprime_stage<T, R>;
  }
  return kernels;
}

template <typename T, int R>
inline constexpr StageKernels<T> kStage = kernels_of_stage<T, R>();

// The radices of fft_plan.cpp.
template <typename T>
const StageKernels<T>& stage_kernels(int radix) {
  switch (radix) {
    case 2:
      return kStage<T, 2>;
    case 3:
      return kStage<T, 3>;
    case 4:
      return kStage<T, 4>;
    case 5:
      return kStage<T, 5>;
    case 6:
      return kStage<T, 6>;
    case 7:
      return kStage<T, 7>;
    case 8:
      return kStage<T, 8>;
    case 9:
      return kStage<T, 9>;
    case 10:
      return kStage<T, 10>;
    case 11:
      return kStage<T, 11>;
    case 12:
      return kStage<T, 12>;
    case 13:
      return kStage<T, 13>;
    case 14:
      return kStage<T, 14>;
    case 16:
      return kStage<T, 16>;
    case 17:
      return kStage<T, 17>;
    case 19:
      return kStage<T, 19>;
    case 23:
      return kStage<T, 23>;
    case 29:
      return kStage<T, 29>;
    default:
      return kStage<T, 31>;
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
