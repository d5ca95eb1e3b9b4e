"""Data sets that are drawn here, by several processes, and kept in a file.

A set is drawn in blocks that have random numbers of their own, so the file is the same, byte by byte, for any number of
processes. Each block is kept as it is done, and an interrupted run goes on with those that are missing; the whole set
then replaces them by a rename.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sturdy.recipes import listops, pathfinder
from sturdy.recipes.errors import RecipeError, one_line
from sturdy.recipes.files import sync_folder, write_durably

Arrays = dict[str, Any]
MakeBlock = Callable[[int], Arrays]
# Opens a display of progress for so many blocks; what it gives is called with the number of examples of each.
Display = Callable[[int], AbstractContextManager[Callable[[int], None]]]

_MIN_BLOCKS_TO_SHARE = 8  # starting a process takes longer than so few blocks


def default_folder() -> Path:
    """Where generated data sets are kept unless told otherwise: ``$XDG_CACHE_HOME/sturdy`` or ``~/.cache/sturdy``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sturdy"


def no_display(blocks: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda examples: None)


def listops_file(
    folder: Path,
    count: int,
    *,
    min_length: int,
    max_length: int,
    seed: int = 0,
    processes: int = 1,
    display: Display = no_display,
) -> Path:
    """The file with ``count`` ListOps expressions, drawn if it is not there: ``tokens``, ``offsets``, ``labels``.

    Args:
        folder: Where it is, or is to be.
        count: Expressions; all are different.
        min_length, max_length: Bounds of the number of tokens, neither included.
        seed: Of the random numbers.
        processes: That draw.
        display: Shows progress.
    """
    path = folder / f"listops-{count}-{min_length}-{max_length}-seed{seed}.npz"
    make = partial(_listops_block, seed=seed, min_length=min_length, max_length=max_length)

    def assemble(blocks: Callable[[Sequence[int]], Iterator[Arrays]]) -> Arrays:
        known: set[bytes] = set()
        parts: list[listops.Expressions] = []
        found = begun = 0
        while found < count:  # more than once only if some were drawn twice
            more = range(begun, begun - (found - count) // listops.BLOCK + 1)
            begun = more.stop
            for arrays in blocks(more):
                parts.append(listops.unique(listops.Expressions(**arrays), known))
                if not len(parts[-1]):
                    raise RecipeError(
                        f"there are not {count} different ListOps expressions with more than {min_length} and fewer "
                        f"than {max_length} symbols; widen the bounds"
                    )
                found += len(parts[-1])
        return vars(listops.join(parts).take(0, count))

    return _make_file(path, make, assemble, processes, display)


def pathfinder_file(
    folder: Path, count: int, *, size: int, seed: int = 0, processes: int = 1, display: Display = no_display
) -> Path:
    """The file with ``count`` Pathfinder images of ``size`` pixels, drawn if it is not there."""
    path = folder / f"pathfinder{size}-{count}-seed{seed}.npz"
    make = partial(_pathfinder_block, seed=seed, size=size)

    def assemble(blocks: Callable[[Sequence[int]], Iterator[Arrays]]) -> Arrays:
        images = np.empty((count, size, size), np.uint8)
        labels = np.empty(count, np.uint8)
        step = pathfinder.BLOCK
        for i, arrays in enumerate(blocks(range(-(-count // step)))):
            n = min(step, count - i * step)
            images[i * step : i * step + n], labels[i * step : i * step + n] = (a[:n] for a in arrays.values())
        return {"images": images, "labels": labels}

    return _make_file(path, make, assemble, processes, display)


def read_arrays(path: Path) -> Arrays:
    """What a file of this module holds.

    Raises:
        RecipeError: it is damaged.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and the npy reader each have their own exceptions
        raise RecipeError(f"{path} is truncated or damaged ({one_line(error)[:120]}); delete it") from None


def _listops_block(block: int, *, seed: int, min_length: int, max_length: int) -> Arrays:
    return dict(vars(listops.generate_block(seed, block, min_length, max_length)))


def _pathfinder_block(block: int, *, seed: int, size: int) -> Arrays:
    images, labels = pathfinder.generate_block(seed, block, size)
    return {"images": images, "labels": labels}


# ---- blocks and files ------------------------------------------------------------------------------------------------


def _make_file(
    path: Path,
    make: MakeBlock,
    assemble: Callable[[Callable[[Sequence[int]], Iterator[Arrays]]], Arrays],
    processes: int,
    display: Display,
) -> Path:
    """Make ``path`` of the arrays that ``assemble`` puts together from blocks, if it is not there.

    Of several runs that want it at once one makes it, and the others wait.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            if not path.exists():
                _assemble_file(path, make, assemble, processes, display)
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error.strerror or one_line(error)}") from None
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from doing the same here at the same time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _assemble_file(
    path: Path,
    make: MakeBlock,
    assemble: Callable[[Callable[[Sequence[int]], Iterator[Arrays]]], Arrays],
    processes: int,
    display: Display,
) -> None:
    parts = path.with_suffix(".parts")

    def blocks(numbers: Sequence[int]) -> Iterator[Arrays]:
        missing = [number for number in numbers if not _part(parts, number).exists()]
        with display(len(missing)) as tell:
            for done in _make_parts(partial(_write_part, parts, make), missing, processes):
                tell(done)
        return (read_arrays(_part(parts, number)) for number in numbers)

    parts.mkdir(exist_ok=True)
    aside = path.with_name(path.name + ".new")
    arrays = assemble(blocks)
    with open(aside, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)
    shutil.rmtree(parts, ignore_errors=True)


def _make_parts(write: Callable[[int], int], numbers: Sequence[int], processes: int) -> Iterator[int]:
    """Write the blocks of these numbers; gives the examples in each as it is done."""
    if processes <= 1 or len(numbers) < _MIN_BLOCKS_TO_SHARE:
        yield from map(write, numbers)
        return
    # A fork would take the threads' locks along in unknown states.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        waiting = [pool.submit(write, number) for number in numbers]
        for future in as_completed(waiting):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _write_part(folder: Path, make: MakeBlock, number: int) -> int:
    """Draw a block and keep it; returns the number of examples."""
    arrays = make(number)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path = _part(folder, number)
    aside = path.with_suffix(f".{os.getpid()}.new")
    write_durably(aside, buffer.getvalue())
    os.replace(aside, path)
    return len(arrays["labels"])


def read_listops(path: Path) -> listops.Expressions:
    """The expressions of a file of :func:`listops_file`."""
    arrays: dict[str, Any] = read_arrays(path)
    if set(arrays) != {"tokens", "offsets", "labels"}:
        raise RecipeError(f"{path} is not a file of ListOps expressions")
    return listops.Expressions(**arrays)


def read_pathfinder(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(N, S, S)`` and labels of a file of :func:`pathfinder_file`."""
    arrays = read_arrays(path)
    if set(arrays) != {"images", "labels"}:
        raise RecipeError(f"{path} is not a file of Pathfinder images")
    return arrays["images"], arrays["labels"]
