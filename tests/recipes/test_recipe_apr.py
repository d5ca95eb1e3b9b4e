"""The preset `apr` and the objective `pair`: the loss, who exchanges amplitudes with whom, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_support import Result, assert_one_line_error, losses, tiny
from torch import Tensor
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
    return [words[0], "apr", *words[2:]]


def objective(**chosen: Any) -> Objective:
    return Objective(resolve("apr", {"data": "digits", "augment": ("apr",), **chosen}), None, CPU)


def authors(x: Tensor, index: Tensor) -> Tensor:
    spectrum = torch.fft.fftn(x.double(), dim=(1, 2, 3))
    return torch.fft.ifftn(spectrum.abs()[index] * torch.exp(1j * spectrum.angle()), dim=(1, 2, 3)).real


def test_views_are_the_images_and_a_mixture_of_them() -> None:
    images, labels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6)
    keys = torch.arange(100, 106)
    seen = objective(apr_p=1.0)
    clean, mixed = seen.views(images, labels, KeyedRandom(keys, 3))
    assert torch.equal(clean, images)
    # Whose amplitudes an image took shows in its mean, the amplitude of frequency 0.
    means = (mixed.mean((1, 2, 3))[:, None] - images.mean((1, 2, 3))).abs()
    index = means.argmin(1)
    assert means.amin(1).max() < 1e-6 and sorted(index.tolist()) == list(range(6))
    torch.testing.assert_close(mixed.double(), authors(images, index), rtol=0, atol=1e-4)
    again = seen.views(images, labels, KeyedRandom(keys, 3))
    assert torch.equal(again[1], mixed)
    assert not torch.equal(seen.views(images, labels, KeyedRandom(keys, 4))[1], mixed)
    assert torch.equal(seen.views(images[:1], labels[:1], KeyedRandom(keys[:1], 3))[1], images[:1])


def test_how_often_a_batch_is_mixed() -> None:
    images, labels, keys = torch.rand(4, 1, 8, 8), torch.arange(4), torch.arange(4)
    seen = objective()
    mixed = 0
    for key in range(300):
        clean, other = seen.views(images, labels, KeyedRandom(keys, key))
        mixed += int(not torch.equal(clean, other))
    assert 0.5 < mixed / 300 < 0.7  # three standard deviations are 0.085


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_loss_is_that_of_both_views(npz: Path, tmp_path: Path, mixup: float) -> None:
    chosen = {"data": "npz", "data_dir": str(npz), "batch_size": 16, "epochs": 1, "log_every": 1, "mixup": mixup}
    settings = resolve("apr", {**chosen, "augment": ("crop", "apr"), "apr_p": 1.0})
    data = load_data(settings)
    trainer = Trainer(settings, data, RunFolder(tmp_path), World(CPU))
    twin = Trainer(settings, data, RunFolder(tmp_path), World(CPU)).model.train()
    trainer.run()
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["loss"]
    batch = next(Loader(data.train, 16, World(CPU)).training(settings.seed, 0))
    seen = Objective(settings, None, CPU)
    mixes = seen.mixes(mix_key(settings.seed, "mix", 0, 0, 0), batch.images)
    random = KeyedRandom(batch.indices, mix_key(settings.seed, "augment", 0))
    views = seen.views(batch.images, batch.labels, random, mixes)
    assert not torch.equal(*views)
    logits = twin((torch.cat(views) - data.mean[0]) / data.std[0])
    target = mixes[0].target(batch.labels, logits.shape[1]) if mixes else batch.labels
    clean, mixed = (F.cross_entropy(part, target) for part in logits.chunk(2))
    assert ((clean + mixed) / 2).item() == pytest.approx(logged, rel=1e-4)


def test_other_augmentations_change_the_second_view_alone() -> None:
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    for names in (("flip", "afa", "apr"), ("flip", "afa")):
        clean, other = objective(augment=names).views(images, labels, KeyedRandom(labels, 1))
        assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(clean, images, strict=True))
        assert not (clean == other).flatten(1).all(1).any()


@pytest.mark.parametrize("more", [(), ("--stem", "pushpull"), ("--accumulate", 2, "--precision", "bf16")], ids=str)
def test_run_resumes_to_the_same_losses(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = sturdy(*words_for(npz, whole, *more))
    assert done.status == 0, done.err
    advance, count = RunProgress.advance, 0

    def counted(self: RunProgress, *args: Any) -> None:
        nonlocal count
        count += 1
        advance(self, *args)
        if count == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "advance", counted)
        assert_one_line_error(sturdy(*words_for(npz, run, *more)), "interrupted", status=130)
    assert sturdy("train", "apr", "--out", run, "--resume", "--device", "cpu").status == 0
    assert losses(run) == losses(whole)


def test_baseline_has_neither_the_views_nor_the_augmentation(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert sturdy(*words_for(npz, run, "--baseline", "--epochs", 1)).status == 0
    there = json.loads((run / "baseline" / "config.json").read_text())["settings"]
    assert there["objective"] == "ce" and there["augment"] == []
    assert losses(run) != losses(run / "baseline")


def test_bad_words(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    result = sturdy(*words_for(npz, tmp_path / "run", "--apr-p", 1.5))
    assert_one_line_error(result, "--apr-p must be in [0, 1], got 1.5", status=2)


def test_values() -> None:
    for data in ("digits", "fashion-mnist", "cifar10", "cifar100", "tinyimagenet", "npz", "imagefolder"):
        s = resolve("apr", {"data": data})
        assert (s.objective, s.apr_p, s.stem) == ("pair", 0.6, "plain") and s.augment[-1] == "apr"
