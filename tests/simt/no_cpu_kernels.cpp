// Stands in for the CPU kernels in the test libraries, where every call goes to the CUDA kernels: the real ones take
// minutes to compile and would never run.
#include "cast/cast_affinity.h"
#include "cast/cast_attention.h"
#include "cast/cast_cluster.h"
#include "fourier/amplitude_mix.h"
#include "fourier/prime.h"
#include "fourier/spectral_filter.h"
#include "fourier/spectrum_accumulate.h"
#include "fourier/wave_add.h"
#include "pushpull/push_pull_conv2d.h"

namespace sturdy::cpu {

Status amplitude_mix(const AmplitudeMixParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status cast_affinity(const CastAffinityParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status cast_attention(const CastAttentionParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status cast_attention_backward(const CastAttentionBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status cast_cluster(const CastClusterParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status filter2d(const Filter2dParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status filter2d_backward(const Filter2dBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status push_pull_conv2d(const PushPullForwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status push_pull_conv2d_backward(const PushPullBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status sine_warp(const SineWarpParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status smooth_color(const SmoothColorParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status smooth_color_backward(const SmoothColorBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status spectral_filter(const SpectralFilterParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status spectral_filter_backward(const SpectralFilterBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status spectrum_accumulate(const SpectrumAccumulateParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

Status wave_add(const WaveAddParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status wave_add_backward(const WaveAddBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

}  // namespace sturdy::cpu
