// Stands in for the CUDA launchers where there are none.
#include "fourier/spectral_filter.h"

namespace sturdy::cuda {

Status spectral_filter(const SpectralFilterParams& /*params*/, void* /*stream*/) { return Status::not_built; }

Status spectral_filter_backward(const SpectralFilterBackwardParams& /*params*/, void* /*stream*/) {
  return Status::not_built;
}

}  // namespace sturdy::cuda
