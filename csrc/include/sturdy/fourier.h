/* The Fourier family: images changed by plane waves, and by masks on their spectra.
 *
 * wave_add (AFA: Vaish, Wang, Strisciuglio, Fourier-basis functions to bridge augmentation gap, CVPR 2024):
 *
 *   out = clamp(input + sum over k of amplitude_k * sin(2 pi (f_k0 * y + f_k1 * x) + phase_k))
 *   y = row - (H - 1) / 2,  x = column - (W - 1) / 2
 *
 * with parameters for each image and channel, or shared by some or all of them.
 */
#ifndef STURDY_FOURIER_H_
#define STURDY_FOURIER_H_

#include "sturdy/sturdy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- wave_add ---- */

/* Clamp the result to [low, high]; a NaN stays. */
#define STURDY_WAVE_ADD_CLIP 1u

typedef struct sturdy_wave_add_options {
  uint32_t struct_size; /* sizeof(sturdy_wave_add_options) as the caller was compiled */
  uint32_t flags;       /* 0 or STURDY_WAVE_ADD_CLIP */
  double low;           /* at most high; neither may be NaN; looked at with STURDY_WAVE_ADD_CLIP alone */
  double high;
} sturdy_wave_add_options;

/* Shapes and dtypes (any strides, also 0):
 *   input      (N, C, H, W)             uint8 (taken as value / 255), float16, bfloat16, float32 or float64
 *   frequency  (N or 1, C or 1, K, 2)   cycles per pixel along rows' and columns' index; float32 or float64
 *   amplitude  (N or 1, C or 1, K)      in units of the image; float32 or float64
 *   phase      (N or 1, C or 1, K)      radians; float32 or float64
 *   out        (N, C, H, W)             contiguous or channels-last; dtype of input, or any floating one for uint8
 *
 * K may be 0. Phases are computed and reduced in float64 whatever the dtypes, sums in float32 (float64 for float64
 * out).
 */

/* Checks everything and writes the sizes of the output into out->shape, which must hold four. Reads no data. For a
 * uint8 input out->dtype says what is wanted, {0, 0, 0} meaning float32; it is overwritten otherwise. */
STURDY_API sturdy_status sturdy_wave_add_infer(const sturdy_wave_add_options* options, const sturdy_tensor* input,
                                               const sturdy_tensor* frequency, const sturdy_tensor* amplitude,
                                               const sturdy_tensor* phase, sturdy_tensor* out);

STURDY_API sturdy_status sturdy_wave_add(const sturdy_context* context, const sturdy_wave_add_options* options,
                                         const sturdy_tensor* input, const sturdy_tensor* frequency,
                                         const sturdy_tensor* amplitude, const sturdy_tensor* phase,
                                         sturdy_tensor* out);

/* Gradients of sum(grad_out * out). Outputs that are NULL are not computed:
 *   grad_input      (N, C, H, W); dtype of grad_out; contiguous or channels-last
 *   grad_amplitude  (N, C, K) also where amplitude is shared; float64 for float64 grad_out, else float32; contiguous
 * grad_out has the shape and dtype of out, any strides. Where the unclamped sum lies outside [low, high] its gradient
 * is 0, on the bounds it passes; there and without STURDY_WAVE_ADD_CLIP it is grad_out itself.
 */
STURDY_API sturdy_status sturdy_wave_add_backward(const sturdy_context* context, const sturdy_wave_add_options* options,
                                                  const sturdy_tensor* grad_out, const sturdy_tensor* input,
                                                  const sturdy_tensor* frequency, const sturdy_tensor* amplitude,
                                                  const sturdy_tensor* phase, sturdy_tensor* grad_input,
                                                  sturdy_tensor* grad_amplitude);

/* ---- spectral_filter ----
 *
 * Images filtered in the frequency domain, all at once: with F the spectrum of a plane (DFT of both axes) and M a real
 * mask,
 *
 *   out = clamp(real part of the inverse DFT of M * F)
 *
 * which for real images is the filter by the mean of M(k, l) and M(-k, -l); a mask need not be symmetric.
 */

#define STURDY_SPECTRAL_FILTER_CLIP 1u /* clamp the result to [low, high]; a NaN stays */
/* Masks are (H, W / 2 + 1) in the order of a real-input DFT, frequency 0 first. Without it they are (H, W) with
 * frequency 0 at (H / 2, W / 2), rounded down. */
#define STURDY_SPECTRAL_FILTER_HALF 2u

typedef struct sturdy_spectral_filter_options {
  uint32_t struct_size; /* sizeof(sturdy_spectral_filter_options) as the caller was compiled */
  uint32_t flags;       /* 0 or a sum of the above */
  double low;           /* at most high; neither may be NaN; looked at with STURDY_SPECTRAL_FILTER_CLIP alone */
  double high;
} sturdy_spectral_filter_options;

/* Shapes and dtypes (any strides, also 0), with Wm = W or W / 2 + 1:
 *   x      (N, C, H, W)           float16, bfloat16, float32 or float64; H and W at least 1
 *   mask   float32, or the dtype of x:
 *          (H, Wm)                      one for all
 *          (C or 1, H, Wm)              one per channel
 *          (N or 1, C or 1, H, Wm)      one per image, or image and channel
 *          (T, H, Wm), (T, C or 1, H, Wm)    a table, with index
 *          (N or 1, T, C or 1, H, Wm)   T results of each image
 *   index  (N,) int64, or NULL    which entry of the table each image takes; -1 copies the image as it is
 *   out    (N, C, H, W) contiguous or channels-last, or (N, T, C, H, W) contiguous; dtype of x
 *
 * Computed in float32 (float64 for float64). The values of index are checked only on the CPU; on a GPU an image whose
 * entry the table does not have is copied.
 */

/* Checks everything but the values of index and writes the sizes of the output into out->shape, which must hold five,
 * and their number into out->ndim. Reads no data. */
STURDY_API sturdy_status sturdy_spectral_filter_infer(const sturdy_spectral_filter_options* options,
                                                      const sturdy_tensor* x, const sturdy_tensor* mask,
                                                      const sturdy_tensor* index, sturdy_tensor* out);

/* Bytes that context->workspace must have for the call; 0 on the CPU, and where the arguments are wrong. */
STURDY_API size_t sturdy_spectral_filter_workspace(const sturdy_spectral_filter_options* options,
                                                   const sturdy_tensor* x, const sturdy_tensor* mask,
                                                   const sturdy_tensor* index);

STURDY_API sturdy_status sturdy_spectral_filter(const sturdy_context* context,
                                                const sturdy_spectral_filter_options* options, const sturdy_tensor* x,
                                                const sturdy_tensor* mask, const sturdy_tensor* index,
                                                sturdy_tensor* out);

/* The same for the backward call, with 1 or 0 for whether grad_mask is wanted. `x` may be any tensor with the shape,
 * dtype and device of the images; its data are not looked at. */
STURDY_API size_t sturdy_spectral_filter_backward_workspace(const sturdy_spectral_filter_options* options,
                                                            const sturdy_tensor* x, const sturdy_tensor* mask,
                                                            const sturdy_tensor* index, int32_t want_grad_mask);

/* Gradients of sum(grad_out * out). Outputs that are NULL are not computed:
 *   grad_x     shape and dtype of x; contiguous or channels-last
 *   grad_mask   shape of mask; float64 for float64 images, else float32; contiguous
 * grad_out has the shape of out and the dtype of x, any strides. x may be NULL where there is no clamp and
 * grad_mask is not wanted. Where the unclamped result lies outside [low, high] its gradient is 0, on the bounds it
 * passes. Copied images pass their gradient on and give none to the masks.
 */
STURDY_API sturdy_status sturdy_spectral_filter_backward(const sturdy_context* context,
                                                         const sturdy_spectral_filter_options* options,
                                                         const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                                         const sturdy_tensor* mask, const sturdy_tensor* index,
                                                         sturdy_tensor* grad_x, sturdy_tensor* grad_mask);

/* ---- amplitude_mix ----
 *
 * Images with the phases of their own spectra and amplitudes mixed with those of other images (APR: Chen et al.,
 * Amplitude-phase recombination, ICCV 2021; FACT: Xu et al., A Fourier-based framework for domain generalization, CVPR
 * 2021; FDA: Yang and Soatto, FDA: Fourier domain adaptation for semantic segmentation, CVPR 2020):
 *
 *   out = clamp(real part of the inverse DFT of ((1 - strength) |F| + strength |F_other|) F / |F|)
 *
 * with F / |F| = 1 where |F| is below 1e-12 for each sample of the transform. No gradient.
 */

#define STURDY_AMPLITUDE_MIX_CLIP 1u /* clamp the result to [low, high]; a NaN stays */
#define STURDY_AMPLITUDE_MIX_WINDOW \
  2u                                  /* change only the frequencies of a window around 0; with options->window alone */
#define STURDY_AMPLITUDE_MIX_COLOR 4u /* DFT of height, width and channels, not of height and width */

typedef struct sturdy_amplitude_mix_options {
  uint32_t struct_size; /* sizeof(sturdy_amplitude_mix_options) as the caller was compiled */
  uint32_t flags;       /* 0 or a sum of the above */
  double strength;      /* for all images; not looked at where strengths are given. 0 to 1, as a rule; finite */
  int64_t window[2];    /* half-widths for all images: |k| <= window[0] and |l| <= window[1], in rows' and columns'
                           frequencies; negative: no frequency. Looked at with STURDY_AMPLITUDE_MIX_WINDOW alone */
  double low;           /* at most high; neither may be NaN; looked at with STURDY_AMPLITUDE_MIX_CLIP alone */
  double high;
} sturdy_amplitude_mix_options;

/* Shapes and dtypes (any strides, also 0):
 *   x         (N, C, H, W)      float16, bfloat16, float32 or float64; H and W at least 1
 *   other     (M, C, H, W), or NULL for x itself; dtype of x
 *   index     (N,) int64, or NULL    which image of `other` each image takes its amplitudes from; -1 copies the image
 *                               as it is. NULL: image n takes those of image n, or of the only one; not without other
 *   strength  (N or 1,) float32 or float64, or NULL for options->strength
 *   window    (N or 1, 2) int64, or NULL    half-widths, as in the options; with STURDY_AMPLITUDE_MIX_WINDOW neither
 *                               is left out, without it `window` must be NULL
 *   out       (N, C, H, W)      contiguous or channels-last; dtype of x
 *
 * Computed in float32 (float64 for float64). The values of index are looked at only on the CPU, where strengths and
 * windows are used as they are.
 */

/* Checks everything but the values of index and writes the sizes of the output into out->shape, which must hold four.
 * Reads no data. */
STURDY_API sturdy_status sturdy_amplitude_mix_infer(const sturdy_amplitude_mix_options* options, const sturdy_tensor* x,
                                                    const sturdy_tensor* other, const sturdy_tensor* index,
                                                    const sturdy_tensor* strength, const sturdy_tensor* window,
                                                    sturdy_tensor* out);

/* Bytes of device memory that sturdy_amplitude_mix needs as context->workspace; 0 on the CPU, and for arguments that it
 * refuses. */
STURDY_API size_t sturdy_amplitude_mix_workspace(const sturdy_amplitude_mix_options* options, const sturdy_tensor* x,
                                                 const sturdy_tensor* other, const sturdy_tensor* index,
                                                 const sturdy_tensor* strength, const sturdy_tensor* window);

STURDY_API sturdy_status sturdy_amplitude_mix(const sturdy_context* context,
                                              const sturdy_amplitude_mix_options* options, const sturdy_tensor* x,
                                              const sturdy_tensor* other, const sturdy_tensor* index,
                                              const sturdy_tensor* strength, const sturdy_tensor* window,
                                              sturdy_tensor* out);

/* ---- spectrum_accumulate ----
 *
 * Sums of amplitudes over groups of images, with F the DFT of a plane:
 *
 *   out[g, c, k, l] = sum over the images n of group g of |F[n, c, k, l]|^power
 *
 * No gradient.
 */

#define STURDY_SPECTRUM_ACCUMULATE_ADD 1u /* add to what out holds, which else is overwritten */

typedef struct sturdy_spectrum_accumulate_options {
  uint32_t struct_size; /* sizeof(sturdy_spectrum_accumulate_options) as the caller was compiled */
  uint32_t flags;       /* 0 or STURDY_SPECTRUM_ACCUMULATE_ADD */
  int64_t groups;       /* G, at least 0 */
  int64_t power;        /* 1 or 2 */
} sturdy_spectrum_accumulate_options;

/* Shapes and dtypes (any strides, also 0):
 *   x      (N, C, H, W)             float16, bfloat16, float32 or float64; H and W at least 1
 *   group  (N,) int64               0 to G - 1, or -1 for an image to be left out
 *   out    (G, C, H, W / 2 + 1)     in the order of a real-input DFT, frequency 0 first; float32 or float64, for
 * float64 images float64; contiguous
 *
 * Transforms are in float32 (float64 for float64), sums over many images in float64. The values of group are looked at
 * only on the CPU.
 */

/* Checks everything but the values of group and writes the sizes of the output into out->shape, which must hold four.
 * Reads no data. out->dtype says what is wanted, {0, 0, 0} meaning float32, or float64 for float64 images. */
STURDY_API sturdy_status sturdy_spectrum_accumulate_infer(const sturdy_spectrum_accumulate_options* options,
                                                          const sturdy_tensor* x, const sturdy_tensor* group,
                                                          sturdy_tensor* out);

/* Bytes of device memory that sturdy_spectrum_accumulate needs as context->workspace; 0 on the CPU, and for arguments
 * that it refuses. */
STURDY_API size_t sturdy_spectrum_accumulate_workspace(const sturdy_spectrum_accumulate_options* options,
                                                       const sturdy_tensor* x, const sturdy_tensor* group);

STURDY_API sturdy_status sturdy_spectrum_accumulate(const sturdy_context* context,
                                                    const sturdy_spectrum_accumulate_options* options,
                                                    const sturdy_tensor* x, const sturdy_tensor* group,
                                                    sturdy_tensor* out);

/* ---- filter2d, smooth_color, sine_warp ----
 *
 * The three changes of PRIME (Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, PRIME: A few primitives can boost
 * robustness to common corruptions, ECCV 2022), each with parameters for every image, or shared ones. Of all three,
 * with any strides, also 0:
 *
 *   x     (N, C, H, W)   uint8 (taken as value / 255), float16, bfloat16, float32 or float64
 *   out   (N, C, H, W)   contiguous or channels-last; dtype of x, or any floating one for uint8
 *
 * Sums are kept in float32 (float64 for float64 out). The functions with `_infer` check everything and write the sizes
 * of the output into out->shape, which must hold four; they read no data. For a uint8 x out->dtype says what is wanted,
 * {0, 0, 0} meaning float32; it is overwritten otherwise.
 */

#define STURDY_FILTER2D_CLIP 1u /* clamp the result to [low, high]; a NaN stays */

typedef struct sturdy_filter2d_options {
  uint32_t struct_size; /* sizeof(sturdy_filter2d_options) as the caller was compiled */
  uint32_t flags;       /* 0 or STURDY_FILTER2D_CLIP */
  double low;           /* at most high; neither may be NaN; looked at with STURDY_FILTER2D_CLIP alone */
  double high;
} sturdy_filter2d_options;

/* out[r, c] = clamp(sum over a, b of kernel[a, b] * x[r + a - 1, c + b - 1]), x being 0 outside of the image.
 *   kernel   (N or 1, C or 1, 3, 3)   float32 or float64
 */
STURDY_API sturdy_status sturdy_filter2d_infer(const sturdy_filter2d_options* options, const sturdy_tensor* x,
                                               const sturdy_tensor* kernel, sturdy_tensor* out);

STURDY_API sturdy_status sturdy_filter2d(const sturdy_context* context, const sturdy_filter2d_options* options,
                                         const sturdy_tensor* x, const sturdy_tensor* kernel, sturdy_tensor* out);

/* Gradients of sum(grad_out * out). Outputs that are NULL are not computed:
 *   grad_x        (N, C, H, W); dtype of grad_out; contiguous or channels-last
 *   grad_kernel   (N, C, 3, 3) also where kernel is shared; float64 for float64 grad_out, else float32; contiguous
 * grad_out has the shape and dtype of out, any strides. Where the unclamped result lies outside [low, high] its
 * gradient is 0, on the bounds it passes.
 */
STURDY_API sturdy_status sturdy_filter2d_backward(const sturdy_context* context, const sturdy_filter2d_options* options,
                                                  const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                                  const sturdy_tensor* kernel, sturdy_tensor* grad_x,
                                                  sturdy_tensor* grad_kernel);

#define STURDY_SMOOTH_COLOR_CLIP 1u /* clamp the result to [low, high]; a NaN stays */

typedef struct sturdy_smooth_color_options {
  uint32_t struct_size; /* sizeof(sturdy_smooth_color_options) as the caller was compiled */
  uint32_t flags;       /* 0 or STURDY_SMOOTH_COLOR_CLIP */
  double low;           /* at most high; neither may be NaN; looked at with STURDY_SMOOTH_COLOR_CLIP alone */
  double high;
} sturdy_smooth_color_options;

/* out = clamp(x + sum over k < K of coefficients_k * sin((first + k) pi x)), each value by itself.
 *   coefficients   (N or 1, C or 1, K)   float32 or float64; K may be 0
 *   first          (N or 1,) int64, or NULL for 1   its values are not looked at beforehand
 */
STURDY_API sturdy_status sturdy_smooth_color_infer(const sturdy_smooth_color_options* options, const sturdy_tensor* x,
                                                   const sturdy_tensor* coefficients, const sturdy_tensor* first,
                                                   sturdy_tensor* out);

STURDY_API sturdy_status sturdy_smooth_color(const sturdy_context* context, const sturdy_smooth_color_options* options,
                                             const sturdy_tensor* x, const sturdy_tensor* coefficients,
                                             const sturdy_tensor* first, sturdy_tensor* out);

/* Gradients of sum(grad_out * out). Outputs that are NULL are not computed:
 *   grad_x              (N, C, H, W); dtype of grad_out; contiguous or channels-last
 *   grad_coefficients   (N, C, K) also where they are shared; float64 for float64 grad_out, else float32; contiguous
 * The clamp is differentiated as that of filter2d.
 */
STURDY_API sturdy_status sturdy_smooth_color_backward(const sturdy_context* context,
                                                      const sturdy_smooth_color_options* options,
                                                      const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                                      const sturdy_tensor* coefficients, const sturdy_tensor* first,
                                                      sturdy_tensor* grad_x, sturdy_tensor* grad_coefficients);

typedef struct sturdy_sine_warp_options {
  uint32_t struct_size; /* sizeof(sturdy_sine_warp_options) as the caller was compiled */
  uint32_t flags;       /* 0 */
} sturdy_sine_warp_options;

/* Images displaced by fields of sines, in pixels: with field d = 0 along columns and d = 1 along rows,
 *
 *   field_d(r, c) = sum over i, j of coefficients[d, i - 1, j - 1] * sin(i pi c / (W - 1)) * sin(j pi r / (H - 1))
 *   out(r, c) = x(r - field_1, c - field_0), bilinear, coordinates clamped to the image
 *
 *   coefficients   (N or 1, 2, I, J)   float32 or float64; I and J may be 0
 *
 * A NaN among the coefficients makes the image NaN. There is no gradient.
 */
STURDY_API sturdy_status sturdy_sine_warp_infer(const sturdy_sine_warp_options* options, const sturdy_tensor* x,
                                                const sturdy_tensor* coefficients, sturdy_tensor* out);

STURDY_API sturdy_status sturdy_sine_warp(const sturdy_context* context, const sturdy_sine_warp_options* options,
                                          const sturdy_tensor* x, const sturdy_tensor* coefficients,
                                          sturdy_tensor* out);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* STURDY_FOURIER_H_ */
