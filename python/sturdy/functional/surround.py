"""Surround suppression: a convolution inhibited by what it finds nearby; made of torch's own operations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sturdy import _options
from sturdy._errors import ShapeError
from sturdy.functional import _arguments

_NAME = "surround_suppression_conv2d"
_SIZE = 17
_CENTRE_SIGMA = 2.0
_SURROUND_SIGMA = 8.0


def surround_kernel(device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """The ring in which surround suppression looks: ``(17, 17)``, not negative, sum 1, zero in the middle.

    A Gaussian of sigma 8 less one of sigma 2, in pixels, both of unit volume; negative values are set to 0.

    Args:
        device: Where; torch's default by default.
        dtype: Computed in float64 and rounded to this; torch's default by default.

    Source: the non-classical receptive field inhibition of Grigorescu, Petkov and Westenberg, *Contour detection
    based on nonclassical receptive field inhibition*, IEEE Transactions on Image Processing, 2003.
    """
    offset = torch.arange(_SIZE, dtype=torch.float64, device="cpu") - _SIZE // 2
    square = offset[:, None] ** 2 + offset**2

    def gaussian(sigma: float) -> Tensor:
        return torch.exp(-square / (2 * sigma**2)) / (2 * math.pi * sigma**2)

    ring = (gaussian(_SURROUND_SIGMA) - gaussian(_CENTRE_SIGMA)).clamp(min=0)
    return (ring / ring.sum()).to(device=device or torch.get_default_device(), dtype=dtype or torch.get_default_dtype())


def surround_suppression_conv2d(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float = 1.0,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    surround: Tensor | None = None,
) -> Tensor:
    """Convolve, rectify, and subtract a weighted mean of the rectified map around each pixel.

    ``r - inhibition * conv2d(r, surround) + bias`` with ``r = relu(conv2d(input, weight))``; each channel is inhibited
    by itself alone. Texture, which surrounds itself, is suppressed more than an isolated contour.

    Args:
        input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``, any floating dtype.
        weight: ``(C_out, C_in / groups, kH, kW)``, the dtype and device of ``input``.
        inhibition: Strength, no unit: a number, or a tensor of shape ``()``, ``(C_out,)`` or ``(1, C_out, 1, 1)``.
        bias: ``(C_out,)``, any floating dtype, added last, outside the rectification.
        stride, dilation: In pixels, as in ``torch.nn.functional.conv2d``.
        padding: In pixels, or ``"valid"``, or ``"same"``.
        groups: Divides both channel counts.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``, of ``input``; the map is always
            surrounded by zeros.
        surround: ``(H_s, W_s)``, odd sizes, no gradient needed; :func:`surround_kernel` by default.

    Returns:
        ``(N, C_out, H_out, W_out)``, or without ``N`` as the input came.

    Raises:
        ShapeError: shapes disagree. ValueError: an option is out of range. TypeError: dtypes disagree.
        RuntimeError: the kernel does not fit into the padded input.

    Note: Differentiable in all tensors any number of times. No published result is known to use it.

    Source: an unused branch of the code of Bennabhaktula, Alegre, Strisciuglio, Azzopardi, *PushPull-Net:
    Inhibition-driven ResNet robust to image corruptions*, ICPR 2024.
    """
    groups = _options.groups(_NAME, groups)
    _arguments.check_conv(_NAME, input, weight, bias, groups)
    channels = weight.shape[0]
    strides = _options.pair(_NAME, "stride", stride, least=1)
    dilations = _options.pair(_NAME, "dilation", dilation, least=1)
    sides = _options.paddings(_NAME, padding, tuple(weight.shape[-2:]), strides, dilations)
    if surround is None:
        surround = surround_kernel(weight.device, weight.dtype)
    if surround.dim() != 2 or any(size % 2 == 0 for size in surround.shape):
        raise ShapeError(f"{_NAME}: surround must be 2-D with odd sizes, got shape {tuple(surround.shape)}")
    response = F.relu(F.conv2d(_pad(input, sides, padding_mode), weight, None, strides, 0, dilations, groups))
    rows, columns = surround.shape
    each = surround.expand(channels, 1, rows, columns)
    around = F.conv2d(response, each.to(response.dtype), None, 1, (rows // 2, columns // 2), 1, channels)
    out = response - _arguments.strength(_NAME, inhibition, response) * around
    return out if bias is None else out + bias.reshape(-1, 1, 1).to(out.dtype)


def _pad(input: Tensor, sides: tuple[int, int, int, int], mode: str) -> Tensor:
    """``input`` with ``sides`` more pixels at top, bottom, left and right."""
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
    if mode not in modes:
        raise ValueError(f"{_NAME}: padding_mode must be one of {', '.join(map(repr, modes))}, got {mode!r}")
    top, bottom, left, right = sides
    return F.pad(input, (left, right, top, bottom), mode=modes[mode]) if any(sides) else input
