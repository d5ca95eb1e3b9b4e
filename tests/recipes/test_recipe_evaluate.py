"""Evaluation: the right numbers, in files others can read, with pictures that show them."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from recipe_support import Result, assert_one_line_error, make_images, tiny

from sturdy.recipes import plots
from sturdy.recipes.corruption import NAMES, corrupt
from sturdy.recipes.models import build_model
from sturdy.recipes.presets import resolve

Sturdy = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two runs with baselines, seeds 0 and 1; to be copied, not changed."""
    from sturdy.recipes.commands import run

    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        words = tiny(npz, root / str(seed), "--baseline", "--seed", seed, "--epochs", 6)
        assert run([str(word) for word in words]) == 0
    return {seed: root / str(seed) for seed in (0, 1)}


@pytest.fixture
def runs(trained: dict[int, Path], tmp_path: Path) -> dict[int, Path]:
    copies = {}
    for seed, path in trained.items():
        copies[seed] = tmp_path / f"seed{seed}"
        shutil.copytree(path, copies[seed])
    return copies


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluate" / "results.json").read_text())


def test_accuracies_are_right(sturdy: Sturdy, npz: Path, runs: dict[int, Path]) -> None:
    """Recomputed from the saved weights, one image at a time."""
    run = runs[0]
    done = sturdy("evaluate", run, "--device", "cpu")
    assert done.status == 0 and done.err == ""
    report = results(run)
    assert list(report["models"]) == ["pushpull", "baseline"]
    assert report["severity_table"] == 32 and report["test_images"] == 40
    assert "generated" in report["protocol"] and "plain mean of the error" in report["metric"]
    with np.load(npz) as file:
        images = torch.from_numpy(file["x_test"]).float()[:, None] / 255
        labels = torch.from_numpy(file["y_test"])
    config = json.loads((run / "config.json").read_text())
    for label, folder in (("pushpull", run), ("baseline", run / "baseline")):
        stem = "pushpull" if label == "pushpull" else "plain"
        settings = resolve("pushpull", {"data": "npz", "data_dir": "-", "stem": stem})
        model = build_model(settings, in_channels=1, num_classes=4, image_size=8).eval()
        model.load_state_dict(safetensors.torch.load_file(folder / "last" / "model.safetensors"))

        def accuracy(batch: torch.Tensor, model: torch.nn.Module = model) -> float:
            normal = (batch - config["data"]["mean"][0]) / config["data"]["std"][0]
            with torch.no_grad():
                right = [bool(model(normal[i : i + 1]).argmax() == labels[i]) for i in range(40)]
            return sum(right) / 40

        values = report["models"][label]
        assert values["clean_accuracy"] == pytest.approx(accuracy(images))
        assert set(values["accuracy"]) == set(NAMES)
        for name in NAMES:
            expected = [accuracy(corrupt(images, name, severity)) for severity in range(1, 6)]
            assert values["accuracy"][name] == pytest.approx(expected)
        mean = statistics.fmean(a for levels in values["accuracy"].values() for a in levels)
        assert values["mCE"] == pytest.approx(1 - mean)
    for name in ("clean", *NAMES, "mCE", "pushpull", "baseline", "results.json", "accuracy.png", "filters.png"):
        assert name in done.out


def test_batch_size_does_not_matter(sturdy: Sturdy, runs: dict[int, Path]) -> None:
    reports = []
    for size in (7, 40):
        assert sturdy("evaluate", runs[0], "--batch-size", size, "--device", "cpu").status == 0
        reports.append(results(runs[0])["models"])
    assert reports[0] == reports[1]


def test_choices(sturdy: Sturdy, runs: dict[int, Path]) -> None:
    words = ("--corruptions", "contrast,pixelate", "--checkpoint", "best", "--limit-test", 20, "--seed", 4)
    assert sturdy("evaluate", runs[0], *words, "--device", "cpu").status == 0
    report = results(runs[0])
    assert list(report["models"]["pushpull"]["accuracy"]) == ["contrast", "pixelate"]
    assert (report["checkpoint"], report["test_images"], report["seed"]) == ("best", 20, 4)


def test_without_baseline_and_without_pushpull(sturdy: Sturdy, runs: dict[int, Path]) -> None:
    assert sturdy("evaluate", runs[0] / "baseline", "--device", "cpu").status == 0
    report = results(runs[0] / "baseline")
    assert list(report["models"]) == ["plain"]
    assert sorted(p.name for p in (runs[0] / "baseline" / "evaluate").iterdir()) == ["accuracy.png", "results.json"]


def test_moved_data(sturdy: Sturdy, npz: Path, runs: dict[int, Path], tmp_path: Path) -> None:
    config = json.loads((runs[0] / "config.json").read_text())
    config["settings"]["data_dir"] = str(tmp_path / "gone.npz")
    (runs[0] / "config.json").write_text(json.dumps(config))
    assert_one_line_error(sturdy("evaluate", runs[0]), "no such file", "gone.npz")
    assert sturdy("evaluate", runs[0], "--data-dir", npz, "--device", "cpu").status == 0
    x, y = make_images(40, 8, 3, seed=0)
    np.savez(tmp_path / "rgb.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    result = sturdy("evaluate", runs[0], "--data-dir", tmp_path / "rgb.npz")
    assert_one_line_error(result, "is not the data set that", "was trained on")


def test_bad_runs(sturdy: Sturdy, runs: dict[int, Path], tmp_path: Path) -> None:
    run = runs[0]
    assert sturdy("evaluate", run, "--device", "cpu").status == 0
    before = results(run)
    assert_one_line_error(sturdy("evaluate", tmp_path / "nowhere"), "is not the folder of a run")
    assert_one_line_error(sturdy("evaluate", run, "--corruptions", "gausian_blur"), "did you mean 'gaussian_blur'")
    assert_one_line_error(
        sturdy("evaluate", run, "--checkpoint", "lst"), "unknown checkpoint 'lst'; did you mean 'last'"
    )
    weights = run / "last" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    assert_one_line_error(sturdy("evaluate", run), f"cannot read {weights}: truncated or damaged")
    safetensors.torch.save_file({"fc.weight": torch.zeros(4, 4)}, weights)
    assert_one_line_error(sturdy("evaluate", run), "belongs to another network")
    shutil.rmtree(run / "last")
    assert_one_line_error(sturdy("evaluate", run), "has no checkpoint 'last' yet")
    (run / "config.json").write_text("{")
    assert_one_line_error(sturdy("evaluate", run), "config.json is damaged")
    assert results(run) == before


def test_summary_over_seeds(sturdy: Sturdy, runs: dict[int, Path], tmp_path: Path) -> None:
    out = tmp_path / "summary"
    assert_one_line_error(sturdy("summarize", *runs.values(), "--out", out), "has no evaluation; run: sturdy evaluate")
    for run in runs.values():
        assert sturdy("evaluate", run, "--device", "cpu").status == 0
    done = sturdy("summarize", *runs.values(), "--out", out)
    assert done.status == 0
    summary = json.loads((out / "summary.json").read_text())
    reports = [results(run) for run in runs.values()]
    for label in ("pushpull", "baseline"):
        for name in NAMES:
            per_seed = [statistics.fmean(report["models"][label]["accuracy"][name]) for report in reports]
            cell = summary["models"][label]["mean_accuracy"][name]
            assert cell["mean"] == pytest.approx(np.mean(per_seed))
            assert cell["std"] == pytest.approx(np.std(per_seed, ddof=1))
    gains = [report["models"]["pushpull"]["mCE"] - report["models"]["baseline"]["mCE"] for report in reports]
    assert summary["gain"]["mCE"]["mean"] == pytest.approx(np.mean(gains))
    text = (out / "summary.md").read_text()
    assert text in done.out.replace("\r", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 1 + len(NAMES) + 1 and all(row.count("|") == 5 for row in rows)
    clean = summary["models"]["pushpull"]["clean_accuracy"]
    assert f"{100 * clean['mean']:.1f} ± {100 * clean['std']:.1f}" in rows[2]
    assert pixels(out / "accuracy.png").shape[1] > 500
    assert_one_line_error(sturdy("summarize", runs[0], runs[0], "--out", out), "same seed")
    sturdy("evaluate", runs[1], "--corruptions", "contrast", "--device", "cpu")
    assert_one_line_error(sturdy("summarize", *runs.values(), "--out", out), "same models and corruptions")


def report(pushpull: float, baseline: float) -> dict[str, Any]:
    def values(level: float) -> dict[str, Any]:
        return {"clean_accuracy": 0.99, "accuracy": {name: [level] * 5 for name in NAMES}, "mCE": 1 - level}

    return {"data": "digits", "models": {"pushpull": values(pushpull), "baseline": values(baseline)}}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_accuracy_picture_shows_both_lines(tmp_path: Path) -> None:
    plots.accuracy_by_severity(report(0.9, 0.5), tmp_path / "a.png")
    plots.accuracy_by_severity(report(0.5, 0.9), tmp_path / "b.png")
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert a.shape == b.shape and min(a.shape[:2]) > 400
    assert (a != b).any(2).mean() > 0.005  # the lines trade places
    for colour in ((0x0B, 0x6E, 0x99), (0xC8, 0x55, 0x3D)):
        mask = (np.abs(a - np.array(colour)) < 8).all(2)
        columns = np.flatnonzero(mask.any(0))
        # The line runs through all panels: in the left and in the right part of the picture.
        assert mask.sum() > 1000 and columns[0] < a.shape[1] * 0.25 and columns[-1] > a.shape[1] * 0.75


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 16, 40])
def test_filter_picture(tmp_path: Path, count: int, channels: int) -> None:
    torch.manual_seed(0)
    push = torch.randn(count, channels, 3, 3)
    low, high = push.amin((1, 2, 3), keepdim=True), push.amax((1, 2, 3), keepdim=True)
    plots.push_and_pull_filters(push, -push + low + high, tmp_path / "a.png")
    a = pixels(tmp_path / "a.png")
    assert min(a.shape[:2]) > 150
    dark, bright = (a.sum(2) < 10).mean(), (a.sum(2) > 755).mean()
    assert dark > 0.005 and bright > 0.2


def test_filter_picture_shows_the_kernels(tmp_path: Path) -> None:
    """A kernel black on the left and white on the right, and its pull kernel the other way round."""
    push = torch.zeros(1, 1, 4, 4)
    push[..., 2:] = 1.0
    plots.push_and_pull_filters(push, 1.0 - push, tmp_path / "a.png")
    a = pixels(tmp_path / "a.png").mean(2)
    row = a[a.shape[0] * 6 // 10]
    black = np.flatnonzero(row < 10)
    runs_of_black = np.split(black, np.flatnonzero(np.diff(black) > 5) + 1)
    wide = [run for run in runs_of_black if len(run) > 40]
    # Black left half of push, black right half of pull; between them the white halves.
    assert len(wide) == 2 and wide[1][0] - wide[0][-1] > len(wide[0])
