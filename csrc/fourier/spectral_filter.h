// The kernels of spectral_filter: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/parallel.h"
#include "common/types.h"

namespace sturdy {

// Real planes. Strides are in elements and may be 0 or negative in inputs.
struct Planes {
  void* data = nullptr;
  int64_t image = 0, filtered = 0, channel = 0, row = 0, column = 0;  // `filtered` alone where there are many masks
};

// Real masks, (entries, many, channels, H, W or W / 2 + 1).
struct Masks {
  void* data = nullptr;
  int64_t entry = 0, filtered = 0, channel = 0, row = 0, column = 0;  // 0 where the mask has one for all
  DType dtype = DType::f32;                                           // float32, or that of the planes
};

// Alike for forward and backward.
struct SpectralFilterGeometry {
  int64_t batch, channels, height, width;  // height and width at least 1
  int64_t many;                            // results of each image: 1 but for a mask of five dimensions
  int64_t mask_entries;                    // of the table, or batch, or 1
  int64_t mask_channels;                   // channels or 1
  bool half;                               // masks are (H, W / 2 + 1), zero frequency first; else (H, W), it is centred
  bool clip;
  double low, high;
  DType dtype;           // of the planes
  const int64_t* index;  // null, or the table entry of each image, where -1 copies the image; checked
  int64_t index_stride;
  int32_t device;  // whose limits the CUDA kernels are laid out for
};

struct SpectralFilterParams {
  SpectralFilterGeometry geometry;
  Planes x;
  Masks mask;
  Planes out;  // each image contiguous or channels-last; never aliases x
};

struct SpectralFilterBackwardParams {
  SpectralFilterGeometry geometry;
  Planes grad_out;  // any strides
  Planes x;         // data null where neither the clamp nor grad_mask needs it
  Masks mask;
  Planes grad_x;    // data null: not wanted
  Masks grad_mask;  // the accumulate type, dense; data null: not wanted
};

namespace cpu {
// Every element of every wanted output is written; batch and channels may be 0.
Status spectral_filter(const SpectralFilterParams& params, const Threads& threads);
Status spectral_filter_backward(const SpectralFilterBackwardParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
// Bytes of device scratch; 0 without kernels for CUDA.
size_t spectral_filter_workspace(const SpectralFilterGeometry& geometry);
size_t spectral_filter_backward_workspace(const SpectralFilterGeometry& geometry, bool want_mask);
Status spectral_filter(const SpectralFilterParams& params, void* workspace, void* stream);
Status spectral_filter_backward(const SpectralFilterBackwardParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
