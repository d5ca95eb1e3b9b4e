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

}  // namespace sturdy

#endif  // STURDY_FOURIER_HPP_
