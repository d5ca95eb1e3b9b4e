"""What the tests of spectral_filter share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Absolute, for images in [0, 1] and masks of that size.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def uniform(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
    """Numbers in [0, 1]; the same ones, rounded, in every dtype."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(device)


def on(device: Any, values: Any) -> Any:
    """Arguments of a call, a tuple or a dictionary, with the tensors among them on a device."""
    if isinstance(values, dict):
        return dict(zip(values, on(device, tuple(values.values())), strict=True))
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in values)


def mask_shape(size: tuple[int, int], layout: str) -> tuple[int, int]:
    """Of a mask for images of this size."""
    return (size[0], size[1] if layout == "shifted" else size[1] // 2 + 1)
