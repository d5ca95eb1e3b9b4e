"""``sturdy compare``: accuracy, time and memory of several runs side by side, from their logs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sturdy.recipes.errors import RecipeError, UsageError, one_line
from sturdy.recipes.files import write_json
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.runlog import read_log
from sturdy.recipes.settings import Settings

_MIB = 2**20


def label_of(settings: Settings) -> str:
    """What to call a run in tables and pictures."""
    if settings.model == "cast":
        return f"{settings.preset} {settings.clustering}"
    if settings.model == "transformer":
        return settings.model
    return "plain" if settings.is_baseline else settings.preset


def figures(folder: RunFolder) -> dict[str, Any]:
    """The figures of a run, from its log.

    Returns:
        ``epochs``, ``train_loss``, ``train_accuracy`` and those of ``val`` and ``test`` as far as they are known;
        ``minutes`` of training; ``step_ms`` and ``tokens_per_second``, medians over the epochs, and ``peak_memory`` in
        bytes for networks of sequences; ``curve``: by epoch the minutes so far and the accuracies.
    """
    events = read_log(folder.log)
    epochs = [event for event in events if event["event"] == "epoch"]
    if not epochs:
        raise RecipeError(f"{folder.path} has no finished epoch yet")
    speed = [event for event in events if event["event"] == "speed"]
    last, end = epochs[-1], events[-1]
    found: dict[str, Any] = {"epochs": len(epochs)}
    found.update({name: last[name] for name in last if name.split("_")[0] in ("train", "val")})
    if end["event"] == "end":
        found.update({name: end[name] for name in ("test_loss", "test_accuracy")})
    minutes, curve = 0.0, []
    for event in epochs:
        minutes += event["seconds"] / 60
        known = {name: event[f"{name}_accuracy"] for name in ("train", "val") if f"{name}_accuracy" in event}
        curve.append({"minutes": round(minutes, 4), **known})
    found["minutes"] = round(minutes, 3)
    for name in ("step_ms", "tokens_per_second"):
        values = [event[name] for event in speed if name in event]
        if values:
            found[name] = statistics.median(values)
    memory = [event["peak_memory"] for event in speed if "peak_memory" in event]
    if memory:
        found["peak_memory"] = max(memory)
    return {**found, "curve": curve}


def find_runs(paths: Sequence[Path]) -> dict[str, RunFolder]:
    """Runs and their baselines by a label; the folder's name goes with it where labels would be equal."""
    found: list[tuple[str, RunFolder]] = []
    for path in paths:
        for folder in (RunFolder(path), RunFolder(path).baseline):
            if folder.path == path or folder.exists():
                found.append((label_of(folder.read()[0]), folder))
    labels = [label for label, _ in found]
    named: dict[str, RunFolder] = {}
    for label, folder in found:
        own = folder.path.parent.name if folder.path.name == "baseline" else folder.path.name
        name = label if labels.count(label) == 1 else f"{label} ({own})"
        if name in named:
            raise UsageError(f"{folder.path} and {named[name].path} cannot be told apart: both are {name}")
        named[name] = folder
    return named


def compare(paths: Sequence[Path], out: Path | None, console: Console) -> dict[str, Any]:
    """Show the figures of runs; with ``out`` write ``compare.json`` and ``accuracy.png`` there.

    Raises:
        RecipeError: one of them is not a run or has no finished epoch.
    """
    runs = find_runs(paths)
    report = show(runs, console)
    if out is not None:
        from sturdy.recipes import sequence_plots

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot make {out}: {error.strerror or one_line(error)}") from None
        settings = {label: {**folder.read()[0].to_json(), "data_dir": None} for label, folder in runs.items()}
        write_json(out / "compare.json", {"runs": report, "settings": settings})
        sequence_plots.accuracy_over_time(report, out / "accuracy.png")
        for name in ("compare.json", "accuracy.png"):
            console.print(str(out / name), highlight=False, soft_wrap=True)
    return report


def show(runs: dict[str, RunFolder], console: Console) -> dict[str, Any]:
    """Print a table with a column for each run; returns their figures."""
    report = {label: figures(folder) for label, folder in runs.items()}
    table = Table()
    table.add_column("")
    for label in report:
        table.add_column(label, justify="right")

    def row(name: str, key: str, cell: Callable[[Any], str]) -> None:
        if any(key in values for values in report.values()):
            table.add_row(name, *[cell(values[key]) if key in values else "-" for values in report.values()])

    row("test accuracy in %", "test_accuracy", lambda value: f"{100 * value:.2f}")
    row("test loss", "test_loss", lambda value: f"{value:.4f}")
    row("validation accuracy in %", "val_accuracy", lambda value: f"{100 * value:.2f}")
    row("training accuracy in %", "train_accuracy", lambda value: f"{100 * value:.2f}")
    row("training loss", "train_loss", lambda value: f"{value:.4f}")
    row("epochs", "epochs", str)
    row("minutes of training", "minutes", lambda value: f"{value:.1f}")
    row("ms a step, median", "step_ms", lambda value: f"{value:.1f}")
    row("tokens a second", "tokens_per_second", lambda value: f"{value:,.0f}")
    row("peak memory of a step in MiB", "peak_memory", lambda value: f"{value / _MIB:.1f}")
    console.print(table)
    return report
