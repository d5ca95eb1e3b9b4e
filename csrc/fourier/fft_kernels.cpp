// The kernels of a transform's stages for one instruction set, for all sources that use fft_kernels.h. Compiled once
// for each, with -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include "fourier/fft_axis.h"
#include "fourier/fft_columns.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

template const StageKernels<float>& stage_kernels<float>(int);
template const StageKernels<double>& stage_kernels<double>(int);
template const ColumnKernels<float>& column_kernels<float>(int);
template const ColumnKernels<double>& column_kernels<double>(int);

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
