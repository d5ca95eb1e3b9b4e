// Takes the kernels of a transform's stages from fft_kernels.cpp: a source that includes this does not compile its own,
// of which there are hundreds.
#pragma once

#include "fourier/fft_axis.h"
#include "fourier/fft_columns.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

extern template const StageKernels<float>& stage_kernels<float>(int);
extern template const StageKernels<double>& stage_kernels<double>(int);
extern template const ColumnKernels<float>& column_kernels<float>(int);
extern template const ColumnKernels<double>& column_kernels<double>(int);

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
