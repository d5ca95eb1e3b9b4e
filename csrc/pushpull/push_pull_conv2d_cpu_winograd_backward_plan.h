// How Winograd's form of backward lays out and cuts up one call, and the table of its kernels.
//
// The gradient of the filters is summed in Winograd's domain. With Y the 2 x 2 gradients gp of a tile and Z = A' Y A,
//
//   Z0 = y0    Z1 = y0 + y1    Z2 = y0 - y1    Z3 = -y1   along either axis,
//
// the gradient of a transformed filter is the sum over tiles of Z[its pattern] times the transformed input. Lanes of
// that product are filters. The transform of the filters, transposed, is applied once at the end.
//
// Plain data and function pointers only: this header is seen by sources compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "pushpull/push_pull_conv2d_cpu_plan.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_plan.h"

namespace sturdy {
namespace cpu {

struct WinogradBackwardPlan {
  WinogradPlan winograd;  // its band is what the sums over tiles take at a time

  // Panels of filters, as in PushPullPlan.
  int64_t vectors, panel;
  int64_t panels_per_group, panels;

  // An item is a band of rows of one image, a task some panels of one or more items.
  int64_t bands, band_rows;  // even, but for the last
  int64_t panel_chunks;
  int64_t held_panels;  // panels whose gp is held at a time
  int64_t pieces;       // item i is added up in partial sum i % pieces

  int64_t* plane_offsets;  // (planes): i * plane_pitch

  // Partial sums, (pieces, panels): {gradient of transformed filters [plane][filter], then for each filter {bias,
  // inhibition, range}[lane]}.
  float* partials;
  int64_t panel_size;
  int64_t first, last;  // the items [first, last) of this round

  float* bias_gradient;  // reduced, (panels * panel)
  float* inhibition_gradient;
};

// Does this path serve the call, and is it the faster one?
bool winograd_backward_applies(const PushPullBackwardParams& params);

Status winograd_backward(const PushPullBackwardParams& params, const Threads& threads);

// All functions work on the units [begin, end).
struct WinogradBackwardKernels {
  int64_t lanes;
  // `grad_input` is null when no gradient of input is wanted.
  void (*backward)(const WinogradBackwardPlan&, const PushPullBackwardParams&, const GradInputPlan* grad_input,
                   int64_t begin, int64_t end);                                                            // tasks
  void (*reduce)(const WinogradBackwardPlan&, const PushPullBackwardParams&, int64_t begin, int64_t end);  // panels
};

}  // namespace cpu

namespace portable {
const cpu::WinogradBackwardKernels& winograd_backward_kernels(DType dtype);
}
namespace avx2 {
const cpu::WinogradBackwardKernels& winograd_backward_kernels(DType dtype);
}
namespace avx512 {
const cpu::WinogradBackwardKernels& winograd_backward_kernels(DType dtype);
}

}  // namespace sturdy
