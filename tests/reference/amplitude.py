"""Amplitudes of spectra exchanged, mixed and added up, straight from the definitions in float64.

Slow and meant to be obviously right. Imports nothing from the package.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-12  # times the samples of the transform: amplitudes below have no phase


def signed(count: int) -> Tensor:
    """How far the frequencies of ``fft`` lie from 0."""
    k = torch.arange(count)
    return torch.minimum(k, count - k)


def amplitude_mix(
    x: Tensor,
    other: Tensor | None = None,
    *,
    index: Tensor | None = None,
    strength: float | Tensor = 1.0,
    window: tuple[int, int] | Tensor | None = None,
    color_fft: bool = False,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """One image at a time, by the whole complex spectrum; float64 but for the last rounding."""
    pool = x if other is None else other
    out = torch.empty_like(x, dtype=torch.float64)
    strengths = torch.as_tensor(strength, dtype=torch.float64).expand(len(x)) if len(x) else None
    for n in range(len(x)):
        partner = int(index[n]) if index is not None else (0 if len(pool) == 1 else n)
        if partner < 0:
            out[n] = x[n]
            continue
        axes = (-3, -2, -1) if color_fft else (-2, -1)
        own, wanted = (torch.fft.fftn(image.double(), dim=axes) for image in (x[n], pool[partner]))
        inside = torch.ones(x.shape[-2:], dtype=torch.bool)
        if window is not None:
            pair = torch.as_tensor(window)
            rows, columns = (pair if pair.dim() == 1 else pair[n if len(pair) > 1 else 0]).tolist()
            inside = (signed(x.shape[-2]) <= rows)[:, None] & (signed(x.shape[-1]) <= columns)
        samples = x[n].numel() if color_fft else x.shape[-2] * x.shape[-1]
        size = own.abs()
        phase = torch.where(size < LEAST * samples, torch.ones_like(own), own / size)
        mixed = (1 - strengths[n]) * size + strengths[n] * wanted.abs()
        image = torch.fft.ifftn(torch.where(inside, mixed * phase, own), dim=axes).real
        out[n] = image if clip is None else image.clamp(*clip)
    return out.to(x.dtype)


def apr(x: Tensor, index: Tensor) -> Tensor:
    """APR-P as its authors compute it: amplitude and angle of the transform of colours, rows and columns."""
    spectrum = torch.fft.fftn(x, dim=(1, 2, 3))
    amplitude, angle = spectrum.abs(), spectrum.angle()
    return torch.fft.ifftn(amplitude[index] * torch.exp(1j * angle), dim=(1, 2, 3)).real


def spectrum_accumulate(x: Tensor, group: Tensor, groups: int, power: int = 1) -> Tensor:
    """In float64."""
    out = torch.zeros((groups, *x.shape[1:3], x.shape[3] // 2 + 1), dtype=torch.float64)
    for n, g in enumerate(group.tolist()):
        if g >= 0:
            out[g] += torch.fft.rfft2(x[n].double()).abs() ** power
    return out
