// Every op's schema: the whole contract with torch on one page.
//
// Optional outputs come back empty when they were not asked for. Paddings are top, bottom, left, right.
#include "compat.h"

STURDY_TORCH_LIBRARY(STURDY_TORCH_NAMESPACE, m) {
  m.def(
      "push_pull_conv2d(Tensor input, Tensor weight, Tensor? inhibition, float strength, Tensor? bias, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, int[2] pool, bool channel_range, bool allow_tf32, bool "
      "keep_push) -> (Tensor out, Tensor push)");
  m.def(
      "push_pull_conv2d_backward(Tensor grad_out, Tensor input, Tensor weight, Tensor? inhibition, float strength, "
      "Tensor? push, int[2] stride, int[4] padding, int[2] dilation, int groups, int[2] pool, bool channel_range, "
      "bool allow_tf32, bool need_input, bool need_weight, bool need_inhibition, bool need_bias) -> (Tensor "
      "grad_input, Tensor grad_weight, Tensor grad_inhibition, Tensor grad_bias)");

  // fourier: clip is () or (low, high)
  m.def(
      "wave_add(Tensor input, Tensor frequency, Tensor amplitude, Tensor phase, float[] clip, ScalarType? dtype) "
      "-> Tensor");
  m.def(
      "wave_add_backward(Tensor grad_out, Tensor? input, Tensor frequency, Tensor amplitude, Tensor phase, "
      "float[] clip, bool need_input, bool need_amplitude) -> (Tensor grad_input, Tensor grad_amplitude)");
  m.def("spectral_filter(Tensor x, Tensor mask, Tensor? index, bool half, float[] clip) -> Tensor");
  m.def(
      "spectral_filter_backward(Tensor grad_out, Tensor? x, Tensor mask, Tensor? index, bool half, float[] clip, "
      "bool need_x, bool need_mask) -> (Tensor grad_x, Tensor grad_mask)");
  // window is () or (rows, columns) for all images; a tensor of strengths or windows goes before the number
  m.def(
      "amplitude_mix(Tensor x, Tensor? other, Tensor? index, float strength, Tensor? strengths, int[] window, "
      "Tensor? windows, bool color_fft, float[] clip) -> Tensor");
  m.def("spectrum_accumulate(Tensor x, Tensor group, int groups, int power, Tensor? initial) -> Tensor");
  m.def("filter2d(Tensor x, Tensor kernel, float[] clip, ScalarType? dtype) -> Tensor");
  m.def(
      "filter2d_backward(Tensor grad_out, Tensor x, Tensor kernel, float[] clip, bool need_x, bool need_kernel) "
      "-> (Tensor grad_x, Tensor grad_kernel)");
  m.def("smooth_color(Tensor x, Tensor coefficients, Tensor? first, float[] clip, ScalarType? dtype) -> Tensor");
  m.def(
      "smooth_color_backward(Tensor grad_out, Tensor x, Tensor coefficients, Tensor? first, float[] clip, bool need_x, "
      "bool need_coefficients) -> (Tensor grad_x, Tensor grad_coefficients)");
  m.def("sine_warp(Tensor x, Tensor coefficients, ScalarType? dtype) -> Tensor");

  // cast: padding is (B, N), true where there is no token; a temperature of 0 means its default
  m.def(
      "cast_affinity(Tensor q, Tensor k, Tensor surrogates, Tensor phi, Tensor? padding, float tau_g, bool allow_tf32) "
      "-> Tensor");
  m.def(
      "cast_cluster(Tensor affinity, Tensor? padding, int cluster_size, bool single_assignment) -> (Tensor index, "
      "Tensor counts, Tensor assignment)");
  m.def(
      "cast_attention(Tensor q, Tensor k, Tensor v, Tensor surrogates, Tensor phi, Tensor index, Tensor? padding, "
      "Tensor? seed, float tau, float tau_q, float tau_k, float dropout, bool disjoint, bool allow_tf32, bool keep) -> "
      "(Tensor out, Tensor intra, Tensor summaries, Tensor lse_intra, Tensor lse_summary, Tensor lse_mix)");
  m.def(
      "cast_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor surrogates, Tensor phi, Tensor "
      "index, Tensor? padding, Tensor? seed, Tensor out, Tensor intra, Tensor summaries, Tensor lse_intra, Tensor "
      "lse_summary, Tensor lse_mix, float tau, float tau_q, float tau_k, float dropout, bool disjoint, bool "
      "allow_tf32) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_surrogates, Tensor grad_phi)");
}
