"""Small images with known frequencies in them, networks that look at known frequencies, and plain filters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def batches(images: Tensor, labels: Tensor, size: int = 7) -> Batches:
    return list(zip(images.split(size), labels.split(size), strict=True))


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wave(bin: tuple[int, int], size: tuple[int, int], phase: float = 0.0) -> Tensor:
    """``cos(2 pi (k r / H + l c / W) + phase)``."""
    rows = torch.arange(size[0], dtype=torch.float64)[:, None]
    columns = torch.arange(size[1], dtype=torch.float64)
    return torch.cos(2 * math.pi * (bin[0] * rows / size[0] + bin[1] * columns / size[1]) + phase)


def cell(bin: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Where a frequency lies in a map with frequency 0 in the middle."""
    return (bin[0] + size[0] // 2) % size[0], (bin[1] + size[1] // 2) % size[1]


def masked(images: Tensor, mask: Tensor) -> Tensor:
    """The filter by its definition, in float64: transform, shift, product, and all the way back."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.double()), dim=(-2, -1)) * mask
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real


class Detector(nn.Module):
    """Logit ``c`` is the amplitude of frequency ``bins[c]``, whatever its phase, less a bias."""

    def __init__(self, bins: Sequence[tuple[int, int]], biases: Sequence[float] = (), scale: float = 20.0) -> None:
        super().__init__()
        self.bins = bins
        self.scale = scale
        self.bias = nn.Parameter(torch.tensor(list(biases) or [0.0] * len(bins), dtype=torch.float64))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x.double()).abs().mean(1) * 2 / (x.shape[-2] * x.shape[-1])
        found = torch.stack([spectrum[:, k, m] for k, m in self.bins], dim=1)
        return self.scale * (found - self.bias)


class Linear(nn.Module):
    """Logits linear in the pixels, weights by chance with a sum of 0; in float64."""

    def __init__(self, outputs: int, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        weight = uniform(outputs, *shape, seed=seed, dtype=torch.float64)
        self.weight = nn.Parameter(weight - weight.mean((1, 2, 3), keepdim=True))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x.double(), self.weight)


def marked(
    bins: Sequence[tuple[int, int]], size: tuple[int, int], per_class: int, channels: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Grey images with a little noise, each class marked with the wave of its own frequency at any phase."""
    labels = torch.arange(per_class * len(bins)) % len(bins)
    phases = 2 * math.pi * uniform(len(labels), seed=seed + 1)
    waves = torch.stack([wave(bins[c], size, p) for c, p in zip(labels.tolist(), phases.tolist(), strict=True)])
    noise = 0.2 * (uniform(len(labels), channels, *size, seed=seed, dtype=torch.float64) - 0.5)
    return (0.5 + noise + 0.2 * waves[:, None]).float(), labels


def once(given: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """A loader that can be read a single time."""
    yield from given
