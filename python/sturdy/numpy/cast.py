"""CAST: clusters of tokens, and attention within them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sturdy import _numpy
from sturdy.numpy._arguments import Array, integer

_METHODS = ("topk", "sa_topk")


class CASTClusters(NamedTuple):
    """Which tokens are in which cluster.

    Attributes:
        index: ``(B, C, kappa)`` int32: token in each slot of each cluster, -1 for an empty one.
        counts: ``(B, C)`` int32: tokens in each cluster.
        assignment: ``(B, N)`` int32: cluster of each token, -1 for padding; None with ``"topk"``.
        method: ``"topk"`` or ``"sa_topk"``.
    """

    index: Any
    counts: Any
    assignment: Any | None
    method: str


class CASTKept(NamedTuple):
    """What :func:`cast_attention` hands to :func:`cast_attention_backward`; float64 for float64 inputs, else float32.

    Attributes:
        intra: ``(B, h, C, kappa, e)``, the dtype of the inputs: attention within each cluster.
        summaries: ``(B, h, C, e)``.
        lse_intra, lse_summary, lse_mix: ``(B, h, C, kappa)``, ``(B, h, C)`` and ``(B, h, N)``: the logarithms of the
            sums of the three softmaxes.
    """

    intra: Any
    summaries: Any
    lse_intra: Any
    lse_summary: Any
    lse_mix: Any


class CASTGradients(NamedTuple):
    """Gradients of ``sum(grad_out * out)``, each of the shape and dtype of what it belongs to."""

    q: Any
    k: Any
    v: Any
    surrogates: Any
    phi: Any


def cast_affinity(
    q: Array,
    k: Array,
    surrogates: Array,
    phi: Array,
    *,
    tau_g: float | None = None,
    padding: Array | None = None,
    out: Array | None = None,
) -> Any:
    """How much each token belongs with each cluster.

    The arguments have the meaning they have in :func:`sturdy.functional.cast_affinity`, and the numbers are the same to
    the last bit.

    Args:
        q, k: ``(B, h, N, e)``; float16, bfloat16, float32 or float64; stride 1 along ``e``, any others.
        surrogates: ``(h, C, e)``, the dtype of ``q``.
        phi: ``(B, N)``, float32 or the dtype of ``q``.
        tau_g: Temperature; None means ``sqrt(h e)``.
        padding: ``(B, N)``, bool or uint8, not 0 where there is no token; None for none.
        out: Memory for the result, float32; any strides.

    Returns:
        ``out`` if it was given, else a new array ``(B, N, C)``, float32, stored with the clusters first.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST*, 2024.
    """
    return _numpy.cast_affinity(q, k, surrogates, phi, padding, _temperature("cast_affinity", "tau_g", tau_g), out)


def cast_cluster(
    affinity: Array, cluster_size: int | None = None, method: str = "topk", *, padding: Array | None = None
) -> CASTClusters:
    """Choose the tokens of each cluster by their affinity; see :func:`sturdy.functional.cast_cluster`.

    Args:
        affinity: ``(B, N, C)``, float32; any strides, fastest with the clusters first in memory.
        cluster_size: Slots of a cluster; None: ``N / C`` rounded up.
        method: ``"topk"`` or ``"sa_topk"``.
        padding: As in :func:`cast_affinity`.

    Returns:
        :class:`CASTClusters` of new NumPy arrays.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST*, 2024.
    """
    op = "cast_cluster"
    size = 0 if cluster_size is None else integer(op, "cluster_size", cluster_size)
    if cluster_size is not None and size < 1:
        raise ValueError(f"{op}: cluster_size must be at least 1, got {size}")
    index, counts, assignment = _numpy.cast_cluster(affinity, size, _is_single(op, method), padding)
    return CASTClusters(index, counts, assignment, method)


def cast_attention(
    q: Array,
    k: Array,
    v: Array,
    surrogates: Array,
    phi: Array,
    clusters: CASTClusters,
    *,
    padding: Array | None = None,
    tau: float | None = None,
    tau_q: float | None = None,
    tau_k: float | None = None,
    dropout: float = 0.0,
    seed: Array | None = None,
    out: Array | None = None,
    keep: bool = False,
) -> Any:
    """Attention within clusters, mixed with summaries of the others; see :func:`sturdy.functional.cast_attention`.

    Args:
        q, k, v: ``(B, h, N, e)``, one shape and dtype; stride 1 along ``e``, any others.
        surrogates: ``(h, C, e)``, the dtype of ``q``.
        phi: ``(B, N)``, float32 or the dtype of ``q``.
        clusters: Of these tokens, by :func:`cast_cluster`.
        padding: As in :func:`cast_affinity`.
        tau, tau_q, tau_k: Temperatures; None means ``sqrt(e)``.
        dropout: Probability with which a weight within a cluster is set to 0, in [0, 1); needs ``seed`` unless 0.
        seed: One int64 in an array.
        out: Memory for the result; stride 1 along ``e``. Needed for bfloat16.
        keep: Return what the backward pass needs, too.

    Returns:
        ``out`` if it was given, else a new array ``(B, h, N, e)`` stored as ``(B, N, h, e)``; with ``keep`` a pair of
        that and :class:`CASTKept`.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST*, 2024.
    """
    op = "cast_attention"
    inputs = (q, k, v, surrogates, phi, clusters.index, padding, seed)
    numbers = _numbers(op, tau, tau_q, tau_k, dropout)
    result, kept = _numpy.cast_attention(inputs, numbers, _is_single(op, clusters.method), bool(keep), out)
    return (result, CASTKept(*kept)) if keep else result


def cast_attention_backward(
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    surrogates: Array,
    phi: Array,
    clusters: CASTClusters,
    out: Array,
    kept: CASTKept,
    *,
    padding: Array | None = None,
    tau: float | None = None,
    tau_q: float | None = None,
    tau_k: float | None = None,
    dropout: float = 0.0,
    seed: Array | None = None,
    gradients: CASTGradients | None = None,
) -> CASTGradients:
    """Gradients of :func:`cast_attention` with the clusters held fixed.

    Args:
        grad_out: Gradient of the output: its shape and dtype; stride 1 along ``e``.
        out, kept: What the forward call returned with ``keep=True``.
        gradients: Memory for the results. Needed for bfloat16.

    The other arguments are those of the forward call.

    Returns:
        ``gradients`` if it was given, else :class:`CASTGradients` of new NumPy arrays.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST*, 2024.
    """
    op = "cast_attention_backward"
    inputs = (q, k, v, surrogates, phi, clusters.index, padding, seed)
    numbers = _numbers(op, tau, tau_q, tau_k, dropout)
    single = _is_single(op, clusters.method)
    targets = None if gradients is None else tuple(gradients)
    found = _numpy.cast_attention_backward(grad_out, inputs, out, tuple(kept), numbers, single, targets)
    return CASTGradients(*found)


def _is_single(op: str, method: str) -> bool:
    if method not in _METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    return method == "sa_topk"


def _temperature(op: str, name: str, value: float | None) -> float:
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"{op}: {name} must be greater than 0 and finite, got {value}")
    return 0.0 if value is None else float(value)


def _numbers(
    op: str, tau: float | None, tau_q: float | None, tau_k: float | None, dropout: float
) -> tuple[float, float, float, float]:
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout must be at least 0 and less than 1, got {dropout}")
    temperatures = [_temperature(op, name, t) for name, t in (("tau", tau), ("tau_q", tau_q), ("tau_k", tau_k))]
    return temperatures[0], temperatures[1], temperatures[2], float(dropout)
