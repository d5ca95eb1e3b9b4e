// PushPull convolution on tensor cores, forward. A block takes a tile of 512 pixels: it stages the input under the
// tile, multiplies it with 32 filters at a time and, 16 filters at a time, hands p through shared memory to threads
// that walk down its rows, add up windows and store the result: p and y are written once, the input is read once per
// tile.
//
// Dynamic shared memory of push_pull_tensor_kernel, at most 96 KiB (plan_tensor refuses what needs more):
//   p of 512 pixels and 16 filters in float32 (before that the box on its way)   32 KiB, more under large strides
//   the box of 512 pixels, pooled; where each pixel's first tap lies              4 KiB
//   offsets of the taps                                        8 bytes a word of a chunk
//   one or two stages: planes of the input, filters            4 bytes a word, 32 * 4 bytes a word
// Registers a thread; 128 is what two blocks a multiprocessor leave, of which 64 hold the sums:
// ptxas-budget: push_pull_tensor_kernel 128
// ptxas-budget: pack_weights_kernel 40
//
// None of this has run on a GPU: it is compiled for every architecture and run on the executor under tests/simt.
#include <algorithm>

#include "pushpull/push_pull_conv2d_cuda_tensor.cuh"
#include "pushpull/push_pull_conv2d_cuda_tensor_launch.cuh"

namespace sturdy::cuda::push_pull {

namespace {

static_assert(kTensorSharedBudget <= 99 * 1024, "more than a block has on the smallest GPU with these instructions");
static_assert(2 * (kTensorSharedBudget + 1024) <= 228 * 1024, "two blocks a multiprocessor on sm_90 and sm_100");

constexpr int kPushPitch = kTilePixels + 4;  // from filter to filter
constexpr int kStripRows = 8;                // rows of a thread's walk
static_assert(kTilePixels / kStripRows / 4 * kHalfFilters == kThreads, "a strip of four values for each thread");

// Words of filters in the order in which the product meets them, filled up with zeros.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_weights_kernel(Sizes s, TensorPlan plan, PackedSource source, uint32_t* packed, int64_t count) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) {
    return;
  }
  const int word = static_cast<int>(at % plan.padded_words);
  const int chunk = static_cast<int>(at / plan.padded_words % plan.chunks);
  const int64_t row = at / plan.padded_words / plan.chunks;
  const int group_rows = ceil_div(s.group_out, kPassFilters) * kPassFilters;
  const int filter = static_cast<int>(row % group_rows);
  const TapWord tap = plan.tap_word(word);
  const bool channel_pairs = plan.source.channel_pairs;
  const int first_channel = (chunk * plan.chunk_planes + tap.plane) * (channel_pairs ? 2 : 1);
  const View4& weight = source.weight;
  const T* first = static_cast<const T*>(weight.data) + row / group_rows * source.group_stride;
  const auto element = [&](int channel, int column) {
    if (filter >= s.group_out || channel >= s.group_in) {
      return 0u;
    }
    return static_cast<unsigned>(Words<T>::bits(channel == source.ones_channel
                                                    ? from_accumulate<T>(1.0f)
                                                    : first[filter * weight.stride[0] + channel * weight.stride[1] +
                                                            tap.row * weight.stride[2] + column * weight.stride[3]]));
  };
  uint32_t bits = tap.elements > 0 ? element(first_channel, tap.column) : 0u;
  if constexpr (!Words<T>::wide) {
    if (tap.elements > 1) {
      bits |= element(first_channel + (channel_pairs ? 1 : 0), tap.column + (channel_pairs ? 0 : 1)) << 16;
    }
  }
  packed[at] = bits;
}

struct TensorArguments {
  Sizes sizes;
  TensorPlan plan;
  View4 input, out, push;  // out.data null: only push is wanted
  ChannelView inhibition, bias;
  bool inhibition_is_float, bias_is_float;
  bool packed_stores;  // four values that a thread stores are neighbours in memory, and aligned
  float strength;
  const FilterRange<float>* ranges;
  const uint32_t* weights;  // packed
};

// What the rectifications need of one filter.
struct FilterScalars {
  float offset, strength, bias;
};

template <typename T>
STURDY_DEVICE FilterScalars load_scalars(const TensorArguments& a, int channel) {
  FilterScalars scalars{};
  if (a.out.data == nullptr) {
    return scalars;
  }
  scalars.offset = a.ranges[channel].offset();
  scalars.strength =
      a.inhibition.data == nullptr ? a.strength : load_channel<float, T>(a.inhibition, a.inhibition_is_float, channel);
  scalars.bias = a.bias.data == nullptr ? 0.0f : load_channel<float, T>(a.bias, a.bias_is_float, channel);
  return scalars;
}

// Values of p in shared memory: rows of one filter, whose neighbours are pixels, or of one pixel, whose neighbours are
// filters. What a warp writes at once lies on different banks, by the pitch or by the exclusive-or.
template <bool ChannelsLast>
STURDY_DEVICE int push_word(int pixel, int filter) {
  if constexpr (ChannelsLast) {
    return pixel * kHalfFilters + (filter ^ (pixel / 2 % 2 * 8));
  } else {
    return filter * kPushPitch + pixel;
  }
}

// Writes p of one half pass, zeros outside the map. A word is a sum of what depends on the lane and of constants.
template <bool ChannelsLast>
STURDY_DEVICE void write_push(const float (&sums)[4][4][4], int half, const int* pixels, float* push) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int first_pixel = fragment_pixel(0, 0);
  bool inside[4][2];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    inside[i / 2][i % 2] = pixels[fragment_pixel(i / 2, i % 2)] >= 0;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float* first = push + push_word<ChannelsLast>(first_pixel, j * 8 + lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int pixel = i * 16 + e / 2 * 8;
        const int word = ChannelsLast ? pixel * kHalfFilters + e % 2 : e % 2 * kPushPitch + pixel;
        first[word] = inside[i][e / 2] ? sums[i][half * 2 + j][e] : 0.0f;
      }
    }
  }
}

// Pools and stores kHalfFilters filters whose p lies in `push`. A thread has four neighbouring values of kStripRows
// rows.
template <typename T, int Radius, bool ChannelsLast>
STURDY_DEVICE void store_filters(const TensorArguments& a, const TilePlace& place, int first_filter, const float* push,
                                 const float* mean_box) {
  const Sizes& s = a.sizes;
  const TensorPlan& plan = a.plan;
  const int thread = static_cast<int>(threadIdx.x);
  const int quads = plan.width / 4;
  const int width = plan.width;
  const int filter = ChannelsLast ? thread % 4 * 4 : thread / 16;             // of this half pass
  const int column = ChannelsLast ? thread / 4 % width : thread % quads * 4;  // of the tile
  const int strip = ChannelsLast ? thread / 4 / width : thread % 16 / quads;

  FilterScalars scalars[ChannelsLast ? 4 : 1];
  float column_scale[ChannelsLast ? 1 : 4];
#pragma unroll
  for (int v = 0; v < (ChannelsLast ? 4 : 1); ++v) {
    scalars[v] = load_scalars<T>(a, place.group * s.group_out + min(first_filter + filter + v, s.group_out - 1));
  }
#pragma unroll
  for (int v = 0; v < (ChannelsLast ? 1 : 4); ++v) {
    column_scale[v] = place.column_scale(s, column + v);
  }

  const auto quad_at = [&](int row, int at) {
    return load_packed<4>(push + push_word<ChannelsLast>(row * width + at, filter));
  };
  const auto quad = [&](int row) { return quad_at(row, column); };
  const auto add = [&](int row, float (&sums)[4]) {
    if constexpr (ChannelsLast) {
#pragma unroll
      for (int distance = 1; distance <= Radius; ++distance) {
        if (distance <= s.radius_w && column - distance >= 0) {
          const auto before = quad_at(row, column - distance);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            sums[v] += before[v];
          }
        }
        if (distance <= s.radius_w && column + distance < width) {
          const auto after = quad_at(row, column + distance);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            sums[v] += after[v];
          }
        }
      }
    } else if constexpr (Radius > 0) {
      float line[4 + 2 * Radius] = {};
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        line[Radius + v] = sums[v];
      }
#pragma unroll
      for (int distance = 1; distance <= Radius; ++distance) {
        if (column > 0) {
          line[Radius - distance] = push[push_word<false>(row * width + column - distance, filter)];
        }
        if (column + 4 < width) {
          line[Radius + 3 + distance] = push[push_word<false>(row * width + column + 3 + distance, filter)];
        }
      }
#pragma unroll
      for (int distance = 1; distance <= Radius; ++distance) {
        if (distance <= s.radius_w) {
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            sums[v] += line[Radius + v - distance] + line[Radius + v + distance];
          }
        }
      }
    }
  };

  // Stores four values of a row of the tile, which lie together in memory or not, in y or p.
  const int shift = ChannelsLast ? 0 : plan.columns.halo % 4;  // of packed stores against the walk
  const int64_t channel = int64_t{place.group} * s.group_out + first_filter + filter;
  const int64_t first_at =
      place.image * a.out.stride[0] + channel * a.out.stride[1] + place.first_column * a.out.stride[3];
  const auto store = [&](void* map, int row, const float (&values)[4]) {
    const int inner_row = row - plan.rows.halo;
    const bool row_stored =
        inner_row >= 0 && inner_row < plan.rows.inner && place.first_row + row < s.out_h && map != nullptr;
    const auto column_stored = [&](int at) {
      const int inner_column = at - plan.columns.halo;
      return row_stored && inner_column >= 0 && inner_column < plan.columns.inner && place.first_column + at < s.out_w;
    };
    T* to = static_cast<T*>(map) + first_at + (place.first_row + row) * a.out.stride[2];
    if (a.packed_stores) {
      Packed<T, 4> packed = round_four<T>(values);
      if (shift != 0) {
        packed = shift_by_two(packed);
      }
      if (column_stored(column - shift) && first_filter + filter < s.group_out) {
        store_packed(to + (column - shift) * a.out.stride[3], packed);
      }
      return;
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int at = column + (ChannelsLast ? 0 : v);
      const int later = ChannelsLast ? v : 0;  // filters after the first
      if (column_stored(at) && first_filter + filter + later < s.group_out) {
        to[at * a.out.stride[3] + later * a.out.stride[1]] = from_accumulate<T>(values[v]);
      }
    }
  };
  const auto emit = [&](int row, const Packed<float, 4>& centre, const float (&window)[4]) {
    store(a.push.data, row, centre.element);
    if (a.out.data == nullptr) {
      return;
    }
    const float row_scale = place.row_scale(s, row);
    float results[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const FilterScalars& scalar = scalars[ChannelsLast ? v : 0];
      const float scale = Radius == 0 ? 1.0f : row_scale * column_scale[ChannelsLast ? 0 : v];
      const float box = mean_box[row * width + column + (ChannelsLast ? 0 : v)];
      const float pull = scalar.offset * box - window[v] * scale;
      results[v] = relu(centre[v]) - scalar.strength * relu(pull) + scalar.bias;
    }
    store(a.out.data, row, results);
  };
  walk_rows<Radius, kStripRows>(strip * kStripRows, plan.tile_rows(), s.radius_h, quad, add, emit);
}

// What a block works on. It waits in shared memory while the product needs the registers.
template <typename T>
struct TensorBlock {
  Source<T> source;
  TilePlace place;
  int in_row, in_column;     // input pixel under the first tap of the tile's first pixel
  int first_filter, passes;  // of the group
  int64_t first_weight_row;  // of the packed weights, for the first pass
};
static_assert(sizeof(TensorBlock<float>) <= kBlockWords * 4, "the plan has room for it");

template <typename T>
STURDY_DEVICE void start_weights(const TensorArguments& a, const TensorBlock<T>& block, int pass, int chunk,
                                 uint32_t* stage) {
  stage_weights(a.plan, a.weights, block.first_weight_row + pass * kPassFilters, chunk, stage + a.plan.source_words());
}

template <int Unroll, typename T>
STURDY_DEVICE void start_chunk(const TensorArguments& a, const TensorBlock<T>& block, int chunk, uint32_t* stage) {
  start_weights(a, block, 0, chunk, stage);
  stage_source<T, Unroll>(a.plan.source, block.source, block.in_row, block.in_column, chunk * a.plan.chunk_planes,
                          a.plan.chunk_planes, stage);
  cp_async_commit();
}

template <typename T, int Radius>
__global__ void __launch_bounds__(kThreads, 2) push_pull_tensor_kernel(TensorArguments a) {
  STURDY_DYNAMIC_SHARED(uint32_t, shared);
  const Sizes& s = a.sizes;
  const TensorPlan& plan = a.plan;
  float* area = reinterpret_cast<float*>(shared);
  float* mean_box = area + plan.area_words;
  TensorBlock<T>& block = *reinterpret_cast<TensorBlock<T>*>(mean_box + kTilePixels);
  int* pixels = reinterpret_cast<int*>(mean_box + kTilePixels + kBlockWords);
  TapPair* taps = reinterpret_cast<TapPair*>(pixels + kTilePixels);
  uint32_t* stages = reinterpret_cast<uint32_t*>(taps + plan.padded_words / 2);

  if (threadIdx.x == 0) {
    // Blocks which read the same pixels are neighbours, so that these come from the cache.
    unsigned index = blockIdx.x;
    const int filter_block = static_cast<int>(index % plan.filter_blocks);
    index /= plan.filter_blocks;
    TilePlace place;
    place.group = static_cast<int>(index % s.groups);
    index /= s.groups;
    place.first_column = plan.columns.origin(static_cast<int>(index % plan.columns.count));
    index /= plan.columns.count;
    place.first_row = plan.rows.origin(static_cast<int>(index % plan.rows.count));
    place.image = index / plan.rows.count;
    const int group_passes = ceil_div(s.group_out, kPassFilters);
    const int first_pass = filter_block * plan.passes;
    block.source = Source<T>(s, a.input, place.image, place.group);
    block.place = place;
    block.in_row = place.first_row * s.stride_h - s.pad_top;
    block.in_column = place.first_column * s.stride_w - s.pad_left;
    block.first_filter = first_pass * kPassFilters;
    block.passes = min(plan.passes, group_passes - first_pass);
    block.first_weight_row = (int64_t{place.group} * group_passes + first_pass) * kPassFilters;
  }
  __syncthreads();
  const auto stage_of = [&](int chunk) { return stages + chunk % plan.stages * plan.stage_words; };

  start_chunk<4>(a, block, 0, stage_of(0));
  describe_taps(plan, s.dilation_h, s.dilation_w, taps);
  describe_pixels(s, plan, block.place, pixels);
  const bool active = fragment_pixel(0, 0) / plan.width < plan.rows.tile;  // has this warp pixels of the map
#pragma unroll 1
  for (int pass = 0; pass < block.passes; ++pass) {
    float sums[4][4][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < plan.chunks; ++chunk) {
      if (plan.stages == 2 && chunk + 1 < plan.chunks) {
        start_chunk<1>(a, block, chunk + 1, stage_of(chunk + 1));
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();
      const uint32_t* stage = stage_of(chunk);
      if (pass == 0 && a.out.data != nullptr) {
        add_channels<T>(plan.source, stage, plan.chunk_planes, chunk == 0, area);
      }
      if (active) {
        multiply_chunk<T>(stage, stage + plan.source_words(), plan.weight_pitch(), taps, plan.padded_words / kStepWords,
                          pixels, sums);
      }
      __syncthreads();
      if (plan.stages == 1 && chunk + 1 < plan.chunks) {
        start_chunk<1>(a, block, chunk + 1, stage_of(chunk + 1));
      }
    }
    if (pass + 1 < block.passes) {  // only where the whole input is staged; on its way while this pass is finished
      start_weights(a, block, pass + 1, 0, stages);
      cp_async_commit();
    }
    if (pass == 0 && a.out.data != nullptr) {
      make_mean_box(s, plan, block.place, area, mean_box);
    }
    const int pass_filter = block.first_filter + pass * kPassFilters;
    const bool channels_last = a.out.stride[1] == 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int half_filter = pass_filter + half * kHalfFilters;
      if (half_filter >= s.group_out) {
        continue;
      }
      if (channels_last) {
        write_push<true>(sums, half, pixels, area);
        __syncthreads();
        store_filters<T, Radius, true>(a, block.place, half_filter, area, mean_box);
      } else {
        write_push<false>(sums, half, pixels, area);
        __syncthreads();
        store_filters<T, Radius, false>(a, block.place, half_filter, area, mean_box);
      }
      __syncthreads();
    }
  }
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Whether every word of two channels (16 bits) or of one element (32 bits) is one word of global memory.
template <typename T>
bool copies_words(const Sizes& s, const View4& input, const SourceLayout& layout) {
  if (Words<T>::wide) {
    return true;
  }
  return layout.channel_pairs && s.group_in % 2 == 0 && input.stride[1] == 1 && input.stride[0] % 2 == 0 &&
         input.stride[2] % 2 == 0 && input.stride[3] % 2 == 0 && aligned(input.data, 4);
}

template <typename T>
bool stores_four(const Sizes& s, const TensorPlan& plan, const View4& view) {
  if (view.data == nullptr) {
    return true;
  }
  if (!aligned(view.data, 4 * sizeof(T))) {
    return false;
  }
  // The view is dense, so its other strides are multiples of four as well.
  return view.stride[1] == 1 ? s.group_out % 4 == 0
                             : view.stride[3] == 1 && s.out_w % 4 == 0 && plan.columns.inner % 4 == 0;
}

template <typename T>
Status launch_radius(const TensorArguments& arguments, int64_t blocks, void* stream) {
  const Sizes& s = arguments.sizes;
  const dim3 grid(static_cast<unsigned>(blocks));
  const size_t bytes = arguments.plan.shared_bytes;
  switch (std::max(s.radius_h, s.radius_w)) {
    case 0:
      return launch(push_pull_tensor_kernel<T, 0>, grid, dim3(kThreads), bytes, stream, arguments);
    case 1:
      return launch(push_pull_tensor_kernel<T, 1>, grid, dim3(kThreads), bytes, stream, arguments);
    case 2:
      return launch(push_pull_tensor_kernel<T, 2>, grid, dim3(kThreads), bytes, stream, arguments);
    case 3:
      return launch(push_pull_tensor_kernel<T, 3>, grid, dim3(kThreads), bytes, stream, arguments);
    default:
      return Status::internal_error;
  }
}

}  // namespace

bool plan_tensor(const Sizes& s, bool wide, int radius_h, int radius_w, TensorPlan* plan) {
  if (s.group_out < kLeastTensorFilters || s.group_in == 0 || s.pixels() == 0 || s.batch == 0 ||
      std::max(radius_h, radius_w) > kMaxTensorRadius) {
    return false;
  }
  TensorPlan p{};
  p.kernel_h = s.kernel_h;
  p.kernel_w = s.kernel_w;
  p.width = s.out_w > 16 ? 32 : s.out_w > 8 ? 16 : 8;
  p.rows = plan_axis(s.out_h, std::min(s.out_h, p.tile_rows()), radius_h);
  // An even halo keeps neighbouring pixels, which are stored together, together.
  p.columns = plan_axis(s.out_w, std::min(s.out_w, p.width), radius_w + radius_w % 2);

  // The words that fill the summed axis better.
  const int64_t pair_words = int64_t{ceil_div(s.group_in, 2)} * s.kernel_w;
  const int64_t shift_words = int64_t{s.group_in} * ceil_div(s.kernel_w, 2);
  SourceLayout& source = p.source;
  source.channel_pairs = !wide && pair_words <= shift_words;
  source.shift = s.dilation_w;
  source.planes = source.channel_pairs ? ceil_div(s.group_in, 2) : s.group_in;
  p.tap_words = wide || source.channel_pairs ? s.kernel_w : ceil_div(s.kernel_w, 2);
  const int64_t rows = (int64_t{p.rows.tile} - 1) * s.stride_h + (int64_t{s.kernel_h} - 1) * s.dilation_h + 1;
  const int64_t columns = (int64_t{p.columns.tile} - 1) * s.stride_w + (int64_t{s.kernel_w} - 1) * s.dilation_w + 1;
  const int64_t most_words = kTensorSharedBudget / 4;
  const int64_t tap_words = int64_t{s.kernel_h} * p.tap_words;
  if (rows > most_words || columns > most_words || rows * columns > most_words || tap_words > most_words) {
    return false;
  }
  source.rows = static_cast<int>(rows);
  source.columns = static_cast<int>(columns);
  source.plane_pitch = static_cast<int>((rows * columns + 23) / 32 * 32 + 8);  // planes start on different banks
  p.area_words = static_cast<int>(
      std::max(int64_t{kHalfFilters} * kPushPitch, ceil_div(rows * (columns + p.width), int64_t{4}) * 4));

  // The fewest chunks that fit, in two stages where there are several.
  const auto fits = [&](int chunks, int stages) {
    p.chunks = chunks;
    p.stages = stages;
    p.chunk_planes = ceil_div(source.planes, chunks);
    if (p.chunk_planes * tap_words > most_words) {
      return false;
    }
    p.planes_inner = p.chunk_planes >= 4;
    p.words = static_cast<int>(p.chunk_planes * tap_words);
    p.padded_words = ceil_div(p.words, kStepWords) * kStepWords;
    const int64_t stage = p.source_words() + int64_t{kPassFilters} * p.weight_pitch();
    const int64_t words = p.area_words + 2 * kTilePixels + kBlockWords + 2 * int64_t{p.padded_words} + stages * stage;
    p.stage_words = static_cast<int>(stage);
    p.shared_bytes = static_cast<size_t>(words) * 4;
    return words <= most_words;
  };
  bool fitting = fits(1, 1);
  for (int chunks = 2; chunks <= source.planes && !fitting; ++chunks) {
    fitting = fits(chunks, 2);
  }
  for (int chunks = 2; chunks <= source.planes && !fitting; ++chunks) {
    fitting = fits(chunks, 1);
  }
  if (!fitting) {
    return false;
  }
  const int filter_passes = ceil_div(s.group_out, kPassFilters);
  p.passes = p.chunks == 1 ? filter_passes : 1;
  p.filter_blocks = ceil_div(filter_passes, p.passes);
  *plan = p;
  return true;
}

template <typename T>
void adapt_source(const Sizes& s, const View4& input, SourceLayout* layout) {
  layout->async = copies_words<T>(s, input, *layout);
  layout->channels_inner = input.stride[1] == 1 && layout->planes >= 8;
}

template <typename T>
Status tensor_forward(const PushPullForwardParams& params, const Sizes& s, TensorPlan plan, const PackedSource& weights,
                      const FilterRange<float>* ranges, uint32_t* packed, void* stream) {
  adapt_source<T>(s, params.input, &plan.source);
  const int64_t count = packed_words(s, plan);
  const int64_t pack_blocks = ceil_div(count, int64_t{kThreads});
  const int64_t blocks = s.batch * plan.rows.count * plan.columns.count * s.groups * plan.filter_blocks;
  if (std::max(pack_blocks, blocks) > max_grid_x) {
    return Status::unsupported_size;
  }
  const Status status = launch(pack_weights_kernel<T>, dim3(static_cast<unsigned>(pack_blocks)), dim3(kThreads),
                               size_t{0}, stream, s, plan, weights, packed, count);
  if (status != Status::ok) {
    return status;
  }
  TensorArguments arguments{};
  arguments.sizes = s;
  arguments.plan = plan;
  arguments.input = params.input;
  arguments.out = params.out;
  arguments.push = params.push;
  arguments.inhibition = params.inhibition;
  arguments.bias = params.bias;
  arguments.inhibition_is_float = params.inhibition.dtype == DType::f32;
  arguments.bias_is_float = params.bias.dtype == DType::f32;
  arguments.packed_stores = stores_four<T>(s, plan, params.out) && stores_four<T>(s, plan, params.push);
  arguments.strength = static_cast<float>(params.geometry.strength);
  arguments.ranges = ranges;
  arguments.weights = packed;
  return launch_radius<T>(arguments, blocks, stream);
}

#define STURDY_PUSH_PULL_TENSOR(T)                                                                               \
  template void adapt_source<T>(const Sizes&, const View4&, SourceLayout*);                                      \
  template Status tensor_forward<T>(const PushPullForwardParams&, const Sizes&, TensorPlan, const PackedSource&, \
                                    const FilterRange<float>*, uint32_t*, void*)
STURDY_PUSH_PULL_TENSOR(float);
STURDY_PUSH_PULL_TENSOR(__half);
STURDY_PUSH_PULL_TENSOR(__nv_bfloat16);
#undef STURDY_PUSH_PULL_TENSOR

}  // namespace sturdy::cuda::push_pull
