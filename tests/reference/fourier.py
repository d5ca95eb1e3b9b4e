"""The Fourier family straight from its definitions.

Slow and meant to be obviously right. Imports nothing from the package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# ---- wave_add --------------------------------------------------------------------------------------------------------


def centred(count: int, like: Tensor) -> Tensor:
    """Coordinates of pixels, from the middle of the axis."""
    return torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2


def plane_waves(frequency: Tensor, phase: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, C, K, 2)`` cycles per pixel and ``(N, C, K)`` radians to ``(N, C, K, H, W)`` sines."""
    y, x = centred(size[0], frequency)[:, None], centred(size[1], frequency)
    f = frequency[..., None, None]
    return torch.sin(2 * math.pi * (f[..., 0, :, :] * y + f[..., 1, :, :] * x) + phase[..., None, None])


def wave_add(
    input: Tensor,
    frequency: Tensor,
    amplitude: Tensor,
    phase: Tensor,
    clip: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """In float64 but for the last rounding; images of bytes are divided by 255."""
    image = input.double() / 255 if input.dtype == torch.uint8 else input.double()
    waves = plane_waves(frequency.double(), phase.double(), tuple(input.shape[-2:]))
    out = image + (amplitude.double()[..., None, None] * waves).sum(dim=2)
    if clip is not None:
        out = out.clamp(*clip)
    return out.to(dtype or (torch.float32 if input.dtype == torch.uint8 else input.dtype))


def afa(x: Tensor, k: Tensor, direction: Tensor, strength: Tensor) -> Tensor:
    """AFA as its authors compute it: square images ``(B, C, N, N)``; k, direction and strength ``(B, C)``.

    A grid over ``[-N/2, N/2]`` with both ends, a sine of the rotated coordinate less a quarter of pi, divided by its
    norm, times ``N / 32`` and the strength; clamped to ``[0, 1]``.
    """
    n = x.shape[-1]
    grid = torch.linspace(-n / 2, n / 2, n, dtype=x.dtype, device=x.device)
    f, angle = (k / n)[..., None, None], direction[..., None, None]
    wave = torch.sin(2 * math.pi * f * (grid[:, None] * torch.cos(angle) + grid * torch.sin(angle)) - math.pi / 4)
    wave = wave / torch.linalg.vector_norm(wave, dim=(-2, -1), keepdim=True)
    return torch.clamp(x + strength[..., None, None] * (n / 32) * wave, 0, 1)


def afa_waves(k: Tensor, direction: Tensor, strength: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same as frequency, amplitude and phase of one wave per plane: that grid has a step of ``n / (n - 1)``."""
    frequency = (k / (n - 1))[..., None] * torch.stack((torch.cos(direction), torch.sin(direction)), dim=-1)
    amplitude = strength * math.sqrt(2) / 32
    return frequency[..., None, :], amplitude[..., None], torch.full_like(amplitude, -math.pi / 4)[..., None]


def without_bins(x: Tensor, bins: list[tuple[int, int]]) -> Tensor:
    """Images whose spectrum is 0 at these bins and at their mirror images."""
    height, width = x.shape[-2:]
    mask = torch.ones(height, width, dtype=x.dtype, device=x.device)
    for row, column in bins:
        mask[row % height, column % width] = 0
        mask[-row % height, -column % width] = 0
    return torch.fft.ifft2(torch.fft.fft2(x) * mask).real


# ---- spectral_filter -------------------------------------------------------------------------------------------------


def effective_mask(mask: Tensor, size: tuple[int, int], half: bool) -> Tensor:
    """The symmetric mask of ``fft2``'s order that filters real images as ``mask`` does."""
    height, width = size
    if half:  # the frequencies that rfft2 leaves out are mirror images of those it has
        columns = torch.arange(width)
        kept = columns <= width // 2
        rows = torch.where(kept, torch.arange(height)[:, None], -torch.arange(height)[:, None] % height)
        full = mask[..., rows, torch.where(kept, columns, width - columns)]
    else:
        full = torch.fft.ifftshift(mask, dim=(-2, -1))
    mirrored = full[..., -torch.arange(height)[:, None] % height, -torch.arange(width) % width]
    return (full + mirrored) / 2


def spectral_filter(
    x: Tensor,
    mask: Tensor,
    layout: str = "shifted",
    index: Tensor | None = None,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """The real part of the complex filter, in float64 but for the last rounding."""
    height, width = x.shape[-2:]
    if layout == "half":
        full = torch.fft.fftshift(effective_mask(mask.double(), (height, width), True), dim=(-2, -1))
    else:
        full = mask.double()
    if index is not None:
        full = full[index] if full.dim() == 4 else full[index][:, None]
    image = x.double().unsqueeze(1) if mask.dim() == 5 else x.double()
    spectrum = torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1))
    out = torch.fft.ifft2(torch.fft.ifftshift(spectrum * full, dim=(-2, -1))).real
    if clip is not None:
        out = out.clamp(*clip)
    if index is not None:
        out = torch.where((index >= 0)[:, None, None, None], out, x.double())
    return out.to(x.dtype)
