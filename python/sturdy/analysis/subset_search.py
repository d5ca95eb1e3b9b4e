"""Hierarchical frequency shortcut search (HFSS): small sets of frequencies by which a network knows a class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, Model, by_class, check_count, check_eval, choose_classes, device_of, logits
from sturdy.analysis.frequencies import _representatives
from sturdy.functional import spectral_filter
from sturdy.transforms.masks import effective_mask, half_mask, save_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IMAGES_AT_ONCE = 32  # whose spectra serve many masks in one call


@dataclass(frozen=True)
class FrequencySubsets:
    """What :func:`hfss` finds, for ``K`` classes, ``M`` masks kept of each, and ``S`` stages.

    Attributes:
        masks: ``(K, H, W)`` float32, effective masks, frequency 0 in the middle: the best of each class.
        losses: ``(K,)`` float64, the mean cross-entropy in nats of a class's images filtered by its mask.
        unfiltered: ``(K,)`` float64, that of the images as they are.
        candidates: ``(K, M, H, W)`` float32, the best masks of the last stage, best first.
        candidate_losses: ``(K, M)`` float64.
        history: ``(S, K)`` float64, the lowest loss of each stage.
        stages: Patches per side of each stage.
        classes: The classes, in the order of the masks.
    """

    masks: Tensor
    losses: Tensor
    unfiltered: Tensor
    candidates: Tensor
    candidate_losses: Tensor
    history: Tensor
    stages: tuple[int, ...]
    classes: tuple[int, ...]

    def save(self, path: str | os.PathLike[str], name: str = "model") -> None:
        """Write the masks as a file that :func:`sturdy.transforms.load_masks` reads; ``path`` ends in ``.npz``."""
        save_masks(path, {name: self.masks})

    def plot(self, path: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None) -> Figure:
        """Draw the masks; ``names`` are those of all classes, ``path`` is a PNG file."""
        titles = _pictures.class_names(self.classes, names)
        titles = [f"{title}: loss {loss:.2f}" for title, loss in zip(titles, self.losses.tolist(), strict=True)]
        return _pictures.draw_maps(
            self.masks, titles, "Frequencies found by HFSS", "kept", path, cmap="viridis", vmin=0, vmax=1
        )


def default_stages(size: int) -> tuple[int, ...]:
    """Patches per side that HFSS goes through on images of ``size`` pixels: the paper's, or doubled from 4 on."""
    if size == 224:
        return (4, 8, 16, 28, 56, 112)
    stages = [min(4, size)]
    while 2 * stages[-1] <= size:
        stages.append(2 * stages[-1])
    return tuple(stages)


@torch.no_grad()
def hfss(
    model: Model,
    loader: Loader,
    stages: Sequence[int] | None = None,
    n_candidates: int = 500,
    keep: int = 10,
    *,
    fraction: float = 0.8,
    hermitian: Literal["exact", "reference"] = "exact",
    classes: Sequence[int] | None = None,
    images_per_class: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> FrequencySubsets:
    """Search, from coarse to fine, for small sets of frequencies by which a network knows a class.

    In each stage random masks are drawn, squares of a grid over the frequencies, in three kinds in turn: of a grid with
    so many patches per side; of one shifted by half a patch; and the union of one of each, sampled half as densely.
    From the second stage on each is cut with one of the best masks of the stage before, of a random class. All images
    are filtered by all masks, and each class keeps those with the lowest loss on its own images.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, outputs)``; in evaluation mode. It works on its own device.
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64, as the model takes them, and
            ``(N,)`` int64. It is read once, and what it gives is held in memory. The paper takes 5 % of the training
            images of each class.
        stages: Patches per side, each at most the shorter side of the images; None for :func:`default_stages`. A grid
            as fine as the frequencies themselves is not shifted.
        n_candidates: Masks of each stage.
        keep: Masks that each class keeps for the next stage.
        fraction: Of the squares of half of the spectrum that a mask has; the other half mirrors them.
        hermitian: ``"exact"``: frequencies are mirrored through frequency 0, so that masks are symmetric.
            ``"reference"``: as the authors' code does it, one place off, and without drawing the row of frequency 0;
            such masks act, and are reported, with values of 1/2.
        classes: Which classes; None for all outputs of the model.
        images_per_class: At most so many, the first ones; None for all.
        seed: Of the masks, which are the same on every device.
        batch_size: Images that the model gets at once; does not change the result.
        progress: Called after each batch of masks with the stage, from 0, and the number of filtered images.

    Returns:
        The best mask of each class, and what led to it.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: a class has no image, a number is out of range, or ``hermitian`` unknown.
        ShapeError, TypeError: images, labels or logits are not as above. IndexError: a class that the model lacks.

    Note:
        Images are transformed once for many masks. Torch's global generators are not touched.

    Source: Wang et al., HFSS, CVPR 2025 (arXiv 2503.03519), which draws classes and parents without a seed.
    """
    name = "hfss"
    check_eval(name, model)
    for argument, value in (("batch_size", batch_size), ("n_candidates", n_candidates), ("keep", keep)):
        check_count(name, argument, value)
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must be above 0 and at most 1, got {fraction}")
    if hermitian not in ("exact", "reference"):
        raise ValueError(f'{name}: hermitian must be "exact" or "reference", got {hermitian!r}')
    found = by_class(name, loader, images_per_class)
    some = next(iter(found.values()))
    size = (int(some.shape[2]), int(some.shape[3]))
    grids = default_stages(min(size)) if stages is None else tuple(int(p) for p in stages)
    if not grids or not all(1 <= p <= min(size) for p in grids):
        raise ValueError(f"{name}: stages must be one or more numbers from 1 to {min(size)}, got {list(grids)}")
    device = device_of(model, some.device)
    outputs = logits(name, model, some[:1].to(device), batch_size).shape[1]
    chosen = choose_classes(name, found, classes, outputs)
    images = torch.cat([found[c] for c in chosen])
    targets = torch.cat([torch.full((len(found[c]),), c) for c in chosen])
    generator = torch.Generator().manual_seed(seed)
    whole = torch.ones(1, *size)
    unfiltered = _losses(name, model, images, targets, whole, chosen, device, batch_size, None)[0]
    best: Tensor | None = None
    history = []
    for number, grid in enumerate(grids):
        masks = _draw(n_candidates, grid, size, fraction, hermitian, generator)
        if best is not None:
            classes_drawn = torch.randint(len(chosen), (n_candidates,), generator=generator)
            parents_drawn = torch.randint(best.shape[1], (n_candidates,), generator=generator)
            masks = masks * best[classes_drawn, parents_drawn]
        masks = _mirror(masks, hermitian)
        tell = None if progress is None else partial(progress, number)
        losses = _losses(name, model, images, targets, masks, chosen, device, batch_size, tell)
        least = losses.topk(min(keep, n_candidates), dim=0, largest=False)
        best = masks[least.indices.T]
        history.append(least.values[0])
    assert best is not None
    effective = effective_mask(best)
    return FrequencySubsets(
        masks=effective[:, 0].clone(),
        losses=least.values[0].clone(),
        unfiltered=unfiltered,
        candidates=effective,
        candidate_losses=least.values.T.contiguous(),
        history=torch.stack(history),
        stages=grids,
        classes=tuple(chosen),
    )


def _losses(
    name: str,
    model: Model,
    images: Tensor,
    targets: Tensor,
    masks: Tensor,
    classes: Sequence[int],
    device: torch.device,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> Tensor:
    """Mean cross-entropy of the images of each class under each mask: ``(masks, classes)`` float64."""
    table = half_mask(masks).to(device, images.dtype)
    row = torch.zeros(int(targets.max()) + 1, dtype=torch.int64)
    row[torch.tensor(classes)] = torch.arange(len(classes))
    sums = torch.zeros(len(classes), len(masks), dtype=torch.float64, device=device)
    for at in torch.arange(len(images)).split(min(_IMAGES_AT_ONCE, batch_size)):
        part, labels, rows = images[at].to(device), targets[at].to(device), row[targets[at]].to(device)
        per_call = max(1, batch_size // len(part))
        for begin in range(0, len(masks), per_call):
            some = table[begin : begin + per_call]
            filtered = spectral_filter(part, some[None, :, None], "half").flatten(0, 1)
            answers = logits(name, model, filtered, batch_size).double()
            losses = F.cross_entropy(answers, labels.repeat_interleave(len(some)), reduction="none")
            sums[:, begin : begin + len(some)].index_add_(0, rows, losses.reshape(len(part), len(some)))
            if progress is not None:
                progress(len(filtered))
    counts = torch.bincount(row[targets], minlength=len(classes)).to(device)
    return (sums / counts[:, None]).T.cpu()


# ---- masks ----


def _draw(
    count: int, grid: int, size: tuple[int, int], fraction: float, hermitian: str, generator: torch.Generator
) -> Tensor:
    """Masks ``(count, H, W)`` of which the upper half is drawn: plain, shifted and mixed in turn."""

    def some(number: int, shifted: bool, part: float) -> Tensor:
        return _squares(number, grid, shifted, size, part, hermitian, generator)

    if grid >= min(size):
        return some(count, False, fraction)
    masks = torch.empty(count, *size)
    plain, shifted, mixed = (len(range(kind, count, 3)) for kind in range(3))
    masks[0::3] = some(plain, False, fraction)
    masks[1::3] = some(shifted, True, fraction)
    masks[2::3] = torch.maximum(some(mixed, False, fraction / 2), some(mixed, True, fraction / 2))
    return masks


def _squares(
    count: int,
    grid: int,
    shifted: bool,
    size: tuple[int, int],
    fraction: float,
    hermitian: str,
    generator: torch.Generator,
) -> Tensor:
    """Masks ``(count, H, W)`` of random squares of a grid, in the upper half of the map."""
    height, width = size
    rows, columns = (
        # Half a patch further on, in whole numbers.
        (2 * grid * torch.arange(n) + (n if shifted else 0)).div(2 * n, rounding_mode="floor")
        for n in (height, width)
    )
    side = grid + shifted
    upper = int(rows[height // 2]) + 1 if hermitian == "exact" else (side + 1) // 2
    squares = upper * side
    taken = int(squares * fraction)
    chosen = torch.rand(count, squares, generator=generator).argsort(dim=1)[:, :taken]
    cells = torch.zeros(count, squares).scatter_(1, chosen, 1.0).reshape(count, upper, side)
    cells = F.pad(cells, (0, 0, 0, side - upper))
    return cells[:, rows][:, :, columns]


def _mirror(masks: Tensor, hermitian: str) -> Tensor:
    """Masks whose lower half mirrors the upper one."""
    height, width = masks.shape[-2:]
    if hermitian == "exact":
        return masks.flatten(1)[:, _representatives(height, width).flatten()].reshape(masks.shape)
    masks = masks.clone()
    half = height // 2
    masks[:, height - half :] = masks[:, :half].flip((-2, -1))
    return masks
