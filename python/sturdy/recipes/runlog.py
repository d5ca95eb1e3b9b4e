"""The log of a run: JSON lines, one object per event, readable while the run goes on.

Events (key ``event``): ``step`` every few steps, ``epoch`` after each epoch, ``resume`` where a run was taken up
again, ``end``. A resumed run first cuts the log back to where its checkpoint was made, so no step is in it twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sturdy.recipes.errors import RecipeError, one_line


class RunLog:
    """Appends events to a file.

    Args:
        path: The file; made if it is not there.
        keep: Number of bytes to keep of what it holds; the rest is cut off.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close())
            if self._file.tell() < keep:
                raise RecipeError(f"{path} is shorter than at the last checkpoint; was it edited?")
            self._file.truncate(keep)
        except OSError as error:
            raise self._failure(error) from None

    def write(self, event: str, **values: Any) -> None:
        """Append one event and hand it to the operating system, so that a killed process loses nothing."""
        line = memoryview((json.dumps({"event": event, **values}) + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._failure(error) from None

    def sync(self) -> int:
        """Flush to the disk and return the length in bytes, to be kept in a checkpoint."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from None
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _failure(self, error: OSError) -> RecipeError:
        return RecipeError(f"cannot write {self.path}: {error.strerror or one_line(error)}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All events of a log; a last line that a killed process left unfinished is not one."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            events.append(json.loads(line))
        except ValueError:
            raise RecipeError(f"{path} line {number} is not JSON") from None
    return events
