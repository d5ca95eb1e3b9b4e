"""How much of an image a network needs: accuracy on images without high, or without low, frequencies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, Model, check_count, check_eval, device_of, logits, read
from sturdy.analysis.frequencies import radius_map
from sturdy.functional import spectral_filter
from sturdy.transforms.masks import half_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RadiusCurve:
    """What :func:`radius_accuracy` finds.

    Attributes:
        radii: ``(R,)`` float64, in cycles per ``max(H, W)`` pixels.
        accuracy: ``(R,)`` float64, in [0, 1], on the filtered images.
        clean_accuracy: On the images as they are.
        kind: ``"low"`` or ``"high"``.
        images: How many.
    """

    radii: Tensor
    accuracy: Tensor
    clean_accuracy: float
    kind: str
    images: int

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curve; ``path`` is a PNG file."""
        return plot_radius_curves({f"{self.kind}-pass": self}, path)


def plot_radius_curves(curves: Mapping[str, RadiusCurve], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw several curves over the radius, dashed the accuracy on unfiltered images.

    Args:
        curves: By the name that the legend shows.
        path: A PNG file, or None.
    """
    figure = _pictures.new_figure(5.2, 3.6)
    axis = figure.subplots()
    drawn: set[float] = set()
    for i, (label, curve) in enumerate(curves.items()):
        colour = _pictures.COLOURS[i % len(_pictures.COLOURS)]
        marker = _pictures.MARKERS[i % len(_pictures.MARKERS)]
        axis.plot(
            curve.radii.tolist(),
            (100 * curve.accuracy).tolist(),
            color=colour,
            marker=marker,
            markersize=4,
            label=label,
        )
        if curve.clean_accuracy not in drawn:
            text = None if drawn else "unfiltered"
            axis.axhline(100 * curve.clean_accuracy, color="0.4", linestyle="--", linewidth=1, label=text)
            drawn.add(curve.clean_accuracy)
    axis.set_xlabel("radius (cycles per image)")
    axis.set_ylabel("accuracy in %")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _pictures.save(figure, path)


@torch.no_grad()
def radius_accuracy(
    model: Model,
    loader: Loader,
    radii: Sequence[float] | None = None,
    kind: Literal["low", "high"] = "low",
    *,
    keep_dc: bool = True,
    batch_size: int = 256,
) -> RadiusCurve:
    """Accuracy on images that keep only frequencies inside, or only those outside, a circle.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, outputs)``; in evaluation mode. It works on its own device.
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64, as the model takes them, and
            ``(N,)`` int64. It is read once.
        radii: In cycles per ``max(H, W)`` pixels (:func:`radius_map`), that is, cycles per image of square ones; None
            for 0, 1, 2, ... up to the corner of the spectrum.
        kind: ``"low"`` keeps frequencies up to the radius, itself included; ``"high"`` those from the radius on.
        keep_dc: Let a high-pass filter leave frequency 0, the mean of each channel. Without it images in [0, 1] come
            out dark, which tells more of a network's answer to darkness than of frequencies.
        batch_size: Images that the model gets at once; does not change the result.

    Returns:
        The accuracies. Nothing is clamped.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: ``kind`` is unknown, a radius is negative, or there is none.
        ShapeError, TypeError: images, labels or logits are not as above.

    Source: Yin, Gontijo Lopes, Shlens, Cubuk, Gilmer, *A Fourier perspective on model robustness in computer vision*,
    NeurIPS 2019, where networks are trained on filtered images, too.
    """
    name = "radius_accuracy"
    check_eval(name, model)
    check_count(name, "batch_size", batch_size)
    if kind not in ("low", "high"):
        raise ValueError(f'{name}: kind must be "low" or "high", got {kind!r}')
    if radii is not None and (len(radii) == 0 or not all(r >= 0 for r in radii)):
        raise ValueError(f"{name}: radii must be one or more numbers, none below 0, got {list(radii)}")
    at: Tensor | None = None
    masks: Tensor | None = None
    right: Tensor | None = None
    clean = total = 0
    for given, given_labels in read(name, loader):
        if masks is None or at is None or right is None:
            distance = radius_map(int(given.shape[2]), int(given.shape[3]))
            chosen = range(int(distance.max()) + 2) if radii is None else radii
            at = torch.tensor([float(r) for r in chosen], dtype=torch.float64)
            masks = _discs(distance, at, kind, keep_dc).to(device_of(model, given.device), given.dtype)
            right = torch.zeros(len(at), dtype=torch.float64)
        images, labels = given.to(masks.device), given_labels.to(masks.device)
        total += len(labels)
        clean += int((logits(name, model, images, batch_size).argmax(1) == labels).sum())
        per_call = max(1, batch_size // len(images))
        for begin in range(0, len(at), per_call):
            some = masks[begin : begin + per_call]
            filtered = spectral_filter(images, some[None, :, None], "half")
            answers = logits(name, model, filtered.flatten(0, 1), batch_size).argmax(1).reshape(len(images), -1)
            right[begin : begin + len(some)] += (answers == labels[:, None]).sum(0).cpu()
    assert at is not None and right is not None
    return RadiusCurve(at, right / total, clean / total, kind, total)


def _discs(distance: Tensor, radii: Tensor, kind: str, keep_dc: bool) -> Tensor:
    """Half masks ``(R, H, W // 2 + 1)``."""
    slack = 1e-9  # radii of non-square images are quotients
    if kind == "low":
        discs = distance <= radii[:, None, None] + slack
    else:
        discs = distance >= radii[:, None, None] - slack
        if keep_dc:
            discs[:, distance.shape[0] // 2, distance.shape[1] // 2] = True
    return half_mask(discs)
