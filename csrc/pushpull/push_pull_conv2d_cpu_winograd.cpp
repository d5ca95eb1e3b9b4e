// Winograd's form of PushPull convolution on the CPU: lays out one call and hands its parts to the kernels of the
// machine's instruction set. How work is cut up depends on sizes alone, so results do not depend on the number of
// threads.
#include <algorithm>
#include <new>

#include "common/cpu_features.h"
#include "common/scratch.h"
#include "pushpull/push_pull_conv2d_cpu_channels.h"
#include "pushpull/push_pull_conv2d_cpu_winograd_plan.h"

namespace sturdy {
namespace cpu {
namespace {

constexpr int64_t kTasksWanted = 32;  // enough for any machine's threads to share a small batch

// What transforming the input of a tile costs, in filters whose outputs could be computed meanwhile.
constexpr double kTransformFilters = 8;
constexpr double kMostExtraWork = 1.25;

// When it is worth while, as measured on one machine with AVX-512.
constexpr int64_t kLeastFilters = 8;  // of a group
constexpr int64_t kLeastGain = 14;    // tenths: multiplications of the direct form over those of this
constexpr int64_t kSmallFilterBytes = int64_t{64} << 10;
constexpr int64_t kTilesPerImage = 40;

// Cuts the images into tasks. Chunks of filter blocks cost transforming the input again, ranges of rows cost computing
// the rows that pooling shares again: of the cuts that give the most tasks, up to those wanted, the one that costs the
// least, and none that costs too much.
void cut(WinogradPlan& plan) {
  const double filters = static_cast<double>(plan.out_group);
  int64_t most = 0;
  double least_work = 0;
  for (int64_t chunks = 1; chunks <= std::min(plan.blocks, kTasksWanted); chunks++) {
    for (int64_t items = 1; items <= std::min(plan.tiles_h, kTasksWanted); items++) {
      const int64_t rows = divide_up(plan.tiles_h, items);
      const double shared = items == 1 ? 1.0 : 1.0 + 2.0 * static_cast<double>(plan.lag) / static_cast<double>(rows);
      const double repeats = static_cast<double>(divide_up(chunks, plan.geometry.groups));
      const double work = shared * (kTransformFilters * repeats + filters) / (kTransformFilters + filters);
      const int64_t tasks = std::min(kTasksWanted, plan.geometry.batch * chunks * divide_up(plan.tiles_h, rows));
      const bool first = most == 0;
      if (first || (work <= kMostExtraWork && (tasks > most || (tasks == most && work < least_work)))) {
        most = tasks;
        least_work = work;
        plan.item_tile_rows = rows;
        plan.items_per_image = divide_up(plan.tiles_h, rows);
        plan.block_chunks = chunks;
      }
    }
  }
}

}  // namespace

WinogradPlan make_winograd_plan(const PushPullGeometry& g, int64_t lanes, int64_t block) {
  WinogradPlan plan{};
  plan.geometry = g;
  plan.in_group = g.in_channels / g.groups;
  plan.out_group = g.out_channels / g.groups;
  plan.lanes = lanes;
  plan.block = block;
  plan.blocks_per_group = divide_up(plan.out_group, block);
  plan.blocks = g.groups * plan.blocks_per_group;

  plan.vertical.count = winograd_terms(g.kernel_h, g.stride_h);
  plan.horizontal.count = winograd_terms(g.kernel_w, g.stride_w);
  plan.planes = plan.vertical.count * plan.horizontal.count * plan.in_group;
  plan.tiles_h = divide_up(g.out_h, 2);
  plan.tiles_w = divide_up(g.out_w, 2);

  plan.extent_h = g.stride_h + g.kernel_h;
  plan.extent_w = g.stride_w + g.kernel_w;
  plan.phases = 2 * g.stride_w;
  plan.phase_pitch = round_up(plan.tiles_w + (plan.extent_w - 1) / plan.phases, lanes);
  plan.row_pitch = plan.phases * plan.phase_pitch;
  plan.tile_pitch = round_up(plan.tiles_w, lanes);

  plan.half_h = std::min(g.pool_h / 2, g.out_h - 1);
  plan.half_w = std::min(g.pool_w / 2, g.out_w - 1);
  plan.lag = divide_up(plan.half_h, 2);

  const int64_t row_bytes = plan.planes * plan.tiles_w * static_cast<int64_t>(sizeof(float));
  set_winograd_band(plan, std::clamp<int64_t>(kWinogradBandBytes / row_bytes, 1, plan.tiles_h));
  return plan;
}

void set_winograd_band(WinogradPlan& plan, int64_t tile_rows) {
  plan.band_tile_rows = tile_rows;
  // The last row is stored in whole vectors, and a vector of zeros behind it. An odd number of cache lines keeps the
  // planes from falling on few sets of a cache.
  const int64_t line = 16;
  const int64_t used = (tile_rows - 1) * plan.tiles_w + plan.tile_pitch + plan.lanes;
  plan.plane_pitch = (divide_up(used, line) | 1) * line;
}

void place_winograd(WinogradPlan& plan, Arena& arena) {
  plan.vertical.terms = arena.take<WinogradTerm>(plan.vertical.count);
  plan.horizontal.terms = arena.take<WinogradTerm>(plan.horizontal.count);
  plan.term_planes = arena.take<int64_t>(plan.vertical.count * plan.horizontal.count);
  plan.position_offsets = arena.take<int64_t>(plan.extent_w);
  plan.row_weights = arena.take<float>(2 * plan.tiles_h);
  plan.column_weights = arena.take<float>(2 * plan.tiles_w + plan.lanes);
  const int64_t filters = plan.blocks * plan.block;
  plan.filters = arena.take<float>(plan.planes * filters);
  float** const arrays[] = {&plan.lowest, &plan.highest,    &plan.lowest_share, &plan.highest_share,
                            &plan.range,  &plan.inhibition, &plan.bias};
  for (float** array : arrays) {
    *array = arena.take<float>(filters);
  }
}

void fill_winograd(WinogradPlan& plan, const ChannelView& inhibition, const ChannelView& bias) {
  const PushPullGeometry& g = plan.geometry;
  fill_winograd_axis(plan.vertical, g.kernel_h, g.stride_h);
  fill_winograd_axis(plan.horizontal, g.kernel_w, g.stride_w);
  int64_t plane = 0;
  for (int pattern = 0; pattern < kWinogradPatterns; pattern++) {
    plan.plane_begin[pattern] = plane;
    for (int64_t v = plan.vertical.begin[pattern / 4]; v < plan.vertical.begin[pattern / 4 + 1]; v++) {
      for (int64_t h = plan.horizontal.begin[pattern % 4]; h < plan.horizontal.begin[pattern % 4 + 1]; h++) {
        plan.term_planes[v * plan.horizontal.count + h] = plane;
        plane += plan.in_group;
      }
    }
  }
  plan.plane_begin[kWinogradPatterns] = plane;

  for (int64_t i = 0; i < plan.extent_w; i++) {
    plan.position_offsets[i] = i % plan.phases * plan.phase_pitch + i / plan.phases;
  }

  for (int64_t i = 0; i < 2 * plan.tiles_h; i++) {
    plan.row_weights[i] = i < g.out_h ? 1.0f / static_cast<float>(window_cells(i, plan.half_h, g.out_h)) : 0.0f;
  }
  for (int64_t i = 0; i < 2 * plan.tiles_w + plan.lanes; i++) {
    plan.column_weights[i] = i < g.out_w ? 1.0f / static_cast<float>(window_cells(i, plan.half_w, g.out_w)) : 0.0f;
  }

  std::fill_n(plan.inhibition, plan.blocks * plan.block, 0.0f);
  std::fill_n(plan.bias, plan.blocks * plan.block, 0.0f);
  for (int64_t o = 0; o < g.out_channels; o++) {
    const int64_t at = o / plan.out_group * plan.blocks_per_group * plan.block + o % plan.out_group;
    plan.inhibition[at] = static_cast<float>(inhibition.data != nullptr ? read_channel(inhibition, o) : g.strength);
    plan.bias[at] = bias.data != nullptr ? static_cast<float>(read_channel(bias, o)) : 0.0f;
  }
}

const WinogradKernels& winograd_kernels(DType dtype) { return STURDY_ON_CPU_ISA(winograd_kernels(dtype)); }

bool winograd_gains(const PushPullGeometry& g) {
  const bool empty = g.batch * g.in_channels * g.out_channels * g.out_h * g.out_w * g.kernel_h * g.kernel_w == 0;
  if (empty || g.dtype == DType::f64 || g.channel_range || g.dilation_h != 1 || g.dilation_w != 1) {
    return false;
  }
  const int64_t direct = 4 * g.kernel_h * g.kernel_w;
  return g.out_channels / g.groups >= kLeastFilters && 10 * direct >= kLeastGain * winograd_products(g);
}

int64_t winograd_products(const PushPullGeometry& g) {
  return winograd_terms(g.kernel_h, g.stride_h) * winograd_terms(g.kernel_w, g.stride_w);
}

bool winograd_applies(const PushPullForwardParams& params) {
  const PushPullGeometry& g = params.geometry;
  if (!winograd_gains(g) || params.out.stride[3] != 1) {
    return false;
  }
  // Large filters are worth reading again for each image that has enough tiles. The batch is not asked: an image alone
  // and the same image among others must have the same bits.
  const int64_t filter_bytes =
      winograd_products(g) * g.in_channels / g.groups * g.out_channels * static_cast<int64_t>(sizeof(float));
  const int64_t tiles = divide_up(g.out_h, 2) * divide_up(g.out_w, 2);
  return filter_bytes <= kSmallFilterBytes || tiles >= kTilesPerImage;
}

Status winograd_forward(const PushPullForwardParams& params, const Threads& threads) {
  const PushPullGeometry& g = params.geometry;
  const WinogradKernels& kernel = winograd_kernels(g.dtype);
  WinogradPlan plan = make_winograd_plan(g, kernel.lanes, kernel.block);
  cut(plan);
  Arena sizes(nullptr);
  place_winograd(plan, sizes);
  Arena arena(host_scratch(ScratchSlot::call, sizes.used()));
  place_winograd(plan, arena);
  fill_winograd(plan, params.inhibition, params.bias);
  Status status = threads(plan.blocks, 4,
                          [&](int64_t begin, int64_t end) { kernel.pack_filters(plan, params.weight, begin, end); });
  if (status == Status::ok) {
    status = threads(g.batch * plan.items_per_image * plan.block_chunks, 1,
                     [&](int64_t begin, int64_t end) { kernel.forward(plan, params, begin, end); });
  }
  trim_host_scratch(ScratchSlot::call);
  return status;
}

}  // namespace cpu
}  // namespace sturdy
