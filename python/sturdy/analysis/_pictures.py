"""What the pictures have in common. Matplotlib is loaded when the first one is drawn, without pyplot's global state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6e99", "#c8553d", "#5f7f3a", "#7a5195")  # told apart in grey and by colour-blind readers too
MARKERS = ("o", "s", "^", "D")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write the figure as a PNG file if there is a path."""
    if path is not None:
        figure.savefig(path, format="png", dpi=110)
    return figure


def draw_map(axis: Axes, values: Tensor, **options: Any) -> Any:
    """A map ``(h, w)`` with frequency 0 in the middle; axes in cycles per image."""
    height, width = values.shape
    top, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    return axis.imshow(
        values.cpu().double().numpy(),
        extent=(left, left + width, top + height, top),
        interpolation="nearest",
        **options,
    )


def label_frequencies(axis: Axes) -> None:
    """Name the axes of a map."""
    axis.set_xlabel("horizontal frequency (cycles per image)")
    axis.set_ylabel("vertical frequency (cycles per image)")


def draw_maps(
    maps: Tensor, titles: Sequence[str], title: str, colourbar: str, path: str | os.PathLike[str] | None, **options: Any
) -> Figure:
    """Maps ``(K, h, w)`` side by side on one scale, in rows of at most five."""
    columns = min(5, len(maps))
    rows = -(-len(maps) // columns)
    figure = new_figure(1.7 * columns + 1.4, 1.8 * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    shown: Any = None
    for i, axis in enumerate(axes.flat):
        if i >= len(maps):
            axis.set_visible(False)
            continue
        shown = draw_map(axis, maps[i], **options)
        axis.set_title(titles[i], fontsize=9)
        axis.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("horizontal frequency (cycles per image)", fontsize=9)
    figure.supylabel("vertical frequency (cycles per image)", fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label(colourbar, fontsize=9)
    bar.ax.tick_params(labelsize=7)
    return save(figure, path)


def class_names(classes: Sequence[int], names: Sequence[str] | None) -> list[str]:
    """What to call the classes."""
    return [f"class {c}" if names is None else str(names[c]) for c in classes]
