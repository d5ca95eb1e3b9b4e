"""The image changes of PRIME, each image with its own parameters, and what torch must know of the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sturdy import _options, _registration
from sturdy._errors import ShapeError


def filter2d(
    x: Tensor,
    kernel: Tensor,
    clip: tuple[float, float] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Filter each channel of images with a 3 x 3 kernel, for each image and channel its own or a shared one.

    ``clamp(sum over a, b of kernel[a, b] * x[row + a - 1, column + b - 1])``, the correlation that convolution layers
    compute, with zeros around the image. One read and one write of the image.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; uint8, which stands for value / 255, float16, bfloat16, float32 or
            float64; any strides.
        kernel: ``(N or 1, C or 1, 3, 3)``, float32 or float64. Leading dimensions of size 1 may be left out:
            ``(3, 3)`` is one kernel for all planes.
        clip: ``(low, high)``, the range that the result is clamped to; None for none. A NaN stays a NaN.
        dtype: Of the result for uint8 images; float32 by default. For others it is the dtype of ``x``.

    Returns:
        Shape and memory format of ``x``; its dtype, or ``dtype`` for uint8.

    Raises:
        ShapeError: shapes disagree, or ``x`` has neither three nor four dimensions; a ``ValueError`` and a
            ``RuntimeError``.
        ValueError: ``clip`` is not a pair of numbers in order.
        TypeError: an unsupported dtype: of ``x`` complex or integer other than uint8, of ``kernel`` all but float32
            and float64.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        Differentiable once, in ``x`` and ``kernel``; on the bounds of ``clip`` the gradient passes, beyond them it is
        0. Under autocast all dtypes stay.

    Source: Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, *PRIME: A few primitives can boost robustness to
    common corruptions*, ECCV 2022.
    """
    batched = _batched("filter2d", x, dtype)
    kernel = _with_leading_dimensions("filter2d", "kernel", kernel, 4, "(N or 1, C or 1, 3, 3)")
    out = _registration.call("filter2d", batched, kernel, _options.clip("filter2d", clip), dtype)
    return out if x.dim() == 4 else out.squeeze(0)


def smooth_color(
    x: Tensor,
    coefficients: Tensor,
    clip: tuple[float, float] | None = None,
    first: int | Tensor = 1,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Change the values of images by a sum of sines of the value, for each image and channel its own or a shared one.

    ``clamp(x + sum over k of coefficients_k * sin((first + k) pi x))``: 0 and 1 stay what they are, and so does the
    order of colours only where coefficients are small. One read and one write of the image.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; uint8, which stands for value / 255, float16, bfloat16, float32 or
            float64; any strides. Meant for [0, 1]; the sines go on beyond.
        coefficients: ``(N or 1, C or 1, K)``, float32 or float64, in units of the image. Leading dimensions of size 1
            may be left out.
        clip: ``(low, high)``, the range that the result is clamped to; None for none. A NaN stays a NaN.
        first: The frequency, in half periods over [0, 1], of the first coefficient: a number, or ``(N or 1,)`` int64 on
            the device of ``x``.
        dtype: Of the result for uint8 images; float32 by default. For others it is the dtype of ``x``.

    Returns:
        Shape and memory format of ``x``; its dtype, or ``dtype`` for uint8.

    Raises:
        ShapeError: shapes disagree, or ``x`` has neither three nor four dimensions; a ``ValueError`` and a
            ``RuntimeError``.
        ValueError: ``clip`` is not a pair of numbers in order.
        TypeError: an unsupported dtype: of ``x`` complex or integer other than uint8, of ``coefficients`` all but
            float32 and float64, of ``first`` all but int64.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        Differentiable once, in ``x`` and ``coefficients``; on the bounds of ``clip`` the gradient passes, beyond them
        it is 0. Under autocast all dtypes stay.

        No sine is computed for a coefficient: the sum comes from a recurrence that starts again every 32 terms, in the
        form of Reinsch, which keeps its digits near black and white. In float32 its error is below that of a sum of
        sines in float32. An image of bytes costs a table of 256 values for each channel.

    Source: Modas et al., *PRIME: A few primitives can boost robustness to common corruptions*, ECCV 2022.
    """
    batched = _batched("smooth_color", x, dtype)
    coefficients = _with_leading_dimensions("smooth_color", "coefficients", coefficients, 3, "(N or 1, C or 1, K)")
    start: Tensor | None = None
    if isinstance(first, Tensor):
        start = first.reshape(1) if first.dim() == 0 else first
    elif first != 1:
        start = torch.full((1,), int(first), dtype=torch.int64, device=x.device)
    bounds = _options.clip("smooth_color", clip)
    out = _registration.call("smooth_color", batched, coefficients, start, bounds, dtype)
    return out if x.dim() == 4 else out.squeeze(0)


def sine_warp(x: Tensor, coefficients: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Displace the pixels of images by smooth fields, for each image its own or a shared one.

    A field is ``sum over i, j of coefficients[i - 1, j - 1] * sin(i pi column / (W - 1)) * sin(j pi row / (H - 1))``,
    in pixels: 0 on the border. Two of them move the image along its columns and along its rows: ``out(row, column) =
    x(row - field_1, column - field_0)``, bilinear between pixels, coordinates clamped to the image.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; uint8, which stands for value / 255, float16, bfloat16, float32 or
            float64; any strides.
        coefficients: ``(N or 1, 2, I, J)`` or ``(2, I, J)``, float32 or float64: first the field along columns, then
            that along rows; ``i`` counts waves along columns in both.
        dtype: Of the result for uint8 images; float32 by default. For others it is the dtype of ``x``.

    Returns:
        Shape and memory format of ``x``; its dtype, or ``dtype`` for uint8.

    Raises:
        ShapeError: shapes disagree, or ``x`` has neither three nor four dimensions; a ``ValueError`` and a
            ``RuntimeError``.
        TypeError: an unsupported dtype: of ``x`` complex or integer other than uint8, of ``coefficients`` all but
            float32 and float64.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        **Not differentiable**: it is an augmentation of data. A backward pass through it raises a ``RuntimeError``.

        On the points of an axis of length L the sines of ``i``, ``2 (L - 1) + i`` and, but for its sign, ``2 (L - 1) -
        i`` are the same. So a field costs no more than ``L - 2`` sines along each axis, however many coefficients
        there are; it is computed as two small matrix products. Fields are float32 (float64 for float64 images).

    Source: Petrini, Favero, Geiger, Wyart, *Relative stability toward diffeomorphisms indicates performance in deep
    nets*, NeurIPS 2021, as used in Modas et al., *PRIME*, ECCV 2022.
    """
    batched = _batched("sine_warp", x, dtype)
    coefficients = _with_leading_dimensions("sine_warp", "coefficients", coefficients, 4, "(N or 1, 2, I, J)", 3)
    out = _registration.call("sine_warp", batched, coefficients, dtype)
    return out if x.dim() == 4 else out.squeeze(0)


# ---- arguments -------------------------------------------------------------------------------------------------------


def _batched(op: str, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if x.dim() not in (3, 4):
        raise ShapeError(f"{op}: x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    if dtype is not None and x.dtype != torch.uint8 and dtype != x.dtype:
        raise TypeError(f"{op}: dtype must be that of x, {x.dtype}, or None unless x is uint8, got {dtype}")
    return x if x.dim() == 4 else x.unsqueeze(0)


def _with_leading_dimensions(op: str, name: str, value: Tensor, rank: int, axes: str, least: int = 1) -> Tensor:
    if not isinstance(value, Tensor) or not least <= value.dim() <= rank:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(f"{op}: {name} must be a tensor {axes}, got {got}")
    return value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_image(op: str, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    torch._check(x.dim() == 4, lambda: f"{op}: x must have 4 dimensions (N, C, H, W)")
    torch._check(
        x.is_floating_point() or x.dtype == torch.uint8,
        lambda: f"{op}: x must be uint8, float16, bfloat16, float32 or float64, got {x.dtype}",
    )
    result = (dtype or torch.float32) if x.dtype == torch.uint8 else x.dtype
    return torch.empty(x.shape, dtype=result, device=x.device, memory_format=_registration.memory_format(x))


def _fake_gradients(
    grad_out: Tensor, x: Tensor, rest: tuple[Any, ...], need_x: bool, need_parameter: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    sizes = (grad_out.shape[0], grad_out.shape[1], *rest) if need_parameter else (0,)
    grad_parameter = grad_out.new_empty(sizes, dtype=wide)
    if not need_x:
        return grad_out.new_empty((0,)), grad_parameter
    layout = _registration.memory_format(x)
    grad_x = torch.empty(grad_out.shape, dtype=grad_out.dtype, device=grad_out.device, memory_format=layout)
    return grad_x, grad_parameter


def _fake_filter2d(x: Tensor, kernel: Tensor, clip: list[float], dtype: torch.dtype | None) -> Tensor:
    return _fake_image("filter2d", x, dtype)


def _fake_filter2d_backward(
    grad_out: Tensor, x: Tensor, kernel: Tensor, clip: list[float], need_x: bool, need_kernel: bool
) -> tuple[Tensor, Tensor]:
    return _fake_gradients(grad_out, x, (3, 3), need_x, need_kernel)


def _fake_smooth_color(
    x: Tensor, coefficients: Tensor, first: Tensor | None, clip: list[float], dtype: torch.dtype | None
) -> Tensor:
    return _fake_image("smooth_color", x, dtype)


def _fake_smooth_color_backward(
    grad_out: Tensor,
    x: Tensor,
    coefficients: Tensor,
    first: Tensor | None,
    clip: list[float],
    need_x: bool,
    need_coefficients: bool,
) -> tuple[Tensor, Tensor]:
    return _fake_gradients(grad_out, x, (coefficients.shape[2],), need_x, need_coefficients)


def _fake_sine_warp(x: Tensor, coefficients: Tensor, dtype: torch.dtype | None) -> Tensor:
    return _fake_image("sine_warp", x, dtype)


def _setup_filter2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, ctx.clip, _ = inputs
    ctx.save_for_backward(x, kernel)
    ctx.set_materialize_grads(False)


def _setup_smooth_color(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, coefficients, first, ctx.clip, _ = inputs
    ctx.save_for_backward(x, coefficients, first)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, op: Any, grad_out: Tensor | None, arguments: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Of x and of the parameter after it, which may be shared."""
    wanted = ctx.needs_input_grad[:2]
    if grad_out is None or not any(wanted):
        return None, None
    grad_x, grad_parameter = op(grad_out, *arguments, ctx.clip, *wanted)
    parameter = arguments[1]
    summed = grad_parameter.sum_to_size(parameter.shape).to(parameter.dtype) if wanted[1] else None
    return grad_x if wanted[0] else None, summed


def _filter2d_backward_in(namespace: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        op = getattr(torch.ops, namespace).filter2d_backward
        return (*_gradients(ctx, op, grad_out, ctx.saved_tensors), None, None)

    return backward


def _smooth_color_backward_in(namespace: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        op = getattr(torch.ops, namespace).smooth_color_backward
        return (*_gradients(ctx, op, grad_out, ctx.saved_tensors), None, None, None)

    return backward


def _no_derivative(message: str) -> Any:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(message)

    return backward


@_registration.op_family
def _register_prime(namespace: str) -> None:
    ops = getattr(torch.ops, namespace)
    fakes: dict[str, Any] = {
        "filter2d": _fake_filter2d,
        "filter2d_backward": _fake_filter2d_backward,
        "smooth_color": _fake_smooth_color,
        "smooth_color_backward": _fake_smooth_color_backward,
        "sine_warp": _fake_sine_warp,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", _registration.vmap_by_loop(getattr(ops, name)))
    differentiable: list[tuple[str, Any, Any]] = [
        ("filter2d", _filter2d_backward_in(namespace), _setup_filter2d),
        ("smooth_color", _smooth_color_backward_in(namespace), _setup_smooth_color),
    ]
    for name, backward, setup in differentiable:
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup)
        once = _no_derivative(f"{name}_backward has no derivative: {name} can be differentiated once")
        torch.library.register_autograd(f"{namespace}::{name}_backward", once)
    never = _no_derivative("sine_warp has no derivative: it augments data; detach its input")
    torch.library.register_autograd(f"{namespace}::sine_warp", never)
