"""Augmentations of a batch on its device. Each maps images and their random streams to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.recipes.keyed_random import KeyedRandom

Augmentation = Callable[[Tensor, KeyedRandom], Tensor]


def crop(images: Tensor, random: KeyedRandom) -> Tensor:
    """Pad with zeros by an eighth of the side (4 pixels for 32) and cut the old size out at a random place.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        random: One stream per image.
    """
    height, width = images.shape[-2:]
    pad = max(1, min(height, width) // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    offsets = random.integers(2 * pad + 1, 2)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor, random: KeyedRandom) -> Tensor:
    """Mirror each image left to right with probability 1/2; ``(N, C, H, W)``."""
    mirrored = random.uniform() < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


AUGMENTATIONS: dict[str, Augmentation] = {"crop": crop, "flip": flip}


def apply(names: Sequence[str], images: Tensor, random: KeyedRandom) -> Tensor:
    """Apply the named augmentations in the given order."""
    for name in names:
        images = AUGMENTATIONS[name](images, random)
    return images
