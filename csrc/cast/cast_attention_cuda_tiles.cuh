// Tiles of cast_attention's CUDA kernels: rows gathered into shared memory, and the two products that all kernels are
// made of. A warp has 16 rows of the left operand (8 in double) and all columns; lane 4 g + t has rows g and g + 8.
//
//   multiply_rows     d += a b^T   both operands in shared memory: scores
//   multiply_columns  d += p b     p in registers, as multiply_rows left it: weights times values
//
// An Engine does them on tensor cores (16-bit elements; float as tf32) or by plain fused multiply-adds (float, double),
// with results in the same rows and lanes, so each kernel is written once. Nothing here has run on a GPU yet.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cast/cast_attention_cuda.cuh"
#include "common/cuda.cuh"

namespace sturdy::cuda::clustered {

STURDY_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / warp_size; }
STURDY_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % warp_size; }

// Part of a warp's matrix of N columns that one lane holds.
template <typename A, int Halves, int Vector, int N>
struct Fragment {
  static constexpr int halves = Halves;
  static constexpr int blocks = N / (4 * Vector);
  static constexpr int vector = Vector;
  static_assert(blocks * 4 * Vector == N, "four lanes share a row");

  A value[Halves][blocks][Vector] = {};

  STURDY_DEVICE void scale(const A (&factor)[Halves]) {
#pragma unroll
    for (int h = 0; h < Halves; ++h) {
#pragma unroll
      for (int i = 0; i < blocks * Vector; ++i) {
        value[h][i / Vector][i % Vector] *= factor[h];
      }
    }
  }
};

template <typename T, bool Tensor>
struct Engine {
  using A = Accumulate<T>;
  static_assert(Tensor ? sizeof(T) <= 4 : sizeof(T) >= 4, "16 bits on tensor cores, double without them");
  static constexpr bool tensor = Tensor;
  static constexpr int halves = sizeof(T) == 8 ? 1 : 2;
  static constexpr int warp_rows = 8 * halves;
  static constexpr int rows = kWarps * warp_rows;
  static constexpr int vector = Tensor ? 2 : 16 / static_cast<int>(sizeof(T));
  static constexpr int width = 16 / static_cast<int>(sizeof(T));  // elements moved at once
  static constexpr int block = 4 * vector;                        // columns of which each lane has `vector`
  template <int N>
  using Sums = Fragment<A, halves, vector, N>;

  STURDY_DEVICE static int row(int half) { return warp_index() * warp_rows + half * 8 + lane_index() / 4; }

  // Columns of the products' results in lane t of four. Scores of the plain engine are spread so that lanes read
  // different banks of the rows that make them.
  STURDY_DEVICE static int score_column(int j, int v, int t) {
    return j * block + (Tensor ? vector * t + v : t + 4 * v);
  }
  STURDY_DEVICE static int score_column(int j, int v) { return score_column(j, v, lane_index() % 4); }
  STURDY_DEVICE static int column(int j) { return j * block + lane_index() % 4 * vector; }

  // Shared memory of a warp through which it hands weights from lane to lane.
  template <int N>
  static constexpr int scratch_pitch = N + width;
  template <int N>
  static constexpr int scratch_elements = Tensor ? 1 : kWarps * warp_rows * scratch_pitch<N>;

  // Rows a[0..warp_rows), those of the warp, times rows b[0..N), over E elements. Both have the given pitch.
  template <int E, int N>
  STURDY_DEVICE static void multiply_rows(const T* a, const T* b, int pitch, Sums<N>& d) {
    if constexpr (Tensor) {
      static_assert(N % 16 == 0, "two fragments of columns come at once");
      constexpr int half_step = 16 / static_cast<int>(sizeof(T));  // elements in four words
      const int lane = lane_index();
      const T* a_row = a + lane % 16 * pitch + lane / 16 * half_step;
      const T* b_row = b + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * half_step;
      // More would only keep more operands in registers.
      [[maybe_unused]] constexpr int unrolled = sizeof(T) == 4 ? 2 : 4;
#pragma unroll unrolled
      for (int at = 0; at < E; at += 2 * half_step) {
        uint32_t left[4];
        ldmatrix_x4(left, a_row + at);
        round_operands(left);
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
          uint32_t right[4];
          ldmatrix_x4(right, b_row + j * 8 * pitch + at);
          round_operands(right);
          multiply(d, j, left, {right[0], right[1]});
          multiply(d, j + 1, left, {right[2], right[3]});
        }
      }
    } else {
      const T* a_row = a + lane_index() / 4 * pitch;
#pragma unroll 1
      for (int at = 0; at < E; at += width) {
        Packed<T, width> left[halves];
#pragma unroll
        for (int h = 0; h < halves; ++h) {
          left[h] = load_packed<width>(a_row + h * 8 * pitch + at);
        }
#pragma unroll
        for (int i = 0; i < Sums<N>::blocks * vector; ++i) {
          const int j = i / vector;
          const int v = i % vector;
          const Packed<T, width> right = load_packed<width>(b + score_column(j, v) * pitch + at);
#pragma unroll
          for (int w = 0; w < width; ++w) {
#pragma unroll
            for (int h = 0; h < halves; ++h) {
              d.value[h][j][v] += left[h][w] * right[w];
            }
          }
        }
      }
    }
  }

  // The warp's weights (scores' layout) times b, N rows of E elements.
  template <int N, int E>
  STURDY_DEVICE static void multiply_columns(const Sums<N>& p, A* scratch, const T* b, int pitch, Sums<E>& d) {
    const int lane = lane_index();
    if constexpr (Tensor && sizeof(T) == 2) {
      const T* b_row = b + lane % 16 * pitch + lane / 16 * 8;
#pragma unroll
      for (int k = 0; k < N / 16; ++k) {
        const uint32_t left[4] = {pair(p.value[0][2 * k]), pair(p.value[1][2 * k]), pair(p.value[0][2 * k + 1]),
                                  pair(p.value[1][2 * k + 1])};
#pragma unroll
        for (int j = 0; j < E / 8; j += 2) {
          uint32_t right[4];
          ldmatrix_x4_trans(right, b_row + k * 16 * pitch + j * 8);
          multiply(d, j, left, {right[0], right[1]});
          multiply(d, j + 1, left, {right[2], right[3]});
        }
      }
    } else if constexpr (Tensor) {
      // The sum may run in any order: step k takes column 8 k + 2 t for word t and 8 k + 2 t + 1 for word t + 4, which
      // are the ones that this lane holds.
      const T* b_row = b + lane % 4 * 2 * pitch + lane / 4;
#pragma unroll
      for (int k = 0; k < N / 8; ++k) {
        const uint32_t left[4] = {float_to_tf32(p.value[0][k][0]), float_to_tf32(p.value[1][k][0]),
                                  float_to_tf32(p.value[0][k][1]), float_to_tf32(p.value[1][k][1])};
#pragma unroll
        for (int j = 0; j < E / 8; ++j) {
          const T* element = b_row + k * 8 * pitch + j * 8;
          multiply(d, j, left, {float_to_tf32(element[0]), float_to_tf32(element[pitch])});
        }
      }
    } else {
      A* own = scratch + warp_index() * warp_rows * scratch_pitch<N>;
      A* own_row = own + lane / 4 * scratch_pitch<N>;
#pragma unroll
      for (int h = 0; h < halves; ++h) {
#pragma unroll
        for (int i = 0; i < Sums<N>::blocks * vector; ++i) {
          own_row[h * 8 * scratch_pitch<N> + score_column(i / vector, i % vector)] = p.value[h][i / vector][i % vector];
        }
      }
      __syncwarp();
      constexpr int at_once = sizeof(T) == 8 ? 1 : width;  // in double, registers for more would be spilled
#pragma unroll 1
      for (int k = 0; k < N; k += at_once) {
        Packed<A, at_once> left[halves];
#pragma unroll
        for (int h = 0; h < halves; ++h) {
          left[h] = load_packed<at_once>(own_row + h * 8 * scratch_pitch<N> + k);
        }
#pragma unroll
        for (int w = 0; w < at_once; ++w) {
#pragma unroll
          for (int j = 0; j < Sums<E>::blocks; ++j) {
            const Packed<T, vector> right = load_packed<vector>(b + (k + w) * pitch + column(j));
#pragma unroll
            for (int v = 0; v < vector; ++v) {
#pragma unroll
              for (int h = 0; h < halves; ++h) {
                d.value[h][j][v] += left[h][w] * right[v];
              }
            }
          }
        }
      }
      __syncwarp();  // the scratch is free again
    }
  }

 private:
  STURDY_DEVICE static void round_operands(uint32_t (&words)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& word : words) {
        word = float_to_tf32(__uint_as_float(word));
      }
    }
  }

  STURDY_DEVICE static uint32_t pair(const A (&two)[vector]) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half_as_ushort(__float2half_rn(two[0])) |
             static_cast<uint32_t>(__half_as_ushort(__float2half_rn(two[1]))) << 16;
    } else {
      return __bfloat16_as_ushort(__float2bfloat16_rn(two[0])) |
             static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(two[1]))) << 16;
    }
  }

  template <int N>
  STURDY_DEVICE static void multiply(Sums<N>& d, int j, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    float sums[4] = {d.value[0][j][0], d.value[0][j][1], d.value[1][j][0], d.value[1][j][1]};
    if constexpr (std::is_same_v<T, __half>) {
      mma_m16n8k16_f16(sums, a, b);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      mma_m16n8k16_bf16(sums, a, b);
    } else {
      mma_m16n8k8_tf32(sums, a, b);
    }
    d.value[0][j][0] = sums[0];
    d.value[0][j][1] = sums[1];
    d.value[1][j][0] = sums[2];
    d.value[1][j][1] = sums[3];
  }
};

// Calls visit(h, j, v) for each element that a lane holds.
template <typename Sums, typename Visit>
STURDY_DEVICE void for_each_element(const Sums&, const Visit& visit) {
#pragma unroll
  for (int h = 0; h < Sums::halves; ++h) {
#pragma unroll
    for (int j = 0; j < Sums::blocks; ++j) {
#pragma unroll
      for (int v = 0; v < Sums::vector; ++v) {
        visit(h, j, v);
      }
    }
  }
}

// --------------------------------------------------------------------------------------------------- shared memory

// How many columns are taken at once and how many such tiles are in flight, by what fits into 96 KiB a block.
template <typename T, int E, bool Tensor>
struct Shape {
  using Engine = clustered::Engine<T, Tensor>;
  using A = Accumulate<T>;
  static constexpr int bytes = E * static_cast<int>(sizeof(T));
  static constexpr int rows = Engine::rows;
  static constexpr int columns = bytes <= 128 ? 64 : bytes <= 256 ? 32 : bytes <= 512 ? 16 : 8;
  static constexpr int pair_columns = columns < 32 ? columns : 32;  // where two products are kept side by side
  static constexpr int stages = bytes <= 256 ? 2 : 1;
  static constexpr int blocks = E <= 32 || (Tensor && E <= 64) ? 3 : 2;  // that are to fit on a multiprocessor
  static constexpr int pitch = E + Engine::width;                        // rows of eight on different banks
  static constexpr int few = Tensor ? 16 : Engine::block;                // columns of clusters taken at once
  static_assert(columns % few == 0, "a tile has whole blocks of clusters");
};
constexpr size_t kSharedBudget = 96 * 1024;  // two blocks fit on sm_90 and sm_100, one on every GPU since sm_80

// ---------------------------------------------------------------------------------------------------------- staging

// Starts to bring rows[0..count) of `from` into shared memory; rows of -1 and columns from dim to E become zero. By the
// whole block; the caller commits and waits.
template <typename T, int E>
STURDY_DEVICE void stage_rows(const T* from, int64_t stride, bool packed, int dim, const int* rows, int count,
                              T* target) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  constexpr int chunks = E / width;
  constexpr int pitch = E + width;
  if (packed) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < count * chunks; i += kThreads) {
      const int row = rows[i / chunks];
      const int at = i % chunks * width;
      const bool inside = row >= 0 && at < dim;
      cp_async_zero_fill<16>(target + i / chunks * pitch + at, inside ? from + row * stride + at : from,
                             inside ? 16 : 0);
    }
    return;
  }
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count * E; i += kThreads) {
    const int row = rows[i / E];
    const bool inside = row >= 0 && i % E < dim;
    target[i / E * pitch + i % E] = inside ? from[row * stride + i % E] : T{};
  }
}

// The same for rows that are kept in the type of sums.
template <typename T, int E>
STURDY_DEVICE void stage_sums(const Accumulate<T>* from, bool packed, int dim, const int* rows, int count, T* target) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    stage_rows<T, E>(from, dim, packed, dim, rows, count, target);
  } else {
    constexpr int pitch = E + 16 / static_cast<int>(sizeof(T));
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < count * E; i += kThreads) {
      const int row = rows[i / E];
      const bool inside = row >= 0 && i % E < dim;
      target[i / E * pitch + i % E] = from_accumulate<T>(inside ? from[int64_t{row} * dim + i % E] : 0.0f);
    }
  }
}

// Writes the lane's part of a row, times `factor`; a null row is left out. All lanes of a warp call.
template <typename Engine, typename T, int E>
STURDY_DEVICE void store_row(T* row, bool packed, int dim, const typename Engine::template Sums<E>& sums, int half,
                             Accumulate<T> factor) {
  constexpr int vector = Engine::vector;
  constexpr int blocks = E / Engine::block;
  const auto element = [&](int j, int v) { return from_accumulate<T>(sums.value[half][j][v] * factor); };
  if (!packed) {
#pragma unroll
    for (int i = 0; i < blocks * vector; ++i) {
      const int column = Engine::column(i / vector) + i % vector;
      if (row != nullptr && column < dim) {
        row[column] = element(i / vector, i % vector);
      }
    }
  } else if constexpr (sizeof(T) == 2) {
    // Neighbouring lanes swap words, so that each has eight bytes of one of two blocks and four lanes fill 32 in a row.
    const bool odd = lane_index() % 2 != 0;
#pragma unroll
    for (int j = 0; j < blocks; j += 2) {
      const Packed<T, 2> left = {{element(j, 0), element(j, 1)}};
      const Packed<T, 2> right = {{element(j + 1, 0), element(j + 1, 1)}};
      const Packed<T, 2> received = shuffle_xor(odd ? left : right, 1);
      const Packed<T, 2> first = odd ? received : left;
      const Packed<T, 2> second = odd ? right : received;
      const int column = odd ? Engine::column(j + 1) - 2 : Engine::column(j);
      if (row != nullptr && column < dim) {
        store_packed(row + column, Packed<T, 4>{{first[0], first[1], second[0], second[1]}});
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < blocks; ++j) {
      Packed<T, vector> elements;
#pragma unroll
      for (int v = 0; v < vector; ++v) {
        elements[v] = element(j, v);
      }
      if (row != nullptr && Engine::column(j) < dim) {
        store_packed(row + Engine::column(j), elements);
      }
    }
  }
}

// Adds `factor` times a row of memory to the lane's part of a row.
template <typename Engine, int E, typename Element>
STURDY_DEVICE void add_row(const Element* row, bool packed, int dim, Accumulate<Element> factor, int half,
                           typename Engine::template Sums<E>& sums) {
  constexpr int vector = Engine::vector;
#pragma unroll
  for (int j = 0; j < E / Engine::block; ++j) {
    const int column = Engine::column(j);
    if (packed) {
      if (column < dim) {
        const Packed<Element, vector> elements = load_packed<vector>(row + column);
#pragma unroll
        for (int v = 0; v < vector; ++v) {
          sums.value[half][j][v] += factor * to_accumulate(elements[v]);
        }
      }
      continue;
    }
#pragma unroll
    for (int v = 0; v < vector; ++v) {
      if (column + v < dim) {
        sums.value[half][j][v] += factor * to_accumulate(row[column + v]);
      }
    }
  }
}

// `Width` elements of a row; zeros from dim on.
template <int Width, typename T>
STURDY_DEVICE void load_elements(const T* row, bool packed, int dim, int first, Accumulate<T> (&elements)[Width]) {
  constexpr int at_once = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = 0; i < Width; i += at_once) {
    if (packed && first + i < dim) {
      const Packed<T, at_once> part = load_packed<at_once>(row + first + i);
#pragma unroll
      for (int w = 0; w < at_once; ++w) {
        elements[i + w] = to_accumulate(part[w]);
      }
      continue;
    }
#pragma unroll
    for (int w = 0; w < at_once; ++w) {
      elements[i + w] = first + i + w < dim ? to_accumulate(row[first + i + w]) : Accumulate<T>(0);
    }
  }
}

// The inner product of a row in shared memory, which is zero from dim on, and of another one anywhere, by the four
// lanes that share a row; all of them get it. All lanes of a warp call.
template <int E, typename T, typename Other>
STURDY_DEVICE Accumulate<T> four_lane_dot(const T* row, const Other* other, bool packed, int dim) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  Accumulate<T> sum = 0;
#pragma unroll 2
  for (int at = lane_index() % 4 * width; at < dim; at += 4 * width) {
    const Packed<T, width> left = load_packed<width>(row + at);
    Accumulate<T> right[width];
    load_elements<width>(other, packed, dim, at, right);
#pragma unroll
    for (int w = 0; w < width; ++w) {
      sum += to_accumulate(left[w]) * right[w];
    }
  }
  return warp_sum<4>(sum);
}

// The way back; elements from dim on are dropped.
template <int Width, typename T>
STURDY_DEVICE void store_elements(T* row, bool packed, int dim, int first, const Accumulate<T> (&elements)[Width]) {
  constexpr int at_once = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = 0; i < Width; i += at_once) {
    Packed<T, at_once> part;
#pragma unroll
    for (int w = 0; w < at_once; ++w) {
      part[w] = from_accumulate<T>(elements[i + w]);
    }
    if (packed && first + i < dim) {
      store_packed(row + first + i, part);
      continue;
    }
#pragma unroll
    for (int w = 0; w < at_once; ++w) {
      if (first + i + w < dim) {
        row[first + i + w] = part[w];
      }
    }
  }
}

// Walks `tiles` tiles: while one is worked on, the next one is on its way (with two stages), and the rows of the one
// after that are looked up. look_up(t, slot of three) fills rows in shared memory, stage(t, stage, slot) starts copies,
// work(t, stage, slot) uses them. By the whole block.
template <int Stages, typename LookUp, typename Stage, typename Work>
STURDY_DEVICE void walk_tiles(int tiles, const LookUp& look_up, const Stage& stage, const Work& work) {
  look_up(0, 0);
  look_up(1, 1);
  __syncthreads();
  if constexpr (Stages == 2) {
    stage(0, 0, 0);
    cp_async_commit();
  }
  int slot = 0;  // t % 3
#pragma unroll 1
  for (int t = 0; t < tiles; ++t) {
    const int next = slot == 2 ? 0 : slot + 1;
    if constexpr (Stages == 2) {
      if (t + 1 < tiles) {
        stage(t + 1, (t + 1) % 2, next);
      }
      cp_async_commit();
      look_up(t + 2, next == 2 ? 0 : next + 1);
      cp_async_wait<1>();
    } else {
      stage(t, 0, slot);
      cp_async_commit();
      look_up(t + 2, next == 2 ? 0 : next + 1);
      cp_async_wait<0>();
    }
    __syncthreads();
    work(t, Stages == 2 ? t % 2 : 0, slot);
    __syncthreads();
    slot = next;
  }
  cp_async_wait<0>();
}

}  // namespace sturdy::cuda::clustered
