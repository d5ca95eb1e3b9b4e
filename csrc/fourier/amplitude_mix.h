// The kernels of amplitude_mix: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/parallel.h"
#include "common/types.h"
#include "fourier/image.h"

namespace sturdy {

// The phase of a frequency whose amplitude lies below this, for each sample of the transform (H * W, times C with
// `color`), is noise: it is taken to be 0, so F / |F| to be 1.
constexpr double kLeastAmplitude = 1e-12;

struct AmplitudeMixParams {
  int64_t batch, channels, height, width;  // height and width at least 1
  DType dtype;                             // of all images
  ImageView x;                             // any strides
  ImageView other;                         // (others, channels, height, width), any strides
  int64_t others;                          // with no index: batch, or 1
  bool from_x;                             // `other` is x

  // Which image of `other` an image takes its amplitudes from, -1: the image is copied. Null: image n that of n, or the
  // only one. Its values are checked where it is on the CPU; beyond their range a CUDA kernel copies.
  const int64_t* index;
  int64_t index_stride;

  // |F_out| = (1 - strength) |F| + strength |F_other|. `strengths` null: `strength` for all images.
  double strength;
  const void* strengths;  // float32 or float64
  bool strengths_are_double;
  int64_t strengths_stride;  // 0 where there is one for all

  // Only frequencies (k, l) with |k| <= half-width of rows and |l| <= half-width of columns change; a negative one
  // leaves none. `windows` null: `window` for all images.
  bool windowed;
  int64_t window[2];
  const int64_t* windows;  // (batch or 1, 2)
  int64_t windows_stride[2];

  bool color;  // the transform goes along the channels, too
  bool clip;
  double low, high;
  ImageView out;  // contiguous or channels-last; aliases nothing
};

namespace cpu {
// Every element of out is written; batch and channels may be 0.
Status amplitude_mix(const AmplitudeMixParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
// Bytes of device memory, from sizes and dtype alone: pointers are not looked at, and may be null.
size_t amplitude_mix_workspace(const AmplitudeMixParams& params);
Status amplitude_mix(const AmplitudeMixParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
