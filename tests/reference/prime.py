"""The image changes of PRIME straight from their definitions.

Slow and meant to be obviously right. Imports nothing from the package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def image(x: Tensor) -> Tensor:
    """In float64; bytes are divided by 255."""
    return x.double() / 255 if x.dtype == torch.uint8 else x.double()


def finished(out: Tensor, x: Tensor, clip: tuple[float, float] | None, dtype: torch.dtype | None) -> Tensor:
    """Clamped, and rounded once."""
    out = out if clip is None else out.clamp(*clip)
    return out.to(dtype or (torch.float32 if x.dtype == torch.uint8 else x.dtype))


def filter2d(
    x: Tensor, kernel: Tensor, clip: tuple[float, float] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Shifted images times the kernel's values, added up."""
    padded = torch.nn.functional.pad(image(x), (1, 1, 1, 1))
    height, width = x.shape[-2:]
    out = torch.zeros_like(image(x))
    for a in range(3):
        for b in range(3):
            out = out + kernel.double()[..., a, b, None, None] * padded[..., a : a + height, b : b + width]
    return finished(out, x, clip, dtype)


def smooth_color(
    x: Tensor,
    coefficients: Tensor,
    clip: tuple[float, float] | None = None,
    first: int | Tensor = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A sine for each coefficient and pixel."""
    values = image(x)
    start = torch.as_tensor(first, device=x.device).reshape(-1, 1, 1)
    frequency = start + torch.arange(coefficients.shape[-1], device=x.device)  # (N or 1, 1, K)
    sines = torch.sin(math.pi * frequency[..., None, None].double() * values[:, :, None])
    out = values + (coefficients.double()[..., None, None] * sines).sum(dim=2)
    return finished(out, x, clip, dtype)


def sines(terms: int, length: int, device: torch.device) -> Tensor:
    """``(terms, length)``: half waves that vanish at both ends."""
    points = torch.arange(length, dtype=torch.float64, device=device) / max(length - 1, 1)
    frequency = torch.arange(1, terms + 1, dtype=torch.float64, device=device)
    return torch.sin(math.pi * frequency[:, None] * points)


def fields(coefficients: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, 2, I, J)`` to ``(N, 2, H, W)`` displacements, along columns and along rows."""
    columns = sines(coefficients.shape[2], size[1], coefficients.device)
    rows = sines(coefficients.shape[3], size[0], coefficients.device)
    return torch.einsum("nfij,ic,jr->nfrc", coefficients.double(), columns, rows)


def sample(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Bilinear between the pixels of ``(N, C, H, W)`` at coordinates ``(N, H, W)``, clamped to the image."""
    row, column = row.clamp(0, x.shape[-2] - 1), column.clamp(0, x.shape[-1] - 1)
    upper, left = row.floor().long(), column.floor().long()
    lower, right = row.ceil().long(), column.ceil().long()
    down, across = (row - upper)[:, None], (column - left)[:, None]
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]

    def at(r: Tensor, c: Tensor) -> Tensor:
        return x[batch, :, r, c].permute(0, 3, 1, 2)

    above = at(upper, left) * (1 - across) + at(upper, right) * across
    below = at(lower, left) * (1 - across) + at(lower, right) * across
    return above * (1 - down) + below * down


def sine_warp(x: Tensor, coefficients: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The pixel that lies where the field came from."""
    height, width = x.shape[-2:]
    moved = fields(coefficients, (height, width)).expand(x.shape[0], -1, -1, -1)
    row = torch.arange(height, dtype=torch.float64, device=x.device)[:, None] - moved[:, 1]
    column = torch.arange(width, dtype=torch.float64, device=x.device) - moved[:, 0]
    return finished(sample(image(x), row, column), x, None, dtype)
