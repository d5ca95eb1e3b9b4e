// What the CUDA kernels of spectral_filter share: the call's geometry in 32 bits, prepared masks, tables.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda.cuh"
#include "common/cuda_device.cuh"
#include "common/cuda_workspace.cuh"
#include "fourier/fft_cuda.cuh"
#include "fourier/fft_cuda_pixels.cuh"
#include "fourier/spectral_filter.h"

namespace sturdy::cuda::filter {

using fft::Axis;
using fft::AxisTables;
using fft::Complex;
using fft::PlanePlan;
using fft::Program;
using fft::RowEntry;

// Blocks of at most so many threads: 168 registers then suffice for a butterfly of 31 elements, 255 for one of 23 in
// double precision.
template <typename T>
constexpr int kMaxThreads = sizeof(T) == 8 ? 256 : 384;

// Of a call, as kernels see it.
struct Call {
  PlanePlan plan;
  int64_t batch, channels, many, mask_entries, mask_channels;
  const int64_t* index;
  int64_t index_stride;
  DType dtype;
  bool half;
  bool clip;
  double low, high;

  __host__ __device__ int64_t planes() const { return batch * channels; }
  __host__ __device__ int64_t mask_ids() const { return mask_entries * many * mask_channels; }
  // Numbers of a prepared mask.
  __host__ __device__ int64_t mask_size() const { return int64_t{plan.kept} * plan.width; }
  // Complex numbers of a half spectrum.
  __host__ __device__ int64_t spectrum_size() const { return int64_t{plan.kept} * plan.width; }

  // The entry of the masks that an image takes; -1: none, as for an index beyond the table.
  STURDY_DEVICE int64_t entry(int64_t image) const {
    if (index == nullptr) {
      return mask_entries == 1 ? 0 : image;
    }
    const int64_t entry = index[image * index_stride];
    return entry >= 0 && entry < mask_entries ? entry : -1;
  }
  STURDY_DEVICE int64_t mask_id(int64_t entry, int64_t filtered, int64_t channel) const {
    return (entry * many + filtered) * mask_channels + (mask_channels == 1 ? 0 : channel);
  }
};

// Prepared once a call, in the workspace.
template <typename T>
struct Prepared {
  AxisTables<T> down, across;
  RowEntry* rows;  // (kept)
  int* ranks;      // (height): which kept row frequency k is, or -1 - that of -k
  T* masks;        // (mask ids, width, kept): symmetric, scaled, in the order of the transforms
};

// A plane by its number: the `many` results of one image and channel are neighbours.
struct PlaneNumber {
  int64_t image, channel, filtered;

  STURDY_DEVICE PlaneNumber(const Call& call, int64_t number, int64_t many) {
    const int64_t unit = number / many;
    filtered = number - unit * many;
    image = unit / call.channels;
    channel = unit - image * call.channels;
  }
  STURDY_DEVICE int64_t offset(const Planes& planes) const {
    return image * planes.image + filtered * planes.filtered + channel * planes.channel;
  }
};

STURDY_DEVICE void* advance(void* data, int64_t elements, DType dtype) {
  return static_cast<unsigned char*>(data) + elements * fft::dtype_bytes(dtype);
}

// A NaN stays.
template <typename T>
STURDY_DEVICE T clamp(T value, T low, T high) {
  const T raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// The gradients of a pair of columns where the result was within bounds, else 0; in place of the result.
template <typename T, int R>
STURDY_DEVICE void gate(const Call& call, const void* gradient, const fft::ColumnPair& pair, int first, int span,
                        Complex<T> (&v)[R]) {
  const T low = static_cast<T>(call.low);
  const T high = static_cast<T>(call.high);
  Complex<T> passing[R];
  fft::load_pairs(gradient, call.dtype, pair, first, span, call.plan.height, passing);
#pragma unroll
  for (int i = 0; i < R; ++i) {
    v[i].re = v[i].re >= low && v[i].re <= high ? passing[i].re : T(0);
    v[i].im = v[i].im >= low && v[i].im <= high ? passing[i].im : T(0);
  }
}

// ---- launches ----

// Tables, and masks where `masks.data` is given.
template <typename T>
Status prepare(const Call& call, const Masks& masks, const Prepared<T>& to, void* stream);

// Whole planes in shared memory. Results of `source`, or with `gated` gradients: x is filtered, `source` counts where
// the result was within bounds, and is filtered in turn.
struct FusedImages {
  Planes source;
  Planes gated;  // data null: none
  Planes target;
  bool clamped;
};

bool fits_fused(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes);
template <typename T>
Status run_fused(const Call& call, const Prepared<T>& prepared, const FusedImages& images, const DeviceLimits& limits,
                 void* stream);

// Planes of any size, by way of spectra in global memory.
bool fits_passes(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes);
// Complex numbers of spectra, and what else a call needs there.
size_t passes_forward_workspace(const Call& call, size_t value_bytes, const DeviceLimits& limits);
template <typename T>
Status passes_forward(const Call& call, const Prepared<T>& prepared, const SpectralFilterParams& params,
                      const DeviceLimits& limits, void* workspace, void* stream);
size_t passes_backward_workspace(const Call& call, size_t value_bytes, bool want_mask, const DeviceLimits& limits);
template <typename T>
Status passes_backward(const Call& call, const Prepared<T>& prepared, const SpectralFilterBackwardParams& params,
                       bool want_x, const DeviceLimits& limits, void* workspace, void* stream);

}  // namespace sturdy::cuda::filter
