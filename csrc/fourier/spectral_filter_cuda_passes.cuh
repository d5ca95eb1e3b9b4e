// The kernels of spectral_filter that leave spectra in global memory between them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fourier/spectral_filter_cuda.cuh"

namespace sturdy::cuda::filter {

constexpr int kPassThreads = 128;

// Blocks on a multiprocessor: what the registers of a butterfly of 31 elements, of 23 in double precision, allow.
template <typename T>
constexpr int kPassBlocks = sizeof(T) == 8 ? 2 : 3;

enum class Columns {
  forward,  // pixels to spectra
  back,     // spectra to pixels
  gated,    // spectra to pixels, where the gradients that pass take their place
};

template <typename T>
struct ColumnsCall {
  Call call;
  Program program;  // made by run_columns, as is what a tile is
  Prepared<T> prepared;
  Columns mode;
  int64_t first, count;  // numbers of the planes
  int64_t many;          // planes of each image and channel
  Planes pixels;         // read or written
  DType dtype;           // of pixels
  Planes gradient;       // for Columns::gated
  Planes copied;         // what images without a mask become, for Columns::back
  Complex<T>* spectra;   // of plane `first` and those after it
  T* passing;            // planes (H, W) likewise: pixels of forward, where they are given; the results of gated
  bool clamped;
  bool follows_index;  // Columns::forward: an image's pixels are those of the entry of the masks that it takes
  int lines, stride;   // of a tile
};

enum class Rows {
  filter,   // each spectrum of an image and channel becomes `many`, each times its mask
  gather,   // the sum of `many` spectra, each times its mask
  product,  // Re(F(x) conj F(g)), summed over the planes of each mask
};

template <typename T>
struct RowsCall {
  Call call;
  Program forward, back;  // filter: all is in `forward`
  Prepared<T> prepared;
  Rows mode;
  int64_t first, count;  // images and channels
  Complex<T>* images;    // spectra of these
  Complex<T>* results;   // and of their `many` results
  T* sums;               // for Rows::product: (mask ids, pieces, kept, W)
  int64_t pieces;
  bool begin;  // sums are new
  int tiles, rows, stride;
};

// Whether the shared memory of a block holds a column.
bool fits_columns(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes);

// Cuts the columns into tiles, and starts the kernel where there is anything to do.
template <typename T>
Status run_columns(ColumnsCall<T> columns, const DeviceLimits& limits, void* stream);

// Likewise for `items` times the tiles of a spectrum.
template <typename T>
Status launch_rows(const RowsCall<T>& rows, int64_t items, size_t shared_bytes, void* stream);

}  // namespace sturdy::cuda::filter
