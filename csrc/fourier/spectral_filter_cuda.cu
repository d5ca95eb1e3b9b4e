// spectral_filter on CUDA: which kernels serve a call, its workspace, and what is prepared for them: the tables of the
// transforms, and the masks made symmetric, scaled and laid out in the order in which frequencies come.
#include <algorithm>

#include "fourier/spectral_filter_cuda.cuh"

// ptxas-budget: spectral_filter_prepare_kernel 128

namespace sturdy::cuda {
namespace filter {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kTableBlocks = 8;
constexpr int kTileRows = 32;  // of a mask: the lines they touch stay in the first-level cache

STURDY_DEVICE double mask_value(const Masks& masks, int64_t at) {
  switch (masks.dtype) {
    case DType::f64:
      return __ldg(static_cast<const double*>(masks.data) + at);
    case DType::f16:
      return to_accumulate(static_cast<const __half*>(masks.data)[at]);
    case DType::bf16:
      return to_accumulate(static_cast<const __nv_bfloat16*>(masks.data)[at]);
    default:
      return __ldg(static_cast<const float*>(masks.data) + at);
  }
}

STURDY_DEVICE int centred(int k, int n) { return k + n / 2 < n ? k + n / 2 : k + n / 2 - n; }

// The mask that a given one stands for: the mean of its values at (k, l) and (-k, -l).
STURDY_DEVICE double symmetric_mask(const Call& call, const Masks& masks, int64_t base, int k, int l) {
  const int height = call.plan.height;
  const int width = call.plan.width;
  const int mirrored_k = k == 0 ? 0 : height - k;
  const int mirrored_l = l == 0 ? 0 : width - l;
  const auto value = [&](int row, int column) {
    return mask_value(masks, base + row * masks.row + column * masks.column);
  };
  if (call.half && l != mirrored_l) {
    return 2 * l < width ? value(k, l) : value(mirrored_k, mirrored_l);
  }
  if (call.half) {
    return 0.5 * (value(k, l) + value(mirrored_k, l));
  }
  return 0.5 * (value(centred(k, height), centred(l, width)) +
                value(centred(mirrored_k, height), centred(mirrored_l, width)));
}

// The first blocks fill the tables; after them each takes some rows of one mask.
template <typename T>
__global__ void __launch_bounds__(kPrepareThreads)
    spectral_filter_prepare_kernel(Call call, Masks masks, Prepared<T> to, int tiles) {
  __shared__ int counts[kPrepareThreads];
  __shared__ int frequencies[kTileRows];
  const PlanePlan& plan = call.plan;
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x < kTableBlocks) {
    const int of_all = static_cast<int>(blockIdx.x) * kPrepareThreads + thread;
    fft::fill_axis_tables(plan.down, to.down, of_all, kTableBlocks * kPrepareThreads);
    fft::fill_axis_tables(plan.across, to.across, of_all, kTableBlocks * kPrepareThreads);
    if (blockIdx.x == 0) {
      fft::for_kept_rows(plan, counts, [&](int rank, int k, int at, int mirrored) {
        // A row that is its own mirror image has its second part beyond the plane.
        to.rows[rank] = {k, at, at != mirrored ? mirrored : plan.height + (k == 0 ? 0 : 1)};
        to.ranks[k] = rank;
        if (at != mirrored) {
          to.ranks[plan.height - k] = -1 - rank;
        }
      });
    }
    return;
  }
  const int64_t tile = int64_t{blockIdx.x} - kTableBlocks;
  const int64_t id = tile / tiles;
  const int first = static_cast<int>(tile % tiles) * kTileRows;
  const int count = min(kTileRows, plan.kept - first);
  fft::for_kept_rows(plan, counts, [&](int rank, int k, int, int) {
    if (rank >= first && rank < first + count) {
      frequencies[rank - first] = k;
    }
  });
  __syncthreads();
  const int64_t entry = id / (call.many * call.mask_channels);
  const int64_t filtered = id / call.mask_channels % call.many;
  const int64_t base = entry * masks.entry + filtered * masks.filtered + id % call.mask_channels * masks.channel;
  // Neither transform scales, and telling the halves of columns apart doubles.
  const double scale = 0.5 / (static_cast<double>(plan.height) * plan.width);
  T* const target = to.masks + id * call.mask_size() + first;
  for (int i = thread; i < count * plan.width; i += kPrepareThreads) {
    const int row = i % count;
    const int at = i / count;
    const int l = plan.across.frequency(at);
    target[int64_t{at} * plan.kept + row] =
        static_cast<T>(symmetric_mask(call, masks, base, frequencies[row], l) * scale);
  }
}

}  // namespace

template <typename T>
Status prepare(const Call& call, const Masks& masks, const Prepared<T>& to, void* stream) {
  const int tiles = ceil_div(call.plan.kept, kTileRows);
  const int64_t blocks = kTableBlocks + (masks.data == nullptr ? 0 : call.mask_ids() * tiles);
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  return launch(spectral_filter_prepare_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads), 0,
                stream, call, masks, to, tiles);
}

template Status prepare<float>(const Call&, const Masks&, const Prepared<float>&, void*);
template Status prepare<double>(const Call&, const Masks&, const Prepared<double>&, void*);

namespace {

enum class Path { fused, passes };

// False where a side is longer than the kernels take.
bool make_call(const SpectralFilterGeometry& g, Call* call) {
  if (g.height > fft::kMaxLength || g.width > fft::kMaxLength) {
    return false;
  }
  *call = {};
  const int height = static_cast<int>(g.height);
  const int width = static_cast<int>(g.width);
  call->plan =
      g.dtype == DType::f64 ? fft::make_plane_plan<double>(height, width) : fft::make_plane_plan<float>(height, width);
  call->batch = g.batch;
  call->channels = g.channels;
  call->many = g.many;
  call->mask_entries = g.mask_entries;
  call->mask_channels = g.mask_channels;
  call->index = g.index;
  call->index_stride = g.index_stride;
  call->dtype = g.dtype;
  call->half = g.half;
  call->clip = g.clip;
  call->low = g.low;
  call->high = g.high;
  return true;
}

size_t value_bytes(const Call& call) { return call.dtype == DType::f64 ? 8 : 4; }

template <typename T>
Prepared<T> take_prepared(const Call& call, Workspace& workspace) {
  Prepared<T> prepared = {};
  prepared.down = fft::take_axis_tables<T>(call.plan.down, workspace);
  prepared.across = fft::take_axis_tables<T>(call.plan.across, workspace);
  prepared.rows = workspace.take<RowEntry>(call.plan.kept);
  prepared.ranks = workspace.take<int>(call.plan.height);
  prepared.masks = workspace.take<T>(call.mask_ids() * call.mask_size());
  return prepared;
}

// Bytes of the tables and masks of a call: the passes take theirs after them.
size_t prepared_bytes(const Call& call) {
  Workspace workspace(nullptr);
  if (call.dtype == DType::f64) {
    take_prepared<double>(call, workspace);
  } else {
    take_prepared<float>(call, workspace);
  }
  return workspace.bytes();
}

Status choose_path(const Call& call, const DeviceLimits& limits, bool may_fuse, Path* path) {
  if (may_fuse && fits_fused(call.plan, value_bytes(call), limits.shared_bytes)) {
    *path = Path::fused;
    return Status::ok;
  }
  *path = Path::passes;
  return fits_passes(call.plan, value_bytes(call), limits.shared_bytes) ? Status::ok : Status::unsupported_size;
}

// Gradients of one result of each image are fused; those of several are added up on their way back.
bool may_fuse_backward(const Call& call) { return call.many == 1; }

template <typename T>
Status forward(const Call& call, const SpectralFilterParams& params, const DeviceLimits& limits, Path path,
               void* workspace, void* stream) {
  Workspace pieces(workspace);
  const Prepared<T> prepared = take_prepared<T>(call, pieces);
  const Status status = prepare(call, params.mask, prepared, stream);
  if (status != Status::ok) {
    return status;
  }
  if (path == Path::fused) {
    return run_fused(call, prepared, FusedImages{params.x, Planes{}, params.out, call.clip}, limits, stream);
  }
  return passes_forward(call, prepared, params, limits, static_cast<unsigned char*>(workspace) + pieces.bytes(),
                        stream);
}

template <typename T>
Status backward(const Call& call, const SpectralFilterBackwardParams& params, const DeviceLimits& limits, bool fused_x,
                void* workspace, void* stream) {
  Workspace pieces(workspace);
  const Prepared<T> prepared = take_prepared<T>(call, pieces);
  Status status = prepare(call, params.mask, prepared, stream);
  const bool want_x = params.grad_x.data != nullptr && call.planes() > 0;
  if (status == Status::ok && want_x && fused_x) {
    const FusedImages images = call.clip ? FusedImages{params.x, params.grad_out, params.grad_x, false}
                                         : FusedImages{params.grad_out, Planes{}, params.grad_x, false};
    status = run_fused(call, prepared, images, limits, stream);
  }
  if (status == Status::ok && (params.grad_mask.data != nullptr || (want_x && !fused_x))) {
    status = passes_backward(call, prepared, params, want_x && !fused_x, limits,
                             static_cast<unsigned char*>(workspace) + pieces.bytes(), stream);
  }
  return status;
}

}  // namespace
}  // namespace filter

size_t spectral_filter_workspace(const SpectralFilterGeometry& geometry) {
  filter::Call call;
  DeviceLimits limits;
  filter::Path path;
  if (!filter::make_call(geometry, &call) || device_limits(geometry.device, &limits) != Status::ok ||
      filter::choose_path(call, limits, true, &path) != Status::ok) {
    return 0;  // the call itself says why
  }
  const size_t bytes = filter::prepared_bytes(call);
  return path == filter::Path::fused
             ? bytes
             : bytes + filter::passes_forward_workspace(call, filter::value_bytes(call), limits);
}

size_t spectral_filter_backward_workspace(const SpectralFilterGeometry& geometry, bool want_mask) {
  filter::Call call;
  DeviceLimits limits;
  filter::Path path;
  if (!filter::make_call(geometry, &call) || device_limits(geometry.device, &limits) != Status::ok ||
      filter::choose_path(call, limits, filter::may_fuse_backward(call), &path) != Status::ok) {
    return 0;
  }
  const size_t bytes = filter::prepared_bytes(call);
  return path == filter::Path::fused && !want_mask
             ? bytes
             : bytes + filter::passes_backward_workspace(call, filter::value_bytes(call), want_mask, limits);
}

Status spectral_filter(const SpectralFilterParams& params, void* workspace, void* stream) {
  filter::Call call;
  DeviceLimits limits;
  filter::Path path;
  if (!filter::make_call(params.geometry, &call)) {
    return Status::unsupported_size;
  }
  if (call.planes() * call.many == 0) {
    return Status::ok;
  }
  Status status = device_limits(params.geometry.device, &limits);
  if (status == Status::ok) {
    status = filter::choose_path(call, limits, true, &path);
  }
  if (status != Status::ok) {
    return status;
  }
  return call.dtype == DType::f64 ? filter::forward<double>(call, params, limits, path, workspace, stream)
                                  : filter::forward<float>(call, params, limits, path, workspace, stream);
}

Status spectral_filter_backward(const SpectralFilterBackwardParams& params, void* workspace, void* stream) {
  filter::Call call;
  DeviceLimits limits;
  filter::Path path;
  if (!filter::make_call(params.geometry, &call)) {
    return Status::unsupported_size;
  }
  Status status = device_limits(params.geometry.device, &limits);
  if (status == Status::ok) {
    status = filter::choose_path(call, limits, filter::may_fuse_backward(call), &path);
  }
  if (status == Status::ok && params.grad_mask.data != nullptr &&
      !filter::fits_passes(call.plan, filter::value_bytes(call), limits.shared_bytes)) {
    status = Status::unsupported_size;
  }
  if (status != Status::ok) {
    return status;
  }
  const bool fused_x = path == filter::Path::fused;
  return call.dtype == DType::f64 ? filter::backward<double>(call, params, limits, fused_x, workspace, stream)
                                  : filter::backward<float>(call, params, limits, fused_x, workspace, stream);
}

}  // namespace sturdy::cuda
