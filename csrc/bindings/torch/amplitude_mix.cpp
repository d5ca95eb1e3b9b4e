// amplitude_mix for torch.
#include <stdexcept>
#include <string>

#include "call.h"
#include "clip.h"
#include "sturdy/fourier.h"

namespace sturdy::torch_binding {
namespace {

sturdy_amplitude_mix_options amplitude_mix_options(double strength, const std::vector<int64_t>& window, bool windows,
                                                   bool color, const std::vector<double>& clip) {
  check_clip("amplitude_mix", clip);
  if (!window.empty() && window.size() != 2) {
    throw std::runtime_error("[sturdy:EINVAL] amplitude_mix: window must be empty or have 2 values, got " +
                             std::to_string(window.size()));
  }
  sturdy_amplitude_mix_options o = {};
  o.struct_size = sizeof o;
  o.flags = color ? STURDY_AMPLITUDE_MIX_COLOR : 0;
  o.strength = strength;
  if (!window.empty() || windows) {
    o.flags |= STURDY_AMPLITUDE_MIX_WINDOW;
  }
  if (!window.empty()) {
    o.window[0] = window[0];
    o.window[1] = window[1];
  }
  if (!clip.empty()) {
    o.flags |= STURDY_AMPLITUDE_MIX_CLIP;
    o.low = clip[0];
    o.high = clip[1];
  }
  return o;
}

Tensor amplitude_mix(const Tensor& x, const std::optional<Tensor>& other, const std::optional<Tensor>& index,
                     double strength, const std::optional<Tensor>& strengths, std::vector<int64_t> window,
                     const std::optional<Tensor>& windows, bool color_fft, std::vector<double> clip) {
  const auto options = amplitude_mix_options(strength, window, windows.has_value(), color_fft, clip);
  View in(x);
  View o(other);
  View i(index);
  View s(strengths);
  View w(windows);
  int64_t shape[4] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  check(sturdy_amplitude_mix_infer(&options, in.get(), o.get(), i.get(), s.get(), w.get(), &inferred));
  Tensor out = make(x, std::vector<int64_t>(shape, shape + 4), x.scalar_type(), output_format(x));
  const Call call(x, sturdy_amplitude_mix_workspace(&options, in.get(), o.get(), i.get(), s.get(), w.get()));
  View out_view(out);
  check(sturdy_amplitude_mix(call.context(), &options, in.get(), o.get(), i.get(), s.get(), w.get(), out_view.get()));
  return out;
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) { m.impl("amplitude_mix", TORCH_BOX(&amplitude_mix)); }

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) { m.impl("amplitude_mix", TORCH_BOX(&amplitude_mix)); }

}  // namespace sturdy::torch_binding
