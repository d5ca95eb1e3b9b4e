"""Threads of calls that bring none of their own: NumPy and plain C. PyTorch ops run on PyTorch's threads."""

from __future__ import annotations

from sturdy._load import core


def set_num_threads(n: int) -> None:
    """Set how many threads NumPy calls use; 0 means as many as the machine has.

    Raises:
        ValueError: ``n`` is negative.
    """
    if n < 0:
        raise ValueError(f"set_num_threads: n must be at least 0, got {n}")
    core().sturdy_set_num_threads(n)


def get_num_threads() -> int:
    """How many threads NumPy calls use."""
    return int(core().sturdy_get_num_threads())
