"""How much each frequency matters to a network, class by class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, Model, by_class, check_count, check_eval, choose_classes, device_of, logits
from sturdy.analysis.frequencies import FrequencyRemover, patches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FrequencyRanking:
    """What :func:`rank_frequencies` finds, for ``K`` classes.

    Attributes:
        importance: ``(K, H, W)`` float64, symmetric, frequency 0 in the middle: by how much the mean cross-entropy of
            the images of a class grows, in nats, when the frequency is taken from them. Below 0 where it falls.
        loss: ``(K,)`` float64, the mean cross-entropy of the images as they are.
        classes: The classes, in the order of the maps.
    """

    importance: Tensor
    loss: Tensor
    classes: tuple[int, ...]

    def top(self, percent: float) -> Tensor:
        """Masks of the most important frequencies.

        Args:
            percent: Of all ``H W`` cells; the paper looks at 1, 5, 10 and 20.

        Returns:
            ``(K, H, W)`` float32, 1 where the importance is at least that of the last cell that counts, so that ties, a
            frequency and its mirror image for one, stay together.

        Raises:
            ValueError: not between 0 and 100, or less than one cell.
        """
        flat = self.importance.flatten(1)
        cells = int(percent / 100 * flat.shape[1] + 1e-9) if 0 < percent <= 100 else 0
        if cells < 1:
            raise ValueError(f"top: percent must be above 0, at most 100, and one cell at least, got {percent}")
        least = flat.topk(cells, dim=1).values[:, -1]
        return (self.importance >= least[:, None, None]).float()

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        names: Sequence[str] | None = None,
        limit: float | None = None,
    ) -> Figure:
        """Draw the maps.

        Args:
            path: A PNG file, or None.
            names: Of all classes.
            limit: Nats at the ends of the scale; None for the largest change, that of frequency 0 left out.
        """
        if limit is None:
            others = self.importance.abs()
            others[:, others.shape[1] // 2, others.shape[2] // 2] = 0
            limit = float(others.max()) or 1.0
        return _pictures.draw_maps(
            self.importance,
            _pictures.class_names(self.classes, names),
            "Importance of single frequencies",
            "rise of the cross-entropy (nats)",
            path,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
        )


@torch.no_grad()
def rank_frequencies(
    model: Model,
    loader: Loader,
    *,
    classes: Sequence[int] | None = None,
    patch: int = 1,
    images_per_class: int | None = None,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> FrequencyRanking:
    """Rank frequencies by what a network loses without them, for each class.

    Each frequency is taken away, with its mirror image and alone, from all images of a class.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, outputs)``; in evaluation mode. It works on its own device.
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64, as the model takes them, and
            ``(N,)`` int64. It is read once, and what it gives is held in memory.
        classes: Which classes; None for all outputs of the model.
        patch: Side in cells of squares of frequencies that are taken away together; 1 for single ones. A square and its
            mirror image share a value.
        images_per_class: At most so many, the first ones; None for all.
        batch_size: Images that the model gets at once.
        progress: Called after each frequency with the class and its number of images.

    Returns:
        The rise of the loss per class and frequency. The paper ranks by the loss itself, which gives the same order.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: a class has no image, or ``patch`` is below 1.
        ShapeError, TypeError: images, labels or logits are not as above. IndexError: a class that the model lacks.

    Note:
        The model sees all images of a class about ``H W / 2`` times: 512 at 32 x 32 pixels, 25 000 at 224 x 224, where
        ``patch`` and ``images_per_class`` help.

    Source: Wang et al., *What do neural networks learn in image classification? A frequency
    shortcut perspective*, ICCV 2023.
    """
    name = "rank_frequencies"
    check_eval(name, model)
    check_count(name, "batch_size", batch_size)
    check_count(name, "patch", patch)
    found = by_class(name, loader, images_per_class)
    some = next(iter(found.values()))
    height, width = some.shape[-2:]
    device = device_of(model, some.device)
    outputs = logits(name, model, some[:1].to(device), batch_size).shape[1]
    chosen = choose_classes(name, found, classes, outputs)
    groups = patches(height, width, patch)
    members = [(groups == g).nonzero() for g in range(int(groups.max()) + 1)]
    importance = torch.zeros(len(chosen), height, width, dtype=torch.float64)
    unfiltered = torch.zeros(len(chosen), dtype=torch.float64)
    for i, c in enumerate(chosen):
        remover = FrequencyRemover(found[c].to(device))
        labels = torch.full((len(remover.images),), c, device=device)

        def loss(x: Tensor, labels: Tensor = labels) -> float:
            return float(F.cross_entropy(logits(name, model, x, batch_size).double(), labels))

        unfiltered[i] = loss(remover.images)
        for cells in members:
            importance[i, cells[:, 0], cells[:, 1]] = loss(remover.without(cells)) - unfiltered[i]
            if progress is not None:
                progress(c, len(remover.images))
    return FrequencyRanking(importance, unfiltered, tuple(chosen))
