// CAST for torch.
#include "sturdy/cast.h"

#include <tuple>
#include <utility>

#include "call.h"

namespace sturdy::torch_binding {
namespace {

using IntList = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

// (B, h, N, e) stored as (B, N, h, e), so that the heads of a token lie side by side. sturdy.functional has the same
// rule for its fake kernels.
Tensor make_tokens(const Tensor& like) {
  const IntList stored = {like.size(0), like.size(2), like.size(1), like.size(3)};
  return torch::stable::transpose(make(like, stored, like.scalar_type(), MemoryFormat::Contiguous), 1, 2);
}

Tensor cast_affinity(const Tensor& q, const Tensor& k, const Tensor& surrogates, const Tensor& phi,
                     const OptionalTensor& padding, double tau_g, bool allow_tf32) {
  sturdy_cast_affinity_options options = {};
  options.struct_size = sizeof options;
  options.flags = allow_tf32 ? STURDY_CAST_ALLOW_TF32 : 0;
  options.tau_g = tau_g;
  View q_view(q);
  View k_view(k);
  View surrogate_view(surrogates);
  View phi_view(phi);
  View padding_view(padding);
  int64_t shape[3] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  check(sturdy_cast_affinity_infer(&options, q_view.get(), k_view.get(), surrogate_view.get(), phi_view.get(),
                                   padding_view.get(), &inferred));
  // Clusters come first in memory: clustering reads the tokens of a cluster one after another.
  const Tensor stored = make(q, {shape[0], shape[2], shape[1]}, ScalarType::Float, MemoryFormat::Contiguous);
  Tensor out = torch::stable::transpose(stored, 1, 2);
  const Call call(q, sturdy_cast_affinity_workspace(&options, q_view.get(), k_view.get(), surrogate_view.get(),
                                                    phi_view.get(), padding_view.get()));
  View out_view(out);
  check(sturdy_cast_affinity(call.context(), &options, q_view.get(), k_view.get(), surrogate_view.get(), phi_view.get(),
                             padding_view.get(), out_view.get()));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> cast_cluster(const Tensor& affinity, const OptionalTensor& padding,
                                                int64_t cluster_size, bool single_assignment) {
  sturdy_cast_cluster_options options = {};
  options.struct_size = sizeof options;
  options.method = single_assignment ? STURDY_CAST_SA_TOP_K : STURDY_CAST_TOP_K;
  options.cluster_size = cluster_size;
  View affinity_view(affinity);
  View padding_view(padding);
  int64_t shape[3] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  check(sturdy_cast_cluster_infer(&options, affinity_view.get(), padding_view.get(), &inferred));
  const auto integers = [&](const IntList& sizes) {
    return make(affinity, sizes, ScalarType::Int, MemoryFormat::Contiguous);
  };
  Tensor index = integers({shape[0], shape[1], shape[2]});
  Tensor counts = integers({shape[0], shape[1]});
  Tensor assignment = integers(single_assignment ? IntList{affinity.size(0), affinity.size(1)} : IntList{0});
  const Call call(affinity, sturdy_cast_cluster_workspace(&options, affinity_view.get(), padding_view.get()));
  View index_view(index);
  View counts_view(counts);
  View assignment_view = single_assignment ? View(assignment) : View();
  check(sturdy_cast_cluster(call.context(), &options, affinity_view.get(), padding_view.get(), index_view.get(),
                            counts_view.get(), assignment_view.get()));
  return {std::move(index), std::move(counts), std::move(assignment)};
}

sturdy_cast_attention_options attention_options(double tau, double tau_q, double tau_k, double dropout, bool disjoint,
                                                bool allow_tf32) {
  sturdy_cast_attention_options options = {};
  options.struct_size = sizeof options;
  options.flags = (allow_tf32 ? STURDY_CAST_ALLOW_TF32 : 0) | (disjoint ? STURDY_CAST_DISJOINT : 0);
  options.tau = tau;
  options.tau_q = tau_q;
  options.tau_k = tau_k;
  options.dropout = dropout;
  return options;
}

// The inputs of attention, seen through the C API.
struct Inputs {
  View q, k, v, surrogates, phi, index, padding, seed;
};

using Kept = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Kept cast_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& surrogates, const Tensor& phi,
                    const Tensor& index, const OptionalTensor& padding, const OptionalTensor& seed, double tau,
                    double tau_q, double tau_k, double dropout, bool disjoint, bool allow_tf32, bool keep) {
  const auto options = attention_options(tau, tau_q, tau_k, dropout, disjoint, allow_tf32);
  Inputs in = {View(q), View(k), View(v), View(surrogates), View(phi), View(index), View(padding), View(seed)};
  int64_t shape[4] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  check(sturdy_cast_attention_infer(&options, in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(), in.phi.get(),
                                    in.index.get(), in.padding.get(), in.seed.get(), &inferred));
  const int64_t batch = shape[0];
  const int64_t heads = shape[1];
  const int64_t clusters = index.size(1);
  const int64_t slots = index.size(2);
  const ScalarType wide = accumulate_dtype(q);
  const auto kept = [&](const IntList& sizes, ScalarType dtype) {
    return make(q, keep ? sizes : IntList{0}, dtype, MemoryFormat::Contiguous);
  };
  Tensor out = make_tokens(q);
  Tensor intra = kept({batch, heads, clusters, slots, shape[3]}, q.scalar_type());
  Tensor summaries = kept({batch, heads, clusters, shape[3]}, wide);
  Tensor lse_intra = kept({batch, heads, clusters, slots}, wide);
  Tensor lse_summary = kept({batch, heads, clusters}, wide);
  Tensor lse_mix = kept({batch, heads, shape[2]}, wide);
  const Call call(q, sturdy_cast_attention_workspace(&options, in.q.get(), in.surrogates.get(), in.index.get(), keep));
  const auto view = [&](const Tensor& tensor) { return keep ? View(tensor) : View(); };
  View views[] = {view(intra), view(summaries), view(lse_intra), view(lse_summary), view(lse_mix)};
  View out_view(out);
  check(sturdy_cast_attention(call.context(), &options, in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(),
                              in.phi.get(), in.index.get(), in.padding.get(), in.seed.get(), out_view.get(),
                              views[0].get(), views[1].get(), views[2].get(), views[3].get(), views[4].get()));
  return {std::move(out),       std::move(intra),       std::move(summaries),
          std::move(lse_intra), std::move(lse_summary), std::move(lse_mix)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cast_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& surrogates,
    const Tensor& phi, const Tensor& index, const OptionalTensor& padding, const OptionalTensor& seed,
    const Tensor& out, const Tensor& intra, const Tensor& summaries, const Tensor& lse_intra, const Tensor& lse_summary,
    const Tensor& lse_mix, double tau, double tau_q, double tau_k, double dropout, bool disjoint, bool allow_tf32) {
  const auto options = attention_options(tau, tau_q, tau_k, dropout, disjoint, allow_tf32);
  // A gradient may come in any layout, expanded from one number for example.
  const Tensor grad = grad_out.dim() == 4 && grad_out.size(3) > 1 && grad_out.stride(3) != 1
                          ? torch::stable::contiguous(grad_out)
                          : grad_out;
  Inputs in = {View(q), View(k), View(v), View(surrogates), View(phi), View(index), View(padding), View(seed)};
  int64_t shape[4] = {};
  sturdy_tensor inferred = {};
  inferred.shape = shape;
  check(sturdy_cast_attention_infer(&options, in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(), in.phi.get(),
                                    in.index.get(), in.padding.get(), in.seed.get(), &inferred));
  Tensor grad_q = make_tokens(q);
  Tensor grad_k = make_tokens(k);
  Tensor grad_v = make_tokens(v);
  Tensor grad_surrogates = make(q, sizes_of(surrogates), surrogates.scalar_type(), MemoryFormat::Contiguous);
  Tensor grad_phi = make(q, sizes_of(phi), phi.scalar_type(), MemoryFormat::Contiguous);
  const Call call(q,
                  sturdy_cast_attention_backward_workspace(&options, in.q.get(), in.surrogates.get(), in.index.get()));
  View grad_view(grad);
  View kept[] = {View(out), View(intra), View(summaries), View(lse_intra), View(lse_summary), View(lse_mix)};
  View found[] = {View(grad_q), View(grad_k), View(grad_v), View(grad_surrogates), View(grad_phi)};
  check(sturdy_cast_attention_backward(
      call.context(), &options, grad_view.get(), in.q.get(), in.k.get(), in.v.get(), in.surrogates.get(), in.phi.get(),
      in.index.get(), in.padding.get(), in.seed.get(), kept[0].get(), kept[1].get(), kept[2].get(), kept[3].get(),
      kept[4].get(), kept[5].get(), found[0].get(), found[1].get(), found[2].get(), found[3].get(), found[4].get()));
  return {std::move(grad_q), std::move(grad_k), std::move(grad_v), std::move(grad_surrogates), std::move(grad_phi)};
}

}  // namespace

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CPU, m) {
  m.impl("cast_affinity", TORCH_BOX(&cast_affinity));
  m.impl("cast_cluster", TORCH_BOX(&cast_cluster));
  m.impl("cast_attention", TORCH_BOX(&cast_attention));
  m.impl("cast_attention_backward", TORCH_BOX(&cast_attention_backward));
}

STURDY_TORCH_LIBRARY_IMPL(STURDY_TORCH_NAMESPACE, CUDA, m) {
  m.impl("cast_affinity", TORCH_BOX(&cast_affinity));
  m.impl("cast_cluster", TORCH_BOX(&cast_cluster));
  m.impl("cast_attention", TORCH_BOX(&cast_attention));
  m.impl("cast_attention_backward", TORCH_BOX(&cast_attention_backward));
}

}  // namespace sturdy::torch_binding
