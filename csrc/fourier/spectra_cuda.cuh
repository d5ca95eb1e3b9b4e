// What amplitude_mix and spectrum_accumulate take from the kernels of spectral_filter: half spectra of images in global
// memory, whole ones by chunks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "fourier/fft_cuda_rows.cuh"
#include "fourier/image.h"
#include "fourier/spectral_filter_cuda_passes.cuh"

namespace sturdy::cuda::spectra {

using fft::AxisTables;
using fft::Complex;
using fft::PlanePlan;
using fft::Program;
using filter::Call;
using filter::Prepared;

STURDY_DEVICE float square_root(float x) { return sqrtf(x); }
STURDY_DEVICE double square_root(double x) { return sqrt(x); }

// Bytes of spectra at a time: they stay in the second-level cache of a large GPU. Not asked of the device, so that a
// workspace has one size everywhere.
constexpr size_t kChunkBytes = size_t{20} << 20;

// Everything but index and bounds. False where a side is longer than the kernels take.
inline bool make_call(int64_t batch, int64_t channels, int64_t height, int64_t width, DType dtype, Call* call) {
  if (height > fft::kMaxLength || width > fft::kMaxLength) {
    return false;
  }
  *call = {};
  const int h = static_cast<int>(height);
  const int w = static_cast<int>(width);
  call->plan = dtype == DType::f64 ? fft::make_plane_plan<double>(h, w) : fft::make_plane_plan<float>(h, w);
  call->batch = batch;
  call->channels = channels;
  call->many = call->mask_entries = call->mask_channels = 1;
  call->dtype = dtype;
  return true;
}

// Room for the tables of the transforms; no masks.
template <typename T>
Prepared<T> take_tables(const Call& call, Workspace& workspace) {
  Prepared<T> prepared = {};
  prepared.down = fft::take_axis_tables<T>(call.plan.down, workspace);
  prepared.across = fft::take_axis_tables<T>(call.plan.across, workspace);
  prepared.rows = workspace.take<fft::RowEntry>(call.plan.kept);
  prepared.ranks = workspace.take<int>(call.plan.height);
  return prepared;
}

inline Planes planes_of(const ImageView& view) {
  Planes planes;
  planes.data = view.data;
  planes.image = view.stride[0];
  planes.channel = view.stride[1];
  planes.row = view.stride[2];
  planes.column = view.stride[3];
  return planes;
}

// Columns of the planes first to first + count to half spectra.
template <typename T>
Status forward_columns(const Call& call, const Prepared<T>& prepared, const Planes& pixels, bool follows_index,
                       int64_t first, int64_t count, Complex<T>* spectra, const DeviceLimits& limits, void* stream) {
  filter::ColumnsCall<T> p = {};
  p.call = call;
  p.prepared = prepared;
  p.mode = filter::Columns::forward;
  p.first = first;
  p.count = count;
  p.many = 1;
  p.pixels = pixels;
  p.dtype = call.dtype;
  p.follows_index = follows_index;
  p.spectra = spectra;
  return filter::run_columns(p, limits, stream);
}

// And back; images whose index names none become those of `copied`.
template <typename T>
Status back_columns(const Call& call, const Prepared<T>& prepared, const Planes& pixels, const Planes& copied,
                    int64_t first, int64_t count, Complex<T>* spectra, const DeviceLimits& limits, void* stream) {
  filter::ColumnsCall<T> p = {};
  p.call = call;
  p.prepared = prepared;
  p.mode = filter::Columns::back;
  p.first = first;
  p.count = count;
  p.many = 1;
  p.pixels = pixels;
  p.copied = copied;
  p.dtype = call.dtype;
  p.clamped = call.clip;
  p.spectra = spectra;
  return filter::run_columns(p, limits, stream);
}

}  // namespace sturdy::cuda::spectra
