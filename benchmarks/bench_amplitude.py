"""amplitude_mix and spectrum_accumulate beside what a user would otherwise run.

The peers of the mixture: the formulation of the released tools, amplitude and angle of a complex transform, and a fair
one that has torch's real transforms and no angles. Those of the sums: torch's real transforms and ``index_add``. The
copy of the images is the limit of memory.

``python benchmarks/run.py --only amplitude`` takes the measurements to publish.
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

from sturdy.functional import amplitude_mix, spectrum_accumulate

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")

# Images of three channels, and their side.
SHAPES = [(256, 32), (16, 224)]


def with_angles(x: Tensor, index: Tensor, axes: tuple[int, ...]) -> Tensor:
    spectrum = torch.fft.fftn(x, dim=axes)
    amplitude, angle = spectrum.abs(), spectrum.angle()
    return torch.fft.ifftn(amplitude[index] * torch.exp(1j * angle), dim=axes).real


def real_transforms(x: Tensor, index: Tensor, axes: tuple[int, ...]) -> Tensor:
    spectrum = torch.fft.rfftn(x, dim=axes)
    amplitude = spectrum.abs()
    return torch.fft.irfftn(spectrum * (amplitude[index] / amplitude), s=[x.shape[axis] for axis in axes], dim=axes)


def low_frequencies(x: Tensor, other: Tensor, window: tuple[int, int]) -> Tensor:
    """FDA by real transforms, changing no more than the window."""
    own, wanted = torch.fft.rfft2(x), torch.fft.rfft2(other)
    rows, columns = window
    for part in (slice(0, rows + 1), slice(x.shape[-2] - rows, None)):
        inside = own[..., part, : columns + 1]
        inside *= wanted[..., part, : columns + 1].abs() / inside.abs()
    return torch.fft.irfft2(own, s=x.shape[-2:])


def sums(x: Tensor, group: Tensor, groups: int) -> Tensor:
    amplitude = torch.fft.rfft2(x).abs()
    return amplitude.new_zeros((groups, *amplitude.shape[1:])).index_add_(0, group, amplitude)


def contenders(images: int, size: int, variant: str) -> dict[str, Callable[[Tensor], Tensor]]:
    random = torch.Generator().manual_seed(0)
    index = torch.randperm(images, generator=random).to(DEVICE)
    other = torch.rand(images, 3, size, size, generator=random).to(DEVICE)
    group = torch.randint(0, 10, (images,), generator=random).to(DEVICE)
    window = (max(1, size // 50), max(1, size // 50))
    axes = (1, 2, 3) if variant == "APR" else (2, 3)
    if variant in ("APR", "planes"):
        return {
            SUBJECT: lambda x: amplitude_mix(x, index=index, color_fft=variant == "APR"),
            "angles": lambda x: with_angles(x, index, axes),
            "real transforms": lambda x: real_transforms(x, index, axes),
        }
    if variant == "FDA":
        return {
            SUBJECT: lambda x: amplitude_mix(x, other, window=window),
            "real transforms": lambda x: low_frequencies(x, other, window),
        }
    return {
        SUBJECT: lambda x: spectrum_accumulate(x, group, 10),
        "real transforms": lambda x: sums(x, group, 10),
    }


def prepare(images: int, size: int, variant: str) -> dict[str, Callable[[], Any]]:
    """The calls to time, each checked in float64 first."""
    x = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    functions = contenders(images, size, variant)
    if variant != "FDA":
        exact = next(function for name, function in functions.items() if name != SUBJECT)(x.double())
        for name, function in functions.items():
            error = ((function(x).double() - exact).abs().amax() / exact.abs().amax()).item()
            assert error <= 1e-4, f"{name}: wrong by {error:.1e}"

    def call(function: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        def run() -> Tensor:
            with torch.inference_mode():
                return function(x)

        return run

    return {**{name: call(function) for name, function in functions.items()}, "clone": x.clone}


def comparison(images: int, size: int, variant: str) -> Comparison:
    """One row: what is timed, and the least that it must compute and move."""
    pixels = images * 3 * size * size
    # The nominal count of real transforms, 2.5 n log2 n: of each image forward, of a mixture back too.
    transforms = {"APR": 2, "planes": 2, "FDA": 3, "sums": 1}[variant]
    return Comparison(
        op="spectrum_accumulate" if variant == "sums" else "amplitude_mix",
        shape=f"{images}x3x{size}x{size}",
        variant="10 groups" if variant == "sums" else variant,
        work="forward",
        dtype="float32",
        prepare=lambda: prepare(images, size, variant),
        flops=int(transforms * 2.5 * pixels * math.log2(size * size)),
        bytes=4 * pixels * {"APR": 2, "planes": 2, "FDA": 3, "sums": 1}[variant],
    )


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of these ops."""
    for images, size in SHAPES:
        for variant in ("APR", "planes", "FDA", "sums"):
            yield comparison(images, size, variant)


@pytest.mark.parametrize("name", [SUBJECT, "real transforms"])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
