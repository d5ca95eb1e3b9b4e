"""The presets ``afa`` and ``dfmx``: objectives, keyed augmentations, masks, and resuming to the same losses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_support import Result, assert_one_line_error, losses, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.recipes.data import load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.engine import Trainer
from sturdy.recipes.errors import UsageError
from sturdy.recipes.keyed_random import KeyedRandom
from sturdy.recipes.loader import Loader
from sturdy.recipes.objectives import Objective
from sturdy.recipes.optimisation import make_optimizer, make_scheduler
from sturdy.recipes.presets import resolve
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder

Sturdy = Callable[..., Result]
CPU = torch.device("cpu")


def words_for(preset: str, npz: Path, out: Path, *more: object) -> list[object]:
    words = tiny(npz, out, *more)
    return [words[0], preset, *words[2:]]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    advance, count = RunProgress.advance, 0

    def counted(self: RunProgress, *args: Any) -> None:
        nonlocal count
        count += 1
        advance(self, *args)
        if count == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "advance", counted)


def of_random_classes(classes: int, size: int) -> Tensor:
    return (torch.rand((classes, size, size), generator=torch.Generator().manual_seed(4)) < 0.4).float()


@pytest.fixture
def masks_file(tmp_path: Path) -> Path:
    """Masks for four classes of 8 x 8 pixels, as bytes under the names of two networks, beside a removal order."""
    masks = of_random_classes(4, 8).numpy().astype(np.uint8)
    order = np.arange(64, dtype=np.int16).reshape(8, 8)
    np.savez(tmp_path / "masks.npz", removal_order=order, resnet18=masks, vgg11=1 - masks)
    return tmp_path / "masks.npz"


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--objective", "jsd", "--stem", "pushpull"),
        ("--objective", "ce", "--augment", "crop,flip,afa"),
        ("--accumulate", 2, "--augment", "crop,flip,afa", "--precision", "bf16"),
    ],
    ids=str,
)
def test_afa_run_resumes_to_the_same_losses(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = sturdy(*words_for("afa", npz, whole, *more))
    assert done.status == 0, done.err
    for stop, minutes in ((3, 10), (4, 0)):
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            resume = ["--resume"] if run.exists() else []
            words = words_for("afa", npz, run, *more, "--checkpoint-minutes", minutes, *resume)
            assert_one_line_error(sturdy(*words), "interrupted", status=130)
    assert sturdy("train", "afa", "--out", run, "--resume", "--device", "cpu").status == 0
    assert losses(run) == losses(whole)


def test_dfmx_run_finds_masks_and_resumes_to_the_same_losses(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline comes first; a stop within it, within the search and within the run changes nothing."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ("--schedule", "plateau", "--val-fraction", 0.3, "--epochs", 2, "--batch-size", 16)
    assert sturdy(*words_for("dfmx", npz, whole, *more)).status == 0
    with np.load(whole / "dfms.npz") as file:
        assert file["small-cnn"].shape == (4, 8, 8) and file["small-cnn"].dtype == np.uint8
        kept, order = file["small-cnn"], file["removal_order"]
    assert kept.min() == 0 and (kept[:, 4, 4] == 1).all() and order[4, 4] == order.max()
    for stop in (3, 40, 138):  # the baseline has 8 steps, the search 4 classes of 33 frequencies
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            resume = ["--resume"] if run.exists() else []
            result = sturdy(*words_for("dfmx", npz, run, *more, *resume))
            assert_one_line_error(result, "interrupted", status=130)
    assert sturdy("train", "dfmx", "--out", run, "--resume", "--device", "cpu").status == 0
    assert losses(run) == losses(whole) and losses(run / "baseline") == losses(whole / "baseline")
    assert losses(run) != losses(run / "baseline")
    here, there = (json.loads((path / "config.json").read_text())["settings"] for path in (run, run / "baseline"))
    assert {name for name in here if here[name] != there[name]} == {"augment"} and there["augment"] == []


def test_dfmx_with_a_file(sturdy: Sturdy, npz: Path, tmp_path: Path, masks_file: Path) -> None:
    run = tmp_path / "run"
    more = ("--dfm-masks", masks_file, "--dfm-set", "vgg11", "--epochs", 1)
    assert sturdy(*words_for("dfmx", npz, run, *more)).status == 0
    with np.load(run / "dfms.npz") as copy, np.load(masks_file) as file:
        assert np.array_equal(copy["vgg11"], file["vgg11"])
    assert not (run / "baseline").exists()
    masks_file.unlink()  # the run has its own copy
    assert sturdy(*words_for("dfmx", npz, run, "--epochs", 1, "--resume")).status == 0


def test_evaluation_beside_the_baseline(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert sturdy(*words_for("afa", npz, run, "--baseline")).status == 0
    there = json.loads((run / "baseline" / "config.json").read_text())["settings"]
    assert there["objective"] == "ce" and there["augment"] == []
    result = sturdy("evaluate", run, "--corruptions", "gaussian_noise", "--device", "cpu")
    assert result.status == 0, result.err
    report = json.loads((run / "evaluate" / "results.json").read_text())
    assert list(report["models"]) == ["afa", "baseline"]
    assert report["models"]["afa"]["clean_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("preset", "more", "parts"),
    [
        ("afa", ["--objective", "acs"], ["unknown objective 'acs'; did you mean 'ace'"]),
        ("afa", ["--augment", "crop"], ["--objective ace needs afa among --augment, got crop"]),
        ("afa", ["--augment", "afa,afa"], ["twice"]),
        ("afa", ["--augment", "afa,dfmx", "--val-fraction", "0"], ["--val-fraction or --dfm-masks"]),
        ("afa", ["--objective", "ce", "--augment", "none", "--baseline"], ["plain training"]),
        ("afa", ["--afa-strength", "-1"], ["--afa-strength must not be negative"]),
        ("afa", ["--accumulate", "5"], ["--accumulate 5 does not divide --batch-size 16"]),
        ("dfmx", ["--dfm-p", "1.5"], ["--dfm-p must be in [0, 1]"]),
        ("dfmx", ["--grad-clip", "nan"], ["--grad-clip"]),
    ],
)
def test_bad_words(sturdy: Sturdy, npz: Path, tmp_path: Path, preset: str, more: list[str], parts: list[str]) -> None:
    assert_one_line_error(sturdy(*words_for(preset, npz, tmp_path / "run", *more)), *parts, status=2)
    assert not (tmp_path / "run").exists()


def test_bad_mask_files(sturdy: Sturdy, npz: Path, tmp_path: Path, masks_file: Path) -> None:
    def refused(path: Path, *parts: str, more: tuple[object, ...] = ()) -> None:
        assert_one_line_error(sturdy(*words_for("dfmx", npz, tmp_path / "run", "--dfm-masks", path, *more)), *parts)
        assert not (tmp_path / "run" / "dfms.npz").exists()
        for leftover in (tmp_path / "run").glob("*"):
            leftover.unlink()

    refused(tmp_path / "none.npz", "no such file", "none.npz")
    refused(masks_file, "holds masks of resnet18, vgg11; choose with --dfm-set")
    refused(masks_file, "has no masks 'vgg19'", more=("--dfm-set", "vgg19"))
    other = tmp_path / "other.npz"
    np.savez(other, net=np.ones((5, 8, 8)))
    refused(other, "masks for 5 classes, the data set has 4")
    np.savez(other, net=np.ones((4, 8, 9)))
    refused(other, "masks of (8, 9), the images are (8, 8)")
    other.write_bytes(b"nothing")
    refused(other, "other.npz is truncated or not a file of masks")


# ---- objectives ------------------------------------------------------------------------------------------------------


def trainer_for(npz: Path, folder: Path, **chosen: Any) -> Trainer:
    chosen = {"data": "npz", "data_dir": str(npz), "batch_size": 16, "epochs": 1, "log_every": 1, **chosen}
    settings = resolve("afa", chosen)
    return Trainer(settings, load_data(settings), RunFolder(folder), World(CPU))


@pytest.mark.parametrize("objective", ["ace", "jsd"])
def test_first_loss_is_that_of_separate_passes(npz: Path, tmp_path: Path, objective: str) -> None:
    from sturdy.nn import route

    trainer = trainer_for(npz, tmp_path, objective=objective, augment=("crop", "afa"), jsd_lambda=3.0)
    twin = trainer_for(npz, tmp_path, objective=objective).model.train()
    trainer.run()
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["loss"]
    settings, data = trainer.settings, trainer.data
    batch = next(Loader(data.train, 16, World(CPU)).training(settings.seed, 0))
    from sturdy.recipes.keyed_random import mix_key

    random = KeyedRandom(batch.indices, mix_key(settings.seed, "augment", 0))
    views = Objective(settings, None, CPU).views(batch.images, batch.labels, random)
    assert torch.equal(views[0], views[1]) == (objective == "jsd")
    assert not torch.equal(views[0], views[-1]) and views[-1].min() >= 0 and views[-1].max() <= 1
    normal = [(view - data.mean[0]) / data.std[0] for view in views]
    logits = [twin(x) for x in normal[:-1]]
    with route(twin, "aux"):
        logits.append(twin(normal[-1]))
    if objective == "ace":
        wanted = (F.cross_entropy(logits[0], batch.labels) + F.cross_entropy(logits[1], batch.labels)) / 2
    else:
        p = [x.softmax(1) for x in logits]
        m = (p[0] + p[1] + p[2]) / 3
        divergence = sum((q * (q / m).log()).sum(1).mean() for q in p)
        wanted = F.cross_entropy(logits[0], batch.labels) + divergence
    assert wanted.item() == pytest.approx(logged, rel=1e-4)


def test_augmentations_follow_the_images_not_the_batches(npz: Path, tmp_path: Path) -> None:
    settings = resolve("dfmx", {"data": "npz", "data_dir": str(npz), "augment": ("afa", "dfmx", "crop"), "dfm_p": 0.9})
    objective = Objective(settings, of_random_classes(4, 8), CPU)
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 4
    indices = torch.arange(100, 112)
    whole = objective.views(images, labels, KeyedRandom(indices, 5))[0]
    order = torch.tensor([7, 3, 11])
    some = objective.views(images[order], labels[order], KeyedRandom(indices[order], 5))[0]
    assert torch.equal(some, whole[order])
    assert not torch.equal(objective.views(images, labels, KeyedRandom(indices, 6))[0], whole)


def test_which_view_gets_which_augmentation() -> None:
    common = {"data": "digits", "augment": ("crop", "dfmx", "afa")}
    masks, images = torch.zeros(10, 8, 8), torch.rand(4, 1, 8, 8)
    labels, random = torch.arange(4), torch.arange(4)
    with pytest.warns(UserWarning, match="0 everywhere"):
        jsd = Objective(resolve("afa", {**common, "objective": "jsd", "dfm_p": 1.0}), masks, CPU)
    clean, other, aux = jsd.views(images, labels, KeyedRandom(random, 3))
    flat = (other.std((1, 2, 3)) < 1e-6) | (other == clean).flatten(1).all(1)
    assert flat.all() and not (clean == aux).flatten(1).all(1).any()
    with pytest.raises(UsageError, match="--dfm-masks"):
        Objective(resolve("afa", common), None, CPU)


def test_dual_normalisations_start_from_the_plain_network() -> None:
    from sturdy.nn import DualBatchNorm2d, DuBIN
    from sturdy.recipes.models import build_model

    sizes: dict[str, Any] = {"in_channels": 3, "num_classes": 10, "image_size": 32}
    dual = build_model(resolve("afa", {"data": "cifar10", "stem": "pushpull"}), **sizes)
    plain = build_model(resolve("afa", {"data": "cifar10", "objective": "ce"}), **sizes)
    assert type(dual.layer1[0].bn1) is DuBIN and type(dual.layer4[0].bn1) is DualBatchNorm2d
    assert type(dual.conv1).__name__ == "PushPullConv2d"
    for name, tensor in plain.state_dict().items():
        if "conv" in name or "fc" in name:
            assert torch.equal(dual.state_dict()[name], tensor)
    assert not any(isinstance(m, DualBatchNorm2d) for m in plain.modules())


# ---- optimisation ----------------------------------------------------------------------------------------------------


def rates(steps: int, **chosen: Any) -> list[float]:
    settings = resolve("afa", chosen)
    optimizer = make_optimizer(settings, nn.Linear(1, 1))
    scheduler = make_scheduler(settings, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_courses_of_the_learning_rate() -> None:
    imagenet = rates(900, data="imagefolder")
    assert imagenet[0] == pytest.approx(0.1) and imagenet[25] == pytest.approx(0.15)
    assert imagenet[50] == imagenet[299] == pytest.approx(0.2)
    assert imagenet[300] == imagenet[599] == pytest.approx(0.02) and imagenet[-1] == pytest.approx(0.002)
    cifar = rates(1000, data="cifar10")
    assert cifar[0] == pytest.approx(0.1) and cifar[500] == pytest.approx((0.1 + 1e-5) / 2)
    assert cifar[-1] == pytest.approx(1e-5, rel=0.1)
    warm = rates(1000, data="cifar10", epochs=100, warmup_epochs=10)
    assert warm[0] == pytest.approx(0.01) and warm.index(max(warm)) == 100 and warm[100] == pytest.approx(0.1)
    floor = 1e-4
    assert warm[400] == pytest.approx(0.1 * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi / 3))))


def test_plateau_and_weight_decay_and_clipping(npz: Path, tmp_path: Path) -> None:
    settings = resolve("dfmx", {"data": "cifar10"})
    optimizer = make_optimizer(settings, nn.Linear(1, 1))
    scheduler = make_scheduler(settings, optimizer, 100)
    for _ in range(12):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    trainer = trainer_for(npz, tmp_path)
    model = trainer.model
    decayed, free = trainer.optimizer.param_groups
    assert free["weight_decay"] == 0 and decayed["weight_decay"] == 5e-4 and free["nesterov"]
    assert {id(p) for n, p in model.named_parameters() if "bn" in n} == {id(p) for p in free["params"]}
    clipped = trainer_for(npz, tmp_path, grad_clip=1e-3)
    batch = next(clipped.loader.training(0, 0))
    clipped._train_step(batch, 0)
    norm = torch.stack([p.grad.norm() for p in clipped.model.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_accumulated_parts_give_the_gradient_of_the_whole(npz: Path, tmp_path: Path) -> None:
    """Where no normalisation looks at the other images of a part."""
    gradients, lost = [], []
    for accumulate in (1, 4):
        trainer = trainer_for(npz, tmp_path, accumulate=accumulate, grad_clip=0.0)
        for module in trainer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,assignment]
                module.training = False
        lost.append(trainer._train_step(next(trainer.loader.training(0, 0)), 0).item())
        gradients.append([p.grad for p in trainer.model.parameters()])
    assert lost[0] == pytest.approx(lost[1], rel=1e-5)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_search_keeps_the_frequency_that_the_network_uses(npz: Path) -> None:
    """A network that looks at one frequency of each class: masks are that, its mirror image and the mean."""
    import dataclasses

    from sturdy.recipes.data import ArraySplit
    from sturdy.recipes.dominant import find_masks

    data = load_data(resolve("dfmx", {"data": "npz", "data_dir": str(npz)}))
    bins = [(1, 2), (3, 0), (2, 3), (0, 1)]
    rows, columns = torch.arange(8.0)[:, None], torch.arange(8.0)
    waves = torch.stack([torch.cos(2 * math.pi * (k * rows + m * columns) / 8 + 0.3) for k, m in bins])
    labels = torch.arange(40) % 4
    noise = torch.rand((40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = 0.4 + 0.1 * noise + 0.2 * waves[labels][:, None]
    data = dataclasses.replace(data, val=ArraySplit(images, labels))

    class Matched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            present = torch.einsum("nchw,khw->nk", x, waves) / 32
            return torch.cat((present[:, :4] - 0.3, torch.zeros(len(x), 1)), 1)  # the last class: none of them

    masks = find_masks(Matched().eval(), data, World(CPU))
    for c, (k, m) in enumerate(bins):
        wanted = torch.zeros(8, 8)
        wanted[4, 4] = wanted[(k + 4) % 8, (m + 4) % 8] = wanted[(4 - k) % 8, (4 - m) % 8] = 1
        assert torch.equal(masks[c], wanted)
