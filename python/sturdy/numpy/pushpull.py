"""Push-pull convolution."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

from sturdy import _numpy, _options
from sturdy.numpy._arguments import Array, integer, integers


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


def _read_options(
    op: str, weight: Array, stride: Any, padding: Any, dilation: Any, groups: Any, avg_kernel_size: Any, range_dims: Any
) -> tuple[Any, ...]:
    """Stride, padding, dilation, groups, window and range as the extension module takes them."""
    strides = _options.pair(op, "stride", integers(op, "stride", stride), least=1)
    dilations = _options.pair(op, "dilation", integers(op, "dilation", dilation), least=1)
    if isinstance(padding, str):
        shape = getattr(weight, "shape", None)
        if shape is None:
            raise TypeError(f"{op}: weight must be a NumPy array or offer __dlpack__, got {type(weight).__name__}")
        # A weight of another rank is refused later, with a message of its own; any kernel size will do until then.
        kernel = tuple(shape[-2:]) if len(shape) >= 2 else (1, 1)
        sides = _options.paddings(op, padding, kernel, strides, dilations)
    else:
        sides = _options.paddings(op, integers(op, "padding", padding), (1, 1), strides, dilations)
    window = _options.pool(op, None if avg_kernel_size is None else integers(op, "avg_kernel_size", avg_kernel_size))
    count = _options.groups(op, integer(op, "groups", groups))
    return strides, sides, dilations, count, window, _options.channel_range(op, range_dims)


def _read_inhibition(op: str, inhibition: Any) -> tuple[float, Any]:
    """The strength as a number, or as an array."""
    if inhibition is None:
        raise TypeError(f"{op}: inhibition must be a number or an array, got None")
    if isinstance(inhibition, Real):
        return float(inhibition), None
    return 1.0, inhibition
