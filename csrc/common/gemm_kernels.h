// The tables of kernels of matrix products that the sources compiled for one instruction set each offer.
#pragma once

#include "common/gemm.h"

namespace sturdy {

namespace portable {
const cpu::GemmKernels& gemm_kernels(DType dtype);
}
namespace avx2 {
const cpu::GemmKernels& gemm_kernels(DType dtype);
}
namespace avx512 {
const cpu::GemmKernels& gemm_kernels(DType dtype);
}

// bfloat16 operands, multiplied as pairs.
namespace avx512_bf16 {
const cpu::GemmKernels& bf16_gemm_kernels();
}
namespace amx {
const cpu::GemmKernels& bf16_gemm_kernels();
}

}  // namespace sturdy
