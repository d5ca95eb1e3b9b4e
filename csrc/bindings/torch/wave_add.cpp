// wave_add for torch.
#include <tuple>

#include "call.h"
#include "clip.h"
#include "sturdy/fourier.h"

namespace sturdy::torch_binding {
namespace {

sturdy_wave_add_options wave_add_options(const std::vector<double>& clip) {
  check_clip("wave_add", clip);
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

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("wave_add", TORCH_BOX(&wave_add));
  m.impl("wave_add_backward", TORCH_BOX(&wave_add_backward));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("wave_add", TORCH_BOX(&wave_add));
  m.impl("wave_add_backward", TORCH_BOX(&wave_add_backward));
}

}  // namespace sturdy::torch_binding
