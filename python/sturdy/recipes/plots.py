"""The pictures of an evaluation."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from sturdy.recipes.files import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_COLOURS = ("#0b6e99", "#c8553d", "#5f7f3a", "#7a5195")  # told apart in grey and by colour-blind readers too
_MARKERS = ("o", "s", "^", "D")
_MAX_FILTERS = 32


def accuracy_by_severity(report: dict[str, Any], path: Path) -> None:
    """One panel per corruption: accuracy in % over severity 0 (clean) to 5, one line per model.

    Args:
        report: What ``results.json`` or ``summary.json`` holds; the latter gets bars of one standard deviation.
        path: The PNG file.
    """
    models = report["models"]
    names = list(next(iter(models.values()))["accuracy"])
    panels = len(names) + 1  # the last one is the mean over corruptions
    columns = min(4, panels)
    rows = math.ceil(panels / columns)
    height = 2.2 * rows + 0.9
    figure, axes = plt.subplots(rows, columns, figsize=(2.7 * columns, height), sharex=True, sharey=True, squeeze=False)
    for i, axis in enumerate(axes.flat):
        if i >= panels:
            axis.set_visible(False)
            continue
        for (label, values), colour, marker in zip(reversed(models.items()), _COLOURS, _MARKERS, strict=False):
            curve = _curve(values, names[i] if i < len(names) else None)
            style = {"color": colour, "marker": marker, "markersize": 4, "label": label}
            if isinstance(values["clean_accuracy"], dict) and i < len(names):
                axis.errorbar(range(len(curve)), curve, _curve(values, names[i], "std"), capsize=2, **style)
            else:
                axis.plot(range(len(curve)), curve, **style)
        axis.set_title(names[i].replace("_", " ") if i < len(names) else "mean of all", fontsize=10)
        axis.set_xticks(range(6), ["clean", "1", "2", "3", "4", "5"], fontsize=8)
        axis.tick_params(axis="both", labelsize=8, labelbottom=i + columns >= panels)
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.supxlabel("severity", fontsize=10)
    figure.supylabel("accuracy in %", fontsize=10)
    figure.suptitle(
        f"{report['data']}: accuracy under generated corruptions", fontsize=11, y=1 - 0.12 / height, va="top"
    )
    figure.legend(
        handles, labels, loc="upper center", ncols=len(labels), bbox_to_anchor=(0.5, 1 - 0.28 / height), frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / height))
    _save(figure, path)


def _curve(values: dict[str, Any], name: str | None, statistic: str = "mean") -> list[float]:
    """Accuracy in % of one model by severity from 0; ``name`` None is the mean over corruptions."""

    def number(value: float | dict[str, float]) -> float:
        return 100 * (value[statistic] if isinstance(value, dict) else value)

    series = list(values["accuracy"].values()) if name is None else [values["accuracy"][name]]
    levels = [sum(number(levels[s]) for levels in series) / len(series) for s in range(len(series[0]))]
    return [number(values["clean_accuracy"]), *levels]


def find_pushpull(model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Push and pull weights ``(O, C, kH, kW)`` of the first PushPull layer of a model, None if it has none."""
    from sturdy.nn import PushPullConv2d

    for module in model.modules():
        if isinstance(module, PushPullConv2d):
            return module.weight.detach().cpu(), module.pull_weight.detach().cpu()
    return None


def push_and_pull_filters(push: Tensor, pull: Tensor, path: Path) -> None:
    """Pairs of kernels, push on the left and pull on the right, each pair on one scale from its minimum to its maximum.

    Kernels of three channels are shown as RGB, others as the mean over channels. At most 32 pairs, those with the
    widest range of weights.

    Args:
        push: ``(O, C, kH, kW)``.
        pull: The same shape, ``-w + min(w) + max(w)``.
        path: The PNG file.
    """
    spread = push.amax((1, 2, 3)) - push.amin((1, 2, 3))
    chosen = spread.argsort(descending=True)[:_MAX_FILTERS].sort().values
    columns = 4 if len(chosen) > 4 else len(chosen)
    rows = math.ceil(len(chosen) / columns)
    height = 1.4 * rows + 0.6
    figure = plt.figure(figsize=(max(2.5 * columns, 5.5), height))
    grid = figure.add_gridspec(
        rows, columns, wspace=0.2, hspace=0.3, left=0.03, right=0.97, bottom=0.1 / height, top=1 - 0.6 / height
    )
    for place, filter_index in enumerate(chosen.tolist()):
        pair = grid[place // columns, place % columns].subgridspec(1, 2, wspace=0.06)
        low, high = float(push[filter_index].min()), float(push[filter_index].max())
        for side, (name, weight) in enumerate((("push", push), ("pull", pull))):
            axis = figure.add_subplot(pair[side])
            axis.imshow(_picture(weight[filter_index], low, high), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{filter_index} {name}", fontsize=7, pad=2)
    figure.suptitle(
        "Learned push kernels w and pull kernels -w + min(w) + max(w)", fontsize=11, y=1 - 0.12 / height, va="top"
    )
    _save(figure, path)


def _picture(kernel: Tensor, low: float, high: float) -> Any:
    """``(C, kH, kW)`` weights to an array for imshow, ``low`` black and ``high`` white."""
    scaled = ((kernel - low) / max(high - low, 1e-12)).clamp(0, 1)
    return scaled.permute(1, 2, 0).numpy() if len(kernel) == 3 else torch.mean(scaled, 0).numpy()


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
