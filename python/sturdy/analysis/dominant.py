"""Dominant frequency maps: the frequencies without which a network no longer knows a class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, Model, by_class, check_count, check_eval, choose_classes, device_of, logits
from sturdy.analysis.frequencies import FrequencyRemover, removal_order
from sturdy.transforms.masks import effective_mask, mirrored, save_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class DominantFrequencies:
    """What :func:`compute_dfm` finds, for ``K`` classes.

    Attributes:
        masks: ``(K, H, W)`` float32: 1 where a frequency is kept, 0 where it is not, frequency 0 in the middle. They
            are effective masks, symmetric; 1/2 where a cell is kept and its mirror image is not, which only an order
            with different levels for the two can lead to.
        classes: The classes, in the order of the masks.
        order: ``(H, W)`` int64, the levels by which frequencies were tried.
        images: ``(K,)`` int64, images per class.
        correct_before: ``(K,)`` int64, how many of them were recognised as they were.
        correct_after: ``(K,)`` int64, how many are with the mask.
        one_sided: ``(K,)`` int64, cells that were kept without their mirror images.
    """

    masks: Tensor
    classes: tuple[int, ...]
    order: Tensor
    images: Tensor
    correct_before: Tensor
    correct_after: Tensor
    one_sided: Tensor

    def save(self, path: str | os.PathLike[str], name: str = "model") -> None:
        """Write the masks and the order as a file that :func:`sturdy.transforms.load_masks` reads.

        Args:
            path: With the ending ``.npz``.
            name: Of the network.
        """
        save_masks(path, {name: self.masks}, self.order)

    def plot(self, path: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None) -> Figure:
        """Draw the masks; ``names`` are those of all classes, ``path`` is a PNG file."""
        titles = _pictures.class_names(self.classes, names)
        cells = self.masks.flatten(1).sum(1)
        titles = [f"{title}: {int(kept)} cells" for title, kept in zip(titles, cells, strict=True)]
        return _pictures.draw_maps(
            self.masks, titles, "Dominant frequencies", "kept", path, cmap="viridis", vmin=0, vmax=1
        )


@torch.no_grad()
def compute_dfm(
    model: Model,
    loader: Loader,
    order: Tensor | None = None,
    tolerance: float = 6,
    scope: Literal["step", "global"] = "step",
    *,
    classes: Sequence[int] | None = None,
    keep_dc: bool = False,
    images_per_class: int | None = None,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> DominantFrequencies:
    """Dominant frequency maps (DFMs) of a trained network: what is left of the spectrum when all that can go is gone.

    For each class, frequencies are tried for removal one level after another. One goes for good if the network, without
    it and without those that went before, still recognises enough of the images of the class.

    Give it images that the network was not trained on, and not those of the test set if masks are to be trained with.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, outputs)``; in evaluation mode. It works on its own device.
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64, as the model takes them, and
            ``(N,)`` int64. It is read once, and what it gives is held in memory.
        order: ``(H, W)`` integers, not negative: the cells of the highest level are tried first, together. Cells of
            level 0 are never tried and never kept: images lose them at the start. None: :func:`removal_order`.
        tolerance: How many images fewer may be recognised: a number of images, or below 1 a part of those that are
            recognised at the start.
        scope: ``"step"``: fewer than after the last removal, as in the paper, so that losses add up over the levels;
            ``"global"``: fewer than at the start, which bounds the loss in all (but for cells of level 0, which go
            anyway).
        classes: Which classes; None for all outputs of the model.
        keep_dc: Never take frequency 0, the mean of each image, whatever its level.
        images_per_class: At most so many, the first ones; None for all.
        batch_size: Images that the model gets at once; does not change the result.
        progress: Called after each level with the class and its number of images.

    Returns:
        Masks and counts. A class of which no image is recognised at the start keeps all that could be tried.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: a class has no image, the order has no positive level or a negative one, ``tolerance`` is negative
            or ``scope`` unknown.
        ShapeError: the order does not fit the images, or shapes are not as above.
        TypeError: the order is not integer, or a dtype is not as above.
        IndexError: a class that the model does not have.

    Note:
        Images are transformed once; a candidate costs one pass over the images of the class (:class:`FrequencyRemover`)
        and the model's answers. Where frequency 0 is kept, masks are the same for images in [0, 1] and for normalised
        ones.

    Source: Wang et al., *DFM-X: Augmentation by leveraging prior knowledge of shortcut learning*, ICCV
    workshops 2023. There all images of the test set pass for each frequency, and tolerance is 6.
    """
    name = "compute_dfm"
    check_eval(name, model)
    check_count(name, "batch_size", batch_size)
    if scope not in ("step", "global"):
        raise ValueError(f'{name}: scope must be "step" or "global", got {scope!r}')
    if not tolerance >= 0:
        raise ValueError(f"{name}: tolerance must be 0 or more, got {tolerance}")
    if order is not None:
        _check_order(order)
    found = by_class(name, loader, images_per_class)
    some = next(iter(found.values()))
    size = (int(some.shape[2]), int(some.shape[3]))
    levels = removal_order(*size) if order is None else order.detach().cpu().to(torch.int64)
    if tuple(levels.shape) != size:
        raise ShapeError(f"{name}: order must be {size} as the images are, got shape {tuple(levels.shape)}")
    tried, never = levels > 0, levels == 0
    if keep_dc:
        tried[size[0] // 2, size[1] // 2] = never[size[0] // 2, size[1] // 2] = False
    steps = [((levels == v) & tried).nonzero() for v in levels[tried].unique().tolist()][::-1]
    device = device_of(model, some.device)
    outputs = logits(name, model, some[:1].to(device), batch_size).shape[1]
    chosen = choose_classes(name, found, classes, outputs)
    results = []
    for c in chosen:
        images = found[c].to(device)

        def correct(x: Tensor, c: int = c) -> int:
            return int((logits(name, model, x, batch_size).argmax(1) == c).sum())

        remover = FrequencyRemover(images)
        start = now = correct(images)
        allowed = int(tolerance * start + 1e-9) if tolerance < 1 else int(tolerance)
        remover.remove(never.nonzero())
        for cells in steps:
            if start > 0:
                count = correct(remover.without(cells))
                if count >= (now if scope == "step" else start) - allowed:
                    remover.remove(cells)
                    now = count
            if progress is not None:
                progress(c, len(images))
        kept = remover.kept.float()
        results.append(
            (effective_mask(kept), len(images), start, correct(remover.images), (kept > mirrored(kept)).sum())
        )
    masks, counts, before, after, one_sided = zip(*results, strict=True)
    return DominantFrequencies(
        masks=torch.stack(masks),
        classes=tuple(chosen),
        order=levels,
        images=torch.tensor(counts),
        correct_before=torch.tensor(before),
        correct_after=torch.tensor(after),
        one_sided=torch.stack(one_sided),
    )


def _check_order(order: Tensor) -> None:
    if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool:
        raise TypeError(f"compute_dfm: order must be integers, got {order.dtype}")
    if order.dim() != 2:
        raise ShapeError(f"compute_dfm: order must be (H, W), got shape {tuple(order.shape)}")
    if order.numel() and int(order.min()) < 0:
        raise ValueError(f"compute_dfm: levels of the order must be 0 or more, got {int(order.min())}")
    if not bool((order > 0).any()):
        raise ValueError("compute_dfm: the order has no positive level, so that there is nothing to try")
