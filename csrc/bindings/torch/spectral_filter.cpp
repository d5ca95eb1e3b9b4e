// spectral_filter for torch.
#include <tuple>

#include "call.h"
#include "clip.h"
#include "sturdy/fourier.h"

namespace sturdy::torch_binding {
namespace {

sturdy_spectral_filter_options spectral_filter_options(bool half, const std::vector<double>& clip) {
  check_clip("spectral_filter", clip);
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
  const Call call(input, sturdy_spectral_filter_workspace(&options, in.get(), m.get(), i.get()));
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
  // The images by their shape: where they are not needed they were not kept.
  sturdy_tensor images = *(input.has_value() ? in.get() : grad.get());
  std::vector<int64_t> image_shape(images.shape, images.shape + images.ndim);
  if (image_shape.size() == 5) {
    image_shape.erase(image_shape.begin() + 1);
    images.strides = nullptr;
  }
  images.ndim = static_cast<int32_t>(image_shape.size());
  images.shape = image_shape.data();
  const Call call(grad_out, sturdy_spectral_filter_backward_workspace(&options, &images, m.get(), i.get(), need_mask));
  View to_input = need_input ? View(grad_input) : View();
  View to_mask = need_mask ? View(grad_mask) : View();
  check(sturdy_spectral_filter_backward(call.context(), &options, grad.get(), in.get(), m.get(), i.get(),
                                        to_input.get(), to_mask.get()));
  return {grad_input, grad_mask};
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("spectral_filter", TORCH_BOX(&spectral_filter));
  m.impl("spectral_filter_backward", TORCH_BOX(&spectral_filter_backward));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("spectral_filter", TORCH_BOX(&spectral_filter));
  m.impl("spectral_filter_backward", TORCH_BOX(&spectral_filter_backward));
}

}  // namespace sturdy::torch_binding
