// wave_add: argument checks, dispatch and the C entry points. The only code of the op that looks at tensors.
#include "fourier/wave_add.h"

#include <cmath>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "fourier/image_change.h"
#include "sturdy/fourier.h"

namespace sturdy {
namespace {

constexpr const char* forward_name = "wave_add";
constexpr const char* backward_name = "wave_add_backward";

using Options = sturdy_wave_add_options;

// One parameter tensor: (N or 1, C or 1, K) and, of the frequency, 2.
WaveParameter check_parameter(Checker& check, const char* name, const sturdy_tensor* tensor, bool per_axis,
                              const sturdy_tensor* input, const Waves& waves) {
  WaveParameter parameter;
  check.present(name, tensor);
  check.rank(name, tensor, per_axis ? 4 : 3, per_axis ? "(N or 1, C or 1, K, 2)" : "(N or 1, C or 1, K)");
  check.parameter_dtype(name, tensor);
  check.same_device(name, tensor, "input", input);
  if (!check.ok()) {
    return parameter;
  }
  const int64_t wanted[] = {waves.batch, waves.channels};
  for (int dim = 0; dim < 2; ++dim) {
    if (tensor->shape[dim] != 1) {
      check.size(name, tensor, dim, wanted[dim], dim == 0 ? "images (N) or 1" : "channels (C) or 1");
    }
  }
  check.size(name, tensor, 2, waves.count, "waves (K), as frequency has");
  if (per_axis) {
    check.size(name, tensor, 3, 2, "axes (rows, columns)");
  }
  if (!check.ok()) {
    return parameter;
  }
  parameter.data = data_of(*tensor);
  parameter.is_double = tensor->dtype.bits == 64;
  for (int dim = 0; dim < tensor->ndim; ++dim) {
    const bool shared = dim < 2 && tensor->shape[dim] == 1;
    parameter.stride[dim] = shared ? 0 : stride_of(*tensor, dim);
  }
  return parameter;
}

// Checks options and inputs, and fills in all but the images. Reads no data. `sized` has the shape of the input.
Waves check_arguments(Checker& check, const Options* options, const char* sized_name, const sturdy_tensor* sized,
                      const sturdy_tensor* frequency, const sturdy_tensor* amplitude, const sturdy_tensor* phase) {
  Waves waves = {};
  const ImageClip clip = clip_of(check, options, STURDY_WAVE_ADD_CLIP);
  check.present(sized_name, sized);
  check.rank(sized_name, sized, 4, "(N, C, H, W)");
  check.present("frequency", frequency);
  check.rank("frequency", frequency, 4, "(N or 1, C or 1, K, 2)");
  if (!check.ok()) {
    return waves;
  }
  waves.batch = sized->shape[0];
  waves.channels = sized->shape[1];
  waves.height = sized->shape[2];
  waves.width = sized->shape[3];
  waves.count = frequency->shape[2];
  waves.clip = clip.on;
  waves.low = clip.low;
  waves.high = clip.high;
  waves.frequency = check_parameter(check, "frequency", frequency, true, sized, waves);
  waves.amplitude = check_parameter(check, "amplitude", amplitude, false, sized, waves);
  waves.phase = check_parameter(check, "phase", phase, false, sized, waves);
  return waves;
}

sturdy_status forward(const sturdy_context* context, const Options* options, const sturdy_tensor* input,
                      const sturdy_tensor* frequency, const sturdy_tensor* amplitude, const sturdy_tensor* phase,
                      sturdy_tensor* out) {
  Checker check(forward_name);
  check.context(context);
  WaveAddParams p = {};
  check.present("input", input);
  check.image_dtype("input", input);
  p.waves = check_arguments(check, options, "input", input, frequency, amplitude, phase);
  check_image_out(check, out, "input", input,
                  {{"input", input}, {"frequency", frequency}, {"amplitude", amplitude}, {"phase", phase}});
  if (!check.ok()) {
    return check.result();
  }
  p.input = image_view(input);
  p.out = image_view(out);
  p.input_is_bytes = is_bytes(*input);
  p.dtype = to_dtype(out->dtype);
  if (element_count(*out) == 0) {
    return STURDY_OK;
  }
  return report(forward_name,
                runs_on_cuda(*input) ? cuda::wave_add(p, stream_of(context)) : cpu::wave_add(p, Threads(context)));
}

sturdy_status backward(const sturdy_context* context, const Options* options, const sturdy_tensor* grad_out,
                       const sturdy_tensor* input, const sturdy_tensor* frequency, const sturdy_tensor* amplitude,
                       const sturdy_tensor* phase, sturdy_tensor* grad_input, sturdy_tensor* grad_amplitude) {
  Checker check(backward_name);
  check.context(context);
  WaveAddBackwardParams p = {};
  check.present("grad_out", grad_out);
  check.float_dtype("grad_out", grad_out);
  p.waves = check_arguments(check, options, "grad_out", grad_out, frequency, amplitude, phase);
  if (p.waves.clip || input != nullptr) {
    check.present("input", input);
    check.image_dtype("input", input);
    if (check.ok()) {
      check.shape("input", input, {p.waves.batch, p.waves.channels, p.waves.height, p.waves.width});
      check.same_device("input", input, "grad_out", grad_out);
    }
    if (check.ok() && !is_bytes(*input)) {
      check.same_dtype("grad_out", grad_out, "input", input);
    }
  }
  const std::pair<const char*, const sturdy_tensor*> inputs[] = {
      {"grad_out", grad_out}, {"input", input}, {"frequency", frequency}, {"amplitude", amplitude}, {"phase", phase}};
  if (grad_input != nullptr) {
    check.present("grad_input", grad_input);
    check.shape("grad_input", grad_input, {p.waves.batch, p.waves.channels, p.waves.height, p.waves.width});
    check.same_dtype("grad_input", grad_input, "grad_out", grad_out);
    check.dense4("grad_input", grad_input);
    check_written(check, "grad_input", grad_input, "grad_out", grad_out, inputs);
  }
  if (grad_amplitude != nullptr) {
    check.present("grad_amplitude", grad_amplitude);
    check.shape("grad_amplitude", grad_amplitude, {p.waves.batch, p.waves.channels, p.waves.count});
    check.parameter_dtype("grad_amplitude", grad_amplitude);
    if (check.ok() && (grad_amplitude->dtype.bits == 64) != (grad_out->dtype.bits == 64)) {
      check.fail(STURDY_ETYPE, "grad_amplitude must be float64 for float64 gradients and float32 for others");
    }
    if (check.ok() && !is_contiguous(*grad_amplitude)) {
      check.fail(STURDY_EINVAL, "grad_amplitude must be contiguous");
    }
    check_written(check, "grad_amplitude", grad_amplitude, "grad_out", grad_out, inputs);
    if (grad_input != nullptr) {
      check.separate("grad_amplitude", grad_amplitude, "grad_input", grad_input);
    }
  }
  if (!check.ok()) {
    return check.result();
  }
  p.grad_out = image_view(grad_out);
  p.input = image_view(p.waves.clip ? input : nullptr);
  p.input_is_bytes = input != nullptr && is_bytes(*input);
  p.grad_input = image_view(grad_input);
  p.grad_amplitude = grad_amplitude == nullptr ? nullptr : data_of(*grad_amplitude);
  p.dtype = to_dtype(grad_out->dtype);
  if (p.waves.batch * p.waves.channels == 0) {
    return STURDY_OK;
  }
  return report(backward_name, runs_on_cuda(*grad_out) ? cuda::wave_add_backward(p, stream_of(context))
                                                       : cpu::wave_add_backward(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_wave_add_infer(const sturdy_wave_add_options* options, const sturdy_tensor* input,
                                    const sturdy_tensor* frequency, const sturdy_tensor* amplitude,
                                    const sturdy_tensor* phase, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::forward_name, [&] {
    sturdy::Checker check(sturdy::forward_name);
    check.present("input", input);
    check.image_dtype("input", input);
    sturdy::check_arguments(check, options, "input", input, frequency, amplitude, phase);
    sturdy::infer_image_out(check, input, out);
    return check.result();
  });
}

sturdy_status sturdy_wave_add(const sturdy_context* context, const sturdy_wave_add_options* options,
                              const sturdy_tensor* input, const sturdy_tensor* frequency,
                              const sturdy_tensor* amplitude, const sturdy_tensor* phase, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::forward_name,
                         [&] { return sturdy::forward(context, options, input, frequency, amplitude, phase, out); });
}

sturdy_status sturdy_wave_add_backward(const sturdy_context* context, const sturdy_wave_add_options* options,
                                       const sturdy_tensor* grad_out, const sturdy_tensor* input,
                                       const sturdy_tensor* frequency, const sturdy_tensor* amplitude,
                                       const sturdy_tensor* phase, sturdy_tensor* grad_input,
                                       sturdy_tensor* grad_amplitude) {
  return sturdy::guarded(sturdy::backward_name, [&] {
    return sturdy::backward(context, options, grad_out, input, frequency, amplitude, phase, grad_input, grad_amplitude);
  });
}

}  // extern "C"
