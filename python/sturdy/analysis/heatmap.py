"""Fourier heatmaps: how often a network errs when a wave of one frequency lies over the image."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, Model, check_count, check_eval, device_of, logits, read
from sturdy.analysis.frequencies import mirror_cells
from sturdy.functional import wave_add

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FourierHeatmap:
    """What :func:`fourier_heatmap` finds.

    Attributes:
        errors: ``(h, w)`` float64, symmetric, frequency 0 at ``(h // 2, w // 2)``: share of wrong answers, in [0, 1].
        clean_error: Share of wrong answers on the images as they are.
        eps: L2 norm of the waves.
        images: How many.
    """

    errors: Tensor
    clean_error: float
    eps: float
    images: int

    def plot(self, path: str | os.PathLike[str] | None = None, vmax: float | None = None) -> Figure:
        """Draw the map; ``vmax`` is the error in % at the end of the scale, ``path`` a PNG file."""
        return plot_heatmaps({"": self}, path, vmax)


def plot_heatmaps(
    heatmaps: Mapping[str, FourierHeatmap], path: str | os.PathLike[str] | None = None, vmax: float | None = None
) -> Figure:
    """Draw several maps side by side, on one scale.

    Args:
        heatmaps: By the name in the title.
        path: A PNG file, or None.
        vmax: Error in % at the end of the scale; None for the highest.
    """
    figure = _pictures.new_figure(0.9 + 3.7 * len(heatmaps), 4.0)
    axes = figure.subplots(1, len(heatmaps), squeeze=False)[0]
    top = vmax if vmax is not None else max(100 * float(found.errors.max()) for found in heatmaps.values())
    shown: Any = None
    for axis, (label, found) in zip(axes, heatmaps.items(), strict=True):
        shown = _pictures.draw_map(axis, 100 * found.errors, cmap="viridis", vmin=0, vmax=top or 1)
        _pictures.label_frequencies(axis)
        text = f"waves of norm {found.eps:g}; {100 * found.clean_error:.1f} % without"
        axis.set_title(f"{label}\n{text}" if label else text, fontsize=10)
    figure.colorbar(shown, ax=axes).set_label("error in %")
    return _pictures.save(figure, path)


def fourier_basis(cells: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Real plane waves of L2 norm 1 that have one frequency of an image each, as arguments of ``wave_add``.

    ``sqrt(2 / HW) cos(2 pi (k r / H + l c / W))`` with row ``r`` and column ``c``, and ``sqrt(1 / HW)`` in place of it
    where the frequency is its own mirror image. These are the waves that heatmaps are made of.

    Args:
        cells: ``(K, 2)`` int64: row and column in a map with frequency 0 at ``(H // 2, W // 2)``.
        size: Height and width of the images, in pixels.

    Returns:
        ``frequency (K, 2)``, ``amplitude (K,)`` and ``phase (K,)``, float64.

    Raises:
        ShapeError: ``cells`` are not ``(K, 2)``.
    """
    if cells.dim() != 2 or cells.shape[1] != 2:
        raise ShapeError(f"fourier_basis: cells must be (K, 2), got shape {tuple(cells.shape)}")
    extent = torch.tensor(size, device=cells.device)
    frequency = (cells - extent // 2).double() / extent
    single = (mirror_cells(cells, size) == cells).all(1)
    amplitude = torch.sqrt(torch.where(single, 1.0, 2.0).double() / (size[0] * size[1]))
    # wave_add counts from the middle of the image, and adds sines.
    phase = 2 * math.pi * (frequency * (extent - 1) / 2).sum(1) + math.pi / 2
    return frequency, amplitude, phase


@torch.no_grad()
def fourier_heatmap(
    model: Model,
    loader: Loader,
    eps: float,
    size: int | None = None,
    *,
    clip: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> FourierHeatmap:
    """Error rates of a network under waves of each frequency: which frequencies it is sensitive to.

    To every image and channel the wave of a frequency is added, or subtracted, at random. Bright spots in the middle
    are sensitivity to low frequencies, towards the corners to high ones.

    Args:
        model: Images ``(N, C, H, W)`` in the range of ``clip`` to logits ``(N, outputs)``, a normalisation included; in
            evaluation mode. It works on its own device.
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64 and ``(N,)`` int64. It is read
            once.
        eps: L2 norm of the wave over the pixels of a channel, in units of the images. For images in [0, 1] the paper
            takes 4 at 32 x 32 pixels and 15.7 at 224 x 224: at any size an amplitude of about ``eps sqrt(2 / HW)``.
        size: Side of the central part of the map to compute; None for all of it.
        clip: The range that the sum is clamped to; None for none.
        seed: Of the signs. They are a function of the seed and of the image's place in the loader.
        batch_size: Images that the model gets at once; does not change the result.
        progress: Called after each frequency of each batch with the number of images.

    Returns:
        The map of errors.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: ``eps`` is negative, ``size`` is below 1, or there are no images.
        ShapeError, TypeError: images, labels or logits are not as above.

    Note:
        The model sees each image about ``size ** 2 / 2`` times. Torch's global generators are not touched.

    Source: Yin, Gontijo Lopes, Shlens, Cubuk, Gilmer, *A Fourier perspective on model robustness in computer vision*,
    NeurIPS 2019.
    """
    name = "fourier_heatmap"
    check_eval(name, model)
    check_count(name, "batch_size", batch_size)
    check_count(name, "size", size)
    if not eps >= 0 or math.isinf(eps):
        raise ValueError(f"{name}: eps must be a number, 0 or more, got {eps}")
    generator = torch.Generator().manual_seed(seed)
    cells: Tensor | None = None
    wrong: Tensor | None = None
    clean = total = 0
    for given, given_labels in read(name, loader):
        full = (int(given.shape[2]), int(given.shape[3]))
        if cells is None or wrong is None:
            cells = _half_of(full, size)
            frequency, amplitude, phase = fourier_basis(cells, full)
            wrong = torch.zeros(len(cells), dtype=torch.float64)
            device = device_of(model, given.device)
        images, labels = given.to(device), given_labels.to(device)
        total += len(labels)
        clean += int((logits(name, model, images, batch_size).argmax(1) != labels).sum())
        # Image by image, so that the cut into batches does not change them.
        signs = torch.randint(0, 2, (len(images), len(cells), images.shape[1]), generator=generator) * 2.0 - 1.0
        strength = (signs * (eps * amplitude)[:, None]).to(device)
        for i in range(len(cells)):
            waves = (frequency[i : i + 1].to(device), strength[:, i, :, None], phase[i : i + 1].to(device))
            answers = logits(name, model, wave_add(images, *waves, clip=clip), batch_size).argmax(1)
            wrong[i] += (answers != labels).sum().cpu()
            if progress is not None:
                progress(len(images))
    assert cells is not None and wrong is not None
    errors = torch.zeros(full, dtype=torch.float64)
    for half in (cells, mirror_cells(cells, full)):
        errors[half[:, 0], half[:, 1]] = wrong / total
    rows, columns = (_central(n, size) for n in full)
    return FourierHeatmap(errors[rows, columns].clone(), clean / total, float(eps), total)


def _central(extent: int, size: int | None) -> slice:
    """The middle ``size`` of ``extent`` places, with frequency 0 in their middle."""
    wanted = extent if size is None else min(size, extent)
    begin = extent // 2 - wanted // 2
    return slice(begin, begin + wanted)


def _half_of(full: tuple[int, int], size: int | None) -> Tensor:
    """Cells of the central part, one of each that is a mirror image of another: ``(K, 2)``."""
    rows, columns = (torch.arange(n)[_central(n, size)] for n in full)
    cells = torch.cartesian_prod(rows, columns).reshape(-1, 2)
    mirrored = mirror_cells(cells, full)
    index, mirror_index = (c[:, 0] * full[1] + c[:, 1] for c in (cells, mirrored))
    absent = ~torch.isin(mirror_index, index)  # the other one is outside the central part
    return cells[(index <= mirror_index) | absent]
