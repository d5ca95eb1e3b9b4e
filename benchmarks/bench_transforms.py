"""Whole transforms, what they draw included, beside their authors' formulation and the nearest op of common libraries.

AFA: the authors draw frequency, direction and strength for each image and channel, then add the wave as
``bench_fourier`` has it. torchvision's and kornia's nearest op adds noise; they are measured where they are installed.

``python benchmarks/run.py`` takes the measurements to publish. ``pytest benchmarks/bench_transforms.py -o addopts=`` is
the quick look, one contender after the other.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bench_fourier import Draw, authors
from harness import SUBJECT, Comparison, synchronize
from torch import Tensor

from sturdy.transforms import FourierBasisAugment

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")
SHAPES = [(32, 3, 224, 224), (512, 3, 32, 32)] if DEVICE == "cpu" else [(256, 3, 224, 224), (4096, 3, 32, 32)]
MEAN_STRENGTH = 10.0
GRANULARITY = 448
NOISE = 0.31  # root mean square of AFA's waves at this strength


def draw_as_authors(x: Tensor) -> Draw:
    """One wave for each image and channel, drawn on the device of the images."""
    planes = x.shape[:2]
    table = torch.linspace(0, 1, GRANULARITY, device=x.device)
    return Draw(
        k=torch.randint(1, x.shape[-1] + 1, planes, device=x.device).float(),
        direction=-math.pi * table[torch.randint(0, GRANULARITY, planes, device=x.device)],
        strength=torch.empty(planes, device=x.device).exponential_(1 / MEAN_STRENGTH),
    )


def noise_of_libraries() -> dict[str, Callable[[Tensor], Tensor]]:
    """Additive noise, clamped, as the libraries at hand have it."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    try:
        transforms = importlib.import_module("torchvision.transforms.v2")
        found["torchvision noise"] = transforms.GaussianNoise(sigma=NOISE)
    except ImportError:
        pass
    try:
        augmentation = importlib.import_module("kornia.augmentation")
        found["kornia noise"] = augmentation.RandomGaussianNoise(std=NOISE, p=1.0)
    except ImportError:
        pass
    return found


def calls(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Every contender's call; AFA's two are compared by the spread of what they add."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(shape, generator=generator)
    x = ((255 * values).round() if dtype == torch.uint8 else values).to(DEVICE, dtype)
    augment = FourierBasisAugment(MEAN_STRENGTH, granularity=GRANULARITY, mode="reference")
    found: dict[str, Callable[[], Any]] = {
        SUBJECT: lambda: augment(x),
        "authors": lambda: authors(x, draw_as_authors(x)),
        "copy": lambda: x.float() if dtype == torch.uint8 else x.clone(),
    }
    for name, op in noise_of_libraries().items():
        found[name] = lambda op=op: op(x.float() / 255 if dtype == torch.uint8 else x)
    grey = torch.full_like(x[:64], 128) if dtype == torch.uint8 else torch.full_like(x[:64], 0.5)
    spread = {
        SUBJECT: augment(grey).std().item(),
        "authors": authors(grey, draw_as_authors(grey)).std().item(),
    }
    assert 0.8 < spread[SUBJECT] / spread["authors"] < 1.25, f"not the same augmentation: {spread}"

    def run(call: Callable[[], Any]) -> Callable[[], Any]:
        def without_gradient() -> Any:
            with torch.inference_mode():
                return call()

        return without_gradient

    return {name: run(call) for name, call in found.items()}


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of whole transforms."""
    for dtype in (torch.float32, torch.uint8):
        for shape in SHAPES:
            pixels = math.prod(shape)
            yield Comparison(
                op="FourierBasisAugment",
                shape="x".join(map(str, shape)),
                variant="drawn and added" + (", bytes in" if dtype == torch.uint8 else ""),
                work="forward",
                dtype="float32",
                prepare=lambda shape=shape, dtype=dtype: calls(shape, dtype),
                flops=6 * pixels,
                bytes=pixels * (dtype.itemsize + 4),
            )


@pytest.mark.parametrize("name", [SUBJECT, "authors", "copy", *noise_of_libraries()])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
