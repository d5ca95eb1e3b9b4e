"""Plane waves added to images."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from sturdy import _numpy
from sturdy.numpy._arguments import Array
from sturdy.numpy._arguments import clip as read_clip


class WaveAddGradients(NamedTuple):
    """Gradients of ``sum(grad_out * out)``.

    Attributes:
        input: Shape and dtype of ``grad_out``, memory format of the input.
        amplitude: ``(N, C, K)``, float64 for float64 gradients, else float32: one value per image, channel and wave,
            also where an amplitude is shared; that one's gradient is the sum.
    """

    input: Any
    amplitude: Any


def wave_add(
    input: Array,
    frequency: Array,
    amplitude: Array | float,
    phase: Array | float = 0.0,
    *,
    clip: tuple[float, float] | None = None,
    out: Array | None = None,
) -> Any:
    """Add plane waves to images, for each image and channel its own or shared ones, and clamp.

    The arguments have the meaning they have in :func:`sturdy.functional.wave_add`, and the numbers are the same to the
    last bit.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; uint8, which stands for value / 255, float16, bfloat16, float32 or
            float64; any strides.
        frequency: ``(N or 1, C or 1, K, 2)``, cycles per pixel along the row index and along the column index; float64
            or float32. Leading dimensions of size 1 of a NumPy array may be left out, here and below.
        amplitude: ``(N or 1, C or 1, K)`` or a number, in units of the image; float32 or float64.
        phase: ``(N or 1, C or 1, K)`` or a number, in radians; float32 or float64.
        clip: ``(low, high)``, the range that the result is clamped to; None for none. A NaN stays a NaN.
        out: Memory for the result, of the shape of ``input`` and of its dtype, or of any floating dtype for uint8;
            contiguous or stored channels-last, apart from the inputs. Needed for bfloat16.

    Returns:
        ``out`` if it was given, else a new NumPy array, float32 for uint8, stored channels-last if the input is.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: Vaish, Wang, Strisciuglio, *Fourier-basis functions to bridge augmentation gap*, CVPR 2024.
    """
    waves = _read_waves("wave_add", frequency, amplitude, phase)
    return _numpy.wave_add(input, *waves, read_clip("wave_add", clip), out)


def wave_add_backward(
    grad_out: Array,
    input: Array | None,
    frequency: Array,
    amplitude: Array | float,
    phase: Array | float = 0.0,
    *,
    clip: tuple[float, float] | None = None,
    out: tuple[Array | None, Array | None] | None = None,
) -> WaveAddGradients:
    """Gradients of :func:`wave_add` with respect to input and amplitude.

    Args:
        grad_out: Gradient of the output: its shape and dtype, any strides.
        input: As in the forward call; None will do without ``clip``.
        frequency, amplitude, phase, clip: As in the forward call.
        out: Memory for the two gradients, as :class:`WaveAddGradients` describes them; those that are None are not
            computed. Needed for bfloat16.

    Returns:
        The gradients; None in place of those that were not computed. Where the sum lies outside ``clip`` the gradient
        is 0, on the bounds it passes.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    waves = _read_waves("wave_add_backward", frequency, amplitude, phase)
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError("wave_add_backward: out must be a tuple of two arrays, each of which may be None")
    clip = read_clip("wave_add_backward", clip)
    return WaveAddGradients(*_numpy.wave_add_backward(grad_out, input, *waves, clip, out))


def _read_waves(op: str, frequency: Any, amplitude: Any, phase: Any) -> tuple[Any, Any, Any]:
    """The parameters with all their dimensions; numbers become arrays."""
    frequency = _with_leading_dimensions(frequency, 4)
    shape: tuple[int, ...] = getattr(frequency, "shape", ())
    count = int(shape[-2]) if len(shape) >= 2 else 1
    found = []
    for value in (amplitude, phase):
        if isinstance(value, Real):
            found.append(np.broadcast_to(np.float64(value), (1, 1, count)))
        else:
            found.append(_with_leading_dimensions(value, 3))
    return frequency, found[0], found[1]


def _with_leading_dimensions(array: Any, rank: int) -> Any:
    if isinstance(array, np.ndarray) and 0 < array.ndim < rank:
        return array[(None,) * (rank - array.ndim)]
    return array
