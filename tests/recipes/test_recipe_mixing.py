"""MixUp and CutMix: what they draw, how the views of an objective are mixed, and resuming to the same losses."""

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
from sturdy.recipes.mixing import Mix, Mixing
from sturdy.recipes.objectives import Objective
from sturdy.recipes.presets import resolve
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder

Sturdy = Callable[..., Result]
CPU = torch.device("cpu")


def draws(mixing: Mixing, count: int, images: int = 6, size: int = 32) -> list[Mix]:
    return [mixing.draw(key, images, size, size) for key in range(count)]


# ---- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_shares_of_mixup_are_from_a_beta_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1/(4 (2 a + 1)), fourth central moment 3/(16 (2 a + 1) (2 a + 3)), and no ties."""
    shares = torch.tensor([mix.share for mix in draws(Mixing(mixup=alpha), 4000)], dtype=torch.float64) - 0.5
    assert abs(shares.mean()) < 0.03
    assert shares.square().mean() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert shares.pow(4).mean() == pytest.approx(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.08)
    assert shares.unique().numel() > 3900


def test_area_of_the_boxes_of_cutmix() -> None:
    """Boxes cut off at the border: a uniform area u covers the mean of (s - s^2 / 4)^2 with s = sqrt(u), 77/240."""
    mixes = draws(Mixing(cutmix=1.0), 3000, size=1024)
    areas = [(b - t) * (r - left) / 1024**2 for t, left, b, r in (mix.box or (0, 0, 0, 0) for mix in mixes)]
    assert all(mix.share == pytest.approx(1 - area, abs=1e-12) for mix, area in zip(mixes, areas, strict=True))
    assert sum(areas) / len(areas) == pytest.approx(77 / 240, abs=0.02)
    inside = [m.box for m in mixes if m.box and min(m.box) > 0 and max(m.box) < 1024]
    assert len(inside) > 300  # of the shape of the image
    assert all(abs((b - t) - (r - left)) <= 1 for t, left, b, r in inside)


def test_both_take_turns() -> None:
    mixes = draws(Mixing(mixup=0.3, cutmix=1.0), 1000)
    assert 430 < sum(mix.box is None for mix in mixes) < 570
    assert all(mix.box is None for mix in draws(Mixing(mixup=1.0), 50))
    assert not any(mix.box is None for mix in draws(Mixing(cutmix=1.0), 50))
    assert not Mixing() and Mixing(0.1) and Mixing(0, 0.1)


def test_draws_follow_from_the_key() -> None:
    for mixing in (Mixing(mixup=1.0), Mixing(cutmix=1.0)):
        a, again, other = (mixing.draw(key, 50, 16, 24) for key in (5, 5, 6))
        assert a.share == again.share and a.box == again.box and torch.equal(a.partner, again.partner)
        assert a.share != other.share and not torch.equal(a.partner, other.partner)
        assert sorted(a.partner.tolist()) == list(range(50))


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_images_and_labels_are_mixed_alike(mixing: Mixing) -> None:
    """Images that are constant, each with a value and a class of its own: their mean tells how they were mixed."""
    values = torch.arange(1.0, 9.0).double()
    labels = torch.tensor([3, 1, 4, 0, 5, 2, 7, 6])
    for key in range(40):
        mix = mixing.draw(key, 8, 12, 20)
        images = values[:, None, None, None].expand(8, 3, 12, 20).clone()
        mixed = mix.images(images)
        wanted = mix.share * values + (1 - mix.share) * values[mix.partner]
        torch.testing.assert_close(mixed.mean((1, 2, 3)), wanted)
        assert torch.equal(images[:, 0, 0, 0], values)  # left as they were
        target = mix.target(labels, 9)
        assert target.dtype == torch.float32 and target.min() >= 0
        torch.testing.assert_close(target.sum(1), torch.ones(8))
        own = torch.full((8,), mix.share).where(labels != labels[mix.partner], torch.ones(8))
        torch.testing.assert_close(target[torch.arange(8), labels], own)
        if mix.box is not None:
            assert set(mixed.flatten().tolist()) <= set(values.tolist())


# ---- views -----------------------------------------------------------------------------------------------------------


def objective_for(**chosen: Any) -> Objective:
    return Objective(resolve("afa", {"data": "digits", "augment": ("afa",), **chosen}), None, CPU)


def batch(count: int = 12) -> tuple[Tensor, Tensor, KeyedRandom]:
    images = torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return images, torch.arange(count) % 10, KeyedRandom(torch.arange(count), 3)


def test_the_two_views_of_ace_are_mixed_each_in_its_own_way() -> None:
    objective = objective_for(mixup=1.0, afa_strength=0.0)
    images, labels, random = batch()
    first, second = mixes = objective.mixes(7, images)
    assert first.share != second.share and not torch.equal(first.partner, second.partner)
    views = objective.views(images, labels, random, mixes)
    assert torch.equal(views[0], first.images(images))
    torch.testing.assert_close(views[1], second.images(images))
    assert objective_for().mixes(7, images) == []


@pytest.mark.parametrize("objective", ["ce", "ace", "jsd"])
def test_mixing_comes_before_afa(objective: str) -> None:
    """The waves are those of the images' own streams, whatever was added to: their difference is that of the images."""
    chosen: dict[str, Any] = {"objective": objective, "afa_strength": 0.5}
    mixing, plain = objective_for(cutmix=1.0, **chosen), objective_for(**chosen)
    images, labels, _ = batch()
    images = 0.4 + 0.2 * images  # far from the bounds, so that nothing is clamped
    mixes = mixing.mixes(11, images)
    mixed = mixing.views(images, labels, batch()[2], mixes)[-1]
    waves = plain.views(images, labels, batch()[2])[-1] - images
    torch.testing.assert_close(mixed, mixes[-1].images(images) + waves)
    assert waves.abs().max() > 0.01


def test_jsd_mixes_all_views_alike() -> None:
    objective = objective_for(objective="jsd", mixup=1.0)
    images, labels, random = batch()
    (mix,) = mixes = objective.mixes(3, images)
    clean, other, _ = objective.views(images, labels, random, mixes)
    assert torch.equal(clean, mix.images(images)) and torch.equal(other, clean)


def test_dfmx_still_sees_the_labels_of_whole_images(npz: Path) -> None:
    """With ce: what comes before AFA is done to the images, then they are mixed."""
    masks = torch.zeros(4, 8, 8)
    masks[:, 4, 4] = 1  # flat images
    settings = resolve(
        "dfmx",
        {"data": "npz", "data_dir": str(npz), "augment": ("dfmx",), "dfm_p": 1.0, "mixup": 1.0},
    )
    objective = Objective(settings, masks, CPU)
    images, labels, _ = batch()
    labels = labels % 4
    mixes = objective.mixes(1, images)
    (mixed,) = objective.views(images, labels, batch()[2], mixes)
    (plain,) = objective.views(images, labels, batch()[2])
    assert torch.equal(mixed, mixes[0].images(plain)) and not torch.equal(mixed, plain)


@pytest.mark.parametrize("objective", ["ce", "ace", "jsd"])
def test_first_loss_by_hand(npz: Path, tmp_path: Path, objective: str) -> None:
    from sturdy.nn import route

    chosen = {"data": "npz", "data_dir": str(npz), "batch_size": 16, "epochs": 1, "log_every": 1}
    settings = resolve("afa", {**chosen, "objective": objective, "mixup": 0.8, "cutmix": 1.0, "jsd_lambda": 0.0})
    data = load_data(settings)
    trainer, twin = (Trainer(settings, data, RunFolder(tmp_path), World(CPU)) for _ in range(2))
    trainer.run()
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["loss"]
    first = next(Loader(data.train, 16, World(CPU)).training(settings.seed, 0))
    random = KeyedRandom(first.indices, mix_key(settings.seed, "augment", 0))
    mixes = twin.objective.mixes(mix_key(settings.seed, "mix", 0, 0, 0), first.images)
    views = twin.objective.views(first.images, first.labels, random, mixes)

    def loss(view: Tensor, mix: Mix, where: str) -> Tensor:
        with route(twin.model.train(), where):
            logits = twin.model((view - data.mean[0]) / data.std[0])
        by_image = F.cross_entropy(logits, first.labels, reduction="none")
        by_partner = F.cross_entropy(logits, first.labels[mix.partner], reduction="none")
        return (mix.share * by_image + (1 - mix.share) * by_partner).mean()

    wanted = loss(views[0], mixes[0], "main")
    if objective == "ace":
        wanted = (wanted + loss(views[1], mixes[1], "aux")) / 2
    assert wanted.item() == pytest.approx(logged, rel=1e-4)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--accumulate", 2, "--objective", "ce"),
        ("--model", "cct_7_3x1", "--epochs", 2, "--limit-train", 36, "--batch-size", 8),
    ],
    ids=["ace", "ce in two parts", "a transformer, with dropout"],
)
def test_resumes_to_the_same_losses(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    words = {
        name: ["train", "afa", *tiny(npz, tmp_path / name, "--mixup", 0.8, "--cutmix", 1, *more)[2:]]
        for name in ("whole", "run")
    }
    assert sturdy(*words["whole"]).status == 0
    advance, count = RunProgress.advance, 0

    def stop_in_the_second_epoch(self: RunProgress, *args: Any) -> None:
        nonlocal count
        count += 1
        advance(self, *args)
        if count == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "advance", stop_in_the_second_epoch)
        result = sturdy(*words["run"], "--checkpoint-minutes", 0)
        assert_one_line_error(result, "interrupted", status=130)
    assert sturdy("train", "afa", "--out", tmp_path / "run", "--resume", "--device", "cpu").status == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    plain = ["train", "afa", *tiny(npz, tmp_path / "plain", *more, "--mixup", 0, "--cutmix", 0)[2:]]
    assert sturdy(*plain).status == 0
    assert losses(tmp_path / "plain") != losses(tmp_path / "whole")


def test_the_baseline_mixes_too(npz: Path) -> None:
    settings = resolve("afa", {"data": "npz", "data_dir": str(npz), "mixup": 0.5})
    assert settings.baseline().mixup == 0.5 and settings.baseline().augment == ()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--mixup", "-1"], "--mixup must not be negative"),
        (["--cutmix", "nan"], "--cutmix must not be negative"),
        (["--mixup", "1", "--augment", "afa,dfmx"], "dfmx must come before that"),
    ],
)
def test_bad_words(sturdy: Sturdy, npz: Path, tmp_path: Path, more: list[str], part: str) -> None:
    words = ["train", "afa", *tiny(npz, tmp_path / "run", *more)[2:]]
    assert_one_line_error(sturdy(*words), part, status=2)
