"""spectral_filter beside what a user would otherwise run.

The peers: torch's real transforms with a product between them, and the formulation of the released tools, a complex
transform with shifts. The copy of the images is the limit of memory.

``python benchmarks/run.py --only spectral_filter`` takes the measurements to publish.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from harness import SUBJECT, Comparison, synchronize
from torch import Tensor

from sturdy.functional import spectral_filter

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")

# Planes of a batch of colour images, and their side.
SHAPES = [(1536, 32), (384, 64), (192, 96), (96, 128), (48, 224), (1536, 28), (24, 299)]


def real_transforms(x: Tensor, mask: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * mask, s=x.shape[-2:])


def with_shifts(x: Tensor, shifted: Tensor) -> Tensor:
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)) * shifted
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real


def symmetric_masks(size: int) -> tuple[Tensor, Tensor]:
    """One mask in both layouts."""
    mask = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    mirror = -torch.arange(size) % size
    mask = (mask + mask[mirror][:, mirror]) / 2
    return mask[:, : size // 2 + 1].contiguous(), torch.fft.fftshift(mask)


def prepare(planes: int, size: int, training: bool) -> dict[str, Callable[[], Any]]:
    """The calls to time, each checked in float64 first."""
    x = torch.rand(planes // 3, 3, size, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    half, shifted = (mask.to(DEVICE) for mask in symmetric_masks(size))
    contenders: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
        SUBJECT: (lambda x, mask: spectral_filter(x, mask, "half"), half),
        "rfft2": (real_transforms, half),
        "shifted fft2": (with_shifts, shifted),
    }
    exact = real_transforms(x[:1].double(), half.double())
    for name, (function, mask) in contenders.items():
        error = (function(x[:1], mask).double() - exact).abs().amax()
        assert error <= 5e-6, f"{name}: wrong by {error:.1e}"

    def forward(function: Callable[..., Tensor], mask: Tensor) -> Callable[[], Any]:
        def run() -> Tensor:
            with torch.inference_mode():
                return function(x, mask)

        return run

    def both(function: Callable[..., Tensor], mask: Tensor) -> Callable[[], Any]:
        leaves = [x.clone().requires_grad_(), mask.clone().requires_grad_()]
        grad_out = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad_out)

    make = both if training else forward
    calls = {name: make(function, mask) for name, (function, mask) in contenders.items()}
    if not training:
        calls["clone"] = x.clone
    return calls


def comparison(planes: int, size: int, training: bool) -> Comparison:
    """One row: what is timed, and the least that it must compute and move."""
    pixels = planes * size * size
    # The nominal count of real transforms, 2.5 n log2 n: two forward and back, in training again that of the gradient.
    flops = int(2 * 2.5 * pixels * math.log2(size * size)) * (3 if training else 1)
    return Comparison(
        op="spectral_filter",
        shape=f"{planes // 3}x3x{size}x{size}",
        variant="one mask",
        work="forward + backward" if training else "forward",
        dtype="float32",
        prepare=lambda: prepare(planes, size, training),
        flops=flops,
        bytes=4 * pixels * (6 if training else 2),
    )


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of this op."""
    for planes, size in SHAPES:
        yield comparison(planes, size, False)
    for planes, size in ((1536, 32), (48, 224)):
        yield comparison(planes, size, True)
    yield comparison(3, 8, False)  # the cost of a call


@pytest.mark.parametrize("name", [SUBJECT, "rfft2", "shifted fft2"])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
