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
