// wave_add on the CPU.
#include "fourier/wave_add.h"

namespace sturdy::cpu {

Status wave_add(const WaveAddParams& /*params*/, const Threads& /*threads*/) { return Status::not_built; }

Status wave_add_backward(const WaveAddBackwardParams& /*params*/, const Threads& /*threads*/) {
  return Status::not_built;
}

}  // namespace sturdy::cpu
