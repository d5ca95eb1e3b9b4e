// cast_affinity on CUDA. A block multiplies a tile of tokens, their queries and their keys, with some clusters at a
// time: on tensor cores, or with multiply-adds for float64 and for float32 that may not be rounded. Softmaxes stay in
// registers: four lanes share the scores of a token. With more clusters than a block takes at a time it goes over them
// twice, first for the softmaxes' sums; scores are never stored. Nothing here has run on a GPU yet.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cast/cast_affinity.h"
#include "common/cuda.cuh"

// ptxas-budget: cast_affinity_kernel 255

namespace sturdy::cuda {
namespace cast_affinity_tiles {

constexpr int kThreads = 128;
constexpr int kTokens = 64;              // of a tile: 16 for each warp
constexpr int kStepBytes = 128;          // of each row that are multiplied at a time
constexpr int kPitch = kStepBytes + 16;  // rows of eight on different banks
constexpr int kStages = 2;

// Rows of `depth` elements: those of `dim` each of all heads, which are `head` apart.
struct Rows {
  const void* data;
  int64_t sequence, head, row;  // strides, in elements
  int dim;
  bool packed;  // 16 bytes at a time may be copied
};

struct Call {
  CastAffinityParams params;
  Rows q, k, surrogates;
  int depth, tiles;
};

// Copies `count` rows from `first` on, a step of depth from `at` on, to shared memory; what is not there becomes 0.
template <typename T, int count>
STURDY_DEVICE void load_rows(const Rows& rows, const T* data, int64_t first, int64_t end, int at, int depth,
                             unsigned char* shared) {
  constexpr int kPieces = kStepBytes / 16;
  constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  static_assert(count * kPieces % kThreads == 0, "all threads copy alike");
#pragma unroll
  for (int i = 0; i < count * kPieces / kThreads; i++) {
    const int piece = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = piece / kPieces;
    const int k = at + piece % kPieces * kElements;
    unsigned char* to = shared + row * kPitch + piece % kPieces * 16;
    const bool inside = first + row < end;
    if (rows.packed) {
      const bool read = inside && k < depth;
      const T* from = read ? data + k / rows.dim * rows.head + (first + row) * rows.row + k % rows.dim : data;
      cp_async_zero_fill<16>(to, from, read ? 16 : 0);
      continue;
    }
    Packed<T, kElements> values;
#pragma unroll
    for (int j = 0; j < kElements; j++) {
      const int place = k + j;
      values[j] = inside && place < depth
                      ? data[place / rows.dim * rows.head + (first + row) * rows.row + place % rows.dim]
                      : from_accumulate<T>(0);
    }
    store_packed(reinterpret_cast<T*>(to), values);
  }
}

// The products of one step of depth. Lane 4 g + t of a warp sums up those of its tokens g and g + 8 with clusters
// 8 n + 2 t and 8 n + 2 t + 1: sums[n][0, 1] of the first token, sums[n][2, 3] of the second.
template <typename T, bool tensor, int parts>
struct Product {
  using Sums = Accumulate<T> (&)[2][parts][4];

  STURDY_DEVICE static void add(Sums sums, const unsigned char* q, const unsigned char* k,
                                const unsigned char* surrogates) {
    constexpr int kElements = 16 / static_cast<int>(sizeof(T));
    const int lane = threadIdx.x % warp_size;
    const int first = threadIdx.x / warp_size * 16 + lane / 4;
    const int cluster = lane % 4 * 2;
#pragma unroll 1
    for (int at = 0; at < kStepBytes; at += 16) {
      Packed<T, kElements> tokens[2][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = (first + 8 * i) * kPitch + at;
        tokens[0][i] = load_packed<kElements>(reinterpret_cast<const T*>(q + row));
        tokens[1][i] = load_packed<kElements>(reinterpret_cast<const T*>(k + row));
      }
#pragma unroll
      for (int n = 0; n < parts; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const unsigned char* row = surrogates + (8 * n + cluster + j) * kPitch + at;
          const Packed<T, kElements> values = load_packed<kElements>(reinterpret_cast<const T*>(row));
#pragma unroll
          for (int e = 0; e < kElements; e++) {
#pragma unroll
            for (int side = 0; side < 2; side++) {
              sums[side][n][j] += tokens[side][0][e] * values[e];
              sums[side][n][2 + j] += tokens[side][1][e] * values[e];
            }
          }
        }
      }
    }
  }
};

template <typename T, int parts>
struct Product<T, true, parts> {
  static_assert(parts % 2 == 0, "clusters are loaded in pairs of eight");

  STURDY_DEVICE static void add(float (&sums)[2][parts][4], const unsigned char* q, const unsigned char* k,
                                const unsigned char* surrogates) {
    const int lane = threadIdx.x % warp_size;
    const int token_row = (threadIdx.x / warp_size * 16 + lane % 16) * kPitch + lane / 16 * 16;
    const int cluster_row = (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int at = 0; at < kStepBytes; at += 32) {
      uint32_t tokens[2][4];
      ldmatrix_x4(tokens[0], q + token_row + at);
      ldmatrix_x4(tokens[1], k + token_row + at);
      round(tokens[0]);
      round(tokens[1]);
#pragma unroll
      for (int n = 0; n < parts; n += 2) {
        uint32_t clusters[4];
        ldmatrix_x4(clusters, surrogates + 8 * n * kPitch + cluster_row + at);
        round(clusters);
        const uint32_t even[2] = {clusters[0], clusters[1]}, odd[2] = {clusters[2], clusters[3]};
#pragma unroll
        for (int side = 0; side < 2; side++) {
          multiply(sums[side][n], tokens[side], even);
          multiply(sums[side][n + 1], tokens[side], odd);
        }
      }
    }
  }

 private:
  STURDY_DEVICE static void round(uint32_t (&words)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& word : words) {
        word = float_to_tf32(__uint_as_float(word));
      }
    }
  }

  STURDY_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (sizeof(T) == 4) {
      mma_m16n8k8_tf32(d, a, b);
    } else if constexpr (std::is_same_v<T, __half>) {
      mma_m16n8k16_f16(d, a, b);
    } else {
      mma_m16n8k16_bf16(d, a, b);
    }
  }
};

STURDY_DEVICE float exponential(float x) { return expf(x); }
STURDY_DEVICE double exponential(double x) { return exp(x); }

// A softmax over scores that come some at a time.
template <typename A>
struct RunningSoftmax {
  A most = -INFINITY;
  A sum = 0;
};

template <typename T, bool tensor, int parts>
class Tile {
 public:
  using A = Accumulate<T>;
  static constexpr int kClusters = 8 * parts;
  static constexpr int kStageBytes = (2 * kTokens + kClusters) * kPitch;

  STURDY_DEVICE Tile(const Call& call, unsigned char* shared) : call_(call), p_(call.params), shared_(shared) {
    sequence_ = blockIdx.x / call.tiles;
    first_ = static_cast<int64_t>(blockIdx.x % call.tiles) * kTokens;
    const int lane = threadIdx.x % warp_size;
    token_ = first_ + threadIdx.x / warp_size * 16 + lane / 4;
    cluster_ = lane % 4 * 2;
  }

  STURDY_DEVICE void run() {
    const int thread = static_cast<int>(threadIdx.x);
    if (__syncthreads_or(thread < kTokens && has_token(first_ + thread) ? 1 : 0) == 0) {
      for (int64_t c = 0; c < p_.sizes.clusters; c += kClusters) {
        write(c, nullptr);
      }
      return;
    }
    RunningSoftmax<A> softmax[2][2];
    A sums[2][parts][4];
    for (int64_t c = 0; c < p_.sizes.clusters; c += kClusters) {
      multiply(c, sums);
#pragma unroll
      for (int side = 0; side < 2; side++) {
        add(softmax[side][0], sums[side], 0, c);
        add(softmax[side][1], sums[side], 2, c);
      }
    }
    for (int64_t c = 0; c < p_.sizes.clusters; c += kClusters) {
      if (p_.sizes.clusters > kClusters) {
        multiply(c, sums);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        mix(softmax[0][i], softmax[1][i], sums, 2 * i, gate(token_ + 8 * i));
      }
      write(c, sums[1]);
    }
  }

 private:
  STURDY_DEVICE bool has_token(int64_t token) const {
    const PaddingView& padding = p_.padding;
    return token < p_.sizes.tokens &&
           (padding.data == nullptr || padding.data[sequence_ * padding.stride[0] + token * padding.stride[1]] == 0);
  }

  STURDY_DEVICE A gate(int64_t token) const {
    if (token >= p_.sizes.tokens) {
      return 0;
    }
    const int64_t at = sequence_ * p_.phi.stride[0] + token * p_.phi.stride[1];
    const A phi = p_.phi.dtype == DType::f32 ? static_cast<A>(static_cast<const float*>(p_.phi.data)[at])
                                             : to_accumulate(static_cast<const T*>(p_.phi.data)[at]);
    return A{1} / (A{1} + exponential(-phi));
  }

  STURDY_DEVICE void load(int64_t cluster, int step) const {
    constexpr int kStep = kStepBytes / static_cast<int>(sizeof(T));
    unsigned char* stage = shared_ + step % kStages * kStageBytes;
    const T* q = static_cast<const T*>(call_.q.data) + sequence_ * call_.q.sequence;
    const T* k = static_cast<const T*>(call_.k.data) + sequence_ * call_.k.sequence;
    const T* surrogates = static_cast<const T*>(call_.surrogates.data);
    const int at = step * kStep;
    load_rows<T, kTokens>(call_.q, q, first_, p_.sizes.tokens, at, call_.depth, stage);
    load_rows<T, kTokens>(call_.k, k, first_, p_.sizes.tokens, at, call_.depth, stage + kTokens * kPitch);
    load_rows<T, kClusters>(call_.surrogates, surrogates, cluster, p_.sizes.clusters, at, call_.depth,
                            stage + 2 * kTokens * kPitch);
    cp_async_commit();
  }

  // Scores of the tile with clusters from `cluster` on.
  STURDY_DEVICE void multiply(int64_t cluster, A (&sums)[2][parts][4]) const {
#pragma unroll
    for (int side = 0; side < 2; side++) {
#pragma unroll
      for (int n = 0; n < parts; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sums[side][n][i] = 0;
        }
      }
    }
    const int steps = ceil_div(call_.depth, kStepBytes / static_cast<int>(sizeof(T)));
    if (steps > 0) {
      load(cluster, 0);
    }
    for (int step = 0; step < steps; step++) {
      if (step + 1 < steps) {
        load(cluster, step + 1);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();
      const unsigned char* stage = shared_ + step % kStages * kStageBytes;
      Product<T, tensor, parts>::add(sums, stage, stage + kTokens * kPitch, stage + 2 * kTokens * kPitch);
      __syncthreads();
    }
  }

  // Adds the scores of one token, those from `from` on of each part.
  STURDY_DEVICE void add(RunningSoftmax<A>& softmax, const A (&sums)[parts][4], int from, int64_t cluster) const {
    A most = softmax.most;
#pragma unroll
    for (int n = 0; n < parts; n++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if (cluster + 8 * n + cluster_ + j < p_.sizes.clusters) {
          most = Max{}(most, sums[n][from + j]);
        }
      }
    }
    most = warp_reduce<4>(most, Max{});
    const A scale = static_cast<A>(1.0 / p_.tau_g);
    A sum = 0;
#pragma unroll
    for (int n = 0; n < parts; n++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if (cluster + 8 * n + cluster_ + j < p_.sizes.clusters) {
          sum += exponential((sums[n][from + j] - most) * scale);
        }
      }
    }
    const A kept = softmax.most == most ? softmax.sum : softmax.sum * exponential((softmax.most - most) * scale);
    softmax.sum = kept + warp_reduce<4>(sum, Sum{});
    softmax.most = most;
  }

  // Scores become affinities, in sums[1].
  STURDY_DEVICE void mix(const RunningSoftmax<A>& query, const RunningSoftmax<A>& key, A (&sums)[2][parts][4], int from,
                         A gate) const {
    const A scale = static_cast<A>(1.0 / p_.tau_g);
    const A query_scale = A{1} / query.sum, key_scale = A{1} / key.sum;
#pragma unroll
    for (int n = 0; n < parts; n++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const A pq = exponential((sums[0][n][from + j] - query.most) * scale) * query_scale;
        const A pk = exponential((sums[1][n][from + j] - key.most) * scale) * key_scale;
        sums[1][n][from + j] = pk + gate * (pq - pk);
      }
    }
  }

  // Null: there is no token.
  STURDY_DEVICE void write(int64_t cluster, const A (*values)[4]) const {
    const int64_t* stride = p_.affinity_stride;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int64_t token = token_ + 8 * i;
      if (token >= p_.sizes.tokens) {
        continue;
      }
      const bool present = values != nullptr && has_token(token);
      float* row = p_.affinity + sequence_ * stride[0] + token * stride[1];
#pragma unroll
      for (int n = 0; n < parts; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int64_t c = cluster + 8 * n + cluster_ + j;
          if (c < p_.sizes.clusters) {
            row[c * stride[2]] = present ? static_cast<float>(values[n][2 * i + j]) : -INFINITY;
          }
        }
      }
    }
  }

  const Call& call_;
  const CastAffinityParams& p_;
  unsigned char* shared_;
  int64_t sequence_, first_, token_;
  int cluster_;
};

template <typename T, bool tensor, int parts>
__global__ void __launch_bounds__(kThreads, 2) cast_affinity_kernel(Call call) {
  STURDY_DYNAMIC_SHARED(unsigned char, shared);
  Tile<T, tensor, parts>(call, shared).run();
}

template <typename T>
Rows rows_of(const TokenView& view, const CastSizes& sizes, int64_t row_count, bool batched) {
  const auto in_words = [](int64_t stride, int64_t count) {
    return count <= 1 || stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  };
  Rows rows{};
  rows.data = view.data;
  rows.sequence = batched ? view.stride[0] : 0;
  rows.head = view.stride[1];
  rows.row = view.stride[2];
  const bool adjacent = sizes.heads <= 1 || view.stride[1] == sizes.dim;  // heads are then one of all their depth
  rows.dim = static_cast<int>(std::max<int64_t>(adjacent ? sizes.heads * sizes.dim : sizes.dim, 1));
  rows.packed = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && in_words(rows.sequence, sizes.batch) &&
                in_words(rows.row, row_count) && (adjacent || in_words(rows.head, sizes.heads)) &&
                in_words(rows.dim, 2);
  return rows;
}

template <typename T, bool tensor, int parts>
Status start(const Call& call, void* stream) {
  constexpr size_t bytes = size_t{kStages} * Tile<T, tensor, parts>::kStageBytes;
  return launch(cast_affinity_kernel<T, tensor, parts>,
                dim3(static_cast<unsigned>(call.params.sizes.batch * call.tiles)), dim3(kThreads), bytes, stream, call);
}

template <typename T, bool tensor>
Status run(const CastAffinityParams& params, void* stream) {
  const CastSizes& sizes = params.sizes;
  if (sizes.batch == 0 || sizes.tokens == 0) {
    return Status::ok;
  }
  const int64_t tiles = ceil_div<int64_t>(sizes.tokens, kTokens);
  if (tiles > max_grid_x / sizes.batch || sizes.heads * sizes.dim > (int64_t{1} << 30)) {
    return Status::unsupported_size;
  }
  Call call{};
  call.params = params;
  call.q = rows_of<T>(params.q, sizes, sizes.tokens, true);
  call.k = rows_of<T>(params.k, sizes, sizes.tokens, true);
  call.surrogates = rows_of<T>(params.surrogates, sizes, sizes.clusters, false);
  call.depth = static_cast<int>(sizes.heads * sizes.dim);
  call.tiles = static_cast<int>(tiles);
  return sizes.clusters <= 16 ? start<T, tensor, 2>(call, stream) : start<T, tensor, 8>(call, stream);
}

}  // namespace cast_affinity_tiles

size_t cast_affinity_workspace(const CastAffinityParams& /*params*/) { return 0; }

Status cast_affinity(const CastAffinityParams& params, void* /*workspace*/, void* stream) {
  using namespace cast_affinity_tiles;
  switch (params.dtype) {
    case DType::f16:
      return run<__half, true>(params, stream);
    case DType::bf16:
      return run<__nv_bfloat16, true>(params, stream);
    case DType::f64:
      return run<double, false>(params, stream);
    default:
      return params.allow_tf32 ? run<float, true>(params, stream) : run<float, false>(params, stream);
  }
}

}  // namespace sturdy::cuda
