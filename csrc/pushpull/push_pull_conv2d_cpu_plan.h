// How the CPU kernels of PushPull convolution lay out and cut up one call, and the table of kernels that one
// instruction set offers. Plain data and function pointers only: this header is seen by sources compiled for different
// instruction sets.
//
// Lanes of a vector are output channels. A "panel" is the one or two vectors of channels that a register tile works on;
// panels never cross a group, unused lanes are computed on zero weights and dropped. The input enters as broadcasts
// from a zero-padded copy in which columns are split by their phase modulo the stride, so that neighbouring outputs
// read neighbouring elements whatever stride and dilation are: a tap is just an offset into that copy.
#pragma once

#include <cstdint>

#include "common/cpu_features.h"
#include "pushpull/push_pull_conv2d.h"

namespace sturdy {
namespace cpu {

struct PushPullPlan {
  PushPullGeometry geometry;
  int64_t in_group, out_group;  // channels per group
  int64_t taps;                 // in_group * kernel_h * kernel_w, in the order of a contiguous filter
  int64_t planes;               // box maps of a group, and ranges of a filter: 1, or in_group with channel_range
  int64_t plane_channels;       // in_group / planes: the channels that one of them is of

  // Panels of output channels.
  int64_t lanes, vectors, panel;  // panel = lanes * vectors channels
  int64_t panels_per_group, panels;

  // The packed input of one group: [row][channel][phase][column].
  int64_t phases;          // column phases that some tap reads
  int64_t phase_pitch;     // elements of one phase of one row
  int64_t channel_pitch;   // phases * phase_pitch
  int64_t in_row_pitch;    // at least in_group * channel_pitch
  int64_t* phase_columns;  // (phases): the phase, 0 <= phase < stride_w
  int64_t* column_taps;    // (kernel_w): offset of a kernel column within a row of one channel
  int64_t* tap_offsets;    // (taps)

  // Pooling. A window that covers more than the map is clipped, so half windows never exceed it.
  int64_t half_h, half_w;
  void* row_weights;     // (out_h) accumulate type: 1 / rows of the clipped window
  void* column_weights;  // (out_w)

  // Per-channel values in accumulate type, 0 in unused lanes.
  void* filters;  // [panel][tap][channel]
  void* lowest;   // [panel][plane][channel]: least and greatest entry of each filter, or of each slice of one
  void* highest;
  void* lowest_share;  // 1 / number of entries equal to it
  void* highest_share;
  void* range;             // lowest + highest, the m of the pull kernel m - w
  int64_t* plane_offsets;  // (planes) within a row of the box maps
  void* inhibition;
  void* bias;

  // Units of work: an item is a band of output rows of one image, a task one chunk of panels of one or more items.
  int64_t bands, band_rows;
  int64_t panel_chunks;
  int64_t pieces;  // backward: item i is added up in partial sum i % pieces
};

// Partial sums of backward for one piece: [panel]{filter gradient [tap][channel], bias [channel], inhibition [channel],
// range [plane][channel]}.
struct PushPullPartials {
  void* data;             // (pieces, panels, panel_size)
  int64_t panel_size;     // (taps + 2 + planes) * panel
  int64_t first, last;    // the items [first, last) of this round
  void* filter_gradient;  // reduced: written to grad_weight by reduce_weight
  void* bias_gradient;    // reduced, (panels * panel)
  void* inhibition_gradient;
};

// The gradient of input: the same register tile with lanes along input channels, reading a zero-padded copy of the
// gradient at the convolution's output. Beside the out_group planes of that there is one more plane per panel for
// the pull kernel's constant m, whose weights are all one. With channel_range there are out_group more planes instead,
// of the gradient at the pull response. They go through m, a 1 x 1 convolution, to one map per input channel, and that
// is spread by sums over rows and columns: a convolution with ones of one channel alone. Where there are few input
// channels the planes hold what each panel of PushPullPlan adds to each of these maps, and the 1 x 1 convolution adds
// that up.
//
// Input pixels fall into cells of stride_h x stride_w, cell (y + pad_top) / stride_h, and all pixels at one position
// in their cells see the same taps: kernel row k meets position (k * dilation_h) % stride_h, and the output row
// (k * dilation_h) / stride_h above the cell's. With few channels one tile computes whole cells: its lanes are then
// [position][channel] and its taps those of all positions, with zeros where a position does not have one.
struct GradInputPlan {
  bool whole_cells;
  int64_t vectors, panel, panels_per_group;  // panels of lanes
  int64_t planes;                            // out_group + panels_per_group of PushPullPlan, or out_group + pull_planes
  int64_t tap_planes;                        // those that the register tile reads: all, or out_group
  int64_t margin_top, margin_left;           // the farthest that a tap reaches up and left
  int64_t rows, pitch, row_pitch,
      image_pitch;  // [image in round][group][row][plane][column]; row_pitch = planes * pitch
  void* gradient;
  int64_t images;       // per round
  int64_t first, last;  // images of this round

  int64_t phases;        // tap lists: 1 with whole cells, else one for each position in a cell
  int64_t taps;          // of all lists
  int64_t* phase_begin;  // (phases + 1) into the lists
  int64_t* tap_offsets;  // (taps)
  int64_t* tap_sources;  // (taps): (plane * (margin_top + 1) + rows up) * (margin_left + 1) + columns left
  void* filters;         // [group][panel][tap][lane]

  // With channel_range.
  bool sums_panels;       // the planes hold sums of panels
  int64_t pull_planes;    // out_group, or panels_per_group of PushPullPlan * in_group
  int64_t* pull_offsets;  // (pull_planes)
  void* ranges;           // [group][panel][pull plane][lane]: m, or 1 where the plane is of the lane's channel
  void* row_reach;        // [rows up][lane]: 1, but with whole cells 0 where the lane's position is not reached
  void* column_reach;     // [columns left][lane]

  int64_t first_cell_row, cell_rows;  // those that hold input rows
  int64_t first_cell, cells;          // likewise of columns
  int64_t bands, band_rows;           // of cell rows
};

// All functions work on the units [begin, end).
struct PushPullKernels {
  int64_t lanes;
  void (*pack_filters)(const PushPullPlan&, const View4& weight, int64_t begin, int64_t end);      // panels
  void (*forward)(const PushPullPlan&, const PushPullForwardParams&, int64_t begin, int64_t end);  // tasks
  // `grad_input_plan` is null when no gradient of input is wanted.
  void (*backward)(const PushPullPlan&, const PushPullBackwardParams&, const PushPullPartials&,
                   const GradInputPlan* grad_input_plan, int64_t begin, int64_t end);  // tasks
  void (*reduce)(const PushPullPlan&, const PushPullBackwardParams&, const PushPullPartials&, int64_t begin,
                 int64_t end);  // panels
  void (*pack_grad_input_filters)(const PushPullPlan&, const GradInputPlan&, const View4& weight, int64_t begin,
                                  int64_t end);  // groups * panels of input channels
  void (*grad_input)(const PushPullPlan&, const GradInputPlan&, const View4& grad_input, int64_t begin,
                     int64_t end);  // images in round * groups * panels * bands
};

}  // namespace cpu

namespace portable {
const cpu::PushPullKernels& push_pull_kernels(DType dtype);
}
namespace avx2 {
const cpu::PushPullKernels& push_pull_kernels(DType dtype);
}
namespace avx512 {
const cpu::PushPullKernels& push_pull_kernels(DType dtype);
}

}  // namespace sturdy
