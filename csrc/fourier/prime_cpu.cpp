// filter2d, smooth_color and sine_warp on the CPU: cuts calls into units for the kernels of the machine's instruction
// set.
#include <algorithm>
#include <cmath>

#include "common/cpu_features.h"
#include "common/scratch.h"
#include "fourier/prime.h"
#include "fourier/prime_cpu_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTaskPixels = 16384;             // less is not worth a thread's while
constexpr int64_t kUnitsWanted = 32;               // enough for any machine's threads to share a few large planes
constexpr int64_t kMostPixels = int64_t{1} << 30;  // of a plane that is sampled: offsets in it are 32-bit
constexpr double kPi = 3.14159265358979323846;

// Channels of an image that lie side by side belong to one unit: others would share its cache lines.
ImageCut make_cut(const ImageToImage& image, bool all_channels, int64_t least_rows) {
  const ImageSizes& s = image.sizes;
  const bool merged = s.channels > 1 && image.out.stride[1] == 1 && image.out.stride[3] != 1;
  ImageCut cut;
  cut.channels = merged || all_channels ? s.channels : 1;
  cut.groups = s.channels / cut.channels;
  const int64_t groups = std::max<int64_t>(s.batch * cut.groups, 1);
  const int64_t most = std::max<int64_t>((s.height + least_rows - 1) / least_rows, 1);
  const int64_t bands = std::clamp<int64_t>((kUnitsWanted + groups - 1) / groups, 1, most);
  const int64_t rows = (s.height + bands - 1) / bands;
  cut.band_rows = std::max<int64_t>((rows + least_rows - 1) / least_rows * least_rows, 1);
  cut.bands = std::max<int64_t>((s.height + cut.band_rows - 1) / cut.band_rows, 1);
  return cut;
}

int64_t grain_of(const ImageSizes& sizes, const ImageCut& cut) {
  return std::max<int64_t>(kTaskPixels / std::max<int64_t>(cut.band_rows * sizes.width * cut.channels, 1), 1);
}

// sin(i pi c / (length - 1)) for i = 1 ... terms and c < length; the multiple of pi is reduced in integers.
template <typename T>
void fill_sines(T* to, int64_t terms, int64_t length, int64_t pitch, double* half_turns) {
  const int64_t period = 2 * (length - 1);
  for (int64_t q = 0; q < period; q++) {
    half_turns[q] =
        q % (length - 1) == 0 ? 0.0 : std::sin(kPi * static_cast<double>(q) / static_cast<double>(length - 1));
  }
  for (int64_t i = 1; i <= terms; i++) {
    T* row = to + (i - 1) * pitch;
    int64_t q = 0;
    for (int64_t c = 0; c < length; c++) {
      row[c] = static_cast<T>(half_turns[q]);
      q += i;
      q -= q >= period ? period : 0;
    }
    std::fill(row + length, row + pitch, T(0));
  }
}

template <typename T>
WarpTables make_tables(const SineWarpParams& p) {
  const ImageSizes& s = p.image.sizes;
  WarpTables tables = {};
  tables.column_terms = different_sines(p.column_terms, s.width);
  tables.row_terms = different_sines(p.row_terms, s.height);
  tables.column_pitch = (s.width + kWarpPadding - 1) / kWarpPadding * kWarpPadding;
  tables.row_pitch =
      (s.height + kWarpPadding - 1) / kWarpPadding * kWarpPadding + kWarpPadding;  // bands start anywhere
  T* columns = nullptr;
  T* rows = nullptr;
  double* half_turns = nullptr;
  const auto place = [&](Arena arena) {
    columns = arena.take<T>(tables.column_terms * tables.column_pitch);
    rows = arena.take<T>(tables.row_terms * tables.row_pitch);
    half_turns = arena.take<double>(2 * std::max(s.width, s.height));
    return arena.used();
  };
  place(Arena(host_scratch(ScratchSlot::call, place(Arena(nullptr)))));
  if (tables.column_terms > 0) {
    fill_sines(columns, tables.column_terms, s.width, tables.column_pitch, half_turns);
  }
  if (tables.row_terms > 0) {
    fill_sines(rows, tables.row_terms, s.height, tables.row_pitch, half_turns);
  }
  tables.columns = columns;
  tables.rows = rows;
  return tables;
}

}  // namespace

Status filter2d(const Filter2dParams& params, const Threads& threads) {
  PrimeKernels kernels = {};
  STURDY_ON_CPU_ISA(fill_filter2d(params.image.dtype, params.image.input_is_bytes, kernels));
  const ImageCut cut = make_cut(params.image, false, 8);
  return threads(cut.units(params.image.sizes.batch), grain_of(params.image.sizes, cut),
                 [&](int64_t begin, int64_t end) { kernels.filter2d(params, cut, begin, end); });
}

Status filter2d_backward(const Filter2dBackwardParams& params, const Threads& threads) {
  PrimeKernels kernels = {};
  STURDY_ON_CPU_ISA(fill_filter2d(params.image.dtype, params.image.input_is_bytes, kernels));
  const ImageSizes& s = params.image.sizes;
  return threads(s.batch * s.channels, std::max<int64_t>(kTaskPixels / std::max<int64_t>(s.height * s.width, 1), 1),
                 [&](int64_t begin, int64_t end) { kernels.filter2d_backward(params, begin, end); });
}

Status smooth_color(const SmoothColorParams& params, const Threads& threads) {
  PrimeKernels kernels = {};
  STURDY_ON_CPU_ISA(fill_smooth_color(params.image.dtype, params.image.input_is_bytes, kernels));
  const ImageCut cut = make_cut(params.image, false, params.image.input_is_bytes ? 64 : 8);
  return threads(cut.units(params.image.sizes.batch), 1,
                 [&](int64_t begin, int64_t end) { kernels.smooth_color(params, cut, begin, end); });
}

Status smooth_color_backward(const SmoothColorBackwardParams& params, const Threads& threads) {
  PrimeKernels kernels = {};
  STURDY_ON_CPU_ISA(fill_smooth_color(params.image.dtype, params.image.input_is_bytes, kernels));
  return threads(params.image.sizes.batch * params.image.sizes.channels, 1,
                 [&](int64_t begin, int64_t end) { kernels.smooth_color_backward(params, begin, end); });
}

Status sine_warp(const SineWarpParams& params, const Threads& threads) {
  const ImageSizes& sizes = params.image.sizes;
  if (sizes.height > kMostPixels / sizes.width) {
    return Status::unsupported_size;
  }
  PrimeKernels kernels = {};
  STURDY_ON_CPU_ISA(fill_sine_warp(params.image.dtype, params.image.input_is_bytes, kernels));
  const WarpTables tables = params.image.dtype == DType::f64 ? make_tables<double>(params) : make_tables<float>(params);
  const ImageCut cut = make_cut(params.image, true, 4 * kWarpRows);
  const Status status = threads(cut.units(params.image.sizes.batch), 1, [&](int64_t begin, int64_t end) {
    kernels.sine_warp(params, tables, cut, begin, end);
  });
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace cpu
}  // namespace sturdy
