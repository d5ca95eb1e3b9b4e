// What wave_add on the CPU hands to the kernels of one instruction set.
#pragma once

#include <cstdint>

#include "fourier/wave_add.h"

namespace sturdy {
namespace cpu {

// How a call is cut into units. A unit is a band of rows of one plane, or of one image whose channels lie side by side
// in memory (`merged`). No pixel's value depends on the cut; the sums for the amplitude's gradient do not, as they are
// only taken of whole planes.
struct WaveAddCut {
  bool merged;
  int64_t planes;  // per image: 1 when merged, else the channels
  int64_t bands;   // per plane
  int64_t band_rows;
  bool streams;  // results go past the caches, where they are too many to stay there

  int64_t units(int64_t batch) const { return batch * planes * bands; }
};

// Both work on the units [begin, end).
struct WaveAddKernels {
  void (*forward)(const WaveAddParams& params, const WaveAddCut& cut, int64_t begin, int64_t end);
  void (*backward)(const WaveAddBackwardParams& params, const WaveAddCut& cut, int64_t begin, int64_t end);
};

}  // namespace cpu

namespace portable {
const cpu::WaveAddKernels& wave_add_kernels(DType dtype, bool input_is_bytes);
}
namespace avx2 {
const cpu::WaveAddKernels& wave_add_kernels(DType dtype, bool input_is_bytes);
}
namespace avx512 {
const cpu::WaveAddKernels& wave_add_kernels(DType dtype, bool input_is_bytes);
}

}  // namespace sturdy
