#include <type_traits>

#include "common/cuda.cuh"
#include "kernels.h"

using namespace sturdy;

namespace {

constexpr int tile_m = 64;
constexpr int tile_n = 64;
constexpr int tile_threads = 128;     // four warps, 16 rows of the tile each
constexpr int tile_depth_bytes = 64;  // of a row of A: 32 elements of two bytes, or 16 of four

template <typename T>
struct MmaShared {
  static constexpr int depth = tile_depth_bytes / static_cast<int>(sizeof(T));
  static constexpr int pad = 16 / static_cast<int>(sizeof(T));  // keeps rows 16-byte aligned, on different banks
  T a[2][tile_m][depth + pad];
  T b[2][depth][tile_n + pad];
};
static_assert(sizeof(MmaShared<__half>) <= 48 << 10 && sizeof(MmaShared<float>) <= 48 << 10);

// Starts the copies of one tile of A and B; what lies outside the matrices becomes zero.
template <typename T>
STURDY_DEVICE void start_tile(MmaShared<T>* shared, int buffer, const T* a, const T* b, int m, int n, int k,
                              int first_row, int first_column, int first_k) {
  constexpr int width = packed_width<T>;
  constexpr int depth = MmaShared<T>::depth;
  for (int i = static_cast<int>(threadIdx.x); i < tile_m * depth / width; i += tile_threads) {
    const int row = i / (depth / width);
    const int column = i % (depth / width) * width;
    const bool inside = first_row + row < m && first_k + column < k;
    const T* source = inside ? a + int64_t{first_row + row} * k + first_k + column : a;
    cp_async_zero_fill<16>(&shared->a[buffer][row][column], source, inside ? 16 : 0);
  }
  for (int i = static_cast<int>(threadIdx.x); i < depth * tile_n / width; i += tile_threads) {
    const int row = i / (tile_n / width);
    const int column = i % (tile_n / width) * width;
    const bool inside = first_k + row < k && first_column + column < n;
    const T* source = inside ? b + int64_t{first_k + row} * n + first_column + column : b;
    cp_async_zero_fill<16>(&shared->b[buffer][row][column], source, inside ? 16 : 0);
  }
  cp_async_commit();
}

// Multiplies a warp's 16 rows of the tile of A with the tile of B.
template <typename T>
STURDY_DEVICE void multiply_tile(const MmaShared<T>* shared, int buffer, int warp, int lane, float (&sum)[8][4]) {
  for (int k = 0; k < MmaShared<T>::depth; k += 16) {
    uint32_t a[4];
    ldmatrix_x4(a, &shared->a[buffer][warp * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t b[2];
      ldmatrix_x2_trans(b, &shared->b[buffer][k + lane % 16][j * 8]);
      if constexpr (std::is_same_v<T, __half>) {
        mma_m16n8k16_f16(sum[j], a, b);
      } else {
        mma_m16n8k16_bf16(sum[j], a, b);
      }
    }
  }
}

// tf32: four-byte elements, which ldmatrix would have to take apart; the fragments are read one by one.
STURDY_DEVICE void multiply_tile(const MmaShared<float>* shared, int buffer, int warp, int lane, float (&sum)[8][4]) {
  const int group = lane / 4;
  const int in_group = lane % 4;
  for (int k = 0; k < MmaShared<float>::depth; k += 8) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = float_to_tf32(shared->a[buffer][warp * 16 + group + i % 2 * 8][k + in_group + i / 2 * 4]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t b[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b[i] = float_to_tf32(shared->b[buffer][k + in_group + i * 4][j * 8 + group]);
      }
      mma_m16n8k8_tf32(sum[j], a, b);
    }
  }
}

// Two buffers: while one tile is multiplied, the next is on its way.
template <typename T>
__global__ void __launch_bounds__(tile_threads)
    mma_gemm_kernel(const T* a, const T* b, float* c, int m, int n, int k, int bug) {
  STURDY_DYNAMIC_SHARED(MmaShared<T>, shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = static_cast<int>(blockIdx.y) * tile_m;
  const int first_column = static_cast<int>(blockIdx.x) * tile_n;
  constexpr int depth = MmaShared<T>::depth;
  float sum[8][4] = {};

  start_tile(shared, 0, a, b, m, n, k, first_row, first_column, 0);
  const int tiles = ceil_div(k, depth);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      start_tile(shared, (tile + 1) % 2, a, b, m, n, k, first_row, first_column, (tile + 1) * depth);
      if (bug != 1) {
        cp_async_wait<1>();
      }
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    multiply_tile(shared, tile % 2, warp, lane, sum);
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + warp * 16 + lane / 4 + i / 2 * 8;
      const int column = first_column + j * 8 + lane % 4 * 2 + i % 2;
      if (row < m && column < n) {
        c[int64_t{row} * n + column] = sum[j][i];
      }
    }
  }
}

template <typename T>
Status mma_gemm(const void* a, const void* b, float* c, int m, int n, int k, int bug) {
  return launch(mma_gemm_kernel<T>, dim3(ceil_div(n, tile_n), ceil_div(m, tile_m)), tile_threads, sizeof(MmaShared<T>),
                nullptr, static_cast<const T*>(a), static_cast<const T*>(b), c, m, n, k, bug);
}

// ---- A ring of buffers filled by the copy engine (sm_90)
// ------------------------------------------------------------------

constexpr int ring_columns = 1024;
constexpr int ring_adders = 128;

struct RingShared {
  float tile[2][ring_columns];
  Mbarrier full[2];
  Mbarrier empty[2];
};

// Warp 0 starts the copies, warps 1 to 4 add up.
__global__ void ring_kernel(const float* x, float* out, int tiles, int bug) {
  STURDY_DYNAMIC_SHARED(RingShared, shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int buffer = 0; buffer < 2; ++buffer) {
      shared->full[buffer].init(1);
      shared->empty[buffer].init(ring_adders);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (thread < 32) {
    if (thread == 0) {
      for (int tile = 0; tile < tiles; ++tile) {
        const int buffer = tile % 2;
        const int use = tile / 2;  // of this buffer
        if (use > 0 && bug != 1) {
          shared->empty[buffer].wait((use - 1) % 2);
        }
        shared->full[buffer].arrive_expect_bytes(static_cast<int>(sizeof shared->tile[buffer]));
        bulk_copy(shared->tile[buffer], x + int64_t{tile} * ring_columns, static_cast<int>(sizeof shared->tile[buffer]),
                  shared->full[buffer]);
      }
    }
  } else {
    const int column = thread - 32;
    float sum[ring_columns / ring_adders] = {};
    for (int tile = 0; tile < tiles; ++tile) {
      const int buffer = tile % 2;
      shared->full[buffer].wait(tile / 2 % 2);
      for (int i = 0; i < ring_columns / ring_adders; ++i) {
        sum[i] += shared->tile[buffer][column + i * ring_adders];
      }
      shared->empty[buffer].arrive();
    }
    for (int i = 0; i < ring_columns / ring_adders; ++i) {
      out[column + i * ring_adders] = sum[i];
    }
  }
}

int as_int(Status status) { return status == Status::ok ? 0 : 1; }

}  // namespace

int simt_test_mma_gemm(const void* a, const void* b, float* c, int m, int n, int k, int type, int bug) {
  switch (type) {
    case 0:
      return as_int(mma_gemm<__nv_bfloat16>(a, b, c, m, n, k, bug));
    case 1:
      return as_int(mma_gemm<__half>(a, b, c, m, n, k, bug));
    default:
      return as_int(mma_gemm<float>(a, b, c, m, n, k, bug));
  }
}

int simt_test_ring(const float* x, float* out, int tiles, int bug) {
  return as_int(launch(ring_kernel, 1, 32 + ring_adders, sizeof(RingShared), nullptr, x, out, tiles, bug));
}
