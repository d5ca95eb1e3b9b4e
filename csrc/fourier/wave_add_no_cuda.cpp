// Stands in for the CUDA launchers in a build without nvcc.
#include "fourier/wave_add.h"

namespace sturdy::cuda {

Status wave_add(const WaveAddParams& /*params*/, void* /*stream*/) { return Status::not_built; }

Status wave_add_backward(const WaveAddBackwardParams& /*params*/, void* /*stream*/) { return Status::not_built; }

}  // namespace sturdy::cuda
