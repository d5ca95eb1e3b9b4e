// wave_add on CUDA. A block takes a tile of pixels: it puts the sines of the tile's rows and columns into shared
// memory, then each thread adds the waves to the pixels that it holds in registers. One read and one write of the
// image.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/cuda.cuh"
#include "fourier/wave_add.h"

// ptxas-budget: wave_add_kernel 168
// ptxas-budget: wave_add_backward_kernel 128

namespace sturdy::cuda {
namespace wave_add_tiles {

constexpr int kThreads = 256;
constexpr int kPixelsPerThread = 16;
constexpr int kTilePixels = kThreads * kPixelsPerThread;
constexpr int kAxis = 1024;                       // longest side of a tile
constexpr int kMostPlanes = 16;                   // of a tile
constexpr size_t kTableBytes = 32 * 1024;         // of shared memory for sines; a launch need not ask for that
constexpr int64_t kMaxExtent = int64_t{1} << 30;  // of an axis: coordinates are 32-bit, offsets are not
static_assert(size_t{2} * (kAxis + kTilePixels / kAxis) * sizeof(double) <= kTableBytes, "one wave must fit");

// How planes are cut into tiles. A tile is `planes` whole small planes, or a part of one; with `merged` it is a part of
// all channels of one image, which lie side by side in memory.
struct Tiling {
  int channels, height, width;
  int64_t count;  // of planes in all
  int planes, rows, columns;
  int row_tiles, column_tiles;
  int waves;  // whose sines are in shared memory at a time
  bool merged;

  int64_t tiles() const { return (count + planes - 1) / planes * row_tiles * column_tiles; }
  __host__ __device__ size_t table_values() const { return size_t{2} * planes * waves * (rows + columns); }
  size_t values() const { return table_values() + size_t{1} * planes * waves; }  // and the amplitudes
};

bool make_tiling(const Waves& w, size_t value_bytes, bool merged, bool one_plane, Tiling* t) {
  if (w.channels > kMaxExtent || w.height > kMaxExtent || w.width > kMaxExtent) {
    return false;
  }
  *t = Tiling{};
  t->channels = static_cast<int>(w.channels);
  t->height = static_cast<int>(w.height);
  t->width = static_cast<int>(w.width);
  t->count = w.batch * w.channels;
  t->merged = merged;
  t->planes = merged ? t->channels : 1;
  t->columns = std::clamp(t->width, 1, kAxis / t->planes);
  t->rows = std::clamp(t->height, 1, std::min(kAxis, kTilePixels / (t->columns * t->planes)));
  if (!merged && !one_plane && t->columns == t->width && t->rows == t->height) {
    t->planes = std::clamp(kTilePixels / (t->rows * t->columns), 1, kMostPlanes);
  }
  t->row_tiles = std::max(ceil_div(t->height, t->rows), 1);
  t->column_tiles = std::max(ceil_div(t->width, t->columns), 1);
  const size_t per_wave = size_t{2} * t->planes * (t->rows + t->columns) * value_bytes;
  t->waves = static_cast<int>(
      std::clamp<int64_t>(static_cast<int64_t>(kTableBytes / per_wave), 1, std::max<int64_t>(w.count, 1)));
  return true;
}

// The tile of one block, and how far it reaches; no planes where planes have no pixels.
struct Tile {
  int64_t first_plane, first_image;
  int first_channel, planes, first_row, rows, first_column, columns;

  STURDY_DEVICE Tile(const Tiling& t, int64_t index) {
    const int per_group = t.row_tiles * t.column_tiles;
    const int in_group = static_cast<int>(index % per_group);
    first_plane = index / per_group * t.planes;
    first_image = first_plane / t.channels;
    first_channel = static_cast<int>(first_plane % t.channels);
    const bool empty = t.height == 0 || t.width == 0;
    planes = empty ? 0 : static_cast<int>(min(static_cast<int64_t>(t.planes), t.count - first_plane));
    first_row = in_group / t.column_tiles * t.rows;
    first_column = in_group % t.column_tiles * t.columns;
    rows = max(min(t.rows, t.height - first_row), 1);
    columns = max(min(t.columns, t.width - first_column), 1);
  }
};

// A pixel, or the first of several neighbours, within a tile, in one register. Beyond the tile it is not there().
class Place {
 public:
  STURDY_DEVICE Place() : packed_(-1) {}
  STURDY_DEVICE Place(const Tiling& t, const Tile& tile, int index) {
    int plane;
    int row;
    int column;
    if (t.merged) {
      plane = index % tile.planes;
      const int pixel = index / tile.planes;
      column = pixel % tile.columns;
      row = pixel / tile.columns;
      packed_ = row < tile.rows ? pack(plane, row, column) : -1;
    } else {
      const int line = index / tile.columns;
      column = index % tile.columns;
      row = line % tile.rows;
      plane = line / tile.rows;
      packed_ = plane < tile.planes ? pack(plane, row, column) : -1;
    }
  }

  STURDY_DEVICE bool there() const { return packed_ >= 0; }
  STURDY_DEVICE int plane() const { return packed_ / (kAxis * kAxis); }
  STURDY_DEVICE int row() const { return packed_ / kAxis % kAxis; }
  STURDY_DEVICE int column() const { return packed_ % kAxis; }

 private:
  STURDY_DEVICE static int pack(int plane, int row, int column) { return (plane * kAxis + row) * kAxis + column; }

  int packed_;
};

template <typename Element>
STURDY_DEVICE Element* address(const ImageView& image, const Tiling& t, const Tile& tile, const Place& place) {
  const unsigned channel = static_cast<unsigned>(tile.first_channel + place.plane());
  const unsigned channels = static_cast<unsigned>(t.channels);
  return static_cast<Element*>(image.data) + (tile.first_image + channel / channels) * image.stride[0] +
         static_cast<int64_t>(channel % channels) * image.stride[1] +
         int64_t{tile.first_row + place.row()} * image.stride[2] +
         int64_t{tile.first_column + place.column()} * image.stride[3];
}

STURDY_DEVICE double read(const WaveParameter& parameter, int64_t image, int64_t channel, int64_t wave, int axis) {
  const int64_t at = image * parameter.stride[0] + channel * parameter.stride[1] + wave * parameter.stride[2] +
                     axis * parameter.stride[3];
  return parameter.is_double ? static_cast<const double*>(parameter.data)[at]
                             : static_cast<double>(static_cast<const float*>(parameter.data)[at]);
}

STURDY_DEVICE void sincos_of_turns(double turns, float* sine, float* cosine) {
  sincospif(static_cast<float>(2.0 * (turns - rint(turns))), sine, cosine);
}

STURDY_DEVICE void sincos_of_turns(double turns, double* sine, double* cosine) {
  sincospi(2.0 * (turns - rint(turns)), sine, cosine);
}

// Sines in shared memory: for each plane and wave first those of the columns, then those of the rows.
template <typename A>
struct Tables {
  A* sine;
  A* cosine;
  A* amplitude;
  int waves;  // of which there are sines now
  int span;   // columns and rows of the tile

  STURDY_DEVICE Tables(A* memory, const Tiling& t)
      : sine(memory), cosine(memory + t.table_values() / 2), amplitude(memory + t.table_values()), waves(0), span(0) {}

  // All threads of the block; the tables are ready when it returns.
  STURDY_DEVICE void build(const Waves& w, const Tiling& t, const Tile& tile, int64_t first_wave) {
    __syncthreads();  // nobody reads the former ones any more
    waves = static_cast<int>(min(static_cast<int64_t>(t.waves), w.count - first_wave));
    span = tile.columns + tile.rows;
    const int values = tile.planes * waves * span;
    for (int i = static_cast<int>(threadIdx.x); i < values; i += kThreads) {
      const int at = i % span;
      const int of_wave = i / span;
      const unsigned plane = static_cast<unsigned>(tile.first_channel + of_wave / waves);
      const int64_t image = tile.first_image + plane / static_cast<unsigned>(t.channels);
      const int64_t channel = plane % static_cast<unsigned>(t.channels);
      const int64_t wave = first_wave + of_wave % waves;
      double turns;
      if (at < tile.columns) {
        const double x = tile.first_column + at - 0.5 * (t.width - 1);
        turns = read(w.frequency, image, channel, wave, 1) * x +
                read(w.phase, image, channel, wave, 0) * 0.15915494309189533577;
      } else {
        const double y = tile.first_row + (at - tile.columns) - 0.5 * (t.height - 1);
        turns = read(w.frequency, image, channel, wave, 0) * y;
      }
      sincos_of_turns(turns, &sine[i], &cosine[i]);
      if (at == 0) {
        amplitude[of_wave] = static_cast<A>(read(w.amplitude, image, channel, wave, 0));
      }
    }
    __syncthreads();
  }

  // Adds all waves of the tables to `N` neighbouring pixels.
  template <int N>
  STURDY_DEVICE void add(const Tile& tile, const Place& place, A (&sum)[N]) const {
#pragma unroll 1  // more waves at a time would take more registers
    for (int k = 0; k < waves; ++k) {
      const int of_wave = place.plane() * waves + k;
      const A* sines = sine + of_wave * span;
      const A* cosines = cosine + of_wave * span;
      const A row_sine = amplitude[of_wave] * sines[tile.columns + place.row()];
      const A row_cosine = amplitude[of_wave] * cosines[tile.columns + place.row()];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sum[i] += row_sine * cosines[place.column() + i];
        sum[i] += row_cosine * sines[place.column() + i];
      }
    }
  }
};

// value / 255 for whole numbers up to 255, to the last bit, by 1 / 255 in two parts: a division is a call.
STURDY_DEVICE float divide_by_255(float value) { return __fmaf_rn(value, 0x1.010102p-8f, value * -0x1.fdfdfep-33f); }
STURDY_DEVICE double divide_by_255(double value) {
  return __fma_rn(value, 0x1.0101010101010p-8, value * 0x1.0101010101010p-64);
}

template <typename A, typename In>
STURDY_DEVICE A pixel(In value) {
  if constexpr (sizeof(In) == 1) {
    return divide_by_255(static_cast<A>(value));
  } else {
    return to_accumulate(value);
  }
}

template <typename A, typename In, int N>
STURDY_DEVICE void load_pixels(const In* from, A (&values)[N]) {
  const Packed<In, N> packed = load_packed<N, Cache::streaming>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = pixel<A>(packed[i]);
  }
}

template <typename Out, typename A, int N>
STURDY_DEVICE void store_pixels(Out* to, const A (&values)[N]) {
  Packed<Out, N> packed;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    packed[i] = from_accumulate<Out>(values[i]);
  }
  store_packed<Cache::streaming>(to, packed);
}

// ---- forward ----

// N neighbours of a row at a time: 1, or as many as 16 bytes of the output hold, where everything is aligned for that.
template <typename In, typename Out, int N>
__global__ void __launch_bounds__(kThreads, sizeof(Out) == 8 ? 1 : 2) wave_add_kernel(WaveAddParams p, Tiling t) {
  using A = Accumulate<Out>;
  STURDY_DYNAMIC_SHARED(A, memory);
  constexpr int steps = kPixelsPerThread / N;
  const Tile tile(t, blockIdx.x);
  Place places[steps];
  A values[steps][N];
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    places[step] = Place(t, tile, (step * kThreads + static_cast<int>(threadIdx.x)) * N);
    if (places[step].there()) {
      load_pixels(address<const In>(p.input, t, tile, places[step]), values[step]);
    }
  }
  Tables<A> tables(memory, t);
  for (int64_t first = 0; first < p.waves.count; first += t.waves) {
    tables.build(p.waves, t, tile, first);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      if (places[step].there()) {
        tables.add(tile, places[step], values[step]);
      }
    }
  }
  const A low = static_cast<A>(p.waves.low);
  const A high = static_cast<A>(p.waves.high);
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    if (places[step].there()) {
      if (p.waves.clip) {
#pragma unroll
        for (int i = 0; i < N; ++i) {  // a NaN stays
          const A raised = values[step][i] < low ? low : values[step][i];
          values[step][i] = raised > high ? high : raised;
        }
      }
      store_pixels(address<Out>(p.out, t, tile, places[step]), values[step]);
    }
  }
}

// ---- backward ----

// Tiles of one plane each. A block takes `tiles_per_block` of them in order: all of a plane where sums over it are
// wanted, so that they are added in one fixed order.
template <typename In, typename S, int N>
__global__ void __launch_bounds__(kThreads, 2)
    wave_add_backward_kernel(WaveAddBackwardParams p, Tiling t, int tiles_per_block) {
  using A = Accumulate<S>;
  STURDY_DYNAMIC_SHARED(A, memory);
  __shared__ A scratch[warp_size];
  constexpr int steps = kPixelsPerThread / N;
  const bool one_table = p.waves.count <= t.waves;
  const A low = static_cast<A>(p.waves.low);
  const A high = static_cast<A>(p.waves.high);
  Tables<A> tables(memory, t);
  for (int turn = 0; turn < tiles_per_block; ++turn) {
    const Tile tile(t, int64_t{blockIdx.x} * tiles_per_block + turn);
    Place places[steps];
    A values[steps][N];
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      places[step] = Place(t, tile, (step * kThreads + static_cast<int>(threadIdx.x)) * N);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        values[step][i] = A(0);
      }
      if (p.waves.clip && places[step].there()) {
        load_pixels(address<const In>(p.input, t, tile, places[step]), values[step]);
      }
    }
    for (int64_t first = 0; p.waves.clip && first < p.waves.count; first += t.waves) {
      tables.build(p.waves, t, tile, first);
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        if (places[step].there()) {
          tables.add(tile, places[step], values[step]);
        }
      }
    }
    // From here on `values` are the gradients that pass the clamp.
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      if (!places[step].there()) {
        continue;
      }
      A gradient[N];
      load_pixels(address<const S>(p.grad_out, t, tile, places[step]), gradient);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const bool passes = !p.waves.clip || (values[step][i] >= low && values[step][i] <= high);
        values[step][i] = passes ? gradient[i] : A(0);
      }
      if (p.grad_input.data != nullptr) {
        store_pixels(address<S>(p.grad_input, t, tile, places[step]), values[step]);
      }
    }
    if (p.grad_amplitude == nullptr) {
      continue;
    }
    A* const totals = static_cast<A*>(p.grad_amplitude) + tile.first_plane * p.waves.count;
    for (int64_t first = 0; first < p.waves.count; first += t.waves) {
      if (!one_table || !p.waves.clip) {
        tables.build(p.waves, t, tile, first);
      }
      for (int k = 0; k < tables.waves; ++k) {
        const A* sines = tables.sine + k * tables.span;
        const A* cosines = tables.cosine + k * tables.span;
        A sum = A(0);
#pragma unroll
        for (int step = 0; step < steps; ++step) {
          if (!places[step].there()) {
            continue;
          }
          A with_sine = A(0);
          A with_cosine = A(0);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            with_sine += values[step][i] * sines[places[step].column() + i];
            with_cosine += values[step][i] * cosines[places[step].column() + i];
          }
          sum += sines[tile.columns + places[step].row()] * with_cosine;
          sum += cosines[tile.columns + places[step].row()] * with_sine;
        }
        sum = block_sum(sum, scratch);
        if (threadIdx.x == 0) {
          totals[first + k] = turn == 0 ? sum : totals[first + k] + sum;
        }
      }
    }
  }
}

// ---- launches ----

// Whether rows of this image can be read or written `n` neighbours at a time.
bool rows_are_packed(const ImageView& image, size_t element_bytes, int n, int64_t width) {
  if (image.data == nullptr) {
    return true;
  }
  const bool aligned = reinterpret_cast<uintptr_t>(image.data) % (n * element_bytes) == 0;
  return aligned && image.stride[3] == 1 && width % n == 0 && image.stride[0] % n == 0 && image.stride[1] % n == 0 &&
         image.stride[2] % n == 0;
}

template <typename In, typename Out>
Status forward(const WaveAddParams& p, void* stream) {
  using A = Accumulate<Out>;
  const bool merged =
      p.waves.channels > 1 && p.waves.channels <= kMostPlanes && p.out.stride[1] == 1 && p.out.stride[3] != 1;
  Tiling t;
  if (!make_tiling(p.waves, sizeof(A), merged, false, &t) || t.tiles() > max_grid_x) {
    return Status::unsupported_size;
  }
  constexpr int wide = packed_width<Out>;
  const bool packed = !merged && rows_are_packed(p.input, sizeof(In), wide, t.width) &&
                      rows_are_packed(p.out, sizeof(Out), wide, t.width);
  return launch(packed ? wave_add_kernel<In, Out, wide> : wave_add_kernel<In, Out, 1>,
                dim3(static_cast<unsigned>(t.tiles())), dim3(kThreads), t.values() * sizeof(A), stream, p, t);
}

template <typename In, typename S>
Status backward(const WaveAddBackwardParams& p, void* stream) {
  using A = Accumulate<S>;
  Tiling t;
  if (!make_tiling(p.waves, sizeof(A), false, true, &t)) {
    return Status::unsupported_size;
  }
  const int64_t per_block = p.grad_amplitude == nullptr ? 1 : int64_t{t.row_tiles} * t.column_tiles;
  const int64_t blocks = t.tiles() / per_block;
  if (blocks > max_grid_x || per_block > kMaxExtent) {
    return Status::unsupported_size;
  }
  constexpr int wide = packed_width<S>;
  const bool packed = rows_are_packed(p.input, sizeof(In), wide, t.width) &&
                      rows_are_packed(p.grad_out, sizeof(S), wide, t.width) &&
                      rows_are_packed(p.grad_input, sizeof(S), wide, t.width);
  return launch(packed ? wave_add_backward_kernel<In, S, wide> : wave_add_backward_kernel<In, S, 1>,
                dim3(static_cast<unsigned>(blocks)), dim3(kThreads), t.values() * sizeof(A), stream, p, t,
                static_cast<int>(per_block));
}

}  // namespace wave_add_tiles

Status wave_add(const WaveAddParams& p, void* stream) {
  using namespace wave_add_tiles;
  switch (p.dtype) {
    case DType::f32:
      return p.input_is_bytes ? forward<uint8_t, float>(p, stream) : forward<float, float>(p, stream);
    case DType::f64:
      return p.input_is_bytes ? forward<uint8_t, double>(p, stream) : forward<double, double>(p, stream);
    case DType::f16:
      return p.input_is_bytes ? forward<uint8_t, __half>(p, stream) : forward<__half, __half>(p, stream);
    case DType::bf16:
      return p.input_is_bytes ? forward<uint8_t, __nv_bfloat16>(p, stream)
                              : forward<__nv_bfloat16, __nv_bfloat16>(p, stream);
  }
  return Status::unsupported_dtype;
}

Status wave_add_backward(const WaveAddBackwardParams& p, void* stream) {
  using namespace wave_add_tiles;
  switch (p.dtype) {
    case DType::f32:
      return p.input_is_bytes ? backward<uint8_t, float>(p, stream) : backward<float, float>(p, stream);
    case DType::f64:
      return p.input_is_bytes ? backward<uint8_t, double>(p, stream) : backward<double, double>(p, stream);
    case DType::f16:
      return p.input_is_bytes ? backward<uint8_t, __half>(p, stream) : backward<__half, __half>(p, stream);
    case DType::bf16:
      return p.input_is_bytes ? backward<uint8_t, __nv_bfloat16>(p, stream)
                              : backward<__nv_bfloat16, __nv_bfloat16>(p, stream);
  }
  return Status::unsupported_dtype;
}

}  // namespace sturdy::cuda
