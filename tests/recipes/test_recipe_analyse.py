"""``sturdy analyse``: the numbers are those of the tools on the run's own images, and the pictures are there."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from recipe_support import Result, assert_one_line_error, make_images, tiny
from torch import Tensor, nn

from sturdy.analysis import compute_dfm, fourier_heatmap, radius_accuracy, shortcut_report
from sturdy.recipes.analyse import paper_eps
from sturdy.recipes.data import load_data
from sturdy.recipes.models import build_model
from sturdy.recipes.presets import resolve
from sturdy.recipes.progress import RunProgress
from sturdy.transforms import load_masks

Sturdy = Callable[..., Result]
ALL = ("heatmap", "radius", "dfm")


@pytest.fixture(scope="module")
def trained(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its baseline; to be copied, not changed."""
    from sturdy.recipes.commands import run

    out = tmp_path_factory.mktemp("runs") / "one"
    words = tiny(npz, out, "--baseline", "--epochs", 4, "--val-fraction", 0.3)
    assert run([str(word) for word in words]) == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "analyse" / "results.json").read_text())


class OfRun(nn.Module):
    """The network of a run, for images in [0, 1]."""

    def __init__(self, run: Path, folder: Path, stem: str) -> None:
        super().__init__()
        settings = resolve("pushpull", {"data": "npz", "data_dir": "-", "stem": stem})
        self.model = build_model(settings, in_channels=1, num_classes=4, image_size=8)
        self.model.load_state_dict(safetensors.torch.load_file(folder / "last" / "model.safetensors"))
        data = json.loads((run / "config.json").read_text())["data"]
        self.mean, self.std = data["mean"][0], data["std"][0]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def test_numbers_are_those_of_the_tools(sturdy: Sturdy, npz: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"total": 0, "made": 0}
    start, advance = RunProgress.__init__, RunProgress.advance

    def counted_start(self: RunProgress, console: Any, label: str, total: int, *more: Any, **words: Any) -> None:
        steps["total"] += total
        start(self, console, label, total, *more, **words)

    def counted(self: RunProgress, *words: Any) -> None:
        steps["made"] += 1
        advance(self, *words)

    monkeypatch.setattr(RunProgress, "__init__", counted_start)
    monkeypatch.setattr(RunProgress, "advance", counted)
    done = sturdy("analyse", run, "--device", "cpu")
    assert done.status == 0 and done.err == "" and steps["made"] == steps["total"] > 0
    report = results(run)
    assert list(report["models"]) == ["pushpull", "baseline"]
    assert (report["test_images"], report["dfm_images"], report["checkpoint"]) == (40, "validation", "last")
    data = load_data(resolve("pushpull", {"data": "npz", "data_dir": str(npz), "val_fraction": 0.3}))
    test = [(data.test.images.float() / 255, data.test.labels)]
    held_out = [(data.val.images.float() / 255, data.val.labels)]
    for label, folder in (("pushpull", run), ("baseline", run / "baseline")):
        model = OfRun(run, folder, "pushpull" if label == "pushpull" else "plain")
        numbers = report["models"][label]
        heatmap = fourier_heatmap(model, test, 1.0)
        assert numbers["heatmap"]["eps"] == 1 and numbers["heatmap"]["errors"] == heatmap.errors.tolist()
        assert numbers["clean_accuracy"] == pytest.approx(1 - heatmap.clean_error)
        others = (heatmap.errors.sum() - heatmap.errors[4, 4]) / 63
        assert numbers["heatmap"]["mean_error"] == pytest.approx(float(others))
        for kind in ("low", "high"):
            curve = radius_accuracy(model, test, kind=kind)  # type: ignore[arg-type]
            found = numbers["radius"][f"{kind}-pass"]
            assert found["accuracy"] == curve.accuracy.tolist() and found["radii"] == list(range(7))
            enough = [r for r, a in zip(range(7), found["accuracy"], strict=True) if a >= 0.9 * curve.clean_accuracy]
            assert found["enough"] == (min(enough) if kind == "low" else max(enough))
        dfm = compute_dfm(model, held_out, None, 0.3, "global", keep_dc=True)
        kept = load_masks(run / "analyse" / f"dfm-{label}.npz").masks[label]
        assert torch.equal(kept, dfm.masks) and numbers["dfm"]["cells"] == dfm.masks.sum((1, 2)).tolist()
        lost = (dfm.correct_before - dfm.correct_after).double() / dfm.correct_before
        assert bool((lost <= 0.3).all()) and numbers["dfm"]["correct_after"] == dfm.correct_after.tolist()
        shortcuts = shortcut_report(model, test, dfm.masks)
        assert numbers["shortcuts"]["filtered_fpr"] == shortcuts.filtered_fpr.tolist()
        assert numbers["shortcuts"]["found"] == shortcuts.shortcut.nonzero().flatten().tolist()
    names = ["heatmap.png", "radius.png"]
    names += [f"{kind}-{label}.png" for kind in ("dfm", "shortcuts") for label in ("pushpull", "baseline")]
    for name in (*names, "results.json", "dominant frequencies", "shortcuts", "waves of norm 1"):
        assert name in done.out, name
    for name in names:
        with Image.open(run / "analyse" / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, name


@pytest.mark.parametrize("tool", ALL)
def test_one_tool(sturdy: Sturdy, run: Path, tool: str) -> None:
    words = ("--only", tool, "--images", 12, "--checkpoint", "best", "--eps", 0.5, "--batch-size", 5)
    assert sturdy("analyse", run / "baseline", *words, "--device", "cpu").status == 0
    report = results(run / "baseline")
    (numbers,) = report["models"].values()
    parts = {"heatmap": {"heatmap"}, "radius": {"radius"}, "dfm": {"dfm", "shortcuts"}}[tool]
    assert set(numbers) == {"clean_accuracy", *parts} and report["test_images"] == 12
    if tool == "heatmap":
        assert numbers["heatmap"]["eps"] == 0.5
    if tool == "dfm":
        assert sum(numbers["dfm"]["images"]) == 12


def test_batches_and_repetition_do_not_matter(sturdy: Sturdy, run: Path) -> None:
    reports = []
    for size in (7, 256):
        assert sturdy("analyse", run / "baseline", "--batch-size", size, "--device", "cpu").status == 0
        reports.append(results(run / "baseline")["models"])
    assert reports[0] == reports[1]


def test_without_validation_images(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    words = tiny(npz, tmp_path / "run", "--epochs", 1, "--val-fraction", 0)
    assert sturdy(*words).status == 0
    assert sturdy("analyse", tmp_path / "run", "--only", "dfm", "--device", "cpu").status == 0
    assert results(tmp_path / "run")["dfm_images"] == "test"


def test_moved_data_and_bad_runs(sturdy: Sturdy, npz: Path, run: Path, tmp_path: Path) -> None:
    assert_one_line_error(sturdy("analyse", tmp_path / "nowhere"), "is not the folder of a run")
    config = json.loads((run / "config.json").read_text())
    config["settings"]["data_dir"] = str(tmp_path / "gone.npz")
    (run / "config.json").write_text(json.dumps(config))
    assert_one_line_error(sturdy("analyse", run), "no such file", "gone.npz")
    x, y = make_images(40, 8, 3, seed=0)
    np.savez(tmp_path / "rgb.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert_one_line_error(sturdy("analyse", run, "--data-dir", tmp_path / "rgb.npz"), "is not the data set that")
    assert_one_line_error(sturdy("analyse", run, "--data-dir", npz, "--checkpoint", "lst"), "did you mean 'last'")
    assert not (run / "analyse").exists()
    assert sturdy("analyse", run, "--data-dir", npz, "--only", "radius", "--device", "cpu").status == 0
    shutil.rmtree(run / "last")
    assert_one_line_error(sturdy("analyse", run, "--data-dir", npz), "has no checkpoint 'last' yet")


def test_norm_of_the_paper() -> None:
    assert paper_eps(32, 32) == pytest.approx(4) and paper_eps(224, 224) == pytest.approx(15.7)
    assert paper_eps(8, 8) * math.sqrt(2 / 64) == pytest.approx(4 * math.sqrt(2 / 1024))
