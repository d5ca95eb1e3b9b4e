// The CPU kernels of sine_warp for one instruction set. Compiled once for each.
//
// The field of an image is S_rows^T C S_columns, two small products in the register tile of matrix products: C by the
// sines of the rows for the whole unit, what comes out by the sines of the columns for a few rows at a time, which are
// then sampled for all channels while they are in the cache.
#include <cstdint>
#include <type_traits>

#include "common/gemm_tile.h"
#include "common/scratch.h"
#include "fourier/prime_cpu_rows.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {
namespace {

template <typename T>
using Index = typename LaneIndex<T>::Native;

// out (kGemmRows, columns) = a^T b for a [k][kGemmRows] and b [k][b_step]; columns is a multiple of the vector.
template <typename T>
void multiply(const T* a, const T* b, int64_t b_step, int64_t depth, T* out, int64_t out_step, int64_t columns) {
  int64_t at = 0;
  for (; at + kGemmVectors * kLanes<T> <= columns; at += kGemmVectors * kLanes<T>) {
    gemm_tile<T, kGemmRows, kGemmVectors>(a, b + at, b_step, depth, out + at, out_step, false);
  }
  for (; at < columns; at += kLanes<T>) {
    gemm_tile<T, kGemmRows, 1>(a, b + at, b_step, depth, out + at, out_step, false);
  }
}

// Which of the different sines of an axis that of a frequency is, and with which sign; 0 for one that vanishes, whose
// coefficient still counts where it is a NaN.
struct Folded {
  int64_t index;
  int sign;

  Folded(int64_t frequency, int64_t length) {
    const int64_t q = frequency % (2 * (length - 1));
    sign = q == 0 || q == length - 1 ? 0 : q < length - 1 ? 1 : -1;
    index = sign == 0 ? 0 : sign > 0 ? q - 1 : 2 * (length - 1) - q - 1;
  }
};

// The fields of one image for a band of rows.
template <typename T>
class Fields {
 public:
  Fields(const SineWarpParams& p, const cpu::WarpTables& tables, int64_t band_rows)
      : p_(p),
        tables_(tables),
        panels_((tables.column_terms + kGemmRows - 1) / kGemmRows),
        panel_size_(tables.row_terms * kGemmRows),
        middle_pitch_(padded(band_rows, kLanes<T>)) {}

  void place(Arena& arena) {
    for (int field = 0; field < 2; field++) {
      coefficients_[field] = arena.take<T>(panels_ * panel_size_);
      depth_[field] = arena.take<int64_t>(panels_);
      middle_[field] = arena.take<T>(panels_ * kGemmRows * middle_pitch_);
      rows_[field] = arena.take<T>(kGemmRows * tables_.column_pitch);
    }
    panel_ = arena.take<T>(panels_ * kGemmRows * kGemmRows);
    place_ = arena.take<int64_t>(p_.row_terms);
    sign_ = arena.take<T>(p_.row_terms);
  }

  // Where the coefficients of each frequency along rows go, the same for all images.
  void prepare() {
    for (int64_t j = 0; j < p_.row_terms && panels_ * panel_size_ > 0; j++) {
      const Folded row(j + 1, p_.image.sizes.height);
      place_[j] = row.index * kGemmRows;
      sign_[j] = static_cast<T>(row.sign);
    }
  }

  void start(int64_t image, int64_t first_row, int64_t rows) {
    for (int field = 0; field < 2; field++) {
      fold(image, field);
      terms_[field] = 0;
      for (int64_t panel = 0; panel < panels_; panel++) {
        if (depth_[field][panel] > 0) {
          terms_[field] = std::min((panel + 1) * kGemmRows, tables_.column_terms);
        }
        multiply(coefficients_[field] + panel * panel_size_, static_cast<const T*>(tables_.rows) + first_row,
                 tables_.row_pitch, depth_[field][panel], middle_[field] + panel * kGemmRows * middle_pitch_,
                 middle_pitch_, padded(rows, kLanes<T>));
      }
    }
  }

  // The rows from `row` of the band on, kGemmRows of them.
  void compute(int64_t row) {
    for (int field = 0; field < 2; field++) {
      for (int64_t i = 0; i < terms_[field]; i++) {
        const T* from = middle_[field] + i * middle_pitch_ + row;
        for (int r = 0; r < kGemmRows; r++) {
          panel_[i * kGemmRows + r] = from[r];
        }
      }
      multiply(panel_, static_cast<const T*>(tables_.columns), tables_.column_pitch, terms_[field], rows_[field],
               tables_.column_pitch, tables_.column_pitch);
    }
  }

  const T* row(int field, int64_t row) const { return rows_[field] + row * tables_.column_pitch; }

 private:
  void fold(int64_t image, int field) {
    T* to = coefficients_[field];
    std::fill(to, to + panels_ * panel_size_, T(0));
    std::fill(depth_[field], depth_[field] + panels_, int64_t{0});
    if (panels_ * panel_size_ == 0) {
      return;
    }
    const ImageParameter& c = p_.coefficients;
    const int64_t start = image * c.stride[0] + field * c.stride[1];
    for (int64_t i = 0; i < p_.column_terms; i++) {
      const Folded column(i + 1, p_.image.sizes.width);
      T* panel = to + column.index / kGemmRows * panel_size_ + column.index % kGemmRows;
      const T sign = static_cast<T>(column.sign);
      int64_t last = -1;
      const auto add = [&](const auto* values) {
        for (int64_t j = 0; j < p_.row_terms; j++) {
          const T value = static_cast<T>(values[j * c.stride[3]]);
          if (value != T(0)) {
            panel[place_[j]] += value * (sign_[j] * sign);
            last = std::max(last, place_[j]);
          }
        }
      };
      const int64_t at = start + i * c.stride[2];
      if (c.is_double) {
        add(static_cast<const double*>(c.data) + at);
      } else {
        add(static_cast<const float*>(c.data) + at);
      }
      int64_t& depth = depth_[field][column.index / kGemmRows];
      depth = std::max(depth, last / kGemmRows + (last >= 0 ? 1 : 0));
    }
  }

  const SineWarpParams& p_;
  const cpu::WarpTables& tables_;
  int64_t panels_, panel_size_, middle_pitch_;
  int64_t terms_[2] = {0, 0};  // of the columns, that are not 0
  T* coefficients_[2];         // [panel of i][j][i]
  int64_t* depth_[2];          // of each panel: how many j are not 0
  T* middle_[2];               // [i][row of the band]
  T* rows_[2];                 // the finished field, [row][column]
  T* panel_;
  int64_t* place_;  // of each frequency along rows, in a panel
  T* sign_;
};

STURDY_ALWAYS_INLINE Vec<float> gather(const float* from, Index<float> at) {
#if defined(__AVX512F__)
  return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)at, from, 4)};
#elif defined(__AVX2__)
  return {_mm256_i32gather_ps(from, (__m256i)at, 4)};
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; i++) {
    v.v[i] = from[at[i]];
  }
  return v;
#endif
}

STURDY_ALWAYS_INLINE Vec<double> gather(const double* from, Index<double> at) {
#if defined(__AVX512F__)
  return {_mm512_mask_i64gather_pd(_mm512_setzero_pd(), 0xff, (__m512i)at, from, 8)};
#elif defined(__AVX2__)
  return {_mm256_i64gather_pd(from, (__m256i)at, 8)};
#else
  Vec<double> v;
  for (int i = 0; i < kLanes<double>; i++) {
    v.v[i] = from[at[i]];
  }
  return v;
#endif
}

// Where a row of the result is sampled, relative to the plane.
template <typename T>
struct Samples {
  Index<T>* corner;  // offset of the pixel above to the left, by vectors
  T* right;          // how far towards the right neighbour, 0 to 1, and the lower one
  T* down;
};

// Splits a coordinate into a pixel and a rest. A NaN stays in the rest, and is not made an index of.
template <typename T>
STURDY_ALWAYS_INLINE Index<T> split(Vec<T> at, T most, Vec<T>& rest) {
  const Vec<T> bounded = clamp(at, Bounds<T>{T(0), most});
  const Vec<T> number{bounded.v == bounded.v ? bounded.v : typename Vec<T>::Native{}};
  const Index<T> whole = __builtin_convertvector(number.v, Index<T>);  // not negative: rounds down
  rest.v = bounded.v - __builtin_convertvector(whole, typename Vec<T>::Native);
  return whole;
}

template <typename T>
void find_samples(const Samples<T>& samples, const T* columns, const T* rows, int64_t row, const ImageSizes& sizes,
                  int64_t row_stride, int64_t column_stride) {
  using Integer = std::remove_reference_t<decltype(Index<T>{}[0])>;
  Vec<T> ramp;
  STURDY_UNROLL
  for (int i = 0; i < kLanes<T>; i++) {
    ramp.v[i] = static_cast<T>(i);
  }
  const T last_column = static_cast<T>(sizes.width - 1);
  const T last_row = static_cast<T>(sizes.height - 1);
  for (int64_t at = 0; at < sizes.width; at += kLanes<T>) {
    Vec<T> right, down;
    const Vec<T> x{ramp.v + static_cast<T>(at) - load(columns + at).v};
    const Vec<T> y{static_cast<T>(row) - load(rows + at).v};
    const Index<T> column = split(x, last_column, right);
    const Index<T> line = split(y, last_row, down);
    samples.corner[at / kLanes<T>] =
        line * static_cast<Integer>(row_stride) + column * static_cast<Integer>(column_stride);
    store(samples.right + at, right);
    store(samples.down + at, down);
  }
}

template <typename T, typename Out>
void sample_row(const Samples<T>& samples, const T* plane, int64_t row_stride, int64_t column_stride, int64_t width,
                T* buffer, Out* to, int64_t to_stride) {
  using Integer = std::remove_reference_t<decltype(Index<T>{}[0])>;
  const Integer down_step = static_cast<Integer>(row_stride);
  const Integer right_step = static_cast<Integer>(column_stride);
  for (int64_t at = 0; at < width; at += kLanes<T>) {
    const Vec<T> right = load(samples.right + at);
    const Vec<T> down = load(samples.down + at);
    const Index<T> corner = samples.corner[at / kLanes<T>];
    // A neighbour that does not count is not looked at: it may be beyond the image, or a NaN.
    const Index<T> next = corner + ((right.v > T(0)) & right_step);
    const Index<T> below = (down.v > T(0)) & down_step;
    const Vec<T> a = gather(plane, corner);
    const Vec<T> b = gather(plane, next);
    const Vec<T> c = gather(plane, corner + below);
    const Vec<T> d = gather(plane, next + below);
    const Vec<T> upper{a.v + right.v * (b.v - a.v)};
    const Vec<T> lower{c.v + right.v * (d.v - c.v)};
    const Vec<T> value{upper.v + down.v * (lower.v - upper.v)};
    if (to_stride != 1) {
      store(buffer + at, value);
    } else if (at + kLanes<T> <= width) {
      store(to + at, value);
    } else {
      store_partial(to + at, value, width - at);
    }
  }
  if (to_stride != 1) {
    write_row(static_cast<const T*>(buffer), to, to_stride, width);
  }
}

template <typename In, typename Out>
void forward(const SineWarpParams& p, const cpu::WarpTables& tables, const cpu::ImageCut& cut, int64_t begin,
             int64_t end) {
  using T = Accumulate<Out>;
  const ImageSizes& sizes = p.image.sizes;
  const ImageView& input = p.image.input;
  const ImageView& out = p.image.out;
  const int64_t reach = (sizes.height - 1) * std::abs(input.stride[2]) + (sizes.width - 1) * std::abs(input.stride[3]);
  const bool direct = std::is_same_v<In, T> && reach < (int64_t{1} << 31);
  const int64_t pitch = padded(sizes.width, kLanes<T>);
  Fields<T> fields(p, tables, padded(cut.band_rows, kGemmRows));
  Samples<T> samples[kGemmRows];
  T* buffer = nullptr;
  T* copy = nullptr;
  const auto place = [&](Arena arena) {
    fields.place(arena);
    for (Samples<T>& row : samples) {
      row.corner = arena.take<Index<T>>(pitch / kLanes<T>);
      row.right = arena.take<T>(pitch);
      row.down = arena.take<T>(pitch);
    }
    buffer = arena.take<T>(pitch);
    copy = arena.take<T>(direct ? 0 : sizes.channels * sizes.height * sizes.width);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  fields.prepare();
  const int64_t row_stride = direct ? input.stride[2] : sizes.width;
  const int64_t column_stride = direct ? input.stride[3] : 1;
  for (int64_t index = begin; index < end; index++) {
    const cpu::ImageUnit unit(cut, sizes, index);
    fields.start(unit.image, unit.first_row, unit.rows);
    if (!direct) {
      for (int64_t channel = 0; channel < sizes.channels; channel++) {
        for (int64_t row = 0; row < sizes.height; row++) {
          read_row(static_cast<const In*>(input.data) + cpu::image_offset(input, unit.image, channel, row),
                   input.stride[3], copy + (channel * sizes.height + row) * sizes.width, sizes.width);
        }
      }
    }
    for (int64_t row = 0; row < unit.rows; row += kGemmRows) {
      const int64_t rows = std::min<int64_t>(kGemmRows, unit.rows - row);
      fields.compute(row);
      for (int64_t r = 0; r < rows; r++) {
        find_samples(samples[r], fields.row(0, r), fields.row(1, r), unit.first_row + row + r, sizes, row_stride,
                     column_stride);
      }
      for (int64_t channel = 0; channel < sizes.channels; channel++) {
        const T* plane = copy + channel * sizes.height * sizes.width;
        if (direct) {
          plane = reinterpret_cast<const T*>(static_cast<const In*>(input.data) +
                                             cpu::image_offset(input, unit.image, channel, 0));
        }
        for (int64_t r = 0; r < rows; r++) {
          Out* to = static_cast<Out*>(out.data) + cpu::image_offset(out, unit.image, channel, unit.first_row + row + r);
          sample_row(samples[r], plane, row_stride, column_stride, sizes.width, buffer, to, out.stride[3]);
        }
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
void fill(bool input_is_bytes, cpu::PrimeKernels& kernels) {
  kernels.sine_warp = input_is_bytes ? forward<uint8_t, S> : forward<S, S>;
}

}  // namespace

void fill_sine_warp(DType dtype, bool input_is_bytes, cpu::PrimeKernels& kernels) {
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
