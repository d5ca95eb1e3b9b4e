"""CAST in torch's own operations, on any device: ``backend="reference"``, and what its kernels are measured against.

The argument lists are those of the ops. Tokens of a cluster are gathered side by side, and everything within clusters
is a batched product over them; nothing here is of order N x N. Differentiable as often as torch's operations are.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.functional._arguments import autocast_enabled

# Keys put a float32 into the high word, and what breaks ties into the low one.
_LOW_WORD = 2**31 - 1
_BEFORE_ALL = torch.iinfo(torch.int64).min


def composite_affinity(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    padding: Tensor | None = None,
    tau_g: float = 0.0,
    allow_tf32: bool = False,
) -> Tensor:
    """How much each token belongs with each cluster: :func:`sturdy.functional.cast_affinity`.

    Args:
        q, k: ``(B, h, N, e)``.
        surrogates: ``(h, C, e)``.
        phi: ``(B, N)``.
        padding: ``(B, N)``, not 0 where there is no token, or None.
        tau_g: Temperature; 0 means ``sqrt(h e)``.
        allow_tf32: Not used; torch's own settings hold for its products.

    Returns:
        ``(B, N, C)`` float32, of memory ``(B, C, N)``; -infinity in rows of padding. Without a gradient.
    """
    heads, clusters, dim = surrogates.shape
    compute = _wide(q.dtype)
    with torch.no_grad(), _without_autocast(q.device.type):
        # All heads at once: one product of the full width for each side.
        flat = surrogates.to(compute).transpose(0, 1).reshape(clusters, heads * dim) / (tau_g or math.sqrt(heads * dim))
        like_queries, like_keys = (
            torch.softmax(flat @ tokens.transpose(1, 2).flatten(2).transpose(1, 2).to(compute), dim=1)
            for tokens in (q, k)
        )
        gate = torch.sigmoid(phi.to(compute)).unsqueeze(1)
        affinity = like_keys + gate * (like_queries - like_keys)
        if padding is not None:
            affinity = affinity.masked_fill(padding.bool().unsqueeze(1), -math.inf)
    return affinity.float().transpose(1, 2)


# ---- clusters --------------------------------------------------------------------------------------------------------


def composite_cluster(
    affinity: Tensor, padding: Tensor | None = None, cluster_size: int = 0, single_assignment: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens each cluster takes: :func:`sturdy.functional.cast_cluster`, to the last token.

    Args:
        affinity: ``(B, N, C)``.
        padding: ``(B, N)``, not 0 where there is no token, or None.
        cluster_size: 0 means ``N / C`` rounded up.
        single_assignment: SA Top-K in place of Top-K.

    Returns:
        index ``(B, C, kappa)``, counts ``(B, C)`` and assignment, ``(B, N)`` or empty without ``single_assignment``;
        all int32.
    """
    batch, tokens, clusters = affinity.shape
    balanced = -(-tokens // clusters)
    slots = min(cluster_size or balanced, tokens)
    if single_assignment and slots < balanced:
        raise ShapeError(
            "cast_cluster: with sa_topk every token needs a slot: capacity C * cluster_size = "
            f"{clusters} * {cluster_size} = {clusters * cluster_size} < N = {tokens}"
        )
    with torch.no_grad():
        score = _ordered_bits(affinity)
        there = affinity.new_ones(batch, tokens, dtype=torch.bool) if padding is None else ~padding.bool()
        if single_assignment:
            index, counts, assignment = _single_assignment(score, there, cluster_size, slots)
        else:
            index, counts = _top_k(score, there, slots)
            assignment = index.new_empty(0)
    return index, counts, assignment


def _ordered_bits(affinity: Tensor) -> Tensor:
    """int64 in the order of the numbers, between -2^63 and 2^63, multiples of 2^32: NaN the least, -0 equal to 0."""
    # By integers alone: what the processor is told to do with subnormal numbers does not matter.
    bits = affinity.float().view(torch.int32)
    magnitude = bits & _LOW_WORD
    ordered = torch.where(bits < 0, bits ^ _LOW_WORD, bits).masked_fill(magnitude == 0, 0)
    ordered = ordered.masked_fill(magnitude > 0x7F800000, torch.iinfo(torch.int32).min)
    return ordered.long() << 32


def _top_k(score: Tensor, there: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    tokens = score.shape[1]
    token = torch.arange(tokens, device=score.device)
    keys = score.transpose(1, 2) + (_LOW_WORD - token)
    keys = keys.masked_fill(~there.unsqueeze(1), _BEFORE_ALL)
    best, index = keys.topk(slots, dim=2, sorted=False)
    taken = best != _BEFORE_ALL
    index = index.masked_fill(~taken, tokens).sort(dim=2).values
    return index.masked_fill(index == tokens, -1).int(), taken.sum(2, dtype=torch.int32)


def _single_assignment(score: Tensor, there: Tensor, cluster_size: int, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Deferred acceptance: all tokens ask their best cluster, which keeps the best of those who ask; repeat.

    Both sides rank pairs in the one order of all pairs, so there is one stable matching: what going through the pairs
    one by one finds.
    """
    batch, tokens, clusters = score.shape
    device = score.device
    token, cluster = torch.arange(tokens, device=device), torch.arange(clusters, device=device)
    of_token = score + (_LOW_WORD - cluster)  # orders the clusters of a token
    of_cluster = score + (_LOW_WORD - token).unsqueeze(1)  # orders the tokens of a cluster
    count = there.sum(1, keepdim=True)
    room = torch.full((batch, clusters), cluster_size, device=device)
    if not cluster_size:
        room = count // clusters + (cluster < count % clusters)
    # The least key that a cluster still takes.
    threshold = torch.full_like(room, _BEFORE_ALL).masked_fill(room == 0, torch.iinfo(torch.int64).max)
    while True:
        open_to = of_cluster >= threshold.unsqueeze(1)
        choice = of_token.masked_fill(~open_to, _BEFORE_ALL).argmax(2).masked_fill(~there, clusters)
        asked, order, first = _by_cluster(choice, clusters, of_cluster)
        over = asked > room
        if not bool(over.any()):
            break
        last = (first + room - 1).clamp(0, max(tokens - 1, 0))
        who = order.gather(1, last)
        keys = of_cluster.gather(1, who.unsqueeze(2).expand(-1, -1, clusters)).diagonal(dim1=1, dim2=2)
        threshold = torch.where(over, keys, threshold)
    slot = torch.arange(slots, device=device)
    order = choice.argsort(dim=1, stable=True)
    place = (first.unsqueeze(2) + slot).clamp(max=max(tokens - 1, 0))
    index = order.gather(1, place.flatten(1)).view(batch, clusters, slots)
    index = index.masked_fill(slot >= asked.unsqueeze(2), -1)
    return index.int(), asked.int(), choice.masked_fill(~there, -1).int()


def _by_cluster(choice: Tensor, clusters: int, of_cluster: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many tokens chose each cluster, tokens sorted by cluster and key, and where each cluster begins there."""
    asked = choice.new_zeros(choice.shape[0], clusters + 1)
    asked = asked.scatter_add(1, choice, torch.ones_like(choice))[:, :clusters]
    key = of_cluster.gather(2, choice.clamp(max=clusters - 1).unsqueeze(2)).squeeze(2)
    by_key = key.argsort(dim=1, descending=True)
    order = by_key.gather(1, choice.gather(1, by_key).argsort(dim=1, stable=True))
    return asked, order, asked.cumsum(1) - asked


# ---- attention -------------------------------------------------------------------------------------------------------


def composite_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    padding: Tensor | None = None,
    seed: Tensor | None = None,
    tau: float = 0.0,
    tau_q: float = 0.0,
    tau_k: float = 0.0,
    dropout: float = 0.0,
    disjoint: bool = False,
    allow_tf32: bool = False,
    keep: bool = False,
) -> Tensor:
    """Attention within clusters, mixed with summaries of the others: :func:`sturdy.functional.cast_attention`.

    Args:
        q, k, v: ``(B, h, N, e)``, one floating dtype.
        surrogates: ``(h, C, e)``, the same dtype.
        phi: ``(B, N)``, the same dtype or float32.
        index: ``(B, C, kappa)``: token in each slot, -1 for none.
        padding: ``(B, N)``, not 0 where there is no token, or None; what the other tensors hold there does not matter.
        seed: One int64; needed with dropout.
        tau, tau_q, tau_k: Temperatures; 0 means ``sqrt(e)``.
        dropout: Probability with which a weight within a cluster becomes 0; the same weights as in the kernels.
        disjoint, allow_tf32, keep: Not used here.

    Returns:
        ``(B, h, N, e)``, dtype of ``q``; 0 in rows of padding.
    """
    _check_index(index, q.shape[2], padding)
    with _without_autocast(q.device.type):
        return _attention(q, k, v, surrogates, phi, index, padding, seed, tau, tau_q, tau_k, dropout)


def _check_index(index: Tensor, tokens: int, padding: Tensor | None) -> None:
    """On the CPU alone, as the kernels do."""
    if index.device.type != "cpu" or index.numel() == 0 or torch.compiler.is_compiling():
        return
    least, most = (int(extreme) for extreme in index.aminmax())
    if least < -1 or most >= tokens:
        raise ShapeError(
            f"cast_attention: index must hold tokens 0 to N - 1 = {tokens - 1}, or -1 for an empty slot, got "
            f"{least if least < -1 else most}"
        )
    if padding is not None:
        held = padding.bool().gather(1, index.clamp(min=0).flatten(1).long()) & (index.flatten(1) >= 0)
        if bool(held.any()):
            raise ShapeError("cast_attention: index must not hold padding")


def _attention(
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
) -> Tensor:
    batch, heads, tokens, dim = q.shape
    clusters, slots = index.shape[1:]
    tau, tau_q, tau_k = (given or math.sqrt(dim) for given in (tau, tau_q, tau_k))
    if batch * heads * tokens * slots == 0:
        return _nothing(q, k, v, surrogates, phi)
    wide = _wide(q.dtype)
    least = torch.finfo(wide).min / 2
    if padding is not None:
        padding = padding.bool()
        q, k, v = (tensor.masked_fill(padding[:, None, :, None], 0) for tensor in (q, k, v))
        phi = phi.masked_fill(padding, 0)
    phi, s = phi.to(wide), surrogates.to(wide)
    used = index >= 0
    token = index.clamp(min=0).long()  # (B, C, kappa)
    filled = used.any(2)  # (B, C)

    # Rows of all sequences and heads one below the other, and which of them the slots want.
    q, k, v = (tensor.reshape(batch * heads * tokens, dim) for tensor in (q, k, v))
    base = torch.arange(0, batch * heads * tokens, tokens, device=index.device).view(batch, heads, 1)
    rows = (base + token.flatten(1).unsqueeze(1)).view(-1, 1).expand(-1, dim)
    by_cluster = (batch * heads * clusters, slots, dim)
    q_in, k_in, v_in = (tensor.gather(0, rows).view(by_cluster) for tensor in (q, k, v))

    # Within clusters.
    empty = torch.zeros_like(used, dtype=q.dtype).masked_fill_(~used, torch.finfo(q.dtype).min / 2)
    bias = empty.unsqueeze(1).expand(-1, heads, -1, -1).reshape(-1, 1, slots)
    scores = torch.baddbmm(bias, q_in, k_in.transpose(1, 2), alpha=1 / tau)
    weights = torch.softmax(scores, dim=2, dtype=wide).to(q.dtype)
    if dropout:
        assert seed is not None, "dropout needs a seed"
        weights = weights * _dropout_keeps(seed, len(weights), slots, dropout, q.dtype)
    own = torch.bmm(weights, v_in)

    # Summaries of clusters.
    k_wide, v_wide = (tensor.to(wide).view(batch, heads, clusters, slots, dim) for tensor in (k_in, v_in))
    sharpened = _sp(-phi).gather(1, token.flatten(1)).view(batch, 1, clusters, slots) / tau_k
    summary_scores = torch.matmul(k_wide, s.unsqueeze(3)).squeeze(4) * sharpened
    shares = torch.softmax(summary_scores.masked_fill(~used.unsqueeze(1), least), dim=3)
    summaries = torch.matmul(shares.unsqueeze(3), v_wide).squeeze(3)  # (B, h, C, e)

    # Mixing.
    mix_scores = torch.matmul(q.to(wide).view(batch, heads, tokens, dim), s.transpose(1, 2))
    mix_scores = mix_scores * (_sp(phi) / tau_q)[:, None, :, None]
    mix = torch.softmax(mix_scores.masked_fill(~filled[:, None, None], least), dim=3)  # (B, h, N, C)
    member = used.new_zeros(batch, tokens + 1, clusters)  # the last row is for empty slots
    member.scatter_(1, token.masked_fill(~used, tokens).transpose(1, 2), True)
    out = torch.matmul(mix.masked_fill(member[:, None, :tokens], 0), summaries)
    # Each slot's mixing weight, 0 where it is empty.
    at = (token * clusters + torch.arange(clusters, device=index.device).unsqueeze(1)).flatten(1)
    mine = mix.flatten(2).gather(2, at.unsqueeze(1).expand(-1, heads, -1))
    mine = mine * used.flatten(1).unsqueeze(1)
    out = out.view(-1, dim).scatter_add(0, rows, mine.view(-1, 1) * own.view(-1, dim))
    out = out.view(batch, heads, tokens, dim)
    if padding is not None:
        out = out.masked_fill(padding[:, None, :, None], 0)
    return out.masked_fill(~filled.any(1)[:, None, None, None], 0).to(q.dtype)


def _without_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device, enabled=False) if autocast_enabled(device) else contextlib.nullcontext()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and softmaxes are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sp(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=50.0) + 1


def _nothing(*tensors: Tensor) -> Tensor:
    """Zeros of the shape of the first tensor, with gradients of 0 for all of them."""
    zeros = [tensor.masked_fill(torch.ones_like(tensor, dtype=torch.bool), 0) for tensor in tensors]
    out = zeros[0]
    for other in zeros[1:]:
        out = out + other.sum().to(out.dtype)
    return out


# ---- dropout: csrc/cast/cast_dropout.h in int64, whose products wrap as unsigned ones do -----------------------------

_WORD = 2**32 - 1


def _dropout_keeps(seed: Tensor, groups: int, slots: int, p: float, dtype: torch.dtype) -> Tensor:
    """(groups, slots, slots): 0, or 1 / (1 - p) where a weight stays."""
    row = torch.arange(groups * slots, device=seed.device).view(groups, slots, 1)
    key = seed.reshape(()) + (row + 1) * _signed(0x9E3779B97F4A7C15)
    key = (key ^ _shift(key, 30)) * _signed(0xBF58476D1CE4E5B9)
    key = (key ^ _shift(key, 27)) * _signed(0x94D049BB133111EB)
    key = key ^ _shift(key, 31)
    slot = torch.arange(slots, device=seed.device) * 0x9E3779B1 & _WORD
    bits = _mix_bits(_mix_bits((key & _WORD) ^ slot) + _shift(key, 32) & _WORD)
    return (bits >= int(p * 2**32)).to(dtype) / (1 - p)


def _mix_bits(x: Tensor) -> Tensor:
    x = (x ^ x >> 16) * 0x7FEB352D & _WORD
    x = (x ^ x >> 15) * 0x846CA68B & _WORD
    return x ^ x >> 16


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


def _shift(x: Tensor, bits: int) -> Tensor:
    """The unsigned shift to the right."""
    return x >> bits & (2 ** (64 - bits) - 1)
