"""The exceptions that every binding raises, and how a status of the C API becomes one."""

from __future__ import annotations

import re


class ShapeError(ValueError, RuntimeError):
    """Shapes disagree, or a size is out of range.

    A ``ValueError`` by nature, and a ``RuntimeError`` too because that is what PyTorch raises for shapes.
    """


_EXCEPTIONS: dict[str, type[Exception]] = {
    "EINVAL": ShapeError,
    "ETYPE": TypeError,
    "EUNSUPPORTED": NotImplementedError,
    "ENOMEM": RuntimeError,
    "ECUDA": RuntimeError,
    "EINTERNAL": RuntimeError,
}
_PATTERN = re.compile(r"\[sturdy:(E[A-Z]+)\] ([^\n]*)")


def from_message(text: str) -> Exception | None:
    """The documented exception for a message ``[sturdy:<status>] <text>`` of the op library; None for any other."""
    found = _PATTERN.search(text)
    if found is None:
        return None
    return _EXCEPTIONS.get(found.group(1), RuntimeError)(found.group(2))
