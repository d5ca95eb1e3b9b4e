// spectral_filter: argument checks, dispatch and the C entry points. The only code of the op that looks at tensors.
#include "fourier/spectral_filter.h"

#include <string>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "fourier/image_checks.h"
#include "sturdy/fourier.h"

namespace sturdy {
namespace {

constexpr const char* forward_name = "spectral_filter";
constexpr const char* backward_name = "spectral_filter_backward";

using Options = sturdy_spectral_filter_options;

// What an image argument says about the call: sizes, and the tensor whose dtype and device are the others'.
struct Images {
  int64_t batch, channels, height, width;
  const char* name;
  const sturdy_tensor* tensor;
};

std::string pair_text(int64_t a, int64_t b) { return "(" + std::to_string(a) + ", " + std::to_string(b) + ")"; }

std::string shape_text(const sturdy_tensor& tensor) {
  std::string text = "(";
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    text += (dim > 0 ? ", " : "") + std::to_string(tensor.shape[dim]);
  }
  return text + (tensor.ndim == 1 ? ",)" : ")");
}

void check_options(Checker& check, const Options* options) {
  check.options(options, options == nullptr ? 0 : options->struct_size, sizeof(Options),
                options == nullptr ? 0 : options->flags & ~(STURDY_SPECTRAL_FILTER_CLIP | STURDY_SPECTRAL_FILTER_HALF));
  if (check.ok()) {
    check_clip(check, (options->flags & STURDY_SPECTRAL_FILTER_CLIP) != 0, options->low, options->high);
  }
}

Images check_images(Checker& check, const char* name, const sturdy_tensor* tensor) {
  const ImageSizes sizes = check_image_with_pixels(check, name, tensor);
  return {sizes.batch, sizes.channels, sizes.height, sizes.width, name, tensor};
}

// One leading dimension of the mask: 1, or what the images have.
void check_leading(Checker& check, const sturdy_tensor* mask, int dim, int64_t wanted, const char* meaning) {
  if (check.ok() && mask->shape[dim] != 1) {
    check.size("mask", mask, dim, wanted, meaning);
  }
}

// Checks mask and index against the images and fills in geometry and mask. Reads no data.
void check_mask(Checker& check, const Options* options, const Images& images, const sturdy_tensor* mask,
                const sturdy_tensor* index, SpectralFilterGeometry& g, Masks& view) {
  check.present("mask", mask);
  if (index != nullptr) {
    check.present("index", index);
  }
  if (!check.ok()) {
    return;
  }
  g.batch = images.batch;
  g.channels = images.channels;
  g.height = images.height;
  g.width = images.width;
  g.dtype = to_dtype(images.tensor->dtype);
  g.device = images.tensor->device.device_id;
  g.half = (options->flags & STURDY_SPECTRAL_FILTER_HALF) != 0;
  g.clip = (options->flags & STURDY_SPECTRAL_FILTER_CLIP) != 0;
  g.low = options->low;
  g.high = options->high;
  g.many = g.mask_entries = g.mask_channels = 1;

  const int rank = mask->ndim;
  const int64_t columns = g.half ? g.width / 2 + 1 : g.width;
  if (rank < 2 || rank > 5 || mask->shape[rank - 2] != g.height || mask->shape[rank - 1] != columns) {
    check.fail(STURDY_EINVAL, "mask must have 2 to 5 dimensions, the last two " + pair_text(g.height, g.width) +
                                  " for layout 'shifted' or " + pair_text(g.height, g.width / 2 + 1) +
                                  " for layout 'half', got shape " + shape_text(*mask) + " with layout " +
                                  (g.half ? "'half'" : "'shifted'"));
    return;
  }
  check.dtype_of_or_float32("mask", mask, images.name, images.tensor);
  check.same_device("mask", mask, images.name, images.tensor);
  if (index != nullptr) {
    if (rank != 3 && rank != 4) {
      check.fail(STURDY_EINVAL, "mask must be a table (T, H, W) or (T, C or 1, H, W) where index is given, got shape " +
                                    shape_text(*mask));
    }
    check_integers_per_image(check, "index", index, g.batch, images.name, images.tensor);
  }
  if (!check.ok()) {
    return;
  }
  // The dimensions of entries, results and channels, -1 where the mask has none.
  int entry = -1, filtered = -1, channel = -1;
  if (index != nullptr) {
    entry = 0;
    channel = rank == 4 ? 1 : -1;
  } else {
    channel = rank >= 3 ? rank - 3 : -1;
    filtered = rank == 5 ? 1 : -1;
    entry = rank >= 4 ? 0 : -1;
    if (entry >= 0) {
      check_leading(check, mask, entry, g.batch, "images (N) or 1");
    }
  }
  if (channel >= 0) {
    check_leading(check, mask, channel, g.channels, "channels (C) or 1");
  }
  if (!check.ok()) {
    return;
  }
  view.data = data_of(*mask);
  view.dtype = to_dtype(mask->dtype);
  view.row = stride_of(*mask, rank - 2);
  view.column = stride_of(*mask, rank - 1);
  if (entry >= 0) {
    g.mask_entries = mask->shape[entry];
    view.entry = stride_of(*mask, entry);
  }
  if (filtered >= 0) {
    g.many = mask->shape[filtered];
    view.filtered = stride_of(*mask, filtered);
  }
  if (channel >= 0) {
    g.mask_channels = mask->shape[channel];
    view.channel = stride_of(*mask, channel);
  }
}

bool is_many(const sturdy_tensor& mask) { return mask.ndim == 5; }

// The result, or its gradient: (N, C, H, W), or (N, T, C, H, W) for a mask of five dimensions.
void check_result(Checker& check, const char* name, const sturdy_tensor* tensor, const Images& images,
                  const sturdy_tensor* mask, const SpectralFilterGeometry& g) {
  check.present(name, tensor);
  if (!check.ok()) {
    return;
  }
  if (is_many(*mask)) {
    check.shape(name, tensor, {g.batch, g.many, g.channels, g.height, g.width});
  } else {
    check.shape(name, tensor, {g.batch, g.channels, g.height, g.width});
  }
  check.same_dtype(name, tensor, images.name, images.tensor);
  check.same_device(name, tensor, images.name, images.tensor);
  check.data(name, tensor);
}

void check_apart(Checker& check, const char* name, const sturdy_tensor* out,
                 std::initializer_list<std::pair<const char*, const sturdy_tensor*>> inputs) {
  for (const auto& [other_name, other] : inputs) {
    if (out != nullptr && other != nullptr) {
      check.data(other_name, other);
      check.separate(name, out, other_name, other);
    }
  }
}

// Reads the index where it is in memory that can be read here.
void check_index_values(Checker& check, const sturdy_tensor* index, SpectralFilterGeometry& g) {
  if (!check.ok() || index == nullptr) {
    return;
  }
  g.index = static_cast<const int64_t*>(data_of(*index));
  g.index_stride = stride_of(*index, 0);
  check_values_per_image(check, "index", index, g.mask_entries, "an entry of the mask table");
}

Planes planes_of(const sturdy_tensor* tensor) {
  Planes planes;
  if (tensor != nullptr) {
    const int rank = tensor->ndim;
    planes.data = data_of(*tensor);
    planes.image = stride_of(*tensor, 0);
    planes.filtered = rank == 5 ? stride_of(*tensor, 1) : 0;
    planes.channel = stride_of(*tensor, rank - 3);
    planes.row = stride_of(*tensor, rank - 2);
    planes.column = stride_of(*tensor, rank - 1);
  }
  return planes;
}

// The geometry of a call by its images and masks; false where the call itself will say what is wrong.
bool geometry_of(const Options* options, const sturdy_tensor* x, const sturdy_tensor* mask, const sturdy_tensor* index,
                 SpectralFilterGeometry* g) {
  Checker check(forward_name);
  Masks view;
  check_options(check, options);
  const Images images = check_images(check, "x", x);
  check_mask(check, options, images, mask, index, *g, view);
  return check.ok() && runs_on_cuda(*x);
}

template <typename Query>
size_t workspace(const Options* options, const sturdy_tensor* x, const sturdy_tensor* mask, const sturdy_tensor* index,
                 const Query& query) noexcept {
  try {
    SpectralFilterGeometry g = {};
    return geometry_of(options, x, mask, index, &g) ? query(g) : 0;
  } catch (...) {
    return 0;  // out of memory for a message; the call itself will say so
  }
}

sturdy_status forward(const sturdy_context* context, const Options* options, const sturdy_tensor* x,
                      const sturdy_tensor* mask, const sturdy_tensor* index, sturdy_tensor* out) {
  Checker check(forward_name);
  check.context(context);
  SpectralFilterParams p = {};
  check_options(check, options);
  const Images images = check_images(check, "x", x);
  check_mask(check, options, images, mask, index, p.geometry, p.mask);
  check_result(check, "out", out, images, mask, p.geometry);
  if (check.ok() && is_many(*mask)) {
    if (!is_contiguous(*out)) {
      check.fail(STURDY_EINVAL, "out must be contiguous");
    }
  } else {
    check.dense4("out", out);
  }
  check_apart(check, "out", out, {{"x", x}, {"mask", mask}, {"index", index}});
  check_index_values(check, index, p.geometry);
  if (!check.ok()) {
    return check.result();
  }
  p.x = planes_of(x);
  p.out = planes_of(out);
  if (runs_on_cuda(*x)) {
    check.workspace(context, cuda::spectral_filter_workspace(p.geometry));
    return check.ok() ? report(forward_name, cuda::spectral_filter(p, workspace_of(context), stream_of(context)))
                      : check.result();
  }
  return report(forward_name, cpu::spectral_filter(p, Threads(context)));
}

sturdy_status backward(const sturdy_context* context, const Options* options, const sturdy_tensor* grad_out,
                       const sturdy_tensor* x, const sturdy_tensor* mask, const sturdy_tensor* index,
                       sturdy_tensor* grad_x, sturdy_tensor* grad_mask) {
  Checker check(backward_name);
  check.context(context);
  SpectralFilterBackwardParams p = {};
  SpectralFilterGeometry& g = p.geometry;
  check_options(check, options);
  check.present("grad_out", grad_out);
  check.present("mask", mask);
  Images images = {};
  if (x != nullptr) {
    images = check_images(check, "x", x);
  } else if (check.ok() && !is_many(*mask)) {
    images = check_images(check, "grad_out", grad_out);
  } else if (check.ok()) {  // the images' own shape: the gradient's without the dimension of results
    check.rank("grad_out", grad_out, 5, "(N, T, C, H, W)");
    if (check.ok()) {
      int64_t shape[] = {grad_out->shape[0], grad_out->shape[2], grad_out->shape[3], grad_out->shape[4]};
      sturdy_tensor one = *grad_out;
      one.ndim = 4;
      one.shape = shape;
      one.strides = nullptr;
      images = check_images(check, "grad_out", &one);
      images.tensor = grad_out;
    }
  }
  check_mask(check, options, images, mask, index, g, p.mask);
  check_result(check, "grad_out", grad_out, images, mask, g);
  if (check.ok() && x == nullptr && (g.clip || grad_mask != nullptr)) {
    check.fail(STURDY_EINVAL, "x must not be NULL where there is a clamp or grad_mask is wanted");
  }
  if (grad_x != nullptr) {
    check.present("grad_x", grad_x);
    check.shape("grad_x", grad_x, {g.batch, g.channels, g.height, g.width});
    check.same_dtype("grad_x", grad_x, images.name, images.tensor);
    check.same_device("grad_x", grad_x, images.name, images.tensor);
    check.data("grad_x", grad_x);
    check.dense4("grad_x", grad_x);
    check_apart(check, "grad_x", grad_x, {{"grad_out", grad_out}, {"x", x}, {"mask", mask}, {"index", index}});
  }
  if (grad_mask != nullptr) {
    check.present("grad_mask", grad_mask);
    if (check.ok()) {
      bool same = grad_mask->ndim == mask->ndim;
      for (int dim = 0; same && dim < mask->ndim; ++dim) {
        same = grad_mask->shape[dim] == mask->shape[dim];
      }
      const uint8_t bits = g.dtype == DType::f64 ? 64 : 32;
      if (!same) {
        check.fail(STURDY_EINVAL,
                   "grad_mask must have the shape of mask, " + shape_text(*mask) + ", got " + shape_text(*grad_mask));
      } else if (grad_mask->dtype.code != STURDY_FLOAT || grad_mask->dtype.bits != bits) {
        check.fail(STURDY_ETYPE, "grad_mask must be float" + std::to_string(bits));
      } else if (!is_contiguous(*grad_mask)) {
        check.fail(STURDY_EINVAL, "grad_mask must be contiguous");
      }
    }
    check.same_device("grad_mask", grad_mask, images.name, images.tensor);
    check.data("grad_mask", grad_mask);
    check_apart(check, "grad_mask", grad_mask,
                {{"grad_out", grad_out}, {"x", x}, {"mask", mask}, {"index", index}, {"grad_x", grad_x}});
  }
  check_index_values(check, index, g);
  if (!check.ok()) {
    return check.result();
  }
  p.grad_out = planes_of(grad_out);
  p.x = planes_of(x);
  p.grad_x = planes_of(grad_x);
  if (grad_mask != nullptr) {
    p.grad_mask = p.mask;  // the same shape, but compact
    p.grad_mask.data = data_of(*grad_mask);
    p.grad_mask.column = 1;
    p.grad_mask.row = mask->shape[mask->ndim - 1];
    p.grad_mask.channel = p.grad_mask.row * g.height;
    p.grad_mask.filtered = p.grad_mask.channel * g.mask_channels;
    p.grad_mask.entry = p.grad_mask.filtered * g.many;
  }
  if (runs_on_cuda(*grad_out)) {
    check.workspace(context, cuda::spectral_filter_backward_workspace(g, grad_mask != nullptr));
    return check.ok()
               ? report(backward_name, cuda::spectral_filter_backward(p, workspace_of(context), stream_of(context)))
               : check.result();
  }
  return report(backward_name, cpu::spectral_filter_backward(p, Threads(context)));
}

}  // namespace
}  // namespace sturdy

extern "C" {

sturdy_status sturdy_spectral_filter_infer(const sturdy_spectral_filter_options* options, const sturdy_tensor* x,
                                           const sturdy_tensor* mask, const sturdy_tensor* index, sturdy_tensor* out) {
  return sturdy::guarded(sturdy::forward_name, [&] {
    sturdy::Checker check(sturdy::forward_name);
    sturdy::SpectralFilterGeometry g = {};
    sturdy::Masks view;
    sturdy::check_options(check, options);
    const sturdy::Images images = sturdy::check_images(check, "x", x);
    sturdy::check_mask(check, options, images, mask, index, g, view);
    if (check.ok() && (out == nullptr || out->shape == nullptr)) {
      check.fail(STURDY_EINVAL, "out.shape must not be NULL");
    }
    if (check.ok()) {
      out->dtype = x->dtype;
      out->device = x->device;
      out->ndim = sturdy::is_many(*mask) ? 5 : 4;
      int64_t* shape = out->shape;
      *shape++ = g.batch;
      if (sturdy::is_many(*mask)) {
        *shape++ = g.many;
      }
      *shape++ = g.channels;
      *shape++ = g.height;
      *shape++ = g.width;
      constexpr int64_t most = int64_t{1} << 58;
      const int64_t plane = g.height * g.width;
      if (g.batch > 0 && g.many > 0 && g.channels > 0 && (g.many > most / g.batch / g.channels / plane)) {
        check.fail(STURDY_EUNSUPPORTED, "the output would have more elements than can be addressed");
      }
    }
    return check.result();
  });
}

size_t sturdy_spectral_filter_workspace(const sturdy_spectral_filter_options* options, const sturdy_tensor* x,
                                        const sturdy_tensor* mask, const sturdy_tensor* index) {
  return sturdy::workspace(options, x, mask, index, sturdy::cuda::spectral_filter_workspace);
}

size_t sturdy_spectral_filter_backward_workspace(const sturdy_spectral_filter_options* options, const sturdy_tensor* x,
                                                 const sturdy_tensor* mask, const sturdy_tensor* index,
                                                 int32_t want_grad_mask) {
  return sturdy::workspace(options, x, mask, index, [&](const sturdy::SpectralFilterGeometry& g) {
    return sturdy::cuda::spectral_filter_backward_workspace(g, want_grad_mask != 0);
  });
}

sturdy_status sturdy_spectral_filter(const sturdy_context* context, const sturdy_spectral_filter_options* options,
                                     const sturdy_tensor* x, const sturdy_tensor* mask, const sturdy_tensor* index,
                                     sturdy_tensor* out) {
  return sturdy::guarded(sturdy::forward_name, [&] { return sturdy::forward(context, options, x, mask, index, out); });
}

sturdy_status sturdy_spectral_filter_backward(const sturdy_context* context,
                                              const sturdy_spectral_filter_options* options,
                                              const sturdy_tensor* grad_out, const sturdy_tensor* x,
                                              const sturdy_tensor* mask, const sturdy_tensor* index,
                                              sturdy_tensor* grad_x, sturdy_tensor* grad_mask) {
  return sturdy::guarded(sturdy::backward_name, [&] {
    return sturdy::backward(context, options, grad_out, x, mask, index, grad_x, grad_mask);
  });
}

}  // extern "C"
