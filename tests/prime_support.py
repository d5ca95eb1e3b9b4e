"""What the tests of filter2d, smooth_color and sine_warp share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLIP = (0.0, 1.0)
# Several tiles and bands, ragged ones, single rows and columns: tiles are 16 x 64 pixels on a GPU, vectors up to 16
# wide and blocks of rows up to 8 high on the CPU.
SHAPES = [
    (2, 3, 32, 32),
    (3, 2, 7, 9),
    (1, 1, 20, 66),
    (2, 5, 28, 31),
    (1, 2, 1, 33),
    (1, 3, 35, 1),
    (2, 4, 2, 2),
    (1, 1, 1, 1),
]
LARGE = [(1, 3, 96, 96), (1, 1, 224, 224)]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Of a result in [0, 1]: half of the last digit it holds, and what sums lose.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def pixels(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: Any = "cpu", seed: int = 1) -> Tensor:
    """Uniform in [0, 1], or bytes."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((255 * values).round() if dtype == torch.uint8 else values).to(dtype).to(device)


def normal(shape: tuple[int, ...], device: Any = "cpu", seed: int = 2) -> Tensor:
    """Standard normal float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def shared_shapes(*rest: int) -> list[tuple[int, ...]]:
    """Shapes of a parameter for images (3, 2, ...): its own for each image and channel, or shared."""
    return [(3, 2, *rest), (1, 2, *rest), (3, 1, *rest), (1, 1, *rest), (2, *rest), tuple(rest)]


def clear_of_bounds(unclamped: Tensor, margin: float = 1e-4) -> Tensor:
    """1 where rounding cannot choose the side of the clamp's bounds, else 0."""
    distance = (unclamped - CLIP[0]).abs().minimum((unclamped - CLIP[1]).abs())
    return (distance > margin).to(torch.float64)
