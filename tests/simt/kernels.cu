#include "common/cuda.cuh"
#include "kernels.h"

using namespace sturdy;

namespace {

// ---- Tiled matrix product -------------------------------------------------------------------------------------------

// Each thread owns RowsPerThread x ColumnsPerThread elements of a TileM x TileN tile.
template <int TileM, int TileN, int TileK, int RowsPerThread, int ColumnsPerThread>
__global__ void __launch_bounds__((TileM / RowsPerThread) * (TileN / ColumnsPerThread))
    gemm_kernel(const float* a, const float* b, float* c, int m, int n, int k, int bug) {
  constexpr int threads = (TileM / RowsPerThread) * (TileN / ColumnsPerThread);
  __shared__ float a_tile[TileK][TileM + 4];  // transposed; the padding spreads a column over the banks
  __shared__ float b_tile[TileK][TileN];

  const int column_group = static_cast<int>(threadIdx.x) % (TileN / ColumnsPerThread);
  const int row_group = static_cast<int>(threadIdx.x) / (TileN / ColumnsPerThread);
  const int first_row = static_cast<int>(blockIdx.y) * TileM;
  const int first_column = static_cast<int>(blockIdx.x) * TileN;
  float sum[RowsPerThread][ColumnsPerThread] = {};

  for (int first_k = 0; first_k < k; first_k += TileK) {
    for (int i = static_cast<int>(threadIdx.x) * 4; i < TileM * TileK; i += threads * 4) {
      const int row = i / TileK;
      const int column = i % TileK;
      Packed<float, 4> four = {};
      if (first_row + row < m && first_k + column < k) {
        four = load_packed<4, Cache::read_only>(a + int64_t{first_row + row} * k + first_k + column);
      }
      for (int j = 0; j < 4; ++j) {
        a_tile[column + j][row] = four[j];
      }
    }
    for (int i = static_cast<int>(threadIdx.x) * 4; i < TileK * TileN; i += threads * 4) {
      const int row = i / TileN;
      const int column = i % TileN;
      Packed<float, 4> four = {};
      if (first_k + row < k && first_column + column < n) {
        four = load_packed<4, Cache::read_only>(b + int64_t{first_k + row} * n + first_column + column);
      }
      store_packed(&b_tile[row][column], four);
    }
    __syncthreads();
#pragma unroll
    for (int inner = 0; inner < TileK; ++inner) {
      float a_values[RowsPerThread];
      float b_values[ColumnsPerThread];
      for (int i = 0; i < RowsPerThread; ++i) {
        a_values[i] = a_tile[inner][row_group * RowsPerThread + i];
      }
      for (int j = 0; j < ColumnsPerThread; ++j) {
        b_values[j] = b_tile[inner][column_group * ColumnsPerThread + j];
      }
      for (int i = 0; i < RowsPerThread; ++i) {
        for (int j = 0; j < ColumnsPerThread; ++j) {
          sum[i][j] = fmaf(a_values[i], b_values[j], sum[i][j]);
        }
      }
    }
    if (bug != 1) {
      __syncthreads();
    }
  }
  for (int i = 0; i < RowsPerThread; ++i) {
    for (int j = 0; j < ColumnsPerThread; ++j) {
      const int row = first_row + row_group * RowsPerThread + i;
      const int column = first_column + column_group * ColumnsPerThread + j;
      if (row < m && column < n) {
        c[int64_t{row} * n + column] = sum[i][j];
      }
    }
  }
}

// ---- Softmax
// ----------------------------------------------------------------------------------------------------------

// One block a row.
template <typename T>
__global__ void softmax_kernel(const T* x, T* y, int columns) {
  using Sum_ = Accumulate<T>;
  STURDY_DYNAMIC_SHARED(Sum_, scratch);
  const T* row = x + int64_t{blockIdx.x} * columns;
  T* out = y + int64_t{blockIdx.x} * columns;

  Sum_ largest = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    largest = Max{}(largest, to_accumulate(row[i]));
  }
  largest = block_reduce(largest, static_cast<Sum_>(-INFINITY), scratch, Max{});
  Sum_ sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    sum += exp(to_accumulate(row[i]) - largest);
  }
  sum = block_sum(sum, scratch);
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    out[i] = from_accumulate<T>(exp(to_accumulate(row[i]) - largest) / sum);
  }
}

template <typename T>
Status softmax(const void* x, void* y, int rows, int columns) {
  return launch(softmax_kernel<T>, rows, 128, 4 * sizeof(Accumulate<T>), nullptr, static_cast<const T*>(x),
                static_cast<T*>(y), columns);
}

// ---- Attention by tiles, without the score matrix
// ---------------------------------------------------------------------------

template <int Dim, int Rows, int Columns>
struct AttentionShared {
  float q[Rows][Dim + 1];
  float k[Columns][Dim + 1];
  float v[Columns][Dim];
  float probability[Rows][Columns + 1];
};

// Four neighbouring lanes share a query row: each takes every fourth key, then every fourth output element.
template <int Dim, int Rows, int Columns>
__global__ void attention_kernel(const float* q, const float* k, const float* v, float* out, int length, float scale,
                                 int bug) {
  using Shared = AttentionShared<Dim, Rows, Columns>;
  STURDY_DYNAMIC_SHARED(Shared, shared);
  const int64_t head = int64_t{blockIdx.y} * length * Dim;
  const int first_row = static_cast<int>(blockIdx.x) * Rows;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int row = thread / 4;
  const int part = thread % 4;

  for (int i = thread; i < Rows * Dim; i += threads) {
    const bool inside = first_row + i / Dim < length;
    shared->q[i / Dim][i % Dim] = inside ? q[head + int64_t{first_row} * Dim + i] * scale : 0.0f;
  }
  float largest = -INFINITY;
  float sum = 0;
  float result[Dim / 4] = {};
  for (int first_column = 0; first_column < length; first_column += Columns) {
    __syncthreads();
    for (int i = thread; i < Columns * Dim; i += threads) {
      const bool inside = first_column + i / Dim < length;
      const int64_t source = head + int64_t{first_column} * Dim + i;
      shared->k[i / Dim][i % Dim] = inside ? k[source] : 0.0f;
      shared->v[i / Dim][i % Dim] = inside ? v[source] : 0.0f;
    }
    __syncthreads();
    float score[Columns / 4];
    float new_largest = largest;
    for (int j = 0; j < Columns / 4; ++j) {
      const int column = j * 4 + part;
      float dot = 0;
      for (int d = 0; d < Dim; ++d) {
        dot = fmaf(shared->q[row][d], shared->k[column][d], dot);
      }
      score[j] = first_column + column < length ? dot : -INFINITY;
      new_largest = fmaxf(new_largest, score[j]);
    }
    new_largest = warp_max<4>(new_largest);
    float tile_sum = 0;
    for (int j = 0; j < Columns / 4; ++j) {
      const float p = expf(score[j] - new_largest);
      tile_sum += p;
      shared->probability[row][j * 4 + part] = p;
    }
    const float rescale = expf(largest - new_largest);
    sum = sum * rescale + warp_sum<4>(tile_sum);
    largest = new_largest;
    if (bug != 1) {
      __syncwarp();
    }
    for (int d = 0; d < Dim / 4; ++d) {
      float dot = result[d] * rescale;
      for (int j = 0; j < Columns; ++j) {
        dot = fmaf(shared->probability[row][j], shared->v[j][d * 4 + part], dot);
      }
      result[d] = dot;
    }
  }
  if (first_row + row < length) {
    for (int d = 0; d < Dim / 4; ++d) {
      out[head + int64_t{first_row + row} * Dim + d * 4 + part] = result[d] / sum;
    }
  }
}

// ---- FFT
// ------------------------------------------------------------------------------------------------------------------

STURDY_DEVICE float2 complex_product(float2 a, float2 b) {
  return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// One 32x32 image a block, 256 threads: Stockham's radix-2 FFT along the rows, then along the columns.
__global__ void fft_kernel(const float2* in, float2* out) {
  constexpr int size = 32;
  __shared__ float2 buffer[2][size][size + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int64_t image = int64_t{blockIdx.x} * size * size;

  for (int i = thread; i < size * size; i += threads) {
    buffer[0][i / size][i % size] = in[image + i];
  }
  int current = 0;
  for (int axis = 0; axis < 2; ++axis) {
    const auto at = [&](int which, int line, int position) -> float2& {
      return axis == 0 ? buffer[which][line][position] : buffer[which][position][line];
    };
    for (int span = 1; span < size; span *= 2) {
      __syncthreads();
      for (int i = thread; i < size * size / 2; i += threads) {
        const int line = i / (size / 2);
        const int butterfly = i % (size / 2);
        const int inner = butterfly % span;
        const int target = butterfly / span * 2 * span + inner;
        float sine;
        float cosine;
        sincospif(-static_cast<float>(inner) / static_cast<float>(span), &sine, &cosine);
        const float2 a = at(current, line, butterfly);
        const float2 b = complex_product(at(current, line, butterfly + size / 2), make_float2(cosine, sine));
        at(1 - current, line, target) = make_float2(a.x + b.x, a.y + b.y);
        at(1 - current, line, target + span) = make_float2(a.x - b.x, a.y - b.y);
      }
      current = 1 - current;
    }
  }
  __syncthreads();
  for (int i = thread; i < size * size; i += threads) {
    out[image + i] = buffer[current][i / size][i % size];
  }
}

// ---- Compaction
// -----------------------------------------------------------------------------------------------------------

__global__ void compact_kernel(const float* x, int n, int* count, float* out, float* sum, unsigned* ticket,
                               float* doubled_sum) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const unsigned lane = threadIdx.x % 32;
  const float value = i < n ? x[i] : 0.0f;
  const bool keep = value > 0;
  const unsigned kept = __ballot_sync(full_warp, keep);
  int first = 0;
  if (lane == 0) {
    first = atomicAdd(count, __popc(kept));
  }
  first = __shfl_sync(full_warp, first, 0);
  if (keep) {
    out[first + __popc(kept & ((1u << lane) - 1))] = value;
    atomicAdd(sum, value);
  }
  __threadfence();
  __syncthreads();
  // The last block to come here sees the whole sum.
  if (threadIdx.x == 0 && atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1) {
    *doubled_sum = 2 * atomicAdd(sum, 0.0f);
  }
}

// ---- Named barriers
// ----------------------------------------------------------------------------------------------------------

constexpr int pipeline_adders = 128;
constexpr int pipeline_threads = 32 + pipeline_adders;

struct PipelineShared {
  float tile[2][pipeline_adders];
};

// Warp 0 fills the two buffers in turn, warps 1 to 4 add them up. Barriers 1 and 2: a buffer is full; 3 and 4: empty.
__global__ void named_barrier_pipeline_kernel(const float* x, float* out, int tiles, int bug) {
  STURDY_DYNAMIC_SHARED(PipelineShared, shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 32) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int buffer = tile % 2;
      if (tile >= 2) {
        named_barrier_sync(3 + buffer, pipeline_threads);
      }
      for (int i = thread; i < pipeline_adders; i += 32) {
        shared->tile[buffer][i] = x[int64_t{tile} * pipeline_adders + i];
      }
      named_barrier_arrive(1 + buffer, pipeline_threads);
    }
  } else {
    const int column = thread - 32;
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int buffer = tile % 2;
      float value = bug == 1 ? shared->tile[buffer][column] : 0.0f;
      named_barrier_sync(1 + buffer, pipeline_threads);
      if (bug != 1) {
        value = shared->tile[buffer][column];
      }
      sum += value;
      if (tile + 2 < tiles) {
        named_barrier_arrive(3 + buffer, pipeline_threads);
      }
    }
    out[column] = sum;
  }
}

// ---- Speed
// ------------------------------------------------------------------------------------------------------------------

__global__ void barrier_speed_kernel(float* x, int iterations) {
  float value = 0;
  for (int i = 0; i < iterations; ++i) {
    value += 1.0f;
    __syncthreads();
  }
  x[threadIdx.x] = value;
}

__global__ void shuffle_speed_kernel(float* x, int iterations) {
  float value = static_cast<float>(threadIdx.x);
  for (int i = 0; i < iterations; ++i) {
    value = __shfl_xor_sync(full_warp, value, 1) + 1.0f;
  }
  x[threadIdx.x] = value;
}

__global__ void empty_speed_kernel(float* x, int iterations) { x[threadIdx.x] = static_cast<float>(iterations); }

int as_int(Status status) { return status == Status::ok ? 0 : 1; }

}  // namespace

int simt_test_gemm(const float* a, const float* b, float* c, int m, int n, int k, int bug) {
  constexpr int tile = 64;
  return as_int(launch(gemm_kernel<tile, tile, 16, 4, 4>, dim3(ceil_div(n, tile), ceil_div(m, tile)), 256, 0, nullptr,
                       a, b, c, m, n, k, bug));
}

int simt_test_softmax(const void* x, void* y, int rows, int columns, int dtype) {
  switch (dtype) {
    case 0:
      return as_int(softmax<float>(x, y, rows, columns));
    case 1:
      return as_int(softmax<double>(x, y, rows, columns));
    case 2:
      return as_int(softmax<__half>(x, y, rows, columns));
    default:
      return as_int(softmax<__nv_bfloat16>(x, y, rows, columns));
  }
}

int simt_test_attention(const float* q, const float* k, const float* v, float* out, int heads, int length, float scale,
                        int bug) {
  constexpr int rows = 32;
  return as_int(launch(attention_kernel<32, rows, 32>, dim3(ceil_div(length, rows), heads), 4 * rows,
                       sizeof(AttentionShared<32, rows, 32>), nullptr, q, k, v, out, length, scale, bug));
}

int simt_test_fft(const float* in, float* out, int batch) {
  return as_int(
      launch(fft_kernel, batch, 256, 0, nullptr, reinterpret_cast<const float2*>(in), reinterpret_cast<float2*>(out)));
}

int simt_test_compact(const float* x, int n, int* count, float* out, float* sum, unsigned* ticket, float* doubled_sum) {
  return as_int(launch(compact_kernel, ceil_div(n, 128), 128, 0, nullptr, x, n, count, out, sum, ticket, doubled_sum));
}

int simt_test_named_barrier_pipeline(const float* x, float* out, int tiles, int bug) {
  return as_int(
      launch(named_barrier_pipeline_kernel, 1, pipeline_threads, sizeof(PipelineShared), nullptr, x, out, tiles, bug));
}

int simt_test_speed(int which, float* x, int blocks, int threads, int iterations) {
  const auto kernel = which == 0 ? barrier_speed_kernel : which == 1 ? shuffle_speed_kernel : empty_speed_kernel;
  return as_int(launch(kernel, blocks, threads, 0, nullptr, x, iterations));
}
