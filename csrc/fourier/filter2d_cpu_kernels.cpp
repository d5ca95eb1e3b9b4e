// The CPU kernels of filter2d for one instruction set. Compiled once for each.
//
// Rows are copied, as numbers and with a border of zeros, into a ring that stays in the first-level cache; several rows
// of the result are made of it at a time, so that they share what they load. Channels that lie side by side in memory
// stay so: the neighbour of a pixel is then C elements away.
#include <cstdint>

#include "common/scratch.h"
#include "fourier/prime_cpu_rows.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {
namespace {

constexpr int kRowsAtOnce = kVectorRegisters == 32 ? 4 : 2;
constexpr int64_t kFlushRows = 16;  // of products, before they are added up in double

// A kernel for the elements of a row: one for all of them, or with period `channels`, [tap][channel, repeated].
template <typename T>
struct Taps {
  T* values = nullptr;
  int64_t channels = 1;  // after which they repeat
  int64_t pitch = 1;

  static int64_t count(int64_t channels) { return 9 * (channels > 1 ? channels + kLanes<T> : 1); }

  // The kernels of `channels` channels from `channel` on; `turned` by half a turn, as the gradient needs it.
  void read(const ImageParameter& kernel, int64_t image, int64_t channel, int64_t wanted, bool turned) {
    channels = wanted;
    pitch = channels > 1 ? channels + kLanes<T> : 1;
    for (int64_t tap = 0; tap < 9; tap++) {
      const int64_t from = turned ? 8 - tap : tap;
      for (int64_t c = 0; c < pitch; c++) {
        const int64_t at = image * kernel.stride[0] + (channel + c % channels) * kernel.stride[1] +
                           from / 3 * kernel.stride[2] + from % 3 * kernel.stride[3];
        values[tap * pitch + c] = static_cast<T>(cpu::read_parameter(kernel, at));
      }
    }
  }
};

// One vector of `count` rows of results. rows[a] + at is the left neighbour in row a of those above and below.
template <int count, typename T, typename Tap>
STURDY_ALWAYS_INLINE void add_taps(Vec<T> (&sum)[count], const T* const* rows, int64_t at, int64_t shift,
                                   const Tap& tap) {
  STURDY_UNROLL
  for (int a = 0; a < count + 2; a++) {
    STURDY_UNROLL
    for (int b = 0; b < 3; b++) {
      const Vec<T> value = load(rows[a] + at + b * shift);
      STURDY_UNROLL
      for (int r = 0; r < count; r++) {
        if (a - r >= 0 && a - r < 3) {
          accumulate(sum[r], tap((a - r) * 3 + b), value);
        }
      }
    }
  }
}

// `count` rows of `length` results from count + 2 rows with borders of `shift` elements; done(row, at, vector).
template <int count, typename T, typename Done>
STURDY_ALWAYS_INLINE void filter_rows(const T* const* rows, int64_t length, int64_t shift, const Taps<T>& taps,
                                      const Done& done) {
  if (taps.channels == 1) {
    Vec<T> tap[9];
    STURDY_UNROLL
    for (int i = 0; i < 9; i++) {
      tap[i] = broadcast(taps.values[i]);
    }
    for (int64_t at = 0; at < length; at += kLanes<T>) {
      Vec<T> sum[count] = {};
      add_taps(sum, rows, at, shift, [&](int i) { return tap[i]; });
      STURDY_UNROLL
      for (int r = 0; r < count; r++) {
        done(r, at, sum[r]);
      }
    }
    return;
  }
  const int64_t step = kLanes<T> % taps.channels;
  int64_t channel = 0;
  for (int64_t at = 0; at < length; at += kLanes<T>) {
    Vec<T> sum[count] = {};
    add_taps(sum, rows, at, shift, [&](int i) { return load(taps.values + i * taps.pitch + channel); });
    STURDY_UNROLL
    for (int r = 0; r < count; r++) {
      done(r, at, sum[r]);
    }
    channel += step;
    channel -= channel >= taps.channels ? taps.channels : 0;
  }
}

// Rows of a plane, or of an image with its channels side by side, with borders; row -1 and those behind are zeros.
template <typename T, typename S>
class Source {
 public:
  Source(const ImageView& view, const ImageSizes& sizes, int64_t channels)
      : view_(view), height_(sizes.height), width_(sizes.width), channels_(channels) {
    dense_ = channels == 1 ? view.stride[3] == 1 || width_ == 1
                           : view.stride[1] == 1 && (view.stride[3] == channels || width_ == 1);
  }

  int64_t length() const { return width_ * channels_; }
  int64_t shift() const { return channels_; }
  int64_t pitch() const { return padded(length() + 2 * channels_ + kLanes<T>, kLanes<T>); }

  void clear_borders(T* row) const { std::fill(row, row + pitch(), T(0)); }

  void fetch(int64_t image, int64_t channel, int64_t row, T* to) const {
    if (row < 0 || row >= height_) {
      std::fill(to + channels_, to + channels_ + length(), T(0));
      return;
    }
    const S* from = static_cast<const S*>(view_.data) + cpu::image_offset(view_, image, channel, row);
    if (dense_) {
      read_row(from, 1, to + channels_, length());
      return;
    }
    for (int64_t j = 0; j < width_; j++) {
      for (int64_t c = 0; c < channels_; c++) {
        to[channels_ + j * channels_ + c] = pixel<T>(from[j * view_.stride[3] + c * view_.stride[1]]);
      }
    }
  }

 private:
  const ImageView& view_;
  int64_t height_, width_, channels_;
  bool dense_;
};

template <typename Out, typename T>
STURDY_ALWAYS_INLINE void put(Out* row, int64_t at, int64_t length, Vec<T> value) {
  if (at + kLanes<T> <= length) {
    store(row + at, value);
  } else {
    store_partial(row + at, value, length - at);
  }
}

template <typename In, typename Out>
void forward(const Filter2dParams& p, const cpu::ImageCut& cut, int64_t begin, int64_t end) {
  using T = Accumulate<Out>;
  const Source<T, In> source(p.image.input, p.image.sizes, cut.channels);
  const int64_t of_taps = p.kernel.stride[1] == 0 ? 1 : cut.channels;
  T* ring[kRowsAtOnce + 2];
  Taps<T> taps;
  const auto place = [&](Arena arena) {
    for (T*& row : ring) {
      row = arena.take<T>(source.pitch());
    }
    taps.values = arena.take<T>(Taps<T>::count(of_taps));
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  for (T* row : ring) {
    source.clear_borders(row);
  }
  const Bounds<T> bounds = bounds_of<T>(p.clip);
  const int64_t length = source.length();
  for (int64_t index = begin; index < end; index++) {
    const cpu::ImageUnit unit(cut, p.image.sizes, index);
    taps.read(p.kernel, unit.image, unit.channel, of_taps, false);
    source.fetch(unit.image, unit.channel, unit.first_row - 1, ring[0]);
    source.fetch(unit.image, unit.channel, unit.first_row, ring[1]);
    for (int64_t row = 0; row < unit.rows; row += kRowsAtOnce) {
      const int64_t rows = std::min<int64_t>(kRowsAtOnce, unit.rows - row);
      for (int64_t r = 0; r < rows; r++) {
        source.fetch(unit.image, unit.channel, unit.first_row + row + r + 1, ring[r + 2]);
      }
      const auto out_row = [&](int64_t r) {
        return static_cast<Out*>(p.image.out.data) +
               cpu::image_offset(p.image.out, unit.image, unit.channel, unit.first_row + row + r);
      };
      if (rows == kRowsAtOnce) {
        filter_rows<kRowsAtOnce>(ring, length, source.shift(), taps, [&](int r, int64_t at, Vec<T> sum) {
          put(out_row(r), at, length, clamp(sum, bounds));
        });
      } else {
        for (int64_t r = 0; r < rows; r++) {
          filter_rows<1>(ring + r, length, source.shift(), taps,
                         [&](int /*row*/, int64_t at, Vec<T> sum) { put(out_row(r), at, length, clamp(sum, bounds)); });
        }
      }
      std::swap(ring[0], ring[rows]);
      std::swap(ring[1], ring[rows + 1]);
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- backward ----

// The plane's gradient behind the clamp is kept, with borders: the gradient of x is its correlation with the kernel
// turned by half a turn, that of the kernel its products with x shifted by a pixel each way.
template <typename In, typename S>
void backward(const Filter2dBackwardParams& p, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const ImageSizes& sizes = p.image.sizes;
  const Source<T, In> source(p.image.input, sizes, 1);
  const int64_t width = sizes.width;
  const int64_t pitch = source.pitch();
  T* ring[3];
  T* values = nullptr;
  T* masked = nullptr;
  Taps<T> taps;
  const auto place = [&](Arena arena) {
    for (T*& row : ring) {
      row = arena.take<T>(pitch);
    }
    values = arena.take<T>(pitch);
    masked = arena.take<T>((sizes.height + 2) * pitch);
    taps.values = arena.take<T>(Taps<T>::count(1));
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  std::fill(masked, masked + (sizes.height + 2) * pitch, T(0));
  for (T* row : ring) {
    source.clear_borders(row);
  }
  const Bounds<T> bounds = bounds_of<T>(p.clip);
  for (int64_t plane = begin; plane < end; plane++) {
    const int64_t image = plane / sizes.channels;
    const int64_t channel = plane % sizes.channels;
    taps.read(p.kernel, image, channel, 1, false);
    source.fetch(image, channel, -1, ring[0]);
    source.fetch(image, channel, 0, ring[1]);
    double totals[9] = {};
    Vec<T> products[9] = {};
    for (int64_t row = 0; row < sizes.height; row++) {
      source.fetch(image, channel, row + 1, ring[2]);
      T* grad = masked + (row + 1) * pitch + 1;
      read_row(static_cast<const S*>(p.image.grad_out.data) + cpu::image_offset(p.image.grad_out, image, channel, row),
               p.image.grad_out.stride[3], grad, width);
      if (p.clip.on) {
        filter_rows<1>(ring, width, 1, taps, [&](int /*row*/, int64_t at, Vec<T> sum) { store(values + at, sum); });
        mask_row(values, grad, grad, width, bounds);
      }
      if (p.grad_kernel != nullptr) {
        for (int64_t at = 0; at < width; at += kLanes<T>) {
          const Vec<T> g = at + kLanes<T> <= width ? load(grad + at) : load_partial(grad + at, width - at);
          STURDY_UNROLL
          for (int tap = 0; tap < 9; tap++) {
            accumulate(products[tap], g, load(ring[tap / 3] + at + tap % 3));
          }
        }
        if ((row + 1) % kFlushRows == 0 || row + 1 == sizes.height) {
          for (int tap = 0; tap < 9; tap++) {
            for (int lane = 0; lane < kLanes<T>; lane++) {
              totals[tap] += static_cast<double>(products[tap].v[lane]);
            }
            products[tap] = zero<T>();
          }
        }
      }
      std::swap(ring[0], ring[1]);
      std::swap(ring[1], ring[2]);
    }
    if (p.grad_kernel != nullptr) {
      for (int tap = 0; tap < 9; tap++) {
        static_cast<T*>(p.grad_kernel)[plane * 9 + tap] = static_cast<T>(totals[tap]);
      }
    }
    if (p.image.grad_input.data == nullptr) {
      continue;
    }
    taps.read(p.kernel, image, channel, 1, true);
    for (int64_t row = 0; row < sizes.height; row++) {
      const T* rows[3] = {masked + row * pitch, masked + (row + 1) * pitch, masked + (row + 2) * pitch};
      filter_rows<1>(rows, width, 1, taps, [&](int /*row*/, int64_t at, Vec<T> sum) { store(values + at, sum); });
      write_row(values,
                static_cast<S*>(p.image.grad_input.data) + cpu::image_offset(p.image.grad_input, image, channel, row),
                p.image.grad_input.stride[3], width);
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
void fill(bool input_is_bytes, cpu::PrimeKernels& kernels) {
  kernels.filter2d = input_is_bytes ? forward<uint8_t, S> : forward<S, S>;
  kernels.filter2d_backward = input_is_bytes ? backward<uint8_t, S> : backward<S, S>;
}

}  // namespace

void fill_filter2d(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels) {
  switch (dtype) {
    case DType::f64:
      return fill<double>(input_is_bytes, kernels);
    case DType::f16:
      return fill<Half>(input_is_bytes, kernels);
    case DType::bf16:
      return fill<BFloat16>(input_is_bytes, kernels);
    default:
      return fill<float>(input_is_bytes, kernels);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
