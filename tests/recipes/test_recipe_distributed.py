"""Data parallelism: two gloo processes on the CPU, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_support import ENVIRONMENT, losses, tiny

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SCRIPT = """
import os, sys, torch
from pathlib import Path
from torch.nn import functional as F
from sturdy.recipes import distributed
from sturdy.recipes.data import load_data
from sturdy.recipes.engine import Trainer, normalise
from sturdy.recipes.presets import resolve
from sturdy.recipes.runfolder import RunFolder

settings = resolve("pushpull", {"data": "npz", "data_dir": sys.argv[1], "batch_size": 16, "seed": 3})
with distributed.session("cpu") as world:
    data = load_data(settings)
    trainer = Trainer(settings, data, RunFolder(Path(sys.argv[2])), world)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = next(trainer.loader.training(settings.seed, 0))
    trainer._train_step(batch, 0)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    # The same share of the batch through the bare network, without any exchange.
    trainer.model.load_state_dict(start)
    trainer.model.train().zero_grad()
    F.cross_entropy(trainer.model(normalise(batch.images, data)), batch.labels).backward()
    alone = {name: p.grad for name, p in trainer.model.named_parameters()}
    torch.save({"gradients": gradients, "alone": alone, "indices": batch.indices}, f"{sys.argv[2]}/{world.rank}.pt")
os._exit(0)  # as the command does: gloo's threads and the end of the interpreter do not go together
"""


def torchrun(words: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *map(str, words)], env=ENVIRONMENT, capture_output=True, text=True, timeout=180, check=False
    )


def test_gradients_are_averaged(npz: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun([script, npz, tmp_path])
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert set(first["indices"].tolist()).isdisjoint(second["indices"].tolist())
    assert len(first["indices"]) == len(second["indices"]) == 8
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])
        mean = (first["alone"][name] + second["alone"][name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(first["alone"][name], second["alone"][name]) for name in first["alone"])


def test_runs_of_two_processes(npz: Path, tmp_path: Path) -> None:
    """One log, one message; interrupted between two epochs and resumed it is that of an uninterrupted run."""
    module = ["-m", "sturdy.recipes.cli"]
    done = torchrun([*module, *tiny(npz, tmp_path / "whole")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    events = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 16))
    state = torch.load(tmp_path / "whole" / "last" / "state.pt", weights_only=True)
    assert state["sums"].shape == (2, 3)

    # As a process killed in the second epoch leaves it: the log is ahead of the checkpoint, its last line cut.

    run = tmp_path / "run"
    stopper = tmp_path / "stop.py"
    stopper.write_text(
        "import sys\n"
        "from sturdy.recipes import cli, progress\n"
        "advance, count = progress.RunProgress.advance, [0]\n"
        "def counted(self, *args):\n"
        "    count[0] += 1\n"
        "    if count[0] == 8:\n"
        "        import os; os._exit(9)\n"
        "    advance(self, *args)\n"
        "progress.RunProgress.advance = counted\n"
        "cli.main()\n"
    )
    assert torchrun([stopper, *tiny(npz, run)]).returncode != 0
    with open(run / "log.jsonl", "a") as log:
        log.write('{"event": "st')
    done = torchrun([*module, *tiny(npz, run, "--resume")])
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(tmp_path / "whole")
    assert sorted(os.listdir(run)) == ["best", "config.json", "last", "log.jsonl"]


def test_masks_and_auxiliary_images_in_two_processes(npz: Path, tmp_path: Path) -> None:
    """The first process finds the masks while the other waits; three views go through both in one pass."""
    words = ["-m", "sturdy.recipes.cli", "train", "dfmx", *tiny(npz, tmp_path / "run", "--epochs", 1)[2:]]
    done = torchrun([*words, "--augment", "crop,dfmx,afa", "--objective", "jsd", "--val-fraction", 0.3])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 2  # of the baseline, too
    assert (tmp_path / "run" / "dfms.npz").exists()


def test_batch_must_divide(npz: Path, tmp_path: Path) -> None:
    from sturdy.recipes.data import load_data
    from sturdy.recipes.distributed import World
    from sturdy.recipes.engine import Trainer
    from sturdy.recipes.errors import UsageError
    from sturdy.recipes.presets import resolve
    from sturdy.recipes.runfolder import RunFolder

    settings = resolve("pushpull", {"data": "npz", "data_dir": str(npz), "batch_size": 15})
    with pytest.raises(UsageError, match="--batch-size 15 does not divide among 2 processes"):
        Trainer(settings, load_data(settings), RunFolder(tmp_path), World(torch.device("cpu"), 1, 2))


def test_missing_device() -> None:
    from sturdy.recipes.distributed import pick_device
    from sturdy.recipes.errors import UsageError

    with pytest.raises(UsageError, match=r"unknown device 'cudo'; did you mean 'cuda'"):
        pick_device("cudo")
    with pytest.raises(UsageError, match=r"not a device|there are only|sees no CUDA"):
        pick_device("cuda:99")
