// Forward in Winograd's form: products of a band, back to rows of p, pooling and the epilogue.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/gemm_tile.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_rows.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_transform.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

// Longer sums are added up in blocks of about this many terms, see kTapBlock.
constexpr int64_t kWinogradDepth = 160;

constexpr int kWinogradChunk = kGemmVectors * kLanes<float>;  // tiles

// ---- products ----

// From the products of a chunk, [pattern][filter][tile], to rows of p of one filter.
__attribute__((noinline)) static void untransform(const float* products, int64_t pattern_step, int64_t tiles,
                                                  float* even, float* odd) {
  constexpr int lanes = kLanes<float>;
  for (int64_t i = 0; i < tiles; i += lanes) {
    Vec<float> column[2][4];  // by output row and column pattern
    STURDY_UNROLL
    for (int k = 0; k < 4; k++) {
      const float* at = products + k * pattern_step + i;
      const Vec<float> p1 = load(at + 4 * pattern_step);
      const Vec<float> p2 = load(at + 8 * pattern_step);
      column[0][k] = load(at) + (p1 + p2);
      column[1][k] = (p1 - p2) - load(at + 12 * pattern_step);
    }
    STURDY_UNROLL
    for (int k = 0; k < 2; k++) {
      const Vec<float> left = column[k][0] + (column[k][1] + column[k][2]);
      const Vec<float> right = (column[k][1] - column[k][2]) - column[k][3];
      float* to = (k == 0 ? even : odd) + 2 * i;
      store(to, interleave<float, 0>(left, right));
      store(to + lanes, interleave<float, 1>(left, right));
    }
  }
}

// sum -= a * b
STURDY_ALWAYS_INLINE void subtract_product(Vec<float>& sum, Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  asm("vfnmadd231ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
#else
  sum.v -= a.v * b.v;
#endif
}

// Filters whose 2 x 2 outputs and partial sums, seven vectors each, fit 32 registers.
constexpr int kShallowRows = 4;

// sums[filter] += (or -=) the products of one pattern.
template <bool subtract>
STURDY_ALWAYS_INLINE void add_pattern(Vec<float> (&sums)[kShallowRows], const float* filters, const float* transformed,
                                      int64_t pitch, int64_t depth) {
  for (int64_t k = 0; k < depth; k++) {
    asm volatile("" ::: "memory");
    const Vec<float> value = load(transformed + k * pitch);
    STURDY_UNROLL
    for (int f = 0; f < kShallowRows; f++) {
      if (subtract) {
        subtract_product(sums[f], broadcast(filters[k * kGemmRows + f]), value);
      } else {
        accumulate(sums[f], broadcast(filters[k * kGemmRows + f]), value);
      }
    }
  }
}

// The four patterns of one row: left (+)= P0 + P1 + P2, right (+)= P1 - P2 - P3, or all of it subtracted.
template <bool subtract>
STURDY_ALWAYS_INLINE void add_pattern_row(Vec<float> (&left)[kShallowRows], Vec<float> (&right)[kShallowRows],
                                          const int64_t* begin, const float* filters, const float* transformed,
                                          int64_t pitch) {
  const auto add = [&](int column, auto& sums, auto negative) __attribute__((always_inline)) {
    add_pattern<decltype(negative)::value>(sums, filters + begin[column] * kGemmRows,
                                           transformed + begin[column] * pitch, pitch,
                                           begin[column + 1] - begin[column]);
  };
  constexpr std::bool_constant<subtract> same{};
  constexpr std::bool_constant<!subtract> opposite{};
  add(0, left, same);
  STURDY_UNROLL
  for (int column = 1; column < 3; column++) {
    Vec<float> sums[kShallowRows];
    STURDY_UNROLL
    for (int f = 0; f < kShallowRows; f++) {
      sums[f] = zero<float>();
    }
    add(column, sums, same);
    STURDY_UNROLL
    for (int f = 0; f < kShallowRows; f++) {
      left[f] += sums[f];
      right[f] = column == 1 ? right[f] + sums[f] : right[f] - sums[f];
    }
  }
  add(3, right, opposite);
}

// p of kShallowRows filters on one vector of tiles where the patterns are so shallow that storing their products would
// take longer than computing them: nothing leaves the registers but p, to use(filter, output row, the row's two
// vectors).
template <typename Use>
__attribute__((noinline)) static void shallow_tile(const int64_t* begin, const float* filters, const float* transformed,
                                                   int64_t pitch, const Use& use) {
  constexpr int n = kShallowRows;
  Vec<float> top[2][n];
  Vec<float> bottom[2][n];
  STURDY_UNROLL
  for (int f = 0; f < n; f++) {
    top[0][f] = top[1][f] = zero<float>();
  }
  add_pattern_row<false>(top[0], top[1], begin, filters, transformed, pitch);
  STURDY_UNROLL
  for (int row = 1; row < 3; row++) {
    Vec<float> sums[2][n];
    STURDY_UNROLL
    for (int f = 0; f < n; f++) {
      sums[0][f] = sums[1][f] = zero<float>();
    }
    add_pattern_row<false>(sums[0], sums[1], begin + 4 * row, filters, transformed, pitch);
    STURDY_UNROLL
    for (int f = 0; f < n; f++) {
      STURDY_UNROLL
      for (int k = 0; k < 2; k++) {
        top[k][f] += sums[k][f];
        bottom[k][f] = row == 1 ? sums[k][f] : bottom[k][f] - sums[k][f];
      }
    }
  }
  add_pattern_row<true>(bottom[0], bottom[1], begin + 12, filters, transformed, pitch);
  STURDY_UNROLL
  for (int f = 0; f < n; f++) {
    use(f, 0, interleave<float, 0>(top[0][f], top[1][f]), interleave<float, 1>(top[0][f], top[1][f]));
    use(f, 1, interleave<float, 0>(bottom[0][f], bottom[1][f]), interleave<float, 1>(bottom[0][f], bottom[1][f]));
  }
}

// Where the finished rows of a block of filters will be written. Claiming their cache lines while the products are
// computed takes the waiting for memory out of the epilogue. A few are claimed at a time, so that the products' own
// loads do not have to queue.
struct OutputLines {
  const char* data;
  int64_t filters, filter_bytes;  // rows of a filter are contiguous
  int64_t bytes;                  // to be written of each filter
  int64_t step;                   // bytes that are claimed at a time

  STURDY_ALWAYS_INLINE void cut(int64_t parts) { step = (bytes + 64 * parts - 1) / (64 * parts) * 64; }

  // The lines of one part of one filter.
  STURDY_ALWAYS_INLINE void claim(int64_t filter, int64_t part) const {
    if (filter < filters) {
      const int64_t end = least(bytes, (part + 1) * step);
      for (int64_t i = part * step; i < end; i += 64) {
        __builtin_prefetch(data + filter * filter_bytes + i, 1);
      }
    }
  }
};

constexpr int kClaimsPerChunk = cpu::kWinogradPatterns / kGemmRows;  // of one filter

template <int vectors>
STURDY_ALWAYS_INLINE void multiply_chunk(const WinogradPlan& plan, const float* filters, const float* transformed,
                                         const OutputLines& lines, int64_t chunk, float* products) {
  constexpr int width = vectors * kLanes<float>;
  for (int pattern = 0; pattern < cpu::kWinogradPatterns; pattern++) {
    lines.claim(pattern % kGemmRows, chunk * kClaimsPerChunk + pattern / kGemmRows);
    const int64_t begin = plan.plane_begin[pattern];
    const int64_t depth = plan.plane_begin[pattern + 1] - begin;
    const int64_t blocks = (depth + kWinogradDepth - 1) / kWinogradDepth;
    float* out = products + pattern * kGemmRows * width;
    int64_t at = 0;
    for (int64_t i = 0; i < blocks || i == 0; i++) {  // no planes: zeros
      const int64_t next = blocks > 0 ? depth * (i + 1) / blocks : 0;
      gemm_tile<float, kGemmRows, vectors>(filters + (begin + at) * kGemmRows,
                                           transformed + (begin + at) * plan.plane_pitch, plan.plane_pitch, next - at,
                                           out, width, i > 0);
      at = next;
    }
  }
}

constexpr int64_t kShallowDepth = 8;  // average terms of a pattern

STURDY_ALWAYS_INLINE bool is_shallow(const WinogradPlan& plan) {
  return kVectorRegisters >= 32 && plan.planes <= kShallowDepth * cpu::kWinogradPatterns;
}

// p of a block of filters on a band, each filter's even rows, then its odd rows, half_pitch elements each.
__attribute__((noinline)) static void convolve_band(const WinogradPlan& plan, const WinogradBand& band, int64_t block,
                                                    float* products, float* push, int64_t half_pitch,
                                                    OutputLines lines) {
  constexpr int lanes = kLanes<float>;
  const float* filters = plan.filters + block * plan.planes * kGemmRows;
  const int64_t vectors = ((band.last - band.first) * plan.tiles_w + lanes - 1) / lanes;
  if (is_shallow(plan)) {
    lines.cut(vectors);
    for (int64_t vector = 0; vector < vectors; vector++) {
      for (int64_t i = 0; i < kGemmRows; i += kShallowRows) {
        for (int64_t k = i; k < i + kShallowRows; k++) {
          lines.claim(k, vector);
        }
        float* const even = push + 2 * i * half_pitch + 2 * vector * lanes;
        shallow_tile(plan.plane_begin, filters + i, band.transformed + vector * lanes, plan.plane_pitch,
                     [=](int f, int row, Vec<float> left, Vec<float> right) __attribute__((always_inline)) {
                       float* to = even + (2 * f + row) * half_pitch;
                       store(to, left);
                       store(to + lanes, right);
                     });
      }
    }
    return;
  }
  const int64_t chunks = (vectors + kGemmVectors - 1) / kGemmVectors;
  lines.cut(chunks * kClaimsPerChunk);
  for (int64_t chunk = 0; chunk < chunks; chunk++) {  // as even as possible
    const int64_t first = vectors * chunk / chunks;
    const int64_t count = vectors * (chunk + 1) / chunks - first;
    const float* transformed = band.transformed + first * lanes;
    switch (count) {
      case 1:
        multiply_chunk<1>(plan, filters, transformed, lines, chunk, products);
        break;
      case 2:
        multiply_chunk<2>(plan, filters, transformed, lines, chunk, products);
        break;
      default:
        multiply_chunk<3>(plan, filters, transformed, lines, chunk, products);
    }
    const int64_t width = count * lanes;
    for (int64_t i = 0; i < kGemmRows; i++) {
      float* even = push + 2 * i * half_pitch + 2 * first * lanes;
      untransform(products + i * width, kGemmRows * width, width, even, even + half_pitch);
    }
  }
}

// ---- a task ----

// What the epilogue of one filter needs beside its rows.
struct FilterValues {
  Vec<float> range, inhibition, bias;
};

STURDY_ALWAYS_INLINE Vec<float> push_pull(const FilterValues& values, Vec<float> p, Vec<float> mean,
                                          Vec<float> mean_box) {
  const Vec<float> u = values.range * mean_box - mean;
  return relu(p) - values.inhibition * relu(u) + values.bias;
}

template <typename S>
struct RowsPair {
  S *even, *odd;

  STURDY_ALWAYS_INLINE S* of(int row) const { return row == 0 ? even : odd; }
};

// A vector to the columns [i, ...) of a row.
template <typename S>
STURDY_ALWAYS_INLINE void store_columns(S* to, int64_t i, int64_t width, Vec<float> value) {
  if (i + kLanes<float> <= width) {
    store(to + i, value);
  } else {
    store_partial(to + i, value, width - i);
  }
}

// out = relu(p) - inhibition * relu(range * mean box - mean p) + bias for rows of tiles [first, last) of one filter.
// mean_box(y) is a row.
template <typename S, typename MeanBox>
__attribute__((noinline)) static void finish_rows(const WinogradPlan& plan, const MapRows& rows, int64_t first,
                                                  int64_t last, const FilterValues& values, const MeanBox& mean_box,
                                                  float* const lines[2], S* out, int64_t out_step, S* push) {
  constexpr int lanes = kLanes<float>;
  const int64_t width = plan.geometry.out_w;
  const FilterValues held = values;
  for (int64_t tile = first; tile < last; tile++) {
    const int64_t count = least(2, plan.geometry.out_h - 2 * tile);
    for (int64_t odd = 0; odd < count && push != nullptr; odd++) {
      const float* p = rows.row(2 * tile + odd);
      for (int64_t i = 0; i < width; i += lanes) {
        store_columns(push + (2 * tile + odd) * out_step, i, width, load(p + i));
      }
    }
    if (pools(plan)) {
      const RowsPair<const float> p = {rows.row(2 * tile), rows.row(2 * tile + 1)};
      const RowsPair<const float> box = {mean_box(2 * tile), mean_box(2 * tile + count - 1)};
      const RowsPair<S> to = {out + 2 * tile * out_step, out + (2 * tile + 1) * out_step};
      for_each_mean(plan, rows, tile, lines, [=](int odd, int64_t i, Vec<float> mean) __attribute__((always_inline)) {
        store_columns(to.of(odd), i, width, push_pull(held, load(p.of(odd) + i), mean, load(box.of(odd) + i)));
      });
      continue;
    }
    for (int64_t y = 2 * tile; y < 2 * tile + count; y++) {
      const float* p = rows.row(y);
      const float* box = mean_box(y);
      S* to = out + y * out_step;
      for (int64_t i = 0; i < width; i += lanes) {
        const Vec<float> value = load(p + i);
        store_columns(to, i, width, push_pull(held, value, value, load(box + i)));
      }
    }
  }
}

// Shallow tiles whose vectors are whole parts of a row, and no pooling: the epilogue follows in registers as well.
STURDY_ALWAYS_INLINE bool finishes_in_tiles(const WinogradPlan& plan) {
  return is_shallow(plan) && !pools(plan) && plan.geometry.out_w % (2 * kLanes<float>) == 0;
}

// The output, and p where it is wanted, of one block of filters on a band. `box` is that of the band, `out` and `push`
// that of its first row and filter.
template <typename S>
__attribute__((noinline)) static void finish_in_tiles(const WinogradPlan& plan, const WinogradBand& band, int64_t block,
                                                      const float* const box[2], S* out, S* push, const View4& view,
                                                      OutputLines lines) {
  constexpr int lanes = kLanes<float>;
  const int64_t row_vectors = plan.tiles_w / lanes;
  const int64_t vectors = (band.last - band.first) * row_vectors;
  const int64_t filter_step = view.stride[1];
  const int64_t row_step = view.stride[2];
  lines.cut(vectors);
  for (int64_t vector = 0; vector < vectors; vector++) {
    const int64_t tile_row = vector / row_vectors;
    const int64_t place = 2 * tile_row * row_step + (vector - tile_row * row_vectors) * 2 * lanes;
    const int64_t count = least(2, plan.geometry.out_h - 2 * (band.first + tile_row));
    const float* const even_box = box[0] + 2 * vector * lanes;
    const float* const odd_box = box[1] + 2 * vector * lanes;
    for (int64_t i = 0; i < lines.filters; i += kShallowRows) {
      for (int64_t k = i; k < i + kShallowRows; k++) {
        lines.claim(k, vector);
      }
      const int64_t at = block * kGemmRows + i;
      const int64_t filters = lines.filters - i;
      const float* const range = plan.range + at;
      const float* const inhibition = plan.inhibition + at;
      const float* const bias = plan.bias + at;
      S* const to = out + i * filter_step + place;
      S* const push_to = push == nullptr ? nullptr : push + i * filter_step + place;
      shallow_tile(plan.plane_begin, plan.filters + block * plan.planes * kGemmRows + i,
                   band.transformed + vector * lanes, plan.plane_pitch,
                   [=](int f, int row, Vec<float> left, Vec<float> right) __attribute__((always_inline)) {
                     if (f >= filters || row >= count) {
                       return;
                     }
                     const int64_t step = f * filter_step + row * row_step;
                     const float* const b = row == 0 ? even_box : odd_box;
                     const FilterValues values = {broadcast(range[f]), broadcast(inhibition[f]), broadcast(bias[f])};
                     store(to + step, push_pull(values, left, left, load(b)));
                     store(to + step + lanes, push_pull(values, right, right, load(b + lanes)));
                     if (push_to != nullptr) {
                       store(push_to + step, left);
                       store(push_to + step + lanes, right);
                     }
                   });
    }
  }
}

// Memory of a task.
struct WinogradTask {
  WinogradBand band;
  float* products;    // [pattern][filter][tile] of a chunk
  float* push;        // [filter of a block][even or odd rows][tile row][column]
  float* box;         // likewise
  float* mean_box;    // [row][column]: pooled, of the rows that are finished with the band
  float* kernel_sum;  // a row of the input's sum
  float* zeros;       // a row
  float* lines[2];    // rows of window sums, between zeros
  float* history;     // rows of p of all filters of the task that the next band needs
  float* box_history;
  int64_t half_pitch, row_pitch, history_rows, history_size;
};

STURDY_ALWAYS_INLINE WinogradTask take_winograd_task(const WinogradPlan& plan, Arena& arena) {
  constexpr int lanes = kLanes<float>;
  WinogradTask task{};
  task.band = take_winograd_band(plan, arena);
  task.products = arena.take<float>(cpu::kWinogradPatterns * kGemmRows * kWinogradChunk);
  const int64_t tiles = round_up_to_lanes<float>(plan.band_tile_rows * plan.tiles_w);
  task.half_pitch = ((2 * tiles + lanes) / 16 | 1) * 16 + 16;
  task.push = arena.take<float>(2 * kGemmRows * task.half_pitch);
  task.box = arena.take<float>(2 * task.half_pitch + 2 * lanes);
  task.row_pitch = round_up_to_lanes<float>(2 * plan.tiles_w);
  task.mean_box = arena.take<float>(pools(plan) ? 2 * (plan.band_tile_rows + plan.lag) * task.row_pitch : 0);
  task.kernel_sum = arena.take<float>(plan.row_pitch + lanes);
  task.zeros = arena.take<float>(task.row_pitch);
  for (float*& line : task.lines) {
    line = arena.take<float>(task.row_pitch + 2 * plan.half_w + 2 * lanes);
  }
  task.history_rows = 2 * plan.lag;
  task.history_size = 2 * task.history_rows * task.row_pitch;
  task.history = arena.take<float>(plan.blocks_per_group * kGemmRows * task.history_size);
  task.box_history = arena.take<float>(task.history_size);
  return task;
}

// The blocks [first_block, last_block), all of one group, of the rows of tiles [begin, end) of image n.
template <typename S>
static void forward_group(const WinogradPlan& plan, const PushPullForwardParams& params, WinogradTask& task, int64_t n,
                          int64_t begin, int64_t end, int64_t first_block, int64_t last_block) {
  const int64_t group = first_block / plan.blocks_per_group;
  const int64_t start = most(0, begin - plan.lag);  // pooling reads beyond the rows of the task
  const int64_t stop = least(plan.tiles_h, end + plan.lag);
  const int64_t bands = (stop - start + plan.band_tile_rows - 1) / plan.band_tile_rows;
  MapRows rows{};
  rows.zeros = task.zeros;
  rows.pitch = 2 * plan.tiles_w;
  rows.history_rows = task.history_rows;
  rows.history_pitch = task.row_pitch;
  rows.height = plan.geometry.out_h;

  int64_t done = begin;
  for (int64_t i = 0; i < bands; i++) {
    WinogradBand& band = task.band;
    band.first = start + (stop - start) * i / bands;
    band.last = start + (stop - start) * (i + 1) / bands;
    const int64_t ready = band.last == plan.tiles_h ? end : most(done, least(end, band.last - plan.lag));
    const bool keep = plan.lag > 0 && band.last < stop;
    transform_input<S>(plan, params.input, n, group, band);

    float* const box[2] = {task.box, task.box + task.half_pitch};
    box_rows(plan, band, box, task.kernel_sum);
    MapRows box_map = rows;
    box_map.band[0] = box[0];
    box_map.band[1] = box[1];
    box_map.history = task.box_history;
    box_map.first = band.first;
    if (pools(plan)) {
      for (int64_t tile = done; tile < ready; tile++) {
        for_each_mean(plan, box_map, tile, task.lines,
                      [&](int odd, int64_t i, Vec<float> mean) __attribute__((always_inline)) {
                        store(task.mean_box + (2 * (tile - done) + odd) * task.row_pitch + i, mean);
                      });
      }
    }
    if (keep) {
      keep_rows(plan, box_map, band.last, task.box_history);
    }
    const auto mean_box = [&](int64_t y) -> const float* {
      return pools(plan) ? task.mean_box + (y - 2 * done) * task.row_pitch : box_map.row(y);
    };

    for (int64_t block = first_block; block < last_block; block++) {
      const int64_t in_group = block % plan.blocks_per_group * kGemmRows;
      const int64_t filters = least(kGemmRows, plan.out_group - in_group);
      const int64_t size = sizeof(S);
      const int64_t first_row = 2 * done;
      const int64_t last_row = least(rows.height, 2 * ready);
      const auto place = [&](const View4& view) {
        return view.data == nullptr
                   ? nullptr
                   : static_cast<S*>(view.data) + n * view.stride[0] +
                         (group * plan.out_group + in_group) * view.stride[1] + first_row * view.stride[2];
      };
      S* const out = place(params.out);
      const OutputLines lines = {reinterpret_cast<const char*>(out), filters, params.out.stride[1] * size,
                                 (last_row - first_row) * params.out.stride[2] * size, 0};
      if (finishes_in_tiles(plan)) {
        finish_in_tiles<S>(plan, band, block, box, out, place(params.push), params.out, lines);
        continue;
      }
      convolve_band(plan, band, block, task.products, task.push, task.half_pitch, lines);
      for (int64_t k = 0; k < filters; k++) {
        const int64_t at = block * kGemmRows + k;
        const int64_t channel = group * plan.out_group + in_group + k;
        const auto plane = [&](const View4& view) {
          return static_cast<S*>(view.data) + n * view.stride[0] + channel * view.stride[1];
        };
        float* history = task.history + ((block - first_block) * kGemmRows + k) * task.history_size;
        rows.band[0] = task.push + 2 * k * task.half_pitch;
        rows.band[1] = rows.band[0] + task.half_pitch;
        rows.history = history;
        rows.first = band.first;
        const FilterValues values = {broadcast(plan.range[at]), broadcast(plan.inhibition[at]),
                                     broadcast(plan.bias[at])};
        finish_rows<S>(plan, rows, done, ready, values, mean_box, task.lines, plane(params.out), params.out.stride[2],
                       params.push.data != nullptr ? plane(params.push) : nullptr);
        if (keep) {
          keep_rows(plan, rows, band.last, history);
        }
      }
    }
    done = ready;
  }
}

template <typename S>
static void winograd_forward(const WinogradPlan& plan, const PushPullForwardParams& params, int64_t begin,
                             int64_t end) {
  Arena sizes(nullptr);
  take_winograd_task(plan, sizes);
  Arena arena(host_scratch(ScratchSlot::task, sizes.used()));
  WinogradTask task = take_winograd_task(plan, arena);
  fill_zero(task.zeros, task.row_pitch);
  for (int64_t i = begin; i < end; i++) {
    const int64_t chunk = i % plan.block_chunks;
    const int64_t item = i / plan.block_chunks;
    const int64_t n = item / plan.items_per_image;
    const int64_t first = item % plan.items_per_image * plan.item_tile_rows;
    const int64_t last = least(plan.tiles_h, first + plan.item_tile_rows);
    const int64_t last_block = plan.blocks * (chunk + 1) / plan.block_chunks;
    for (int64_t block = plan.blocks * chunk / plan.block_chunks; block < last_block;) {
      const int64_t next = least(last_block, (block / plan.blocks_per_group + 1) * plan.blocks_per_group);
      forward_group<S>(plan, params, task, n, first, last, block, next);
      block = next;
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
