// Winograd's form of the backward of PushPull convolution on the CPU: lays out one call and hands its parts to the
// kernels of the machine's instruction set. How work is cut up depends on sizes alone, so results do not depend on the
// number of threads.
#include <algorithm>
#include <new>

#include "common/cpu_features.h"
#include "common/scratch.h"
#include "pushpull/push_pull_conv2d_cpu_channels.h"
#include "pushpull/push_pull_conv2d_cpu_grad_input.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_backward_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTasksWanted = 32;                  // enough for any machine's threads to share a small batch
constexpr int64_t kPartialBytes = int64_t{32} << 20;  // of partial filter gradients
constexpr int64_t kHeldBytes = int64_t{512} << 10;    // of gp held for the sums over tiles: half a second-level cache
constexpr int64_t kTileBytes = int64_t{384} << 10;    // of transformed input and gradients taken at a time
constexpr int64_t kFloat = sizeof(float);

constexpr int64_t kFiltersPerPanel = 32;
constexpr int64_t kCachedFilterBytes = int64_t{256} << 10;
constexpr int64_t kTilesPerImage = 16;
constexpr int64_t kTilesPerLargeImage = 64;

const WinogradBackwardKernels& kernels(DType dtype) { return STURDY_ON_CPU_ISA(winograd_backward_kernels(dtype)); }

WinogradBackwardPlan make_plan(const PushPullGeometry& g, int64_t lanes, int64_t filter_block) {
  WinogradBackwardPlan plan{};
  plan.winograd = make_winograd_plan(g, lanes, filter_block);
  WinogradPlan& w = plan.winograd;
  plan.vectors = w.out_group > lanes ? 2 : 1;
  plan.panel = lanes * plan.vectors;
  plan.panels_per_group = divide_up(w.out_group, plan.panel);
  plan.panels = g.groups * plan.panels_per_group;

  const int64_t tile_bytes = (w.planes + 8 * plan.panel) * kFloat;
  set_winograd_band(w, std::clamp<int64_t>(kTileBytes / (tile_bytes * w.tiles_w), 1, w.tiles_h));

  // Bands of about as many rows as let some panels be held; short bands cost computing the rows that pooling shares
  // again.
  plan.held_panels = std::min<int64_t>(plan.panels_per_group, std::max<int64_t>(1, 64 / plan.panel));
  const int64_t row_bytes = plan.held_panels * plan.panel * g.out_w * kFloat;
  const int64_t least_rows = std::max<int64_t>(8, 8 * w.half_h);
  const int64_t wanted = divide_up(kTasksWanted, g.batch * plan.panels);
  const int64_t fitting = divide_up(g.out_h * row_bytes, kHeldBytes);
  const int64_t bands = std::clamp<int64_t>(std::max(wanted, fitting), 1, std::max<int64_t>(g.out_h / least_rows, 1));
  plan.band_rows = 2 * divide_up(w.tiles_h, bands);
  plan.bands = divide_up(g.out_h, plan.band_rows);
  const int64_t held_bytes = plan.panel * plan.band_rows * g.out_w * kFloat;
  plan.held_panels = std::clamp<int64_t>(kHeldBytes / held_bytes, 1, plan.panels_per_group);

  plan.panel_size = (w.planes + 3 * lanes) * plan.panel;
  const int64_t piece_bytes = plan.panels * plan.panel_size * kFloat;
  plan.pieces = std::min(g.batch * plan.bands, std::clamp<int64_t>(kPartialBytes / piece_bytes, 1, kTasksWanted));
  plan.panel_chunks = std::clamp<int64_t>(divide_up(kTasksWanted, plan.pieces), 1, plan.panels);
  return plan;
}

void place(WinogradBackwardPlan& plan, Arena& arena) {
  place_winograd(plan.winograd, arena);
  plan.plane_offsets = arena.take<int64_t>(plan.winograd.planes);
  plan.partials = arena.take<float>(plan.pieces * plan.panels * plan.panel_size);
  plan.bias_gradient = arena.take<float>(plan.panels * plan.panel);
  plan.inhibition_gradient = arena.take<float>(plan.panels * plan.panel);
}

// Does the view have its channels side by side, and not its columns? The direct form takes such maps as they lie.
bool is_channels_last(const View4& view) { return view.data != nullptr && view.stride[1] == 1 && view.stride[3] != 1; }

}  // namespace

bool winograd_backward_applies(const PushPullBackwardParams& params) {
  const PushPullGeometry& g = params.geometry;
  if (!winograd_gains(g) || is_channels_last(params.grad_out) || is_channels_last(params.push)) {
    return false;
  }
  // The gradients of the transformed filters are read and written for each image: it must have tiles enough for that.
  const int64_t filter_bytes = winograd_products(g) * g.in_channels / g.groups * kFiltersPerPanel * kFloat;
  const int64_t tiles = divide_up(g.out_h, 2) * divide_up(g.out_w, 2);
  return tiles >= (filter_bytes <= kCachedFilterBytes ? kTilesPerImage : kTilesPerLargeImage);
}

Status winograd_backward(const PushPullBackwardParams& params, const Threads& threads) {
  const PushPullGeometry& g = params.geometry;
  const WinogradBackwardKernels& kernel = kernels(g.dtype);
  const WinogradKernels& forward_kernel = winograd_kernels(g.dtype);
  WinogradBackwardPlan plan = make_plan(g, kernel.lanes, forward_kernel.block);
  WinogradPlan& w = plan.winograd;
  const bool want_input = params.grad_input.data != nullptr && g.in_h * g.in_w > 0;
  GradInputCall grad_input(g);
  const auto lay_out = [&](void* block) {
    Arena arena(block);
    place(plan, arena);
    if (want_input) {
      grad_input.place(arena);
    }
    return arena.used();
  };
  lay_out(host_scratch(ScratchSlot::call, lay_out(nullptr)));
  fill_winograd(w, params.inhibition, ChannelView{});
  for (int64_t i = 0; i < w.planes; i++) {
    plan.plane_offsets[i] = i * w.plane_pitch;
  }

  Status status = threads(
      w.blocks, 4, [&](int64_t begin, int64_t end) { forward_kernel.pack_filters(w, params.weight, begin, end); });
  if (want_input && status == Status::ok) {
    status = grad_input.start(params.weight, threads);
  }
  const int64_t images = want_input ? grad_input.images() : g.batch;
  for (int64_t first = 0; first < g.batch && status == Status::ok; first += images) {
    const int64_t last = std::min(g.batch, first + images);
    plan.first = first * plan.bands;
    plan.last = last * plan.bands;
    const GradInputPlan* round = want_input ? &grad_input.round(first, last) : nullptr;
    status = threads(plan.pieces * plan.panel_chunks, 1,
                     [&](int64_t begin, int64_t end) { kernel.backward(plan, params, round, begin, end); });
    if (want_input && status == Status::ok) {
      status = grad_input.run(params.grad_input, threads);
    }
  }
  if (status == Status::ok) {
    status = threads(plan.panels, 1, [&](int64_t begin, int64_t end) { kernel.reduce(plan, params, begin, end); });
  }
  for (int64_t o = 0; o < g.out_channels && status == Status::ok; o++) {
    const int64_t at = o / w.out_group * plan.panels_per_group * plan.panel + o % w.out_group;
    if (params.grad_bias.data != nullptr) {
      write_channel(params.grad_bias, o, plan.bias_gradient[at]);
    }
    if (params.grad_inhibition.data != nullptr) {
      write_channel(params.grad_inhibition, o, plan.inhibition_gradient[at]);
    }
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace cpu
}  // namespace sturdy
