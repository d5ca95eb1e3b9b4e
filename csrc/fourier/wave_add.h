// The kernels of wave_add: what dispatch promises them and what they promise back.
#pragma once

#include <cstdint>

#include "common/parallel.h"
#include "common/types.h"
#include "fourier/image.h"

namespace sturdy {

// A small tensor of parameters, one per image, channel and wave (and axis); strides are 0 where it is shared.
struct WaveParameter {
  const void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};  // image, channel, wave, axis (of the frequency alone)
  bool is_double = false;            // else float
};

// Sizes, waves and bounds, alike for forward and backward.
struct Waves {
  int64_t batch, channels, height, width, count;  // any may be 0
  WaveParameter frequency;                        // cycles per pixel
  WaveParameter amplitude;
  WaveParameter phase;  // radians
  bool clip;
  double low, high;
};

// What `input` holds: bytes, of which 255 means 1, or the dtype of the other images.
struct WaveAddParams {
  Waves waves;
  ImageView input;
  ImageView out;  // dense: contiguous or channels-last; never aliases an input
  bool input_is_bytes;
  DType dtype;  // of out
};

struct WaveAddBackwardParams {
  Waves waves;
  ImageView grad_out;    // any strides
  ImageView input;       // data null: without clip nobody needs it
  ImageView grad_input;  // dense; data null: not wanted
  void* grad_amplitude;  // (N, C, K) float, or double for dtype f64; compact; null: not wanted
  bool input_is_bytes;
  DType dtype;  // of grad_out and grad_input
};

namespace cpu {
Status wave_add(const WaveAddParams& params, const Threads& threads);
Status wave_add_backward(const WaveAddBackwardParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
Status wave_add(const WaveAddParams& params, void* stream);
Status wave_add_backward(const WaveAddBackwardParams& params, void* stream);
}  // namespace cuda

}  // namespace sturdy
