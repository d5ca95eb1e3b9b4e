// A filter for planes so small that both axes are transformed in a handful of butterflies whose size is known when this
// is compiled: even height and width, at most two vectors wide and of as many kept rows as a vector has lanes.
//
// The plane is a left and a right half, vectors of columns each. Down the columns one butterfly transforms real
// samples, so nothing has to be taken apart. Along the rows the first stage, of radix 2, is the sum and the difference
// of the two halves and needs no lane to move; what is left, one butterfly for the even frequencies and one for the odd
// ones, runs on rows that were turned. Between steps values go through a few kilobytes that stay in the
// first-level cache; every address is a constant away from one of three pointers.
//
// Rows of frequency 0 and height / 2 are one row, the latter as its imaginary part. As the butterflies back want them
// halved, so are their masks; see fft_real.h.
#pragma once

#include "fourier/fft_plane.h"
#include "fourier/fft_real.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template <typename T, int H, int W>
class SmallPlane {
 public:
  static constexpr int64_t work_size = (4 * kLanes<T> + 2 * W) * kLanes<T>;  // elements

  SmallPlane(const T* mask, T* work) : mask_(mask), work_(work) {}

  // x -> y, both compact. `mask` is laid out as a plan says whose rows have the stages 2 and W / 2.
  template <bool clip>
  void run(const T* x, T* y, const Bounds<T>& bounds, Prefetch& prefetch) const {
    forward_columns<lanes>(x, work_);
    prefetch.step();
    forward_columns<half>(x + half, work_ + 2 * part);
    prefetch.step();
    turn_rows<false>();
    prefetch.step();
    turn_rows<true>();
    prefetch.step();
    filter_rows<false>();
    prefetch.step();
    filter_rows<true>();
    prefetch.step();
    turn_back(0);
    prefetch.step();
    turn_back(1);
    prefetch.step();
    inverse_columns<clip, false>(y, bounds);
    inverse_columns<clip, true>(y + half, bounds);
  }

  static constexpr int64_t steps = 8;

 private:
  static constexpr int lanes = kLanes<T>;
  static constexpr int half = W / 2;
  static constexpr int kept = H / 2;
  static_assert(H % 2 == 0 && W % 2 == 0 && W >= lanes && half <= lanes && kept <= lanes);

  // Rows, then what was turned, then differences of one half of the columns. A part is a vector for each lane.
  static constexpr int64_t part = lanes * lanes;
  static constexpr int64_t turned = 4 * part;

  // Takes and gives frequencies of columns as rows: real parts, and a part later imaginary ones.
  struct Rows {
    T* data;

    STURDY_ALWAYS_INLINE void real(int k, Vec<T> v) const { store(data + (k == 0 ? 0 : part), v); }
    STURDY_ALWAYS_INLINE void complex(int k, Vec<T> r, Vec<T> i) const {
      store(data + k * lanes, r);
      store(data + part + k * lanes, i);
    }
  };

  // Sums or differences of the rows at `data` and those two parts later.
  template <bool difference>
  struct CombinedRows {
    const T* data;

    STURDY_ALWAYS_INLINE Vec<T> at(int64_t offset) const {
      const Vec<T> a = load(data + offset), b = load(data + 2 * part + offset);
      return difference ? a - b : a + b;
    }
    STURDY_ALWAYS_INLINE Vec<T> real(int k) const { return at(k == 0 ? 0 : part); }
    STURDY_ALWAYS_INLINE void complex(int k, Vec<T>& r, Vec<T>& i) const {
      r = at(k * lanes);
      i = at(part + k * lanes);
    }
  };

  template <int count>
  STURDY_ALWAYS_INLINE static Vec<T> load_columns(const T* x, int row) {
    return count == lanes ? load(x + row * W) : load_partial(x + row * W, count);
  }

  // `count` columns at x. Differences first, then sums, so that never more than half of a column is in registers.
  template <int count>
  static void forward_columns(const T* x, T* rows) {
    const Rows to{rows};
    if constexpr (H % 4 == 0) {
      constexpr int M = H / 4;
      {
        Vec<T> r[M], i[M];
        STURDY_UNROLL
        for (int j = 0; j < M; j++) {
          r[j] = load_columns<count>(x, j) - load_columns<count>(x, j + 2 * M);
          i[j] = load_columns<count>(x, j + 3 * M) - load_columns<count>(x, j + M);
        }
        OddFrequencies<T, H>::forward(r, i, to);
      }
      Vec<T> sum[H / 2];
      STURDY_UNROLL
      for (int j = 0; j < H / 2; j++) {
        sum[j] = load_columns<count>(x, j) + load_columns<count>(x, j + H / 2);
      }
      RealButterfly<T, H / 2>::forward(sum, EvenFrequencies<Rows>{to});
    } else {
      Vec<T> v[H];
      STURDY_UNROLL
      for (int j = 0; j < H; j++) {
        v[j] = load_columns<count>(x, j);
      }
      RealButterfly<T, H>::forward(v, to);
    }
  }

  template <bool clip, bool right>
  void inverse_columns(T* y, const Bounds<T>& bounds) const {
    const CombinedRows<right> from{work_};
    const auto put = [&](int row, Vec<T> v) STURDY_INLINE_LAMBDA {
      v = clip ? clamp(v, bounds) : v;
      if (!right || half == lanes) {
        store(y + row * W, v);  // of the left half also what the right half will write
      } else {
        store_partial(y + row * W, v, half);
      }
    };
    if constexpr (H % 4 == 0) {
      constexpr int M = H / 4;
      T* const differences = work_ + turned;
      {
        Vec<T> r[M], i[M];
        OddFrequencies<T, H>::inverse(from, r, i);
        STURDY_UNROLL
        for (int j = 0; j < M; j++) {
          store(differences + j * lanes, r[j]);
          store(differences + (j + M) * lanes, i[j]);
        }
      }
      Vec<T> sum[H / 2];
      RealButterfly<T, H / 2>::inverse(EvenFrequenciesOf<CombinedRows<right>>{from}, sum);
      STURDY_UNROLL
      for (int j = 0; j < M; j++) {
        const Vec<T> r = load(differences + j * lanes), i = load(differences + (j + M) * lanes);
        put(j, sum[j] + r);
        put(j + M, sum[j + M] - i);
        put(j + 2 * M, sum[j] - r);
        put(j + 3 * M, sum[j + M] + i);
      }
    } else {
      Vec<T> v[H];
      RealButterfly<T, H>::inverse(from, v);
      STURDY_UNROLL
      for (int j = 0; j < H; j++) {
        put(j, v[j]);
      }
    }
  }

  // Rows to vectors whose lanes are rows: the sums of both halves, or the differences.
  template <bool difference>
  void turn_rows() const {
    T* const to = work_ + turned + (difference ? half * 2 * lanes : 0);
    const CombinedRows<difference> from{work_};
    for (int of = 0; of < 2; of++) {
      Vec<T> tile[lanes];
      STURDY_UNROLL
      for (int k = 0; k < lanes; k++) {
        tile[k] = k < kept ? from.at(of * part + k * lanes) : zero<T>();
      }
      transpose(tile);
      STURDY_UNROLL
      for (int j = 0; j < half; j++) {
        store(to + (of * half + j) * lanes, tile[j]);
      }
    }
  }

  void turn_back(int64_t odd) const {
    for (int of = 0; of < 2; of++) {
      const T* const from = work_ + turned + (2 * odd + of) * half * lanes;
      T* const to = work_ + (2 * odd + of) * part;
      Vec<T> tile[lanes];
      STURDY_UNROLL
      for (int j = 0; j < lanes; j++) {
        tile[j] = j < half ? load(from + j * lanes) : zero<T>();
      }
      transpose(tile);
      STURDY_UNROLL
      for (int k = 0; k < kept; k++) {
        store(to + k * lanes, tile[k]);
      }
    }
  }

  // Even or odd frequencies along the rows, times the mask, and back.
  template <bool odd>
  void filter_rows() const {
    T* const at_r = work_ + turned + (odd ? 2 * half * lanes : 0);
    T* const at_i = at_r + half * lanes;
    const T* const p = mask_ + (odd ? half * lanes : 0);
    const T* const q = p + W * lanes;
    Vec<T> r[half], i[half];
    for_each_constant(std::make_integer_sequence<int, half>(), [&](auto index) STURDY_INLINE_LAMBDA {
      constexpr int j = decltype(index)::value;
      r[j] = load(at_r + j * lanes);
      i[j] = load(at_i + j * lanes);
      if constexpr (odd) {
        rotate<j, W>(r[j], i[j]);
      }
    });
    Butterfly<T, half>::run(r, i);
    STURDY_UNROLL
    for (int k = 0; k < half; k++) {
      const int m = odd ? half - 1 - k : (half - k) % half;
      if (k <= m) {
        Vec<T> yr = r[m], yi = i[m];
        mix_pair(r[k], i[k], yr, yi, load(p + k * lanes), load(p + m * lanes), load(q + k * lanes));
        if (k < m) {
          r[m] = yr;
          i[m] = yi;
        }
      }
    }
    Butterfly<T, half>::run(i, r);
    for_each_constant(std::make_integer_sequence<int, half>(), [&](auto index) STURDY_INLINE_LAMBDA {
      constexpr int j = decltype(index)::value;
      if constexpr (odd) {
        rotate<(W - j) % W, W>(r[j], i[j]);
      }
      store(at_r + j * lanes, r[j]);
      store(at_i + j * lanes, i[j]);
    });
  }

  const T* mask_;
  T* work_;
};

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
