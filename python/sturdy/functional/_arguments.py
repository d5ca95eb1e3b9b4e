"""Checks of tensor arguments for the functions that are made of torch's own convolutions.

Those with kernels of ours leave this to the C library, which says the same in the same words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sturdy._errors import ShapeError


def check_conv(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """Refuse an input, weight and bias that do not make a 2-D convolution.

    Raises:
        ShapeError: ranks or channel counts disagree. TypeError: dtypes disagree, or are not floating point.
    """
    if input.dim() not in (3, 4):
        raise ShapeError(
            f"{op}: input must be (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)} for weight of shape "
            f"{tuple(weight.shape)}"
        )
    if weight.dim() != 4:
        raise ShapeError(f"{op}: weight must be (O, C / groups, kH, kW), got shape {tuple(weight.shape)}")
    for name, tensor in (("input", input), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, got {tensor.dtype}")
    if input.dtype != weight.dtype and not autocast_enabled(input.device.type):
        raise TypeError(f"{op}: weight must have the dtype of input, {input.dtype}, got {weight.dtype}")
    channels = input.shape[-3]
    if channels != weight.shape[1] * groups:
        raise ShapeError(
            f"{op}: weight must have {channels} / {groups} input channels (in_channels / groups), got "
            f"{weight.shape[1]}; input has shape {tuple(input.shape)}, weight {tuple(weight.shape)}"
        )
    if weight.shape[0] % groups != 0:
        raise ShapeError(f"{op}: {weight.shape[0]} filters are not divisible by groups={groups}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(f"{op}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def autocast_enabled(device: str) -> bool:
    """Whether an autocast region for this kind of device is around the call."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def strength(op: str, inhibition: Tensor | float, map: Tensor) -> Tensor | float:
    """The strength as a number, or as a tensor that multiplies ``map``, ``(..., O, H, W)``, in its dtype.

    Raises:
        ShapeError: a tensor is not of shape ``()``, ``(1,)``, ``(O,)`` or ``(1, O, 1, 1)``.
    """
    if not isinstance(inhibition, Tensor):
        return float(inhibition)
    shape, out_channels = tuple(inhibition.shape), map.shape[-3]
    if shape not in ((), (1,), (out_channels,), (1, out_channels, 1, 1)):
        raise ShapeError(
            f"{op}: inhibition must be a number or have shape (), ({out_channels},) or (1, {out_channels}, 1, 1), "
            f"got {shape}"
        )
    return inhibition.reshape(-1, 1, 1).to(map.dtype)
