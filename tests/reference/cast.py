"""CAST straight from its definition, in float64: one sequence, one head and one cluster after the other.

Slow and meant to be obviously right. Imports nothing from the package. ``attention`` is differentiated by autograd;
``attention_backward`` has the same gradients in closed form, written down separately.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def sp(x: Tensor) -> Tensor:
    """Softplus and one more: never below 1."""
    return torch.logaddexp(x, torch.zeros_like(x)) + 1


def is_padding(padding: Tensor | None, sequence: int, token: int) -> bool:
    return padding is not None and bool(padding[sequence, token])


def without_padding(tensor: Tensor, padding: Tensor | None, dim: int) -> Tensor:
    """Zeros where there is no token, whatever stands there; ``dim`` is that of the tokens, dimension 0 the batch."""
    if padding is None:
        return tensor
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = padding.shape
    return tensor.masked_fill(padding.bool().reshape(shape), 0)


# ---- affinity --------------------------------------------------------------------------------------------------------


def affinity(
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, padding: Tensor | None = None, tau_g: float | None = None
) -> Tensor:
    """(B, N, C) in float64: how much each token belongs with each cluster."""
    q, k, surrogates, phi = (t.double() for t in (q, k, surrogates, phi))
    heads, _, dim = surrogates.shape
    tau_g = tau_g or math.sqrt(heads * dim)
    q, k, phi = (without_padding(t, padding, d) for t, d in ((q, 2), (k, 2), (phi, 1)))
    like_queries = torch.softmax(torch.einsum("bhne,hce->bnc", q, surrogates) / tau_g, 2)
    like_keys = torch.softmax(torch.einsum("bhne,hce->bnc", k, surrogates) / tau_g, 2)
    found = like_keys + torch.sigmoid(phi)[..., None] * (like_queries - like_keys)
    return found if padding is None else found.masked_fill(padding.bool()[..., None], -math.inf)


# ---- clusters --------------------------------------------------------------------------------------------------------


class Clusters(NamedTuple):
    index: Tensor
    counts: Tensor
    assignment: Tensor | None


def order(value: float, token: int, cluster: int) -> tuple[bool, float, int, int]:
    """The less, the earlier: NaN last, larger affinity first, then the smaller token, then the smaller cluster."""
    return (math.isnan(value), 0.0 if math.isnan(value) else -value, token, cluster)


def _packed(members: list[list[list[int]]], slots: int) -> tuple[Tensor, Tensor]:
    batch, clusters = len(members), len(members[0]) if members else 0
    index = torch.full((batch, clusters, slots), -1, dtype=torch.int32)
    counts = torch.zeros(batch, clusters, dtype=torch.int32)
    for b, of_sequence in enumerate(members):
        for c, tokens in enumerate(of_sequence):
            counts[b, c] = len(tokens)
            for slot, token in enumerate(sorted(tokens)):
                index[b, c, slot] = token
    return index, counts


def top_k(scores: Tensor, padding: Tensor | None = None, cluster_size: int | None = None) -> Clusters:
    """Each cluster takes the first of all tokens."""
    batch, tokens, clusters = scores.shape
    size = cluster_size or -(-tokens // clusters)
    members = []
    for b, of_sequence in enumerate(scores.float().tolist()):
        there = [i for i in range(tokens) if not is_padding(padding, b, i)]
        ranked = [sorted(there, key=lambda i, c=c, rows=of_sequence: order(rows[i][c], i, c)) for c in range(clusters)]
        members.append([column[:size] for column in ranked])
    index, counts = _packed(members, min(size, tokens))
    return Clusters(index.reshape(batch, clusters, -1), counts.reshape(batch, clusters), None)


def sa_top_k(scores: Tensor, padding: Tensor | None = None, cluster_size: int | None = None) -> Clusters:
    """Through all pairs of a token and a cluster, the best first: whoever is free joins whoever has room."""
    batch, tokens, clusters = scores.shape
    size = cluster_size or -(-tokens // clusters)
    members, assignment = [], torch.full((batch, tokens), -1, dtype=torch.int32)
    for b, of_sequence in enumerate(scores.float().tolist()):
        there = [i for i in range(tokens) if not is_padding(padding, b, i)]
        room = [len(there) // clusters + (c < len(there) % clusters) for c in range(clusters)]
        if cluster_size:
            room = [cluster_size] * clusters
        pairs = [(order(of_sequence[i][c], i, c), i, c) for i in there for c in range(clusters)]
        joined: list[list[int]] = [[] for _ in range(clusters)]
        for _, i, c in sorted(pairs):
            if assignment[b, i] < 0 and len(joined[c]) < room[c]:
                assignment[b, i] = c
                joined[c].append(i)
        members.append(joined)
    index, counts = _packed(members, min(size, tokens))
    return Clusters(index.reshape(batch, clusters, -1), counts.reshape(batch, clusters), assignment)


# ---- dropout ---------------------------------------------------------------------------------------------------------

_WORD, _LONG = 2**32 - 1, 2**64 - 1


def mix_bits(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & _WORD
    x ^= x >> 15
    x = x * 0x846CA68B & _WORD
    return x ^ x >> 16


def dropout_row_key(seed: int, row: int) -> int:
    x = (seed + (row + 1) * 0x9E3779B97F4A7C15) & _LONG
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _LONG
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _LONG
    return x ^ x >> 31


def dropout_bits(row_key: int, key_slot: int) -> int:
    first = mix_bits((row_key & _WORD) ^ (key_slot * 0x9E3779B1 & _WORD))
    return mix_bits((first + (row_key >> 32)) & _WORD)


def dropout_keeps(seed: int, first_row: int, query_slots: list[int], key_slots: list[int], p: float) -> Tensor:
    """Which weights of a cluster stay: (queries, keys), 1 / (1 - p) or 0."""
    threshold = int(p * 2**32)
    kept = []
    for slot in query_slots:
        key = dropout_row_key(seed, first_row + slot)
        kept.append([dropout_bits(key, other) >= threshold for other in key_slots])
    return torch.tensor(kept, dtype=torch.float64).reshape(len(query_slots), len(key_slots)) / (1 - p)


# ---- attention -------------------------------------------------------------------------------------------------------


class Attention(NamedTuple):
    """What the op returns; float64."""

    out: Tensor  # (B, h, N, e)
    intra: Tensor  # (B, h, C, kappa, e)
    summaries: Tensor  # (B, h, C, e)
    lse_intra: Tensor  # (B, h, C, kappa)
    lse_summary: Tensor  # (B, h, C)
    lse_mix: Tensor  # (B, h, N)


def _members(index: Tensor, tokens: int, sequence: int, cluster: int) -> tuple[list[int], list[int]]:
    """Slots of a cluster that are not empty, and the tokens in them."""
    row = index[sequence, cluster].tolist()
    slots = [slot for slot, token in enumerate(row) if 0 <= token < tokens]
    return slots, [row[slot] for slot in slots]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    padding: Tensor | None = None,
    *,
    tau: float | None = None,
    tau_q: float | None = None,
    tau_k: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Attention:
    """Attention within clusters, mixed with summaries of the others."""
    q, k, v, surrogates, phi = (t.double() for t in (q, k, v, surrogates, phi))
    q, k, v = (without_padding(t, padding, 2) for t in (q, k, v))
    phi = without_padding(phi, padding, 1)
    batch, heads, tokens, dim = q.shape
    clusters, slots = index.shape[1:]
    tau, tau_q, tau_k = (given or math.sqrt(dim) for given in (tau, tau_q, tau_k))
    intra = q.new_zeros(batch, heads, clusters, slots, dim)
    summaries = q.new_zeros(batch, heads, clusters, dim)
    lse_intra = q.new_full((batch, heads, clusters, slots), -math.inf)
    lse_summary = q.new_full((batch, heads, clusters), -math.inf)
    lse_mix = q.new_full((batch, heads, tokens), -math.inf)
    rows = []  # (N, e) for every sequence and head
    for b in range(batch):
        there = torch.tensor([not is_padding(padding, b, i) for i in range(tokens)], dtype=torch.bool)
        members = [_members(index, tokens, b, c) for c in range(clusters)]
        filled = [c for c in range(clusters) if members[c][1]]
        for h in range(heads):
            result = q.new_zeros(tokens, dim)
            if filled:
                mix_scores = (q[b, h] @ surrogates[h, filled].T) * sp(phi[b])[:, None] / tau_q
                mix = torch.softmax(mix_scores, 1)
                lse_mix[b, h] = torch.logsumexp(mix_scores, 1).masked_fill(~there, -math.inf).detach()
            for position, c in enumerate(filled):
                used, inside = members[c]
                queries, keys, values = q[b, h, inside], k[b, h, inside], v[b, h, inside]
                # within the cluster
                scores = queries @ keys.T / tau
                weights = torch.softmax(scores, 1)
                if dropout:
                    first_row = ((b * heads + h) * clusters + c) * slots
                    weights = weights * dropout_keeps(seed, first_row, used, used, dropout)
                own = weights @ values
                # its summary
                summary_scores = (keys @ surrogates[h, c]) * sp(-phi[b, inside]) / tau_k
                summary = torch.softmax(summary_scores, 0) @ values
                # who gets which
                outside = sorted(set(range(tokens)) - set(inside))
                result = result.index_add(0, torch.tensor(inside), mix[inside, position][:, None] * own)
                if outside:
                    others = mix[outside, position][:, None] * summary
                    result = result.index_add(0, torch.tensor(outside), others)
                intra[b, h, c, used] = own.detach()
                summaries[b, h, c] = summary.detach()
                lse_intra[b, h, c, used] = torch.logsumexp(scores, 1).detach()
                lse_summary[b, h, c] = torch.logsumexp(summary_scores, 0).detach()
            rows.append(result * there[:, None])
    out = torch.stack(rows).reshape(batch, heads, tokens, dim) if rows else q.new_zeros(q.shape)
    return Attention(out, intra, summaries, lse_intra, lse_summary, lse_mix)


class Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    surrogates: Tensor
    phi: Tensor


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    padding: Tensor | None = None,
    *,
    tau: float | None = None,
    tau_q: float | None = None,
    tau_k: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Gradients:
    """Gradients of ``sum(grad_out * out)`` in closed form."""
    forward = attention(
        *(q, k, v, surrogates, phi, index, padding),
        **dict(tau=tau, tau_q=tau_q, tau_k=tau_k, dropout=dropout, seed=seed),
    )
    g, q, k, v, s, phi = (t.detach().double() for t in (grad_out, q, k, v, surrogates, phi))
    g, q, k, v = (without_padding(t, padding, 2) for t in (g, q, k, v))
    phi = without_padding(phi, padding, 1)
    batch, heads, tokens, dim = q.shape
    clusters, slots = index.shape[1:]
    tau, tau_q, tau_k = (given or math.sqrt(dim) for given in (tau, tau_q, tau_k))
    dq, dk, dv, ds, dphi = (torch.zeros_like(t) for t in (q, k, v, s, phi))
    for b in range(batch):
        members = [_members(index, tokens, b, c) for c in range(clusters)]
        filled = [c for c in range(clusters) if members[c][1]]
        if not filled:
            continue
        for h in range(heads):
            like_queries, like_keys = q[b, h] @ s[h].T, k[b, h] @ s[h].T  # (N, C)
            mix = torch.zeros(tokens, clusters, dtype=torch.float64)
            mix[:, filled] = torch.softmax(like_queries[:, filled] * sp(phi[b])[:, None] / tau_q, 1)
            delta = (g[b, h] * forward.out[b, h].detach()).sum(1)  # (N,)
            d_like_queries = torch.zeros(tokens, clusters, dtype=torch.float64)
            d_like_keys = torch.zeros(tokens, clusters, dtype=torch.float64)
            for c in filled:
                used, inside = members[c]
                outside = sorted(set(range(tokens)) - set(inside))
                queries, keys, values = q[b, h, inside], k[b, h, inside], v[b, h, inside]
                own, summary = forward.intra[b, h, c, used], forward.summaries[b, h, c]
                # mixing
                received = g[b, h] @ summary
                received[inside] = (g[b, h, inside] * own).sum(1)
                d_mix = mix[:, c] * (received - delta)
                d_like_queries[:, c] = d_mix * sp(phi[b]) / tau_q
                dphi[b] += torch.sigmoid(phi[b]) * d_mix * like_queries[:, c] / tau_q
                # summary
                d_summary = (mix[outside, c][:, None] * g[b, h, outside]).sum(0)
                shares = torch.softmax(like_keys[inside, c] * sp(-phi[b, inside]) / tau_k, 0)
                d_scores = shares * (values @ d_summary - summary @ d_summary)
                d_like_keys[inside, c] = d_scores * sp(-phi[b, inside]) / tau_k
                dphi[b, inside] -= torch.sigmoid(-phi[b, inside]) * d_scores * like_keys[inside, c] / tau_k
                dv[b, h, inside] += shares[:, None] * d_summary
                # within the cluster
                d_own = mix[inside, c][:, None] * g[b, h, inside]
                weights = torch.softmax(queries @ keys.T / tau, 1)
                keeps = torch.ones_like(weights)
                if dropout:
                    first_row = ((b * heads + h) * clusters + c) * slots
                    keeps = dropout_keeps(seed, first_row, used, used, dropout)
                d_scores = weights * (keeps * (d_own @ values.T) - (d_own * own).sum(1)[:, None])
                dv[b, h, inside] += (weights * keeps).T @ d_own
                dq[b, h, inside] += d_scores @ keys / tau
                dk[b, h, inside] += d_scores.T @ queries / tau
            dq[b, h] += d_like_queries @ s[h]
            dk[b, h] += d_like_keys @ s[h]
            ds[h] += d_like_queries.T @ q[b, h] + d_like_keys.T @ k[b, h]
    return Gradients(dq, dk, dv, ds, dphi)
