// Stands in for the CUDA launchers where there are none.
#include "fourier/spectral_filter.h"

namespace sturdy::cuda {

size_t spectral_filter_workspace(const SpectralFilterGeometry& /*geometry*/) { return 0; }

size_t spectral_filter_backward_workspace(const SpectralFilterGeometry& /*geometry*/, bool /*want_mask*/) { return 0; }

Status spectral_filter(const SpectralFilterParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

Status spectral_filter_backward(const SpectralFilterBackwardParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

}  // namespace sturdy::cuda
