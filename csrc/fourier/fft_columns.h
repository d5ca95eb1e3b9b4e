// The last stage down the columns and what comes with it: forward, the spectra of a vector's two columns are separated
// and turned into strips of rows; back, the reverse. See fft_plane_plan.h.
//
// A block of the last stage holds the frequencies f + k * blocks (or, of a coprime axis, all that are f modulo the
// number of blocks), so that of -f holds their mirror images. With both in registers z = a + i b comes apart at once:
// twice a's spectrum is z(k) + conj z(-k), twice b's is -i (z(k) - conj z(-k)). Rows leave through a ring of four
// parts, from which `lanes` of them at a time are turned.
#pragma once

#include "fourier/fft_plane_plan.h"
#include "fourier/fft_stages.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Where a block's columns stand: the first of its real and of its imaginary part, how many lanes hold one, and how many
// of the imaginary part's were computed among the real ones already.
struct ColumnBlock {
  int64_t left, right;
  int64_t left_count, right_count;
  int64_t right_skip;
};

// Where a block's columns stand in a strip: side by side or, of a coprime axis, in their slots.
template <typename T>
struct StripColumns {
  const int64_t* slots;  // of the block's first column; null: side by side
  int64_t first;

  STURDY_ALWAYS_INLINE StripColumns(const cpu::FftAxis<T>& rows, int64_t begin)
      : slots(rows.coprime ? rows.slots + begin : nullptr), first(begin) {}

  STURDY_ALWAYS_INLINE int64_t operator()(int64_t column) const {
    return (slots == nullptr ? first + column : slots[column]) * kLanes<T>;
  }
};

// Turned rows to columns [skip, count) of a strip. Vectors are named by constants everywhere, also on the rare way: an
// index that is known at run time alone would keep all of them in memory.
template <typename T>
STURDY_ALWAYS_INLINE void store_tile(const Vec<T> (&tile)[kLanes<T>], T* strip, StripColumns<T> at, int64_t skip,
                                     int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  if (skip == 0 && count == lanes) {
    T* const first = strip + at.first * lanes;
    STURDY_UNROLL
    for (int64_t c = 0; c < lanes; c++) {
      store(at.slots == nullptr ? first + c * lanes : strip + at.slots[c] * lanes, tile[c]);
    }
    return;
  }
  STURDY_UNROLL
  for (int64_t c = 0; c < lanes; c++) {
    if (c >= skip && c < count) {
      store(strip + at(c), tile[c]);
    }
  }
}

template <typename T>
STURDY_ALWAYS_INLINE void load_tile(Vec<T> (&tile)[kLanes<T>], const T* strip, StripColumns<T> at, int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  if (count == lanes) {
    const T* const first = strip + at.first * lanes;
    STURDY_UNROLL
    for (int64_t c = 0; c < lanes; c++) {
      tile[c] = load(at.slots == nullptr ? first + c * lanes : strip + at.slots[c] * lanes);
    }
    return;
  }
  STURDY_UNROLL
  for (int64_t c = 0; c < lanes; c++) {  // beyond the last column any will do: nobody reads what becomes of it
    tile[c] = load(strip + at(c < count ? c : count - 1));
  }
}

template <typename T>
struct ColumnCall {
  const cpu::FftPlanePlan<T>* plan;
  ColumnBlock block;
  T *column_r, *column_i;  // z, `stride` elements between samples; read or written
  ptrdiff_t stride;
  T *spectrum_r, *spectrum_i;  // the strips
  T* ring;                     // 4 * ring_rows * lanes
};

enum RingPart { kLeftReal, kLeftImaginary, kRightReal, kRightImaginary };

// Where rows wait. By value, in variables whose address nobody has: stores of vectors may alias anything else, which
// would then be read again after each.
template <typename T>
struct Ring {
  T* data;
  int64_t rows;

  explicit STURDY_ALWAYS_INLINE Ring(const ColumnCall<T>& call) : data(call.ring), rows(call.plan->ring_rows) {}

  STURDY_ALWAYS_INLINE T* at(RingPart part, int64_t row) const {
    return data + (part * rows + (row & (rows - 1))) * kLanes<T>;
  }
};

// One part of the ring from rows to columns, or back.
template <typename T>
STURDY_ALWAYS_INLINE void turn_out(const T* rows, T* strip, StripColumns<T> at, int64_t skip, int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> tile[lanes];
  STURDY_UNROLL
  for (int64_t j = 0; j < lanes; j++) {
    tile[j] = load(rows + j * lanes);
  }
  transpose(tile);
  store_tile(tile, strip, at, skip, count);
}

template <typename T>
STURDY_ALWAYS_INLINE void turn_in(const T* strip, StripColumns<T> at, T* rows, int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> tile[lanes];
  load_tile(tile, strip, at, count);
  transpose(tile);
  STURDY_UNROLL
  for (int64_t j = 0; j < lanes; j++) {
    store(rows + j * lanes, tile[j]);
  }
}

template <typename T>
void turn_strip_out(const ColumnCall<T>& call, int64_t strip) {
  const Ring<T> ring(call);
  const ColumnBlock& block = call.block;
  const StripColumns<T> left(call.plan->rows, block.left), right(call.plan->rows, block.right);
  const int64_t row = strip * kLanes<T>;
  T* const real = call.spectrum_r + row * call.plan->width;
  T* const imaginary = call.spectrum_i + row * call.plan->width;
  turn_out(ring.at(kLeftReal, row), real, left, 0, block.left_count);
  turn_out(ring.at(kLeftImaginary, row), imaginary, left, 0, block.left_count);
  turn_out(ring.at(kRightReal, row), real, right, block.right_skip, block.right_count);
  turn_out(ring.at(kRightImaginary, row), imaginary, right, block.right_skip, block.right_count);
}

template <typename T>
void turn_strip_in(const ColumnCall<T>& call, int64_t strip) {
  const Ring<T> ring(call);
  const ColumnBlock& block = call.block;
  const StripColumns<T> left(call.plan->rows, block.left), right(call.plan->rows, block.right);
  const int64_t row = strip * kLanes<T>;
  const T* const real = call.spectrum_r + row * call.plan->width;
  const T* const imaginary = call.spectrum_i + row * call.plan->width;
  turn_in(real, left, ring.at(kLeftReal, row), block.left_count);
  turn_in(imaginary, left, ring.at(kLeftImaginary, row), block.left_count);
  turn_in(real, right, ring.at(kRightReal, row), block.right_count);
  turn_in(imaginary, right, ring.at(kRightImaginary, row), block.right_count);
}

template <typename T>
STURDY_ALWAYS_INLINE void put_row(Ring<T> ring, int64_t row, Vec<T> ar, Vec<T> ai, Vec<T> br, Vec<T> bi) {
  store(ring.at(kLeftReal, row), ar + br);
  store(ring.at(kLeftImaginary, row), ai - bi);
  store(ring.at(kRightReal, row), ai + bi);
  store(ring.at(kRightImaginary, row), br - ar);
}

template <typename T>
STURDY_ALWAYS_INLINE void get_row(Ring<T> ring, int64_t row, Vec<T>& ar, Vec<T>& ai, Vec<T>& br, Vec<T>& bi) {
  const Vec<T> left_r = load(ring.at(kLeftReal, row)), left_i = load(ring.at(kLeftImaginary, row));
  const Vec<T> right_r = load(ring.at(kRightReal, row)), right_i = load(ring.at(kRightImaginary, row));
  ar = left_r - right_i;
  ai = left_i + right_r;
  br = left_r + right_i;
  bi = right_r - left_i;
}

template <typename T, int R>
STURDY_ALWAYS_INLINE void transform_samples(const T* from_r, const T* from_i, ptrdiff_t stride, Vec<T> (&r)[R],
                                            Vec<T> (&i)[R]) {
  const auto get = [&](int k, Vec<T>& to_r, Vec<T>& to_i) STURDY_INLINE_LAMBDA {
    to_r = load(from_r + k * stride);
    to_i = load(from_i + k * stride);
  };
  const auto put = [&](int k, Vec<T> at_r, Vec<T> at_i) STURDY_INLINE_LAMBDA {
    r[k] = at_r;
    i[k] = at_i;
  };
  run_butterfly<T, R>(get, put);
}

template <typename T, int R>
STURDY_ALWAYS_INLINE void restore_samples(const Vec<T> (&r)[R], const Vec<T> (&i)[R], T* to_r, T* to_i,
                                          ptrdiff_t stride) {
  const auto get = [&](int k, Vec<T>& at_i, Vec<T>& at_r) STURDY_INLINE_LAMBDA {
    at_r = r[k];
    at_i = i[k];
  };
  const auto put = [&](int k, Vec<T> at_i, Vec<T> at_r) STURDY_INLINE_LAMBDA {
    store(to_r + k * stride, at_r);
    store(to_i + k * stride, at_i);
  };
  run_butterfly<T, R>(get, put);
}

// The output of a block that is the mirror image of output k of another one, see fft_plan.h.
template <int R, bool coprime>
constexpr int mirrored_output(int k) {
  return coprime ? (R - k) % R : R - 1 - k;
}

// Where block f of the last stage begins: that of the frequencies f + k * blocks, or f modulo the number of blocks.
template <int R, bool coprime>
STURDY_ALWAYS_INLINE int64_t block_begin(const int64_t* places, int64_t f) {
  return coprime ? f * R : places[f];
}

// z, all stages but the last of radix R done -> the strips.
template <typename T, int R, bool coprime>
void split_stage(const ColumnCall<T>& call) {
  constexpr int64_t lanes = kLanes<T>;
  const cpu::FftPlanePlan<T>& plan = *call.plan;
  const Ring<T> ring(call);
  const int64_t* const places = plan.columns.places;
  const int64_t blocks = plan.height / R;
  const ptrdiff_t stride = call.stride;
  const bool packed = plan.packed;
  int64_t row = 0, turned = 0;
  for (int64_t f = 0; 2 * f <= blocks; f++) {
    const T* at_r = call.column_r + block_begin<R, coprime>(places, f) * stride;
    const T* at_i = call.column_i + block_begin<R, coprime>(places, f) * stride;
    Vec<T> r[R], i[R];
    transform_samples<T, R>(at_r, at_i, stride, r, i);
    if (f == 0) {
      if (packed) {
        store(ring.at(kLeftReal, row), r[0] + r[0]);
        store(ring.at(kLeftImaginary, row), r[R / 2] + r[R / 2]);
        store(ring.at(kRightReal, row), i[0] + i[0]);
        store(ring.at(kRightImaginary, row), i[R / 2] + i[R / 2]);
      } else {
        put_row(ring, row, r[0], i[0], r[0], i[0]);
      }
      row++;
      STURDY_UNROLL
      for (int k = 1; k <= R / 2; k++) {
        if (2 * k < R || !packed) {
          put_row(ring, row++, r[k], i[k], r[R - k], i[R - k]);
        }
      }
    } else if (2 * f == blocks) {
      STURDY_UNROLL
      for (int k = 0; 2 * k < R; k++) {
        put_row(ring, row++, r[k], i[k], r[R - 1 - k], i[R - 1 - k]);
      }
    } else {
      const T* mirror_r = call.column_r + block_begin<R, coprime>(places, blocks - f) * stride;
      const T* mirror_i = call.column_i + block_begin<R, coprime>(places, blocks - f) * stride;
      Vec<T> u[R], v[R];
      transform_samples<T, R>(mirror_r, mirror_i, stride, u, v);
      STURDY_UNROLL
      for (int k = 0; k < R; k++) {
        constexpr auto mirror = mirrored_output<R, coprime>;
        put_row(ring, row + k, r[k], i[k], u[mirror(k)], v[mirror(k)]);
      }
      row += R;
    }
    while (row - turned >= lanes) {
      turn_strip_out(call, turned / lanes);
      turned += lanes;
    }
  }
  if (row > turned) {
    for (; row % lanes != 0; row++) {  // lanes that hold no row: defined, that is all
      put_row(ring, row, zero<T>(), zero<T>(), zero<T>(), zero<T>());
    }
    turn_strip_out(call, turned / lanes);
  }
}

// The strips -> z, ready for all stages but the last.
template <typename T, int R, bool coprime>
void merge_stage(const ColumnCall<T>& call) {
  constexpr int64_t lanes = kLanes<T>;
  const cpu::FftPlanePlan<T>& plan = *call.plan;
  const Ring<T> ring(call);
  const int64_t* const places = plan.columns.places;
  const int64_t blocks = plan.height / R;
  const ptrdiff_t stride = call.stride;
  const bool packed = plan.packed;
  int64_t row = 0, turned = 0;
  const auto need = [&](int64_t rows) STURDY_INLINE_LAMBDA {
    for (; turned < rows; turned += lanes) {
      turn_strip_in(call, turned / lanes);
    }
  };
  for (int64_t f = 0; 2 * f <= blocks; f++) {
    T* at_r = call.column_r + block_begin<R, coprime>(places, f) * stride;
    T* at_i = call.column_i + block_begin<R, coprime>(places, f) * stride;
    Vec<T> r[R], i[R];
    if (f == 0) {
      need(R / 2 + (packed ? 0 : 1));
      r[0] = load(ring.at(kLeftReal, row));
      i[0] = load(ring.at(kRightReal, row));
      if (packed) {
        r[R / 2] = load(ring.at(kLeftImaginary, row));
        i[R / 2] = load(ring.at(kRightImaginary, row));
      }
      row++;
      STURDY_UNROLL
      for (int k = 1; k <= R / 2; k++) {
        if (2 * k < R) {
          get_row(ring, row++, r[k], i[k], r[R - k], i[R - k]);
        } else if (!packed) {
          r[k] = load(ring.at(kLeftReal, row));
          i[k] = load(ring.at(kRightReal, row));
          row++;
        }
      }
    } else if (2 * f == blocks) {
      need(row + (R + 1) / 2);
      STURDY_UNROLL
      for (int k = 0; 2 * k < R; k++) {
        if (2 * k == R - 1) {
          r[k] = load(ring.at(kLeftReal, row));
          i[k] = load(ring.at(kRightReal, row));
          row++;
        } else {
          get_row(ring, row++, r[k], i[k], r[R - 1 - k], i[R - 1 - k]);
        }
      }
    } else {
      need(row + R);
      T* mirror_r = call.column_r + block_begin<R, coprime>(places, blocks - f) * stride;
      T* mirror_i = call.column_i + block_begin<R, coprime>(places, blocks - f) * stride;
      Vec<T> u[R], v[R];
      STURDY_UNROLL
      for (int k = 0; k < R; k++) {
        constexpr auto mirror = mirrored_output<R, coprime>;
        get_row(ring, row + k, r[k], i[k], u[mirror(k)], v[mirror(k)]);
      }
      row += R;
      restore_samples<T, R>(u, v, mirror_r, mirror_i, stride);
    }
    restore_samples<T, R>(r, i, at_r, at_i, stride);
  }
}

template <typename T>
struct ColumnKernels {
  void (*split)(const ColumnCall<T>&);
  void (*merge)(const ColumnCall<T>&);
  void (*split_coprime)(const ColumnCall<T>&);  // of the radices that may be last on a coprime axis
  void (*merge_coprime)(const ColumnCall<T>&);
};

template <typename T, int R>
constexpr ColumnKernels<T> kernels_of_columns() {
  ColumnKernels<T> kernels = {split_stage<T, R, false>, merge_stage<T, R, false>, nullptr, nullptr};
  if constexpr (R % 2 == 1 && R > 1 && R <= cpu::kLargestCoprimeLast) {
    kernels.split_coprime = split_stage<T, R, true>;
    kernels.merge_coprime = merge_stage<T, R, true>;
  }
  return kernels;
}

template <typename T, int... R>
const ColumnKernels<T>& column_kernels(int radix, std::integer_sequence<int, R...>) {
  static constexpr ColumnKernels<T> table[] = {kernels_of_columns<T, R>()...};
  static constexpr int radices[] = {R...};
  int at = 0;
  while (radices[at] != radix) {
    at++;
  }
  return table[at];
}

// The radices of fft_plan.cpp, and 1 where there is no stage left.
template <typename T>
const ColumnKernels<T>& column_kernels(int radix) {
  using Radices = std::integer_sequence<int, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 23, 29, 31>;
  return column_kernels<T>(radix, Radices());
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
