"""The authors' formulation of AFA, step by step: explicit grid, measured norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def grid(side: int) -> Tensor:
    return torch.linspace(-side / 2, side / 2, side, dtype=torch.float64)


def augment(x: Tensor, frequency: Tensor, direction: Tensor, strength: Tensor) -> Tensor:
    """``x`` is (B, C, N, N) in [0, 1]; ``frequency`` (B, C, F) is k / N, the rest are (B, C, F, P)."""
    side = x.shape[-1]
    waves_f, waves_p = direction.shape[2:]
    g = grid(side)
    total = torch.zeros_like(x)
    for f in range(waves_f):
        for p in range(waves_p):
            angle = direction[:, :, f, p, None, None]
            across = g[:, None] * torch.cos(angle) + g[None, :] * torch.sin(angle)
            wave = torch.sin(2 * math.pi * frequency[:, :, f, None, None] * across - math.pi / 4)
            wave = wave / torch.linalg.vector_norm(wave, dim=(-2, -1), keepdim=True)
            total += strength[:, :, f, p, None, None] * wave * (side / 32)
    return (x + total / (waves_f * waves_p)).clamp(0, 1)
