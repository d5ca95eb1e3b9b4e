"""The spellings of an option that Python users know, turned into the one that the C library takes.

Shared by the bindings, so it imports none of their frameworks. What concerns tensors is checked in the C library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pair(op: str, name: str, value: Any, *, least: int) -> tuple[int, int]:
    """One or two integers as (rows, columns), each at least ``least``; else ``ValueError``."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(numbers) == 1:
        numbers = numbers * 2
    if len(numbers) != 2 or not all(hasattr(number, "__index__") for number in numbers):
        raise ValueError(f"{op}: {name} must be one or two integers, got {value}")
    if min(numbers) < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    return int(numbers[0]), int(numbers[1])


def pool(op: str, value: int | tuple[int, ...] | None) -> tuple[int, int]:
    """The window of an average; (1, 1), which does nothing, for 0 and None."""
    if value is None or value == 0:
        return (1, 1)
    window = pair(op, "avg_kernel_size", value, least=-(2**62))
    if min(window) < 1 or any(size % 2 == 0 for size in window):
        raise ValueError(f"{op}: avg_kernel_size must be odd and at least 1 (or 0 for none), got {value}")
    return window


def channel_range(op: str, range_dims: str) -> bool:
    """True where the extremes of a filter are taken of each input channel apart, False for the whole filter."""
    if range_dims not in ("filter", "channel"):
        raise ValueError(f"{op}: range_dims must be 'filter' or 'channel', got {range_dims!r}")
    return range_dims == "channel"


def groups(op: str, value: int) -> int:
    """The number of groups, at least 1."""
    if value < 1:
        raise ValueError(f"{op}: groups must be at least 1, got {value}")
    return value


def paddings(
    op: str,
    padding: int | tuple[int, ...] | str,
    kernel: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Zeros at top, bottom, left and right, in pixels, for a number, a pair, ``"valid"`` or ``"same"``."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise ValueError(f"{op}: padding must be a number, 'valid' or 'same', got {padding!r}")
        if max(stride) > 1:
            raise ValueError(f"{op}: padding='same' needs a stride of 1, got {stride}")
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    rows, columns = pair(op, "padding", padding, least=0)
    return (rows, rows, columns, columns)


def clip(op: str, value: Any) -> list[float]:
    """The bounds of a clamp as (low, high), or nothing for None."""
    if value is None:
        return []
    bounds = [float(bound) for bound in value]
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise ValueError(f"{op}: clip must be (low, high) with low <= high, or None, got {value!r}")
    return bounds


def share(op: str, name: str, value: Any) -> float:
    """A number in [0, 1]."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{op}: {name} must be in [0, 1], got {value!r}")
    return number


def window(op: str, value: Any) -> list[int]:
    """Half-widths of a box of frequencies as (rows, columns), or nothing for None."""
    if value is None:
        return []
    numbers = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(numbers) != 2 or not all(hasattr(number, "__index__") for number in numbers):
        raise ValueError(f"{op}: window must be (rows, columns), two integers, or None, got {value!r}")
    return [max(-1, min(int(number), 2**62)) for number in numbers]
