"""What the tests of CAST share: the tensors of a call, of any dtype and layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from support import random

NAMES = ("q", "k", "v", "surrogates", "phi")


@dataclass(frozen=True)
class Tokens:
    """The tensor arguments of a call."""

    q: Tensor
    k: Tensor
    v: Tensor
    surrogates: Tensor
    phi: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v, self.surrogates, self.phi

    def leaves(self) -> Tokens:
        """The same values in leaf tensors of the same layout that want a gradient."""
        return Tokens(*(tensor.detach().requires_grad_() for tensor in self.all()))

    def double(self) -> Tokens:
        return Tokens(*(tensor.detach().double().cpu() for tensor in self.all()))

    def but(self, **changes: Tensor) -> Tokens:
        return replace(self, **changes)


def make_tokens(
    batch: int = 2,
    heads: int = 2,
    tokens: int = 21,
    dim: int = 8,
    clusters: int = 3,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
    *,
    packed: bool = False,
    phi_dtype: torch.dtype | None = None,
) -> Tokens:
    """Standard normal numbers, the same ones in every dtype; ``packed``: q, k, v as one projection leaves them."""
    shape = (batch, heads, tokens, dim)
    if packed:
        together = random((batch, tokens, 3, heads, dim), 1, dtype, device)
        q, k, v = together.permute(2, 0, 3, 1, 4).unbind()
    else:
        q, k, v = (random(shape, seed, dtype, device) for seed in (1, 2, 3))
    surrogates = random((heads, clusters, dim), 4, dtype, device)
    return Tokens(q, k, v, surrogates, random((batch, tokens), 5, phi_dtype or dtype, device))


def random_padding(batch: int, tokens: int, seed: int = 6, share: float = 0.3, device: Any = "cpu") -> Tensor:
    """Padding anywhere in the sequences."""
    values = torch.rand((batch, tokens), generator=torch.Generator().manual_seed(seed))
    return (values < share).to(device)


def poison_padding(given: Tokens, padding: Tensor) -> Tokens:
    """NaN and infinities wherever there is no token."""
    rows = padding[:, None, :, None]
    return given.but(
        q=given.q.masked_fill(rows, float("nan")),
        k=given.k.masked_fill(rows, float("inf")),
        v=given.v.masked_fill(rows, float("nan")),
        phi=given.phi.masked_fill(padding, float("nan")),
    )


def random_index(
    batch: int,
    tokens: int,
    clusters: int,
    slots: int,
    *,
    disjoint: bool = False,
    padding: Tensor | None = None,
    holes: bool = False,
    seed: int = 7,
    device: Any = "cpu",
) -> Tensor:
    """Tokens of clusters at random, ``(B, C, slots)``.

    ``disjoint``: no token twice; ``holes``: in any order, with empty slots between them and the first cluster empty.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((batch, clusters, slots), -1, dtype=torch.int32)
    for b in range(batch):
        there = torch.arange(tokens) if padding is None else (~padding[b].cpu()).nonzero().flatten()
        order = there[torch.randperm(len(there), generator=generator)]
        for c in range(clusters):
            if not disjoint:
                order = there[torch.randperm(len(there), generator=generator)]
            members = (order[c * slots : (c + 1) * slots] if disjoint else order[:slots]).sort().values
            index[b, c, : len(members)] = members.int()
            if holes:
                index[b, c] = index[b, c, torch.randperm(slots, generator=generator)]
                index[b, c].masked_fill_(torch.rand(slots, generator=generator) < 0.2, -1)
        if holes:
            index[b, 0] = -1
    return index.to(device)
