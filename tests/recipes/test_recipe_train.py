"""Training: what a run writes, and that stopping and resuming it changes no loss."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from recipe_support import ENVIRONMENT, PYTHON, Result, assert_one_line_error, losses, run_process, tiny
from torch.nn import functional as F

from sturdy.recipes.progress import RunProgress

Sturdy = Callable[..., Result]

COMBINATIONS = [
    ("sgd", "onecycle", "fp32"),
    ("sgd", "cosine", "bf16"),
    ("adamw", "onecycle", "bf16"),
    ("adamw", "cosine", "fp16"),
]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Raise ``error`` when the given number of steps is done, counted over a whole command."""
    advance = RunProgress.advance
    count = 0

    def counted(self: RunProgress, *args: Any) -> None:
        nonlocal count
        count += 1
        advance(self, *args)
        if count == step:
            raise error

    monkeypatch.setattr(RunProgress, "advance", counted)


def test_run_folder(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    result = sturdy(*tiny(npz, run))
    assert result.status == 0 and result.err == "" and "test accuracy" in result.out
    assert sorted(os.listdir(run)) == ["best", "config.json", "last", "log.jsonl"]
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["model"] == "small-cnn" and config["settings"]["data_dir"] == str(npz)
    assert config["data"]["train"] == 86 and config["data"]["val"] == 10 and config["data"]["test"] == 40
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(1, 16))
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [0, 1, 2]
    assert events[-1]["event"] == "end" and 0 <= events[-1]["test_accuracy"] <= 1
    epochs = [event for event in events if event["event"] == "epoch"]
    by_step = [event["loss"] for event in events if event["event"] == "step"]
    for i, epoch in enumerate(epochs):
        assert epoch["train_loss"] == pytest.approx(np.mean(by_step[5 * i : 5 * i + 5]), rel=1e-6)
    state = torch.load(run / "last" / "state.pt", weights_only=True)
    assert state["step"] == 15
    best = max(epochs, key=lambda event: event["val_accuracy"])
    assert torch.load(run / "best" / "state.pt", weights_only=True)["step"] == best["step"]


def test_it_learns(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    assert sturdy(*tiny(npz, tmp_path / "run", "--epochs", 8)).status == 0
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["test_accuracy"] > 0.9


def test_baseline_differs_in_the_stem_alone(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rate = ("--lr", 1e-30, "--weight-decay", 0)  # keeps the weights as they were at the start
    assert sturdy(*tiny(npz, run, "--baseline", "--avg-kernel-size", 3, *rate)).status == 0
    here, there = (json.loads((path / "config.json").read_text())["settings"] for path in (run, run / "baseline"))
    assert {name for name in here if here[name] != there[name]} == {"stem"}
    push, plain = (safetensors.torch.load_file(p / "last" / "model.safetensors") for p in (run, run / "baseline"))
    assert push.keys() == plain.keys()
    assert all(torch.equal(push[name], plain[name]) for name in push if not name.startswith("bn"))
    assert not torch.equal(push["bn1.running_mean"], plain["bn1.running_mean"])


def test_trainable_inhibition_is_trained(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    assert sturdy(*tiny(npz, tmp_path / "run", "--trainable-inhibition")).status == 0
    weights = safetensors.torch.load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert weights["conv1.inhibition"].shape == (32,)


def test_first_losses_are_those_of_plain_torch(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    """Two steps of SGD written out by hand give the logged losses."""
    from sturdy.recipes.distributed import World
    from sturdy.recipes.engine import Trainer
    from sturdy.recipes.loader import Loader
    from sturdy.recipes.presets import resolve
    from sturdy.recipes.runfolder import RunFolder
    from sturdy.recipes.train import load_data

    chosen = {"data": "npz", "data_dir": str(npz), "batch_size": 16, "epochs": 1, "stem": "plain", "log_every": 1}
    settings = resolve("pushpull", {**chosen, "schedule": "cosine", "lr": 0.1, "weight_decay": 0.01})
    data = load_data(settings)
    trainer = Trainer(settings, data, RunFolder(tmp_path), World(torch.device("cpu")))
    twin = Trainer(settings, data, RunFolder(tmp_path), World(torch.device("cpu"))).model
    trainer.run()
    logged = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()[:2]]
    momentum = {p: torch.zeros_like(p) for p in twin.parameters()}
    batches = Loader(data.train, 16, World(torch.device("cpu"))).training(settings.seed, 0)
    for step, expected in enumerate(logged):
        batch = next(batches)
        x = (batch.images - data.mean[0]) / data.std[0]
        loss = F.cross_entropy(twin.train()(x), batch.labels)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 5))
        for p, gradient in zip(momentum, torch.autograd.grad(loss, list(momentum)), strict=True):
            momentum[p] = 0.9 * momentum[p] + gradient + 0.01 * p.detach()
            p.data -= lr * momentum[p]


@pytest.mark.parametrize(("optimizer", "schedule", "precision"), COMBINATIONS)
def test_interrupted_and_resumed_run_logs_the_same_losses(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    optimizer: str, schedule: str, precision: str,
) -> None:  # fmt: skip
    more = ["--optimizer", optimizer, "--schedule", schedule, "--precision", precision, "--augment", "crop,flip"]
    more += ["--lr", "0.01", "--baseline", "--trainable-inhibition"]
    assert sturdy(*tiny(npz, tmp_path / "whole", *more)).status == 0
    run = tmp_path / "run"
    # Stopped before the first checkpoint, within an epoch with and without a checkpoint there, after an epoch,
    # and in the baseline.
    for stop, minutes in ((3, 10), (9, 10), (4, 0), (2, 10), (12, 10)):
        resume = ["--resume"] if run.exists() else []
        with monkeypatch.context() as patch:
            stop_at(patch, stop, KeyboardInterrupt())
            result = sturdy(*tiny(npz, run, *more, "--checkpoint-minutes", minutes, *resume))
        assert_one_line_error(result, "interrupted; continue with: sturdy train pushpull --out", status=130)
        assert result.err.strip().endswith(f"{run} --baseline --resume")
    assert sturdy("train", "pushpull", "--out", run, "--baseline", "--resume", "--device", "cpu").status == 0
    assert losses(run) == losses(tmp_path / "whole")
    assert losses(run / "baseline") == losses(tmp_path / "whole" / "baseline")
    for name in ("last", "best"):
        a, b = (safetensors.torch.load_file(path / name / "model.safetensors") for path in (run, tmp_path / "whole"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_kill_9_and_resume(npz: Path, tmp_path: Path) -> None:
    """Processes killed from outside at no chosen moment, most of them while a checkpoint is written."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ["--epochs", 6, "--checkpoint-minutes", 0]
    assert run_process(tiny(npz, whole, *more)).returncode == 0
    for kill in range(2):
        words = tiny(npz, run, *more, *(["--resume"] if run.exists() else []))
        process = subprocess.Popen([*PYTHON, *map(str, words)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        log = run / "log.jsonl"
        before = len(losses(run)) if log.exists() else 0
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= before + 4:
                break
            time.sleep(0.001)
        time.sleep(0.004 * kill)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = run_process(["train", "pushpull", "--out", run, "--resume", "--device", "cpu"])
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(whole)
    assert sorted(os.listdir(run)) == ["best", "config.json", "last", "log.jsonl"]


def test_end_by_sigterm(npz: Path, tmp_path: Path) -> None:
    words = [*PYTHON, *map(str, tiny(npz, tmp_path / "run", "--epochs", 100000))]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "last").exists() and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    err = process.communicate(timeout=60)[1]
    assert_one_line_error(Result(process.returncode, "", err), "interrupted; continue with", status=143)


def test_complete_run_is_left_alone(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sturdy(*tiny(npz, run))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = sturdy(*tiny(npz, run, "--resume"))
    assert result.status == 0 and "was complete already" in result.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_baseline_can_be_added_later(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    sturdy(*tiny(npz, tmp_path / "run"))
    sturdy(*tiny(npz, tmp_path / "both", "--baseline"))
    assert sturdy(*tiny(npz, tmp_path / "run", "--baseline", "--resume")).status == 0
    assert losses(tmp_path / "run" / "baseline") == losses(tmp_path / "both" / "baseline")


def test_existing_run_needs_resume(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sturdy(*tiny(npz, run))
    before = losses(run)
    assert_one_line_error(sturdy(*tiny(npz, run)), "already holds a run; add --resume")
    assert losses(run) == before
    assert_one_line_error(sturdy(*tiny(npz, tmp_path / "none", "--resume")), "nothing to resume")
    assert not (tmp_path / "none").exists()


def test_resume_with_other_settings(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sturdy(*tiny(npz, run))
    result = sturdy(*tiny(npz, run, "--resume", "--model", "resnet18"))
    assert_one_line_error(result, "was trained with model=small-cnn, not resnet18")
    assert_one_line_error(sturdy(*tiny(npz, run, "--resume", "--augment", "flip")), "augment=none, not flip")


def test_resume_with_another_data_set(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 7, KeyboardInterrupt())
        sturdy(*tiny(npz, run))
    with np.load(npz) as file:
        arrays = {key: file[key][:-1] if key.endswith("_test") else file[key] for key in file.files}
    np.savez(tmp_path / "other.npz", **arrays)
    result = sturdy(*tiny(tmp_path / "other.npz", run, "--resume"))
    assert_one_line_error(result, "the data set has changed (test was 40, is 39)")
    (tmp_path / "moved.npz").write_bytes(npz.read_bytes())
    assert sturdy(*tiny(tmp_path / "moved.npz", run, "--resume")).status == 0


def test_resume_from_another_network(
    sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 7, KeyboardInterrupt())
        sturdy(*tiny(npz, run))
    sturdy(*tiny(npz, tmp_path / "other", "--model", "resnet18", "--epochs", 1))
    (run / "last").rename(tmp_path / "kept")
    (tmp_path / "other" / "last").rename(run / "last")
    before = losses(run)
    result = sturdy(*tiny(npz, run, "--resume"))
    assert_one_line_error(result, "model.safetensors belongs to another network", "trained as resnet18")
    assert losses(run) == before


def test_not_finite_loss(sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    from sturdy.recipes import engine

    real = F.cross_entropy
    calls = 0

    def diverging(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return real(logits, labels, **options) * (math.nan if calls > 7 else 1.0)

    monkeypatch.setattr(engine.F, "cross_entropy", diverging)
    result = sturdy(*tiny(npz, run))
    assert_one_line_error(result, "the loss is nan at step 8", "lower --lr", f"last good checkpoint is {run / 'last'}")
    weights = safetensors.torch.load_file(run / "last" / "model.safetensors")
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())
    monkeypatch.undo()
    assert sturdy("train", "pushpull", "--out", run, "--resume", "--device", "cpu").status == 0
    sturdy(*tiny(npz, tmp_path / "whole"))
    assert losses(run) == losses(tmp_path / "whole")


def test_full_disk_in_a_real_process(sturdy: Sturdy, npz: Path, tmp_path: Path) -> None:
    """A file size limit makes the operating system refuse to write, as a full disk does."""
    run = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = [*PYTHON, *map(str, tiny(npz, run))]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert_one_line_error(Result(done.returncode, "", done.stderr), "cannot write checkpoint", os.strerror(errno.EFBIG))
    assert sorted(os.listdir(run)) == ["config.json", "log.jsonl"]
    assert sturdy(*tiny(npz, run, "--resume")).status == 0
    sturdy(*tiny(npz, tmp_path / "whole"))
    assert losses(run) == losses(tmp_path / "whole")


def test_full_disk_later(sturdy: Sturdy, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, fsync, calls = tmp_path / "run", os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_one_line_error(sturdy(*tiny(npz, run)), "No space left on device")
    assert sturdy(*tiny(npz, run, "--resume")).status == 0
    sturdy(*tiny(npz, tmp_path / "whole"))
    assert losses(run) == losses(tmp_path / "whole")


def test_progress_on_a_terminal(npz: Path, tmp_path: Path) -> None:
    """On a terminal there is a bar with a rate and the time left, elsewhere plain lines."""
    import io

    from rich.console import Console

    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=140)
        with RunProgress(console, "pushpull", total=4, done=1) as progress:
            for _ in range(3):
                time.sleep(0.06)
                progress.advance(16, "loss 0.5")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
        assert "pushpull" in text and "4/4" in text and "images/s" in text and "left" in text and "loss 0.5" in text
        assert ("\r" in stream.getvalue() or "\x1b" in stream.getvalue()) == terminal
