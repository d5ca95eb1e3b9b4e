"""The layers that are made of torch's operations, straight from their definitions, tap by tap.

Slow and meant to be obviously right. Imports nothing from the package and calls no convolution of torch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def correlate(input: Tensor, weight: Tensor, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """nn.Conv2d with padding of zeros: for every tap one product of all channels, added up."""
    (sh, sw), (ph, pw), (dh, dw) = pair(stride), pair(padding), pair(dilation)
    batch, channels, height, width = input.shape
    padded = input.new_zeros(batch, channels, height + 2 * ph, width + 2 * pw)
    padded[:, :, ph : ph + height, pw : pw + width] = input
    out_channels, _, kh, kw = weight.shape
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    by_group = []
    for image, filters in zip(padded.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        total = input.new_zeros(batch, out_channels // groups, rows, columns)
        for i in range(kh):
            for j in range(kw):
                shifted = image[:, :, i * dh :: sh, j * dw :: sw][:, :, :rows, :columns]
                total = total + torch.einsum("nchw,oc->nohw", shifted, filters[:, :, i, j])
        by_group.append(total)
    return torch.cat(by_group, 1)


def enlarged(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation, corner pixels onto corner pixels, one entry after the other."""
    height, width = weight.shape[2:]
    entries = []
    for i in range(size[0]):
        y = i * (height - 1) / (size[0] - 1) if size[0] > 1 else 0.0
        for j in range(size[1]):
            x = j * (width - 1) / (size[1] - 1) if size[1] > 1 else 0.0
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            low, near = y - top, x - left
            entries.append(
                (1 - low) * (1 - near) * weight[:, :, top, left]
                + (1 - low) * near * weight[:, :, top, right]
                + low * (1 - near) * weight[:, :, bottom, left]
                + low * near * weight[:, :, bottom, right]
            )
    return torch.stack(entries, -1).unflatten(-1, size)


def pull_size(kernel: int, scale: float) -> int:
    size = math.floor(kernel * scale)
    return size + 1 if size % 2 == 0 else size


def push_pull_2020_conv2d(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float = 1.0,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    scale: float = 2.0,
    dual_output: bool = False,
) -> Tensor:
    kernel = (weight.shape[2], weight.shape[3])
    large = tuple(pull_size(k, scale) for k in kernel)
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(pair(dilation), kernel, strict=True))
    elif padding == "valid":
        padding = 0
    wide = tuple(
        p + d * (big - k) // 2 for p, d, big, k in zip(pair(padding), pair(dilation), large, kernel, strict=True)
    )
    offset = 0.0 if bias is None else bias.reshape(-1, 1, 1)
    push = torch.relu(correlate(input, weight, stride, padding, dilation, groups) + offset)
    pull = torch.relu(-correlate(input, enlarged(weight, large), stride, wide, dilation, groups) - offset)
    if dual_output:
        return torch.cat([push, pull], 1)
    strength = inhibition.reshape(-1, 1, 1) if isinstance(inhibition, Tensor) else inhibition
    return push - strength * pull


def surround(size: int = 17, centre: float = 2.0, around: float = 8.0) -> Tensor:
    """Entry by entry: a wide Gaussian less a narrow one, both of volume 1, what is negative cut off, sum 1."""
    middle = size // 2
    ring = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            square = (i - middle) ** 2 + (j - middle) ** 2
            wide = math.exp(-square / (2 * around**2)) / (2 * math.pi * around**2)
            narrow = math.exp(-square / (2 * centre**2)) / (2 * math.pi * centre**2)
            ring[i, j] = max(wide - narrow, 0.0)
    return ring / ring.sum()


def surround_suppression_conv2d(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float = 1.0,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
) -> Tensor:
    response = torch.relu(correlate(input, weight, stride, padding, dilation, groups))
    ring = surround().to(response.dtype)
    one_map_each = response.flatten(0, 1).unsqueeze(1)
    around = correlate(one_map_each, ring[None, None], padding=8).reshape(response.shape)
    strength = inhibition.reshape(-1, 1, 1) if isinstance(inhibition, Tensor) else inhibition
    out = response - strength * around
    return out if bias is None else out + bias.reshape(-1, 1, 1)
