"""``sturdy summarize``: mean and standard deviation over runs that differ in the seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sturdy.recipes import plots
from sturdy.recipes.errors import RecipeError, UsageError, one_line
from sturdy.recipes.files import read_json, write_atomically, write_json
from sturdy.recipes.runfolder import RunFolder

# What may differ between runs that are averaged.
_MAY_DIFFER = ("seed", "data_dir")


def summarize(runs: Sequence[Path], out: Path, console: Console) -> dict[str, Any]:
    """Aggregate ``evaluate/results.json`` of several runs.

    Args:
        runs: Run folders, evaluated, equal in all settings but the seed.
        out: Folder for ``summary.md``, ``summary.json`` and ``accuracy.png``.
        console: For the table.

    Returns:
        What ``summary.json`` holds; every figure is ``{"mean": ..., "std": ...}``, the sample standard deviation.
    """
    reports = [_read(path) for path in runs]
    _check_alike(runs, reports)
    first = reports[0]
    models: dict[str, Any] = {}
    for label, values in first["models"].items():
        of_model = [report["models"][label] for report in reports]
        models[label] = {
            "clean_accuracy": _moments([m["clean_accuracy"] for m in of_model]),
            "accuracy": {
                name: [_moments([m["accuracy"][name][s] for m in of_model]) for s in range(len(levels))]
                for name, levels in values["accuracy"].items()
            },
            "mean_accuracy": {
                name: _moments([statistics.fmean(m["accuracy"][name]) for m in of_model]) for name in values["accuracy"]
            },
            "mCE": _moments([m["mCE"] for m in of_model]),
        }
    seeds = [report["settings"]["seed"] for report in reports]
    summary = {
        **{key: first[key] for key in ("protocol", "metric", "severity_table", "checkpoint", "data", "test_images")},
        "seeds": seeds,
        "settings": {name: v for name, v in first["settings"].items() if name not in _MAY_DIFFER},
        "gain": _gains(reports),
        "models": models,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot make {out}: {error.strerror or one_line(error)}") from None
    text = to_markdown(summary)
    write_json(out / "summary.json", summary)
    write_atomically(out / "summary.md", text)
    plots.accuracy_by_severity(summary, out / "accuracy.png")
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    for name in ("summary.md", "summary.json", "accuracy.png"):
        console.print(str(out / name), highlight=False, soft_wrap=True)
    return summary


def to_markdown(summary: dict[str, Any]) -> str:
    """A Markdown table: accuracy in % per corruption (mean over severities), models side by side."""
    models = summary["models"]
    labels = list(reversed(models))
    gains = summary["gain"]
    head = ["", *labels, *(["gain"] if gains else [])]
    rows = [["clean", *[_percent(models[label]["clean_accuracy"]) for label in labels]]]
    for name in models[labels[0]]["mean_accuracy"]:
        rows.append([name.replace("_", " "), *[_percent(models[label]["mean_accuracy"][name]) for label in labels]])
    rows.append(["mCE", *[_percent(models[label]["mCE"]) for label in labels]])
    if gains:
        for row, gain in zip(rows, gains.values(), strict=True):
            row.append(_percent(gain, sign=True))
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    runs = len(summary["seeds"])
    over = f"mean ± standard deviation over {runs} seeds" if runs > 1 else "one seed"
    return (
        f"Accuracy in % on {summary['test_images']} test images of {summary['data']}, {over}. "
        f"Generated corruptions, mean over five severities of the {summary['severity_table']}-pixel table. "
        f"{summary['metric']}{'; the gain is the mean of the differences per seed' if gains else ''}.\n\n{table}\n"
    )


def _gains(reports: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Differences between the model and its baseline of the same seed; empty without baselines."""
    if any(len(report["models"]) != 2 for report in reports):
        return {}
    pairs = [list(report["models"].values()) for report in reports]
    gains = {"clean": _moments([a["clean_accuracy"] - b["clean_accuracy"] for a, b in pairs])}
    for name in pairs[0][0]["accuracy"]:
        means = [(statistics.fmean(a["accuracy"][name]), statistics.fmean(b["accuracy"][name])) for a, b in pairs]
        gains[name] = _moments([a - b for a, b in means])
    gains["mCE"] = _moments([a["mCE"] - b["mCE"] for a, b in pairs])
    return gains


def _moments(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def _percent(value: dict[str, float], sign: bool = False) -> str:
    return f"{100 * value['mean']:{'+' if sign else ''}.1f} ± {100 * value['std']:.1f}"


def _read(run: Path) -> dict[str, Any]:
    path = RunFolder(run).evaluate / "results.json"
    if not path.exists():
        raise RecipeError(f"{run} has no evaluation; run: sturdy evaluate {run}")
    report = read_json(path)
    if not isinstance(report, dict) or not {"models", "settings"} <= report.keys():
        raise RecipeError(f"{path} is not the result of an evaluation")
    return report


def _check_alike(runs: Sequence[Path], reports: list[dict[str, Any]]) -> None:
    first = reports[0]
    for run, report in zip(runs[1:], reports[1:], strict=True):
        for name, value in first["settings"].items():
            if name not in _MAY_DIFFER and report["settings"].get(name) != value:
                raise UsageError(f"{run} is not like {runs[0]}: {name} is {report['settings'].get(name)}, not {value}")
        for name in ("severity_table", "seed", "checkpoint", "test_images"):
            if report[name] != first[name]:
                raise UsageError(f"{run} was not evaluated like {runs[0]}: {name} is {report[name]}, not {first[name]}")
        if _shape(report) != _shape(first):
            raise UsageError(f"{run} and {runs[0]} were not evaluated on the same models and corruptions")
    seeds = [report["settings"]["seed"] for report in reports]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"two of the runs have the same seed ({', '.join(map(str, seeds))})")


def _shape(report: dict[str, Any]) -> dict[str, list[str]]:
    return {label: sorted(values["accuracy"]) for label, values in report["models"].items()}
