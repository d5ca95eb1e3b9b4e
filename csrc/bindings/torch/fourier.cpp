// The Fourier family for torch.
#include "sturdy/fourier.h"

#include <stdexcept>
#include <string>
#include <tuple>

#include "call.h"

namespace sturdy::torch_binding {
namespace {

std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// ---- wave_add
// --------------------------------------------------------------------------------------------------------

sturdy_wave_add_options wave_add_options(const std::vector<double>& clip) {
  if (!clip.empty() && clip.size() != 2) {
    throw std::runtime_error("[sturdy:EINVAL] wave_add: clip must be empty or have 2 values, got " +
                             std::to_string(clip.size()));
  }
  sturdy_wave_add_options o = {};
  o.struct_size = sizeof o;
  if (!clip.empty()) {
    o.flags = STURDY_WAVE_ADD_CLIP;
    o.low = clip[0];
    o.high = clip[1];
  }
  return o;
}

ScalarType wave_add_dtype(const Tensor& input, std::optional<ScalarType> dtype) {
  if (input.scalar_type() != ScalarType::Byte) {
    return input.scalar_type();
  }
  return dtype.value_or(ScalarType::Float);
}

Tensor wave_add(const Tensor& input, const Tensor& frequency, const Tensor& amplitude, const Tensor& phase,
                std::vector<double> clip, std::optional<ScalarType> dtype) {
  const auto options = wave_add_options(clip);
  View in(input);
  View f(frequency);
  View a(amplitude);
  View p(phase);
  int64_t shape[4] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  inferred.dtype = to_sturdy(wave_add_dtype(input, dtype));
  check(sturdy_wave_add_infer(&options, in.get(), f.get(), a.get(), p.get(), &inferred));
  Tensor out = make(input, std::vector<int64_t>(shape, shape + 4), wave_add_dtype(input, dtype), output_format(input));
  const Call call(input, 0);
  View out_view(out);
  check(sturdy_wave_add(call.context(), &options, in.get(), f.get(), a.get(), p.get(), out_view.get()));
  return out;
}

std::tuple<Tensor, Tensor> wave_add_backward(const Tensor& grad_out, const std::optional<Tensor>& input,
                                             const Tensor& frequency, const Tensor& amplitude, const Tensor& phase,
                                             std::vector<double> clip, bool need_input, bool need_amplitude) {
  const auto options = wave_add_options(clip);
  View grad(grad_out);
  View in(input);
  View f(frequency);
  View a(amplitude);
  View p(phase);
  const Tensor& like = input.has_value() ? *input : grad_out;
  Tensor grad_input = need_input ? make(grad_out, sizes_of(grad_out), grad_out.scalar_type(), output_format(like))
                                 : make(grad_out, {0}, grad_out.scalar_type(), MemoryFormat::Contiguous);
  std::vector<int64_t> per_plane = {0};
  if (need_amplitude && grad_out.dim() == 4 && frequency.dim() == 4) {
    per_plane = {grad_out.size(0), grad_out.size(1), frequency.size(2)};
  }
  Tensor grad_amplitude = make(grad_out, per_plane, accumulate_dtype(grad_out), MemoryFormat::Contiguous);
  const Call call(grad_out, 0);
  View to_input = need_input ? View(grad_input) : View();
  View to_amplitude = need_amplitude ? View(grad_amplitude) : View();
  check(sturdy_wave_add_backward(call.context(), &options, grad.get(), in.get(), f.get(), a.get(), p.get(),
                                 to_input.get(), to_amplitude.get()));
  return {grad_input, grad_amplitude};
}

// ---- spectral_filter ----

sturdy_spectral_filter_options spectral_filter_options(bool half, const std::vector<double>& clip) {
  if (!clip.empty() && clip.size() != 2) {
    throw std::runtime_error("[sturdy:EINVAL] spectral_filter: clip must be empty or have 2 values, got " +
                             std::to_string(clip.size()));
  }
  sturdy_spectral_filter_options o = {};
  o.struct_size = sizeof o;
  o.flags = half ? STURDY_SPECTRAL_FILTER_HALF : 0;
  if (!clip.empty()) {
    o.flags |= STURDY_SPECTRAL_FILTER_CLIP;
    o.low = clip[0];
    o.high = clip[1];
  }
  return o;
}

Tensor spectral_filter(const Tensor& input, const Tensor& mask, const std::optional<Tensor>& index, bool half,
                       std::vector<double> clip) {
  const auto options = spectral_filter_options(half, clip);
  View in(input);
  View m(mask);
  View i(index);
  int64_t shape[5] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  check(sturdy_spectral_filter_infer(&options, in.get(), m.get(), i.get(), &inferred));
  const MemoryFormat format = inferred.ndim == 4 ? output_format(input) : MemoryFormat::Contiguous;
  Tensor out = make(input, std::vector<int64_t>(shape, shape + inferred.ndim), input.scalar_type(), format);
  const Call call(input, 0);
  View out_view(out);
  check(sturdy_spectral_filter(call.context(), &options, in.get(), m.get(), i.get(), out_view.get()));
  return out;
}

std::tuple<Tensor, Tensor> spectral_filter_backward(const Tensor& grad_out, const std::optional<Tensor>& input,
                                                    const Tensor& mask, const std::optional<Tensor>& index, bool half,
                                                    std::vector<double> clip, bool need_input, bool need_mask) {
  const auto options = spectral_filter_options(half, clip);
  View grad(grad_out);
  View in(input);
  View m(mask);
  View i(index);
  const Tensor& like = input.has_value() ? *input : grad_out;
  std::vector<int64_t> shape = {0};
  MemoryFormat format = MemoryFormat::Contiguous;
  if (need_input) {
    shape = sizes_of(like);
    if (like.dim() == 5) {  // one gradient from those of several results
      shape.erase(shape.begin() + 1);
    } else {
      format = output_format(like);
    }
  }
  Tensor grad_input = make(grad_out, shape, grad_out.scalar_type(), format);
  Tensor grad_mask = make(grad_out, need_mask ? sizes_of(mask) : std::vector<int64_t>{0}, accumulate_dtype(grad_out),
                          MemoryFormat::Contiguous);
  const Call call(grad_out, 0);
  View to_input = need_input ? View(grad_input) : View();
  View to_mask = need_mask ? View(grad_mask) : View();
  check(sturdy_spectral_filter_backward(call.context(), &options, grad.get(), in.get(), m.get(), i.get(),
                                        to_input.get(), to_mask.get()));
  return {grad_input, grad_mask};
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("wave_add", TORCH_BOX(&wave_add));
  m.impl("wave_add_backward", TORCH_BOX(&wave_add_backward));
  m.impl("spectral_filter", TORCH_BOX(&spectral_filter));
  m.impl("spectral_filter_backward", TORCH_BOX(&spectral_filter_backward));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("wave_add", TORCH_BOX(&wave_add));
  m.impl("wave_add_backward", TORCH_BOX(&wave_add_backward));
  m.impl("spectral_filter", TORCH_BOX(&spectral_filter));
  m.impl("spectral_filter_backward", TORCH_BOX(&spectral_filter_backward));
}

}  // namespace sturdy::torch_binding
