"""``sturdy evaluate``: accuracy on clean and on corrupted test images, of a run and of its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from sturdy.analysis import mean_corruption_error
from sturdy.recipes import compare, corruption, plots
from sturdy.recipes.checkpoint import find_checkpoint, load_weights
from sturdy.recipes.data import DataSet, load_data, without_training_images
from sturdy.recipes.distributed import World, pick_device
from sturdy.recipes.engine import count_correct
from sturdy.recipes.errors import RecipeError, UsageError, check_name, one_line
from sturdy.recipes.files import write_json
from sturdy.recipes.loader import Loader
from sturdy.recipes.models import build_model
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.settings import TOKEN_DATA_SETS, Settings

PROTOCOL = "generated corruptions (not the published files), applied to clean images in [0, 1] before normalisation"
METRIC = "mCE: plain mean of the error over corruptions and severities, no reference network"


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate.

    Attributes:
        run: The run folder.
        checkpoint: ``last`` or ``best``.
        corruptions: Names; all if empty.
        seed: Of the corruptions.
        batch_size: Images at a time; does not change the result.
        limit_test: Use only so many test images.
        data_dir: Where the data set lies, if not where it was in training.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Processes that decode an image folder.
    """

    run: Path
    checkpoint: str = "last"
    corruptions: Sequence[str] = ()
    seed: int = 0
    batch_size: int = 256
    limit_test: int | None = None
    data_dir: str | None = None
    device: str = "auto"
    workers: int = 0


def evaluate(options: EvaluateOptions, console: Console) -> dict[str, Any]:
    """Evaluate a run, write ``evaluate/results.json`` and the pictures, show a table; returns what the JSON holds.

    Raises:
        RecipeError: with one line that says what is wrong; earlier results stay.
    """
    check_name("checkpoint", options.checkpoint, ("last", "best"))
    names = [check_name("corruption", name, corruption.NAMES) for name in options.corruptions] or corruption.NAMES
    if options.batch_size < 1:
        raise UsageError(f"--batch-size must be 1 or more, got {options.batch_size}")
    folder = RunFolder(options.run)
    settings, description = folder.read()
    if settings.data in TOKEN_DATA_SETS:
        raise UsageError(f"corruptions are for images; the accuracy of {folder.path} is in its log: sturdy analyse")
    settings = replace(
        settings,
        data_dir=options.data_dir or settings.data_dir,
        limit_test=options.limit_test or settings.limit_test,
    )
    world = World(pick_device(options.device))
    data = _test_data(settings, description, folder)
    runs = {_label(settings): (folder, settings)}
    if folder.baseline.exists():
        runs["baseline"] = (folder.baseline, replace(folder.baseline.read()[0], data_dir=settings.data_dir))
    models = {name: _load(*run, data, options.checkpoint, world) for name, run in runs.items()}
    steps = 1 + len(names) * len(corruption.SEVERITIES)
    table = corruption.table_for(data.image_size, data.image_size)
    results: dict[str, Any] = {}
    with RunProgress(console, "evaluate", steps * len(models), unit="pass") as progress:
        for label, model in models.items():
            results[label] = _accuracies(model, data, names, table, options, world, progress, label)
    report = {
        "protocol": PROTOCOL,
        "metric": METRIC,
        "severity_table": table,
        "seed": options.seed,
        "checkpoint": options.checkpoint,
        "data": settings.data,
        "test_images": len(data.test),
        "settings": settings.to_json(),
        "models": results,
    }
    _write(folder, report, models)
    show(report, console)
    for path in (folder.evaluate / "results.json", *sorted(folder.evaluate.glob("*.png"))):
        console.print(str(path), highlight=False, soft_wrap=True)
    return report


def _label(settings: Settings) -> str:
    return compare.label_of(settings)


def _test_data(settings: Settings, description: dict[str, Any], folder: RunFolder) -> DataSet:
    """The test part, normalised as in training."""
    data = without_training_images(load_data(settings))
    if data.classes != description.get("classes") or data.channels != description.get("channels"):
        raise RecipeError(f"{settings.data_dir or settings.data} is not the data set that {folder.path} was trained on")
    return replace(data, mean=tuple(description["mean"]), std=tuple(description["std"]))


def _load(folder: RunFolder, settings: Settings, data: DataSet, which: str, world: World) -> nn.Module:
    place = folder.last if which == "last" else folder.best
    checkpoint = find_checkpoint(place)
    if checkpoint is None:
        raise RecipeError(f"{folder.path} has no checkpoint {which!r} yet")
    model = build_model(settings, **data.sizes).eval()
    load_weights(checkpoint, model)
    return model.to(world.device)


def _accuracies(
    model: nn.Module,
    data: DataSet,
    names: Sequence[str],
    table: int,
    options: EvaluateOptions,
    world: World,
    progress: RunProgress,
    label: str,
) -> dict[str, Any]:
    loader = Loader(data.test, options.batch_size, world, options.workers)

    def accuracy(name: str | None, severity: int) -> float:
        right = 0.0
        for batch in loader.in_order():
            images = batch.images
            if name is not None:
                images = corruption.corrupt(
                    images, name, severity, size_table=table, seed=options.seed, indices=batch.indices
                )
            right += float(count_correct(model, images, batch.labels, data)[0])
        progress.advance(len(data.test), f"{label}, {name or 'clean'} {severity or ''}".rstrip())
        return right / len(data.test)

    clean = accuracy(None, 0)
    by_name = {name: [accuracy(name, severity) for severity in corruption.SEVERITIES] for name in names}
    errors = {name: [1.0 - value for value in values] for name, values in by_name.items()}
    return {"clean_accuracy": clean, "accuracy": by_name, "mCE": mean_corruption_error(errors)}


def _write(folder: RunFolder, report: dict[str, Any], models: dict[str, nn.Module]) -> None:
    try:
        folder.evaluate.mkdir(exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot make {folder.evaluate}: {error.strerror or one_line(error)}") from None
    write_json(folder.evaluate / "results.json", report)
    plots.accuracy_by_severity(report, folder.evaluate / "accuracy.png")
    pushpull = plots.find_pushpull(next(iter(models.values())))
    if pushpull is not None:
        plots.push_and_pull_filters(*pushpull, folder.evaluate / "filters.png")


def show(report: dict[str, Any], console: Console) -> None:
    """Print accuracies per corruption, mean over severities, all models side by side."""
    models = report["models"]
    labels = list(models)
    table = Table(title=f"Accuracy in %, {report['data']}, {report['test_images']} test images, mean over severities")
    table.add_column("generated corruptions")
    for label in reversed(labels):
        table.add_column(label, justify="right")
    if len(labels) == 2:
        table.add_column("gain", justify="right")

    def row(name: str, values: dict[str, float], better: int) -> None:
        cells = [f"{100 * values[label]:.1f}" for label in reversed(labels)]
        if len(labels) == 2:
            gain = 100 * (values[labels[0]] - values[labels[1]])
            colour = "green" if gain * better > 0 else "red" if gain * better < 0 else "default"
            cells.append(f"[{colour}]{gain:+.1f}[/]")
        table.add_row(name, *cells)

    row("clean", {label: models[label]["clean_accuracy"] for label in labels}, 1)
    table.add_section()
    for name in models[labels[0]]["accuracy"]:
        means = {label: sum(models[label]["accuracy"][name]) / len(corruption.SEVERITIES) for label in labels}
        row(name, means, 1)
    table.add_section()
    row("mCE (plain mean of errors)", {label: models[label]["mCE"] for label in labels}, -1)
    console.print(table)
