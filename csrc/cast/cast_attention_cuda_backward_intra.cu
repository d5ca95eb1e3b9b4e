// Gradients of the attention within clusters. With G the gradient of a token's output and P its weight of the cluster,
// dO = P G, so nothing but P and G . O is kept of dO. Both kernels compute the weights again from lse_intra.
#include "cast/cast_attention_cuda_intra.cuh"

// ptxas-budget: intra_query_gradient_kernel 255
// ptxas-budget: intra_key_gradient_kernel 255

namespace sturdy::cuda::clustered {
namespace {

// ---------------------------------------------------------------------------------------------------------- queries

template <typename T, int E, bool Tensor>
struct QueryShared {
  using S = Shape<T, E, Tensor>;
  static constexpr int tile = S::pair_columns * S::pitch;
  alignas(16) T q[S::rows * S::pitch];
  alignas(16) T grad[S::rows * S::pitch];
  alignas(16) T k[S::stages * tile];
  alignas(16) T v[S::stages * tile];
  alignas(16) Accumulate<T> scratch[S::Engine::template scratch_elements<S::pair_columns>];
  int queries[S::rows];
  int keys[3 * S::pair_columns];
};

// A block takes a tile of queries and walks the keys of the cluster. Leaves P and G . O of its slots for the others.
template <typename T, int E, bool Tensor>
__global__ void __launch_bounds__(kThreads, (Shape<T, E, Tensor>::blocks))
    intra_query_gradient_kernel(Problem p, Gradients d) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  STURDY_DYNAMIC_SHARED(unsigned char, memory);
  auto& shared = *reinterpret_cast<QueryShared<T, E, Tensor>*>(memory);
  const SlotTile place(p, S::rows);
  if (place.first >= place.length) {
    return;
  }
  const int32_t* members = place.members(p);
  look_up_tokens(members, place.length, place.first, S::rows, shared.queries);
  __syncthreads();
  stage_rows<T, E>(p.q.of<T>(place.sequence, place.head), p.q.stride[2], p.q.packed, p.dim, shared.queries, S::rows,
                   shared.q);
  stage_rows<T, E>(d.out.of<T>(place.sequence, place.head), d.out.stride[2], d.out.packed, p.dim, shared.queries,
                   S::rows, shared.grad);
  cp_async_wait_all();
  __syncthreads();

  A weight[Engine::halves];
  A delta[Engine::halves];
  A lse[Engine::halves];
  uint64_t keys[Engine::halves];
  const T* surrogate = p.surrogates.of<T>(0, place.head) + place.cluster * p.surrogates.stride[2];
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int row = Engine::row(h);
    const int token = shared.queries[row];
    const int64_t slot = place.row * p.slots + min(place.first + row, p.slots - 1);
    const A similarity = four_lane_dot<E>(shared.q + row * S::pitch, surrogate, p.surrogates.packed, p.dim);
    // An empty slot's G is zero, but what lies in its O is not used anyway.
    const A product = four_lane_dot<E>(shared.grad + row * S::pitch, static_cast<const T*>(p.intra.data) + slot * p.dim,
                                       p.intra.packed, p.dim);
    weight[h] = 0;
    delta[h] = 0;
    lse[h] = 0;
    keys[h] = dropout_key(p, place.row, place.first + row);
    if (token < 0) {
      continue;
    }
    const A factor = shifted_softplus(load_gate<T>(p, place.sequence, token)) * static_cast<A>(p.scale_q);
    const int64_t token_row = (place.sequence * p.heads + place.head) * p.tokens + token;
    weight[h] = exp(similarity * factor - static_cast<const A*>(p.lse_mix)[token_row]);
    delta[h] = product;
    lse[h] = static_cast<const A*>(p.lse_intra)[slot];
    if (lane_index() % 4 == 0) {
      static_cast<A*>(d.slot_weight)[slot] = weight[h];
      static_cast<A*>(d.slot_delta)[slot] = product;
    }
  }

  typename Engine::template Sums<E> sums;
  const int own = warp_index() * Engine::warp_rows * S::pitch;
  walk_tiles<S::stages>(
      ceil_div(place.length, S::pair_columns),
      [&](int t, int slot) {
        look_up_tokens(members, place.length, int64_t{t} * S::pair_columns, S::pair_columns,
                       shared.keys + slot * S::pair_columns);
      },
      [&](int, int stage, int slot) {
        const int* tokens = shared.keys + slot * S::pair_columns;
        stage_rows<T, E>(p.k.of<T>(place.sequence, place.head), p.k.stride[2], p.k.packed, p.dim, tokens,
                         S::pair_columns, shared.k + stage * shared.tile);
        stage_rows<T, E>(p.v.of<T>(place.sequence, place.head), p.v.stride[2], p.v.packed, p.dim, tokens,
                         S::pair_columns, shared.v + stage * shared.tile);
      },
      [&](int t, int stage, int slot) {
        const int* tokens = shared.keys + slot * S::pair_columns;
        const T* k = shared.k + stage * shared.tile;
        typename Engine::template Sums<S::pair_columns> scores;
        typename Engine::template Sums<S::pair_columns> grads;
        Engine::template multiply_rows<E, S::pair_columns>(shared.q + own, k, S::pitch, scores);
        Engine::template multiply_rows<E, S::pair_columns>(shared.grad + own, shared.v + stage * shared.tile, S::pitch,
                                                           grads);
        for_each_element(scores, [&](int h, int j, int v) {
          const int column = Engine::score_column(j, v);
          A& score = scores.value[h][j][v];
          const A attention =
              tokens[column] >= 0 ? exponential<Tensor>(score * static_cast<A>(p.scale) - lse[h]) : A(0);
          const A grad = grads.value[h][j][v] * dropout_factor<A>(p, keys[h], t * S::pair_columns + column);
          score = attention * weight[h] * (grad - delta[h]) * static_cast<A>(p.scale);
        });
        Engine::template multiply_columns<S::pair_columns, E>(scores, shared.scratch, k, S::pitch, sums);
      });

  const Rows& to = p.disjoint ? d.q : d.slot_q;
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int token = shared.queries[Engine::row(h)];
    const int64_t slot = place.row * p.slots + place.first + Engine::row(h);
    T* row = p.disjoint ? to.of<T>(place.sequence, place.head) + token * to.stride[2]
                        : static_cast<T*>(to.data) + slot * p.dim;
    store_row<Engine, T, E>(token < 0 ? nullptr : row, to.packed, p.dim, sums, h, A(1));
  }
}

template <typename T, int E, bool Tensor>
struct QueryGradient {
  static Status run(const Problem& p, const Gradients& d, void* stream) {
    constexpr size_t bytes = sizeof(QueryShared<T, E, Tensor>);
    static_assert(bytes <= kSharedBudget, "a block has room for its tiles");
    return launch_blocks(intra_query_gradient_kernel<T, E, Tensor>, slot_tiles(p, Shape<T, E, Tensor>::rows), kThreads,
                         bytes, stream, p, d);
  }
};

// --------------------------------------------------------------------------------------------------- keys and values

// What the weights of a query need, besides its row.
template <typename A>
struct alignas(16) QueryScalars {
  A weight, delta, lse;
  int token;
  uint64_t key;  // of dropout
};

template <typename T, int E, bool Tensor>
struct KeyShared {
  using S = Shape<T, E, Tensor>;
  using A = Accumulate<T>;
  static constexpr int tile = S::pair_columns * S::pitch;
  alignas(16) T k[S::rows * S::pitch];
  alignas(16) T v[S::rows * S::pitch];
  alignas(16) T q[S::stages * tile];
  alignas(16) T grad[S::stages * tile];
  alignas(16) A scratch[S::Engine::template scratch_elements<S::pair_columns>];
  QueryScalars<A> scalars[3 * S::pair_columns];
  alignas(16) A surrogate[E];
  alignas(16) A summary[E];
  alignas(16) A summary_grad[E];
  A similarity_grad[S::rows];
  int queries[3 * S::pair_columns];
  int keys[S::rows];
};

// Adds what keys and values get through the cluster's summary, and leaves the gradients of the gates and a piece of the
// surrogate's.
template <typename T, int E, bool Tensor>
STURDY_DEVICE void add_summary_gradients(const Problem& p, const Gradients& d, const SlotTile& place,
                                         KeyShared<T, E, Tensor>& shared,
                                         typename Engine<T, Tensor>::template Sums<E>& grad_k,
                                         typename Engine<T, Tensor>::template Sums<E>& grad_v) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  const A mean_grad = four_lane_dot<E>(shared.summary_grad, shared.summary, true, E);
  const A lse = static_cast<const A*>(p.lse_summary)[place.row];
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int row = Engine::row(h);
    const int token = shared.keys[row];
    const A similarity = four_lane_dot<E>(shared.k + row * S::pitch, shared.surrogate, true, E);
    const A grad = four_lane_dot<E>(shared.v + row * S::pitch, shared.summary_grad, true, E) - mean_grad;
    A similarity_grad = 0;
    if (token >= 0) {
      const A gate = load_gate<T>(p, place.sequence, token);
      const A factor = shifted_softplus(-gate) * static_cast<A>(p.scale_k);
      const A weight = exp(similarity * factor - lse);
      similarity_grad = weight * grad * factor;
      add_row<Engine, E>(shared.surrogate, true, E, similarity_grad, h, grad_k);
      add_row<Engine, E>(shared.summary_grad, true, E, weight, h, grad_v);
      if (lane_index() % 4 == 0) {
        static_cast<A*>(d.slot_phi)[place.row * p.slots + place.first + row] =
            -sigmoid(-gate) * weight * grad * similarity * static_cast<A>(p.scale_k);
      }
    }
    if (lane_index() % 4 == 0) {
      shared.similarity_grad[row] = similarity_grad;
    }
  }
  __syncthreads();
  for (int column = static_cast<int>(threadIdx.x); column < p.dim; column += kThreads) {
    A sum = 0;
#pragma unroll 8
    for (int row = 0; row < S::rows; ++row) {
      sum += shared.similarity_grad[row] * to_accumulate(shared.k[row * S::pitch + column]);
    }
    const int64_t tile = place.first / S::rows;
    const int64_t at = tile * p.batch * p.heads * p.clusters + place.row;
    static_cast<A*>(d.surrogate_tiles)[at * p.dim + column] = sum;
  }
}

// A block takes a tile of keys and walks the queries of the cluster.
template <typename T, int E, bool Tensor>
__global__ void __launch_bounds__(kThreads, (Shape<T, E, Tensor>::blocks))
    intra_key_gradient_kernel(Problem p, Gradients d) {
  using S = Shape<T, E, Tensor>;
  using Engine = typename S::Engine;
  using A = Accumulate<T>;
  STURDY_DYNAMIC_SHARED(unsigned char, memory);
  auto& shared = *reinterpret_cast<KeyShared<T, E, Tensor>*>(memory);
  const SlotTile place(p, S::rows);
  if (place.first >= place.length) {
    return;
  }
  const int32_t* members = place.members(p);
  look_up_tokens(members, place.length, place.first, S::rows, shared.keys);
  const T* surrogate = p.surrogates.of<T>(0, place.head) + place.cluster * p.surrogates.stride[2];
  for (int i = static_cast<int>(threadIdx.x); i < E; i += kThreads) {
    const bool inside = i < p.dim;
    shared.surrogate[i] = inside ? to_accumulate(surrogate[i]) : A(0);
    shared.summary[i] = inside ? static_cast<const A*>(p.summaries)[place.row * p.dim + i] : A(0);
    shared.summary_grad[i] = inside ? static_cast<const A*>(d.summaries)[place.row * p.dim + i] : A(0);
  }
  __syncthreads();
  stage_rows<T, E>(p.k.of<T>(place.sequence, place.head), p.k.stride[2], p.k.packed, p.dim, shared.keys, S::rows,
                   shared.k);
  stage_rows<T, E>(p.v.of<T>(place.sequence, place.head), p.v.stride[2], p.v.packed, p.dim, shared.keys, S::rows,
                   shared.v);

  typename Engine::template Sums<E> grad_k;
  typename Engine::template Sums<E> grad_v;
  const int own = warp_index() * Engine::warp_rows * S::pitch;
  walk_tiles<S::stages>(
      ceil_div(place.length, S::pair_columns),
      [&](int t, int slot) {
        for (int i = static_cast<int>(threadIdx.x); i < S::pair_columns; i += kThreads) {
          const int64_t query = int64_t{t} * S::pair_columns + i;
          QueryScalars<A> scalars{};
          scalars.token = query < place.length ? members[query] : -1;
          if (scalars.token >= 0) {
            const int64_t at = place.row * p.slots + query;
            scalars.weight = static_cast<const A*>(d.slot_weight)[at];
            scalars.delta = static_cast<const A*>(d.slot_delta)[at];
            scalars.lse = static_cast<const A*>(p.lse_intra)[at];
            scalars.key = dropout_key(p, place.row, static_cast<int>(query));
          }
          shared.scalars[slot * S::pair_columns + i] = scalars;
          shared.queries[slot * S::pair_columns + i] = scalars.token;
        }
      },
      [&](int, int stage, int slot) {
        const int* tokens = shared.queries + slot * S::pair_columns;
        stage_rows<T, E>(p.q.of<T>(place.sequence, place.head), p.q.stride[2], p.q.packed, p.dim, tokens,
                         S::pair_columns, shared.q + stage * shared.tile);
        stage_rows<T, E>(d.out.of<T>(place.sequence, place.head), d.out.stride[2], d.out.packed, p.dim, tokens,
                         S::pair_columns, shared.grad + stage * shared.tile);
      },
      [&](int, int stage, int slot) {
        const T* q = shared.q + stage * shared.tile;
        const T* grad = shared.grad + stage * shared.tile;
        typename Engine::template Sums<S::pair_columns> scores;  // transposed: a row for each key
        typename Engine::template Sums<S::pair_columns> grads;
        Engine::template multiply_rows<E, S::pair_columns>(shared.k + own, q, S::pitch, scores);
        Engine::template multiply_rows<E, S::pair_columns>(shared.v + own, grad, S::pitch, grads);
        for_each_element(scores, [&](int h, int j, int v) {
          const QueryScalars<A>& query = shared.scalars[slot * S::pair_columns + Engine::score_column(j, v)];
          A& score = scores.value[h][j][v];
          A& value = grads.value[h][j][v];
          const A attention =
              query.token >= 0 ? query.weight * exponential<Tensor>(score * static_cast<A>(p.scale) - query.lse) : A(0);
          const A kept = dropout_factor<A>(p, query.key, place.first + Engine::row(h));
          score = attention * (value * kept - query.delta) * static_cast<A>(p.scale);
          value = attention * kept;
        });
        Engine::template multiply_columns<S::pair_columns, E>(scores, shared.scratch, q, S::pitch, grad_k);
        Engine::template multiply_columns<S::pair_columns, E>(grads, shared.scratch, grad, S::pitch, grad_v);
      });

  add_summary_gradients<T, E, Tensor>(p, d, place, shared, grad_k, grad_v);
  const Rows& to_k = p.disjoint ? d.k : d.slot_k;
  const Rows& to_v = p.disjoint ? d.v : d.slot_v;
#pragma unroll
  for (int h = 0; h < Engine::halves; ++h) {
    const int token = shared.keys[Engine::row(h)];
    const int64_t slot = (place.row * p.slots + place.first + Engine::row(h)) * p.dim;
    T* row_k = p.disjoint ? to_k.of<T>(place.sequence, place.head) + token * to_k.stride[2]
                          : static_cast<T*>(to_k.data) + slot;
    T* row_v = p.disjoint ? to_v.of<T>(place.sequence, place.head) + token * to_v.stride[2]
                          : static_cast<T*>(to_v.data) + slot;
    store_row<Engine, T, E>(token < 0 ? nullptr : row_k, to_k.packed, p.dim, grad_k, h, A(1));
    store_row<Engine, T, E>(token < 0 ? nullptr : row_v, to_v.packed, p.dim, grad_v, h, A(1));
  }
}

template <typename T, int E, bool Tensor>
struct KeyGradient {
  static Status run(const Problem& p, const Gradients& d, void* stream) {
    constexpr size_t bytes = sizeof(KeyShared<T, E, Tensor>);
    static_assert(bytes <= kSharedBudget, "a block has room for its tiles");
    return launch_blocks(intra_key_gradient_kernel<T, E, Tensor>, slot_tiles(p, Shape<T, E, Tensor>::rows), kThreads,
                         bytes, stream, p, d);
  }
};

}  // namespace

Status run_intra_query_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream) {
  return dispatch<QueryGradient>(dtype, allow_tf32, p.dim, p, d, stream);
}

Status run_intra_key_gradient(DType dtype, bool allow_tf32, const Problem& p, const Gradients& d, void* stream) {
  return dispatch<KeyGradient>(dtype, allow_tf32, p.dim, p, d, stream);
}

}  // namespace sturdy::cuda::clustered
