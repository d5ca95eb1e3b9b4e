// What happens around the register tiles, a row at a time: packing the input, the box map, moving rows between tensors
// and [column][channel] buffers, pooling.
#pragma once

#include <cstdint>

#include "common/scratch.h"
#include "common/simd.h"
#include "pushpull/push_pull_conv2d_cpu_plan.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {

using cpu::PushPullPlan;

STURDY_ALWAYS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
STURDY_ALWAYS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename T>
STURDY_ALWAYS_INLINE int64_t round_up_to_lanes(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <typename T>
STURDY_ALWAYS_INLINE void fill_zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    to[i] = 0;
  }
}

template <typename T>
STURDY_ALWAYS_INLINE void add_to(T* to, Vec<T> v) {
  store(to, load(to) + v);
}

// ---- rows of tensors ----

template <typename S>
STURDY_ALWAYS_INLINE void convert_row(const S* from, Accumulate<S>* to, int64_t count) {
  constexpr int lanes = kLanes<Accumulate<S>>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(to + i, load(from + i));
  }
  if (i < count) {
    store_partial(to + i, load_partial(from + i, count - i), count - i);
  }
}

// to[i] = from[i * step]
template <typename S>
static void gather_row(const S* from, int64_t step, Accumulate<S>* to, int64_t count) {
  if (step == 1) {
    convert_row(from, to, count);
    return;
  }
  constexpr int64_t block = 64;
  S buffer[block];
  for (int64_t i = 0; i < count; i += block) {
    const int64_t n = least(block, count - i);
    const S* at = from + i * step;
    if (step == 2) {
      for (int64_t k = 0; k < n; k++) {
        buffer[k] = at[2 * k];
      }
    } else {
      for (int64_t k = 0; k < n; k++) {
        buffer[k] = at[k * step];
      }
    }
    convert_row(buffer, to + i, n);
  }
}

// A row of a tensor, seen as (channel, column), and the same row as a buffer [column][channel] of `panel` channels a
// column. Buffers have room for whole blocks of columns; what is in them behind the row is never used. The next row is
// prefetched: rows of one channel are short and far apart, and there are more of them than the hardware keeps track of.
template <typename S>
struct TensorRow {
  S* data;
  int64_t channels, channel_stride;
  int64_t width, column_stride;
  int64_t row_stride;
};

template <typename S, typename T = Accumulate<S>>
static void load_row(const TensorRow<const S>& from, T* to, int64_t panel) {
  constexpr int lanes = kLanes<T>;
  for (int64_t c = 0; c < panel; c += lanes) {
    const int64_t channels = most(0, least(lanes, from.channels - c));
    const S* data = from.data + c * from.channel_stride;
    if (from.column_stride == 1) {
      for (int64_t column = 0; column < from.width; column += lanes) {
        const int64_t columns = least(lanes, from.width - column);
        Vec<T> block[lanes];
        if (columns == lanes && channels == lanes) {
          STURDY_UNROLL
          for (int i = 0; i < lanes; i++) {
            block[i] = load(data + i * from.channel_stride + column);
            __builtin_prefetch(data + i * from.channel_stride + column + from.row_stride);
          }
        } else {
          for (int i = 0; i < lanes; i++) {
            block[i] = i < channels ? load_partial(data + i * from.channel_stride + column, columns) : zero<T>();
          }
        }
        transpose(block);
        STURDY_UNROLL
        for (int i = 0; i < lanes; i++) {
          store(to + (column + i) * panel + c, block[i]);
        }
      }
    } else if (from.channel_stride == 1) {
      for (int64_t column = 0; column < from.width; column++) {
        const S* at = data + column * from.column_stride;
        store(to + column * panel + c, channels == lanes ? load(at) : load_partial(at, channels));
      }
    } else {
      for (int64_t column = 0; column < from.width; column++) {
        S buffer[lanes] = {};
        for (int64_t i = 0; i < channels; i++) {
          buffer[i] = data[i * from.channel_stride + column * from.column_stride];
        }
        store(to + column * panel + c, load(buffer));
      }
    }
  }
}

template <typename S, typename T = Accumulate<S>>
static void store_row(const T* from, int64_t panel, const TensorRow<S>& to) {
  constexpr int lanes = kLanes<T>;
  for (int64_t c = 0; c < to.channels; c += lanes) {
    const int64_t channels = least(lanes, to.channels - c);
    S* data = to.data + c * to.channel_stride;
    if (to.column_stride == 1) {
      for (int64_t column = 0; column < to.width; column += lanes) {
        const int64_t columns = least(lanes, to.width - column);
        Vec<T> block[lanes];
        STURDY_UNROLL
        for (int i = 0; i < lanes; i++) {
          block[i] = load(from + (column + i) * panel + c);
        }
        transpose(block);
        if (columns == lanes && channels == lanes) {
          STURDY_UNROLL
          for (int i = 0; i < lanes; i++) {
            store(data + i * to.channel_stride + column, block[i]);
            __builtin_prefetch(data + i * to.channel_stride + column + to.row_stride, 1);
          }
        } else {
          for (int i = 0; i < channels; i++) {
            store_partial(data + i * to.channel_stride + column, block[i], columns);
          }
        }
      }
    } else if (to.channel_stride == 1) {
      for (int64_t column = 0; column < to.width; column++) {
        S* at = data + column * to.column_stride;
        const Vec<T> v = load(from + column * panel + c);
        if (channels == lanes) {
          store(at, v);
        } else {
          store_partial(at, v, channels);
        }
      }
    } else {
      for (int64_t column = 0; column < to.width; column++) {
        S buffer[lanes];
        store(buffer, load(from + column * panel + c));
        for (int64_t i = 0; i < channels; i++) {
          data[i * to.channel_stride + column * to.column_stride] = buffer[i];
        }
      }
    }
  }
}

// Output channels [panel * width, ...) of output row `row` of image n.
template <typename S>
STURDY_ALWAYS_INLINE TensorRow<S> output_row(const PushPullPlan& plan, const View4& view, int64_t n, int64_t panel,
                                             int64_t row) {
  const int64_t group = panel / plan.panels_per_group;
  const int64_t first = panel % plan.panels_per_group * plan.panel;
  const int64_t channel = group * plan.out_group + first;
  S* data = static_cast<S*>(view.data) + n * view.stride[0] + channel * view.stride[1] + row * view.stride[2];
  return {data,          least(plan.panel, plan.out_group - first), view.stride[1], plan.geometry.out_w, view.stride[3],
          view.stride[2]};
}

// ---- the packed input and its box map ----

// The part of one group of one image that output rows [first, last) of the convolution read.
template <typename T>
struct PackedBand {
  int64_t first, last;
  T* x;                              // [input row][channel][phase][column]
  T* channel_sum;                    // [input row][phase][column]; not with channel_range
  T* kernel_sum;                     // one row of [phase][column], and room for the rows of pooling
  T* box;                            // [output row][plane][column]: the convolution with ones
  T* mean_box;                       // pooled; the same as box without pooling
  int64_t box_pitch, box_row_pitch;  // of a plane, of a row of all planes

  STURDY_ALWAYS_INLINE const T* x_row(const PushPullPlan& plan, int64_t row) const {
    return x + (row - first) * plan.geometry.stride_h * plan.in_row_pitch;
  }
  STURDY_ALWAYS_INLINE const T* mean_box_row(int64_t row) const { return mean_box + (row - first) * box_row_pitch; }
};

STURDY_ALWAYS_INLINE int64_t input_rows(const PushPullPlan& plan, int64_t output_rows) {
  const PushPullGeometry& g = plan.geometry;
  return most(0, (output_rows - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1);
}

STURDY_ALWAYS_INLINE bool pools(const PushPullPlan& plan) { return plan.half_h > 0 || plan.half_w > 0; }

template <typename T>
STURDY_ALWAYS_INLINE PackedBand<T> take_packed_band(const PushPullPlan& plan, Arena& arena, int64_t output_rows) {
  const int64_t rows = input_rows(plan, output_rows);
  PackedBand<T> band{};
  band.x = arena.take<T>(rows * plan.in_row_pitch + kLanes<T>);
  band.channel_sum = arena.take<T>(plan.geometry.channel_range ? 0 : rows * plan.channel_pitch);
  band.box_pitch = round_up_to_lanes<T>(plan.geometry.out_w);
  band.kernel_sum = arena.take<T>(most(plan.channel_pitch, band.box_pitch + 2 * plan.half_w) + 2 * kLanes<T>);
  band.box_row_pitch = plan.planes * band.box_pitch;
  band.box = arena.take<T>(output_rows * band.box_row_pitch);
  band.mean_box = pools(plan) ? arena.take<T>(output_rows * band.box_row_pitch) : band.box;
  return band;
}

template <typename S, typename T = Accumulate<S>>
static void pack_input(const PushPullPlan& plan, const View4& input, int64_t n, int64_t group, PackedBand<T>& band) {
  const PushPullGeometry& g = plan.geometry;
  const S* image = static_cast<const S*>(input.data) + n * input.stride[0] + group * plan.in_group * input.stride[1];
  const int64_t rows = input_rows(plan, band.last - band.first);
  for (int64_t row = 0; row < rows; row++) {
    const int64_t y = band.first * g.stride_h + row - g.pad_top;
    T* to_row = band.x + row * plan.in_row_pitch;
    T* sums = band.channel_sum + row * plan.channel_pitch;
    if (y < 0 || y >= g.in_h) {
      fill_zero(to_row, plan.in_row_pitch);
      fill_zero(sums, g.channel_range ? 0 : plan.channel_pitch);
      continue;
    }
    for (int64_t phase = 0; phase < plan.phases; phase++) {
      // Column j of this phase is column j * stride_w + shift of the image.
      const int64_t shift = plan.phase_columns[phase] - g.pad_left;
      const int64_t begin = least(shift >= 0 ? 0 : (-shift + g.stride_w - 1) / g.stride_w, plan.phase_pitch);
      const int64_t inside = g.in_w > shift ? (g.in_w - shift + g.stride_w - 1) / g.stride_w : 0;
      const int64_t end = most(begin, least(inside, plan.phase_pitch));
      const S* from = image + y * input.stride[2] + (begin * g.stride_w + shift) * input.stride[3];
      T* to = to_row + phase * plan.phase_pitch;
      for (int64_t c = 0; c < plan.in_group; c++) {
        fill_zero(to, begin);
        gather_row(from, g.stride_w * input.stride[3], to + begin, end - begin);
        fill_zero(to + end, plan.phase_pitch - end);
        from += input.stride[1];
        to += plan.channel_pitch;
      }
    }
    for (int64_t i = 0; i < plan.channel_pitch && !g.channel_range; i += kLanes<T>) {
      Vec<T> sum = zero<T>();
      for (int64_t c = 0; c < plan.in_group; c++) {
        sum += load(to_row + c * plan.channel_pitch + i);
      }
      store(sums + i, sum);
    }
  }
}

// The box map of output row `row` from the rows that it is the sum of, kernel rows being `step` elements apart.
template <typename T>
STURDY_ALWAYS_INLINE void box_row(const PushPullPlan& plan, const T* rows, int64_t step, T* kernel_sum, T* box) {
  constexpr int lanes = kLanes<T>;
  const PushPullGeometry& g = plan.geometry;
  for (int64_t i = 0; i < plan.channel_pitch; i += lanes) {
    Vec<T> sum = zero<T>();
    for (int64_t k = 0; k < g.kernel_h; k++) {
      sum += load(rows + k * step + i);
    }
    store(kernel_sum + i, sum);
  }
  for (int64_t column = 0; column < g.out_w; column += lanes) {
    Vec<T> sum = zero<T>();
    for (int64_t k = 0; k < g.kernel_w; k++) {
      sum += load(kernel_sum + plan.column_taps[k] + column);
    }
    store(box + column, sum);
  }
}

// One row of one plane of the pooled box map; `line` is room for a row of column sums between zeros.
template <typename T>
STURDY_ALWAYS_INLINE void mean_box_row(const PushPullPlan& plan, const PackedBand<T>& band, int64_t plane, int64_t row,
                                       T* line) {
  constexpr int lanes = kLanes<T>;
  const PushPullGeometry& g = plan.geometry;
  const T* column_weights = static_cast<const T*>(plan.column_weights);
  const Vec<T> row_weight = broadcast(static_cast<const T*>(plan.row_weights)[row]);
  const int64_t top = most(0, row - plan.half_h);
  const int64_t bottom = least(g.out_h - 1, row + plan.half_h);
  for (int64_t column = 0; column < g.out_w; column += lanes) {
    Vec<T> sum = zero<T>();
    for (int64_t r = top; r <= bottom; r++) {
      sum += load(band.box + (r - band.first) * band.box_row_pitch + plane * band.box_pitch + column);
    }
    store(line + plan.half_w + column, sum);
  }
  fill_zero(line + plan.half_w + g.out_w, plan.half_w + lanes);
  T* mean = band.mean_box + (row - band.first) * band.box_row_pitch + plane * band.box_pitch;
  for (int64_t column = 0; column < g.out_w; column += lanes) {
    Vec<T> sum = zero<T>();
    for (int64_t k = 0; k <= 2 * plan.half_w; k++) {
      sum += load(line + column + k);
    }
    store(mean + column, sum * row_weight * load(column_weights + column));
  }
}

// The box maps of rows [first, last) and their pooled copies, divided by the window's cells, of rows [mean_first,
// mean_last).
template <typename T>
static void box_map(const PushPullPlan& plan, PackedBand<T>& band, int64_t mean_first, int64_t mean_last) {
  const PushPullGeometry& g = plan.geometry;
  fill_zero(band.kernel_sum + plan.channel_pitch, 2 * kLanes<T>);  // read, and dropped, behind the last column
  // With a plane per channel, the packed input itself is what is summed over the kernel.
  const T* rows = g.channel_range ? band.x : band.channel_sum;
  const int64_t pitch = g.channel_range ? plan.in_row_pitch : plan.channel_pitch;
  for (int64_t row = band.first; row < band.last; row++) {
    for (int64_t plane = 0; plane < plan.planes; plane++) {
      const T* from = rows + (row - band.first) * g.stride_h * pitch + plane * plan.channel_pitch;
      T* to = band.box + (row - band.first) * band.box_row_pitch + plane * band.box_pitch;
      box_row(plan, from, g.dilation_h * pitch, band.kernel_sum, to);
    }
  }
  if (!pools(plan)) {
    return;
  }
  fill_zero(band.kernel_sum, plan.half_w);
  for (int64_t row = mean_first; row < mean_last; row++) {
    for (int64_t plane = 0; plane < plan.planes; plane++) {
      mean_box_row(plan, band, plane, row, band.kernel_sum);
    }
  }
}

// ---- pooling of [column][channel] rows ----

// The last rows of a map, [column][channel] each.
template <typename T>
struct RowRing {
  T* data;
  int64_t capacity, pitch;

  STURDY_ALWAYS_INLINE T* row(int64_t r) const { return data + r % capacity * pitch; }
};

template <typename T>
STURDY_ALWAYS_INLINE RowRing<T> take_ring(const PushPullPlan& plan, Arena& arena) {
  RowRing<T> ring{};
  ring.capacity = least(2 * plan.half_h + 1, plan.geometry.out_h);
  ring.pitch = round_up_to_lanes<T>(plan.geometry.out_w) * plan.panel;
  ring.data = arena.take<T>(ring.capacity * ring.pitch);
  return ring;
}

// Sums of the rows in the window of `row`, between zeros for half_w columns on either side.
template <typename T>
static void sum_window_rows(const PushPullPlan& plan, const RowRing<T>& ring, int64_t row, T* sums) {
  constexpr int lanes = kLanes<T>;
  const int64_t top = most(0, row - plan.half_h);
  const int64_t bottom = least(plan.geometry.out_h - 1, row + plan.half_h);
  const int64_t count = plan.geometry.out_w * plan.panel;
  T* inside = sums + plan.half_w * plan.panel;
  fill_zero(sums, plan.half_w * plan.panel);
  fill_zero(inside + count, plan.half_w * plan.panel);
  int64_t r = top;
  const T* a = ring.row(r++);
  while (r <= bottom) {  // up to four rows a pass
    const int64_t left = bottom - r + 1;
    const T* b = ring.row(r);
    const T* c = ring.row(r + (left > 1));
    const T* d = ring.row(r + (left > 2) * 2);
    const T* e = ring.row(r + (left > 3) * 3);
    if (left >= 4) {
      for (int64_t i = 0; i < count; i += lanes) {
        store(inside + i, ((load(a + i) + load(b + i)) + (load(c + i) + load(d + i))) + load(e + i));
      }
      r += 4;
    } else if (left >= 2) {
      for (int64_t i = 0; i < count; i += lanes) {
        store(inside + i, load(a + i) + load(b + i) + load(c + i));
      }
      r += 2;
    } else {
      for (int64_t i = 0; i < count; i += lanes) {
        store(inside + i, load(a + i) + load(b + i));
      }
      r += 1;
    }
    a = inside;
  }
  if (a != inside) {
    for (int64_t i = 0; i < count; i += lanes) {
      store(inside + i, load(a + i));
    }
  }
}

// Calls use(column, sum) with the window sum of one vector of channels at each column. half_w is a template argument
// where it is small, else -1.
template <typename T, int fixed_half_w, typename Use>
STURDY_ALWAYS_INLINE void slide_window(const T* sums, int64_t panel, int64_t width, int64_t half_w, const Use& use) {
  if constexpr (fixed_half_w >= 0) {
    constexpr int window = 2 * fixed_half_w + 1;
    Vec<T> held[window];  // the window slides through registers
    STURDY_UNROLL
    for (int k = 0; k + 1 < window; k++) {
      held[k] = load(sums + k * panel);
    }
    for (int64_t column = 0; column < width; column++) {
      held[window - 1] = load(sums + (column + window - 1) * panel);
      Vec<T> sum = held[0];
      STURDY_UNROLL
      for (int k = 1; k < window; k++) {
        sum += held[k];
      }
      use(column, sum);
      STURDY_UNROLL
      for (int k = 0; k + 1 < window; k++) {
        held[k] = held[k + 1];
      }
    }
  } else {
    for (int64_t column = 0; column < width; column++) {
      Vec<T> sum = zero<T>();
      for (int64_t k = 0; k <= 2 * half_w; k++) {
        sum += load(sums + (column + k) * panel);
      }
      use(column, sum);
    }
  }
}

template <typename T, typename Use>
STURDY_ALWAYS_INLINE void for_each_window(const PushPullPlan& plan, const T* sums, const Use& use) {
  const int64_t width = plan.geometry.out_w;
  switch (plan.half_w) {
    case 0:
      return slide_window<T, 0>(sums, plan.panel, width, 0, use);
    case 1:
      return slide_window<T, 1>(sums, plan.panel, width, 1, use);
    case 2:
      return slide_window<T, 2>(sums, plan.panel, width, 2, use);
    default:
      return slide_window<T, -1>(sums, plan.panel, width, plan.half_w, use);
  }
}

template <typename T>
STURDY_ALWAYS_INLINE T* take_window_sums(const PushPullPlan& plan, Arena& arena) {
  return arena.take<T>((plan.geometry.out_w + 2 * plan.half_w) * plan.panel);
}

// Calls use(column, u) with the pull response u = m * A(box) - A(p), before its rectifier, of one vector of channels;
// offset(column) is m * A(box). `sums` is what sum_window_rows made of the row of p; it is not read without pooling.
template <typename T, typename Offset, typename Use>
STURDY_ALWAYS_INLINE void for_each_pull(const PushPullPlan& plan, const T* p, const T* sums, int64_t row,
                                        const Offset& offset, const Use& use) {
  if (!pools(plan)) {
    const int64_t width = plan.geometry.out_w;
    const int64_t panel = plan.panel;
    for (int64_t column = 0; column < width; column++) {
      use(column, offset(column) - load(p + column * panel));
    }
    return;
  }
  const T row_weight = static_cast<const T*>(plan.row_weights)[row];
  const T* column_weights = static_cast<const T*>(plan.column_weights);
  for_each_window(plan, sums, [=](int64_t column, Vec<T> sum) __attribute__((always_inline)) {
    use(column, offset(column) - sum * broadcast(row_weight * column_weights[column]));
  });
}

// The same where m is one number for each channel.
template <typename T, typename Use>
STURDY_ALWAYS_INLINE void for_each_pull(const PushPullPlan& plan, const T* p, const T* sums, int64_t row, Vec<T> range,
                                        const T* mean_box, const Use& use) {
  const auto offset = [=](int64_t column)
                          __attribute__((always_inline)) { return range * broadcast(mean_box[column]); };
  for_each_pull(plan, p, sums, row, offset, use);
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
