"""Checkpoints: a folder with ``model.safetensors`` (the weights) and ``state.pt`` (what else a resume needs).

A new checkpoint is written aside as ``NAME.new`` and flushed. Only then is the present one renamed to ``NAME.old``,
the new one to ``NAME``, and the old one removed. So at every moment one complete checkpoint exists:

=========================  ====================================================
found                      complete checkpoint
=========================  ====================================================
``NAME``                   ``NAME`` (a ``NAME.new`` beside it may be partial)
``NAME.old``, ``NAME.new`` ``NAME.new``, since the old one moves only after it was flushed
``NAME.old``               ``NAME.old``
``NAME.new``               none: the first checkpoint was not finished
=========================  ====================================================
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sturdy.recipes.errors import RecipeError, one_line
from sturdy.recipes.files import sync_folder, write_durably

WEIGHTS = "model.safetensors"
STATE = "state.pt"


def find_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint that goes by the name ``folder``, by the table above; nothing is changed."""
    old, new = _old(folder), _new(folder)
    if folder.is_dir():
        return folder
    if old.is_dir():
        return new if new.is_dir() else old
    return None


def recover(folder: Path) -> None:
    """Finish or undo a swap that a killed process left half done. Only for the process that owns the run."""
    found = find_checkpoint(folder)
    if found is not None and found != folder:
        os.rename(found, folder)
    for leftover in (_old(folder), _new(folder)):
        if leftover.exists():
            shutil.rmtree(leftover)


def save_checkpoint(folder: Path, weights: dict[str, Tensor], state: dict[str, Any], note: dict[str, Any]) -> None:
    """Replace the checkpoint ``folder``; if that fails, for example on a full disk, the present one stays.

    Args:
        folder: ``.../last`` or ``.../best``.
        weights: Name to tensor, for ``model.safetensors``.
        state: Tensors, numbers, strings and containers of them, for ``state.pt``.
        note: JSON values, for the metadata of ``model.safetensors``.
    """
    new, old = _new(folder), _old(folder)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        recover(folder)
        new.mkdir(parents=True)
        metadata = {"format": "pt", "sturdy": json.dumps(note)}
        write_durably(new / WEIGHTS, safetensors.torch.save(plain, metadata=metadata))
        write_durably(new / STATE, buffer.getvalue())
        sync_folder(new)
        sync_folder(folder.parent)
        if folder.is_dir():
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)
        if old.is_dir():
            shutil.rmtree(old)
    except OSError as error:
        if not old.exists():  # else `new` is complete, and may be the one to go on with
            shutil.rmtree(new, ignore_errors=True)
        kept = find_checkpoint(folder)
        also = f"; the checkpoint before it is intact in {kept}" if kept else ""
        raise RecipeError(f"cannot write checkpoint {folder}: {error.strerror or one_line(error)}{also}") from None


def load_weights(checkpoint: Path, model: nn.Module) -> dict[str, Any]:
    """Load the weights of a checkpoint into ``model`` and return the note saved with them.

    Raises:
        RecipeError: the file is missing or truncated, or belongs to another network.
    """
    path = checkpoint / WEIGHTS
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("sturdy", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RecipeError(f"cannot read {path}: {_reason(error)}") from None
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in weights:
            raise RecipeError(f"{path} belongs to another network: it has no {name!r}{_trained_as(note)}")
        if weights[name].shape != tensor.shape:
            raise RecipeError(
                f"{path} belongs to another network: {name!r} is {tuple(weights[name].shape)} there, "
                f"{tuple(tensor.shape)} here{_trained_as(note)}"
            )
    for name in weights:
        if name not in wanted:
            raise RecipeError(f"{path} belongs to another network: it has {name!r} as well{_trained_as(note)}")
    model.load_state_dict(weights)
    return note


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read ``state.pt`` without running code from it."""
    path = checkpoint / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise RecipeError(f"cannot read {path}: {_reason(error)}") from None
    if not isinstance(state, dict):
        raise RecipeError(f"{path} is not the state of a run")
    return state


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    return f"truncated or damaged ({one_line(error)[:120]})"


def _trained_as(note: dict[str, Any]) -> str:
    return f" (trained as {note['model']}, stem {note['stem']})" if {"model", "stem"} <= note.keys() else ""


def _new(folder: Path) -> Path:
    return folder.with_name(folder.name + ".new")


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")
