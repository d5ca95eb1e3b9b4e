"""Writing files so that a reader, or a later run, never meets half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sturdy.recipes.errors import RecipeError, one_line


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, content: bytes) -> None:
    """Write and flush to the disk. The file may be partial if the process dies: write aside, then rename."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by the new content in one step; on failure what was there stays."""
    aside = path.with_name(path.name + ".new")
    try:
        write_durably(aside, content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RecipeError(f"cannot write {path}: {error.strerror or one_line(error)}") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a :class:`RecipeError` that names it."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror or one_line(error)}") from None
    except ValueError as error:
        raise RecipeError(f"{path} is damaged: {one_line(error)}") from None
