// The kernels of spectrum_accumulate: what dispatch promises them and what they promise back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/parallel.h"
#include "common/types.h"
#include "fourier/image.h"

namespace sturdy {

struct SpectrumAccumulateParams {
  int64_t batch, channels, height, width;  // height and width at least 1
  int64_t groups;
  int power;             // of the amplitudes: 1 or 2
  DType dtype;           // of x
  ImageView x;           // any strides
  const int64_t* group;  // (batch): where an image's amplitudes go, -1: nowhere. Its values are checked where it is on
                         // the CPU; beyond their range a CUDA kernel leaves the image out
  int64_t group_stride;
  void* out;           // (groups, channels, height, width / 2 + 1), compact; aliases nothing
  bool out_is_double;  // else float32
  bool add;            // to what out holds, which else is overwritten
};

// The images of a group are added up in an order and in portions that depend on the sizes and on `group` alone, so that
// the result does not depend on the number of threads or on other groups; sums of many images are kept in float64.
namespace cpu {
// Every element of out is written; batch, channels and groups may be 0.
Status spectrum_accumulate(const SpectrumAccumulateParams& params, const Threads& threads);
}  // namespace cpu

namespace cuda {
// Bytes of device memory, from sizes, power and the dtype of x alone: nothing else is looked at.
size_t spectrum_accumulate_workspace(const SpectrumAccumulateParams& params);
Status spectrum_accumulate(const SpectrumAccumulateParams& params, void* workspace, void* stream);
}  // namespace cuda

}  // namespace sturdy
