// Stands in for the CUDA launchers where there are none.
#include "fourier/spectrum_accumulate.h"

namespace sturdy::cuda {

size_t spectrum_accumulate_workspace(const SpectrumAccumulateParams& /*params*/) { return 0; }

Status spectrum_accumulate(const SpectrumAccumulateParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

}  // namespace sturdy::cuda
