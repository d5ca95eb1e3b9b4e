"""CAST as one writes it down from its equations, with ``gather`` and ``einsum``: a contender of ``bench_cast.py``.

Without padding, for clusters that are full.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sturdy.functional import cast_cluster


def attention(q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor, phi: Tensor, index: Tensor) -> Tensor:
    """From q, k, v ``(B, h, N, e)``, surrogates ``(h, C, e)``, phi ``(B, N)`` and index ``(B, C, kappa)``."""
    heads, dim, clusters = q.shape[1], q.shape[3], index.shape[1]
    scale = 1 / math.sqrt(dim)
    members = index.flatten(1)
    rows = members[:, None, :, None].expand(-1, heads, -1, dim)
    q_in, k_in, v_in = (tensor.gather(2, rows).unflatten(2, (clusters, -1)) for tensor in (q, k, v))
    weights = torch.softmax(torch.einsum("bhcje,bhcle->bhcjl", q_in, k_in) * scale, -1)
    own = torch.einsum("bhcjl,bhcle->bhcje", weights, v_in)
    sharpness = (F.softplus(-phi) + 1).gather(1, members).unflatten(1, (clusters, -1))[:, None]
    shares = torch.softmax(torch.einsum("bhcje,hce->bhcj", k_in, surrogates) * sharpness * scale, -1)
    summaries = torch.einsum("bhcj,bhcje->bhce", shares, v_in)
    focus = (F.softplus(phi) + 1)[:, None, :, None]
    mix = torch.softmax(torch.einsum("bhne,hce->bhnc", q, surrogates) * focus * scale, -1)
    inside = mix.new_zeros(mix.shape[0], *mix.shape[2:], dtype=torch.bool).scatter_(1, index.transpose(1, 2), True)
    out = torch.einsum("bhnc,bhce->bhne", mix.masked_fill(inside[:, None], 0), summaries)
    mine = mix.transpose(2, 3).gather(3, index[:, None].expand(-1, heads, -1, -1))
    return out.scatter_add(2, rows, (mine[..., None] * own).flatten(2, 3))


@torch.no_grad()
def choose(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, size: int, method: str) -> Tensor:
    """The clusters, ``(B, C, kappa)`` int64."""
    scale = 1 / math.sqrt(q.shape[1] * q.shape[3])
    of_queries = torch.softmax(torch.einsum("bhne,hce->bnc", q, surrogates) * scale, -1)
    of_keys = torch.softmax(torch.einsum("bhne,hce->bnc", k, surrogates) * scale, -1)
    affinity = torch.lerp(of_keys, of_queries, torch.sigmoid(phi)[..., None])
    if method == "topk":
        return affinity.topk(size, dim=1).indices.transpose(1, 2)
    return cast_cluster(affinity, size, method, backend="reference").index.long()
