// The CPU kernels of wave_add for one instruction set. Compiled once for each, with
// -DSTURDY_ISA_NAMESPACE=<portable, avx2 or avx512> and the matching machine flags.
#include <algorithm>
#include <limits>

#include "common/scratch.h"
#include "fourier/wave_add_cpu_plan.h"
#include "fourier/wave_add_cpu_rows.h"

namespace sturdy {
namespace STURDY_ISA_NAMESPACE {
namespace {

constexpr int64_t kWavesAtOnce = 8;          // tables of more would not stay in the first-level cache
constexpr int64_t kBlockPixels = 4096;       // of intermediate values, where one pass does not do
constexpr int64_t kDeepBlockPixels = 65536;  // the same where every block computes the sines again

constexpr double kTurnsPerRadian = 1.0 / 6.283185307179586476925;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

double read(const WaveParameter& parameter, int64_t image, int64_t channel, int64_t wave, int64_t axis) {
  const int64_t at = image * parameter.stride[0] + channel * parameter.stride[1] + wave * parameter.stride[2] +
                     axis * parameter.stride[3];
  return parameter.is_double ? static_cast<const double*>(parameter.data)[at]
                             : static_cast<double>(static_cast<const float*>(parameter.data)[at]);
}

bool shared_by_planes(const Waves& waves) {
  for (const WaveParameter* parameter : {&waves.frequency, &waves.amplitude, &waves.phase}) {
    if (parameter->stride[0] != 0 || parameter->stride[1] != 0) {
      return false;
    }
  }
  return true;
}

template <typename T>
Bounds<T> no_bounds() {
  return {-std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity()};
}

template <typename T>
Bounds<T> bounds_of(const Waves& waves) {
  return waves.clip ? Bounds<T>{static_cast<T>(waves.low), static_cast<T>(waves.high)} : no_bounds<T>();
}

// Sines along both axes of a plane, or of an image with merged channels, for up to kWavesAtOnce waves at a time and up
// to `rows` rows, and what is needed to use them on one row.
template <typename T>
class Tables {
 public:
  Tables(const Waves& waves, bool merged, int64_t rows)
      : waves_(waves), channels_(merged ? waves.channels : 1), rows_(round_up(rows, kLanes<T>)) {
    length_ = waves.width * channels_;
    pitch_ = round_up(length_, kLanes<T>);
    one_row_pitch_ = channels_ + kLanes<T>;
  }

  void place(Arena& arena) {
    const int64_t most = std::min(waves_.count, kWavesAtOnce);
    const int64_t column_pitch = round_up(waves_.width, kLanes<T>);
    sine_ = arena.take<T>(most * pitch_);
    cosine_ = arena.take<T>(most * pitch_);
    row_sine_ = arena.take<T>(most * channels_ * rows_);
    row_cosine_ = arena.take<T>(most * channels_ * rows_);
    factor_sine_ = arena.take<T>(most * channels_ * rows_);
    factor_cosine_ = arena.take<T>(most * channels_ * rows_);
    one_row_sine_ = arena.take<T>(channels_ > 1 ? most * one_row_pitch_ : 0);
    one_row_cosine_ = arena.take<T>(channels_ > 1 ? most * one_row_pitch_ : 0);
    one_sine_ = arena.take<T>(column_pitch);
    one_cosine_ = arena.take<T>(column_pitch);
  }

  int64_t length() const { return length_; }
  int64_t count() const { return count_; }

  // For the waves from `first_wave` on and the rows from `first_row` on.
  void build(int64_t image, int64_t channel, int64_t first_wave, int64_t first_row, int64_t rows) {
    count_ = std::min(waves_.count - first_wave, kWavesAtOnce);
    const double row_start = static_cast<double>(first_row) - 0.5 * static_cast<double>(waves_.height - 1);
    const double column_start = -0.5 * static_cast<double>(waves_.width - 1);
    for (int64_t k = 0; k < count_; k++) {
      for (int64_t c = 0; c < channels_; c++) {
        const int64_t wave = first_wave + k;
        const double row_frequency = read(waves_.frequency, image, channel + c, wave, 0);
        const double column_frequency = read(waves_.frequency, image, channel + c, wave, 1);
        const double turns = read(waves_.phase, image, channel + c, wave, 0) * kTurnsPerRadian;
        const int64_t rows_at = (k * channels_ + c) * rows_;
        Axis(row_frequency, row_start, 0.0).table(rows, row_sine_ + rows_at, row_cosine_ + rows_at);
        const T amplitude = static_cast<T>(read(waves_.amplitude, image, channel + c, wave, 0));
        for (int64_t i = rows_at; i < rows_at + rows; i += kLanes<T>) {
          store(factor_sine_ + i, load(row_sine_ + i) * broadcast(amplitude));
          store(factor_cosine_ + i, load(row_cosine_ + i) * broadcast(amplitude));
        }
        const Axis columns(column_frequency, column_start, turns);
        T* sine = sine_ + k * pitch_;
        T* cosine = cosine_ + k * pitch_;
        if (channels_ == 1) {
          columns.table(pitch_, sine, cosine);
          continue;
        }
        columns.table(waves_.width, one_sine_, one_cosine_);
        for (int64_t j = 0; j < waves_.width; j++) {
          sine[j * channels_ + c] = one_sine_[j];
          cosine[j * channels_ + c] = one_cosine_[j];
        }
      }
    }
  }

  // What one channel's plane needs at row `row` of those that build() was told of, and at those after it.
  STURDY_ALWAYS_INLINE RowWaves<T> of_plane(int64_t row) const {
    return {count_, factor_sine_ + row, factor_cosine_ + row, rows_, sine_, cosine_, pitch_};
  }

  // to = clamp(from + waves) for row `row` of those that build() was told of.
  template <int known = 0, typename From, typename To>
  STURDY_ALWAYS_INLINE void add(int64_t row, const From* from, To* to, const Bounds<T>& bounds) const {
    if (channels_ == 1) {
      add_to_row<known>(from, to, length_, of_plane(row), bounds);
    } else {
      repeat_factors(row);
      const RowWaves<T> waves = {count_, one_row_sine_, one_row_cosine_, one_row_pitch_, sine_, cosine_, pitch_};
      add_to_merged_row(from, to, length_, waves, channels_, bounds);
    }
  }

  // sum[k] += values . sine of wave k, without its amplitude.
  void add_products_of_row(int64_t row, const T* values, Vec<T>* sum) const {
    for (int64_t k = 0; k < count_; k++) {
      add_products(values, sine_ + k * pitch_, cosine_ + k * pitch_, length_, row_sine_[k * rows_ + row],
                   row_cosine_[k * rows_ + row], sum[k]);
    }
  }

 private:
  // The factors of one row for merged channels, repeated so that a vector can be loaded at any of them.
  void repeat_factors(int64_t row) const {
    for (int64_t k = 0; k < count_; k++) {
      T* sine = one_row_sine_ + k * one_row_pitch_;
      T* cosine = one_row_cosine_ + k * one_row_pitch_;
      for (int64_t c = 0; c < channels_; c++) {
        sine[c] = factor_sine_[(k * channels_ + c) * rows_ + row];
        cosine[c] = factor_cosine_[(k * channels_ + c) * rows_ + row];
      }
      for (int64_t c = channels_; c < one_row_pitch_; c++) {
        sine[c] = sine[c - channels_];
        cosine[c] = cosine[c - channels_];
      }
    }
  }

  const Waves& waves_;
  int64_t channels_;  // side by side; else 1
  int64_t rows_;      // for which there is room
  int64_t length_;    // of a row: pixels times channels
  int64_t pitch_;
  int64_t one_row_pitch_;
  int64_t count_ = 0;
  T* sine_ = nullptr;  // [wave][pixel, channel]
  T* cosine_ = nullptr;
  T* row_sine_ = nullptr;  // [wave][channel][row]
  T* row_cosine_ = nullptr;
  T* factor_sine_ = nullptr;  // the same times the amplitude
  T* factor_cosine_ = nullptr;
  T* one_row_sine_ = nullptr;  // [wave][channel, repeated]
  T* one_row_cosine_ = nullptr;
  T* one_sine_ = nullptr;  // of the columns, of one channel
  T* one_cosine_ = nullptr;
};

// The part of an image that a unit is about.
struct Unit {
  int64_t image, channel, first_row, rows;

  Unit(const cpu::WaveAddCut& cut, const Waves& waves, int64_t index) {
    const int64_t plane = index / cut.bands;
    first_row = index % cut.bands * cut.band_rows;
    rows = std::min(cut.band_rows, waves.height - first_row);
    image = plane / cut.planes;
    channel = cut.merged ? 0 : plane % cut.planes;
  }

  template <typename S>
  S* row(const ImageView& view, int64_t row) const {
    return static_cast<S*>(view.data) + image * view.stride[0] + channel * view.stride[1] +
           (first_row + row) * view.stride[2];
  }
};

// A row as numbers side by side: `row` itself where it is so already, else a copy in `buffer`.
template <typename T, typename S>
void gather(const S* row, int64_t channels, int64_t channel_stride, int64_t width, int64_t column_stride, T* buffer) {
  for (int64_t j = 0; j < width; j++) {
    for (int64_t c = 0; c < channels; c++) {
      buffer[j * channels + c] = pixel<T>(row[j * column_stride + c * channel_stride]);
    }
  }
}

bool rows_are_dense(const ImageView& view, const Waves& waves, bool merged) {
  if (!merged) {
    return view.stride[3] == 1 || waves.width == 1;
  }
  return view.stride[1] == 1 && (view.stride[3] == waves.channels || waves.width == 1);
}

// Adds all waves to rows [begin, begin + rows) of the unit; what comes out goes to put(row, sums). More waves than the
// tables hold are summed in `sums`, whose rows lie `length` apart.
template <typename T, typename S>
void sum_block(Tables<T>& tables, const Waves& waves, const ImageView& input, bool merged, const Unit& unit,
               int64_t begin, int64_t rows, bool tables_ready, T* buffer, T* sums) {
  const int64_t length = tables.length();
  const int64_t channels = merged ? waves.channels : 1;
  const bool dense = rows_are_dense(input, waves, merged);
  int64_t first = 0;
  do {
    if (!tables_ready) {
      tables.build(unit.image, unit.channel, first, unit.first_row + begin, rows);
    }
    const int64_t table_row = tables_ready ? begin : 0;
    for (int64_t i = 0; i < rows; i++) {
      T* to = sums + i * length;
      const S* row = unit.row<const S>(input, begin + i);
      if (first > 0) {
        tables.add(table_row + i, static_cast<const T*>(to), to, no_bounds<T>());
      } else if (dense) {
        tables.add(table_row + i, row, to, no_bounds<T>());
      } else {
        gather(row, channels, input.stride[1], waves.width, input.stride[3], buffer);
        tables.add(table_row + i, static_cast<const T*>(buffer), to, no_bounds<T>());
      }
    }
    first += kWavesAtOnce;
  } while (first < waves.count);
}

// ---- forward ----

// One pass: the tables of all waves are ready, for all rows of the unit.
template <typename In, typename Out, typename T>
void forward_at_once(const Tables<T>& tables, const WaveAddParams& p, const cpu::WaveAddCut& cut, const Unit& unit,
                     T* buffer) {
  const Waves& waves = p.waves;
  const bool merged = cut.merged;
  const Bounds<T> bounds = bounds_of<T>(waves);
  const In* from = unit.row<const In>(p.input, 0);
  Out* to = unit.row<Out>(p.out, 0);
  const int64_t from_stride = p.input.stride[2];
  const int64_t to_stride = p.out.stride[2];
  if (!rows_are_dense(p.input, waves, merged)) {
    const int64_t channels = merged ? waves.channels : 1;
    for (int64_t i = 0; i < unit.rows; i++) {
      gather(from + i * from_stride, channels, p.input.stride[1], waves.width, p.input.stride[3], buffer);
      tables.add(i, static_cast<const T*>(buffer), to + i * to_stride, bounds);
    }
    return;
  }
  if (merged || waves.count != 1) {
    for (int64_t i = 0; i < unit.rows; i++) {
      tables.add(i, from + i * from_stride, to + i * to_stride, bounds);
    }
    return;
  }
  if constexpr (std::is_same_v<Out, float>) {
    if (cut.streams && reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0 && to_stride % kLanes<float> == 0) {
      for (int64_t i = 0; i < unit.rows; i++) {
        add_to_row<1, true>(from + i * from_stride, to + i * to_stride, waves.width, tables.of_plane(i), bounds);
      }
      finish_streaming();
      return;
    }
  }
  for (int64_t i = 0; i < unit.rows; i++) {
    add_to_row<1>(from + i * from_stride, to + i * to_stride, waves.width, tables.of_plane(i), bounds);
  }
}

// Planes of one wave and at most `vectors` vectors in width: no tables of columns, their sines stay in registers.
template <int vectors, typename In, typename Out>
void forward_narrow(const WaveAddParams& p, int64_t begin, int64_t end) {
  using T = Accumulate<Out>;
  const Waves& waves = p.waves;
  const Bounds<T> bounds = bounds_of<T>(waves);
  const double row_start = -0.5 * static_cast<double>(waves.height - 1);
  const double column_start = -0.5 * static_cast<double>(waves.width - 1);
  const int64_t room = round_up(waves.height, kLanes<T>);
  T* row_sine = nullptr;
  T* row_cosine = nullptr;
  const auto place = [&](Arena arena) {
    row_sine = arena.take<T>(room);
    row_cosine = arena.take<T>(room);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));
  int64_t image = begin / waves.channels;
  int64_t channel = begin % waves.channels;
  for (int64_t index = begin; index < end; index++) {
    const Axis rows(read(waves.frequency, image, channel, 0, 0), row_start, 0.0);
    const Axis columns(read(waves.frequency, image, channel, 0, 1), column_start,
                       read(waves.phase, image, channel, 0, 0) * kTurnsPerRadian);
    const Vec<T> amplitude = broadcast(static_cast<T>(read(waves.amplitude, image, channel, 0, 0)));
    for (int64_t i = 0; i < waves.height; i += kLanes<T>) {
      const SineCosine<T> v = rows.at<T>(i);
      store(row_sine + i, v.sine * amplitude);
      store(row_cosine + i, v.cosine * amplitude);
    }
    Vec<T> sine[vectors];
    Vec<T> cosine[vectors];
    STURDY_UNROLL
    for (int i = 0; i < vectors; i++) {
      const SineCosine<T> v = columns.at<T>(i * kLanes<T>);
      sine[i] = v.sine;
      cosine[i] = v.cosine;
    }
    const In* from = static_cast<const In*>(p.input.data) + image * p.input.stride[0] + channel * p.input.stride[1];
    Out* to = static_cast<Out*>(p.out.data) + image * p.out.stride[0] + channel * p.out.stride[1];
    add_to_narrow_plane<vectors>(from, p.input.stride[2], to, p.out.stride[2], waves.height, waves.width, row_sine,
                                 row_cosine, sine, cosine, bounds);
    if (++channel == waves.channels) {
      channel = 0;
      image++;
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// Does the units [begin, end) that way if it can.
template <typename In, typename Out>
bool forward_if_narrow(const WaveAddParams& p, const cpu::WaveAddCut& cut, int64_t begin, int64_t end) {
  if (cut.merged || cut.bands != 1 || p.waves.count != 1 || !rows_are_dense(p.input, p.waves, false)) {
    return false;
  }
  switch (round_up(p.waves.width, kLanes<Accumulate<Out>>) / kLanes<Accumulate<Out>>) {
    case 1:
      forward_narrow<1, In, Out>(p, begin, end);
      return true;
    case 2:
      forward_narrow<2, In, Out>(p, begin, end);
      return true;
    case 3:
      forward_narrow<3, In, Out>(p, begin, end);
      return true;
    case 4:
      forward_narrow<4, In, Out>(p, begin, end);
      return true;
    default:
      return false;
  }
}

template <typename T>
int64_t rows_of_block(int64_t length, int64_t rows, int64_t pixels) {
  return std::clamp<int64_t>(pixels / std::max<int64_t>(length, 1), 1, std::max<int64_t>(rows, 1));
}

template <typename In, typename Out>
void forward(const WaveAddParams& p, const cpu::WaveAddCut& cut, int64_t begin, int64_t end) {
  using T = Accumulate<Out>;
  if (forward_if_narrow<In, Out>(p, cut, begin, end)) {
    return;
  }
  const Waves& waves = p.waves;
  const bool at_once = waves.count <= kWavesAtOnce;
  const int64_t length = waves.width * (cut.merged ? waves.channels : 1);
  const int64_t block_rows = at_once ? cut.band_rows : rows_of_block<T>(length, cut.band_rows, kDeepBlockPixels);
  Tables<T> tables(waves, cut.merged, block_rows);
  T* buffer = nullptr;
  T* sums = nullptr;
  const auto place = [&](Arena arena) {
    tables.place(arena);
    buffer = arena.take<T>(length);
    sums = arena.take<T>(at_once ? 0 : block_rows * length);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));

  const bool shared = shared_by_planes(waves);
  int64_t built_row = -1;
  for (int64_t index = begin; index < end; index++) {
    const Unit unit(cut, waves, index);
    if (at_once) {
      if (!shared || built_row != unit.first_row) {
        tables.build(unit.image, unit.channel, 0, unit.first_row, unit.rows);
        built_row = unit.first_row;
      }
      forward_at_once<In, Out>(tables, p, cut, unit, buffer);
      continue;
    }
    const Bounds<T> bounds = bounds_of<T>(waves);
    for (int64_t row = 0; row < unit.rows; row += block_rows) {
      const int64_t rows = std::min(block_rows, unit.rows - row);
      sum_block<T, In>(tables, waves, p.input, cut.merged, unit, row, rows, false, buffer, sums);
      for (int64_t i = 0; i < rows; i++) {
        const RowWaves<T> none = {};
        add_to_row(static_cast<const T*>(sums + i * length), unit.row<Out>(p.out, row + i), length, none, bounds);
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

// ---- backward ----

template <typename In, typename S>
void backward(const WaveAddBackwardParams& p, const cpu::WaveAddCut& cut, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const Waves& waves = p.waves;
  const int64_t width = waves.width;
  const bool at_once = waves.count <= kWavesAtOnce;
  const int64_t block_rows = rows_of_block<T>(width, cut.band_rows, at_once ? kBlockPixels : kDeepBlockPixels);
  Tables<T> tables(waves, false, at_once ? cut.band_rows : block_rows);
  T* buffer = nullptr;
  T* block = nullptr;
  double* totals = nullptr;
  const auto place = [&](Arena arena) {
    tables.place(arena);
    buffer = arena.take<T>(width);
    block = arena.take<T>(block_rows * width);
    totals = arena.take<double>(waves.count);
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::task, place(Arena(nullptr)))));

  const Bounds<T> bounds = bounds_of<T>(waves);
  const bool grad_is_dense = rows_are_dense(p.grad_out, waves, false);
  for (int64_t index = begin; index < end; index++) {
    const Unit unit(cut, waves, index);
    for (int64_t k = 0; k < waves.count; k++) {
      totals[k] = 0.0;
    }
    if (at_once) {
      tables.build(unit.image, unit.channel, 0, unit.first_row, unit.rows);
    }
    for (int64_t row = 0; row < unit.rows; row += block_rows) {
      const int64_t rows = std::min(block_rows, unit.rows - row);
      if (waves.clip) {
        sum_block<T, In>(tables, waves, p.input, false, unit, row, rows, at_once, buffer, block);
      }
      for (int64_t i = 0; i < rows; i++) {
        T* values = block + i * width;
        const S* grad = unit.row<const S>(p.grad_out, row + i);
        if (!waves.clip) {
          gather(grad, 1, 0, width, p.grad_out.stride[3], values);
        } else if (grad_is_dense) {
          mask_row(values, grad, values, width, bounds);
        } else {
          gather(grad, 1, 0, width, p.grad_out.stride[3], buffer);
          mask_row(values, static_cast<const T*>(buffer), values, width, bounds);
        }
        if (p.grad_input.data != nullptr) {
          S* to = unit.row<S>(p.grad_input, row + i);
          for (int64_t j = 0; j < width; j++) {
            assign(to[j * p.grad_input.stride[3]], values[j]);
          }
        }
      }
      if (p.grad_amplitude == nullptr) {
        continue;
      }
      for (int64_t first = 0; first < waves.count; first += kWavesAtOnce) {
        if (!at_once) {
          tables.build(unit.image, unit.channel, first, unit.first_row + row, rows);
        }
        Vec<T> sums[kWavesAtOnce] = {};
        for (int64_t i = 0; i < rows; i++) {
          tables.add_products_of_row(at_once ? row + i : i, block + i * width, sums);
        }
        for (int64_t k = 0; k < tables.count(); k++) {
          for (int lane = 0; lane < kLanes<T>; lane++) {
            totals[first + k] += static_cast<double>(sums[k].v[lane]);
          }
        }
      }
    }
    if (p.grad_amplitude != nullptr) {
      T* to = static_cast<T*>(p.grad_amplitude) + (unit.image * waves.channels + unit.channel) * waves.count;
      for (int64_t k = 0; k < waves.count; k++) {
        to[k] = static_cast<T>(totals[k]);
      }
    }
  }
  trim_host_scratch(ScratchSlot::task);
}

template <typename S>
const cpu::WaveAddKernels& kernels(bool input_is_bytes) {
  static constexpr cpu::WaveAddKernels same = {forward<S, S>, backward<S, S>};
  static constexpr cpu::WaveAddKernels from_bytes = {forward<uint8_t, S>, backward<uint8_t, S>};
  return input_is_bytes ? from_bytes : same;
}

}  // namespace

const cpu::WaveAddKernels& wave_add_kernels(DType dtype, bool input_is_bytes) {
  switch (dtype) {
    case DType::f64:
      return kernels<double>(input_is_bytes);
    case DType::f16:
      return kernels<Half>(input_is_bytes);
    case DType::bf16:
      return kernels<BFloat16>(input_is_bytes);
    default:
      return kernels<float>(input_is_bytes);
  }
}

}  // namespace STURDY_ISA_NAMESPACE
}  // namespace sturdy
