"""Checkpoints: readable by others, never lost, never half there."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn

from sturdy.recipes.checkpoint import find_checkpoint, load_state, load_weights, recover, save_checkpoint
from sturdy.recipes.errors import RecipeError
from sturdy.recipes.files import write_atomically, write_json

NOTE = {"model": "linear", "stem": "plain", "step": 1}


def network(value: float = 1.0, features: int = 3) -> nn.Linear:
    model = nn.Linear(features, 2)
    nn.init.constant_(model.weight, value)
    return model


def save(folder: Path, value: float) -> None:
    save_checkpoint(folder, network(value).state_dict(), {"value": value}, NOTE)


def value_of(folder: Path) -> float:
    """The value a complete checkpoint was saved with; fails if its two files do not belong together."""
    model = network(0.0)
    load_weights(folder, model)
    value = load_state(folder)["value"]
    assert (model.weight == value).all()
    return value


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    save(tmp_path / "last", 2.0)
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["model.safetensors", "state.pt"]
    with safetensors.safe_open(tmp_path / "last" / "model.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {"weight", "bias"}
        assert (file.get_tensor("weight") == 2.0).all()
        assert json.loads(file.metadata()["sturdy"]) == NOTE
    assert torch.load(tmp_path / "last" / "state.pt", weights_only=True) == {"value": 2.0}
    assert os.listdir(tmp_path) == ["last"]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int, partial: bool) -> Callable[[], int]:
    """End the process before the given call that changes the disk; an interrupted write may leave half a file."""
    count = 0

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                raise Killed
            return function(*args, **options)

        return call

    class HalfFile:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> HalfFile:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> int:
            nonlocal count
            count += 1
            if count == moment:
                self.file.write(content[: len(content) // 2] if partial else b"")
                raise Killed
            return self.file.write(content)

        def flush(self) -> None:
            self.file.flush()

        def fileno(self) -> int:
            return self.file.fileno()

    real_open = builtins.open
    monkeypatch.setattr("sturdy.recipes.files.open", lambda *a, **k: HalfFile(real_open(*a, **k)), raising=False)
    for name in ("rename", "fsync"):
        monkeypatch.setattr(os, name, guard(getattr(os, name)))
    monkeypatch.setattr(Path, "mkdir", guard(Path.mkdir))
    real_remove = shutil.rmtree

    def remove_in_two_parts(path: Path, **options: Any) -> None:
        guard(lambda: None)()
        next(path.iterdir()).unlink(missing_ok=True)
        guard(real_remove)(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_in_two_parts)
    return lambda: count


@pytest.mark.parametrize("partial", [False, True])
def test_killed_at_any_moment(tmp_path: Path, partial: bool) -> None:
    moment, kills = 0, 0
    while True:
        moment += 1
        folder = tmp_path / str(moment) / "last"
        save(folder, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            reached = kill_at(patch, moment, partial)
            try:
                save(folder, 2.0)
            except Killed:
                kills += 1
        found = find_checkpoint(folder)
        assert found is not None
        value = value_of(found)
        assert value in (1.0, 2.0)
        recover(folder)
        assert value_of(folder) == value
        assert os.listdir(folder.parent) == ["last"]
        save(folder, 3.0)
        assert value_of(folder) == 3.0
        if reached() < moment:
            break
    assert kills >= 10  # two files and a folder written and flushed, two renames, one removal


def test_killed_in_the_first_checkpoint(tmp_path: Path) -> None:
    for moment in range(1, 6):
        folder = tmp_path / str(moment) / "last"
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment, True)
            with pytest.raises(Killed):
                save(folder, 1.0)
        assert find_checkpoint(folder) is None
        folder.parent.mkdir(exist_ok=True, parents=True)
        save(folder, 2.0)
        assert value_of(folder) == 2.0


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_recovery_itself_may_be_killed(tmp_path: Path, moment: int) -> None:
    folder = tmp_path / "last"
    save(tmp_path / "last.old", 1.0)
    save(tmp_path / "last.new", 2.0)
    assert value_of(find_checkpoint(folder) or folder) == 2.0
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, moment, True)
        with pytest.raises(Killed):
            recover(folder)
    assert value_of(find_checkpoint(folder) or folder) == 2.0
    recover(folder)
    assert os.listdir(tmp_path) == ["last"] and value_of(folder) == 2.0


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "last"
    save(folder, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(
            RecipeError, match=r"cannot write checkpoint .*No space left on device; .* intact in .*last"
        ):
            save(folder, 2.0)
    assert value_of(folder) == 1.0
    assert os.listdir(tmp_path) == ["last"]


def test_full_disk_keeps_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(RecipeError, match=r"cannot write .*results.json: No space left"):
            write_atomically(path, "other")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["results.json"]


def test_another_network(tmp_path: Path) -> None:
    save(tmp_path / "last", 1.0)
    with pytest.raises(RecipeError, match=r"another network: 'weight' is \(2, 3\) there, \(2, 5\) here.*linear"):
        load_weights(tmp_path / "last", network(features=5))
    with pytest.raises(RecipeError, match=r"another network: it has no '0.weight'"):
        load_weights(tmp_path / "last", nn.Sequential(network()))
    with pytest.raises(RecipeError, match="another network: it has 'bias' as well"):
        load_weights(tmp_path / "last", nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_files(tmp_path: Path, name: str, kept: int) -> None:
    save(tmp_path / "last", 1.0)
    path = tmp_path / "last" / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RecipeError, match=f"cannot read .*{name}: truncated or damaged") as error:
        value_of(tmp_path / "last")
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    save(tmp_path / "last", 1.0)
    (tmp_path / "last" / "state.pt").unlink()
    with pytest.raises(RecipeError, match=r"state.pt: No such file"):
        load_state(tmp_path / "last")


def test_state_runs_no_code(tmp_path: Path) -> None:
    save(tmp_path / "last", 1.0)
    torch.save({"harm": os.system}, tmp_path / "last" / "state.pt")
    with pytest.raises(RecipeError, match=r"state.pt"):
        load_state(tmp_path / "last")
