// The one header that every .cu file includes. nvcc and an ordinary C++ compiler (with STURDY_SIMT defined, for the
// executor under tests/simt) see the same names in it:
//
//   STURDY_DEVICE, STURDY_DYNAMIC_SHARED   cuda_platform.cuh
//   launch()                               cuda_launch.cuh
//   Accumulate, to_accumulate, from_...    cuda_math.cuh
//   Packed, load_packed, store_packed      cuda_memory.cuh
//   warp_sum, block_reduce ...             cuda_reduce.cuh
//   cp_async, ldmatrix, mma, Mbarrier ...  cuda_instructions.cuh
//
// A kernel file contains no asm and no <<<>>>, and so runs on a GPU and on the executor alike.
#pragma once

#include "common/cuda_instructions.cuh"
#include "common/cuda_launch.cuh"
#include "common/cuda_math.cuh"
#include "common/cuda_memory.cuh"
#include "common/cuda_platform.cuh"
#include "common/cuda_reduce.cuh"
