"""Corruptions to evaluate with: batched torch code after the definitions of ImageNet-C.

Images are float32 ``(N, C, H, W)`` in [0, 1], one or three channels; a single channel stands for R = G = B. Results are
clamped to [0, 1]. Random numbers are keyed by (seed, image index, name, severity), so what happens to an image does not
depend on the batch it is in.

The severities belong to an image size. There are tables for 32, 64, 224 and 299 pixels; an image takes the nearest one
by its shorter side (all below 32 take 32), unless a table is named. Nothing is interpolated between tables.

Source: Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations,
ICLR 2019. Corruptions generated here are not the files of the published sets; accuracies are not comparable with
published ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.recipes.errors import check_name
from sturdy.recipes.keyed_random import KeyedRandom, mix_key

SIZES = (32, 64, 224, 299)
SEVERITIES = (1, 2, 3, 4, 5)

_Levels = tuple[float, float, float, float, float]

# name -> table size -> parameter at severity 1..5
PARAMETERS: dict[str, dict[int, _Levels]] = {
    "gaussian_noise": {  # standard deviation
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
        299: (0.09, 0.13, 0.19, 0.27, 0.40),
    },
    "shot_noise": {  # photons of a white pixel
        32: (500, 250, 100, 75, 50),
        64: (250, 100, 50, 30, 15),
        224: (60, 25, 12, 5, 3),
        299: (50, 20, 10, 5, 3),
    },
    "impulse_noise": {  # fraction of values replaced
        32: (0.01, 0.02, 0.03, 0.05, 0.07),
        64: (0.01, 0.02, 0.05, 0.08, 0.14),
        224: (0.03, 0.06, 0.09, 0.17, 0.27),
        299: (0.04, 0.07, 0.10, 0.18, 0.28),
    },
    "gaussian_blur": {  # standard deviation in pixels
        32: (0.4, 0.6, 0.7, 0.8, 1.0),
        64: (0.5, 0.75, 1.0, 1.25, 1.5),
        224: (1, 2, 3, 4, 6),
        299: (1.5, 2.5, 3.5, 4.5, 6.5),
    },
    "brightness": {  # added to the value channel of HSV
        32: (0.05, 0.1, 0.15, 0.2, 0.3),
        64: (0.1, 0.2, 0.3, 0.4, 0.5),
        224: (0.1, 0.2, 0.3, 0.4, 0.5),
        299: (0.1, 0.2, 0.3, 0.4, 0.5),
    },
    "contrast": {  # factor of the distance from the mean
        32: (0.75, 0.5, 0.4, 0.3, 0.15),
        64: (0.4, 0.3, 0.2, 0.1, 0.05),
        224: (0.4, 0.3, 0.2, 0.1, 0.05),
        299: (0.4, 0.3, 0.2, 0.1, 0.05),
    },
    "pixelate": {  # side of the small image over that of the large one
        32: (0.95, 0.9, 0.85, 0.75, 0.65),
        64: (0.9, 0.8, 0.7, 0.6, 0.5),
        224: (0.6, 0.5, 0.4, 0.3, 0.25),
        299: (0.5, 0.4, 0.3, 0.25, 0.2),
    },
}

NAMES = tuple(PARAMETERS)


def table_for(height: int, width: int) -> int:
    """The table size nearest to the shorter side of an image, the smaller one if two are equally near."""
    return min(SIZES, key=lambda size: abs(size - min(height, width)))


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    size_table: int | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    """Corrupt a batch of images.

    Args:
        images: ``(N, C, H, W)`` float32 in [0, 1], C = 1 or 3.
        name: One of :data:`NAMES`.
        severity: 1 to 5.
        size_table: Table of severities, one of :data:`SIZES`; None takes the nearest to the images' size.
        seed: Of the random numbers.
        indices: ``(N,)`` integers, each image's number in its data set; None counts from 0.

    Returns:
        Images like the given ones, in new memory.

    Raises:
        UsageError: unknown name. ValueError: severity, table, shape or range. TypeError: not float32.
    """
    check_name("corruption", name, NAMES)
    if severity not in SEVERITIES:
        raise ValueError(f"corrupt: severity must be 1 to 5, got {severity}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"corrupt: images must be (N, 1 or 3, H, W), got {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise TypeError(f"corrupt: images must be float32, got {images.dtype}")
    if size_table is not None and size_table not in SIZES:
        raise ValueError(f"corrupt: size_table must be one of {SIZES}, got {size_table}")
    if indices is None:
        indices = torch.arange(len(images), device=images.device)
    if indices.shape != (len(images),):
        raise ValueError(f"corrupt: indices must be ({len(images)},), got {tuple(indices.shape)}")
    table = size_table or table_for(*images.shape[-2:])
    random = KeyedRandom(indices.to(images.device), mix_key(seed, name, severity))
    return _FUNCTIONS[name](images, PARAMETERS[name][table][severity - 1], random).clamp(0.0, 1.0)


def _gaussian_noise(images: Tensor, sigma: float, random: KeyedRandom) -> Tensor:
    return images + sigma * random.normal(*images.shape[1:])


def _shot_noise(images: Tensor, photons: float, random: KeyedRandom) -> Tensor:
    return (random.poisson(images.double() * photons) / photons).to(images.dtype)


def _impulse_noise(images: Tensor, amount: float, random: KeyedRandom) -> Tensor:
    u = random.uniform(*images.shape[1:])
    salt_or_pepper = (u < 0.5 * amount).to(images.dtype)
    return torch.where(u < amount, salt_or_pepper, images)


def _gaussian_blur(images: Tensor, sigma: float, random: KeyedRandom) -> Tensor:
    radius = int(4.0 * sigma + 0.5)
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    channels = images.shape[1]
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _brightness(images: Tensor, shift: float, random: KeyedRandom) -> Tensor:
    # With hue and saturation kept, a new HSV value scales all channels alike; black has none and becomes grey.
    value = images.amax(1, keepdim=True)
    shifted = (value + shift).clamp(max=1.0)
    return torch.where(value > 0, images * (shifted / value.clamp(min=1e-12)), shifted)


def _contrast(images: Tensor, factor: float, random: KeyedRandom) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _pixelate(images: Tensor, factor: float, random: KeyedRandom) -> Tensor:
    height, width = images.shape[-2:]
    rows = _box_down_and_up(height, max(1, int(height * factor))).to(images)
    columns = _box_down_and_up(width, max(1, int(width * factor))).to(images)
    return rows @ images @ columns.T


def _box_down_and_up(size: int, small: int) -> Tensor:
    """``(size, size)`` matrix: box filter down to ``small`` samples, then each repeated up to ``size`` (nearest).

    As in Pillow's BOX filter, an output sample is the plain mean of the input samples whose centres lie within half
    a step of its own.
    """
    scale = size / small
    centres = (torch.arange(small, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(size, dtype=torch.float64) + 0.5 - centres[:, None]) / scale
    down = ((distance > -0.5) & (distance <= 0.5)).double()
    down /= down.sum(1, keepdim=True)
    source = ((torch.arange(size, dtype=torch.float64) + 0.5) / scale).long()
    return down[source]


_FUNCTIONS: dict[str, Callable[[Tensor, float, KeyedRandom], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
}
