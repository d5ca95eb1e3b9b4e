"""CAST: attention within clusters of tokens, and summaries of the other clusters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sturdy import _registration
from sturdy._errors import ShapeError
from sturdy.functional import cast_composite

METHODS = ("topk", "sa_topk")
BACKENDS = ("auto", "cuda", "cpu", "reference")


class CASTClusters(NamedTuple):
    """Which tokens are in which cluster: what :func:`cast_cluster` found, to be used once more or shared.

    Attributes:
        index: ``(B, C, kappa)`` int32: token in each slot of each cluster, -1 for an empty one.
        counts: ``(B, C)`` int32: tokens in each cluster.
        assignment: ``(B, N)`` int32: cluster of each token, -1 for padding; None with ``"topk"``, where a token may be
            in none or in several.
        method: ``"topk"`` or ``"sa_topk"``.
    """

    index: Tensor  # type: ignore[assignment]  # tuple has a method of that name
    counts: Tensor
    assignment: Tensor | None
    method: str


def cast_affinity(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    *,
    tau_g: float | None = None,
    key_padding_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    allow_tf32: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """How much each token belongs with each cluster: what :func:`cast_cluster` chooses by.

    ``pk + sigmoid(phi) (pq - pk)`` with ``pq`` the softmax over clusters of the products of queries and surrogate
    tokens, added over heads and divided by ``tau_g``, and ``pk`` the same of keys.

    Args:
        q, k: ``(B, h, N, e)``; float16, bfloat16, float32 or float64; any strides (views of ``(B, N, h, e)`` are read
            where they lie).
        surrogates: ``(h, C, e)``, the dtype and device of ``q``.
        phi: ``(B, N)``, float32 or the dtype of ``q``: logit of each token's gate between query and key.
        tau_g: Temperature; None means ``sqrt(h e)``.
        key_padding_mask, lengths, allow_tf32, backend: As in :func:`cast_attention`.

    Returns:
        ``(B, N, C)``, float32 whatever the dtype of ``q``, stored with the clusters first; -inf in rows of padding.
        No gradient goes through it.

    Raises:
        ShapeError, ValueError, TypeError, NotImplementedError, RuntimeError: as :func:`cast_attention`.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST: Clustering self-attention using surrogate tokens for
    efficient transformers*, 2024.
    """
    op = "cast_affinity"
    _check_queries(op, q)
    padding = _padding(op, q.shape[0], q.shape[2], q.device, key_padding_mask, lengths)
    allowed = _registration.tf32_allowed() if allow_tf32 is None else allow_tf32
    arguments = (_rows(q), _rows(k), _rows(surrogates), phi, padding, _temperature(op, "tau_g", tau_g), allowed)
    if _uses_reference(op, backend, q):
        with torch.no_grad():
            return cast_composite.composite_affinity(*arguments)
    affinity: Tensor = _registration.call(op, *arguments)
    return affinity


def cast_cluster(
    affinity: Tensor,
    cluster_size: int | None = None,
    method: str = "topk",
    *,
    key_padding_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> CASTClusters:
    """Choose the tokens of each cluster by their affinity.

    Pairs of a token and a cluster are ordered by affinity, the larger first, then by token, then by cluster; NaN comes
    last. ``"topk"``: each cluster takes its first ``cluster_size`` tokens, so that a token may be in no cluster, in one
    or in several. ``"sa_topk"``: going through all pairs in order, a token that is still free joins a cluster that
    still has room. The choice is unique: CPU and CUDA make the same one, ties or not.

    Args:
        affinity: ``(B, N, C)``, float32; any strides, fastest with the clusters first in memory.
        cluster_size: Slots of a cluster. None: ``N / C`` rounded up, and with ``"sa_topk"`` clusters whose sizes differ
            by at most one.
        method: ``"topk"`` or ``"sa_topk"``.
        key_padding_mask, lengths, backend: As in :func:`cast_attention`.

    Returns:
        :class:`CASTClusters` with ``kappa = min(cluster_size, N)``; tokens ascend within a cluster, empty slots come
        last. No gradient.

    Raises:
        ShapeError, ValueError, TypeError, NotImplementedError, RuntimeError: as :func:`cast_attention`.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST*, 2024 (Top-K and SA Top-K; the greedy order over pairs is
    this library's reading of the latter).
    """
    op = "cast_cluster"
    if affinity.dim() != 3:
        raise ShapeError(f"{op}: affinity must be (B, N, C), got shape {tuple(affinity.shape)}")
    single = _check_method(op, method)
    size = _cluster_size(op, cluster_size)
    padding = _padding(op, affinity.shape[0], affinity.shape[1], affinity.device, key_padding_mask, lengths)
    if _uses_reference(op, backend, affinity):
        with torch.no_grad():
            index, counts, assignment = cast_composite.composite_cluster(affinity, padding, size, single)
    else:
        index, counts, assignment = _registration.call(op, affinity, padding, size, single)
    return CASTClusters(index, counts, assignment if single else None, method)


def cast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    cluster_size: int | None = None,
    *,
    method: str = "topk",
    key_padding_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    clusters: CASTClusters | None = None,
    scale: float | None = None,
    tau_q: float | None = None,
    tau_k: float | None = None,
    tau_g: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    allow_tf32: bool | None = None,
    backend: str = "auto",
    return_clusters: bool = False,
) -> Tensor | tuple[Tensor, CASTClusters]:
    """Self-attention whose cost per token is set by the size and number of clusters, not by the sequence.

    Tokens attend to the others of their cluster; of each cluster that a token is not in it receives a summary. With
    ``P`` a softmax over the clusters of ``q . s softplus1(phi) / tau_q``, a token's result is the sum over its clusters
    of ``P`` times its attention there, and over the others of ``P`` times their summary, the mean of their values
    under a softmax of ``k . s softplus1(-phi) / tau_k``; ``softplus1(x) = log(1 + e^x) + 1``. One cluster that holds
    all tokens is scaled dot product attention.

    Args:
        q, k, v: ``(B, h, N, e)``, one shape, dtype (float16, bfloat16, float32 or float64) and device; any strides
            (views of ``(B, N, h, e)`` are read where they lie). On CUDA ``e`` is at most 128.
        surrogates: ``(h, C, e)``, the dtype and device of ``q``.
        phi: ``(B, N)``, float32 or the dtype of ``q``: logit of each token's gate.
        cluster_size, method: As in :func:`cast_cluster`.
        key_padding_mask: ``(B, N)``: True where there is no token, or floating point with 0 for tokens and -inf for
            padding. Padding is in no cluster and its results are 0, whatever the tensors hold there.
        lengths: ``(B,)``, integers, 0 to N: the same for sequences that are padded at their end. Not both.
        clusters: Use these instead of choosing them: frozen, shared between layers, or of an earlier call.
            ``cluster_size``, ``method`` and ``tau_g`` have no meaning then.
        scale: Factor of the products of queries and keys; None means ``1 / sqrt(e)``.
        tau_q, tau_k: Temperatures of the mixing weights and of the summaries; None means ``sqrt(e)``.
        tau_g: Temperature of the affinity; None means ``sqrt(h e)``.
        dropout: Probability with which a weight within a cluster is set to 0, the others growing to match; 0 to 1,
            without 1. Applies whenever it is not 0: pass 0 for evaluation.
        seed: One int64 on the device of ``q``; what is dropped follows from it, on every device alike. None draws one
            from torch's generator.
        allow_tf32: On CUDA, let tensor cores multiply float32 after rounding it to 10 fraction bits. None follows
            ``torch.backends.cuda.matmul.fp32_precision``.
        backend: ``"auto"`` takes the kernels of the tensors' device, ``"cpu"`` and ``"cuda"`` insist on one,
            ``"reference"`` is the same in torch's own operations, slow, which can be differentiated twice.
        return_clusters: Return the clusters as well.

    Returns:
        ``(B, h, N, e)``, the dtype of ``q``, stored as ``(B, N, h, e)``, so that ``out.transpose(1, 2).flatten(2)`` is
        a view; or that and the :class:`CASTClusters`.

    Raises:
        ShapeError: shapes or devices disagree, or clusters are not those of such tensors; both a ``ValueError`` and a
            ``RuntimeError``.
        ValueError: an option is out of range, or the slots of ``"sa_topk"`` do not hold all tokens.
        TypeError: dtypes disagree or are unsupported.
        NotImplementedError: a size or device that this build has no kernel for.
        RuntimeError: ``backend`` does not fit the build or the tensors; a second derivative was asked for.

    Note:
        Gradients flow to q, k, v, surrogates and phi with the clusters held fixed: not through the affinity. Results
        and gradients are the same bits each time, on any number of threads. Under autocast q, k, v and surrogates are
        cast; sums, gates and softmaxes stay in float32. Nothing of size N times ``cluster_size`` is allocated.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST: Clustering self-attention using surrogate tokens for
    efficient transformers*, 2024.
    """
    op = "cast_attention"
    _check_queries(op, q)
    reference = _uses_reference(op, backend, q)
    padding = _padding(op, q.shape[0], q.shape[2], q.device, key_padding_mask, lengths)
    allowed = _registration.tf32_allowed() if allow_tf32 is None else allow_tf32
    q, k, v, surrogates = _rows(q), _rows(k), _rows(v), _rows(surrogates)
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"{op}: scale must be greater than 0 and finite, got {scale}")
    numbers = (
        0.0 if scale is None else 1 / scale,
        _temperature(op, "tau_q", tau_q),
        _temperature(op, "tau_k", tau_k),
        _dropout(op, dropout),
    )
    if clusters is None:
        single = _check_method(op, method)
        size = _cluster_size(op, cluster_size)
        chosen = _choose(
            q, k, surrogates, phi, padding, _temperature(op, "tau_g", tau_g), allowed, size, single, reference
        )
        clusters = CASTClusters(*chosen[:2], chosen[2] if single else None, method)
    else:
        single = _check_method(op, clusters.method)
        _check_clusters(op, clusters, q, surrogates)
    if dropout > 0 and seed is None:
        seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=q.device)
    tensors = (q, k, v, surrogates, phi, clusters.index, padding, seed if dropout > 0 else None)
    if reference:
        out = cast_composite.composite_attention(*tensors, *numbers, single, allowed)
    else:
        wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, surrogates, phi))
        out = _registration.call(op, *tensors, *numbers, single, allowed, wants_gradient)[0]
    return (out, clusters) if return_clusters else out


# ---- arguments -------------------------------------------------------------------------------------------------------


def _check_queries(op: str, q: Tensor) -> None:
    if q.dim() != 4:
        raise ShapeError(f"{op}: q must be (B, h, N, e), got shape {tuple(q.shape)}")


def _check_method(op: str, method: str) -> bool:
    """Whether each token goes to a single cluster."""
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    return method == "sa_topk"


def _cluster_size(op: str, cluster_size: int | None) -> int:
    if cluster_size is not None and cluster_size < 1:
        raise ValueError(f"{op}: cluster_size must be at least 1, got {cluster_size}")
    return 0 if cluster_size is None else int(cluster_size)


def _temperature(op: str, name: str, value: float | None) -> float:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{op}: {name} must be greater than 0 and finite, got {value}")
    return 0.0 if value is None else float(value)


def _dropout(op: str, dropout: float) -> float:
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout must be at least 0 and less than 1, got {dropout}")
    return float(dropout)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with stride 1 along its last dimension, which kernels read in one piece."""
    return tensor if tensor.dim() == 0 or tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _uses_reference(op: str, backend: str, tensor: Tensor) -> bool:
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend in ("cpu", "cuda") and tensor.device.type != backend:
        from sturdy import build_info

        built = build_info()["cuda"]
        kernels = "no CUDA kernels" if built is None else "CUDA kernels"
        raise RuntimeError(
            f"{op}: backend={backend!r} needs tensors on that device, got {tensor.device}; this build has {kernels}"
        )
    return backend == "reference"


def _padding(
    op: str, batch: int, tokens: int, device: torch.device, mask: Tensor | None, lengths: Tensor | None
) -> Tensor | None:
    """``(B, N)`` bool, True for padding, out of either way to say so."""
    if mask is not None and lengths is not None:
        raise ValueError(f"{op}: give key_padding_mask or lengths, not both")
    if mask is not None:
        return padding_mask(op, mask, batch, tokens)
    if lengths is None:
        return None
    if tuple(lengths.shape) != (batch,):
        raise ShapeError(f"{op}: lengths must have shape ({batch},), got {tuple(lengths.shape)}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{op}: lengths must be integers, got {lengths.dtype}")
    values_here = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    if values_here and batch > 0 and (int(lengths.min()) < 0 or int(lengths.max()) > tokens):
        raise ValueError(f"{op}: lengths must be 0 to N = {tokens}, got {lengths.tolist()}")
    return torch.arange(tokens, device=device) >= lengths.to(device)[:, None]


def padding_mask(op: str, mask: Tensor, batch: int, tokens: int) -> Tensor:
    """A key padding mask as bool; of floating point, as torch's encoders pass it on, 0 and -inf are understood."""
    if tuple(mask.shape) != (batch, tokens):
        raise ShapeError(f"{op}: key_padding_mask must have shape ({batch}, {tokens}), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise TypeError(f"{op}: key_padding_mask must be bool, or floating point with 0 and -inf, got {mask.dtype}")
    padding = mask == -math.inf
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((padding | (mask == 0)).all()):
        raise ValueError(f"{op}: key_padding_mask of floating point must hold 0 and -inf alone")
    return padding


def _check_clusters(op: str, clusters: CASTClusters, q: Tensor, surrogates: Tensor) -> None:
    """Refuse clusters that are not those of such tensors; what they hold is looked at on the CPU alone."""
    index = clusters.index
    if index.dim() != 3 or surrogates.dim() != 3 or tuple(index.shape[:2]) != (q.shape[0], surrogates.shape[1]):
        wanted = (q.shape[0], surrogates.shape[1] if surrogates.dim() == 3 else "C", "kappa")
        raise ShapeError(f"{op}: clusters.index must have shape {wanted}, got {tuple(index.shape)}")
    if index.device.type != "cpu" or torch.compiler.is_compiling() or index.numel() == 0:
        return
    rows = index.flatten(0, 1) if clusters.method == "topk" else index.flatten(1)
    ordered = rows.sort(dim=1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        where = "one cluster" if clusters.method == "topk" else "the clusters of one sequence, with sa_topk"
        raise ShapeError(f"{op}: clusters.index holds a token twice in {where}")


def _choose(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    padding: Tensor | None,
    tau_g: float,
    allow_tf32: bool,
    cluster_size: int,
    single: bool,
    reference: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Index, counts and assignment of the clusters of these tokens."""
    with torch.no_grad():
        if reference:
            affinity = cast_composite.composite_affinity(q, k, surrogates, phi, padding, tau_g, allow_tf32)
            return cast_composite.composite_cluster(affinity, padding, cluster_size, single)
        affinity = _registration.call("cast_affinity", q, k, surrogates, phi, padding, tau_g, allow_tf32)
        found: tuple[Tensor, Tensor, Tensor] = _registration.call(
            "cast_cluster", affinity, padding, cluster_size, single
        )
        return found


# ---- registration ----------------------------------------------------------------------------------------------------


def _empty_tokens(like: Tensor) -> Tensor:
    """``(B, h, N, e)`` stored as ``(B, N, h, e)``; the same rule as ``make_tokens`` in the C++ binding."""
    batch, heads, tokens, dim = like.shape
    return like.new_empty((batch, tokens, heads, dim)).transpose(1, 2)


def _check_devices(op: str, q: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        _check_device(op, name, tensor, q)


def _check_device(op: str, name: str, tensor: Tensor, q: Tensor) -> None:
    torch._check(tensor.device == q.device, lambda: f"{op}: {name} must be on {q.device}, got {tensor.device}")


def _fake_affinity(
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, padding: Tensor | None, tau_g: float, allow_tf32: bool
) -> Tensor:
    torch._check(q.dim() == 4 and surrogates.dim() == 3, lambda: "cast_affinity: q must be 4-D and surrogates 3-D")
    _check_devices("cast_affinity", q, k=k, surrogates=surrogates, phi=phi)
    return q.new_empty((q.shape[0], surrogates.shape[1], q.shape[2]), dtype=torch.float32).transpose(1, 2)


def _fake_cluster(
    affinity: Tensor, padding: Tensor | None, cluster_size: int, single_assignment: bool
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(affinity.dim() == 3, lambda: "cast_cluster: affinity must be (B, N, C)")
    batch, tokens, clusters = affinity.shape
    size = (tokens + clusters - 1) // clusters if cluster_size == 0 else cluster_size
    slots = torch.sym_min(size, tokens)

    def integers(*shape: Any) -> Tensor:
        return affinity.new_empty(shape, dtype=torch.int32)

    assignment = integers(batch, tokens) if single_assignment else integers(0)
    return integers(batch, clusters, slots), integers(batch, clusters), assignment


def _fake_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    padding: Tensor | None,
    seed: Tensor | None,
    tau: float,
    tau_q: float,
    tau_k: float,
    dropout: float,
    disjoint: bool,
    allow_tf32: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    torch._check(q.dim() == 4 and index.dim() == 3, lambda: "cast_attention: q must be 4-D and index 3-D")
    torch._check(
        q.dtype == k.dtype and q.dtype == v.dtype and q.dtype == surrogates.dtype,
        lambda: "cast_attention: k, v and surrogates must have the dtype of q",
    )
    _check_devices("cast_attention", q, k=k, v=v, surrogates=surrogates, phi=phi, index=index)
    batch, heads, tokens, dim = q.shape
    clusters, slots = index.shape[1], index.shape[2]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32

    def kept(*shape: Any, dtype: torch.dtype = wide) -> Tensor:
        return q.new_empty(shape if keep else (0,), dtype=dtype)

    return (
        _empty_tokens(q),
        kept(batch, heads, clusters, slots, dim, dtype=q.dtype),
        kept(batch, heads, clusters, dim),
        kept(batch, heads, clusters, slots),
        kept(batch, heads, clusters),
        kept(batch, heads, tokens),
    )


def _fake_attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor, phi: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return (
        *(_empty_tokens(q) for _ in range(3)),
        surrogates.new_empty(surrogates.shape),
        phi.new_empty(phi.shape),
    )


def _setup_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors_and_numbers, keep = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.keep = keep
    ctx.numbers = tensors_and_numbers[8:]
    ctx.save_for_backward(*tensors_and_numbers[:8], *(output if keep else ()))


def _attention_backward_in(namespace: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 15
        if not ctx.keep:
            raise RuntimeError("cast_attention: keep must be True for what is to be differentiated")
        *saved, out, intra, summaries, lse_intra, lse_summary, lse_mix = ctx.saved_tensors
        op = getattr(torch.ops, namespace).cast_attention_backward
        found = op(grad_out, *saved, out, intra, summaries, lse_intra, lse_summary, lse_mix, *ctx.numbers)
        wanted = ctx.needs_input_grad[:5]
        return (*(grad if want else None for grad, want in zip(found, wanted, strict=True)), *((None,) * 10))

    return backward


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "cast_attention_backward has no derivative: cast_attention can be differentiated once; "
        "backend='reference' can be differentiated twice"
    )


def _no_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
    ctx.set_materialize_grads(False)
    ctx.inputs = len(inputs)


def _no_gradient(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    return (None,) * int(ctx.inputs)


def _cast_tokens(count: int) -> Any:
    """Autocast for the first ``count`` arguments, q to surrogates; gates and the rest act in float32 anyway."""

    def cast(dtype: torch.dtype, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*(_registration.autocast_tensor(tensor, dtype) for tensor in args[:count]), *args[count:])

    return cast


@_registration.op_family
def _register_cast(namespace: str) -> None:
    ops = getattr(torch.ops, namespace)
    fakes: dict[str, Callable[..., Any]] = {
        "cast_affinity": _fake_affinity,
        "cast_cluster": _fake_cluster,
        "cast_attention": _fake_attention,
        "cast_attention_backward": _fake_attention_backward,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", _registration.vmap_by_loop(getattr(ops, name)))
    for name in ("cast_affinity", "cast_cluster"):
        torch.library.register_autograd(f"{namespace}::{name}", _no_gradient, setup_context=_no_gradient_setup)
    torch.library.register_autograd(
        f"{namespace}::cast_attention", _attention_backward_in(namespace), setup_context=_setup_attention
    )
    torch.library.register_autograd(f"{namespace}::cast_attention_backward", _no_second_derivative)
    _registration.register_autocast(namespace, "cast_affinity", _cast_tokens(3))
    _registration.register_autocast(namespace, "cast_attention", _cast_tokens(4))
