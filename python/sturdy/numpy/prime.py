"""The image changes of PRIME."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sturdy import _numpy
from sturdy.numpy._arguments import Array, integer
from sturdy.numpy._arguments import clip as read_clip


class Filter2dGradients(NamedTuple):
    """Gradients of ``sum(grad_out * out)``.

    Attributes:
        x: Shape and dtype of ``grad_out``, memory format of the images.
        kernel: ``(N, C, 3, 3)``, float64 for float64 gradients, else float32: one kernel per image and channel, also
            where one is shared; that one's gradient is the sum.
    """

    x: Any
    kernel: Any


class SmoothColorGradients(NamedTuple):
    """Gradients of ``sum(grad_out * out)``.

    Attributes:
        x: Shape and dtype of ``grad_out``, memory format of the images.
        coefficients: ``(N, C, K)``, float64 for float64 gradients, else float32, also where they are shared.
    """

    x: Any
    coefficients: Any


def filter2d(x: Array, kernel: Array, clip: tuple[float, float] | None = None, *, out: Array | None = None) -> Any:
    """Filter each channel of images with a 3 x 3 kernel, for each image and channel its own or a shared one.

    The arguments have the meaning they have in :func:`sturdy.functional.filter2d`, and the numbers are the same to the
    last bit.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; uint8, which stands for value / 255, float16, bfloat16, float32 or
            float64; any strides.
        kernel: ``(N or 1, C or 1, 3, 3)``, float32 or float64. Leading dimensions of size 1 of a NumPy array may be
            left out, here and below.
        clip: ``(low, high)``, the range that the result is clamped to; None for none. A NaN stays a NaN.
        out: Memory for the result, of the shape of ``x`` and of its dtype, or of any floating dtype for uint8;
            contiguous or stored channels-last, apart from the inputs. Needed for bfloat16.

    Returns:
        ``out`` if it was given, else a new NumPy array, float32 for uint8, stored channels-last if ``x`` is.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: Modas et al., *PRIME: A few primitives can boost robustness to common corruptions*, ECCV 2022.
    """
    return _numpy.filter2d(x, _with_leading_dimensions(kernel, 4), read_clip("filter2d", clip), out)


def filter2d_backward(
    grad_out: Array,
    x: Array,
    kernel: Array,
    clip: tuple[float, float] | None = None,
    *,
    out: tuple[Array | None, Array | None] | None = None,
) -> Filter2dGradients:
    """Gradients of :func:`filter2d` with respect to images and kernels.

    Args:
        grad_out: Gradient of the output: its shape and dtype, any strides.
        x, kernel, clip: As in the forward call.
        out: Memory for the two gradients, as :class:`Filter2dGradients` describes them; those that are None are not
            computed. Needed for bfloat16.

    Returns:
        The gradients; None in place of those that were not computed. Where the sum lies outside ``clip`` its gradient
        is 0, on the bounds it passes.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    _check_pair("filter2d_backward", out)
    bounds = read_clip("filter2d_backward", clip)
    return Filter2dGradients(*_numpy.filter2d_backward(grad_out, x, _with_leading_dimensions(kernel, 4), bounds, out))


def smooth_color(
    x: Array,
    coefficients: Array,
    clip: tuple[float, float] | None = None,
    first: int | Array = 1,
    *,
    out: Array | None = None,
) -> Any:
    """Change the values of images by a sum of sines of the value, for each image and channel its own or a shared one.

    The arguments have the meaning they have in :func:`sturdy.functional.smooth_color`, and the numbers are the same to
    the last bit.

    Args:
        x: As for :func:`filter2d`.
        coefficients: ``(N or 1, C or 1, K)``, float32 or float64, in units of the image.
        clip: ``(low, high)``, the range that the result is clamped to; None for none. A NaN stays a NaN.
        first: The frequency, in half periods over [0, 1], of the first coefficient: a number, or ``(N or 1,)`` int64.
        out: Memory for the result, as for :func:`filter2d`.

    Returns:
        As :func:`filter2d`.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: Modas et al., *PRIME*, ECCV 2022.
    """
    arguments = _with_leading_dimensions(coefficients, 3), _start("smooth_color", first)
    return _numpy.smooth_color(x, *arguments, read_clip("smooth_color", clip), out)


def smooth_color_backward(
    grad_out: Array,
    x: Array,
    coefficients: Array,
    clip: tuple[float, float] | None = None,
    first: int | Array = 1,
    *,
    out: tuple[Array | None, Array | None] | None = None,
) -> SmoothColorGradients:
    """Gradients of :func:`smooth_color` with respect to images and coefficients.

    Args:
        grad_out: Gradient of the output: its shape and dtype, any strides.
        x, coefficients, clip, first: As in the forward call.
        out: Memory for the two gradients, as :class:`SmoothColorGradients` describes them; those that are None are not
            computed. Needed for bfloat16.

    Returns:
        The gradients; None in place of those that were not computed.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    op = "smooth_color_backward"
    _check_pair(op, out)
    arguments = _with_leading_dimensions(coefficients, 3), _start(op, first)
    return SmoothColorGradients(*_numpy.smooth_color_backward(grad_out, x, *arguments, read_clip(op, clip), out))


def sine_warp(x: Array, coefficients: Array, *, out: Array | None = None) -> Any:
    """Displace the pixels of images by smooth fields, for each image its own or a shared one.

    The arguments have the meaning they have in :func:`sturdy.functional.sine_warp`, and the numbers are the same to the
    last bit. There is no gradient.

    Args:
        x: As for :func:`filter2d`.
        coefficients: ``(N or 1, 2, I, J)``, float32 or float64, in pixels: first the field along columns, then that
            along rows.
        out: Memory for the result, as for :func:`filter2d`.

    Returns:
        As :func:`filter2d`.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: Petrini et al., NeurIPS 2021, as used in Modas et al., *PRIME*, ECCV 2022.
    """
    return _numpy.sine_warp(x, _with_leading_dimensions(coefficients, 4), out)


def _with_leading_dimensions(array: Any, rank: int) -> Any:
    if isinstance(array, np.ndarray) and 0 < array.ndim < rank:
        return array[(None,) * (rank - array.ndim)]
    return array


def _start(op: str, first: Any) -> Any:
    if hasattr(first, "__dlpack__") and not isinstance(first, np.generic):
        return first
    number = integer(op, "first", first)
    return None if number == 1 else np.full((1,), number, np.int64)


def _check_pair(op: str, out: Any) -> None:
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"{op}: out must be a tuple of two arrays, each of which may be None")
