// Transforms in shared memory, for the CUDA kernels of the Fourier family: tables of roots, and the interpreter of the
// programs of fft_cuda_plan.cuh.
//
// A warp takes neighbouring lines (columns, or rows whose distance is odd), each thread one butterfly of its line, so
// that accesses meet no bank twice and all lanes need the same roots. Steps back are steps forward on numbers whose
// real and imaginary parts have changed places.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"
#include "fourier/fft_cuda_butterflies.cuh"
#include "fourier/fft_cuda_plan.cuh"

namespace sturdy::cuda::fft {

// ---- tables ----

// What the steps of an axis look up, in global memory.
template <typename T>
struct AxisTables {
  Complex<T>* roots;     // (m): cos and sin of k / m turns
  Complex<T>* chirp;     // (n): exp(-i pi j^2 / n); null without a chirp
  Complex<T>* spectrum;  // (m): of the chirp, in the order of the steps, with the factor 1 / m
};

// A row of the half spectrum: where its frequency and the mirrored one stand, which is where its two parts are kept.
struct RowEntry {
  int frequency;
  int first;   // row in memory of the first `half` elements
  int second;  // row in memory of the others; from H on for a row that is its own mirror image
};

// Room for the tables of an axis.
template <typename T, typename Workspace>
AxisTables<T> take_axis_tables(const Axis& axis, Workspace& workspace) {
  AxisTables<T> tables = {};
  tables.roots = workspace.template take<Complex<T>>(axis.m);
  if (axis.chirped()) {
    tables.chirp = workspace.template take<Complex<T>>(axis.n);
    tables.spectrum = workspace.template take<Complex<T>>(axis.m);
  }
  return tables;
}

// cos and sin of part / whole turns, for 0 <= part < whole.
template <typename T>
STURDY_DEVICE Complex<T> root_of(int part, int whole) {
  double sine;
  double cosine;
  sincospi(2.0 * part / whole, &sine, &cosine);
  return {static_cast<T>(cosine), static_cast<T>(sine)};
}

// Fills the tables; `thread` of `threads` in the grid.
template <typename T>
STURDY_DEVICE void fill_axis_tables(const Axis& axis, const AxisTables<T>& tables, int thread, int threads) {
  for (int i = thread; i < axis.m; i += threads) {
    tables.roots[i] = root_of<T>(i, axis.m);
  }
  if (!axis.chirped()) {
    return;
  }
  const int turn = 2 * axis.n;
  for (int i = thread; i < axis.n; i += threads) {
    const Complex<T> root = root_of<T>(static_cast<int>(int64_t{i} * i % turn), turn);
    tables.chirp[i] = {root.re, -root.im};
  }
  for (int i = thread; i < axis.m; i += threads) {
    const int k = axis.step_frequency(i);
    Complex<double> sum = {1, 0};
    int square = 0;  // j^2 modulo 2 n
    int part = 0;    // j k modulo m
    for (int j = 1; j < axis.n; ++j) {
      square += 2 * j - 1;
      square = square >= turn ? square - turn : square;
      part += k;
      part = part >= axis.m ? part - axis.m : part;
      const double weight = 2.0 * cospi(2.0 * part / axis.m);
      const Complex<double> root = root_of<double>(square, turn);
      sum.re += weight * root.re;
      sum.im += weight * root.im;
    }
    tables.spectrum[i] = {static_cast<T>(sum.re / axis.m), static_cast<T>(sum.im / axis.m)};
  }
}

// Calls visit(rank, k, position of k, position of -k) for each kept row of the spectrum; ranks count in the order of
// positions. All threads of the block; `counts` is shared memory for one number a thread.
template <typename Visit>
STURDY_DEVICE void for_kept_rows(const PlanePlan& plan, int* counts, const Visit& visit) {
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int height = plan.height;
  const int chunk = ceil_div(height, threads);
  const int begin = min(thread * chunk, height);
  const int end = min(begin + chunk, height);
  int count = 0;
  for (int at = begin; at < end; ++at) {
    const int k = plan.down.frequency(at);
    count += at <= plan.down.position(k == 0 ? 0 : height - k) ? 1 : 0;
  }
  counts[thread] = count;
  __syncthreads();
  int rank = 0;
  for (int i = 0; i < thread; ++i) {
    rank += counts[i];
  }
  for (int at = begin; at < end; ++at) {
    const int k = plan.down.frequency(at);
    const int mirrored = plan.down.position(k == 0 ? 0 : height - k);
    if (at <= mirrored) {
      visit(rank++, k, at, mirrored);
    }
  }
}

// ---- the interpreter ----

// Where the elements of a line are in shared memory.
struct Line {
  int first;   // of elements below `half`
  int second;  // of the others, less `half` strides
  int half;
  int stride;

  STURDY_DEVICE int at(int element) const { return (element < half ? first : second) + element * stride; }
};

STURDY_DEVICE Line whole_line(int first, int stride) { return {first, first, 0, stride}; }

// Shares out the butterflies of all lines, lines first.
class Items {
 public:
  STURDY_DEVICE explicit Items(int lines) : lines_(lines) {
    const int threads = static_cast<int>(blockDim.x);
    line = static_cast<int>(threadIdx.x) % lines;
    butterfly = static_cast<int>(threadIdx.x) / lines;
    line_step_ = threads % lines;
    butterfly_step_ = threads / lines;
  }

  STURDY_DEVICE void next() {
    line += line_step_;
    butterfly += butterfly_step_;
    if (line >= lines_) {
      line -= lines_;
      ++butterfly;
    }
  }

  int line, butterfly;

 private:
  int lines_, line_step_, butterfly_step_;
};

// One step. `Allowed` are the flags that occur in the kernel. An Io knows the memory:
//
//   Complex<T>* data()                          shared memory
//   int lines(flags)                            how many lines there are
//   Place place(flags, line)                    what is to be known of one, with a member `line` of type Line
//   const Axis& axis(flags)
//   const AxisTables<T>& tables(flags)
//   T mask(place, element)                      for kMask and kMiddle
//   int mirror(place)                           for kSplit and kMerge: where the row of -k is
//   bool own_mirror(place)                      whether that is the same row
//   void special(flags)                         steps without a radix that are not those of a chirp
template <int R, unsigned Allowed, typename T, typename Io>
STURDY_DEVICE void run_butterflies(const Step& step, const Complex<T>* roots, const Io& io) {
  const unsigned flags = step.flags & Allowed;
  const int span = step.span;
  Complex<T>* const data = io.data();
  for (Items item(io.lines(flags)); item.butterfly < step.butterflies; item.next()) {
    const int block = item.butterfly / span;
    const int within = item.butterfly - block * span;
    const int first = block * span * R + within;
    const int turn = within * step.root_step;
    const auto place = io.place(flags, item.line);
    Complex<T> v[R];
    if constexpr (is_large_prime(R)) {
      const auto load = [&](int i) {
        const Complex<T> value = data[place.line.at(first + i * span)];
        return flags & kInverse ? rotate(swapped(value), load_complex(roots + turn * i)) : value;
      };
      large_prime(load, roots, step.root_step * span, v);
    } else {
      if (R % 2 == 0 && (flags & kSplit)) {
        const int mirror = io.mirror(place);
#pragma unroll
        for (int i = 0; i < R / 2; ++i) {
          const Complex<T> a = data[place.line.first + first + i * span];
          const Complex<T> b = data[mirror + first + i * span];
          v[i] = {a.re + b.re, a.im - b.im};
          v[i + R / 2] = {a.im + b.im, b.re - a.re};
        }
      } else {
#pragma unroll
        for (int i = 0; i < R; ++i) {
          v[i] = data[place.line.at(first + i * span)];
        }
      }
      if (flags & kInverse) {
        v[0] = swapped(v[0]);
#pragma unroll
        for (int i = 1; i < R; ++i) {
          v[i] = rotate(swapped(v[i]), load_complex(roots + turn * i));
        }
      }
#pragma unroll 1  // once, or forward and back around the product
      for (bool last = (flags & kMiddle) == 0;; last = true) {
        Butterfly<R>::run(v);
        if (last) {
          break;
        }
#pragma unroll
        for (int i = 0; i < R; ++i) {
          v[i] = swapped(v[i] * io.mask(place, first + i * span));
        }
      }
    }
    if (flags & (kInverse | kMiddle)) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        v[i] = swapped(v[i]);
      }
    } else if (span > 1) {
#pragma unroll
      for (int i = 1; i < R; ++i) {
        v[i] = rotate(v[i], load_complex(roots + turn * i));
      }
    }
    if (flags & kMask) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        v[i] = v[i] * io.mask(place, first + i * span);
      }
    }
    if (R % 2 == 0 && (flags & kMerge)) {
      const int mirror = io.mirror(place);
      const bool own = io.own_mirror(place);
#pragma unroll
      for (int i = 0; i < R / 2; ++i) {
        const Complex<T> a = v[i];
        const Complex<T> b = v[i + R / 2];
        const int at = first + i * span;
        if (own) {
          data[place.line.first + at] = {a.re, b.re};
        } else {
          data[place.line.first + at] = {a.re - b.im, a.im + b.re};
          data[mirror + at] = {a.re + b.im, b.re - a.im};
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        data[place.line.at(first + i * span)] = v[i];
      }
    }
  }
}

// The products of a chirped transform.
template <typename T, typename Io>
STURDY_DEVICE void run_chirp(unsigned flags, const Io& io) {
  const Axis& axis = io.axis(flags);
  const AxisTables<T>& tables = io.tables(flags);
  const int elements = flags & kChirpOut ? axis.n : axis.m;
  for (Items item(io.lines(flags)); item.butterfly < elements; item.next()) {
    const int element = item.butterfly;
    const auto place = io.place(flags, item.line);
    Complex<T>& value = io.data()[place.line.at(element)];
    if (flags & kSpectrum) {
      value = value * load_complex(tables.spectrum + element);
    } else if (element >= axis.n) {
      value = {T(0), T(0)};
    } else {
      const Complex<T> chirp = load_complex(tables.chirp + element);
      if (flags & kChirpIn) {
        value = (flags & kSwapped ? swapped(value) : value) * chirp;
      } else {
        const Complex<T> product = value * chirp;
        value = flags & kSwapped ? swapped(product) : product;
      }
      if (flags & kMask) {
        value = value * io.mask(place, element);
      }
    }
  }
}

// All steps, with a barrier after each.
template <unsigned Allowed, typename T, typename Io>
STURDY_DEVICE void run_program(const Program& program, const Io& io) {
#pragma unroll 1
  for (int i = 0; i < program.count; ++i) {
    const Step step = program.step[i];
    const Complex<T>* const roots = io.tables(step.flags).roots;
    switch (step.radix) {
      case 0:
        if (step.flags & (kChirpIn | kSpectrum | kChirpOut)) {
          run_chirp<T>(step.flags, io);
        } else {
          io.special(step.flags);
        }
        break;
      case 1:
        run_butterflies<1, Allowed>(step, roots, io);
        break;
      case 2:
        run_butterflies<2, Allowed>(step, roots, io);
        break;
      case 3:
        run_butterflies<3, Allowed>(step, roots, io);
        break;
      case 4:
        run_butterflies<4, Allowed>(step, roots, io);
        break;
      case 5:
        run_butterflies<5, Allowed>(step, roots, io);
        break;
      case 7:
        run_butterflies<7, Allowed>(step, roots, io);
        break;
      case 8:
        run_butterflies<8, Allowed>(step, roots, io);
        break;
      case 11:
        run_butterflies<11, Allowed>(step, roots, io);
        break;
      case 12:
        run_butterflies<12, Allowed>(step, roots, io);
        break;
      case 13:
        run_butterflies<13, Allowed>(step, roots, io);
        break;
      case 14:
        run_butterflies<14, Allowed>(step, roots, io);
        break;
      case 16:
        run_butterflies<16, Allowed>(step, roots, io);
        break;
      case 17:
        run_butterflies<17, Allowed>(step, roots, io);
        break;
      case 19:
        run_butterflies<19, Allowed>(step, roots, io);
        break;
      case 23:
        run_butterflies<23, Allowed>(step, roots, io);
        break;
      default:
        if constexpr (kLargestRadix<T> == 31) {
          if (step.radix == 29) {
            run_butterflies<29, Allowed>(step, roots, io);
          } else {
            run_butterflies<31, Allowed>(step, roots, io);
          }
        }
        break;
    }
    __syncthreads();
  }
}

}  // namespace sturdy::cuda::fft
