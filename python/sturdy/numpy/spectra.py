"""Sums of images' amplitude spectra."""

from __future__ import annotations

from typing import Any

from sturdy import _numpy
from sturdy.numpy._arguments import Array, integer


def spectrum_accumulate(
    x: Array,
    group: Array,
    groups: int,
    *,
    power: int = 1,
    out: Array | None = None,
    add: bool = False,
) -> Any:
    """Add up the amplitudes of images' spectra by group: ``|rfft2(x)| ** power`` summed over the images of each group.

    The arguments have the meaning they have in :func:`sturdy.functional.spectrum_accumulate`, and the numbers are the
    same to the last bit.

    Args:
        x: ``(N, C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        group: ``(N,)``, int64: 0 to ``groups - 1``; -1 leaves an image out.
        groups: Number of groups.
        power: 1 for sums of amplitudes, 2 for sums of their squares.
        out: Memory for the result, contiguous, apart from the inputs; float32 or float64, for float64 images float64.
        add: Add to what ``out`` holds, which must be given then.

    Returns:
        ``out`` if it was given, else a new NumPy array ``(groups, C, H, W // 2 + 1)``, float64 for float64 images, else
        float32.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    op = "spectrum_accumulate"
    if add and out is None:
        raise ValueError(f"{op}: add needs out, which holds what to add to")
    return _numpy.spectrum_accumulate(
        x, group, integer(op, "groups", groups), integer(op, "power", power), bool(add), out
    )
