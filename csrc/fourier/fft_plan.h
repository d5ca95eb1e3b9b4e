// How the transform along one axis is taken apart, and its tables. Plain data: this header is seen by sources compiled
// for different instruction sets.
//
// A transform of `length` samples is a row of stages, decimation in frequency: the first takes butterflies of radix r
// over samples length / r apart and rotates the results; what is left are r transforms of length / r samples each.
// Nothing is put back into order, so frequency k stands at position `places[k]`. The inverse runs the stages backwards
// on that order.
//
// A product of two odd radices without a common divisor needs no rotations ("coprime", Good 1958): samples are numbered
// in another order, sample (b j + a k) mod a b as butterfly k's input j, and frequencies by their remainders modulo
// both radices. The first stage reads samples in that order, unless they come in place: then they stand in it already.
//
// Sizes with a prime factor above 31 go through a convolution with a chirp (Bluestein), whose length has
// small factors.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/scratch.h"

namespace sturdy {
namespace cpu {

constexpr int kLargestRadix = 31;
constexpr int kLargestCoprimeLast = 13;  // of the last radix of coprime ones
constexpr int kMostStages = 40;

struct FftStage {
  int radix;
  int64_t blocks;    // transforms side by side
  int64_t spacing;   // samples between the inputs of a butterfly, and butterflies in a block
  int64_t rotation;  // where its (spacing - 1, radix - 1, 2) rotations begin, the first butterfly's left out
};

template <typename T>
struct FftAxis {
  int64_t size;    // samples
  int64_t length;  // of the transform that is computed: size, or that of the convolution
  bool chirped;    // length differs from size
  bool coprime;    // two stages without rotations
  int stage_count;
  FftStage stages[kMostStages];
  const T* rotations;     // (cos, sin) of the stages' exp(-i angle)
  const int64_t* places;  // (size): where frequency k stands after the forward transform
  const int64_t* slots;   // (size), null unless coprime: where sample j stands before a transform in place
  const T* chirp;         // (size, 2): exp(-pi i j^2 / size)
  const T* response;      // (length, 2): transform of the conjugate chirp over length, in the order of the stages
};

// Decides the stages of a transform of `size` samples, at least 1.
template <typename T>
FftAxis<T> make_fft_axis(int64_t size);

// The same with the stages given: `radices`, each one of those of fft_stages.h, multiply to the size.
template <typename T>
FftAxis<T> make_fft_axis(std::initializer_list<int> radices);

// Takes the memory of the tables, then, with `fill`, computes them. Throws std::bad_alloc.
template <typename T>
void place_fft_axis(FftAxis<T>& axis, Arena& arena);
template <typename T>
void fill_fft_axis(FftAxis<T>& axis);

}  // namespace cpu
}  // namespace sturdy
