// amplitude_mix on CUDA: half spectra of the images and of those that they take amplitudes from, in global memory, some
// images at a time; a transform along the channels, the mixture and the way back are done for each frequency alone.
#include "fourier/amplitude_mix.h"
#include "fourier/spectra_cuda.cuh"

// ptxas-budget: amplitude_mix_rows_kernel 255
// ptxas-budget: amplitude_mix_kernel 128

namespace sturdy::cuda {
namespace spectra {
namespace {

constexpr int kMixThreads = 128;

// ---- rows, in place ----

template <typename T>
struct MixRowsCall {
  Call call;
  Program program;
  Prepared<T> prepared;
  Complex<T>* spectra;
  int tiles, rows, stride;
};

template <typename T>
__global__ void __launch_bounds__(filter::kPassThreads, filter::kPassBlocks<T>)
    amplitude_mix_rows_kernel(MixRowsCall<T> p) {
  STURDY_DYNAMIC_SHARED(Complex<T>, memory);
  const PlanePlan& plan = p.call.plan;
  const int first = static_cast<int>(int64_t{blockIdx.x} % p.tiles) * p.rows;
  const int count = min(p.rows, plan.kept - first);
  const fft::RowTile<T> tile = {plan, p.prepared.across, memory, first, count, p.stride};
  Complex<T>* const spectrum = p.spectra + int64_t{blockIdx.x} / p.tiles * p.call.spectrum_size();
  tile.load(spectrum);
  fft::run_program<fft::kRows | fft::kInverse, T>(p.program, tile);
  tile.store(spectrum);
}

// ---- the mixture ----

template <typename T>
struct MixCall {
  Call call;
  Prepared<T> prepared;
  AmplitudeMixParams params;
  Complex<T>* own;
  const Complex<T>* partner;
  int64_t first;  // image
  int together;   // planes that are transformed along the channels
  int bins;       // frequencies of a block
  int64_t tiles;  // blocks of so many planes
};

// Of one image, with everything in it that scales.
template <typename T>
struct Mixture {
  T keep, take;   // (1 - strength) and strength
  T plane_scale;  // for frequencies outside of the window
  T least_square;
  int64_t row_window, column_window;

  STURDY_DEVICE Mixture(const MixCall<T>& p, int64_t image) {
    const AmplitudeMixParams& params = p.params;
    const double samples = static_cast<double>(params.height) * params.width * p.together;
    // Telling the halves of columns apart doubled both spectra, and no transform scales.
    const double scale = 0.5 / samples;
    double strength = params.strength;
    if (params.strengths != nullptr) {
      const int64_t at = image * params.strengths_stride;
      strength = params.strengths_are_double ? static_cast<const double*>(params.strengths)[at]
                                             : static_cast<double>(static_cast<const float*>(params.strengths)[at]);
    }
    keep = static_cast<T>((1 - strength) * scale);
    take = static_cast<T>(strength * scale);
    plane_scale = static_cast<T>(scale * p.together);
    const double least = 2 * kLeastAmplitude * samples;
    least_square = static_cast<T>(least * least);
    row_window = params.height;
    column_window = params.width;
    if (params.windowed) {
      const int64_t* at = params.windows == nullptr ? params.window : params.windows + image * params.windows_stride[0];
      row_window = at[0];
      column_window = at[params.windows == nullptr ? 1 : params.windows_stride[1]];
    }
    // Nothing else is done to an image that takes its own amplitudes.
    if (params.from_x && p.call.entry(image) == image) {
      row_window = -1;
    }
  }

  STURDY_DEVICE Complex<T> operator()(const Complex<T>& own, const Complex<T>& partner) const {
    const T square = own.re * own.re + own.im * own.im;
    const T wanted = take * square_root(partner.re * partner.re + partner.im * partner.im);
    if (square < least_square) {  // no phase; not where there is a NaN
      return {own.re * keep + wanted, own.im * keep};
    }
    return own * (wanted / square_root(square) + keep);
  }
};

// Frequency c of the transform of `count` numbers that lie `stride` apart, or number c of its inverse. Sums and
// differences come first: of equal numbers, a grey image's, nothing is left but frequency 0.
template <bool Inverse, typename T>
STURDY_DEVICE Complex<T> channel_sum(const Complex<T>* values, int stride, int c, int count, const Complex<T>* roots) {
  Complex<T> even = values[0];
  Complex<T> odd = {T(0), T(0)};
  int turn = 0;
  for (int j = 1; 2 * j <= count; ++j) {
    turn += c;
    turn = turn >= count ? turn - count : turn;
    const Complex<T> root = roots[turn];
    const Complex<T> a = values[j * stride];
    if (2 * j == count) {
      even = even + a * root.re;
    } else {
      const Complex<T> b = values[(count - j) * stride];
      even = even + (a + b) * root.re;
      odd = odd + (a - b) * root.im;
    }
  }
  return Inverse ? Complex<T>{even.re - odd.im, even.im + odd.re} : Complex<T>{even.re + odd.im, even.im - odd.re};
}

// Shared memory: for each channel `bins` numbers of the image, of its partner, and mixed; then roots for the channels.
template <typename T>
__global__ void __launch_bounds__(kMixThreads) amplitude_mix_kernel(MixCall<T> p) {
  STURDY_DYNAMIC_SHARED(Complex<T>, memory);
  const PlanePlan& plan = p.call.plan;
  const int64_t size = p.call.spectrum_size();
  const int together = p.together;
  const int64_t set = int64_t{blockIdx.x} / p.tiles;  // of planes
  const int64_t first_bin = int64_t{blockIdx.x} % p.tiles * p.bins;
  const int bins = static_cast<int>(min(int64_t{p.bins}, size - first_bin));
  const int64_t image = p.first + set * together / p.call.channels;
  if (p.call.entry(image) < 0) {
    return;  // copied
  }
  const Mixture<T> mixture(p, image);
  Complex<T>* const own = p.own + set * together * size + first_bin;
  const Complex<T>* const partner = p.partner + set * together * size + first_bin;
  const auto is_inside = [&](int bin) {
    const int64_t number = first_bin + bin;
    const int rank = static_cast<int>(number / plan.width);
    const int k = p.prepared.rows[rank].frequency;
    const int l = plan.across.frequency(static_cast<int>(number % plan.width));
    return min(k, plan.height - k) <= mixture.row_window && min(l, plan.width - l) <= mixture.column_window;
  };
  const int values = together * bins;
  if (together == 1) {
    for (int i = static_cast<int>(threadIdx.x); i < bins; i += kMixThreads) {
      own[i] = is_inside(i) ? mixture(own[i], partner[i]) : own[i] * mixture.plane_scale;
    }
    return;
  }
  Complex<T>* const own_in = memory;
  Complex<T>* const partner_in = own_in + values;
  Complex<T>* const mixed = partner_in + values;
  Complex<T>* const roots = mixed + values;
  for (int i = static_cast<int>(threadIdx.x); i < together; i += kMixThreads) {
    roots[i] = fft::root_of<T>(i, together);
  }
  for (int i = static_cast<int>(threadIdx.x); i < values; i += kMixThreads) {
    own_in[i] = own[i / bins * size + i % bins];
    partner_in[i] = partner[i / bins * size + i % bins];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < values; i += kMixThreads) {
    const int bin = i % bins;
    const int c = i / bins;
    if (!is_inside(bin)) {
      continue;
    }
    mixed[i] = mixture(channel_sum<false>(own_in + bin, bins, c, together, roots),
                       channel_sum<false>(partner_in + bin, bins, c, together, roots));
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < values; i += kMixThreads) {
    const int bin = i % bins;
    const int c = i / bins;
    Complex<T>& to = own[c * size + bin];
    if (!is_inside(bin)) {
      to = own_in[i] * mixture.plane_scale;
      continue;
    }
    to = channel_sum<true>(mixed + bin, bins, c, together, roots);
  }
}

// ---- launches ----

template <typename T>
size_t mix_row_bytes(const PlanePlan& plan) {
  return fft::row_stride(plan) * sizeof(Complex<T>);
}

template <typename T>
size_t bin_bytes(int64_t together) {
  return static_cast<size_t>(3 * together) * sizeof(Complex<T>);
}

// Images whose spectra, and their partners', are in memory together.
template <typename T>
int64_t mix_chunk(const Call& call) {
  const size_t image = static_cast<size_t>(2 * call.channels * call.spectrum_size()) * sizeof(Complex<T>);
  const auto images = static_cast<int64_t>(kChunkBytes / std::max<size_t>(1, image));
  return std::clamp<int64_t>(images, 1, std::max<int64_t>(1, call.batch));
}

template <typename T>
struct MixMemory {
  Prepared<T> prepared;
  Complex<T>* own;  // of all images of a chunk, then of all partners

  MixMemory(const Call& call, Workspace& workspace)
      : prepared(take_tables<T>(call, workspace)),
        own(workspace.take<Complex<T>>(2 * mix_chunk<T>(call) * call.channels * call.spectrum_size())) {}
};

template <typename T>
size_t mix_bytes(const Call& call) {
  Workspace workspace(nullptr);
  const MixMemory<T> memory(call, workspace);
  return workspace.bytes();
}

template <typename T>
Status transform_rows(const Call& call, const Prepared<T>& prepared, bool inverse, Complex<T>* spectra, int64_t count,
                      const DeviceLimits& limits, void* stream) {
  MixRowsCall<T> p = {};
  p.call = call;
  p.program = fft::make_program(call.plan.across, fft::kRows, inverse);
  p.prepared = prepared;
  p.spectra = spectra;
  p.rows = fft::choose_rows(call.plan, mix_row_bytes<T>(call.plan), limits.shared_bytes);
  p.tiles = ceil_div(call.plan.kept, p.rows);
  p.stride = fft::row_stride(call.plan);
  const int64_t blocks = count * p.tiles;
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  return launch(amplitude_mix_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(filter::kPassThreads),
                p.rows * mix_row_bytes<T>(call.plan), stream, p);
}

template <typename T>
Status mix_spectra(const Call& call, const MixMemory<T>& memory, const AmplitudeMixParams& params, int64_t first,
                   int64_t images, const DeviceLimits& limits, void* stream) {
  MixCall<T> p = {};
  p.call = call;
  p.prepared = memory.prepared;
  p.params = params;
  p.own = memory.own;
  p.partner = memory.own + images * call.channels * call.spectrum_size();
  p.first = first;
  p.together = params.color ? static_cast<int>(params.channels) : 1;
  p.bins = 4 * kMixThreads;
  const size_t fixed = static_cast<size_t>(p.together) * sizeof(Complex<T>);  // roots
  while (p.bins > 1 && fixed + p.bins * bin_bytes<T>(p.together) > std::min(limits.shared_bytes, size_t{48} << 10)) {
    p.bins /= 2;
  }
  p.tiles = ceil_div<int64_t>(call.spectrum_size(), p.bins);
  const int64_t blocks = images * call.channels / p.together * p.tiles;
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  const size_t bytes = p.together == 1 ? 0 : fixed + p.bins * bin_bytes<T>(p.together);
  return launch(amplitude_mix_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kMixThreads), bytes, stream, p);
}

template <typename T>
Status mix(const Call& call, const AmplitudeMixParams& params, void* workspace, void* stream) {
  DeviceLimits limits;
  Status status = current_device_limits(&limits);
  const size_t colors = params.color ? 4 * static_cast<size_t>(params.channels) * sizeof(Complex<T>) : 0;
  if (status == Status::ok && (mix_row_bytes<T>(call.plan) > limits.shared_bytes || colors > limits.shared_bytes ||
                               !filter::fits_columns(call.plan, sizeof(T), limits.shared_bytes))) {
    status = Status::unsupported_size;
  }
  if (status != Status::ok) {
    return status;
  }
  Workspace pieces(workspace);
  const MixMemory<T> memory(call, pieces);
  const auto then = [&](auto&& run) {
    if (status == Status::ok) {
      status = run();
    }
  };
  status = filter::prepare(call, Masks{}, memory.prepared, stream);
  const int64_t chunk = mix_chunk<T>(call);
  const Planes x = planes_of(params.x);
  for (int64_t image = 0; image < call.batch && status == Status::ok; image += chunk) {
    const int64_t images = std::min(chunk, call.batch - image);
    const int64_t first = image * call.channels;
    const int64_t count = images * call.channels;
    Complex<T>* const partner = memory.own + count * call.spectrum_size();
    then([&] { return forward_columns(call, memory.prepared, x, false, first, count, memory.own, limits, stream); });
    then([&] {
      return forward_columns(call, memory.prepared, planes_of(params.other), true, first, count, partner, limits,
                             stream);
    });
    then([&] { return transform_rows(call, memory.prepared, false, memory.own, 2 * count, limits, stream); });
    then([&] { return mix_spectra(call, memory, params, image, images, limits, stream); });
    then([&] { return transform_rows(call, memory.prepared, true, memory.own, count, limits, stream); });
    then([&] {
      return back_columns(call, memory.prepared, planes_of(params.out), x, first, count, memory.own, limits, stream);
    });
  }
  return status;
}

// The entries of a filter's table are here the images of `other`.
bool make_mix_call(const AmplitudeMixParams& p, Call* call) {
  if (!make_call(p.batch, p.channels, p.height, p.width, p.dtype, call)) {
    return false;
  }
  call->mask_entries = p.others;
  call->index = p.index;
  call->index_stride = p.index_stride;
  call->clip = p.clip;
  call->low = p.low;
  call->high = p.high;
  return true;
}

}  // namespace
}  // namespace spectra

size_t amplitude_mix_workspace(const AmplitudeMixParams& p) {
  spectra::Call call;
  if (!spectra::make_mix_call(p, &call)) {
    return 0;  // the call itself says why
  }
  return p.dtype == DType::f64 ? spectra::mix_bytes<double>(call) : spectra::mix_bytes<float>(call);
}

Status amplitude_mix(const AmplitudeMixParams& p, void* workspace, void* stream) {
  spectra::Call call;
  if (!spectra::make_mix_call(p, &call)) {
    return Status::unsupported_size;
  }
  if (call.planes() == 0) {
    return Status::ok;
  }
  return p.dtype == DType::f64 ? spectra::mix<double>(call, p, workspace, stream)
                               : spectra::mix<float>(call, p, workspace, stream);
}

}  // namespace sturdy::cuda
