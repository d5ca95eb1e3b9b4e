"""The images of a search over frequencies, tried one after another for one class, half of them taken for good.

What the network costs is left out. The peers mask the spectrum anew for each candidate: in the formulation of the
authors' released tools, a complex transform there and back with shifts, here of all images at once; and with torch's
real transforms, whose forward one is made once.

``python benchmarks/run.py --only dfm_search`` takes the measurements to publish.
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

from sturdy.analysis import FrequencyRemover, removal_order

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")

CANDIDATES = 100  # a search at 32 x 32 has five times as many, which share one transform
SHAPES = [(1000, 3, 32), (5000, 1, 28), (50, 3, 224)]
Search = Callable[[Tensor, list[Tensor]], Tensor]


def is_taken(number: int) -> bool:
    """Whether the network can do without this candidate."""
    return number % 2 == 0


def by_waves(images: Tensor, steps: list[Tensor]) -> Tensor:
    """Ours; the transform at the start is part of what is timed."""
    remover = FrequencyRemover(images)
    for number, cells in enumerate(steps):
        remover.without(cells)
        if is_taken(number):
            remover.remove(cells)
    return remover.images


def with_shifts(images: Tensor, steps: list[Tensor]) -> Tensor:
    kept = torch.ones(images.shape[-2:], device=images.device)
    filtered = images
    for number, cells in enumerate(steps):
        mask = kept.clone()
        mask[cells[:, 0], cells[:, 1]] = 0
        spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1)) * mask
        candidate = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
        if is_taken(number):
            kept, filtered = mask, candidate
    return filtered


def real_transforms(images: Tensor, steps: list[Tensor]) -> Tensor:
    height, width = images.shape[-2:]
    spectrum = torch.fft.rfft2(images)
    kept = torch.ones(height, width, device=images.device)
    filtered = images
    for number, cells in enumerate(steps):
        mask = kept.clone()
        mask[cells[:, 0], cells[:, 1]] = 0
        half = torch.fft.ifftshift(mask)[:, : width // 2 + 1]  # pairs are removed whole, so that it is symmetric
        candidate = torch.fft.irfft2(spectrum * half, s=(height, width))
        if is_taken(number):
            kept, filtered = mask, candidate
    return filtered


CONTENDERS: dict[str, Search] = {
    SUBJECT: by_waves,
    "shifted fft2": with_shifts,
    "rfft2 once, irfft2": real_transforms,
}


def prepare(count: int, channels: int, size: int) -> dict[str, Callable[[], Any]]:
    """The calls to time, each checked in float64 first."""
    images = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    order = removal_order(size, size)
    highest = int(order.max())
    levels = [highest - number * highest // CANDIDATES for number in range(CANDIDATES)]
    steps = [(order == level).nonzero() for level in levels]
    exact = with_shifts(images[:2].double(), steps)
    for name, search in CONTENDERS.items():
        error = (search(images[:2], steps).double() - exact).abs().amax()
        assert error <= 5e-6, f"{name}: wrong by {error:.1e}"

    def call(search: Search) -> Callable[[], Any]:
        def run() -> Tensor:
            with torch.inference_mode():
                return search(images, steps)

        return run

    return {name: call(search) for name, search in CONTENDERS.items()}


def comparison(count: int, channels: int, size: int) -> Comparison:
    """One row: what is timed, and the least that it must compute and move."""
    pixels = count * channels * size * size
    return Comparison(
        op="dfm_search",
        shape=f"{count}x{channels}x{size}x{size}",
        variant=f"{CANDIDATES} frequencies",
        work="forward",
        dtype="float32",
        prepare=lambda: prepare(count, channels, size),
        # One real transform, and two products with addition for each pixel of a candidate.
        flops=int(2.5 * pixels * math.log2(size * size)) + 4 * pixels * CANDIDATES,
        bytes=8 * pixels * (CANDIDATES + 1),
    )


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of the search."""
    for shape in SHAPES:
        yield comparison(*shape)


@pytest.mark.parametrize("name", list(CONTENDERS))
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
