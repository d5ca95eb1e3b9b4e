// spectral_filter of planes whose half spectrum fits in shared memory: one read and one write of each plane. A block
// takes one plane, or several small ones side by side, through all steps: columns, rows, mask, rows back, columns back.
#include <algorithm>
#include <climits>

#include "fourier/spectral_filter_cuda.cuh"

// ptxas-budget: spectral_filter_kernel 255

namespace sturdy::cuda::filter {
namespace {

constexpr int64_t kGoodThreads = 256;             // enough of them to keep busy
constexpr int kMostPlanes = 32;                   // of a block
constexpr size_t kSmallBlock = size_t{48} << 10;  // of shared memory: several blocks are on a multiprocessor

// What a block knows of each of its planes.
template <typename T>
struct PlaneJob {
  const void* source;
  const void* gated;
  void* target;
  const T* mask;  // null: the plane is copied
};

// Offsets of a kept row in shared memory.
struct RowOffsets {
  int first, second, mirror;
};

template <typename T>
struct FusedCall {
  Call call;
  Program program;
  Prepared<T> prepared;
  FusedImages images;
  int64_t results;  // planes in all
  int planes_per_block;
  int stride;  // of rows in shared memory: odd
};

// How a call is cut into blocks.
struct FusedShape {
  int planes, stride, threads;
  size_t bytes;
};

constexpr int kRowsAtOnce = 8;  // that a thread has under way between shared and global memory

template <typename T>
struct FusedIo {
  struct Place {
    fft::Line line;
    int mirror;
    const T* mask;
  };

  const FusedCall<T>& p;
  Complex<T>* memory;
  const RowOffsets* rows;
  const PlaneJob<T>* jobs;
  int planes;       // of this block
  bool first_turn;  // the planes are filtered to see where their results are within bounds

  STURDY_DEVICE const PlanePlan& plan() const { return p.call.plan; }
  STURDY_DEVICE bool gated() const { return p.images.gated.data != nullptr; }
  STURDY_DEVICE Complex<T>* data() const { return memory; }
  STURDY_DEVICE const Axis& axis(unsigned flags) const { return flags & fft::kRows ? plan().across : plan().down; }
  STURDY_DEVICE const AxisTables<T>& tables(unsigned flags) const {
    return flags & fft::kRows ? p.prepared.across : p.prepared.down;
  }
  STURDY_DEVICE int lines(unsigned flags) const { return planes * (flags & fft::kRows ? plan().kept : plan().pairs); }

  STURDY_DEVICE Place place(unsigned flags, int line) const {
    Place at = {};
    if (flags & fft::kRows) {
      const int plane = line / plan().kept;
      const int row = line - plane * plan().kept;
      const RowOffsets offsets = rows[row];
      const int shift = plane * plan().half;
      at.line = {offsets.first + shift, offsets.second + shift, plan().half, 1};
      at.mirror = offsets.mirror + shift;
      at.mask = jobs[plane].mask == nullptr ? nullptr : jobs[plane].mask + row;
    } else {
      at.line = fft::whole_line(line, p.stride);  // planes lie side by side, `pairs` columns each
    }
    return at;
  }

  STURDY_DEVICE T mask(const Place& at, int element) const {
    return at.mask == nullptr ? T(0) : __ldg(at.mask + int64_t{element} * plan().kept);
  }
  STURDY_DEVICE int mirror(const Place& at) const { return at.mirror; }
  STURDY_DEVICE bool own_mirror(const Place& at) const { return at.mirror == at.line.first; }

  STURDY_DEVICE void special(unsigned flags) const {
    if (flags & fft::kSource) {
      if (first_turn || !gated()) {
        load();
      }
    } else if (flags & fft::kTarget) {
      store();
    } else {
      halves(flags);
    }
  }

  // Calls visit(plane, pair of columns, offset in shared memory of row 0, first row) for kRowsAtOnce rows at a time;
  // neighbouring threads take neighbouring columns.
  template <typename Visit>
  STURDY_DEVICE void for_pixels(const Planes& images, const Visit& visit) const {
    for (fft::Items item(planes * plan().pairs); item.butterfly * kRowsAtOnce < plan().height; item.next()) {
      const int plane = item.line / plan().pairs;
      const fft::ColumnPair pair(plan(), images.row, images.column, item.line - plane * plan().pairs);
      visit(jobs[plane], pair, item.line, item.butterfly * kRowsAtOnce);
    }
  }

  STURDY_DEVICE void load() const {
    for_pixels(p.images.source, [&](const PlaneJob<T>& job, const fft::ColumnPair& pair, int column, int first) {
      Complex<T> v[kRowsAtOnce];
      fft::load_pairs(job.source, p.call.dtype, pair, first, 1, plan().height, v);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        if (first + i < plan().height) {
          memory[(first + i) * p.stride + column] = v[i];
        }
      }
    });
  }

  // The results; or, of planes filtered to see where they are within bounds, the gradients that pass, which stay.
  STURDY_DEVICE void store() const {
    const bool keep = gated() && first_turn;
    for_pixels(keep ? p.images.gated : p.images.target,
               [&](const PlaneJob<T>& job, const fft::ColumnPair& pair, int column, int first) {
                 if (job.mask == nullptr) {
                   return;  // copied elsewhere
                 }
                 Complex<T> v[kRowsAtOnce];
#pragma unroll
                 for (int i = 0; i < kRowsAtOnce; ++i) {
                   v[i] = memory[min(first + i, plan().height - 1) * p.stride + column];
                 }
                 if (keep) {
                   gate(p.call, job.gated, pair, first, 1, v);
#pragma unroll
                   for (int i = 0; i < kRowsAtOnce; ++i) {
                     if (first + i < plan().height) {
                       memory[(first + i) * p.stride + column] = v[i];
                     }
                   }
                   return;
                 }
                 if (p.images.clamped) {
                   const T low = static_cast<T>(p.call.low);
                   const T high = static_cast<T>(p.call.high);
#pragma unroll
                   for (int i = 0; i < kRowsAtOnce; ++i) {
                     v[i] = {clamp(v[i].re, low, high), clamp(v[i].im, low, high)};
                   }
                 }
                 fft::store_pairs(job.target, p.call.dtype, pair, first, 1, plan().height, v);
               });
  }

  // Tells the halves of columns apart, or puts them together, where a step of the rows cannot: neighbouring threads
  // take neighbouring columns.
  STURDY_DEVICE void halves(unsigned flags) const {
    const int width = plan().width;
    const int pairs = plan().pairs;
    const int columns = planes * pairs;
    for (fft::Items item(columns); item.butterfly < plan().kept; item.next()) {
      const int plane = item.line / pairs;
      const int c = item.line - plane * pairs;
      const bool has_right = c + pairs < width;
      const RowOffsets row = rows[item.butterfly];
      const int shift = plane * plan().half;
      const fft::Line line = {row.first + shift, row.second + shift, plan().half, 1};
      Complex<T>* const here = memory + row.first + shift + c;
      Complex<T>* const there = memory + row.mirror + shift + c;
      if (flags & fft::kSplit) {
        const Complex<T> a = *here;
        const Complex<T> b = *there;
        *here = {a.re + b.re, a.im - b.im};
        if (has_right) {
          memory[line.at(c + pairs)] = {a.im + b.im, b.re - a.re};
        }
      } else {
        const Complex<T> a = *here;
        const Complex<T> b = has_right ? memory[line.at(c + pairs)] : Complex<T>{T(0), T(0)};
        if (row.first == row.mirror) {
          *here = {a.re, b.re};
        } else {
          *here = {a.re - b.im, a.im + b.re};
          *there = {a.re + b.im, b.re - a.im};
        }
      }
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kMaxThreads<T>) spectral_filter_kernel(FusedCall<T> p) {
  STURDY_DYNAMIC_SHARED(Complex<T>, memory);
  const Call& call = p.call;
  const PlanePlan& plan = call.plan;
  PlaneJob<T>* const jobs = reinterpret_cast<PlaneJob<T>*>(memory + plan.rows * p.stride);
  RowOffsets* const rows = reinterpret_cast<RowOffsets*>(jobs + p.planes_per_block);
  const int64_t first_job = int64_t{blockIdx.x} * p.planes_per_block;
  const int planes = static_cast<int>(min(int64_t{p.planes_per_block}, p.results - first_job));
  bool filters = false;
  for (int i = static_cast<int>(threadIdx.x); i < planes; i += static_cast<int>(blockDim.x)) {
    const PlaneNumber number(call, first_job + i, call.many);
    const int64_t entry = call.entry(number.image);
    const int64_t id = call.mask_id(entry, number.filtered, number.channel);
    jobs[i].source = advance(p.images.source.data, number.offset(p.images.source), call.dtype);
    jobs[i].gated = advance(p.images.gated.data, number.offset(p.images.gated), call.dtype);
    jobs[i].target = advance(p.images.target.data, number.offset(p.images.target), call.dtype);
    jobs[i].mask = entry < 0 ? nullptr : p.prepared.masks + id * call.mask_size();
    filters = filters || entry >= 0;
  }
  for (int i = static_cast<int>(threadIdx.x); i < plan.kept; i += static_cast<int>(blockDim.x)) {
    const RowEntry row = p.prepared.rows[i];
    const int first = row.first * p.stride;
    const int second = row.second * p.stride;
    rows[i] = {first, second - plan.half, row.second < plan.height ? second : first};
  }
  if (__syncthreads_or(filters ? 1 : 0)) {
    const bool gated = p.images.gated.data != nullptr;
    FusedIo<T> io = {p, memory, rows, jobs, planes, gated};
    for (;;) {
      fft::run_program<~0u, T>(p.program, io);
      if (!io.first_turn) {
        break;
      }
      io.first_turn = false;
    }
  }
  // Copies of images take the gradient as it is, where this is the backward pass.
  const Planes& copied = p.images.gated.data != nullptr ? p.images.gated : p.images.source;
  for (int i = 0; i < planes; ++i) {
    if (jobs[i].mask == nullptr) {
      const void* from = p.images.gated.data != nullptr ? jobs[i].gated : jobs[i].source;
      fft::copy_plane({from, copied.row, copied.column}, jobs[i].target, p.images.target.row, p.images.target.column,
                      call.dtype, plan.height, plan.width);
    }
  }
}

size_t block_bytes(const PlanePlan& plan, size_t value_bytes, int planes) {
  const size_t stride = static_cast<size_t>(planes) * plan.half | 1;
  return plan.rows * stride * 2 * value_bytes + planes * sizeof(PlaneJob<double>) + plan.kept * sizeof(RowOffsets);
}

// Butterflies of each step of a plane, smallest and largest, and those a block's threads would take turns for.
template <typename Visit>
void for_steps(const PlanePlan& plan, const Program& program, const Visit& visit) {
  for (int i = 0; i < program.count; ++i) {
    const fft::Step& step = program.step[i];
    if (step.radix > 0) {
      visit(step.radix, int64_t{step.butterflies} * (step.flags & fft::kRows ? plan.kept : plan.pairs));
    }
  }
}

// The number of threads, from half of `most` up, that leaves the fewest without work in the last round of each step.
int choose_threads(const PlanePlan& plan, const Program& program, int planes, int most) {
  int64_t largest = 1;
  for_steps(plan, program, [&](int, int64_t count) { largest = std::max(largest, count * planes); });
  const int high = static_cast<int>(std::clamp<int64_t>(ceil_div<int64_t>(largest, warp_size) * warp_size, 64, most));
  int best = high;
  int64_t least = INT64_MAX;
  for (int threads = high; threads >= std::max(64, high / 2); threads -= warp_size) {
    int64_t work = 0;
    for_steps(plan, program,
              [&](int radix, int64_t count) { work += ceil_div<int64_t>(count * planes, threads) * threads * radix; });
    if (work < least) {
      least = work;
      best = threads;
    }
  }
  return best;
}

FusedShape choose_shape(const PlanePlan& plan, const Program& program, int64_t results, size_t value_bytes,
                        int most_threads, const DeviceLimits& limits) {
  FusedShape shape = {};
  shape.planes = 1;
  if (!plan.across.chirped()) {
    int64_t fewest = INT64_MAX;
    for_steps(plan, program, [&](int, int64_t count) { fewest = std::min(fewest, count); });
    const int64_t wanted = std::clamp<int64_t>(ceil_div<int64_t>(kGoodThreads, fewest), 1, kMostPlanes);
    const int64_t shared_out = ceil_div<int64_t>(results, limits.multiprocessors);
    shape.planes = static_cast<int>(std::min(wanted, shared_out));
    while (shape.planes > 1 && block_bytes(plan, value_bytes, shape.planes) > kSmallBlock) {
      --shape.planes;
    }
  }
  shape.stride = shape.planes * plan.half | 1;
  shape.bytes = block_bytes(plan, value_bytes, shape.planes);
  shape.threads = choose_threads(plan, program, shape.planes, most_threads);
  return shape;
}

}  // namespace

bool fits_fused(const PlanePlan& plan, size_t value_bytes, size_t shared_bytes) {
  return block_bytes(plan, value_bytes, 1) <= shared_bytes;
}

template <typename T>
Status run_fused(const Call& call, const Prepared<T>& prepared, const FusedImages& images, const DeviceLimits& limits,
                 void* stream) {
  FusedCall<T> p = {};
  p.call = call;
  p.program = fft::make_filter_program(call.plan);
  p.prepared = prepared;
  p.images = images;
  p.results = call.planes() * call.many;
  const FusedShape shape = choose_shape(call.plan, p.program, p.results, sizeof(T), kMaxThreads<T>, limits);
  p.planes_per_block = shape.planes;
  p.stride = shape.stride;
  const int64_t blocks = ceil_div<int64_t>(p.results, shape.planes);
  if (blocks > max_grid_x) {
    return Status::unsupported_size;
  }
  return launch(spectral_filter_kernel<T>, dim3(static_cast<unsigned>(blocks)),
                dim3(static_cast<unsigned>(shape.threads)), shape.bytes, stream, p);
}

template Status run_fused<float>(const Call&, const Prepared<float>&, const FusedImages&, const DeviceLimits&, void*);
template Status run_fused<double>(const Call&, const Prepared<double>&, const FusedImages&, const DeviceLimits&, void*);

}  // namespace sturdy::cuda::filter
