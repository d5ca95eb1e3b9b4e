// spectrum_accumulate on CUDA: columns of the images to half spectra in global memory; then each block transforms some
// rows of all images of a group, one after the other, and adds up amplitudes in their order.
#include "fourier/spectra_cuda.cuh"
#include "fourier/spectrum_accumulate.h"

// ptxas-budget: spectrum_accumulate_kernel 255

namespace sturdy::cuda {
namespace spectra {
namespace {

constexpr int kImagesInBlock = 16;  // added up in the type of the transforms before they go to float64

template <typename T>
struct AccumulateCall {
  Call call;
  Program forward;
  Prepared<T> prepared;
  SpectrumAccumulateParams params;
  const Complex<T>* spectra;
  int64_t first, count;  // planes that the spectra are of
  int tiles, rows, stride;
};

template <typename T>
__global__ void __launch_bounds__(filter::kPassThreads, filter::kPassBlocks<T>)
    spectrum_accumulate_kernel(AccumulateCall<T> p) {
  STURDY_DYNAMIC_SHARED(Complex<T>, memory);
  const PlanePlan& plan = p.call.plan;
  const int width = plan.width;
  const int64_t channels = p.params.channels;
  const int64_t id = int64_t{blockIdx.x} / p.tiles;
  const int64_t group = id / channels;
  const int64_t channel = id % channels;
  const int first = static_cast<int>(int64_t{blockIdx.x} % p.tiles) * p.rows;
  const int count = min(p.rows, plan.kept - first);
  const fft::RowTile<T> tile = {plan, p.prepared.across, memory, first, count, p.stride};
  double* const total = reinterpret_cast<double*>(memory + p.rows * p.stride);
  T* const block = reinterpret_cast<T*>(total + p.rows * width);
  // Every thread keeps to the same elements.
  for (fft::Items item(width); item.butterfly < count; item.next()) {
    total[item.butterfly * width + item.line] = 0;
    block[item.butterfly * width + item.line] = T(0);
  }
  const auto flush = [&] {
    for (fft::Items item(width); item.butterfly < count; item.next()) {
      const int at = item.butterfly * width + item.line;
      total[at] += static_cast<double>(block[at]);
      block[at] = T(0);
    }
  };
  int waiting = 0;
  for (int64_t image = p.first / channels; image * channels < p.first + p.count; ++image) {
    const int64_t plane = image * channels + channel - p.first;
    if (plane < 0 || plane >= p.count || p.params.group[image * p.params.group_stride] != group) {
      continue;
    }
    __syncthreads();
    tile.load(p.spectra + plane * p.call.spectrum_size());
    fft::run_program<fft::kRows | fft::kInverse, T>(p.forward, tile);
    for (fft::Items item(width); item.butterfly < count; item.next()) {
      const Complex<T> value = memory[item.butterfly * p.stride + item.line];
      const T square = value.re * value.re + value.im * value.im;
      block[item.butterfly * width + item.line] += p.params.power == 2 ? square : square_root(square);
    }
    if (++waiting == kImagesInBlock) {
      flush();
      waiting = 0;
    }
  }
  flush();
  __syncthreads();
  const int columns = width / 2 + 1;
  const double scale = p.params.power == 1 ? 0.5 : 0.25;  // telling the halves of columns apart doubled the spectra
  const bool begin = p.first == 0 && !p.params.add;
  const int64_t base = id * plan.height * columns;
  const auto put = [&](int row, int column, int at) {
    const double value = scale * total[at];
    const int64_t to = base + int64_t{row} * columns + column;
    if (p.params.out_is_double) {
      double* const out = static_cast<double*>(p.params.out);
      out[to] = begin ? value : out[to] + value;
    } else {
      float* const out = static_cast<float*>(p.params.out);
      out[to] = static_cast<float>(begin ? value : static_cast<double>(out[to]) + value);
    }
  };
  for (fft::Items item(columns); item.butterfly < count; item.next()) {
    const int l = item.line;
    const fft::RowEntry row = p.prepared.rows[first + item.butterfly];
    put(row.frequency, l, item.butterfly * width + plan.across.position(l));
    if (row.second < plan.height) {  // frequency (-k, l) has the amplitude of (k, -l)
      put(plan.height - row.frequency, l, item.butterfly * width + plan.across.position(l == 0 ? 0 : width - l));
    }
  }
}

template <typename T>
size_t accumulate_row_bytes(const PlanePlan& plan) {
  return fft::row_stride(plan) * sizeof(Complex<T>) + plan.width * (sizeof(double) + sizeof(T));
}

// Planes whose spectra are in memory together: whole images of them.
template <typename T>
int64_t accumulate_chunk(const Call& call) {
  const size_t image = static_cast<size_t>(call.channels * call.spectrum_size()) * sizeof(Complex<T>);
  const auto images = static_cast<int64_t>(kChunkBytes / std::max<size_t>(1, image));
  return std::clamp<int64_t>(images, 1, std::max<int64_t>(1, call.batch)) * call.channels;
}

template <typename T>
struct AccumulateMemory {
  Prepared<T> prepared;
  Complex<T>* spectra;

  AccumulateMemory(const Call& call, Workspace& workspace)
      : prepared(take_tables<T>(call, workspace)),
        spectra(workspace.take<Complex<T>>(accumulate_chunk<T>(call) * call.spectrum_size())) {}
};

template <typename T>
size_t accumulate_bytes(const Call& call) {
  Workspace workspace(nullptr);
  const AccumulateMemory<T> memory(call, workspace);
  return workspace.bytes();
}

template <typename T>
Status accumulate(const Call& call, const SpectrumAccumulateParams& params, void* workspace, void* stream) {
  DeviceLimits limits;
  Status status = current_device_limits(&limits);
  const size_t row_bytes = accumulate_row_bytes<T>(call.plan);
  if (status == Status::ok &&
      (row_bytes > limits.shared_bytes || !filter::fits_columns(call.plan, sizeof(T), limits.shared_bytes))) {
    status = Status::unsupported_size;
  }
  if (status != Status::ok) {
    return status;
  }
  Workspace pieces(workspace);
  const AccumulateMemory<T> memory(call, pieces);
  AccumulateCall<T> p = {};
  p.call = call;
  p.forward = fft::make_program(call.plan.across, fft::kRows, false);
  p.prepared = memory.prepared;
  p.params = params;
  p.spectra = memory.spectra;
  p.rows = fft::choose_rows(call.plan, row_bytes, limits.shared_bytes);
  p.tiles = ceil_div(call.plan.kept, p.rows);
  p.stride = fft::row_stride(call.plan);
  const int64_t blocks = params.groups * params.channels * p.tiles;
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  status = filter::prepare(call, Masks{}, memory.prepared, stream);
  const int64_t chunk = accumulate_chunk<T>(call);
  // Without images one round all the same: it writes zeros.
  for (int64_t first = 0; status == Status::ok && (first == 0 || first < call.planes()); first += chunk) {
    p.first = first;
    p.count = std::min(chunk, call.planes() - first);
    status = forward_columns(call, memory.prepared, planes_of(params.x), false, first, p.count, memory.spectra, limits,
                             stream);
    if (status == Status::ok) {
      status = launch(spectrum_accumulate_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(filter::kPassThreads),
                      p.rows * row_bytes, stream, p);
    }
  }
  return status;
}

}  // namespace
}  // namespace spectra

size_t spectrum_accumulate_workspace(const SpectrumAccumulateParams& p) {
  spectra::Call call;
  if (!spectra::make_call(p.batch, p.channels, p.height, p.width, p.dtype, &call)) {
    return 0;  // the call itself says why
  }
  return p.dtype == DType::f64 ? spectra::accumulate_bytes<double>(call) : spectra::accumulate_bytes<float>(call);
}

Status spectrum_accumulate(const SpectrumAccumulateParams& p, void* workspace, void* stream) {
  spectra::Call call;
  if (!spectra::make_call(p.batch, p.channels, p.height, p.width, p.dtype, &call)) {
    return Status::unsupported_size;
  }
  if (p.groups == 0 || p.channels == 0) {
    return Status::ok;
  }
  return p.dtype == DType::f64 ? spectra::accumulate<double>(call, p, workspace, stream)
                               : spectra::accumulate<float>(call, p, workspace, stream);
}

}  // namespace sturdy::cuda
