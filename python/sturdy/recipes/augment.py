"""Augmentations of a batch on its device. Each maps images, their labels and their random streams to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.recipes.errors import UsageError
from sturdy.recipes.keyed_random import KeyedRandom
from sturdy.recipes.settings import Settings

Augmentation = Callable[[Tensor, Tensor, KeyedRandom], Tensor]


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


def afa(settings: Settings) -> Augmentation:
    """Plane waves; :class:`sturdy.transforms.FourierBasisAugment` with numbers of the images' own streams."""
    from sturdy.transforms import FourierBasisAugment

    transform = FourierBasisAugment(settings.afa_strength, mode="reference" if settings.afa_reference else "centered")

    def augment(images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
        draw = partial(random.fork().uniform, dtype=torch.float64)
        return transform.transform(images, transform.sample(draw, images))

    return augment


def dfmx(settings: Settings, masks: Tensor, device: torch.device) -> Augmentation:
    """Dominant frequencies of other classes; :class:`sturdy.transforms.DominantFrequencyMix`, keyed as the others.

    Args:
        settings: Of the run.
        masks: ``(classes, H, W)``, frequency 0 in the middle.
        device: Where the images will be.
    """
    from sturdy.transforms import DominantFrequencyMix, effective_mask

    transform = DominantFrequencyMix(effective_mask(masks), settings.dfm_p, invert=settings.dfm_invert).to(device)

    def augment(images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
        draw = partial(random.fork().uniform, dtype=torch.float64)
        return transform.transform(images, transform.sample(draw, images, labels))

    return augment


def build(settings: Settings, masks: Tensor | None, device: torch.device) -> dict[str, Augmentation]:
    """The augmentations of a run by name, in the order of ``settings.augment``.

    Args:
        settings: Of the run.
        masks: Dominant frequency masks of the classes, for ``dfmx``.
        device: Where the images will be.

    Raises:
        UsageError: there are no masks, but ``dfmx`` needs them.
    """
    built: dict[str, Augmentation] = {}
    for name in settings.augment:
        if name == "afa":
            built[name] = afa(settings)
        elif name == "dfmx":
            if masks is None:
                raise UsageError("--augment dfmx needs --dfm-masks, or the preset dfmx, which finds masks itself")
            built[name] = dfmx(settings, masks, device)
        else:
            built[name] = _for_any_label({"crop": crop, "flip": flip}[name])
    return built


def apply(augmentations: Sequence[Augmentation], images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
    """Apply the augmentations in the given order."""
    for augment in augmentations:
        images = augment(images, labels, random)
    return images


def _for_any_label(change: Callable[[Tensor, KeyedRandom], Tensor]) -> Augmentation:
    return lambda images, labels, random: change(images, random)
