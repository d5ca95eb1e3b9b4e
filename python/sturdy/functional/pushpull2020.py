"""The PushPull layer of 2020, whose pull kernel is larger than its push kernel; made of torch's own operations."""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sturdy import _options
from sturdy.functional import _arguments

_NAME = "push_pull_2020_conv2d"


def push_pull_2020_conv2d(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float = 1.0,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    scale: float = 2.0,
    dual_output: bool = False,
) -> Tensor:
    """Convolve with a kernel and subtract the rectified response to an enlarged kernel of opposite sign.

    ``relu(p + bias) - inhibition * relu(-q - bias)`` with ``p`` the response to ``weight`` and ``q`` that to ``weight``
    enlarged by bilinear interpolation, corners aligned with corners. The window of ``q`` is centred on that of ``p``.

    Args:
        input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``, any floating dtype.
        weight: ``(C_out, C_in / groups, kH, kW)``, odd ``kH`` and ``kW``, the dtype and device of ``input``.
        inhibition: Strength of the pull response, no unit: a number, or a tensor of shape ``()``, ``(C_out,)`` or
            ``(1, C_out, 1, 1)``. Used as it is, negative or not.
        bias: ``(C_out,)``, any floating dtype; inside both rectifications, with opposite signs.
        stride, dilation: In pixels, as in ``torch.nn.functional.conv2d``.
        padding: Zeros around the input of the push response, in pixels, or ``"valid"`` or ``"same"``; the pull
            response gets ``dilation * (K - k) / 2`` more on each side.
        groups: Divides both channel counts.
        scale: Size of the pull kernel over that of the push kernel, at least 1; the paper uses 2. See
            :func:`pull_kernel_size`.
        dual_output: Return the two rectified responses one after the other instead, ``2 * C_out`` channels;
            ``inhibition`` is not used then.

    Returns:
        ``(N, C_out, H_out, W_out)``, or without ``N`` as the input came.

    Raises:
        ShapeError: shapes disagree. ValueError: an even kernel, or an option out of range. TypeError: dtypes disagree.
        RuntimeError: the kernel does not fit into the padded input.

    Note:
        Differentiable in all tensors any number of times; the weight gets gradients through both kernels. With
        ``scale=1`` and ``inhibition=1`` this is the plain convolution. Runs torch's convolutions, two of them.

    Source: Strisciuglio, Lopez-Antequera, Petkov, *Enhanced robustness of convolutional networks with a push-pull
    inhibition layer*, Neural Computing and Applications, 2020.
    """
    groups = _options.groups(_NAME, groups)
    _arguments.check_conv(_NAME, input, weight, bias, groups)
    strides = _options.pair(_NAME, "stride", stride, least=1)
    dilations = _options.pair(_NAME, "dilation", dilation, least=1)
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    large = pull_kernel_size(kernel, scale)
    top, _, left, _ = _options.paddings(_NAME, padding, kernel, strides, dilations)  # odd kernels: alike on both sides
    bias = None if bias is None else bias.to(weight.dtype)
    push = F.conv2d(input, weight, bias, strides, (top, left), dilations, groups)
    if large == kernel:
        pull = -push
    else:
        more = [d * (big - small) // 2 for d, big, small in zip(dilations, large, kernel, strict=True)]
        enlarged = enlarge_kernel(weight, large)
        pull = -F.conv2d(input, enlarged, bias, strides, (top + more[0], left + more[1]), dilations, groups)
    if dual_output:
        return torch.cat([F.relu(push), F.relu(pull)], dim=-3)
    return F.relu(push) - _arguments.strength(_NAME, inhibition, push) * F.relu(pull)


def pull_kernel_size(kernel_size: int | tuple[int, ...], scale: float) -> tuple[int, int]:
    """Size of the pull kernel: ``floor(k * scale)`` on each axis, and one more where that is even.

    Args:
        kernel_size: Of the push kernel, odd; 3, 5 and 7 become 7, 11 and 15 for a ``scale`` of 2.
        scale: At least 1.

    Raises:
        ValueError: an even kernel, or a scale below 1.
    """
    sizes = _options.pair(_NAME, "kernel_size", kernel_size, least=1)
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(f"{_NAME}: kernel_size must be odd, got {sizes}")
    if not 1.0 <= scale < math.inf:
        raise ValueError(f"{_NAME}: scale must be at least 1, got {scale}")
    rows, columns = (math.floor(size * scale) // 2 * 2 + 1 for size in sizes)  # floor, made odd upwards
    return rows, columns


def enlarge_kernel(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of ``(O, C, kH, kW)`` to ``(O, C, *size)``, corners aligned with corners.

    As two products with small matrices, so that the gradient is summed in a fixed order on every device. Half
    precision is interpolated in float32 and rounded once.
    """
    exact = weight if weight.dtype == torch.float64 else weight.float()
    device = weight.device.type
    # Autocast would round the kernel a second time. Where there is none, an export is to see none.
    rounds = _arguments.autocast_enabled(device)
    with torch.autocast(device, enabled=False) if rounds else contextlib.nullcontext():
        if size[0] != weight.shape[2]:
            exact = _interpolation(int(weight.shape[2]), size[0], exact) @ exact
        if size[1] != weight.shape[3]:
            exact = exact @ _interpolation(int(weight.shape[3]), size[1], exact).mT
    return exact.to(weight.dtype)


def _interpolation(small: int, large: int, like: Tensor) -> Tensor:
    """Linear interpolation from ``small`` to ``large`` samples, ends to ends, as a ``(large, small)`` matrix."""
    positions = torch.arange(large, dtype=like.dtype, device=like.device) * (small - 1) / (large - 1)
    samples = torch.arange(small, dtype=like.dtype, device=like.device)
    return (1 - (positions[:, None] - samples).abs()).clamp(min=0)
