"""Frequency shortcuts: classes that a network answers to whatever shows a few frequencies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.analysis import _pictures
from sturdy.analysis._inputs import Loader, Model, check_count, check_eval, device_of, logits, read
from sturdy.functional import spectral_filter
from sturdy.transforms.masks import half_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ShortcutReport:
    """What :func:`shortcut_report` finds, for ``K`` masks and a network with ``O`` outputs.

    Rates are float64 in [0, 1], ``(K,)``: the true positive rate of a class is the share of its images that are
    recognised, the false positive rate the share of the images of all others that are taken for it.

    Attributes:
        classes: The class of each mask.
        tpr, fpr: On the images as they are.
        filtered_tpr, filtered_fpr: Of each class on images that keep only the frequencies of its mask.
        shortcut: ``(K,)`` bool: both thresholds are passed.
        confusion: ``(O, O)`` int64, on the images as they are: row the true class, column the answer.
        filtered_confusion: ``(K, O, O)`` int64, the same on images filtered by each mask.
    """

    classes: tuple[int, ...]
    tpr: Tensor
    fpr: Tensor
    filtered_tpr: Tensor
    filtered_fpr: Tensor
    shortcut: Tensor
    confusion: Tensor
    filtered_confusion: Tensor

    def above(self, threshold: float) -> Tensor:
        """Where the true positive rate on filtered images exceeds a threshold: the criterion of HFSS, ``(K,)`` bool."""
        return self.filtered_tpr > threshold

    def average_tpr(self, threshold: float) -> dict[str, float]:
        """Mean true positive rates of the classes above a threshold and of the others, as HFSS reports them.

        Args:
            threshold: Of the true positive rate on filtered images; the paper takes 0.1, 0.2, ..., 0.9.

        Returns:
            ``shortcut``, ``other``: on the images as they are; ``filtered_shortcut``, ``filtered_other``: on filtered
            ones. NaN where there is no such class.
        """
        chosen = self.above(threshold)
        rates = {"": self.tpr, "filtered_": self.filtered_tpr}
        return {
            prefix + group: float(rate[where].mean())
            for prefix, rate in rates.items()
            for group, where in (("shortcut", chosen), ("other", ~chosen))
        }

    def plot(self, path: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None) -> Figure:
        """Draw the rates and the confusion matrix; ``names`` are those of all classes, ``path`` is a PNG file."""
        titles = _pictures.class_names(self.classes, names)
        figure = _pictures.new_figure(max(7.5, 0.62 * len(titles) + 4.5), 3.6)
        rates, matrix = figure.subplots(1, 2, width_ratios=(1.7, 1))
        bars = (
            ("TPR, unfiltered", self.tpr, "0.75"),
            ("TPR, filtered", self.filtered_tpr, _pictures.COLOURS[0]),
            ("FPR, filtered", self.filtered_fpr, _pictures.COLOURS[1]),
        )
        for i, (label, rate, colour) in enumerate(bars):
            places = [k + 0.27 * (i - 1) for k in range(len(titles))]
            rates.bar(places, (100 * rate).tolist(), 0.27, label=label, color=colour)
        marks = [f"{title} *" if found else title for title, found in zip(titles, self.shortcut.tolist(), strict=True)]
        rates.set_xticks(range(len(titles)), marks, fontsize=8, rotation=45, ha="right")
        rates.set_ylabel("rate in %")
        rates.set_ylim(0, 118)
        rates.set_title("filtered by the class's mask; * shortcut", fontsize=10)
        rates.legend(fontsize=7, ncols=3, loc="upper center")
        share = self.confusion.double() / self.confusion.sum(1, keepdim=True).clamp(min=1)
        shown = matrix.imshow(100 * share.cpu().numpy(), cmap="Blues", vmin=0, vmax=100)
        matrix.set_xlabel("answer")
        matrix.set_ylabel("true class")
        matrix.set_title("unfiltered", fontsize=10)
        figure.colorbar(shown, ax=matrix).set_label("% of the true class")
        return _pictures.save(figure, path)


@torch.no_grad()
def shortcut_report(
    model: Model,
    loader: Loader,
    masks: Tensor,
    *,
    classes: Sequence[int] | None = None,
    tpr_threshold: float = 0.5,
    fpr_threshold: float = 0.2,
    batch_size: int = 256,
) -> ShortcutReport:
    """Test whether a network takes a few frequencies for a class.

    All images are filtered by the mask of a class. The class has a frequency shortcut if the network still recognises
    its images, and if it takes other images with the same frequencies for that class, too. Repeated on another test set
    with the same masks, it tells whether the shortcut is there as well.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, outputs)``; in evaluation mode. It works on its own device.
        loader: Iterable of ``(images, labels)``: ``(N, C, H, W)`` float32 or float64, as the model takes them, and
            ``(N,)`` int64. It is read once and not held.
        masks: ``(K, H, W)``, real, frequency 0 in the middle, such as those of :func:`compute_dfm`,
            :meth:`FrequencyRanking.top` or :func:`hfss`; they act by their symmetric part.
        classes: The class of each mask; None for 0, 1, ..., K - 1.
        tpr_threshold: Least true positive rate on filtered images, as a part of that on unfiltered ones.
        fpr_threshold: Least false positive rate on filtered images. A network that gives one answer to all that it does
            not know passes for that class with any mask: look at ``filtered_confusion``.
        batch_size: Images that the model gets at once; does not change the result.

    Returns:
        Rates and confusion matrices. The thresholds' defaults are not the paper's, which judges by eye.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: a class has no image or is the only one, or a threshold is outside [0, 1].
        ShapeError: masks do not fit the images or ``classes``. IndexError: a class or label that the model does not
            have.
        TypeError: dtypes are not as above.

    Source: Wang et al., *What do neural networks learn in image classification? A frequency
    shortcut perspective*, ICCV 2023.
    """
    name = "shortcut_report"
    check_eval(name, model)
    check_count(name, "batch_size", batch_size)
    for argument, value in (("tpr_threshold", tpr_threshold), ("fpr_threshold", fpr_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: {argument} must be between 0 and 1, got {value}")
    if masks.dim() != 3 or 0 in masks.shape:
        raise ShapeError(f"{name}: masks must be (K, H, W), got shape {tuple(masks.shape)}")
    chosen = tuple(range(len(masks)) if classes is None else (int(c) for c in classes))
    if len(chosen) != len(masks):
        raise ShapeError(f"{name}: there are {len(masks)} masks for {len(chosen)} classes")
    table: Tensor | None = None
    counts: Tensor | None = None  # first unfiltered, then by mask
    for given, given_labels in read(name, loader):
        if tuple(given.shape[2:]) != tuple(masks.shape[1:]):
            wanted = f"{name}: masks must be {tuple(given.shape[2:])} as the images are"
            raise ShapeError(f"{wanted}, got shape {tuple(masks.shape[1:])}")
        if table is None:
            table = half_mask(masks.detach()).to(device_of(model, given.device), given.dtype)
        images, labels = given.to(table.device), given_labels.cpu()
        answers = logits(name, model, images, batch_size)
        outputs = answers.shape[1]
        if counts is None:
            counts = torch.zeros(1 + len(masks), outputs, outputs, dtype=torch.int64)
            _check_classes(name, chosen, outputs)
        if int(labels.max()) >= outputs:
            raise IndexError(f"{name}: label {int(labels.max())} is not one of the {outputs} outputs of the model")
        counts[0] += _confusion(labels, answers.argmax(1).cpu(), outputs)
        per_call = max(1, batch_size // len(images))
        for begin in range(0, len(table), per_call):
            some = table[begin : begin + per_call]
            filtered = spectral_filter(images, some[None, :, None], "half")
            answers = logits(name, model, filtered.flatten(0, 1), batch_size).argmax(1).reshape(len(images), -1).cpu()
            for t in range(len(some)):
                counts[1 + begin + t] += _confusion(labels, answers[:, t], outputs)
    assert counts is not None
    of_class = counts[0].sum(1)
    for c in chosen:
        if of_class[c] == 0:
            raise ValueError(f"{name}: the loader has no image of class {c}")
        if of_class[c] == of_class.sum():
            raise ValueError(f"{name}: the loader has images of class {c} only, so that it has no false positive rate")
    places = torch.tensor(chosen)
    tpr, fpr = _rates(counts[:1].expand(len(chosen), -1, -1), places)
    filtered_tpr, filtered_fpr = _rates(counts[1:], places)
    found = (filtered_tpr >= tpr_threshold * tpr) & (filtered_tpr > 0) & (filtered_fpr >= fpr_threshold)
    return ShortcutReport(chosen, tpr, fpr, filtered_tpr, filtered_fpr, found, counts[0], counts[1:])


def _check_classes(name: str, classes: Sequence[int], outputs: int) -> None:
    for c in classes:
        if not 0 <= c < outputs:
            raise IndexError(f"{name}: class {c} is not one of the {outputs} outputs of the model")


def _confusion(labels: Tensor, answers: Tensor, outputs: int) -> Tensor:
    return torch.bincount(labels * outputs + answers, minlength=outputs**2).reshape(outputs, outputs)


def _rates(confusion: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """True and false positive rates of each class by the confusion matrix of its own."""
    k = torch.arange(len(classes))
    of_class = confusion.sum(2)
    taken = confusion.sum(1)[k, classes].double()
    right = confusion[k, classes, classes].double()
    positives = of_class[k, classes].double()
    return right / positives, (taken - right) / (of_class.sum(1) - positives)
