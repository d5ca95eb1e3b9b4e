// How a real plane (H, W) and its half spectrum are laid out. Plain data: this header is seen by sources compiled for
// different instruction sets.
//
// One plane is one complex transform of half its width. Blocks of columns from its left half are the real part, blocks
// from its right half the imaginary part of vectors whose lanes are columns; a transform of length H runs down them.
// The spectra of the two columns in a lane come apart again as sums and differences of frequency k and -k, which are
// vectors of the same lanes, so nothing is exchanged between planes and a plane's result does not depend on its
// neighbours. Of the two halves k and -k one is kept; the kept rows are turned so that lanes are rows, `lanes` rows to
// a strip [column][lane], along which a transform of length W runs.
//
// For even H the rows of the frequencies 0 and H / 2 are spectra of real columns and so, where that saves a strip, one
// row holds both: the latter as the imaginary part of the former ("packed").
//
// The halves are doubled by the sums that separate them: a transform forward is twice what it should be.
#pragma once

#include <cstdint>

#include "fourier/fft_plan.h"

namespace sturdy {
namespace cpu {

template <typename T>
struct FftPlanePlan {
  int64_t height, width, lanes;
  FftAxis<T> columns;  // of length height, down the columns
  FftAxis<T> rows;     // of length width, along the rows
  bool packed;
  int64_t kept, strips;  // rows of the half spectrum, and strips of them
  int64_t blocks;        // pairs of column vectors
  int64_t left_columns;  // the columns [0, left) are real parts, [right_begin, width) imaginary ones; a block starts
  int64_t right_begin;   // `lanes` columns after the last, and where the two overlap both compute the same
  int last_radix;        // of the columns' last stage, 1 where there is none
  int64_t ring_rows;     // a power of two: rows that wait to be turned
  int64_t* frequencies;  // (strips, lanes): the frequency of a row, be it above H / 2; lanes without a row repeat one
  int64_t* rows_of;      // (height): the row of a frequency, or -1 where it has only that of its mirror image

  int64_t spectrum_size;  // elements of the real or the imaginary part: strips * width * lanes
  int64_t work_size;      // likewise of the vectors that one transform works on
};

// Sizes only; `may_pack` false keeps every row apart.
template <typename T>
FftPlanePlan<T> make_fft_plane_plan(int64_t height, int64_t width, int64_t lanes, bool may_pack);
// The same for kernels that transform whole columns of an even height, and rows of an even width in stages of radix 2
// and width / 2: the kept rows are the frequencies 0 to height / 2 - 1 in their order, the first one packed, all in one
// strip. The kernels of fft_plane.h cannot work with it.
template <typename T>
FftPlanePlan<T> make_small_fft_plane_plan(int64_t height, int64_t width, int64_t lanes);
template <typename T>
void place_fft_plane_plan(FftPlanePlan<T>& plan, Arena& arena);
template <typename T>
void fill_fft_plane_plan(FftPlanePlan<T>& plan);

// Memory of one thread. Real and imaginary parts are a few lines off a multiple of the page size apart, else a load of
// one waits for the store of the other.
template <typename T>
struct FftPlaneWork {
  T *column_r, *column_i;      // work_size each
  T* column_ring;              // (4, ring_rows, lanes)
  T *spectrum_r, *spectrum_i;  // spectrum_size each

  STURDY_ALWAYS_INLINE FftPlaneWork(const FftPlanePlan<T>& plan, Arena& arena) {
    constexpr int64_t apart = 192 / static_cast<int64_t>(sizeof(T));
    column_r = arena.take<T>(plan.work_size + apart);
    column_i = arena.take<T>(plan.work_size + apart);
    column_ring = arena.take<T>(4 * plan.ring_rows * plan.lanes);
    spectrum_r = arena.take<T>(plan.spectrum_size + apart);
    spectrum_i = arena.take<T>(plan.spectrum_size + apart);
  }
};

}  // namespace cpu
}  // namespace sturdy
