"""What arrays the functions take, and spellings that several of them read."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

import numpy as np

from sturdy import _options


class SupportsDLPack(Protocol):
    """A tensor of another library."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


Array: TypeAlias = np.ndarray[Any, Any] | SupportsDLPack


def integers(op: str, name: str, value: Any) -> Any:
    """An integer or several, NumPy's among them, as Python's own."""
    if isinstance(value, Iterable):
        return tuple(integer(op, name, item) for item in value)
    return integer(op, name, value)


def integer(op: str, name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be made of integers, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {number}")
    return number


def clip(op: str, value: Any) -> tuple[float, float] | None:
    """The bounds of a clamp as the extension module takes them."""
    bounds = _options.clip(op, value)
    return (bounds[0], bounds[1]) if bounds else None
