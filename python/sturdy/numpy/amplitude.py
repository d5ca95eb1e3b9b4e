"""Images with the amplitudes of other images' spectra."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sturdy import _numpy, _options
from sturdy.numpy._arguments import Array
from sturdy.numpy._arguments import clip as read_clip


def amplitude_mix(
    x: Array,
    other: Array | None = None,
    *,
    index: Array | None = None,
    strength: float | Array = 1.0,
    window: tuple[int, int] | Array | None = None,
    color_fft: bool = False,
    clip: tuple[float, float] | None = None,
    out: Array | None = None,
) -> Any:
    """Keep the phases of images' spectra and mix their amplitudes with those of other images.

    The arguments have the meaning they have in :func:`sturdy.functional.amplitude_mix`, and the numbers are the same to
    the last bit.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; float16, bfloat16, float32 or float64; any strides.
        other: ``(M, C, H, W)``, dtype of ``x``, or None for ``x`` itself; ``(C, H, W)`` beside a ``x`` without N.
        index: ``(N,)``, int64: images of ``other`` or ``x``; -1 copies.
        strength: A number in [0, 1], or ``(N or 1,)`` float32 or float64.
        window: Half-widths ``(rows, columns)`` of a box of frequencies around 0, for all images or ``(N or 1, 2)``
            int64; None for all frequencies.
        color_fft: Transform along the channels as well.
        clip: ``(low, high)``, the range that the result is clamped to; None for none.
        out: Memory for the result, of its shape and dtype, contiguous or stored channels-last, apart from the inputs.
            Needed for bfloat16 tensors, for which NumPy has no dtype.

    Returns:
        ``out`` if it was given, else a new NumPy array, stored channels-last if the images are.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.
    """
    number, strengths = 1.0, None
    if isinstance(strength, Real):
        number = _options.share("amplitude_mix", "strength", strength)
    else:
        strengths = strength
    pair, windows = None, None
    if window is None or isinstance(window, (tuple, list)):
        pair = _options.window("amplitude_mix", window) or None
    else:
        windows = window
    bounds = read_clip("amplitude_mix", clip)
    return _numpy.amplitude_mix(x, other, index, number, strengths, pair, windows, bool(color_fft), bounds, out)
