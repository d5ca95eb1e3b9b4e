// The kernels of filter2d, smooth_color and sine_warp: what dispatch promises them and what they promise back.
#pragma once

#include <cstdint>

#include "common/parallel.h"
#include "common/types.h"
#include "fourier/image.h"
#include "fourier/image_change.h"

namespace sturdy {

// An image in and an image out. `input` holds bytes, of which 255 means 1, or the dtype of `out`.
struct ImageToImage {
  ImageSizes sizes;
  ImageView input;
  ImageView out;  // dense: contiguous or channels-last; never aliases an input
  bool input_is_bytes;
  DType dtype;  // of out
};

// The gradient of such an op. Whoever clamps needs the input.
struct ImageGradient {
  ImageSizes sizes;
  ImageView grad_out;  // any strides
  ImageView input;
  ImageView grad_input;  // dense; data null: not wanted
  bool input_is_bytes;
  DType dtype;  // of grad_out and grad_input
};

struct Filter2dParams {
  ImageToImage image;
  ImageParameter kernel;  // (N or 1, C or 1, 3, 3)
  ImageClip clip;
};

struct Filter2dBackwardParams {
  ImageGradient image;
  ImageParameter kernel;
  ImageClip clip;
  void* grad_kernel;  // (N, C, 3, 3) float, or double for dtype f64; compact; null: not wanted
};

// The sine of number k has the frequency first + k; first is (N or 1) int64, null means 1.
struct ColorTerms {
  ImageParameter coefficients;  // (N or 1, C or 1, K)
  int64_t count;                // K
  const int64_t* first;
  int64_t first_stride;
  ImageClip clip;
};

struct SmoothColorParams {
  ImageToImage image;
  ColorTerms terms;
};

struct SmoothColorBackwardParams {
  ImageGradient image;
  ColorTerms terms;
  void* grad_coefficients;  // (N, C, K) float, or double for dtype f64; compact; null: not wanted
};

struct SineWarpParams {
  ImageToImage image;
  ImageParameter coefficients;      // (N or 1, 2, I, J)
  int64_t column_terms, row_terms;  // I, J
};

// Sines on the points c / (length - 1) of an axis repeat with their frequency: i, 2 (length - 1) t + i and, with the
// opposite sign, 2 (length - 1) t - i are one. So many are different, 0 where every sine vanishes on every point.
constexpr int64_t different_sines(int64_t terms, int64_t length) {
  const int64_t most = length < 2 ? 0 : length - 2;
  return terms < most ? terms : most;
}

namespace cpu {
Status filter2d(const Filter2dParams& params, const Threads& threads);
Status filter2d_backward(const Filter2dBackwardParams& params, const Threads& threads);
Status smooth_color(const SmoothColorParams& params, const Threads& threads);
Status smooth_color_backward(const SmoothColorBackwardParams& params, const Threads& threads);
Status sine_warp(const SineWarpParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
Status filter2d(const Filter2dParams& params, void* stream);
Status filter2d_backward(const Filter2dBackwardParams& params, void* stream);
Status smooth_color(const SmoothColorParams& params, void* stream);
Status smooth_color_backward(const SmoothColorBackwardParams& params, void* stream);
Status sine_warp(const SineWarpParams& params, void* stream);
}  // namespace cuda

}  // namespace sturdy
