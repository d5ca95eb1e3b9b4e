#include "common/cuda.cuh"
#include "kernels.h"

using namespace sturdy;

namespace {

// ---- ldmatrix and mma: one warp, fragments as they lie in the registers of each lane
// ------------------------------------

template <int Matrices, bool Transposed>
__global__ void ldmatrix_kernel(const uint16_t* rows, uint32_t* fragment) {
  __shared__ __align__(16) uint16_t shared[32][8];
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 8 * Matrices) {
    for (int i = 0; i < 8; ++i) {
      shared[lane][i] = rows[lane * 8 + i];
    }
  }
  __syncwarp();
  uint32_t loaded[Matrices];
  const void* row = shared[lane % (8 * Matrices)];  // what lanes beyond the last row pass is not used
  if constexpr (Matrices == 1) {
    Transposed ? ldmatrix_x1_trans(loaded, row) : ldmatrix_x1(loaded, row);
  } else if constexpr (Matrices == 2) {
    Transposed ? ldmatrix_x2_trans(loaded, row) : ldmatrix_x2(loaded, row);
  } else {
    Transposed ? ldmatrix_x4_trans(loaded, row) : ldmatrix_x4(loaded, row);
  }
  for (int i = 0; i < Matrices; ++i) {
    fragment[lane * Matrices + i] = loaded[i];
  }
}

template <int Matrices>
Status run_ldmatrix(const uint16_t* rows, uint32_t* fragment, int transposed) {
  const auto kernel = transposed != 0 ? ldmatrix_kernel<Matrices, true> : ldmatrix_kernel<Matrices, false>;
  return launch(kernel, 1, 32, 0, nullptr, rows, fragment);
}

template <int Type>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const uint32_t a_fragment[4] = {a[lane * 4], a[lane * 4 + 1], a[lane * 4 + 2], a[lane * 4 + 3]};
  const uint32_t b_fragment[2] = {b[lane * 2], b[lane * 2 + 1]};
  float sum[4] = {d[lane * 4], d[lane * 4 + 1], d[lane * 4 + 2], d[lane * 4 + 3]};
  if constexpr (Type == 0) {
    mma_m16n8k16_bf16(sum, a_fragment, b_fragment);
  } else if constexpr (Type == 1) {
    mma_m16n8k16_f16(sum, a_fragment, b_fragment);
  } else {
    mma_m16n8k8_tf32(sum, a_fragment, b_fragment);
  }
  for (int i = 0; i < 4; ++i) {
    d[lane * 4 + i] = sum[i];
  }
}

__global__ void float_to_tf32_kernel(const float* x, uint32_t* y, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    y[i] = float_to_tf32(x[i]);
  }
}

// ---- cp.async
// -----------------------------------------------------------------------------------------------------------

template <int Bytes>
__global__ void cp_async_kernel(const uint8_t* in, uint8_t* before, uint8_t* after, int valid_bytes) {
  STURDY_DYNAMIC_SHARED(uint8_t, shared);
  const int first = static_cast<int>(threadIdx.x) * Bytes;
  for (int i = 0; i < Bytes; ++i) {
    shared[first + i] = 0x5A;
  }
  if (valid_bytes == Bytes) {
    cp_async<Bytes>(shared + first, in + first);
  } else {
    cp_async_zero_fill<Bytes>(shared + first, in + first, valid_bytes);
  }
  for (int i = 0; before != nullptr && i < Bytes; ++i) {
    before[first + i] = shared[first + i];  // before the wait: either content is possible
  }
  cp_async_wait_all();
  for (int i = 0; i < Bytes; ++i) {
    after[first + i] = shared[first + i];
  }
}

template <int GroupsLeft>
__global__ void cp_async_groups_kernel(const uint32_t* in, uint32_t* out) {
  STURDY_DYNAMIC_SHARED(uint32_t, shared);
  for (int i = 0; i < 4; ++i) {
    shared[i] = 0;
  }
  for (int i = 0; i < 4; ++i) {
    cp_async<4>(shared + i, in + i);
    cp_async_commit();
  }
  cp_async_wait<GroupsLeft>();
  for (int i = 0; i < 4; ++i) {
    out[i] = shared[i];
  }
}

// ---- Reductions, packs, shuffles, votes
// -------------------------------------------------------------------------------------

template <typename T, int Width>
__global__ void warp_reduce_kernel(const T* x, T* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const T value = x[lane];
  out[lane] = warp_sum<Width>(value);
  out[32 + lane] = warp_max<Width>(value);
  out[64 + lane] = warp_min<Width>(value);
}

template <typename T>
Status run_warp_reduce(const void* x, void* out, int width) {
  const auto kernel = width == 32  ? warp_reduce_kernel<T, 32>
                      : width == 8 ? warp_reduce_kernel<T, 8>
                      : width == 2 ? warp_reduce_kernel<T, 2>
                                   : warp_reduce_kernel<T, 1>;
  return launch(kernel, 1, 32, 0, nullptr, static_cast<const T*>(x), static_cast<T*>(out));
}

struct Extremum {
  float value;
  int index;
};

struct LargerOrEarlier {
  STURDY_DEVICE Extremum operator()(const Extremum& a, const Extremum& b) const {
    const bool take_a = a.value > b.value || (a.value == b.value && a.index < b.index);
    return take_a ? a : b;
  }
};

__global__ void block_reduce_kernel(const float* x, float* out) {
  __shared__ Extremum scratch[32];
  const int thread = thread_in_block();
  const Extremum none{-INFINITY, 0x7fffffff};
  Extremum best = block_reduce(Extremum{x[thread], thread}, none, scratch, LargerOrEarlier{});
  best = block_reduce(best, none, scratch, LargerOrEarlier{});  // the scratch may be used again at once
  out[2 * thread] = best.value;
  out[2 * thread + 1] = static_cast<float>(best.index);
}

template <typename T, Cache LoadHint, Cache StoreHint>
__global__ void packed_copy_kernel(const T* x, T* y, int n) {
  constexpr int width = packed_width<T>;
  const int stride = static_cast<int>(blockDim.x) * width;
  for (int i = static_cast<int>(threadIdx.x) * width; i < n; i += stride) {
    const Packed<T, width> loaded = load_packed<width, LoadHint>(x + i);
    Packed<T, width> stored;
    for (int j = 0; j < width; ++j) {
      stored[j] = loaded[j];
    }
    store_packed<StoreHint>(y + i, stored);
  }
}

template <typename T>
Status run_packed_copy(const void* x, void* y, int n, int hint) {
  const auto kernel = hint == 0   ? packed_copy_kernel<T, Cache::normal, Cache::normal>
                      : hint == 1 ? packed_copy_kernel<T, Cache::read_only, Cache::normal>
                                  : packed_copy_kernel<T, Cache::streaming, Cache::streaming>;
  return launch(kernel, 1, 32, 0, nullptr, static_cast<const T*>(x), static_cast<T*>(y), n);
}

__global__ void shuffle_kernel(const double* x, double* y, int kind, int argument, int width) {
  const double value = x[threadIdx.x];
  double result = 0;
  if (kind == 0) {
    result = __shfl_sync(full_warp, value, argument, width);
  } else if (kind == 1) {
    result = __shfl_xor_sync(full_warp, value, argument, width);
  } else if (kind == 2) {
    result = __shfl_down_sync(full_warp, value, static_cast<unsigned>(argument), width);
  } else {
    result = __shfl_up_sync(full_warp, value, static_cast<unsigned>(argument), width);
  }
  y[threadIdx.x] = result;
}

__global__ void votes_kernel(const int* x, int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const bool positive = x[thread] > 0;
  const unsigned ballot = __ballot_sync(full_warp, positive);
  const int any = __any_sync(full_warp, positive);
  const int all = __all_sync(full_warp, positive);
  const int block_count = __syncthreads_count(positive);
  const int block_any = __syncthreads_or(positive);
  const int block_all = __syncthreads_and(positive);
  if (thread == 0) {
    out[0] = static_cast<int>(ballot);
    out[1] = any != 0;
    out[2] = all != 0;
    out[3] = block_count;
    out[4] = block_any != 0;
    out[5] = block_all != 0;
  }
}

int as_int(Status status) { return status == Status::ok ? 0 : 1; }

}  // namespace

int simt_test_ldmatrix(const uint16_t* rows, uint32_t* fragment, int matrices, int transposed) {
  return as_int(matrices == 1   ? run_ldmatrix<1>(rows, fragment, transposed)
                : matrices == 2 ? run_ldmatrix<2>(rows, fragment, transposed)
                                : run_ldmatrix<4>(rows, fragment, transposed));
}

int simt_test_mma(const uint32_t* a, const uint32_t* b, float* d, int type) {
  const auto kernel = type == 0 ? mma_kernel<0> : type == 1 ? mma_kernel<1> : mma_kernel<2>;
  return as_int(launch(kernel, 1, 32, 0, nullptr, a, b, d));
}

int simt_test_float_to_tf32(const float* x, uint32_t* y, int n) {
  return as_int(launch(float_to_tf32_kernel, 1, 32, 0, nullptr, x, y, n));
}

int simt_test_cp_async(const uint8_t* in, uint8_t* before, uint8_t* after, int bytes, int valid_bytes) {
  const auto kernel = bytes == 4 ? cp_async_kernel<4> : bytes == 8 ? cp_async_kernel<8> : cp_async_kernel<16>;
  return as_int(launch(kernel, 1, 32, 32 * static_cast<size_t>(bytes), nullptr, in, before, after, valid_bytes));
}

int simt_test_cp_async_groups(const uint32_t* in, uint32_t* out, int groups_left) {
  const auto kernel = groups_left == 0   ? cp_async_groups_kernel<0>
                      : groups_left == 1 ? cp_async_groups_kernel<1>
                      : groups_left == 2 ? cp_async_groups_kernel<2>
                                         : cp_async_groups_kernel<3>;
  return as_int(launch(kernel, 1, 1, 4 * sizeof(uint32_t), nullptr, in, out));
}

int simt_test_warp_reduce(const void* x, void* out, int width, int dtype) {
  switch (dtype) {
    case 0:
      return as_int(run_warp_reduce<float>(x, out, width));
    case 1:
      return as_int(run_warp_reduce<double>(x, out, width));
    case 2:
      return as_int(run_warp_reduce<__half>(x, out, width));
    default:
      return as_int(run_warp_reduce<int>(x, out, width));
  }
}

int simt_test_block_reduce(const float* x, float* out, int threads) {
  return as_int(launch(block_reduce_kernel, 1, dim3(8, threads / 8), 0, nullptr, x, out));
}

int simt_test_packed_copy(const void* x, void* y, int n, int bytes, int hint) {
  switch (bytes) {
    case 1:
      return as_int(run_packed_copy<uint8_t>(x, y, n, hint));
    case 2:
      return as_int(run_packed_copy<__half>(x, y, n, hint));
    case 4:
      return as_int(run_packed_copy<float>(x, y, n, hint));
    default:
      return as_int(run_packed_copy<double>(x, y, n, hint));
  }
}

int simt_test_shuffle(const double* x, double* y, int kind, int argument, int width) {
  return as_int(launch(shuffle_kernel, 1, 32, 0, nullptr, x, y, kind, argument, width));
}

int simt_test_votes(const int* x, int* out) { return as_int(launch(votes_kernel, 1, 64, 0, nullptr, x, out)); }
