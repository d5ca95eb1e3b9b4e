"""Pictures of runs of networks of sequences: accuracy over time, and clusters of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sturdy.recipes.plots import _COLOURS, _MARKERS, _save, plt

_NONE, _SEVERAL = "#303030", "#ffffff"


def accuracy_over_time(report: dict[str, Any], path: Path) -> None:
    """Accuracy in % over minutes of training and over epochs, one line per run: validation, or training without it.

    Args:
        report: By label what :func:`sturdy.recipes.compare.figures` gives.
        path: The PNG file.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    part = "val" if all("val" in point for values in report.values() for point in values["curve"]) else "train"
    for i, (label, values) in enumerate(report.items()):
        style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 3}
        accuracy = [100 * point[part] for point in values["curve"]]
        axes[0].plot([point["minutes"] for point in values["curve"]], accuracy, label=label, **style)
        axes[1].plot(range(1, len(accuracy) + 1), accuracy, **style)
    axes[0].set(xlabel="minutes of training", ylabel=f"{'validation' if part == 'val' else 'training'} accuracy in %")
    axes[1].set(xlabel="epoch")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=min(4, len(report)), frameon=False)
    _save(figure, path)


def memberships_over_epochs(report: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Parts of all tokens in no cluster, in one and in several, by epoch; a row for each run, a panel for each layer.

    Args:
        report: By label the events ``clusters`` of a log.
        path: The PNG file.
    """
    layers = [layer["layer"] for layer in next(iter(report.values()))[0]["layers"]]
    size = (1.2 + 2.2 * len(layers), 1.0 + 1.9 * len(report))
    figure, axes = plt.subplots(
        len(report), len(layers), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    kinds = (("none", _NONE), ("one", _COLOURS[0]), ("several", _COLOURS[1]))
    for row, (label, events) in zip(axes, report.items(), strict=True):
        epochs = [event["epoch"] + 1 for event in events]
        for place, axis in enumerate(row):
            parts = [[100 * event["layers"][place][kind] for event in events] for kind, _ in kinds]
            if len(epochs) > 1:
                axis.stackplot(epochs, parts, colors=[colour for _, colour in kinds])
                axis.set_xlim(epochs[0], epochs[-1])
            else:
                bottom = 0.0
                for (_, colour), part in zip(kinds, parts, strict=True):
                    axis.bar(epochs, part, bottom=bottom, color=colour, width=0.6)
                    bottom += part[0]
            axis.set_ylim(0, 100)
            axis.set_title(f"{label}, layer {layers[place] + 1}", fontsize=9)
            axis.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("part of the tokens in %", fontsize=9)
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in kinds]
    names = ("in no cluster", "in one", "in several")
    figure.legend(patches, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def clusters_of_images(images: Tensor, layers: Sequence[tuple[int, Tensor]], title: str, path: Path) -> None:
    """Which pixels each cluster takes: a row per image, a column per layer.

    Args:
        images: ``(K, H, W)`` in [0, 1].
        layers: Number of a layer and ``(K, C, H, W)``, 1 where a pixel is in a cluster.
        title: Above it.
        path: The PNG file.
    """
    count, columns = len(images), 1 + len(layers)
    figure, axes = plt.subplots(
        count, columns, figsize=(1.5 * columns + 0.3, 1.5 * count + 1.1), squeeze=False, layout="constrained"
    )
    for k in range(count):
        axes[k, 0].imshow(images[k].numpy(), cmap="gray", vmin=0, vmax=1)
        for column, (_, members) in enumerate(layers, start=1):
            axes[k, column].imshow(_colour(members[k]), interpolation="nearest")
    axes[0, 0].set_title("image", fontsize=9)
    for column, (number, _) in enumerate(layers, start=1):
        axes[0, column].set_title(f"layer {number + 1}", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    _finish(figure, [members for _, members in layers], title, path)


def clusters_by_place(layers: Sequence[tuple[int, Tensor]], title: str, path: Path, most: int = 16) -> None:
    """How often each cluster takes each pixel: a row per layer, a column per cluster.

    Args:
        layers: Number of a layer and ``(C, H, W)``, parts of many images from 0 to 1.
        title: Above it.
        path: The PNG file.
        most: Clusters that are shown.
    """
    columns = min(most, max(len(parts) for _, parts in layers))
    size = (0.9 * columns + 1.6, 1.0 * len(layers) + 0.9)
    figure, axes = plt.subplots(len(layers), columns, figsize=size, squeeze=False, layout="constrained")
    shown: Any = None
    for row, (number, parts) in zip(axes, layers, strict=True):
        for c, axis in enumerate(row):
            axis.set_xticks([])
            axis.set_yticks([])
            if c < len(parts):
                shown = axis.imshow(100 * parts[c].numpy(), vmin=0, vmax=100, cmap="viridis")
            else:
                axis.set_visible(False)
        row[0].set_ylabel(f"layer {number + 1}", fontsize=8)
    for c, axis in enumerate(axes[0]):
        axis.set_title(str(c + 1), fontsize=8)
    figure.suptitle(title, fontsize=10)
    bar = figure.colorbar(shown, ax=axes, shrink=0.9)
    bar.set_label("taken, % of images", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _save(figure, path)


def clusters_of_symbols(symbols: Sequence[str], layers: Sequence[tuple[int, Tensor]], title: str, path: Path) -> None:
    """Which symbols of a sequence each cluster takes: a panel per layer, in it a row per cluster.

    Args:
        symbols: What is written below the places.
        layers: Number of a layer and ``(C, N)``, 1 where a symbol is in a cluster; of N the first are shown.
        title: Above it.
        path: The PNG file.
    """
    count = len(symbols)
    rows = sum(len(members) for _, members in layers)
    size = (1.2 + 0.13 * count, 0.14 * rows + 0.45 * len(layers) + 0.8)
    figure, axes = plt.subplots(len(layers), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (number, members) in zip(axes[:, 0], layers, strict=True):
        picture = _palette(len(members))[:, None] * np.ones((1, count, 1))
        picture[members[:, :count].numpy() == 0] = 0.94
        axis.imshow(picture, aspect="auto", interpolation="nearest")
        axis.set_xticks(range(count), symbols, fontsize=5)
        axis.tick_params(length=0)
        axis.set_yticks([])
        axis.set_ylabel(f"layer {number + 1}", fontsize=8)
    figure.suptitle(f"{title}: one row for each", fontsize=10)
    _save(figure, path)


def _palette(count: int) -> np.ndarray:
    """``(count, 3)`` colours, neighbours far apart, none of them grey."""
    few = [colour[:3] for i, colour in enumerate(plt.get_cmap("tab20")(range(20))) if i not in (14, 15)]
    if count <= len(few):
        return np.array(few[:count])
    many = plt.get_cmap("gist_rainbow")
    return np.array([many(place)[:3] for place in (np.arange(count) * 0.618) % 1])


def _colour(members: Tensor) -> np.ndarray:
    """``(C, ...)`` memberships to ``(..., 3)``: the cluster's colour, or one for none and one for several."""
    inside = members.sum(0).numpy()
    colours = _palette(len(members))[members.argmax(0).numpy()]
    colours[inside == 0] = _rgb(_NONE)
    colours[inside > 1] = _rgb(_SEVERAL)
    return colours


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _finish(figure: Any, members: Sequence[Tensor], title: str, path: Path) -> None:
    """The legend: what stands for no cluster and for several, if they occur; clusters have the other colours."""
    inside = torch.cat([part.sum(1).flatten() for part in members])
    kinds = [("one colour for each cluster", None), ("in none", _NONE), ("in several", _SEVERAL)]
    seen = {"in none": bool((inside == 0).any()), "in several": bool((inside > 1).any())}
    handles, labels = [], []
    for label, colour in kinds:
        if seen.get(label, True):
            handles.append(plt.Rectangle((0, 0), 1, 1, facecolor=colour or _rgb("#1f77b4"), edgecolor="#808080"))
            labels.append(label)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _save(figure, path)
