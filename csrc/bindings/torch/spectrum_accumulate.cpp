// spectrum_accumulate for torch.
#include "call.h"
#include "sturdy/fourier.h"

namespace sturdy::torch_binding {
namespace {

// `initial`, which the sums are added to, must have the shape of the result; its dtype is that of the result.
Tensor spectrum_accumulate(const Tensor& x, const Tensor& group, int64_t groups, int64_t power,
                           const std::optional<Tensor>& initial) {
  sturdy_spectrum_accumulate_options options = {};
  options.struct_size = sizeof options;
  options.flags = initial.has_value() ? STURDY_SPECTRUM_ACCUMULATE_ADD : 0;
  options.groups = groups;
  options.power = power;
  const ScalarType dtype = initial.has_value() ? initial->scalar_type() : accumulate_dtype(x);
  View in(x);
  View g(group);
  int64_t shape[4] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  inferred.dtype = to_sturdy(dtype);
  check(sturdy_spectrum_accumulate_infer(&options, in.get(), g.get(), &inferred));
  Tensor out = make(x, std::vector<int64_t>(shape, shape + 4), dtype, MemoryFormat::Contiguous);
  if (initial.has_value()) {
    torch::stable::copy_(out, *initial);
  }
  const Call call(x, sturdy_spectrum_accumulate_workspace(&options, in.get(), g.get()));
  View out_view(out);
  check(sturdy_spectrum_accumulate(call.context(), &options, in.get(), g.get(), out_view.get()));
  return out;
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("spectrum_accumulate", TORCH_BOX(&spectrum_accumulate));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("spectrum_accumulate", TORCH_BOX(&spectrum_accumulate));
}

}  // namespace sturdy::torch_binding
