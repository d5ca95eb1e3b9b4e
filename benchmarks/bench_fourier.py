"""The Fourier family beside what a user would otherwise run.

``wave_add``: AFA as its authors write it in eager PyTorch (outer products, sine, norm, sums), the same with the closed
form of the norm and separated sines, and a copy, which no op that reads and writes an image can beat.

``python benchmarks/run.py`` takes the measurements to publish. ``pytest benchmarks/bench_fourier.py -o addopts=`` is
the quick look, one contender after the other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from harness import SUBJECT, Comparison, synchronize
from torch import Tensor

from sturdy.functional import wave_add

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")
DTYPES = ["float32", "uint8"] if DEVICE == "cpu" else ["float32", "bfloat16", "uint8"]
SHAPES = [(32, 3, 224, 224), (512, 3, 32, 32)] if DEVICE == "cpu" else [(256, 3, 224, 224), (4096, 3, 32, 32)]
TINY = (1, 3, 8, 8)
UNIT = math.sqrt(2) / 32  # amplitude of AFA for a strength of 1

# ---- wave_add --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """What AFA draws for each image and channel: frequency in cycles per image, direction, strength."""

    k: Tensor
    direction: Tensor
    strength: Tensor


def authors(x: Tensor, draw: Draw) -> Tensor:
    """AFA step by step as in its paper's code, one wave per image and channel."""
    n = x.shape[-1]
    image = x.float() / 255 if x.dtype == torch.uint8 else x
    grid = torch.linspace(-n / 2, n / 2, n, dtype=image.dtype, device=x.device)
    f, angle = (draw.k / n)[..., None, None].to(image), draw.direction[..., None, None].to(image)
    wave = torch.sin(2 * math.pi * f * (grid[:, None] * torch.cos(angle) + grid * torch.sin(angle)) - math.pi / 4)
    wave = wave / torch.linalg.vector_norm(wave, dim=(-2, -1), keepdim=True)
    return torch.clamp(image + draw.strength[..., None, None].to(image) * (wave * (n / 32)), 0, 1)


def separated(x: Tensor, draw: Draw) -> Tensor:
    """The same in as few passes as eager PyTorch allows: sines of rows and columns alone, no norm."""
    n = x.shape[-1]
    image = x.float() / 255 if x.dtype == torch.uint8 else x
    grid = torch.linspace(-n / 2, n / 2, n, dtype=image.dtype, device=x.device)
    turn, angle = (2 * math.pi * draw.k / n)[..., None].to(image), draw.direction[..., None].to(image)
    rows, columns = turn * torch.cos(angle) * grid, turn * torch.sin(angle) * grid - math.pi / 4
    scale = UNIT * draw.strength[..., None].to(image)
    left = torch.stack((scale * torch.sin(rows), scale * torch.cos(rows)), dim=-1)
    right = torch.stack((torch.cos(columns), torch.sin(columns)), dim=-2)
    return torch.matmul(left, right).add_(image).clamp_(0, 1)


def waves_of(draw: Draw, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """AFA's draw as the arguments of wave_add, which a transform has ready: its grid has a step of n / (n - 1)."""
    direction = draw.direction.double()
    steps = torch.stack((torch.cos(direction), torch.sin(direction)), dim=-1)
    frequency = (draw.k.double() / (n - 1))[..., None] * steps
    amplitude = (UNIT * draw.strength.double())[..., None]
    return frequency[..., None, :], amplitude, torch.full_like(amplitude, -math.pi / 4)


def calls(shape: tuple[int, int, int, int], dtype: str) -> dict[str, Callable[[], Any]]:
    """Every contender's call, checked against the authors' formula in float64."""
    generator = torch.Generator().manual_seed(0)
    n = shape[-1]
    draw = Draw(
        torch.randint(1, n + 1, shape[:2], generator=generator).float().to(DEVICE),
        -math.pi * torch.rand(shape[:2], generator=generator).to(DEVICE),
        10 * torch.empty(shape[:2]).exponential_(generator=generator).to(DEVICE),
    )
    values = torch.rand(shape, generator=generator)
    kind = getattr(torch, dtype)
    x = ((255 * values).round() if kind == torch.uint8 else values).to(DEVICE, kind)
    frequency, amplitude, phase = waves_of(draw, n)
    found: dict[str, Callable[[], Any]] = {
        SUBJECT: lambda: wave_add(x, frequency, amplitude, phase, clip=(0, 1)),
        "eager": lambda: authors(x, draw),
        "separated": lambda: separated(x, draw),
        "copy": lambda: x.float() if kind == torch.uint8 else x.clone(),
    }
    exact = authors(
        (x.double() / 255 if kind == torch.uint8 else x.double())[:2], Draw(*(p[:2] for p in vars(draw).values()))
    )
    tolerance = 1e-2 if kind == torch.bfloat16 else 2e-4 * max(1.0, amplitude.max().item())
    for name in (SUBJECT, "eager", "separated"):
        error = (found[name]()[:2].double() - exact).abs().amax()
        assert error <= 10 * tolerance, f"{name}: wrong by {error:.1e}"

    def run(call: Callable[[], Any]) -> Callable[[], Any]:
        def without_gradient() -> Any:
            with torch.inference_mode():
                return call()

        return without_gradient

    return {name: run(call) for name, call in found.items()}


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of this family."""
    for dtype in DTYPES:
        for shape in [*SHAPES, TINY]:
            pixels = math.prod(shape)
            size = getattr(torch, dtype).itemsize
            yield Comparison(
                op="wave_add",
                shape="x".join(map(str, shape)),
                variant="one wave, clamped" + (", bytes in" if dtype == "uint8" else ""),
                work="forward",
                dtype="float32" if dtype == "uint8" else dtype,  # of the result
                prepare=lambda shape=shape, dtype=dtype: calls(shape, dtype),
                flops=6 * pixels,
                bytes=pixels * (size + (4 if dtype == "uint8" else size)),
            )


@pytest.mark.parametrize("name", [SUBJECT, "eager", "separated", "copy"])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
