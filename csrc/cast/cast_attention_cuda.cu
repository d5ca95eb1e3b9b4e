// cast_attention: memberships, summaries, and the order in which the parts run.
#include "cast/cast_attention_cuda.cuh"
#include "cast/cast_attention_cuda_tiles.cuh"
#include "common/nvtx.h"

// ptxas-budget: fill_owners_kernel 32
// ptxas-budget: members_kernel 48
// ptxas-budget: summaries_kernel 168

namespace sturdy::cuda::clustered {
namespace {

constexpr int kMemberThreads = 256;
constexpr int64_t kMaxExtent = int64_t{1} << 30;  // of an axis: coordinates are 32-bit, offsets are not

// ------------------------------------------------------------------------------------------------------ memberships

__global__ void __launch_bounds__(kMemberThreads, 2) fill_owners_kernel(int2* owners, int64_t count) {
  const int64_t at = int64_t{blockIdx.x} * kMemberThreads + threadIdx.x;
  if (at < count) {
    owners[at] = make_int2(-1, -1);
  }
}

// A block has one cluster of one sequence.
__global__ void __launch_bounds__(kMemberThreads, 2) members_kernel(Problem p) {
  __shared__ int scratch[warp_size];
  const Membership& m = p.membership;
  const int64_t sequence = blockIdx.x / p.clusters;
  const int cluster = static_cast<int>(blockIdx.x % p.clusters);
  const int64_t row = blockIdx.x;
  uint16_t* narrow = static_cast<uint16_t*>(m.slots) + row * p.tokens;
  int32_t* wide = static_cast<int32_t*>(m.slots) + row * p.tokens;
  if (!p.disjoint) {
    for (int i = static_cast<int>(threadIdx.x); i < p.tokens; i += kMemberThreads) {
      if (m.wide) {
        wide[i] = -1;
      } else {
        narrow[i] = static_cast<uint16_t>(kMaxNarrowSlots);
      }
    }
    __syncthreads();
  }
  int length = 0;
  for (int slot = static_cast<int>(threadIdx.x); slot < p.slots; slot += kMemberThreads) {
    int token = p.index[row * p.slots + slot];
    if (token < 0 || token >= p.tokens || !is_token(p.padding, sequence, token)) {
      token = -1;
    }
    m.members[row * p.slots + slot] = token;
    if (token < 0) {
      continue;
    }
    length = slot + 1;
    if (p.disjoint) {
      m.owners[sequence * p.tokens + token] = make_int2(cluster, slot);
    } else if (m.wide) {
      wide[token] = slot;
    } else {
      narrow[token] = static_cast<uint16_t>(slot);
    }
  }
  length = block_reduce(length, 0, scratch, Max{});
  if (threadIdx.x == 0) {
    m.lengths[row] = length;
  }
}

// -------------------------------------------------------------------------------------------------------- summaries

// A block has one cluster and head. A few lanes share a row of k and v, and each such group has a softmax of its own
// over every so many slots; in the end they are put together in the groups' order.
template <typename T, int E>
__global__ void __launch_bounds__(kThreads, 3) summaries_kernel(Problem p) {
  using A = Accumulate<T>;
  constexpr int at_once = 16 / static_cast<int>(sizeof(T));
  constexpr int lanes = E / at_once < warp_size ? E / at_once : warp_size;
  constexpr int width = E / lanes;  // elements of a row that a lane has
  constexpr int groups = kThreads / lanes;
  constexpr int batch = sizeof(T) == 8 ? 1 : 2;  // slots that a group loads at once
  __shared__ A values[groups * E];
  __shared__ A maxima[groups];
  __shared__ A sums[groups];
  const int head = static_cast<int>(blockIdx.x % p.heads);  // heads lie side by side in memory
  const int cluster = static_cast<int>(blockIdx.x / p.heads % p.clusters);
  const int64_t sequence = blockIdx.x / p.heads / p.clusters;
  const int64_t row = p.cluster_row(sequence, head, cluster);
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int first = static_cast<int>(threadIdx.x) % lanes * width;
  const int64_t cluster_row = sequence * p.clusters + cluster;
  const int length = p.membership.lengths[cluster_row];
  const int32_t* members = p.membership.members + cluster_row * p.slots;
  const T* k = p.k.of<T>(sequence, head);
  const T* v = p.v.of<T>(sequence, head);
  A surrogate[width];
  load_elements<width>(p.surrogates.of<T>(0, head) + cluster * p.surrogates.stride[2], p.surrogates.packed, p.dim,
                       first, surrogate);
  A maximum = minus_infinity<A>();
  A sum = 0;
  A value[width] = {};
#pragma unroll 1
  for (int start = 0; start < length; start += groups * batch) {
    A keys[batch][width] = {};
    A rows[batch][width] = {};
    A score[batch];
    bool there[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int slot = start + i * groups + group;
      const int token = slot < length ? members[slot] : -1;
      there[i] = token >= 0;
      score[i] = minus_infinity<A>();
      if (there[i]) {
        load_elements<width>(k + token * p.k.stride[2], p.k.packed, p.dim, first, keys[i]);
        load_elements<width>(v + token * p.v.stride[2], p.v.packed, p.dim, first, rows[i]);
        score[i] = shifted_softplus(-load_gate<T>(p, sequence, token)) * static_cast<A>(p.scale_k);
      }
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      A dot = 0;
#pragma unroll
      for (int w = 0; w < width; ++w) {
        dot += keys[i][w] * surrogate[w];
      }
      dot = warp_sum<lanes>(dot);
      if (!there[i]) {
        continue;
      }
      score[i] *= dot;
      const A largest = Max{}(maximum, score[i]);
      const A correction = exp(maximum - largest);
      const A weight = exp(score[i] - largest);
      maximum = largest;
      sum = sum * correction + weight;
#pragma unroll
      for (int w = 0; w < width; ++w) {
        value[w] = value[w] * correction + weight * rows[i][w];
      }
    }
  }
#pragma unroll
  for (int w = 0; w < width; ++w) {
    values[group * E + first + w] = value[w];
  }
  if (first == 0) {
    maxima[group] = maximum;
    sums[group] = sum;
  }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column != 0 && column >= p.dim) {
    return;
  }
  A largest = minus_infinity<A>();
  for (int i = 0; i < groups; ++i) {
    largest = Max{}(largest, maxima[i]);
  }
  A total = 0;
  A result = 0;
  for (int i = 0; i < groups && length > 0; ++i) {
    const A factor = sums[i] == A(0) ? A(0) : exp(maxima[i] - largest);
    total += factor * sums[i];
    result += factor * (column < p.dim ? values[i * E + column] : A(0));
  }
  if (column < p.dim) {
    static_cast<A*>(p.summaries)[row * p.dim + column] = length > 0 ? result / total : A(0);
  }
  if (column == 0 && p.keep) {
    static_cast<A*>(p.lse_summary)[row] = length > 0 ? largest + log(total) : minus_infinity<A>();
  }
}

template <typename T, int E, bool Tensor>
struct Summaries {
  static Status run(const Problem& p, void* stream) {
    return launch_blocks(summaries_kernel<T, E>, p.batch * p.heads * p.clusters, kThreads, 0, stream, p);
  }
};

// ---------------------------------------------------------------------------------------------------------- workspace

// What forward needs and its caller did not give.
size_t divide_workspace(DType dtype, bool keep, Problem* p, void* base) {
  Workspace workspace(base);
  take_membership(*p, &workspace, &p->membership);
  const int64_t rows = p->batch * p->heads * p->clusters;
  if (!keep) {
    p->summaries = workspace.take<unsigned char>(rows * p->dim * sum_size(dtype));
    if (!p->disjoint) {
      p->intra.data = workspace.take<unsigned char>(rows * p->slots * p->dim * element_size(dtype));
    }
  }
  return workspace.bytes();
}

}  // namespace

Rows make_rows(const TokenView& view, int64_t dim, int64_t element_bytes) {
  const int64_t width = 16 / element_bytes;
  Rows rows{view.data, {view.stride[0], view.stride[1], view.stride[2]}, true};
  rows.packed = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && dim % width == 0;
  for (const int64_t stride : rows.stride) {
    rows.packed = rows.packed && stride % width == 0;
  }
  return rows;
}

Rows compact_rows(void* data, int64_t dim, int64_t element_bytes) {
  return make_rows({data, {dim, dim, dim}}, dim, element_bytes);
}

void set_compact_rows(DType dtype, Problem* p) {
  p->intra = compact_rows(p->intra.data, p->dim, element_size(dtype));
  p->summaries_packed = compact_rows(p->summaries, p->dim, sum_size(dtype)).packed;
}

Status make_problem(const CastAttentionParams& params, Problem* problem) {
  const CastSizes& s = params.sizes;
  if (s.dim > kMaxDim) {
    set_error_detail("the head dimension may be 128 at most on a GPU");
    return Status::unsupported_size;
  }
  if (std::max({s.heads, s.tokens, s.clusters, params.slots}) > kMaxExtent) {
    set_error_detail("heads, tokens, clusters and slots may be 2^30 at most on a GPU");
    return Status::unsupported_size;
  }
  Problem p{};
  p.batch = s.batch;
  p.heads = static_cast<int>(s.heads);
  p.tokens = static_cast<int>(s.tokens);
  p.dim = static_cast<int>(s.dim);
  p.clusters = static_cast<int>(s.clusters);
  p.slots = static_cast<int>(params.slots);
  const int64_t bytes = element_size(params.dtype);
  p.q = make_rows(params.q, s.dim, bytes);
  p.k = make_rows(params.k, s.dim, bytes);
  p.v = make_rows(params.v, s.dim, bytes);
  TokenView surrogates = params.surrogates;
  surrogates.stride[0] = 0;
  p.surrogates = make_rows(surrogates, s.dim, bytes);
  p.out = make_rows(params.out, s.dim, bytes);
  p.phi = params.phi;
  p.phi_is_float = params.phi.dtype == DType::f32;
  p.padding = params.padding;
  p.scale = 1.0 / params.tau;
  p.scale_q = 1.0 / params.tau_q;
  p.scale_k = 1.0 / params.tau_k;
  p.seed = params.dropout > 0 ? params.seed : nullptr;
  p.dropout_threshold = dropout_threshold(params.dropout);
  p.dropout_scale = 1.0 / (1.0 - params.dropout);
  p.disjoint = params.disjoint;
  p.index = params.index;
  p.membership.wide = params.slots >= kMaxNarrowSlots;
  p.keep = params.intra != nullptr || params.lse_mix != nullptr || params.lse_summary != nullptr;
  p.intra.data = params.intra;
  p.summaries = params.summaries;
  p.lse_intra = params.lse_intra;
  p.lse_summary = params.lse_summary;
  p.lse_mix = params.lse_mix;
  *problem = p;
  return Status::ok;
}

void take_membership(const Problem& p, Workspace* workspace, Membership* membership) {
  const int64_t clusters = p.batch * p.clusters;
  membership->members = workspace->take<int32_t>(clusters * p.slots);
  membership->lengths = workspace->take<int32_t>(clusters);
  if (p.disjoint) {
    membership->owners = workspace->take<int2>(p.batch * p.tokens);
  } else if (membership->wide) {
    membership->slots = workspace->take<int32_t>(clusters * p.tokens);
  } else {
    membership->slots = workspace->take<uint16_t>(clusters * p.tokens);
  }
}

Status find_members(const Problem& p, void* stream) {
  if (p.disjoint) {
    const int64_t owners = p.batch * p.tokens;
    const Status status = launch_blocks(fill_owners_kernel, ceil_div(owners, int64_t{kMemberThreads}), kMemberThreads,
                                        0, stream, p.membership.owners, owners);
    if (status != Status::ok) {
      return status;
    }
  }
  return launch_blocks(members_kernel, p.batch * p.clusters, kMemberThreads, 0, stream, p);
}

}  // namespace sturdy::cuda::clustered

namespace sturdy::cuda {

size_t cast_attention_workspace(const CastAttentionParams& params, bool keep) {
  clustered::Problem problem;
  if (clustered::make_problem(params, &problem) != Status::ok) {
    return 0;  // the launcher refuses such a size
  }
  return clustered::divide_workspace(params.dtype, keep, &problem, nullptr);
}

Status cast_attention(const CastAttentionParams& params, void* workspace, void* stream) {
  const NvtxRange range("sturdy::cast_attention");
  using namespace sturdy::cuda::clustered;
  Problem p;
  Status status = make_problem(params, &p);
  if (status != Status::ok) {
    return status;
  }
  divide_workspace(params.dtype, p.keep, &p, workspace);
  set_compact_rows(params.dtype, &p);
  status = find_members(p, stream);
  if (status == Status::ok) {
    status = dispatch<Summaries>(params.dtype, params.allow_tf32, p.dim, p, stream);
  }
  if (status == Status::ok) {
    status = run_intra(params.dtype, params.allow_tf32, p, stream);
  }
  if (status == Status::ok) {
    status = run_mix(params.dtype, params.allow_tf32, p, stream);
  }
  return status;
}

}  // namespace sturdy::cuda
