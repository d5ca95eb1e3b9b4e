"""The presets cast: tasks, networks of sequences, what their logs say, resuming, comparison and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_support import Result, assert_one_line_error, losses
from torch import nn

from sturdy.recipes import clusters
from sturdy.recipes.data import grey, load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.errors import UsageError
from sturdy.recipes.loader import Loader
from sturdy.recipes.models import build_model
from sturdy.recipes.optimisation import make_optimizer, make_scheduler
from sturdy.recipes.presets import resolve
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.sequence_models import SequenceClassifier
from sturdy.recipes.settings import TASKS, Settings
from sturdy.recipes.speed import StepMeter, peak_memory
from sturdy.recipes.tokens import TokenSplit, joined, read_texts

Sturdy = Callable[..., Result]
CPU = World(torch.device("cpu"))
SMALL = {"width": 16, "heads": 2, "ff_width": 32, "depth": 2, "clusters": 4, "cluster_size": 6, "embed_width": 0}


def words(out: Path, *more: object) -> list[object]:
    """Words that train for 2 epochs of 5 steps on digits."""
    small = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", value)]
    size = ["--limit-train", 100, "--limit-test", 40, "--val-fraction", 0.2, "--epochs", 2, "--batch-size", 16]
    return ["train", "cast", "--out", out, "--device", "cpu", "--log-every", 1, *small, *size, *more]


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[tuple[Any, ...]]:
    """What a log says, without times and memory."""
    return [event for event in losses(run) if ("event", "speed") not in event]


def network(**chosen: Any) -> SequenceClassifier:
    sizes = {name: chosen.pop(name, 0) for name in ("length", "vocabulary")}
    settings = resolve("cast", {"data": "digits", **SMALL, **chosen})
    model = build_model(settings, in_channels=1, num_classes=5, image_size=8, **sizes)
    assert isinstance(model, SequenceClassifier)
    return model


# ---- presets ---------------------------------------------------------------------------------------------------------


def test_values_of_cast() -> None:
    """The table as it is remembered."""
    table = {
        # depth, heads, width, hidden, embedding, clusters, size, norm, batch, rate, decay, epochs
        "listops": (4, 8, 64, 128, 256, 10, 200, "layer", 64, 1e-3, 1e-2, 60),
        "text": (4, 4, 64, 128, 256, 20, 200, "scale", 25, 1e-3, 1e-2, 25),
        "image": (2, 8, 128, 128, 256, 16, 64, "batch", 50, 5e-3, 1e-2, 200),
        "pathfinder": (2, 2, 32, 32, 64, 16, 64, "batch", 128, 1e-3, 1e-2, 200),
    }
    for task, row in table.items():
        s = resolve("cast", {"task": task})
        found = (s.depth, s.heads, s.width, s.ff_width, s.embed_width, s.clusters, s.cluster_size, s.norm)
        assert (*found, s.batch_size, s.lr, s.weight_decay, s.epochs) == row
        assert (s.model, s.stem, s.clustering, s.schedule, s.grad_clip) == ("cast", "plain", "topk", "linear", 1.0)


def test_values_of_mega() -> None:
    """Layers, width, normalisation, batch, rate, decay, epochs from the steps, of which some warm up."""
    table = {
        "listops": (6, 80, "layer", 64, 1e-3, 0.01, 90_000 * 64 / 96_000, 3 / 90),
        "text": (4, 128, "scale", 50, 4e-3, 0.01, 25_000 * 50 / 25_000, 10 / 25),
        "image": (8, 160, "batch", 50, 1e-2, 0.02, 180_000 * 50 / 45_000, 9 / 180),
        "pathfinder": (6, 128, "batch", 128, 1e-2, 0.01, 250_000 * 128 / 160_000, 50 / 250),
    }
    for task, (*row, epochs, warm) in table.items():
        s = resolve("cast-mega", {"task": task})
        assert [s.depth, s.width, s.norm, s.batch_size, s.lr, s.weight_decay] == row
        assert s.epochs == epochs and s.warmup_epochs == pytest.approx(warm * epochs)
        assert (s.momentum, s.beta2, s.grad_clip) == (0.9, 0.98, 1.0)


@pytest.mark.parametrize("preset", ["cast", "cast-mega"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("quick", [None, True])
def test_every_task_has_values(preset: str, task: str, quick: bool | None) -> None:
    settings = resolve(preset, {"task": task, "quick": quick, "width": 48, "heads": 2})
    assert settings.data == ("cifar10" if task == "image" else task) and settings.width == 48
    assert Settings.from_json(json.loads(json.dumps(settings.to_json())), "here") == settings
    assert settings.baseline() == replace(settings, model="transformer") and settings.baseline().is_baseline


def test_course_of_the_rate() -> None:
    """A straight line from 0 up, and one down to 0; Adam's betas."""
    settings = resolve("cast", {"task": "listops"})
    optimizer = make_optimizer(settings, nn.Linear(1, 1))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    scheduler = make_scheduler(settings, optimizer, 60 * 100)
    rates = []
    for _ in range(60 * 100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for step, wanted in ((0, 0.0), (100, 0.5), (200, 1.0), (3100, 0.5), (5999, 1 / 5800)):
        assert rates[step] == pytest.approx(1e-3 * wanted, abs=1e-12)


def test_the_warm_up_is_no_longer_than_a_third() -> None:
    assert resolve("cast", {"task": "text"}).warmup_epochs == 10  # of 25, as the preset has it
    assert resolve("cast", {"task": "text", "epochs": 9}).warmup_epochs == 3
    assert resolve("cast", {"task": "text", "epochs": 9, "warmup_epochs": 5}).warmup_epochs == 5


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--task", "listop"], "did you mean 'listops'"),
        (["--task", "listops", "--data", "cifar10"], "contradict"),
        (["--task", "image", "--data", "listops"], "contradict"),
        (["--task", "text"], "needs --data-dir"),
        (["--data", "listops", "--model", "resnet18"], "for the networks cast and transformer"),
        (["--data", "listops", "--augment", "flip"], "are for images"),
        (["--heads", "3"], "--heads 3 does not divide --width 16"),
        (["--clustering", "sa_top"], "did you mean 'sa_topk'"),
        (["--clustering", "sa_topk"], "have no room for 64 tokens"),
        (["--norm", "group"], "unknown normalisation"),
        (["--dropout", "1"], "--dropout must be at least 0 and below 1"),
        (["--task", "listops", "--min-length", "50", "--max-length", "51"], "no length is between"),
        (["--model", "transformer", "--baseline"], "--model is transformer already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words(sturdy: Sturdy, tmp_path: Path, more: list[str], part: str) -> None:
    result = sturdy(*words(tmp_path / "run", *more))
    assert_one_line_error(result, part, status=2)


def test_other_presets_refuse_symbols(sturdy: Sturdy, tmp_path: Path) -> None:
    for more, part in ((["--task", "listops"], "try preset cast"), (["--quick"], "presets that read sequences")):
        assert_one_line_error(sturdy("train", "pushpull", "--out", tmp_path / "run", *more), part, status=2)


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "scale", "batch"])
@pytest.mark.parametrize("clustering", ["topk", "sa_topk"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(norm: str, clustering: str, pooling: str) -> None:
    sizes = {"length": 40, "vocabulary": 16, "clusters": 3, "cluster_size": 14}
    model = network(norm=norm, clustering=clustering, pooling=pooling, **sizes).eval()
    symbols = torch.randint(1, 16, (3, 30))
    padded = nn.functional.pad(symbols, (0, 9))
    longer = torch.cat([padded, torch.randint(1, 16, (1, 39))])  # one that is as long as the others are padded to
    torch.testing.assert_close(model(padded), model(symbols), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model(longer)[:3], model(symbols), atol=2e-5, rtol=1e-4)


def test_one_cluster_of_everything_is_a_transformer() -> None:
    """With the weights that both start from, the gate and the surrogate aside, which then do nothing."""
    images = torch.rand(3, 1, 8, 8)
    for chosen in (
        {"clusters": 1, "cluster_size": 64},
        {"clusters": 3, "cluster_size": 64},
        {"clusters": 1, "cluster_size": 0},
    ):
        cast, plain = network(**chosen).eval(), network(model="transformer").eval()
        assert {name for name, _ in plain.named_parameters()} < {name for name, _ in cast.named_parameters()}
        torch.testing.assert_close(cast(images), plain(images), atol=1e-5, rtol=1e-4)


def test_both_networks_start_from_the_same_weights() -> None:
    cast, plain = (network(model=model, seed=3).state_dict() for model in ("cast", "transformer"))
    assert all(torch.equal(cast[name], tensor) for name, tensor in plain.items())
    extra = {name.split("self_attn.")[1] for name in cast.keys() - plain.keys()}
    assert extra == {"surrogates", "gate.weight", "gate.bias"}
    layers = [cast[f"layers.{i}.linear1.weight"] for i in range(2)]
    assert not torch.equal(*layers)


def test_reading_pixels() -> None:
    """Levels of grey by a table or as a number, in the order of reading, each with a place of its own."""
    level, value = network(pixels="token"), network(pixels="value")
    image = torch.rand(1, 1, 8, 8)
    dark = image.clone()
    dark[0, 0, 1, 2] = 0
    for model in (level, value):
        changed = (model._embed(image) != model._embed(dark)).any(2)[0]
        assert changed.nonzero().flatten().tolist() == [10]
    near = (image * 255).round() / 255
    assert torch.equal(level._embed(near), level._embed(image)) and not torch.equal(
        value._embed(near), value._embed(image)
    )
    with pytest.raises(UsageError, match="64 tokens got 81"):
        value(torch.rand(1, 1, 9, 9))


@pytest.mark.parametrize("model", ["cast", "transformer"])
def test_every_parameter_has_a_gradient(model: str) -> None:
    net = network(model=model, vocabulary=16, length=40, clustering="sa_topk", clusters=5, cluster_size=8, dropout=0.1)
    net(torch.randint(0, 16, (4, 40)).clamp(min=1)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_memberships() -> None:
    """Parts of all tokens, and against counting one by one."""
    index = torch.tensor([[[0, 2, 3], [2, 3, -1]], [[1, -1, -1], [0, 1, 2]]])
    assert clusters.counts(index, 5).tolist() == [[1, 0, 2, 2, 0], [1, 2, 1, 0, 0]]
    model = network(vocabulary=16, length=40)
    split = TokenSplit(torch.arange(100) % 15, torch.tensor([0, 30]), torch.tensor([30, 40]), torch.tensor([0, 1]))
    found = clusters.memberships(model, Loader(split, 2, CPU))
    assert [layer["layer"] for layer in found] == [0, 1]
    for layer in found:
        assert layer["none"] + layer["one"] + layer["several"] == pytest.approx(1, abs=1e-5)
        # 2 sequences of 4 clusters with 6 slots hold 48 places for 70 tokens.
        assert layer["none"] >= 22 / 70 - 1e-5 and layer["one"] + 2 * layer["several"] <= 48 / 70 + 1e-5
    whole = network(vocabulary=16, length=40, clustering="sa_topk", cluster_size=0)
    assert all(layer["one"] == 1 for layer in clusters.memberships(whole, Loader(split, 2, CPU)))
    assert clusters.memberships(network(model="transformer", vocabulary=16, length=40), Loader(split, 2, CPU)) == []


# ---- data ------------------------------------------------------------------------------------------------------------


def test_batches_of_similar_length() -> None:
    lengths = torch.randint(5, 100, (1000,), generator=torch.Generator().manual_seed(0))
    split = joined([bytes([i % 250]) * int(n) for i, n in enumerate(lengths)], [0] * 1000)
    loader = Loader(split, 16, CPU)
    batches = list(loader.training(1, 0))
    seen = torch.cat([batch.indices for batch in batches])
    assert len(batches) == 62 and len(seen.unique()) == 992
    padding = sum(int((batch.images == 0).sum()) for batch in batches) / sum(batch.images.numel() for batch in batches)
    assert padding < 0.1  # 0.45 in batches of any lengths
    for batch in batches[:3]:
        for row, i in zip(batch.images, batch.indices.tolist(), strict=True):
            assert row.tolist() == [1 + i % 250] * int(lengths[i]) + [0] * (len(row) - int(lengths[i]))
    again = list(loader.training(1, 0, first_step=40))
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, batches[40:], strict=True))
    assert not torch.equal(next(loader.training(1, 1)).indices, batches[0].indices)


def test_texts_from_a_folder_and_from_a_file(tmp_path: Path) -> None:
    texts = {
        "train": {"neg": ["bad", "worse"], "pos": ["fine"], "unsup": ["who knows"]},
        "test": {"neg": ["é"], "pos": ["ok"]},
    }
    for part, classes in texts.items():
        for name, lines in classes.items():
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i, line in enumerate(lines):
                (tmp_path / "set" / part / name / f"{i}.txt").write_text(line, encoding="utf8")
    train, test, classes = read_texts(tmp_path / "set")
    assert classes == ["neg", "pos"] and train.labels.tolist() == [0, 0, 1] and test.labels.tolist() == [0, 1]
    assert train.batch(torch.arange(3)).tolist() == [
        [1 + b for b in text] + [0] * (5 - len(text)) for text in (b"bad", b"worse", b"fine")
    ]
    assert test.batch(torch.tensor([0])).tolist() == [[1 + b for b in "é".encode()]]
    arrays = {}
    for part, split in (("train", train), ("test", test)):
        offsets = np.append(split.starts.numpy(), len(split.symbols))
        arrays.update(
            {f"text_{part}": split.symbols.numpy(), f"offsets_{part}": offsets, f"y_{part}": split.labels.numpy()}
        )
    np.savez(tmp_path / "set.npz", **arrays)
    again, _, names = read_texts(tmp_path / "set.npz")
    assert torch.equal(again.batch(torch.arange(3)), train.batch(torch.arange(3))) and names == ["0", "1"]
    assert train.at_most(3).batch(torch.tensor([1])).tolist() == [[1 + b for b in b"wor"]]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"text_train": np.zeros(3)}, "must hold bytes"),
        ({"offsets_train": np.array([0, 2, 1, 3])}, "must rise"),
        ({"y_train": np.array([0.5, 1.0])}, "class numbers"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_wrong_texts(sturdy: Sturdy, tmp_path: Path, damage: dict[str, Any], part: str) -> None:
    arrays: dict[str, Any] = {}
    for name in ("train", "test"):
        arrays[f"text_{name}"] = np.frombuffer(b"abc", np.uint8)
        arrays.update({f"offsets_{name}": np.array([0, 2, 3]), f"y_{name}": np.array([0, 1])})
    arrays = {name: value for name, value in {**arrays, **damage}.items() if value is not None}
    np.savez(tmp_path / "texts.npz", **arrays)
    options = ["--task", "text", "--data-dir", tmp_path / "texts.npz"]
    assert_one_line_error(sturdy(*words(tmp_path / "run", *options)), "texts.npz", part, status=1)


def test_grey_images(npz: Path) -> None:
    settings = resolve("pushpull", {"data": "npz", "data_dir": str(npz)})
    data = load_data(settings)
    colours = torch.rand(6, 3, 8, 8)
    split = replace(data.train, images=colours, labels=torch.zeros(6, dtype=torch.int64))
    found = grey(replace(data, train=split, channels=3))
    wanted = 0.299 * colours[:, 0] + 0.587 * colours[:, 1] + 0.114 * colours[:, 2]
    torch.testing.assert_close(found.train.images[:, 0], wanted)
    assert found.channels == 1 and (found.mean, found.std) == ((0.0,), (1.0,))
    bytes_ = grey(replace(data, train=replace(split, images=(colours * 255).to(torch.uint8)))).train.images
    assert bytes_.dtype == torch.uint8 and float((bytes_[:, 0] / 255 - wanted).abs().max()) < 0.008


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_run_and_resume_on_digits(sturdy: Sturdy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run logs, once resumed, what one that was left alone logs; then the two are compared."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sturdy(*words(whole, "--baseline")).status == 0
    advance, steps = RunProgress.advance, []

    def stop(self: RunProgress, *args: Any) -> None:
        steps.append(1)
        advance(self, *args)
        if len(steps) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "advance", stop)
    stopped = sturdy(*words(parts, "--baseline", "--checkpoint-minutes", 0))
    assert stopped.status == 130 and "--resume" in stopped.err
    monkeypatch.undo()
    monkeypatch.setenv("COLUMNS", "200")
    result = sturdy("train", "cast", "--out", parts, "--device", "cpu", "--baseline", "--resume")
    assert result.status == 0, result.err
    for text in ("cast topk", "transformer", "test accuracy", "ms a step", "tokens a second", "peak memory"):
        assert text in result.out
    for run in (Path(), Path("baseline")):
        assert numbers(whole / run) == numbers(parts / run)
    of_cast, of_plain = events(whole), events(whole / "baseline")
    assert {event["event"] for event in of_cast} == {"step", "epoch", "speed", "clusters", "end"}
    assert {event["event"] for event in of_plain} == {"step", "epoch", "speed", "end"}
    for log in (of_cast, of_plain):
        speed = [event for event in log if event["event"] == "speed"]
        assert len(speed) == 2 and all(event["step_ms"] > 0 and event["tokens_per_second"] > 0 for event in speed)
        assert all(event["peak_memory"] > 16 * 64 * 16 * 4 * SMALL["depth"] for event in speed)  # the tokens alone
    grouped = [event for event in of_cast if event["event"] == "clusters"]
    assert [event["epoch"] for event in grouped] == [0, 1]
    assert all(len(event["layers"]) == SMALL["depth"] for event in grouped)

    report = sturdy("compare", whole, "--out", tmp_path / "both")
    assert report.status == 0 and "cast topk" in report.out and "transformer" in report.out
    compared = json.loads((tmp_path / "both" / "compare.json").read_text())["runs"]
    assert compared["cast topk"]["test_accuracy"] == of_cast[-1]["test_accuracy"]
    assert len(compared["transformer"]["curve"]) == 2 and (tmp_path / "both" / "accuracy.png").stat().st_size > 5000
    three = sturdy("compare", whole, parts)
    assert three.status == 0 and "cast topk (whole)" in three.out and "transformer (parts)" in three.out

    assert sturdy("analyse", whole, "--device", "cpu", "--images", 20).status == 0
    names = ["accuracy.png", "clusters.png", "memberships.png", "places.png", "results.json"]
    assert sorted(path.name for path in (whole / "analyse").iterdir()) == names
    result = sturdy("analyse", whole, "--only", "heatmap")
    assert_one_line_error(result, "there are clusters, accuracy", status=2)
    corruptions = ("--corruptions", "contrast", "--device", "cpu")
    assert sturdy("evaluate", whole, *corruptions).status == 0
    again = sturdy("train", "cast", "--task", "listops", "--out", whole, "--resume")
    assert_one_line_error(again, "data=digits, not listops", status=2)


def test_listops_and_its_floors(sturdy: Sturdy, tmp_path: Path) -> None:
    """Drawn, trained on with its Transformer, and drawn once only."""
    run = tmp_path / "run"
    size = ["--train-examples", 300, "--test-examples", 50, "--min-length", 10, "--max-length", 60]
    options = ["--task", "listops", "--data-dir", tmp_path / "data", "--clustering", "sa_topk", "--cluster-size", 0]
    result = sturdy(*words(run, *options, *size, "--baseline", "--workers", 0))
    assert result.status == 0, result.err
    for text in ("guessing by majority", "guessing by root", "guessing by one level", "transformer"):
        assert text in result.out
    config = json.loads((run / "config.json").read_text())
    assert (config["data"]["train"], config["data"]["val"], config["data"]["test"]) == (100, 40, 40)
    assert config["data"]["vocabulary"] == 16 and config["data"]["max_length"] == 59
    assert set(config["data"]["floors"]) == {"majority", "root", "one_level"}
    (path,) = (tmp_path / "data").iterdir()
    assert path.name == "listops-400-10-60-seed0.npz"
    grouped = [event for event in events(run) if event["event"] == "clusters"]
    assert all(layer["one"] == 1 for event in grouped for layer in event["layers"])
    assert sturdy("analyse", run, "--device", "cpu").status == 0
    names = ["accuracy.png", "clusters.png", "memberships.png", "results.json"]
    assert sorted(p.name for p in (run / "analyse").iterdir()) == names
    assert_one_line_error(sturdy("evaluate", run), "corruptions are for images", status=2)


def test_pathfinder_as_a_sequence_and_as_an_image(sturdy: Sturdy, tmp_path: Path) -> None:
    """The network of the paper's size for a few steps; another preset sees the same images whole."""
    data = ["--data", "pathfinder", "--data-dir", tmp_path, "--train-examples", 64, "--test-examples", 8]
    one = ["--epochs", 1, "--batch-size", 16, "--device", "cpu", "--workers", 0]
    result = sturdy("train", "cast", "--out", tmp_path / "cast", *data, *one)
    assert result.status == 0, result.err
    result = sturdy("train", "pushpull", "--out", tmp_path / "cnn", *data, *one)
    assert result.status == 0, result.err
    assert json.loads((tmp_path / "cnn" / "config.json").read_text())["settings"]["model"] == "small-cnn"


def test_quick_text(sturdy: Sturdy, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    random = np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 20)):
        lengths = random.integers(30, 60, count)
        labels = random.integers(0, 2, count)
        text = [random.integers(97 + 10 * label, 107 + 10 * label, n) for n, label in zip(lengths, labels, strict=True)]
        arrays[f"text_{part}"] = np.concatenate(text).astype(np.uint8)
        arrays.update({f"offsets_{part}": np.cumsum([0, *lengths]), f"y_{part}": labels})
    np.savez(tmp_path / "texts.npz", **arrays)
    options = ["--task", "text", "--data-dir", tmp_path / "texts.npz", "--quick", "--epochs", 4, "--batch-size", 8]
    small = ["--width", 16, "--embed-width", 0, "--device", "cpu", "--lr", 1e-2, "--workers", 0]
    result = sturdy("train", "cast", "--out", tmp_path / "run", *options, *small)
    assert result.status == 0, result.err
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["max_length"] == 500 and settings["quick"]
    assert events(tmp_path / "run")[-1]["test_accuracy"] > 0.8


@pytest.mark.parametrize("clustering", ["topk", "sa_topk"])
def test_places_of_squares_are_learned(sturdy: Sturdy, npz: Path, tmp_path: Path, clustering: str) -> None:
    """Four classes, from pixels one by one; chance is 25 %."""
    small = ["--width", 32, "--depth", 1, "--clusters", 4, "--cluster-size", 16, "--clustering", clustering]
    data = ["--data", "npz", "--data-dir", npz, "--epochs", 16, "--batch-size", 16, "--val-fraction", 0]
    rate = ["--lr", 1e-2, "--norm", "layer", "--pixels", "value", "--embed-width", 0, "--ff-width", 64, "--heads", 2]
    result = sturdy("train", "cast", "--out", tmp_path / "run", "--device", "cpu", *small, *data, *rate)
    assert result.status == 0, result.err
    assert events(tmp_path / "run")[-1]["test_accuracy"] > 0.6


# ---- time and memory -------------------------------------------------------------------------------------------------


def test_peak_memory(capfd: pytest.CaptureFixture[str]) -> None:
    """Two arrays that live together count together, one after the other once."""
    mib = 2**20

    def together() -> int:
        a, b = torch.zeros(mib // 4), torch.zeros(mib // 4)
        return len(a) + len(b)

    def in_turn() -> int:
        return sum(len(torch.zeros(mib // 4)) for _ in range(3))

    together()
    both, peak = peak_memory(together, torch.device("cpu"))
    assert both == mib // 2 and peak == pytest.approx(2 * mib, rel=0.01)
    _, peak = peak_memory(in_turn, torch.device("cpu"))
    assert peak == pytest.approx(mib, rel=0.01)
    assert capfd.readouterr().err == ""


def test_step_meter() -> None:
    meter = StepMeter(torch.device("cpu"))
    assert [meter.run(lambda i=i: i, 10) for i in range(2)] == [0, 1]
    first = meter.report()
    assert set(first) == {"peak_memory"}  # the first step warms up, the second is measured for memory
    assert [meter.run(lambda i=i: i, 10) for i in range(3)] == [0, 1, 2]
    assert set(meter.report()) == {"step_ms", "tokens_per_second", "peak_memory"}
