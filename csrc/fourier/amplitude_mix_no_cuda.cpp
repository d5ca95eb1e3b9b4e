// Stands in for the CUDA launchers where there are none.
#include "fourier/amplitude_mix.h"

namespace sturdy::cuda {

size_t amplitude_mix_workspace(const AmplitudeMixParams& /*params*/) { return 0; }

Status amplitude_mix(const AmplitudeMixParams& /*params*/, void* /*workspace*/, void* /*stream*/) {
  return Status::not_built;
}

}  // namespace sturdy::cuda
