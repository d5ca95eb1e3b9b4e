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

}  // namespace sturdy

#endif  // STURDY_FOURIER_HPP_
