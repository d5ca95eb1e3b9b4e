"""The preset ``prime``: runs, their continuation, views, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_support import Result, assert_one_line_error, losses, tiny
from torch.nn import functional as F

from sturdy.recipes.data import load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.engine import Trainer
from sturdy.recipes.keyed_random import KeyedRandom, mix_key
from sturdy.recipes.loader import Loader
from sturdy.recipes.objectives import Objective
from sturdy.recipes.presets import resolve
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder

Sturdy = Callable[..., Result]
CPU = torch.device("cpu")


def words_for(npz: Path, out: Path, *more: object) -> list[object]:
    words = tiny(npz, out, *more)
    return [words[0], "prime", *words[2:]]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--objective", "ce", "--prime-preset", "imagenet", "--prime-reference"),
        ("--stem", "pushpull", "--augment", "prime,afa"),
        ("--stem", "pushpull", "--augment", "prime,afa", "--objective", "ace"),
    ],
    ids=str,
)
def test_run_resumes_to_the_same_losses(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = sturdy(*words_for(npz, whole, *more))
    assert done.status == 0, done.err
    advance, count = RunProgress.advance, 0

    def stopping(self: RunProgress, *args: Any) -> None:
        nonlocal count
        count += 1
        advance(self, *args)
        if count == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "advance", stopping)
        assert_one_line_error(sturdy(*words_for(npz, run, *more)), "interrupted", status=130)
    resumed = sturdy("train", "prime", "--out", run, "--resume", "--device", "cpu")
    assert resumed.status == 0, resumed.err
    assert losses(run) == losses(whole)


def test_baseline_goes_without(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert sturdy(*words_for(npz, run, "--baseline", "--epochs", 1)).status == 0
    there = json.loads((run / "baseline" / "config.json").read_text())["settings"]
    assert there["objective"] == "ce" and there["augment"] == []


def test_first_loss_is_that_of_separate_passes(npz: Path, tmp_path: Path) -> None:
    """Three views through one set of normalisations, which see them all at once."""
    chosen = {"data": "npz", "data_dir": str(npz), "batch_size": 16, "epochs": 1, "log_every": 1, "jsd_lambda": 3.0}
    settings = resolve("prime", chosen)
    trainer = Trainer(settings, load_data(settings), RunFolder(tmp_path), World(CPU))
    twin = Trainer(settings, load_data(settings), RunFolder(tmp_path), World(CPU)).model.train()
    trainer.run()
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["loss"]
    data = trainer.data
    batch = next(Loader(data.train, 16, World(CPU)).training(settings.seed, 0))
    random = KeyedRandom(batch.indices, mix_key(settings.seed, "augment", 0))
    views = Objective(settings, None, CPU).views(batch.images, batch.labels, random)
    assert torch.equal(views[0], batch.images)
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])
    logits = twin(torch.cat([(view - data.mean[0]) / data.std[0] for view in views])).chunk(3)
    p = [x.softmax(1) for x in logits]
    m = (p[0] + p[1] + p[2]) / 3
    wanted = F.cross_entropy(logits[0], batch.labels) + sum((q * (q / m).log()).sum(1).mean() for q in p)
    assert wanted.item() == pytest.approx(logged, rel=1e-4)


def test_augmentation_follows_the_images_not_the_batches(npz: Path) -> None:
    objective = Objective(resolve("prime", {"data": "npz", "data_dir": str(npz)}), None, CPU)
    images, labels, indices = torch.rand(12, 1, 8, 8), torch.arange(12) % 4, torch.arange(100, 112)
    whole = objective.views(images, labels, KeyedRandom(indices, 5))
    order = torch.tensor([7, 3, 11])
    some = objective.views(images[order], labels[order], KeyedRandom(indices[order], 5))
    for few, all_ in zip(some, whole, strict=True):
        assert torch.equal(few, all_[order])


def test_which_view_gets_which_augmentation() -> None:
    from sturdy.nn import DualBatchNorm2d
    from sturdy.recipes.models import build_model

    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    sizes: dict[str, Any] = {"in_channels": 1, "num_classes": 10, "image_size": 8}
    for augment, dual in ((("prime",), False), (("prime", "afa"), True)):
        settings = resolve("prime", {"data": "digits", "augment": augment})
        clean, one, other = Objective(settings, None, CPU).views(images, labels, KeyedRandom(labels, 3))
        assert torch.equal(clean, images) and not torch.equal(one, other)
        model = build_model(settings, **sizes)
        assert any(isinstance(m, DualBatchNorm2d) for m in model.modules()) == dual


def test_the_papers_recipes() -> None:
    cifar, cifar100, imagenet = (resolve("prime", {"data": data}) for data in ("cifar10", "cifar100", "imagefolder"))
    assert (cifar.epochs, cifar.batch_size, cifar.lr, cifar.weight_decay) == (100, 128, 0.2, 5e-4)
    assert (cifar.objective, cifar.jsd_lambda, cifar.grad_clip, cifar.pct_start) == ("jsd", 12.0, 0.5, 0.25)
    assert cifar.prime_preset == "cifar" and cifar.prime_reference and cifar.nesterov
    assert cifar100.differences(cifar) == ["data"]
    assert (imagenet.epochs, imagenet.batch_size, imagenet.lr, imagenet.weight_decay) == (100, 512, 0.02, 1e-4)
    assert (imagenet.objective, imagenet.grad_clip, imagenet.pct_start) == ("ce", 0.0, 0.1)
    assert imagenet.prime_preset == "imagenet"


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--objective", "ace"], ["--objective ace needs afa among --augment, got prime"]),
        (["--augment", "crop"], ["--objective jsd needs afa or prime among --augment, got crop"]),
        (["--prime-preset", "cifar10"], ["unknown strength of prime 'cifar10'", "cifar"]),
        (["--pct-start", "1.5"], ["--pct-start must be above 0"]),
    ],
)
def test_bad_settings(sturdy: Sturdy, npz: Path, tmp_path: Path, more: list[str], parts: list[str]) -> None:
    assert_one_line_error(sturdy(*words_for(npz, tmp_path / "run", *more)), *parts)
