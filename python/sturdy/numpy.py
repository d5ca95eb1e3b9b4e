"""The ops on NumPy arrays, and on tensors in CPU memory of any library that speaks DLPack. Needs no PyTorch.

Nothing is cast and nothing is copied: an op reads its inputs where they lie, whatever their strides, and refuses what
it cannot read. While it computes, other Python threads run; :func:`sturdy.set_num_threads` says how many it may use.

Every function raises:
    ShapeError: shapes disagree, a size or a memory layout is wrong; a ``ValueError`` and a ``RuntimeError``.
    ValueError: an option is out of range.
    TypeError: not an array, dtypes that disagree or are unsupported (integers, lists).
    BufferError: memory that is not on the CPU, or an output that must not be written: a read-only array, or a tensor of
        a library that does not say that it may be (JAX). PyTorch tensors that require gradients, too: detach them.
    NotImplementedError: a size that there is no kernel for.
    MemoryError, RuntimeError: no memory for scratch space; a defect of the library.
"""

from __future__ import annotations

import importlib.util
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from sturdy import _options
from sturdy._load import core

core()  # says in plain words if it is missing or of another version
if importlib.util.find_spec("sturdy._numpy") is None:
    raise ImportError(
        "sturdy was built without its NumPy module for this Python: run `pip install .` with STURDY_WITH_NUMPY=ON"
    )
from sturdy import _numpy  # noqa: E402  (the two checks come first)

__all__ = [
    "PushPullConv2dGradients",
    "SpectralFilterGradients",
    "WaveAddGradients",
    "push_pull_conv2d",
    "push_pull_conv2d_backward",
    "spectral_filter",
    "spectral_filter_backward",
    "wave_add",
    "wave_add_backward",
]


class SupportsDLPack(Protocol):
    """A tensor of another library."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


Array: TypeAlias = np.ndarray[Any, Any] | SupportsDLPack


class PushPullConv2dGradients(NamedTuple):
    """Gradients of ``sum(grad_out * out)``.

    Attributes:
        input: Shape, dtype and memory format of the input.
        weight: Shape, dtype and memory format of the weight.
        inhibition: ``(C_out,)``, float64 for float64 inputs, else float32: one value per output channel, also where one
            strength served all of them; that one's gradient is the sum.
        bias: ``(C_out,)``, float64 for float64 inputs, else float32.
    """

    input: Any
    weight: Any
    inhibition: Any
    bias: Any


def push_pull_conv2d(
    input: Array,
    weight: Array,
    inhibition: Array | float = 1.0,
    bias: Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    avg_kernel_size: int | tuple[int, int] | None = 0,
    range_dims: str = "filter",
    out: Array | None = None,
    push: Array | None = None,
) -> Any:
    """Convolve with a kernel and subtract the rectified response to its mirror image in contrast.

    The arguments have the meaning they have in :func:`sturdy.functional.push_pull_conv2d`, and the numbers are the same
    to the last bit.

    Args:
        input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``; float16, bfloat16, float32 or float64; any strides.
        weight: ``(C_out, C_in / groups, kH, kW)``, the dtype of ``input``.
        inhibition: Strength of the pull response, no unit: a number, or an array of shape ``()``, ``(C_out,)`` or
            ``(1, C_out, 1, 1)``, float32 or of the dtype of ``input``.
        bias: ``(C_out,)``, float32 or of the dtype of ``input``.
        stride, dilation: In pixels.
        padding: In pixels, or ``"valid"``, or ``"same"`` (stride 1 alone; an even extent pads one more at the right
            and bottom).
        groups: Divides both channel counts.
        avg_kernel_size: Odd window of the average over the pull response; 0, 1 or None for none.
        range_dims: ``"filter"``: one minimum and maximum per output channel; ``"channel"``: one per output and input
            channel.
        out: Memory for the result, ``(N, C_out, H_out, W_out)`` or without ``N`` as the input came, of the dtype of
            ``input``, contiguous or stored channels-last, apart from the inputs. Needed for bfloat16 tensors, for
            which NumPy has no dtype.
        push: Memory like ``out`` that receives the push response ``conv2d(input, weight)``, which
            :func:`push_pull_conv2d_backward` can use.

    Returns:
        ``out`` if it was given, else a new NumPy array, stored channels-last if the input is.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Source: Bennabhaktula, Alegre, Strisciuglio, Azzopardi, *PushPull-Net: Inhibition-driven ResNet robust to image
    corruptions*, ICPR 2024.
    """
    options = _read_options("push_pull_conv2d", weight, stride, padding, dilation, groups, avg_kernel_size, range_dims)
    strength, channels = _read_inhibition("push_pull_conv2d", inhibition)
    return _numpy.push_pull_conv2d(input, weight, channels, strength, bias, *options, out, push)


def push_pull_conv2d_backward(
    grad_out: Array,
    input: Array,
    weight: Array,
    inhibition: Array | float = 1.0,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    avg_kernel_size: int | tuple[int, int] | None = 0,
    range_dims: str = "filter",
    push: Array | None = None,
    out: tuple[Array | None, Array | None, Array | None, Array | None] | None = None,
) -> PushPullConv2dGradients:
    """Gradients of :func:`push_pull_conv2d` with respect to input, weight, inhibition and bias.

    Args:
        grad_out: Gradient of the output: its shape, the dtype of ``input``, any strides.
        input, weight, inhibition, stride, padding, dilation, groups, avg_kernel_size, range_dims: As in the forward
            call.
        push: What the forward call wrote into its own ``push``; without it the convolution is computed again.
        out: Memory for the four gradients, as :class:`PushPullConv2dGradients` describes them; those that are None are
            not computed. Needed for bfloat16 tensors.

    Returns:
        The gradients; None in place of those that were not computed.

    Raises:
        ShapeError, ValueError, TypeError, BufferError, NotImplementedError, MemoryError, RuntimeError: see the module.

    Note: At zero, where a rectification has a kink, its derivative is taken as 0; where several weights share the
    minimum or maximum, they share its gradient equally.
    """
    options = _read_options(
        "push_pull_conv2d_backward", weight, stride, padding, dilation, groups, avg_kernel_size, range_dims
    )
    strength, channels = _read_inhibition("push_pull_conv2d_backward", inhibition)
    if out is not None and (not isinstance(out, tuple) or len(out) != 4):
        raise TypeError("push_pull_conv2d_backward: out must be a tuple of four arrays, each of which may be None")
    return PushPullConv2dGradients(
        *_numpy.push_pull_conv2d_backward(grad_out, input, weight, channels, strength, push, *options, out)
    )


# ---- Fourier family --------------------------------------------------------------------------------------------------


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
    return _numpy.wave_add(input, *waves, _read_clip("wave_add", clip), out)


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
    clip = _read_clip("wave_add_backward", clip)
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


def _read_clip(op: str, clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    bounds = tuple(float(bound) for bound in clip)
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise ValueError(f"{op}: clip must be (low, high) with low <= high, or None, got {clip!r}")
    return bounds


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


# ---- arguments -------------------------------------------------------------------------------------------------------


def _read_options(
    op: str, weight: Array, stride: Any, padding: Any, dilation: Any, groups: Any, avg_kernel_size: Any, range_dims: Any
) -> tuple[Any, ...]:
    """Stride, padding, dilation, groups, window and range as the extension module takes them."""
    strides = _options.pair(op, "stride", _integers(op, "stride", stride), least=1)
    dilations = _options.pair(op, "dilation", _integers(op, "dilation", dilation), least=1)
    if isinstance(padding, str):
        shape = getattr(weight, "shape", None)
        if shape is None:
            raise TypeError(f"{op}: weight must be a NumPy array or offer __dlpack__, got {type(weight).__name__}")
        # A weight of another rank is refused later, with a message of its own; any kernel size will do until then.
        kernel = tuple(shape[-2:]) if len(shape) >= 2 else (1, 1)
        sides = _options.paddings(op, padding, kernel, strides, dilations)
    else:
        sides = _options.paddings(op, _integers(op, "padding", padding), (1, 1), strides, dilations)
    window = _options.pool(op, None if avg_kernel_size is None else _integers(op, "avg_kernel_size", avg_kernel_size))
    count = _options.groups(op, _integer(op, "groups", groups))
    return strides, sides, dilations, count, window, _options.channel_range(op, range_dims)


def _integers(op: str, name: str, value: Any) -> Any:
    """An integer or several, NumPy's among them, as Python's own."""
    if isinstance(value, Iterable):
        return tuple(_integer(op, name, item) for item in value)
    return _integer(op, name, value)


def _integer(op: str, name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be made of integers, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {number}")
    return number


def _read_inhibition(op: str, inhibition: Any) -> tuple[float, Any]:
    """The strength as a number, or as an array."""
    if inhibition is None:
        raise TypeError(f"{op}: inhibition must be a number or an array, got None")
    if isinstance(inhibition, Real):
        return float(inhibition), None
    return 1.0, inhibition


def _read_filter(op: str, layout: Any, clip: Any) -> tuple[bool, tuple[float, float] | None]:
    """Whether masks are of the half plane, and the bounds as numbers."""
    if layout not in ("shifted", "half"):
        raise ValueError(f"{op}: layout must be 'shifted' or 'half', got {layout!r}")
    if clip is None:
        return layout == "half", None
    low, high = (float(bound) for bound in clip)
    if not low <= high:
        raise ValueError(f"{op}: clip must be (low, high) with low <= high, or None, got {clip!r}")
    return layout == "half", (low, high)
