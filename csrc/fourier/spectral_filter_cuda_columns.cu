// Columns of planes for spectral_filter: pixels to spectra and back, by way of a tile of columns in shared memory.
#include <algorithm>

#include "fourier/spectral_filter_cuda_passes.cuh"

// ptxas-budget: spectral_filter_columns_kernel 255

namespace sturdy::cuda::filter {
namespace {

constexpr int kRowsAtOnce = 8;     // that a thread has under way between shared and global memory
constexpr int kTileValues = 4096;  // of a tile, at the least, where there are as many
constexpr int kLines = 32;         // columns of a tile: 128 bytes of pixels

template <typename T>
struct ColumnsIo {
  struct Place {
    fft::Line line;
  };

  const ColumnsCall<T>& p;
  Complex<T>* memory;
  int64_t first_line;  // among the pairs of columns of all planes
  int count;           // of lines

  STURDY_DEVICE const PlanePlan& plan() const { return p.call.plan; }
  STURDY_DEVICE Complex<T>* data() const { return memory; }
  STURDY_DEVICE const Axis& axis(unsigned) const { return plan().down; }
  STURDY_DEVICE const AxisTables<T>& tables(unsigned) const { return p.prepared.down; }
  STURDY_DEVICE int lines(unsigned) const { return count; }
  STURDY_DEVICE Place place(unsigned, int line) const { return {fft::whole_line(line, p.stride)}; }
  STURDY_DEVICE T mask(const Place&, int) const { return T(1); }
  STURDY_DEVICE int mirror(const Place&) const { return 0; }
  STURDY_DEVICE bool own_mirror(const Place&) const { return false; }

  STURDY_DEVICE void special(unsigned flags) const {
    if (p.mode == Columns::forward) {
      flags& fft::kSource ? load_pixels() : store_spectra();
    } else {
      flags& fft::kSource ? load_spectra() : store_pixels();
    }
  }

  // The plane, counted from `first`, and the column of a line.
  STURDY_DEVICE int64_t plane_of(int line, int* column) const {
    const int64_t number = first_line + line;
    const int64_t plane = number / plan().pairs;
    *column = static_cast<int>(number - plane * plan().pairs);
    return plane;
  }
  STURDY_DEVICE bool filters(int64_t plane) const {
    return p.call.entry(PlaneNumber(p.call, p.first + plane, p.many).image) >= 0;
  }

  STURDY_DEVICE void load_pixels() const {
    for (fft::Items item(count); item.butterfly * kRowsAtOnce < plan().height; item.next()) {
      int column;
      const int64_t plane = plane_of(item.line, &column);
      const int first = item.butterfly * kRowsAtOnce;
      Complex<T> v[kRowsAtOnce];
      if (p.passing != nullptr) {
        const fft::ColumnPair pair(plan(), plan().width, 1, column);
        const T* pixels = p.passing + plane * plan().height * plan().width;
        fft::detail::load_pairs(pixels, pair, first, 1, plan().height, v);
      } else {
        const fft::ColumnPair pair(plan(), p.pixels.row, p.pixels.column, column);
        PlaneNumber number(p.call, p.first + plane, p.many);
        if (p.follows_index) {
          number.image = max(p.call.entry(number.image), int64_t{0});
        }
        const int64_t at = number.offset(p.pixels);
        const void* pixels = advance(p.pixels.data, at, p.dtype);
        fft::load_pairs(pixels, p.dtype, pair, first, 1, plan().height, v);
      }
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        if (first + i < plan().height) {
          memory[(first + i) * p.stride + item.line] = v[i];
        }
      }
    }
  }

  STURDY_DEVICE Complex<T>* spectrum(int64_t plane, int row) const {
    return p.spectra + (plane * plan().kept + row) * plan().width;
  }

  // Tells the halves of columns apart.
  STURDY_DEVICE void store_spectra() const {
    for (fft::Items item(count); item.butterfly < plan().kept; item.next()) {
      int column;
      const int64_t plane = plane_of(item.line, &column);
      const RowEntry row = p.prepared.rows[item.butterfly];
      const int mirror = row.second < plan().height ? row.second : row.first;
      const Complex<T> a = memory[row.first * p.stride + item.line];
      const Complex<T> b = memory[mirror * p.stride + item.line];
      Complex<T>* const to = spectrum(plane, item.butterfly) + column;
      to[0] = {a.re + b.re, a.im - b.im};
      if (column + plan().pairs < plan().width) {
        to[plan().pairs] = {a.im + b.im, b.re - a.re};
      }
    }
  }

  // Puts them together.
  STURDY_DEVICE void load_spectra() const {
    for (fft::Items item(count); item.butterfly < plan().kept; item.next()) {
      int column;
      const int64_t plane = plane_of(item.line, &column);
      const RowEntry row = p.prepared.rows[item.butterfly];
      const Complex<T>* const from = spectrum(plane, item.butterfly) + column;
      const Complex<T> a = from[0];
      const Complex<T> b = column + plan().pairs < plan().width ? from[plan().pairs] : Complex<T>{T(0), T(0)};
      if (row.second < plan().height) {
        memory[row.first * p.stride + item.line] = {a.re - b.im, a.im + b.re};
        memory[row.second * p.stride + item.line] = {a.re + b.im, b.re - a.im};
      } else {
        memory[row.first * p.stride + item.line] = {a.re, b.re};
      }
    }
  }

  STURDY_DEVICE void store_pixels() const {
    const T low = static_cast<T>(p.call.low);
    const T high = static_cast<T>(p.call.high);
    for (fft::Items item(count); item.butterfly * kRowsAtOnce < plan().height; item.next()) {
      int column;
      const int64_t plane = plane_of(item.line, &column);
      const int first = item.butterfly * kRowsAtOnce;
      const PlaneNumber number(p.call, p.first + plane, p.many);
      if (p.call.entry(number.image) < 0) {
        continue;
      }
      Complex<T> v[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        v[i] = memory[min(first + i, plan().height - 1) * p.stride + item.line];
      }
      if (p.mode == Columns::gated) {
        const fft::ColumnPair from(plan(), p.gradient.row, p.gradient.column, column);
        gate(p.call, advance(p.gradient.data, number.offset(p.gradient), p.dtype), from, first, 1, v);
        const fft::ColumnPair to(plan(), plan().width, 1, column);
        fft::detail::store_pairs(p.passing + plane * plan().height * plan().width, to, first, 1, plan().height, v);
        continue;
      }
      if (p.clamped) {
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
          v[i] = {clamp(v[i].re, low, high), clamp(v[i].im, low, high)};
        }
      }
      const fft::ColumnPair to(plan(), p.pixels.row, p.pixels.column, column);
      fft::store_pairs(advance(p.pixels.data, number.offset(p.pixels), p.dtype), p.dtype, to, first, 1, plan().height,
                       v);
    }
  }

  // Images without a mask, bit by bit.
  STURDY_DEVICE void copy() const {
    for (fft::Items item(count); item.butterfly < plan().height; item.next()) {
      int column;
      const int64_t plane = plane_of(item.line, &column);
      const PlaneNumber number(p.call, p.first + plane, p.many);
      if (p.call.entry(number.image) >= 0) {
        continue;
      }
      for (int c = column; c < plan().width; c += plan().pairs) {
        const int64_t from = number.offset(p.copied) + item.butterfly * p.copied.row + c * p.copied.column;
        const int64_t to = number.offset(p.pixels) + item.butterfly * p.pixels.row + c * p.pixels.column;
        switch (fft::dtype_bytes(p.dtype)) {
          case 8:
            static_cast<uint64_t*>(p.pixels.data)[to] = static_cast<const uint64_t*>(p.copied.data)[from];
            break;
          case 4:
            static_cast<uint32_t*>(p.pixels.data)[to] = static_cast<const uint32_t*>(p.copied.data)[from];
            break;
          default:
            static_cast<uint16_t*>(p.pixels.data)[to] = static_cast<const uint16_t*>(p.copied.data)[from];
            break;
        }
      }
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kPassThreads, kPassBlocks<T>) spectral_filter_columns_kernel(ColumnsCall<T> p) {
  STURDY_DYNAMIC_SHARED(Complex<T>, memory);
  const int64_t first = int64_t{blockIdx.x} * p.lines;
  const int64_t left = p.count * p.call.plan.pairs - first;
  const ColumnsIo<T> io = {p, memory, first, static_cast<int>(min(int64_t{p.lines}, left))};
  bool filters = false;
  bool copies = false;
  for (int line = static_cast<int>(threadIdx.x); line < io.count; line += kPassThreads) {
    int column;
    const bool masked = io.filters(io.plane_of(line, &column));
    filters = filters || masked;
    copies = copies || !masked;
  }
  if (__syncthreads_or(filters ? 1 : 0)) {
    fft::run_program<fft::kInverse, T>(p.program, io);
  }
  if (__syncthreads_or(copies ? 1 : 0) && p.mode == Columns::back) {
    io.copy();
  }
}

size_t columns_bytes(const PlanePlan& plan, size_t value_bytes, int lines) {
  return static_cast<size_t>(std::max(plan.height, plan.down.m)) * (lines | 1) * 2 * value_bytes;
}

// Half of a block's shared memory where that leaves whole sectors of pixels, so that two blocks take turns.
int choose_lines(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes) {
  int lines = kLines;
  while (lines < 8 * kLines && lines * plan.height < kTileValues) {
    lines *= 2;
  }
  while (lines > 1 && columns_bytes(plan, value_bytes, lines) > (lines > 8 ? shared_bytes / 2 : shared_bytes)) {
    lines /= 2;
  }
  return lines;
}

}  // namespace

bool fits_columns(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes) {
  return columns_bytes(plan, value_bytes, 1) <= shared_bytes;
}

template <typename T>
Status run_columns(ColumnsCall<T> p, const DeviceLimits& limits, void* stream) {
  const PlanePlan& plan = p.call.plan;
  p.lines = choose_lines(plan, sizeof(T), limits.shared_bytes);
  p.stride = p.lines | 1;
  fft::ProgramBuilder builder(&p.program);
  builder.special(fft::kSource);
  builder.transform(plan.down, 0, p.mode != Columns::forward, 0, 0);
  builder.special(fft::kTarget);
  const int64_t blocks = ceil_div<int64_t>(p.count * plan.pairs, p.lines);
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  if (blocks == 0) {
    return Status::ok;
  }
  return launch(spectral_filter_columns_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kPassThreads),
                columns_bytes(plan, sizeof(T), p.lines), stream, p);
}

template Status run_columns<float>(ColumnsCall<float>, const DeviceLimits&, void*);
template Status run_columns<double>(ColumnsCall<double>, const DeviceLimits&, void*);

}  // namespace sturdy::cuda::filter
