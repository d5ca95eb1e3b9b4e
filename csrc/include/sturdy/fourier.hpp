// The Fourier family for C++: options with the usual defaults, and calls that throw.
#ifndef STURDY_FOURIER_HPP_
#define STURDY_FOURIER_HPP_

#include "sturdy/fourier.h"
#include "sturdy/sturdy.hpp"

namespace sturdy {

// ---- wave_add ----

// No clamp.
inline sturdy_wave_add_options wave_add_options() {
  sturdy_wave_add_options options = {};
  options.struct_size = sizeof options;
  return options;
}

// Clamps to [low, high].
inline sturdy_wave_add_options wave_add_options(double low, double high) {
  sturdy_wave_add_options options = wave_add_options();
  options.flags = STURDY_WAVE_ADD_CLIP;
  options.low = low;
  options.high = high;
  return options;
}

// Writes the result into `out`; on the CPU, with the built-in threads unless `context` brings others.
inline void wave_add(const sturdy_wave_add_options& options, TensorView input, TensorView frequency,
                     TensorView amplitude, TensorView phase, TensorView out, const sturdy_context* context = nullptr) {
  check(sturdy_wave_add(context, &options, input, frequency, amplitude, phase, out));
}

// ---- spectral_filter ----

// No clamp, masks (H, W) with frequency 0 in the middle.
inline sturdy_spectral_filter_options spectral_filter_options() {
  sturdy_spectral_filter_options options = {};
  options.struct_size = sizeof options;
  return options;
}

// Writes the result into `out`; on the CPU, with the built-in threads unless `context` brings others.
inline void spectral_filter(const sturdy_spectral_filter_options& options, TensorView input, TensorView mask,
                            TensorView out, const sturdy_tensor* index = nullptr,
                            const sturdy_context* context = nullptr) {
  check(sturdy_spectral_filter(context, &options, input, mask, index, out));
}

// ---- amplitude_mix ----

// No clamp, no window, channels apart.
inline sturdy_amplitude_mix_options amplitude_mix_options(double strength = 1) {
  sturdy_amplitude_mix_options options = {};
  options.struct_size = sizeof options;
  options.strength = strength;
  return options;
}

// Writes the result into `out`; on the CPU, with the built-in threads unless `context` brings others.
inline void amplitude_mix(const sturdy_amplitude_mix_options& options, TensorView input, const sturdy_tensor* other,
                          const sturdy_tensor* index, TensorView out, const sturdy_context* context = nullptr) {
  check(sturdy_amplitude_mix(context, &options, input, other, index, nullptr, nullptr, out));
}

// ---- spectrum_accumulate ----

// Overwrites the output.
inline sturdy_spectrum_accumulate_options spectrum_accumulate_options(int64_t groups, int64_t power = 1) {
  sturdy_spectrum_accumulate_options options = {};
  options.struct_size = sizeof options;
  options.groups = groups;
  options.power = power;
  return options;
}

// Writes the sums into `out`, or adds them to it; on the CPU, with the built-in threads unless `context` brings others.
inline void spectrum_accumulate(const sturdy_spectrum_accumulate_options& options, TensorView input, TensorView group,
                                TensorView out, const sturdy_context* context = nullptr) {
  check(sturdy_spectrum_accumulate(context, &options, input, group, out));
}

// ---- filter2d, smooth_color, sine_warp ----

// No clamp.
inline sturdy_filter2d_options filter2d_options() {
  sturdy_filter2d_options options = {};
  options.struct_size = sizeof options;
  return options;
}

// Clamps to [low, high].
inline sturdy_filter2d_options filter2d_options(double low, double high) {
  sturdy_filter2d_options options = filter2d_options();
  options.flags = STURDY_FILTER2D_CLIP;
  options.low = low;
  options.high = high;
  return options;
}

// Writes the result into `out`; on the CPU, with the built-in threads unless `context` brings others. So do the others.
inline void filter2d(const sturdy_filter2d_options& options, TensorView x, TensorView kernel, TensorView out,
                     const sturdy_context* context = nullptr) {
  check(sturdy_filter2d(context, &options, x, kernel, out));
}

// No clamp.
inline sturdy_smooth_color_options smooth_color_options() {
  sturdy_smooth_color_options options = {};
  options.struct_size = sizeof options;
  return options;
}

// Clamps to [low, high].
inline sturdy_smooth_color_options smooth_color_options(double low, double high) {
  sturdy_smooth_color_options options = smooth_color_options();
  options.flags = STURDY_SMOOTH_COLOR_CLIP;
  options.low = low;
  options.high = high;
  return options;
}

// Frequencies count from 1 unless `first` says from where.
inline void smooth_color(const sturdy_smooth_color_options& options, TensorView x, TensorView coefficients,
                         TensorView out, const sturdy_tensor* first = nullptr,
                         const sturdy_context* context = nullptr) {
  check(sturdy_smooth_color(context, &options, x, coefficients, first, out));
}

inline sturdy_sine_warp_options sine_warp_options() {
  sturdy_sine_warp_options options = {};
  options.struct_size = sizeof options;
  return options;
}

inline void sine_warp(const sturdy_sine_warp_options& options, TensorView x, TensorView coefficients, TensorView out,
                      const sturdy_context* context = nullptr) {
  check(sturdy_sine_warp(context, &options, x, coefficients, out));
}

}  // namespace sturdy

#endif  // STURDY_FOURIER_HPP_
