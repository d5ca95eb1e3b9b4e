// Rows of half spectra for spectral_filter: a tile of them in shared memory is transformed, multiplied and summed.
#include "fourier/fft_cuda_rows.cuh"
#include "fourier/spectral_filter_cuda_passes.cuh"

// ptxas-budget: spectral_filter_rows_kernel 255

namespace sturdy::cuda::filter {
namespace {

template <typename T>
struct RowsIo : fft::RowTile<T> {
  struct Place {
    fft::Line line;
    const T* mask;
  };

  const T* masks;

  STURDY_DEVICE Place place(unsigned, int line) const {
    return {fft::whole_line(line * this->stride, 1), masks + this->first + line};
  }
  STURDY_DEVICE T mask(const Place& at, int element) const {
    return __ldg(at.mask + int64_t{element} * this->plan.kept);
  }
  STURDY_DEVICE int mirror(const Place&) const { return 0; }
  STURDY_DEVICE bool own_mirror(const Place&) const { return false; }
};

template <typename T>
__global__ void __launch_bounds__(kPassThreads, 2) spectral_filter_rows_kernel(RowsCall<T> p) {
  STURDY_DYNAMIC_SHARED(Complex<T>, memory);
  const Call& call = p.call;
  const int width = call.plan.width;
  const int64_t size = call.spectrum_size();
  const int64_t item = int64_t{blockIdx.x} / p.tiles;
  const int first = static_cast<int>(int64_t{blockIdx.x} % p.tiles) * p.rows;
  const int count = min(p.rows, call.plan.kept - first);
  RowsIo<T> io = {{call.plan, p.prepared.across, memory, first, count, p.stride}, p.prepared.masks};
  Complex<T>* const second = memory + p.rows * p.stride;  // gather: the sum; product: F(x)
  T* const sum = reinterpret_cast<T*>(second + p.rows * p.stride);

  // The spectra this block goes through: [begin, end) in steps.
  int64_t begin = 0;
  int64_t end = call.many;
  int64_t step = 1;
  int64_t unit = item;
  int64_t wanted_entry = 0;
  int64_t wanted_filtered = 0;
  int64_t wanted_channel = 0;
  if (p.mode == Rows::filter) {
    unit = item / call.many;
    begin = item % call.many;
    end = begin + 1;
  } else if (p.mode == Rows::product) {
    const int64_t id = item / p.pieces;
    const int64_t piece = item % p.pieces;
    wanted_entry = id / (call.many * call.mask_channels);
    wanted_filtered = id / call.mask_channels % call.many;
    wanted_channel = id % call.mask_channels;
    begin = ((piece - p.first) % p.pieces + p.pieces) % p.pieces;
    end = p.count;
    step = p.pieces;
  }
  if (p.mode == Rows::product) {
    for (int i = static_cast<int>(threadIdx.x); i < io.count * width; i += kPassThreads) {
      sum[i] = T(0);
    }
  } else if (p.mode == Rows::gather) {
    for (fft::Items element(width); element.butterfly < io.count; element.next()) {
      second[element.butterfly * p.stride + element.line] = {T(0), T(0)};
    }
  }
  __syncthreads();
  if (p.mode != Rows::product && call.entry((p.first + unit) / call.channels) < 0) {
    return;  // copied
  }
  // Turns of the loop: each loads a spectrum and transforms it; two turns a plane for a product, and one more at the
  // end of a gathering, which goes back.
  bool of_image = p.mode == Rows::product;
  for (int64_t i = begin;;) {
    const bool going_back = i >= end;
    if (going_back && p.mode != Rows::gather) {
      break;
    }
    if (p.mode == Rows::product) {
      unit = i;
      const int64_t number = p.first + unit;
      const int64_t channel = number % call.channels;
      if (call.entry(number / call.channels) != wanted_entry || (call.mask_channels > 1 && channel != wanted_channel)) {
        i += step;
        continue;
      }
      io.load(of_image ? p.images + unit * size : p.results + (unit * call.many + wanted_filtered) * size);
    } else if (p.mode == Rows::filter) {
      io.load(p.images + unit * size);
    } else if (!going_back) {
      io.load(p.results + (unit * call.many + i) * size);
    } else {
      for (fft::Items element(width); element.butterfly < io.count; element.next()) {
        const int at = element.butterfly * p.stride + element.line;
        memory[at] = second[at];
      }
      __syncthreads();
    }
    if (p.mode != Rows::product) {
      const int64_t number = p.first + unit;
      const int64_t id = call.mask_id(call.entry(number / call.channels), going_back ? 0 : i, number % call.channels);
      io.masks = p.prepared.masks + id * call.mask_size();
    }
    fft::run_program<fft::kRows | fft::kInverse | fft::kMiddle | fft::kMask, T>(going_back ? p.back : p.forward, io);
    if (p.mode == Rows::filter) {
      io.store(p.results + (unit * call.many + i) * size);
    } else if (going_back) {
      io.store(p.images + unit * size);
      break;
    } else if (p.mode == Rows::gather) {
      for (fft::Items element(width); element.butterfly < io.count; element.next()) {
        const int at = element.butterfly * p.stride + element.line;
        second[at] = second[at] + memory[at];
      }
      __syncthreads();
    } else {
      for (fft::Items element(width); element.butterfly < io.count; element.next()) {
        const int at = element.butterfly * p.stride + element.line;
        const Complex<T> value = memory[at];
        if (of_image) {
          second[at] = value;
        } else {
          sum[element.butterfly * width + element.line] += second[at].re * value.re + second[at].im * value.im;
        }
      }
      __syncthreads();
      of_image = !of_image;
      i += of_image ? step : 0;
      continue;
    }
    i += step;
  }
  if (p.mode == Rows::product) {
    T* const sums = p.sums + item * size + int64_t{first} * width;
    for (int i = static_cast<int>(threadIdx.x); i < io.count * width; i += kPassThreads) {
      sums[i] = p.begin ? sum[i] : sums[i] + sum[i];
    }
  }
}

}  // namespace

template <typename T>
Status launch_rows(const RowsCall<T>& rows, int64_t items, size_t shared_bytes, void* stream) {
  const int64_t blocks = items * rows.tiles;
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  if (blocks == 0) {
    return Status::ok;
  }
  return launch(spectral_filter_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kPassThreads), shared_bytes,
                stream, rows);
}

template Status launch_rows<float>(const RowsCall<float>&, int64_t, size_t, void*);
template Status launch_rows<double>(const RowsCall<double>&, int64_t, size_t, void*);

}  // namespace sturdy::cuda::filter
