// cast_attention_backward: the order of its parts, and the sums that put their pieces together.
#include "cast/cast_attention_cuda.cuh"
#include "cast/cast_attention_cuda_tiles.cuh"
#include "common/nvtx.h"

// ptxas-budget: delta_kernel 64
// ptxas-budget: sum_pieces_kernel 48
// ptxas-budget: gather_kernel 96
// ptxas-budget: gate_gradient_kernel 96
// ptxas-budget: surrogate_gradient_kernel 96

namespace sturdy::cuda::clustered {
namespace {

constexpr int kSumThreads = 256;

// A few lanes share a row, 16 bytes each.
template <typename T, int E>
struct RowLanes {
  static constexpr int at_once = 16 / static_cast<int>(sizeof(T));
  static constexpr int lanes = E / at_once < warp_size ? E / at_once : warp_size;
  static constexpr int width = E / lanes;
  static constexpr int rows = kSumThreads / lanes;  // of a block
};

// --------------------------------------------------------------------------------------------------------- G . R

template <typename T, int E>
__global__ void __launch_bounds__(kSumThreads, 2) delta_kernel(Problem p, Gradients d) {
  using A = Accumulate<T>;
  using Lanes = RowLanes<T, E>;
  const int64_t at = int64_t{blockIdx.x} * Lanes::rows + threadIdx.x / Lanes::lanes;
  const int first = static_cast<int>(threadIdx.x) % Lanes::lanes * Lanes::width;
  const int head = static_cast<int>(at % p.heads);  // heads lie side by side in memory
  const int token = static_cast<int>(at / p.heads % p.tokens);
  const int64_t sequence = at / p.heads / p.tokens;
  A dot = 0;
  const bool there = at < p.batch * p.heads * p.tokens;
  if (there) {
    if (is_token(p.padding, sequence, token)) {  // elsewhere the gradient may be anything
      A grad[Lanes::width];
      A out[Lanes::width];
      load_elements<Lanes::width>(d.out.of<T>(sequence, head) + token * d.out.stride[2], d.out.packed, p.dim, first,
                                  grad);
      load_elements<Lanes::width>(p.out.of<T>(sequence, head) + token * p.out.stride[2], p.out.packed, p.dim, first,
                                  out);
#pragma unroll
      for (int i = 0; i < Lanes::width; ++i) {
        dot += grad[i] * out[i];
      }
    }
  }
  dot = warp_sum<Lanes::lanes>(dot);
  if (there && first == 0) {
    static_cast<A*>(d.delta)[(sequence * p.heads + head) * p.tokens + token] = dot;
  }
}

template <typename T, int E, bool Tensor>
struct Delta {
  static Status run(const Problem& p, const Gradients& d, void* stream) {
    const int64_t rows = p.batch * p.heads * p.tokens;
    return launch_blocks(delta_kernel<T, E>, ceil_div(rows, int64_t{RowLanes<T, E>::rows}), kSumThreads, 0, stream, p,
                         d);
  }
};

// ------------------------------------------------------------------------------------------------ pieces of summaries

template <typename A>
__global__ void __launch_bounds__(kSumThreads, 2)
    sum_pieces_kernel(const A* pieces, int count, int64_t elements, A* sums) {
  const int64_t at = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (at >= elements) {
    return;
  }
  A sum = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    sum += pieces[i * elements + at];
  }
  sums[at] = sum;
}

// -------------------------------------------------------------------------------------------- keys and values by token

// Sums the rows of a token's slots.
template <typename T, int E>
__global__ void __launch_bounds__(kSumThreads, 2) gather_kernel(Problem p, Gradients d) {
  using A = Accumulate<T>;
  using Lanes = RowLanes<T, E>;
  const int64_t at = int64_t{blockIdx.x} * Lanes::rows + threadIdx.x / Lanes::lanes;
  const int first = static_cast<int>(threadIdx.x) % Lanes::lanes * Lanes::width;
  if (at >= p.batch * p.heads * p.tokens) {
    return;
  }
  const int head = static_cast<int>(at % p.heads);
  const int token = static_cast<int>(at / p.heads % p.tokens);
  const int64_t sequence = at / p.heads / p.tokens;
  A grad_k[Lanes::width] = {};
  A grad_v[Lanes::width] = {};
  for (int cluster = 0; cluster < p.clusters; ++cluster) {
    const int slot = find_slot(p, sequence, cluster, token, make_int2(-1, -1));
    if (slot < 0) {
      continue;
    }
    const int64_t row = (p.cluster_row(sequence, head, cluster) * p.slots + slot) * p.dim;
    A part[Lanes::width];
    load_elements<Lanes::width>(static_cast<const T*>(d.slot_k.data) + row, d.slot_k.packed, p.dim, first, part);
#pragma unroll
    for (int i = 0; i < Lanes::width; ++i) {
      grad_k[i] += part[i];
    }
    load_elements<Lanes::width>(static_cast<const T*>(d.slot_v.data) + row, d.slot_v.packed, p.dim, first, part);
#pragma unroll
    for (int i = 0; i < Lanes::width; ++i) {
      grad_v[i] += part[i];
    }
  }
  store_elements<Lanes::width>(d.k.of<T>(sequence, head) + token * d.k.stride[2], d.k.packed, p.dim, first, grad_k);
  store_elements<Lanes::width>(d.v.of<T>(sequence, head) + token * d.v.stride[2], d.v.packed, p.dim, first, grad_v);
}

template <typename T, int E, bool Tensor>
struct Gather {
  static Status run(const Problem& p, const Gradients& d, void* stream) {
    const int64_t rows = p.batch * p.heads * p.tokens;
    return launch_blocks(gather_kernel<T, E>, ceil_div(rows, int64_t{RowLanes<T, E>::rows}), kSumThreads, 0, stream, p,
                         d);
  }
};

// ------------------------------------------------------------------------------------------------------------ gates

template <typename A>
STURDY_DEVICE A sum_over_heads(const Problem& p, const void* values, int64_t first, int64_t stride) {
  A sum = 0;
  for (int head = 0; head < p.heads; ++head) {
    sum += static_cast<const A*>(values)[first + head * stride];
  }
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads, 2) gate_gradient_kernel(Problem p, Gradients d) {
  using A = Accumulate<T>;
  const int64_t at = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (at >= p.batch * p.tokens) {
    return;
  }
  const int token = static_cast<int>(at % p.tokens);
  const int64_t sequence = at / p.tokens;
  const int64_t slots_of_head = int64_t{p.clusters} * p.slots;
  A sum = sum_over_heads<A>(p, d.token_phi, sequence * p.heads * p.tokens + token, p.tokens);
  const int2 owner = owner_of(p, sequence, token);
  const int first = p.disjoint ? max(owner.x, 0) : 0;
  const int end = p.disjoint ? owner.x + 1 : p.clusters;
  for (int cluster = first; cluster < end; ++cluster) {
    const int slot = find_slot(p, sequence, cluster, token, owner);
    if (slot >= 0) {
      sum += sum_over_heads<A>(p, d.slot_phi, p.cluster_row(sequence, 0, cluster) * p.slots + slot, slots_of_head);
    }
  }
  if (p.phi_is_float) {
    static_cast<float*>(d.phi)[at] = static_cast<float>(sum);
  } else {
    static_cast<T*>(d.phi)[at] = from_accumulate<T>(sum);
  }
}

// ------------------------------------------------------------------------------------------------------- surrogates

// A block has one surrogate of one head. Its threads share the pieces of all sequences out among them, and then add up
// what they have.
template <typename T>
__global__ void __launch_bounds__(kSumThreads, 2) surrogate_gradient_kernel(Problem p, Gradients d, int tile_rows) {
  using A = Accumulate<T>;
  __shared__ A parts[kSumThreads];
  const int cluster = static_cast<int>(blockIdx.x % p.clusters);
  const int head = static_cast<int>(blockIdx.x / p.clusters);
  const int lanes = p.dim > 64 ? 128 : p.dim > 32 ? 64 : 32;
  const int groups = kSumThreads / lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int column = static_cast<int>(threadIdx.x) % lanes;
  const int64_t rows = p.batch * p.heads * p.clusters;
  const A* from_tokens = static_cast<const A*>(d.surrogate_pieces);
  const A* from_slots = static_cast<const A*>(d.surrogate_tiles);
  A sum = 0;
  for (int64_t sequence = group; sequence < p.batch && column < p.dim; sequence += groups) {
    const int64_t row = p.cluster_row(sequence, head, cluster);
    for (int i = 0; i < d.pieces; ++i) {
      sum += from_tokens[(i * rows + row) * p.dim + column];
    }
    const int tiles = ceil_div(p.membership.lengths[sequence * p.clusters + cluster], tile_rows);
    for (int i = 0; i < tiles; ++i) {
      sum += from_slots[(i * rows + row) * p.dim + column];
    }
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0 && column < p.dim) {
    for (int i = 1; i < groups; ++i) {
      sum += parts[i * lanes + column];
    }
    static_cast<T*>(d.surrogates)[int64_t{blockIdx.x} * p.dim + column] = from_accumulate<T>(sum);
  }
}

// The kernels that do not depend on the dimension.
template <typename T>
Status sum_summaries(const Problem& p, const Gradients& d, void* stream) {
  using A = Accumulate<T>;
  const int64_t elements = p.batch * p.heads * p.clusters * p.dim;
  return launch_blocks(sum_pieces_kernel<A>, ceil_div(elements, int64_t{kSumThreads}), kSumThreads, 0, stream,
                       static_cast<const A*>(d.summary_pieces), d.pieces, elements, static_cast<A*>(d.summaries));
}

template <typename T>
Status finish(DType dtype, const Problem& p, const Gradients& d, void* stream) {
  const Status status = launch_blocks(gate_gradient_kernel<T>, ceil_div(p.batch * p.tokens, int64_t{kSumThreads}),
                                      kSumThreads, 0, stream, p, d);
  if (status != Status::ok) {
    return status;
  }
  return launch_blocks(surrogate_gradient_kernel<T>, int64_t{p.heads} * p.clusters, kSumThreads, 0, stream, p, d,
                       tile_rows(dtype));
}

size_t divide_workspace(DType dtype, Problem* p, Gradients* d, void* base) {
  Workspace workspace(base);
  take_membership(*p, &workspace, &p->membership);
  const auto take = [&](int64_t count, int64_t bytes) { return workspace.take<unsigned char>(count * bytes); };
  const int64_t sum = sum_size(dtype);
  const int64_t clusters = p->batch * p->heads * p->clusters;
  const int64_t tokens = p->batch * p->heads * p->tokens;
  const int64_t slots = clusters * p->slots;
  d->pieces = static_cast<int>(ceil_div(int64_t{p->tokens}, int64_t{kPieceTokens}));
  d->tiles = static_cast<int>(ceil_div(int64_t{p->slots}, int64_t{tile_rows(dtype)}));
  d->delta = take(tokens, sum);
  d->token_phi = take(tokens, sum);
  d->slot_weight = take(slots, sum);
  d->slot_delta = take(slots, sum);
  d->slot_phi = take(slots, sum);
  d->summaries = take(clusters * p->dim, sum);
  d->summary_pieces = take(clusters * p->dim * d->pieces, sum);
  d->surrogate_pieces = take(clusters * p->dim * d->pieces, sum);
  d->surrogate_tiles = take(clusters * p->dim * d->tiles, sum);
  if (!p->disjoint) {
    d->slot_q = compact_rows(take(slots * p->dim, element_size(dtype)), p->dim, element_size(dtype));
    d->slot_k = d->slot_q;
    d->slot_v = compact_rows(take(slots * p->dim, element_size(dtype)), p->dim, element_size(dtype));
  }
  return workspace.bytes();
}

Status run_backward(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream) {
  const auto sum = [&] {
    switch (dtype) {
      case DType::f64:
        return sum_summaries<double>(p, d, stream);
      default:
        return sum_summaries<float>(p, d, stream);
    }
  };
  const auto finish_all = [&] {
    switch (dtype) {
      case DType::f32:
        return finish<float>(dtype, p, d, stream);
      case DType::f64:
        return finish<double>(dtype, p, d, stream);
      case DType::f16:
        return finish<__half>(dtype, p, d, stream);
      case DType::bf16:
        return finish<__nv_bfloat16>(dtype, p, d, stream);
    }
    return Status::unsupported_dtype;
  };
  Status status = find_members(p, stream);
  const auto then = [&](const auto& step) {
    if (status == Status::ok) {
      status = step();
    }
  };
  then([&] { return dispatch<Delta>(dtype, allow_tf32, p.dim, p, d, stream); });
  then([&] { return run_intra_query_gradient(dtype, allow_tf32, p, d, stream); });
  then([&] { return run_mix_cluster_gradient(dtype, allow_tf32, p, d, stream); });
  then(sum);
  then([&] { return run_mix_token_gradient(dtype, allow_tf32, p, d, stream); });
  then([&] { return run_intra_key_gradient(dtype, allow_tf32, p, d, stream); });
  if (!p.disjoint) {
    then([&] { return dispatch<Gather>(dtype, allow_tf32, p.dim, p, d, stream); });
  }
  then(finish_all);
  return status;
}

}  // namespace
}  // namespace sturdy::cuda::clustered

namespace sturdy::cuda {

size_t cast_attention_backward_workspace(const CastAttentionParams& params) {
  clustered::Problem problem;
  clustered::Gradients gradients{};
  if (clustered::make_problem(params, &problem) != Status::ok) {
    return 0;  // the launcher refuses such a size
  }
  return clustered::divide_workspace(params.dtype, &problem, &gradients, nullptr);
}

Status cast_attention_backward(const CastAttentionBackwardParams& params, void* workspace, void* stream) {
  const NvtxRange range("sturdy::cast_attention_backward");
  using namespace sturdy::cuda::clustered;
  const DType dtype = params.forward.dtype;
  Problem p;
  const Status status = make_problem(params.forward, &p);
  if (status != Status::ok) {
    return status;
  }
  set_compact_rows(dtype, &p);
  const auto rows = [&](const TokenView& view) { return make_rows(view, p.dim, element_size(dtype)); };
  Gradients d{};
  d.out = rows(params.grad_out);
  d.q = rows(params.grad_q);
  d.k = rows(params.grad_k);
  d.v = rows(params.grad_v);
  d.surrogates = params.grad_surrogates;
  d.phi = params.grad_phi;
  divide_workspace(dtype, &p, &d, workspace);
  return run_backward(dtype, params.forward.allow_tf32, p, d, stream);
}

}  // namespace sturdy::cuda
