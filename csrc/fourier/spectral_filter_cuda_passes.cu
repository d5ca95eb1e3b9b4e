// spectral_filter of planes of any size, and what sums over several of them: columns, rows and columns back are kernels
// of their own, with half spectra in global memory between them. Planes come in chunks whose spectra fit in half of the
// second-level cache, so that memory sees one read and one write of each plane.
#include <algorithm>

#include "fourier/fft_cuda_rows.cuh"
#include "fourier/spectral_filter_cuda_passes.cuh"

// ptxas-budget: spectral_filter_grad_mask_kernel 64

namespace sturdy::cuda::filter {
namespace {

constexpr int kThreads = 256;

template <typename T>
struct GradMaskCall {
  Call call;
  Prepared<T> prepared;
  const T* sums;
  int64_t pieces;  // 0: no images
  Masks gradient;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) spectral_filter_grad_mask_kernel(GradMaskCall<T> p) {
  const Call& call = p.call;
  const PlanePlan& plan = call.plan;
  const int columns = call.half ? plan.width / 2 + 1 : plan.width;
  const int64_t of_mask = int64_t{plan.height} * columns;
  const int64_t number = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t id = number / of_mask;
  if (id >= call.mask_ids()) {
    return;
  }
  const int row = static_cast<int>(number % of_mask) / columns;
  const int column = static_cast<int>(number % of_mask) % columns;
  int k = call.half ? row : (row + plan.height - plan.height / 2) % plan.height;
  int l = call.half ? column : (column + plan.width - plan.width / 2) % plan.width;
  // Both spectra are doubled, and a value of a half mask that is not its own mirror image stands for two.
  const bool twice = call.half && l != 0 && 2 * l != plan.width;
  const double scale = (twice ? 0.5 : 0.25) / (static_cast<double>(plan.height) * plan.width);
  int rank = p.prepared.ranks[k];
  if (rank < 0) {
    rank = -1 - rank;
    l = l == 0 ? 0 : plan.width - l;
  }
  const int64_t at = int64_t{rank} * plan.width + plan.across.position(l);
  double sum = 0;
  for (int64_t piece = 0; piece < p.pieces; ++piece) {
    sum += static_cast<double>(p.sums[(id * p.pieces + piece) * call.spectrum_size() + at]);
  }
  const int64_t entry = id / (call.many * call.mask_channels);
  const int64_t filtered = id / call.mask_channels % call.many;
  static_cast<T*>(p.gradient.data)[entry * p.gradient.entry + filtered * p.gradient.filtered +
                                   id % call.mask_channels * p.gradient.channel + row * p.gradient.row +
                                   column * p.gradient.column] = static_cast<T>(sum * scale);
}

size_t row_bytes(const PlanePlan& plan, size_t value_bytes) {
  return (4 * static_cast<size_t>(fft::row_stride(plan)) + plan.width) * value_bytes;
}

// The memory of a call between its kernels, for some images and channels at a time.
template <typename T>
struct Scratch {
  int64_t chunk;  // images and channels
  int64_t pieces;
  Complex<T>* images;
  Complex<T>* results;
  T* passing;
  T* sums;
};

int64_t choose_chunk(const Call& call, size_t unit_bytes, const DeviceLimits& limits) {
  const auto fitting = static_cast<int64_t>(limits.cache_bytes / 2 / std::max<size_t>(1, unit_bytes));
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(1, call.planes()));
}

template <typename T>
Scratch<T> take_forward(const Call& call, const DeviceLimits& limits, Workspace& workspace) {
  Scratch<T> scratch = {};
  const int64_t size = call.spectrum_size();
  const int64_t spectra = call.many == 1 ? 1 : 1 + call.many;
  scratch.chunk = choose_chunk(call, static_cast<size_t>(spectra * size) * sizeof(Complex<T>), limits);
  scratch.images = workspace.take<Complex<T>>(scratch.chunk * size);
  scratch.results = call.many == 1 ? scratch.images : workspace.take<Complex<T>>(scratch.chunk * call.many * size);
  return scratch;
}

template <typename T>
Scratch<T> take_backward(const Call& call, bool want_mask, const DeviceLimits& limits, Workspace& workspace) {
  Scratch<T> scratch = {};
  const int64_t size = call.spectrum_size();
  const int64_t pixels = call.clip ? int64_t{call.plan.height} * call.plan.width : 0;
  const size_t bytes = static_cast<size_t>((1 + call.many) * size) * sizeof(Complex<T>) +
                       static_cast<size_t>(call.many * pixels) * sizeof(T);
  scratch.chunk = choose_chunk(call, bytes, limits);
  scratch.images = workspace.take<Complex<T>>(scratch.chunk * size);
  scratch.results = workspace.take<Complex<T>>(scratch.chunk * call.many * size);
  scratch.passing = workspace.take<T>(scratch.chunk * call.many * pixels);
  if (want_mask) {
    const int64_t tiles =
        ceil_div(call.plan.kept, fft::choose_rows(call.plan, row_bytes(call.plan, sizeof(T)), limits.shared_bytes));
    const int64_t blocks = std::max<int64_t>(1, call.mask_ids() * tiles);
    scratch.pieces = std::clamp<int64_t>(4 * limits.multiprocessors / blocks, 1, scratch.chunk);
    scratch.sums = workspace.take<T>(call.mask_ids() * scratch.pieces * size);
  }
  return scratch;
}

// Runs the kernels of one call.
template <typename T>
class Passes {
 public:
  Passes(const Call& call, const Prepared<T>& prepared, const DeviceLimits& limits, void* stream)
      : call_(call), prepared_(prepared), limits_(limits), stream_(stream) {}

  // The chunk that the kernels below work on.
  void choose(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
  }

  Status forward_columns(const Planes& pixels, int64_t many, T* passing, Complex<T>* spectra) const {
    ColumnsCall<T> p = columns_call(Columns::forward, many, spectra);
    p.pixels = pixels;
    p.passing = passing;
    return run_columns(p, limits_, stream_);
  }

  Status back_columns(const Planes& pixels, const Planes& copied, int64_t many, bool clamped,
                      Complex<T>* spectra) const {
    ColumnsCall<T> p = columns_call(Columns::back, many, spectra);
    p.pixels = pixels;
    p.copied = copied;
    p.clamped = clamped;
    return run_columns(p, limits_, stream_);
  }

  Status gated_columns(const Planes& gradient, Complex<T>* spectra, T* passing) const {
    ColumnsCall<T> p = columns_call(Columns::gated, call_.many, spectra);
    p.gradient = gradient;
    p.passing = passing;
    return run_columns(p, limits_, stream_);
  }

  Status filter_rows(Complex<T>* images, Complex<T>* results) const {
    RowsCall<T> p = rows_call(Rows::filter, images, results);
    fft::ProgramBuilder(&p.forward).filter(call_.plan.across, 0, 0);
    return run(p, count_ * call_.many);
  }

  Status gather_rows(Complex<T>* images, Complex<T>* results) const {
    RowsCall<T> p = rows_call(Rows::gather, images, results);
    fft::ProgramBuilder(&p.forward).transform(call_.plan.across, fft::kRows, false, 0, fft::kMask);
    fft::ProgramBuilder(&p.back).transform(call_.plan.across, fft::kRows, true, 0, 0);
    return run(p, count_);
  }

  Status multiply_rows(Complex<T>* images, Complex<T>* results, T* sums, int64_t pieces, bool begin) const {
    RowsCall<T> p = rows_call(Rows::product, images, results);
    fft::ProgramBuilder(&p.forward).transform(call_.plan.across, fft::kRows, false, 0, 0);
    p.sums = sums;
    p.pieces = pieces;
    p.begin = begin;
    return run(p, call_.mask_ids() * pieces);
  }

  Status finish_masks(const T* sums, int64_t pieces, const Masks& gradient) const {
    const int64_t columns = call_.half ? call_.plan.width / 2 + 1 : call_.plan.width;
    const int64_t values = call_.mask_ids() * call_.plan.height * columns;
    const int64_t blocks = ceil_div<int64_t>(values, kThreads);
    if (blocks == 0) {
      return Status::ok;
    }
    if (blocks > max_grid_x) {
      return Status::unsupported_size;
    }
    return launch(spectral_filter_grad_mask_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream_,
                  GradMaskCall<T>{call_, prepared_, sums, pieces, gradient});
  }

 private:
  ColumnsCall<T> columns_call(Columns mode, int64_t many, Complex<T>* spectra) const {
    ColumnsCall<T> p = {};
    p.call = call_;
    p.prepared = prepared_;
    p.mode = mode;
    p.first = first_ * many;
    p.count = count_ * many;
    p.many = many;
    p.dtype = call_.dtype;
    p.spectra = spectra;
    return p;
  }

  RowsCall<T> rows_call(Rows mode, Complex<T>* images, Complex<T>* results) const {
    RowsCall<T> p = {};
    p.call = call_;
    p.prepared = prepared_;
    p.mode = mode;
    p.first = first_;
    p.count = count_;
    p.images = images;
    p.results = results;
    p.pieces = 1;
    p.rows = fft::choose_rows(call_.plan, row_bytes(call_.plan, sizeof(T)), limits_.shared_bytes);
    p.tiles = ceil_div(call_.plan.kept, p.rows);
    p.stride = fft::row_stride(call_.plan);
    return p;
  }

  Status run(const RowsCall<T>& p, int64_t items) const {
    return launch_rows(p, items, p.rows * row_bytes(call_.plan, sizeof(T)), stream_);
  }

  const Call& call_;
  const Prepared<T>& prepared_;
  DeviceLimits limits_;
  void* stream_;
  int64_t first_ = 0;
  int64_t count_ = 0;
};

template <typename T>
size_t backward_bytes(const Call& call, bool want_mask, const DeviceLimits& limits) {
  Workspace workspace(nullptr);
  take_backward<T>(call, want_mask, limits, workspace);
  return workspace.bytes();
}

template <typename T>
size_t forward_bytes(const Call& call, const DeviceLimits& limits) {
  Workspace workspace(nullptr);
  take_forward<T>(call, limits, workspace);
  return workspace.bytes();
}

}  // namespace

bool fits_passes(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes) {
  return fits_columns(plan, value_bytes, shared_bytes) && row_bytes(plan, value_bytes) <= shared_bytes;
}

size_t passes_forward_workspace(const Call& call, size_t value_bytes, const DeviceLimits& limits) {
  return value_bytes == 8 ? forward_bytes<double>(call, limits) : forward_bytes<float>(call, limits);
}

size_t passes_backward_workspace(const Call& call, size_t value_bytes, bool want_mask, const DeviceLimits& limits) {
  return value_bytes == 8 ? backward_bytes<double>(call, want_mask, limits)
                          : backward_bytes<float>(call, want_mask, limits);
}

template <typename T>
Status passes_forward(const Call& call, const Prepared<T>& prepared, const SpectralFilterParams& params,
                      const DeviceLimits& limits, void* workspace, void* stream) {
  Workspace pieces(workspace);
  const Scratch<T> scratch = take_forward<T>(call, limits, pieces);
  Passes<T> passes(call, prepared, limits, stream);
  Status status = Status::ok;
  for (int64_t first = 0; first < call.planes() && status == Status::ok; first += scratch.chunk) {
    passes.choose(first, std::min(scratch.chunk, call.planes() - first));
    status = passes.forward_columns(params.x, 1, nullptr, scratch.images);
    if (status == Status::ok) {
      status = passes.filter_rows(scratch.images, scratch.results);
    }
    if (status == Status::ok) {
      status = passes.back_columns(params.out, params.x, call.many, call.clip, scratch.results);
    }
  }
  return status;
}

template <typename T>
Status passes_backward(const Call& call, const Prepared<T>& prepared, const SpectralFilterBackwardParams& params,
                       bool want_x, const DeviceLimits& limits, void* workspace, void* stream) {
  const bool want_mask = params.grad_mask.data != nullptr;
  Workspace pieces(workspace);
  const Scratch<T> scratch = take_backward<T>(call, want_mask, limits, pieces);
  Passes<T> passes(call, prepared, limits, stream);
  Status status = Status::ok;
  const auto then = [&](auto&& run) {
    if (status == Status::ok) {
      status = run();
    }
  };
  for (int64_t first = 0; first < call.planes() && status == Status::ok; first += scratch.chunk) {
    passes.choose(first, std::min(scratch.chunk, call.planes() - first));
    if (call.clip || want_mask) {
      then([&] { return passes.forward_columns(params.x, 1, nullptr, scratch.images); });
    }
    T* const passing = call.clip ? scratch.passing : nullptr;
    if (call.clip) {
      then([&] { return passes.filter_rows(scratch.images, scratch.results); });
      then([&] { return passes.gated_columns(params.grad_out, scratch.results, passing); });
    }
    then([&] { return passes.forward_columns(params.grad_out, call.many, passing, scratch.results); });
    if (want_mask) {
      then([&] {
        return passes.multiply_rows(scratch.images, scratch.results, scratch.sums, scratch.pieces, first == 0);
      });
    }
    if (want_x) {
      then([&] { return passes.gather_rows(scratch.images, scratch.results); });
      then([&] { return passes.back_columns(params.grad_x, params.grad_out, 1, false, scratch.images); });
    }
  }
  if (want_mask) {
    then([&] { return passes.finish_masks(scratch.sums, call.planes() > 0 ? scratch.pieces : 0, params.grad_mask); });
  }
  return status;
}

template Status passes_forward<float>(const Call&, const Prepared<float>&, const SpectralFilterParams&,
                                      const DeviceLimits&, void*, void*);
template Status passes_forward<double>(const Call&, const Prepared<double>&, const SpectralFilterParams&,
                                       const DeviceLimits&, void*, void*);
template Status passes_backward<float>(const Call&, const Prepared<float>&, const SpectralFilterBackwardParams&, bool,
                                       const DeviceLimits&, void*, void*);
template Status passes_backward<double>(const Call&, const Prepared<double>&, const SpectralFilterBackwardParams&, bool,
                                        const DeviceLimits&, void*, void*);

}  // namespace sturdy::cuda::filter
