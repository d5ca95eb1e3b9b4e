"""Dominant frequency masks for DFM-X: read from a file, or found with a trained network.

Frequencies are tried for removal one after another, each with its mirror image, lowest first: without one that the
network does not need, it still recognises the images of a class. What is left when all were tried is the class's
dominant frequency mask. Taking a frequency away is the subtraction of a plane wave, so that the search needs a single
transform per image.

Source: Wang, Strisciuglio et al., *DFM-X: Augmentation by leveraging prior knowledge of shortcut learning*, ICCV
workshops 2023. They count the tolerance anew after each removal; here what a class may lose in all is bounded, and the
images are ones that the network was not trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

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


def removal_order(height: int, width: int) -> Tensor:
    """Levels ``(H, W)`` by ascending radius, highest first to go, frequency 0 in the middle.

    A frequency and its mirror image have one level; frequency 0 has level 0, is never tried and never removed.
    """
    rows = torch.arange(height) - height // 2
    columns = torch.arange(width) - width // 2
    levels = torch.zeros(height, width, dtype=torch.int64)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, k in enumerate(rows.tolist()):
        for j, m in enumerate(columns.tolist()):
            mirror = (-k % height, -m % width)
            pairs.setdefault(min((k % height, m % width), mirror), []).append((i, j))
    pairs.pop((0, 0))

    def key(pair: tuple[int, int]) -> tuple[float, int, int]:
        k, m = (min(f, n - f) / n for f, n in zip(pair, (height, width), strict=True))
        return (k**2 + m**2, *pair)

    for level, pair in enumerate(sorted(pairs, key=key)):
        for i, j in pairs[pair]:
            levels[i, j] = len(pairs) - level
    return levels


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
    batches = list(Loader(data.val, 256, World(world.device)).in_order())
    images, labels = (torch.cat([getattr(b, name) for b in batches]) for name in ("images", "labels"))
    order = removal_order(*images.shape[-2:])
    masks = torch.ones(len(data.classes), *order.shape)
    with torch.inference_mode():
        for c in range(len(data.classes)):
            own = images[labels == c][:IMAGES_PER_CLASS]
            masks[c] = _find_mask(model, own, c, order, data, progress) if len(own) else 1
    return masks


def _find_mask(
    model: nn.Module, images: Tensor, label: int, order: Tensor, data: DataSet, progress: RunProgress | None
) -> Tensor:
    from sturdy.functional import spectrum_waves, wave_add

    def correct(x: Tensor) -> int:
        return int((model(normalise(x, data)).argmax(1) == label).sum())

    height, width = order.shape
    enough = max(1, correct(images) - int(MAY_LOSE * correct(images)))
    spectrum = torch.fft.rfft2(images.double())
    kept = torch.ones(height, width)
    for level in range(int(order.max()), 0, -1):
        cells = (order == level).nonzero()
        bins = (cells[:1] - torch.tensor([height // 2, width // 2])) % torch.tensor([height, width])
        frequency, amplitude, phase = spectrum_waves(spectrum, bins, (height, width))
        without = wave_add(images, frequency, -amplitude, phase)
        if correct(without) >= enough:
            images = without
            kept[cells[:, 0], cells[:, 1]] = 0
        if progress is not None:
            progress.advance(len(images), f"class {label}")
    return kept if correct(images) >= enough else torch.ones(height, width)
