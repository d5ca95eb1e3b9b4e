// What filter2d, smooth_color and sine_warp on the CPU hand to the kernels of one instruction set.
#pragma once

#include <cstdint>

#include "fourier/prime.h"

namespace sturdy {
namespace cpu {

// How a call is cut into units: a band of rows of one plane, or of all channels of an image (`channels` at a time).
// No value depends on the cut; gradients of parameters are sums over planes, which are then not cut.
struct ImageCut {
  int64_t channels;  // of a unit
  int64_t groups;    // of channels, per image
  int64_t bands;     // of rows, per group
  int64_t band_rows;

  int64_t units(int64_t batch) const { return batch * groups * bands; }
};

// The part of an image that a unit is about.
struct ImageUnit {
  int64_t image, channel, channels, first_row, rows;

  ImageUnit(const ImageCut& cut, const ImageSizes& sizes, int64_t index) {
    const int64_t group = index / cut.bands;
    first_row = index % cut.bands * cut.band_rows;
    rows = sizes.height - first_row < cut.band_rows ? sizes.height - first_row : cut.band_rows;
    image = group / cut.groups;
    channel = group % cut.groups * cut.channels;
    channels = cut.channels;
  }
};

inline int64_t image_offset(const ImageView& view, int64_t image, int64_t channel, int64_t row) {
  return image * view.stride[0] + channel * view.stride[1] + row * view.stride[2];
}

inline double read_parameter(const ImageParameter& parameter, int64_t at) {
  return parameter.is_double ? static_cast<const double*>(parameter.data)[at]
                             : static_cast<double>(static_cast<const float*>(parameter.data)[at]);
}

// The sines of both axes, the same for all images: [term][point of the axis], rows a multiple of the vector apart.
struct WarpTables {
  const void* columns;  // (I, W)
  const void* rows;     // (J, H)
  int64_t column_terms, row_terms, column_pitch, row_pitch;
};

// All work on the units [begin, end).
struct PrimeKernels {
  void (*filter2d)(const Filter2dParams& params, const ImageCut& cut, int64_t begin, int64_t end);
  void (*filter2d_backward)(const Filter2dBackwardParams& params, int64_t begin, int64_t end);  // units are planes
  void (*smooth_color)(const SmoothColorParams& params, const ImageCut& cut, int64_t begin, int64_t end);
  void (*smooth_color_backward)(const SmoothColorBackwardParams& params, int64_t begin, int64_t end);  // planes
  void (*sine_warp)(const SineWarpParams& params, const WarpTables& tables, const ImageCut& cut, int64_t begin,
                    int64_t end);
};

constexpr int64_t kWarpRows = 8;      // bands of sine_warp are a multiple of it
constexpr int64_t kWarpPadding = 16;  // of a table's rows, in elements

}  // namespace cpu

namespace portable {
void fill_filter2d(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
void fill_smooth_color(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
void fill_sine_warp(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
}  // namespace portable
namespace avx2 {
void fill_filter2d(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
void fill_smooth_color(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
void fill_sine_warp(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
}  // namespace avx2
namespace avx512 {
void fill_filter2d(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
void fill_smooth_color(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
void fill_sine_warp(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels);
}  // namespace avx512

}  // namespace sturdy
