"""The command line: quick help, one-line errors, presets and the names they know."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_support import ENVIRONMENT, Result, assert_one_line_error, tiny

from sturdy.recipes import presets
from sturdy.recipes.errors import UsageError
from sturdy.recipes.models import build_model
from sturdy.recipes.presets import resolve
from sturdy.recipes.settings import DATA_SETS, Settings

Sturdy = Callable[..., Result]


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], *([name, "--help"] for name in ("train", "evaluate", "analyse", "summarize"))],
)
def test_help(sturdy: Sturdy, words: list[str]) -> None:
    result = sturdy(*words)
    assert result.status == 0 and "Usage: sturdy" in result.out and result.err == ""


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from sturdy.recipes.commands import run; run(['train', '--help'])\n"
        "print('LOADED', {'torch', 'numpy', 'matplotlib', 'torchvision', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "LOADED set()" in done.stdout, done.stderr
    assert "--avg-kernel-size" in done.stdout and "--resume" in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["trian"]),
        (["train"], ["Missing argument"]),
        (["train", "pushpul"], ["unknown preset 'pushpul'; did you mean 'pushpull'"]),
        (["train", "pushpull", "--epoch", "3"], ["--epoch"]),
        (["train", "pushpull", "--epochs", "many"], ["--epochs"]),
        (["train", "pushpull", "--data", "cifar-10"], ["unknown data set 'cifar-10'; did you mean 'cifar10'"]),
        (["train", "pushpull", "--data", "imagnet"], ["unknown data set 'imagnet'", "known: "]),
        (["train", "pushpull", "--model", "resnet-18"], ["unknown model", "did you mean 'resnet18'"]),
        (["train", "pushpull", "--stem", "push-pull"], ["did you mean 'pushpull'"]),
        (["train", "pushpull", "--optimizer", "adam"], ["did you mean 'adamw'"]),
        (["train", "pushpull", "--schedule", "cosin"], ["did you mean 'cosine'"]),
        (["train", "pushpull", "--precision", "bf32"], ["unknown precision 'bf32'"]),
        (["train", "pushpull", "--augment", "crop,flp"], ["did you mean 'flip'"]),
        (["train", "pushpull", "--avg-kernel-size", "4"], ["--avg-kernel-size must be 0 (off) or odd, got 4"]),
        (["train", "pushpull", "--epochs", "0"], ["--epochs must be 1 or more"]),
        (["train", "pushpull", "--lr", "0"], ["--lr must be positive"]),
        (["train", "pushpull", "--lr", "nan"], ["--lr must be positive"]),
        (["train", "pushpull", "--val-fraction", "1"], ["--val-fraction"]),
        (["train", "pushpull", "--device", "gpu"], ["unknown device 'gpu'"]),
        (["train", "pushpull", "--stem", "plain", "--baseline"], ["--stem is plain already"]),
        (["train", "pushpull", "--data", "cifar10"], ["needs --data-dir"]),
        (["evaluate"], ["Missing argument"]),
        (["analyse"], ["Missing argument"]),
        (["analyse", "run", "--only", "heatmap,radios"], ["unknown tool 'radios'; did you mean 'radius'"]),
        (["analyse", "run", "--images", "0"], ["--images"]),
        (["analyse", "run", "--eps", "-1"], ["--eps must be 0 or more"]),
    ],
)
def test_bad_words(
    sturdy: Sturdy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(sturdy(*words), *parts, status=2)
    assert list(tmp_path.iterdir()) == []


def test_wrong_data_folder_leaves_nothing(sturdy: Sturdy, tmp_path: Path) -> None:
    words = ["train", "pushpull", "--data", "cifar10", "--data-dir", tmp_path / "nowhere", "--out", tmp_path / "run"]
    assert_one_line_error(sturdy(*words), "no such folder", "nowhere", status=1)
    assert list(tmp_path.iterdir()) == []


def test_run_folder_that_cannot_be_made(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line_error(sturdy(*tiny(npz, tmp_path / "file" / "run")), "Not a directory")


@pytest.mark.parametrize("module", ["typer", "safetensors", "matplotlib"])
def test_missing_extra(module: str, npz: Path, tmp_path: Path) -> None:
    words = [str(word) for word in tiny(npz, tmp_path / "run", "--epochs", 1)]
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['sturdy', *{words!r}]\n"
        "from sturdy.recipes import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    if stop.code: raise\n"
        f"sys.argv = ['sturdy', 'evaluate', {str(tmp_path / 'run')!r}]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    result = Result(done.returncode, done.stdout, done.stderr)
    assert_one_line_error(result, f"{module} is not installed; run: pip install 'sturdy-kernels[recipes]'", status=1)


def test_unexpected_error_is_one_line(sturdy: Sturdy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyError("something\nodd")

    monkeypatch.setattr(presets, "load_preset", fail)
    assert_one_line_error(sturdy("list"), "internal error: KeyError", "STURDY_TRACEBACK=1", status=1)


def test_list(sturdy: Sturdy) -> None:
    result = sturdy("list")
    assert result.status == 0
    for name in ("pushpull", "ICPR 2024", "fashion-mnist", "resnet50", "impulse_noise"):
        assert name in result.out


def test_info_and_doctor(sturdy: Sturdy, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    _info = pytest.importorskip("sturdy._info")
    monkeypatch.setattr(_info, "info_lines", lambda: ["sturdy 1", "AVX2"])
    assert sturdy("info").out.splitlines() == ["sturdy 1", "AVX2"]
    good = SimpleNamespace(ok=True, what="library loads", advice="")
    bad = SimpleNamespace(ok=False, what="driver too old", advice="install a newer driver")
    monkeypatch.setattr(_info, "doctor", lambda: [good])
    assert sturdy("doctor").status == 0
    monkeypatch.setattr(_info, "doctor", lambda: [good, bad])
    result = sturdy("doctor")
    assert result.status == 1 and "install a newer driver" in result.out


def test_demo_trains_compares_and_can_be_repeated(
    sturdy: Sturdy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sturdy.recipes import pushpull

    monkeypatch.setitem(pushpull._BY_DATA, "digits", {**pushpull._BY_DATA["digits"], "epochs": 1})
    out = tmp_path / "demo"
    first = sturdy("demo", "--out", out, "--device", "cpu")
    assert first.status == 0, first.err
    for text in ("baseline", "pushpull", "gain", "accuracy.png", "filters.png"):
        assert text in first.out
    again = sturdy("demo", "--out", out, "--device", "cpu")
    assert again.status == 0 and again.out.count("was complete already") == 2
    assert json.loads((out / "evaluate" / "results.json").read_text())["data"] == "digits"


@pytest.mark.parametrize("data", DATA_SETS)
def test_presets_fill_in_every_data_set(data: str) -> None:
    for name in presets.NAMES:
        settings = resolve(name, {"data": data})
        assert settings.preset == name and settings.data == data
        assert resolve(name, {"data": data, "lr": 0.5, "model": None}).lr == 0.5
        assert Settings.from_json(json.loads(json.dumps(settings.to_json())), "here") == settings


def test_the_papers_recipe() -> None:
    """Start, peak and end of the learning rate, and the momentum cycled the other way."""
    from sturdy.recipes.optimisation import make_optimizer, make_scheduler

    settings = resolve("pushpull", {"data": "cifar10"})
    assert (settings.model, settings.epochs, settings.batch_size, settings.weight_decay) == ("resnet18", 30, 64, 1e-5)
    assert (settings.inhibition, settings.trainable_inhibition) == (1.0, False)
    optimizer = make_optimizer(settings, torch.nn.Linear(1, 1))
    scheduler = make_scheduler(settings, optimizer, 1000)
    lrs, momenta = [], []
    for _ in range(1000):
        lrs.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step() if len(lrs) < 1000 else None
    assert lrs[0] == pytest.approx(5e-3) and max(lrs) == pytest.approx(0.2) and lrs[-1] == pytest.approx(1.25e-7)
    assert lrs.index(max(lrs)) == 299
    assert momenta[0] == pytest.approx(0.95) and min(momenta) == pytest.approx(0.85)
    with pytest.raises(UsageError):
        resolve("pushpull", {"data": "cifar10", "weight_decay": -1.0})


@pytest.mark.parametrize(
    ("model", "stem", "size", "kernel", "stride", "pooled"),
    [
        ("resnet18", "auto", 32, 3, 1, False),
        ("resnet50", "auto", 64, 3, 1, False),
        ("resnet18", "auto", 224, 7, 2, True),
        ("resnet18", "imagenet", 32, 7, 2, True),
        ("resnet18", "cifar", 96, 3, 1, False),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resnet_stems(model: str, stem: str, size: int, kernel: int, stride: int, pooled: bool, channels: int) -> None:
    from sturdy.nn import PushPullConv2d

    chosen = {"data": "cifar10", "model": model, "resnet_stem": stem, "avg_kernel_size": 5, "inhibition": 2.0}
    network = build_model(resolve("pushpull", chosen), in_channels=channels, num_classes=7, image_size=size).eval()
    plain = build_model(
        resolve("pushpull", {**chosen, "stem": "plain"}), in_channels=channels, num_classes=7, image_size=size
    )
    first = network.conv1
    assert type(first) is PushPullConv2d and type(plain.conv1) is torch.nn.Conv2d
    assert first.weight.shape == (64, channels, kernel, kernel) and first.stride == (stride, stride)
    assert isinstance(network.maxpool, torch.nn.MaxPool2d) == pooled
    assert torch.equal(first.weight, plain.conv1.weight)
    assert network(torch.rand(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("size", "inner"), [(8, 4), (16, 8), (28, 7), (32, 8)])
def test_small_cnn(size: int, inner: int) -> None:
    network = build_model(resolve("pushpull", {}), in_channels=1, num_classes=7, image_size=size).eval()
    seen = []
    network.conv3.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert network(torch.rand(2, 1, size, size)).shape == (2, 7)
    assert seen == [(2, 128, inner, inner)]
