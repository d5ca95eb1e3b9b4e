"""``sturdy analyse``: the frequencies that a run's network needs, that mislead it, and that it takes for a class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sturdy.analysis import (
    DominantFrequencies,
    FourierHeatmap,
    RadiusCurve,
    ShortcutReport,
    compute_dfm,
    fourier_heatmap,
    plot_heatmaps,
    plot_radius_curves,
    radius_accuracy,
    radius_map,
    shortcut_report,
)
from sturdy.recipes import analyse_sequences
from sturdy.recipes.data import DataSet, load_data
from sturdy.recipes.distributed import World, pick_device
from sturdy.recipes.dominant import MAY_LOSE, Normalised, pairs, search_steps
from sturdy.recipes.errors import RecipeError, UsageError, check_name, one_line
from sturdy.recipes.evaluate import _label, _load
from sturdy.recipes.files import write_json
from sturdy.recipes.loader import Loader
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.settings import Settings

TOOLS = ("heatmap", "radius", "dfm")
ENOUGH = 0.9  # of the accuracy on unfiltered images, for the radii in the table
_LARGEST_MAP = 63  # side of the heatmap of images above 64 pixels


@dataclass(frozen=True)
class AnalyseOptions:
    """How to analyse.

    Attributes:
        run: The run folder.
        only: Tools; all if empty.
        images: At most so many images of the test part, and of the validation part.
        checkpoint: ``last`` or ``best``.
        eps: L2 norm of the heatmap's waves for images in [0, 1]; None for the paper's.
        seed: Of the waves' signs.
        batch_size: Images at a time; does not change the result.
        data_dir: Where the data set lies, if not where it was in training.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Processes that decode an image folder.
    """

    run: Path
    only: Sequence[str] = ()
    images: int = 200
    checkpoint: str = "last"
    eps: float | None = None
    seed: int = 0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    workers: int = 0


@dataclass(frozen=True)
class _Findings:
    """Of one network."""

    clean_accuracy: float
    heatmap: FourierHeatmap | None
    curves: dict[str, RadiusCurve]
    dfm: DominantFrequencies | None
    shortcuts: ShortcutReport | None


def analyse(options: AnalyseOptions, console: Console) -> dict[str, Any]:
    """Analyse a run and its baseline, write ``analyse/results.json`` and pictures; returns what the JSON holds.

    Raises:
        RecipeError: with one line that says what is wrong; earlier results stay.
    """
    check_name("checkpoint", options.checkpoint, ("last", "best"))
    tools = [check_name("tool", name, (*TOOLS, *analyse_sequences.TOOLS)) for name in options.only]
    for name, value in (("--images", options.images), ("--batch-size", options.batch_size)):
        if value < 1:
            raise UsageError(f"{name} must be 1 or more, got {value}")
    if options.eps is not None and not (options.eps >= 0 and math.isfinite(options.eps)):
        raise UsageError(f"--eps must be 0 or more, got {options.eps}")
    folder = RunFolder(options.run)
    settings, description = folder.read()
    limit = min(options.images, settings.limit_test or options.images)
    settings = replace(settings, data_dir=options.data_dir or settings.data_dir, limit_test=limit)
    known = analyse_sequences.TOOLS if settings.reads_sequences else TOOLS
    for name in tools:
        if name not in known:
            raise UsageError(f"--only {name} does not fit {folder.path}; there are {', '.join(known)}")
    tools = tools or list(known)
    if settings.reads_sequences:
        return analyse_sequences.analyse(
            folder,
            settings,
            description,
            tools=tools,
            checkpoint=options.checkpoint,
            device=options.device,
            batch_size=options.batch_size,
            console=console,
        )
    world = World(pick_device(options.device))
    data = _data(settings, description, folder)
    test = _gather(Loader(data.test, options.batch_size, world, options.workers))
    held_out, source = test, "test"
    if len(data.val):
        first = data.val.take(torch.arange(min(len(data.val), options.images)))
        held_out, source = _gather(Loader(first, options.batch_size, world, options.workers)), "validation"
    runs = {_label(settings): (folder, settings)}
    if folder.baseline.exists():
        runs["baseline"] = (folder.baseline, replace(folder.baseline.read()[0], data_dir=settings.data_dir))
    models = {name: _load(*run, data, options.checkpoint, world) for name, run in runs.items()}
    found: dict[str, _Findings] = {}
    with RunProgress(console, "analyse", _steps(tools, data, held_out[1]) * len(models), unit="pass") as progress:
        for label, model in models.items():
            tell = _teller(progress, label)
            found[label] = _findings(Normalised(model, data), tools, test, held_out, options, tell)
    report = {
        "checkpoint": options.checkpoint,
        "seed": options.seed,
        "data": settings.data,
        "classes": data.classes,
        "test_images": len(test[1]),
        "dfm_images": source,
        "settings": settings.to_json(),
        "models": {label: _numbers(findings) for label, findings in found.items()},
    }
    written = _write(folder, report, found, data)
    show(report, console)
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)
    return report


def paper_eps(height: int, width: int) -> float:
    """The norm of a heatmap's waves on images in [0, 1] with the amplitude that the paper takes at 32 or 224 pixels."""
    at, norm = (32, 4.0) if min(height, width) <= 64 else (224, 15.7)
    return norm * math.sqrt(height * width) / at


def _data(settings: Settings, description: dict[str, Any], folder: RunFolder) -> DataSet:
    """All parts, normalised as in training."""
    data = load_data(settings)
    if data.classes != description.get("classes") or data.channels != description.get("channels"):
        raise RecipeError(f"{settings.data_dir or settings.data} is not the data set that {folder.path} was trained on")
    return replace(data, mean=tuple(description["mean"]), std=tuple(description["std"]))


def _gather(loader: Loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*pairs(loader), strict=True)
    return torch.cat(images), torch.cat(labels)


def _teller(progress: RunProgress, label: str) -> Callable[[int, str], None]:
    return lambda images, what: progress.advance(images, f"{label}, {what}")


def _map_size(height: int, width: int) -> int | None:
    return _LARGEST_MAP if min(height, width) > 64 else None


def _present(labels: Tensor) -> list[int]:
    return [int(c) for c in labels.unique()]


def _steps(tools: Sequence[str], data: DataSet, labels: Tensor) -> int:
    """Passes over images for one network, as the progress bar counts them."""
    height, width = data.image_shape
    side = _map_size(height, width)
    if side is None:
        own_mirrors = (2 - height % 2) * (2 - width % 2)
        waves = (height * width + own_mirrors) // 2
    else:
        waves = (side**2 + 1) // 2
    passes = {"heatmap": waves, "radius": 2, "dfm": search_steps(height, width) * len(_present(labels)) + 1}
    return sum(passes[tool] for tool in tools)


def _findings(
    model: nn.Module,
    tools: Sequence[str],
    test: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    options: AnalyseOptions,
    tell: Callable[[int, str], None],
) -> _Findings:
    images, labels = test
    height, width = (int(n) for n in images.shape[-2:])
    with torch.no_grad():
        parts = zip(images.split(options.batch_size), labels.split(options.batch_size), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    heatmap, curves, dfm, shortcuts = None, {}, None, None
    if "heatmap" in tools:
        heatmap = fourier_heatmap(
            model,
            [test],
            paper_eps(height, width) if options.eps is None else options.eps,
            _map_size(height, width),
            seed=options.seed,
            progress=lambda count: tell(count, "heatmap"),
            batch_size=options.batch_size,
        )
    if "radius" in tools:
        kinds: tuple[Literal["low", "high"], ...] = ("low", "high")
        for kind in kinds:
            curves[f"{kind}-pass"] = radius_accuracy(model, [test], None, kind, batch_size=options.batch_size)
            tell(len(labels), f"{kind}-pass")
    if "dfm" in tools:
        dfm = compute_dfm(
            model,
            [held_out],
            None,
            MAY_LOSE,
            "global",
            classes=_present(held_out[1]),
            keep_dc=True,
            progress=lambda c, count: tell(count, f"frequencies of class {c}"),
            batch_size=options.batch_size,
        )
        shared = [i for i, c in enumerate(dfm.classes) if c in _present(labels)]
        if shared and len(_present(labels)) > 1:
            shortcuts = shortcut_report(
                model,
                [test],
                dfm.masks[shared],
                classes=[dfm.classes[i] for i in shared],
                batch_size=options.batch_size,
            )
        tell(len(labels), "shortcuts")
    return _Findings(right / len(labels), heatmap, curves, dfm, shortcuts)


# ---- results ---------------------------------------------------------------------------------------------------------


def _numbers(found: _Findings) -> dict[str, Any]:
    """What the JSON holds of one network."""
    numbers: dict[str, Any] = {"clean_accuracy": found.clean_accuracy}
    if found.heatmap is not None:
        errors = found.heatmap.errors
        numbers["heatmap"] = {
            "eps": found.heatmap.eps,
            "clean_error": found.heatmap.clean_error,
            **_bands(errors),
            "errors": errors.tolist(),
        }
    if found.curves:
        numbers["radius"] = {
            name: {
                "radii": curve.radii.tolist(),
                "accuracy": curve.accuracy.tolist(),
                "enough": _enough(curve),
            }
            for name, curve in found.curves.items()
        }
    if found.dfm is not None:
        numbers["dfm"] = {
            "classes": list(found.dfm.classes),
            "images": found.dfm.images.tolist(),
            "correct_before": found.dfm.correct_before.tolist(),
            "correct_after": found.dfm.correct_after.tolist(),
            "cells": found.dfm.masks.sum((1, 2)).tolist(),
            "share": float(found.dfm.masks.mean()),
        }
    if found.shortcuts is not None:
        report = found.shortcuts
        numbers["shortcuts"] = {
            "classes": list(report.classes),
            "found": [c for c, is_one in zip(report.classes, report.shortcut.tolist(), strict=True) if is_one],
            **{name: getattr(report, name).tolist() for name in ("tpr", "fpr", "filtered_tpr", "filtered_fpr")},
            "confusion": report.confusion.tolist(),
        }
    return numbers


def _bands(errors: Tensor) -> dict[str, float]:
    """Mean errors over all frequencies but 0, and over thirds of the radius up to that of the nearest edge."""
    radius = radius_map(int(errors.shape[0]), int(errors.shape[1]))
    edge = max(errors.shape) / 2
    bands = {
        "mean_error": radius > 0,
        "low_error": (radius > 0) & (radius <= edge / 3),
        "middle_error": (radius > edge / 3) & (radius <= 2 * edge / 3),
        "high_error": radius > 2 * edge / 3,
    }
    return {name: float(errors[where].mean()) if bool(where.any()) else math.nan for name, where in bands.items()}


def _enough(curve: RadiusCurve) -> float | None:
    """The radius up to which (low-pass) or from which on (high-pass) an image must be kept; None if none does."""
    good = curve.radii[curve.accuracy >= ENOUGH * curve.clean_accuracy]
    if not len(good):
        return None
    return float(good.min() if curve.kind == "low" else good.max())


def _write(folder: RunFolder, report: dict[str, Any], found: dict[str, _Findings], data: DataSet) -> list[Path]:
    """Write all files; returns their paths."""
    target = folder.analyse
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot make {target}: {error.strerror or one_line(error)}") from None
    write_json(target / "results.json", report)
    written = [target / "results.json"]
    shown = list(reversed(found.items()))  # the baseline first
    heatmaps = {label: f.heatmap for label, f in shown if f.heatmap is not None}
    curves = {f"{label}, {kind}": curve for label, f in shown for kind, curve in f.curves.items()}
    if heatmaps:
        written.append(target / "heatmap.png")
        plot_heatmaps(heatmaps, written[-1])
    if curves:
        written.append(target / "radius.png")
        plot_radius_curves(curves, written[-1])
    for label, findings in found.items():
        if findings.dfm is not None:
            written += [target / f"dfm-{label}.png", target / f"dfm-{label}.npz"]
            findings.dfm.plot(written[-2], data.classes)
            findings.dfm.save(written[-1], label)
        if findings.shortcuts is not None:
            written.append(target / f"shortcuts-{label}.png")
            findings.shortcuts.plot(written[-1], data.classes)
    return written


def show(report: dict[str, Any], console: Console) -> None:
    """Print the main numbers, all models side by side."""
    models = report["models"]
    labels = list(reversed(models))
    first = models[labels[0]]
    table = Table(title=f"Frequencies, {report['data']}, {report['test_images']} test images")
    table.add_column("")
    for label in labels:
        table.add_column(label, justify="right")

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(name, *[cell(models[label]) for label in labels])

    row("accuracy in %", lambda m: f"{100 * m['clean_accuracy']:.1f}")
    if "heatmap" in first:
        table.add_section()
        row(f"error in % under waves of norm {first['heatmap']['eps']:.3g}, mean", _percent("mean_error"))
        for band in ("low", "middle", "high"):
            row(f"  of {band} frequency", _percent(f"{band}_error"))
    if "radius" in first:
        table.add_section()
        row(f"frequencies up to which {ENOUGH:.0%} of it stays", _radius("low-pass"))
        row(f"frequencies from which on {ENOUGH:.0%} of it stays", _radius("high-pass"))
    if "dfm" in first:
        table.add_section()
        row("dominant frequencies, % of all", lambda m: f"{100 * m['dfm']['share']:.1f}")
    if "shortcuts" in first:
        names = report["classes"]
        row("shortcuts", lambda m: _of_classes(m["shortcuts"], names))
    console.print(table)


def _percent(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda numbers: f"{100 * numbers['heatmap'][name]:.1f}"


def _of_classes(shortcuts: dict[str, Any], names: list[str]) -> str:
    found = ", ".join(names[c] for c in shortcuts["found"])
    count = f"{len(shortcuts['found'])} of {len(shortcuts['classes'])} classes"
    return f"{count}: {found}" if found else count


def _radius(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(numbers: dict[str, Any]) -> str:
        radius = numbers["radius"][name]["enough"]
        return "-" if radius is None else f"{radius:g}"

    return cell
