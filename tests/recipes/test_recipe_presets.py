"""The presets: the published values, courses of the learning rate, options for all of it, and short runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_support import Result, assert_one_line_error
from torch import nn

from sturdy.recipes.data import ArraySplit, load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.engine import Trainer
from sturdy.recipes.optimisation import make_optimizer, make_scheduler
from sturdy.recipes.presets import NAMES, load_preset, resolve
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.settings import DATA_SETS, Settings

Sturdy = Callable[..., Result]

# What the authors of AFA use, as they publish it: epochs, batch, parts of it, optimizer, rate, weight decay, schedule,
# lowest rate, epochs of warm-up and where it starts, greatest norm of the gradient, weight of the JSD, augmentations.
MIX = {"mixup": 1.0, "cutmix": 1.0}
CCT7, CCT14 = {"model": "cct_7_3x1"}, {"model": "cct_14_7x2"}
CROP = ("crop", "flip", "afa")
RESIZED = ("resized-crop", "flip", "afa")
AFA = [
    # data, chosen, epochs, batch, parts, optimizer, lr, decay, schedule, min_lr, warm-up, from, clip, jsd, augment
    ("cifar10", {}, 200, 256, 1, "sgd", 0.1, 5e-4, "cosine", 1e-5, 0, None, 1.0, 10, CROP),
    ("cifar10", MIX, 300, 256, 1, "sgd", 0.1, 1e-4, "cosine", 1e-5, 0, None, 0.5, 10, CROP),
    ("cifar100", {}, 100, 128, 1, "sgd", 0.2, 5e-4, "cosine", 1e-5, 0, None, 0.5, 1, CROP),
    ("cifar100", MIX, 200, 128, 1, "sgd", 0.2, 1e-4, "cosine", 1e-5, 0, None, 0.5, 1, CROP),
    ("tinyimagenet", {}, 100, 128, 1, "sgd", 0.2, 5e-4, "cosine", 1e-5, 0, None, 0.5, 10, CROP),
    ("tinyimagenet", MIX, 100, 128, 1, "sgd", 0.2, 5e-4, "cosine", 1e-5, 0, None, 0.5, 10, CROP),
    ("imagefolder", {}, 90, 4 * 128, 4, "sgd", 0.2, 1e-4, "steps", None, 5, 0.5, 1.0, 12, RESIZED),
    ("imagefolder", MIX, 90, 4 * 128, 4, "sgd", 0.2, 1e-4, "steps", None, 5, 0.5, 1.0, 12, RESIZED),
    ("cifar10", CCT7, 300, 128, 1, "adamw", 6e-4, 6e-2, "cosine", 6e-7, 10, 0.1, 0.0, None, CROP),
    ("cifar100", CCT7, 300, 128, 1, "adamw", 6e-4, 6e-2, "cosine", 6e-7, 10, 0.1, 0.0, None, CROP),
    ("imagefolder", CCT14, 300, 8 * 128, 1, "adamw", 5e-4, 5e-2, "cosine", 5e-7, 25, 0.1, 5.0, None, RESIZED),
]


@pytest.mark.parametrize("row", AFA, ids=lambda row: f"{row[0]} {','.join(map(str, row[1].values()))}".strip())
def test_values_of_afa(row: tuple[Any, ...]) -> None:
    data, chosen, *published = row
    s = resolve("afa", {"data": data, **chosen})
    found = (s.epochs, s.batch_size, s.accumulate, s.optimizer, s.lr, s.weight_decay, s.schedule, s.min_lr)
    found += (s.warmup_epochs, s.warmup_start, s.grad_clip, s.jsd_lambda, s.augment)
    for value, wanted in zip(found, published, strict=True):
        assert wanted is None or value == (wanted if isinstance(wanted, (str, tuple)) else pytest.approx(wanted))
    assert not s.norm_weight_decay and s.objective == "ace" and s.afa_reference
    if "model" not in chosen:
        assert s.momentum == 0.9 and s.nesterov == (data != "imagefolder") and s.ibn
        assert (s.mixup, s.cutmix) == ((1, 1) if chosen else (0, 0))
        assert s.model == ("resnet50" if data == "imagefolder" else "resnet18")
    else:
        assert (s.mixup, s.cutmix) == (0.2 if data == "imagefolder" else 0.8, 1)
    assert s.resnet_stem == ("tinyimagenet" if data == "tinyimagenet" else "auto")
    assert s.test_crop == (224 / 256 if data == "imagefolder" else 1)
    assert s.crop_padding == (4 if data == "tinyimagenet" else None)  # 4 of 32 pixels is what None stands for


def test_values_of_dfmx() -> None:
    s = resolve("dfmx", {"data": "cifar10"})
    assert (s.epochs, s.batch_size, s.optimizer, s.momentum, s.nesterov) == (200, 64, "sgd", 0.9, True)
    assert (s.lr, s.weight_decay, s.schedule, s.val_fraction, s.dfm_p) == (0.01, 1e-4, "plateau", 0.1, 0.3)
    assert s.augment == ("crop", "flip", "resized-crop", "dfmx") and s.objective == "ce" and s.norm_weight_decay


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("data", DATA_SETS)
def test_every_preset_has_values_for_every_data_set(preset: str, data: str) -> None:
    settings = resolve(preset, {"data": data})
    assert settings.data == data and not settings.is_baseline
    if data in ("cifar100", "tinyimagenet") and preset in ("pushpull", "dfmx"):  # no recipe of their own for these
        like = resolve(preset, {"data": "cifar10"})
        assert settings.differences(like) == ["data"]


def test_what_the_user_chose_stays() -> None:
    chosen = {"data": "cifar10", "model": "cct_7_3x1", "lr": 1e-2, "epochs": 12, "mixup": 0.0, "optimizer": "sgd"}
    s = resolve("afa", chosen)
    assert {name: getattr(s, name) for name in chosen} == chosen
    assert (s.min_lr, s.warmup_epochs, s.cutmix) == (pytest.approx(1e-5), 4, 1.0)  # what follows from them does follow
    assert resolve("afa", {"data": "cifar10", **MIX, "epochs": 3, "grad_clip": 2.0}).grad_clip == 2.0
    assert resolve("afa", {**chosen, "min_lr": 0.0, "warmup_epochs": 0}).min_lr == 0


def test_with_prime_the_gradient_is_clipped_harder() -> None:
    augment = ("resized-crop", "flip", "prime", "afa")
    resnet = resolve("afa", {"data": "imagefolder", "augment": augment})
    cct = resolve("afa", {"data": "imagefolder", "augment": augment, **CCT14})
    assert resnet.grad_clip == 0.5 and (cct.grad_clip, cct.batch_size, cct.accumulate) == (0.5, 4 * 64, 4)


def test_every_setting_has_an_option(sturdy: Sturdy) -> None:
    from sturdy.recipes.commands import train

    fields = {field.name for field in dataclasses.fields(Settings)} - {"preset"}
    assert fields <= set(inspect.signature(train).parameters)
    text = sturdy("list").out
    for name in NAMES:
        assert f"preset {name}: {load_preset(name).summary}" in text


# ---- courses of the learning rate ------------------------------------------------------------------------------------


def rates(settings: Settings, per_epoch: int) -> list[float]:
    optimizer = make_optimizer(settings, nn.Linear(1, 1))
    scheduler = make_scheduler(settings, optimizer, settings.epochs * per_epoch)
    found = []
    for _ in range(settings.epochs * per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_of_a_resnet() -> None:
    """Per step, from the highest rate to 1e-5."""
    for data, lr, epochs in (("cifar10", 0.1, 200), ("cifar100", 0.2, 100), ("tinyimagenet", 0.2, 100)):
        found = rates(resolve("afa", {"data": data}), 4)
        for step in (0, 1, 77, 2 * epochs, 4 * epochs - 1):
            part = step / (4 * epochs)
            assert found[step] == pytest.approx(1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * part)) / 2, rel=1e-6)


def test_steps_for_imagenet() -> None:
    """Half the rate to all of it in five epochs, step by step; a tenth from epochs 30 and 60 on."""
    found = rates(resolve("afa", {"data": "imagefolder"}), 10)
    assert found[0] == pytest.approx(0.1) and found[20] == pytest.approx(0.2 * (0.5 + 0.5 * 20 / 50))
    assert found[50] == found[299] == pytest.approx(0.2)
    assert found[300] == found[599] == pytest.approx(0.02)
    assert found[600] == found[899] == pytest.approx(0.002)


@pytest.mark.parametrize(("data", "model", "lr", "warm"), [("cifar10", *CCT7.values(), 6e-4, 10),
                                                           ("imagefolder", *CCT14.values(), 5e-4, 25)])  # fmt: skip
def test_cosine_with_warm_up_of_a_transformer(data: str, model: str, lr: float, warm: int) -> None:
    """A tenth of the rate to all of it, then half a cosine down to a thousandth."""
    found = rates(resolve("afa", {"data": data, "model": model}), 3)
    for step in (0, 1, 3 * warm - 1, 3 * warm, 400, 899):
        if step < 3 * warm:
            wanted = 0.1 + 0.9 * step / (3 * warm)
        else:
            done = (step - 3 * warm) / (900 - 3 * warm)
            wanted = 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * done)) / 2
        assert found[step] == pytest.approx(lr * wanted, rel=1e-6)


def test_plateau() -> None:
    """A tenth after 10 epochs without a lower validation loss, and again; a lower one starts the count anew."""
    settings = resolve("dfmx", {"data": "cifar10"})
    optimizer = make_optimizer(settings, nn.Linear(1, 1))
    scheduler = make_scheduler(settings, optimizer, 100)
    losses = [2.0, *[1.0] * 8, 0.5, *[0.6] * 10, 0.5, *[0.5] * 11, 0.1]
    seen = []
    for loss in losses:
        scheduler.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen[:20] == [pytest.approx(0.01)] * 20
    assert seen[20:31] == [pytest.approx(1e-3)] * 11
    assert seen[31] == pytest.approx(1e-4)


def test_the_validation_part_is_not_augmented(npz: Path, tmp_path: Path) -> None:
    """Its logged loss is that of the images as they are, a tenth of the training images."""
    settings = resolve("dfmx", {"data": "npz", "data_dir": str(npz), "epochs": 1, "batch_size": 16, "dfm_p": 1.0})
    data = load_data(settings)
    assert len(data.val) == 10 and len(data.train) == 86 and isinstance(data.val, ArraySplit)
    masks = torch.zeros(4, 8, 8)
    masks[:, 4, 4] = 1  # flat images where it is applied
    trainer = Trainer(settings, data, RunFolder(tmp_path), World(torch.device("cpu")), masks=masks)
    trainer.run()
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = next(event for event in events if event["event"] == "epoch")["val_loss"]
    images = (data.val.images.float() / 255 - data.mean[0]) / data.std[0]
    wanted = nn.functional.cross_entropy(trainer.model.eval()(images), data.val.labels)
    assert logged == pytest.approx(wanted.item(), rel=1e-5)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("pushpull", ["--mixup", "1"]),
        ("afa", []),
        ("afa", ["--mixup", "1", "--cutmix", "1", "--stem", "pushpull"]),
        ("afa", ["--augment", "resized-crop,afa", "--objective", "jsd", "--jsd-lambda", "1", "--momentum", "0.8"]),
        ("afa", ["--model", "cct_7_3x1", "--stem", "pushpull", "--limit-train", "80", "--batch-size", "16"]),
        ("afa", ["--model", "cct_7_3x1", "--precision", "bf16", "--limit-train", "80", "--batch-size", "16"]),
        ("dfmx", ["--cutmix", "1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "as it is",
)
def test_short_runs_on_digits(sturdy: Sturdy, tmp_path: Path, preset: str, more: list[str]) -> None:
    run = tmp_path / "run"
    words = ["--epochs", 1, "--limit-train", 300, "--limit-test", 40, "--val-fraction", 0.2, "--device", "cpu"]
    result = sturdy("train", preset, "--out", run, *words, *more)
    assert result.status == 0, result.err
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "end" and math.isfinite(events[-1]["test_loss"])
    config = json.loads((run / "config.json").read_text())["settings"]
    assert config["preset"] == preset and config["epochs"] == 1


@pytest.mark.parametrize("preset", ["afa", "dfmx"])
def test_a_longer_run_learns(sturdy: Sturdy, tmp_path: Path, preset: str) -> None:
    words = ["--epochs", 4, "--limit-test", 200, "--device", "cpu", "--mixup", 0.5]
    masks = []
    if preset == "dfmx":
        from sturdy.transforms import save_masks

        everything = torch.ones(10, 8, 8)
        save_masks(tmp_path / "all.npz", {"net": everything}, torch.arange(64).view(8, 8))
        masks = ["--dfm-masks", tmp_path / "all.npz"]
    run = tmp_path / "run"
    result = sturdy("train", preset, "--out", run, *words, *masks)
    assert result.status == 0, result.err
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert events[-1]["test_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--test-crop", "0", "above 0 and at most 1"),
        ("--crop-padding", "-1", "must not be negative"),
        ("--warmup-start", "1.5", "in [0, 1]"),
        ("--momentum", "1", "below 1"),
        ("--div-factor", "0", "positive"),
        ("--data", "cifar1000", "did you mean 'cifar100'"),
        ("--model", "cct_7_3x2", "did you mean 'cct_7_3x1'"),
    ],
)
def test_bad_values(sturdy: Sturdy, tmp_path: Path, option: str, value: str, part: str) -> None:
    assert_one_line_error(sturdy("train", "afa", "--out", tmp_path / "run", option, value), part, status=2)
