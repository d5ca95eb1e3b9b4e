"""Dominant frequency masks for DFM-X: read from a file, or found with a trained network.

The search is that of :func:`sturdy.analysis.compute_dfm`, on validation images. Other than in the paper, what a class
may lose in all is bounded, and the mean of an image is never taken, which the augmentation keeps anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sturdy.analysis import compute_dfm, removal_order
from sturdy.recipes.data import DataSet
from sturdy.recipes.distributed import World
from sturdy.recipes.engine import normalise
from sturdy.recipes.errors import RecipeError, UsageError
from sturdy.recipes.loader import Loader
from sturdy.recipes.progress import RunProgress

MAY_LOSE = 0.3  # of the images of a class that are recognised unfiltered
IMAGES_PER_CLASS = 100  # at most


def read_masks(path: Path, name: str | None, data: DataSet) -> Tensor:
    """Masks ``(classes, H, W)`` for a data set from a file of :func:`sturdy.transforms.load_masks`.

    Raises:
        RecipeError: the file is missing, damaged, or for other images.
        UsageError: it holds several sets of masks, or none of that name.
    """
    from sturdy.transforms import load_masks

    try:
        found = load_masks(path).masks
    except FileNotFoundError:
        raise RecipeError(f"no such file: {path}") from None
    except (ValueError, OSError) as error:
        raise RecipeError(str(error)) from None
    if name is None and len(found) > 1:
        raise UsageError(f"{path} holds masks of {', '.join(found)}; choose with --dfm-set")
    if name is not None and name not in found:
        raise UsageError(f"{path} has no masks {name!r} (it holds {', '.join(found)})")
    masks = found[name] if name is not None else next(iter(found.values()))
    if masks.shape[0] != len(data.classes):
        raise RecipeError(f"{path} has masks for {masks.shape[0]} classes, the data set has {len(data.classes)}")
    if tuple(masks.shape[1:]) != data.image_shape:
        raise RecipeError(f"{path} has masks of {tuple(masks.shape[1:])}, the images are {data.image_shape}")
    return masks


class Normalised(nn.Module):
    """A network for images in [0, 1]: the data set's mean and deviation are taken into account first."""

    def __init__(self, model: nn.Module, data: DataSet) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of images ``(N, C, H, W)``."""
        logits: Tensor = self.model(normalise(images, self.data))
        return logits


def pairs(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """What a loader gives, in order, as the tools of :mod:`sturdy.analysis` read it."""
    for batch in loader.in_order():
        yield batch.images, batch.labels


def search_steps(height: int, width: int) -> int:
    """How many frequencies are tried for each class."""
    return int(removal_order(height, width).max()) - 1


def find_masks(model: nn.Module, data: DataSet, world: World, progress: RunProgress | None = None) -> Tensor:
    """Dominant frequency masks of a trained network on the validation images.

    Args:
        model: In evaluation mode, on the device of ``world``.
        data: The data set; its validation part must not be empty.
        world: This process.
        progress: Told the number of images after each frequency.

    Returns:
        ``(classes, H, W)`` zeros and ones, frequency 0 in the middle. A class of which no image is recognised has ones
        everywhere.
    """
    images, labels = (torch.cat(part) for part in zip(*pairs(Loader(data.val, 256, World(world.device))), strict=True))
    present = [c for c in range(len(data.classes)) if bool((labels == c).any())]
    found = compute_dfm(
        Normalised(model, data),
        [(images, labels)],
        None,
        MAY_LOSE,
        "global",
        classes=present,
        keep_dc=True,
        images_per_class=IMAGES_PER_CLASS,
        progress=None if progress is None else lambda c, count: progress.advance(count, f"class {c}"),
    )
    masks = torch.ones(len(data.classes), *images.shape[-2:])
    masks[present] = found.masks
    return masks
