"""Images filtered by masks on their spectra."""

from __future__ import annotations

from typing import Any, NamedTuple

from sturdy import _numpy
from sturdy.numpy._arguments import Array
from sturdy.numpy._arguments import clip as read_clip


class SpectralFilterGradients(NamedTuple):
    """Gradients of ``sum(grad_out * out)``.

    Attributes:
        x: Shape, dtype and memory format of ``x``.
        mask: Shape of the mask; float64 for float64 images, else float32.
    """

    x: Any
    mask: Any


def spectral_filter(
    x: Array,
    mask: Array,
    layout: str = "shifted",
    index: Array | None = None,
    clip: tuple[float, float] | None = None,
    *,
    out: Array | None = None,
) -> Any:
    """Filter images by real masks on their spectra: DFT, product, inverse DFT and clamp in one pass.

    The arguments have the meaning they have in :func:`sturdy.functional.spectral_filter`, and the numbers are the same
    to the last bit.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        mask: ``(H, W)``, or with ``(C or 1,)``, ``(N or 1, C or 1)`` or ``(N or 1, T, C or 1)`` in front; float32 or
            the dtype of ``x``.
        layout: ``"shifted"``, frequency 0 at ``(H // 2, W // 2)``, or ``"half"``, ``(H, W // 2 + 1)`` in the order of
            ``numpy.fft.rfft2``.
        index: ``(N,)``, int64: entries of ``mask``, then a table ``(T,)`` or ``(T, C or 1)`` in front; -1 copies.
        clip: ``(low, high)``, the range that the result is clamped to; None for none.
        out: Memory for the result, of its shape and dtype, contiguous or, with fewer than five dimensions, stored
            channels-last, apart from the inputs. Needed for bfloat16 tensors, for which NumPy has no dtype.

    Returns:
        ``out`` if it was given, else a new NumPy array, stored channels-last if the images are.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    half, bounds = _read_filter("spectral_filter", layout, clip)
    return _numpy.spectral_filter(x, mask, half, index, bounds, out)


def spectral_filter_backward(
    grad_out: Array,
    x: Array,
    mask: Array,
    layout: str = "shifted",
    index: Array | None = None,
    clip: tuple[float, float] | None = None,
    *,
    out: tuple[Array | None, Array | None] | None = None,
) -> SpectralFilterGradients:
    """Gradients of :func:`spectral_filter` with respect to images and masks.

    Args:
        grad_out: Gradient of the result: its shape, the dtype of ``x``, any strides.
        x, mask, layout, index, clip: As in the forward call.
        out: Memory for the two gradients, as :class:`SpectralFilterGradients` describes them; those that are None are
            not computed. Needed for bfloat16 tensors.

    Returns:
        The gradients; None in place of those that were not computed.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    half, bounds = _read_filter("spectral_filter_backward", layout, clip)
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError("spectral_filter_backward: out must be a tuple of two arrays, each of which may be None")
    return SpectralFilterGradients(*_numpy.spectral_filter_backward(grad_out, x, mask, half, index, bounds, out))


def _read_filter(op: str, layout: Any, clip: Any) -> tuple[bool, tuple[float, float] | None]:
    """Whether masks are of the half plane, and the bounds as numbers."""
    if layout not in ("shifted", "half"):
        raise ValueError(f"{op}: layout must be 'shifted' or 'half', got {layout!r}")
    return layout == "half", read_clip(op, clip)
