"""Average spectra of classes, and how they differ: which frequencies a network could tell classes apart by."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, read
from sturdy.functional import spectrum_accumulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LUMA = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True)
class ClassSpectra:
    """What :func:`adcs` finds, for ``K`` classes.

    Attributes:
        adcs: ``(K, H, W)`` int64, symmetric, frequency 0 in the middle: in how many classes more than not the average
            amplitude of the frequency is lower than in this one; -(K - 1) to K - 1.
        amplitude: ``(K, C, H, W)`` float64, the mean over the images of a class of ``|fft2(image)|``, frequency 0 in
            the middle.
        images: ``(K,)`` int64, images per class.
    """

    adcs: Tensor
    amplitude: Tensor
    images: Tensor

    def plot(self, path: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None) -> Figure:
        """Draw the maps; ``names`` are those of the classes, ``path`` is a PNG file."""
        limit = max(int(self.adcs.abs().max()), 1)
        return _pictures.draw_maps(
            self.adcs,
            _pictures.class_names(range(len(self.adcs)), names),
            "Accumulative difference of class-wise average spectra",
            "ADCS",
            path,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
        )


@torch.no_grad()
def adcs(
    loader: Loader,
    *,
    num_classes: int | None = None,
    reference: bool = False,
    weights: Sequence[float] | None = None,
) -> ClassSpectra:
    """Accumulative differences of class-wise average spectra (ADCS): where a class has more of a frequency than others.

    A network is not needed: what it tells is a property of the data that a network may take as a shortcut.

    Args:
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64, and ``(N,)`` int64. It is read
            once and not held.
        num_classes: ``K``; None for the highest label and those below.
        reference: As the authors compute it: each class is compared with itself, too, and a difference of 0 counts as
            -1, so that values lie in [-K, K - 2] in place of [-(K - 1), K - 1].
        weights: Of the channels in the difference; None for those of luma for three channels, equal ones for others.

    Returns:
        ADCS of all classes, and the average spectra.

    Raises:
        ValueError: a class has no image, or there are not two classes. IndexError: a label is ``num_classes`` or more.
        ShapeError: images or ``weights`` do not fit. TypeError: dtypes are not as above.

    Note:
        The paper sums spectra over the images of a class; the mean taken here does not make large classes win. For
        classes of one size both are the same.

    Source: Wang et al., *What do neural networks learn in image classification? A frequency
    shortcut perspective*, ICCV 2023.
    """
    sums, images, width = _class_spectra("adcs", read("adcs", loader), num_classes, 1)
    if len(images) < 2:
        raise ValueError(f"adcs: there must be two classes or more to compare, got {len(images)}")
    empty = (images == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"adcs: the loader has no image of class {', '.join(map(str, empty))}")
    channels = sums.shape[1]
    if weights is None:
        weights = LUMA if channels == 3 else [1 / channels] * channels
    if len(weights) != channels:
        raise ShapeError(f"adcs: there are {len(weights)} weights for {channels} channels")
    half = sums / images[:, None, None, None].to(sums)
    amplitude = _whole(half, width)
    one = torch.einsum("kchw,c->khw", amplitude, torch.tensor(weights, dtype=torch.float64, device=sums.device))
    signs = torch.zeros(one.shape, dtype=torch.int64, device=one.device)
    for j in range(len(one)):
        difference = one - one[j]
        signs += torch.where(difference > 0, 1, -1) if reference else difference.sign().long()
    return ClassSpectra(signs, amplitude, images)


def _class_spectra(
    name: str, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None, power: int
) -> tuple[Tensor, Tensor, int]:
    """Sums of ``|rfft2(image)| ** power`` by class, ``(K, C, H, W // 2 + 1)`` float64, numbers of images, and ``W``."""
    sums: Tensor | None = None
    counts = torch.zeros(num_classes or 0, dtype=torch.int64)
    width = 0
    for images, labels in batches:
        width = images.shape[-1]
        wanted = int(labels.max()) + 1
        if num_classes is not None and wanted > num_classes:
            raise IndexError(f"{name}: label {wanted - 1} is not one of {num_classes} classes")
        if sums is None or len(sums) < wanted:
            shape = (max(wanted, len(counts)), *images.shape[1:3], width // 2 + 1)
            grown = torch.zeros(shape, dtype=torch.float64, device=images.device)
            if sums is not None:
                grown[: len(sums)] = sums
            sums = grown
            counts = torch.cat((counts, counts.new_zeros(len(sums) - len(counts))))
        sums = spectrum_accumulate(images, labels.to(images.device), len(sums), power=power, initial=sums)
        counts += torch.bincount(labels.cpu(), minlength=len(counts))
    assert sums is not None  # read() raises when there are no images
    return sums, counts, width


def _whole(half: Tensor, width: int) -> Tensor:
    """Amplitudes of all frequencies, the middle one first moved there, from those of ``rfft2``."""
    height = half.shape[-2]
    rest = torch.arange(width // 2 + 1, width)
    rows = -torch.arange(height) % height
    mirrored = half[..., rows, :][..., width - rest]
    return torch.fft.fftshift(torch.cat((half, mirrored), dim=-1), dim=(-2, -1))
