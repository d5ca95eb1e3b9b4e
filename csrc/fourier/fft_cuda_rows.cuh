// A tile of rows of half spectra in shared memory, for the CUDA kernels of the Fourier family.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "fourier/fft_cuda.cuh"

namespace sturdy::cuda::fft {

// The Io of kernels whose lines are rows, each contiguous in shared memory; rows lie an odd distance apart.
template <typename T>
struct RowTile {
  struct Place {
    Line line;
  };

  const PlanePlan& plan;
  const AxisTables<T>& across;
  Complex<T>* memory;
  int first, count;  // rows
  int stride;

  STURDY_DEVICE Complex<T>* data() const { return memory; }
  STURDY_DEVICE const Axis& axis(unsigned) const { return plan.across; }
  STURDY_DEVICE const AxisTables<T>& tables(unsigned) const { return across; }
  STURDY_DEVICE int lines(unsigned) const { return count; }
  STURDY_DEVICE Place place(unsigned, int line) const { return {whole_line(line * stride, 1)}; }
  STURDY_DEVICE T mask(const Place&, int) const { return T(1); }
  STURDY_DEVICE int mirror(const Place&) const { return 0; }
  STURDY_DEVICE bool own_mirror(const Place&) const { return false; }
  STURDY_DEVICE void special(unsigned) const {}

  // From a half spectrum (kept, W) in global memory; all threads of the block.
  STURDY_DEVICE void load(const Complex<T>* spectrum) const {
    for (Items item(plan.width); item.butterfly < count; item.next()) {
      memory[item.butterfly * stride + item.line] = spectrum[int64_t{first + item.butterfly} * plan.width + item.line];
    }
    __syncthreads();
  }
  STURDY_DEVICE void store(Complex<T>* spectrum) const {
    for (Items item(plan.width); item.butterfly < count; item.next()) {
      spectrum[int64_t{first + item.butterfly} * plan.width + item.line] = memory[item.butterfly * stride + item.line];
    }
  }
};

inline int row_stride(const PlanePlan& plan) { return plan.across.m | 1; }

// Rows of a tile of `row_bytes` each: a few thousand numbers, but at most half of a block's shared memory, so that two
// blocks take turns.
inline int choose_rows(const PlanePlan& plan, size_t row_bytes, size_t shared_bytes) {
  constexpr int enough_values = 4096;
  int rows = 16;
  while (rows < plan.kept && rows * plan.width < enough_values) {
    rows *= 2;
  }
  rows = std::min(rows, plan.kept);
  while (rows > 1 && rows * row_bytes > shared_bytes / 2) {
    rows = (rows + 1) / 2;
  }
  return rows;
}

}  // namespace sturdy::cuda::fft
