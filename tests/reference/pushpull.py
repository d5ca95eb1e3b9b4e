"""PushPull convolution straight from its definition: two convolutions, an average, two rectifications.

Slow and meant to be obviously right. Imports nothing from the package; autograd differentiates all of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


RANGE_DIMS = {"filter": (1, 2, 3), "channel": (2, 3)}


def pull_kernel(weight: Tensor, range_dims: str = "filter") -> Tensor:
    """Each filter, or each channel of one, mirrored about the middle of its own range.

    amin and amax share a gradient evenly among ties.
    """
    low = weight.amin(dim=RANGE_DIMS[range_dims], keepdim=True)
    high = weight.amax(dim=RANGE_DIMS[range_dims], keepdim=True)
    return -weight + low + high


def pad(input: Tensor, padding, kernel: tuple[int, int], dilation, mode: str) -> Tensor:
    """What both convolutions read. "same" puts the odd pixel at the right and bottom."""
    if padding == "valid":
        return input
    if padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(pair(dilation), kernel, strict=True))
        sides = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
    else:
        rows, columns = pair(padding)
        sides = [columns, columns, rows, rows]
    return F.pad(input, sides, mode="constant" if mode == "zeros" else mode)


def average(map: Tensor, size) -> Tensor:
    """Mean over a centred window of those cells that lie in the map; the map keeps its size."""
    height, width = pair(size or 1)
    if (height, width) == (1, 1):
        return map
    return F.avg_pool2d(map, (height, width), 1, (height // 2, width // 2), count_include_pad=False)


def responses(
    input: Tensor,
    weight: Tensor,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    avg_kernel_size=0,
    padding_mode="zeros",
    range_dims="filter",
) -> tuple[Tensor, Tensor]:
    """Push and averaged pull response, both before rectification."""
    padded = pad(input, padding, weight.shape[2:], dilation, padding_mode)
    push = F.conv2d(padded, weight, None, stride, 0, dilation, groups)
    pull = F.conv2d(padded, pull_kernel(weight, range_dims), None, stride, 0, dilation, groups)
    return push, average(pull, avg_kernel_size)


def push_pull_conv2d(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float = 1.0,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    avg_kernel_size=0,
    padding_mode: str = "zeros",
    range_dims: str = "filter",
) -> Tensor:
    push, pull = responses(input, weight, stride, padding, dilation, groups, avg_kernel_size, padding_mode, range_dims)
    if isinstance(inhibition, Tensor):
        inhibition = inhibition.reshape(-1, 1, 1).to(push.dtype)
    out = torch.relu(push) - inhibition * torch.relu(pull)
    return out if bias is None else out + bias.reshape(-1, 1, 1).to(push.dtype)


def sums_of_magnitudes(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    avg_kernel_size=0,
    padding_mode: str = "zeros",
    range_dims: str = "filter",
) -> dict[str, float]:
    """For each gradient the largest sum of its terms' magnitudes: what the rounding errors of any summation scale with.

    The terms of ``grad_out * (push + |inhibition| * average(m * box + push))`` with every factor made positive, which
    bound those of the gradients term by term.
    """
    x, w, g = (t.detach().double().abs() for t in (input, weight, grad_out))
    alpha = inhibition.detach().double() if isinstance(inhibition, Tensor) else torch.tensor(float(inhibition)).to(w)
    alpha = alpha.abs().reshape(-1, 1, 1).expand(w.shape[0], 1, 1).contiguous()
    leaves = [t.requires_grad_() for t in (x, w, alpha)]
    padded = pad(x, padding, weight.shape[2:], dilation, padding_mode)
    push = F.conv2d(padded, w, None, stride, 0, dilation, groups)
    constant = 2 * w.amax(dim=RANGE_DIMS[range_dims], keepdim=True).expand(w.shape)
    pull = average(F.conv2d(padded, constant, None, stride, 0, dilation, groups) + push, avg_kernel_size)
    found = torch.autograd.grad((g * (push + alpha * pull)).sum(), leaves)
    largest = [grad.amax().item() if grad.numel() else 0.0 for grad in (*found, g.sum(dim=(0, 2, 3)))]
    return dict(zip(("input", "weight", "inhibition", "bias"), largest, strict=True))


def assert_close_to_reference(
    out: Tensor, plain: Tensor, ref: Tensor, *, factor: float = 2.0, slack: float = 0.0, what: str = ""
) -> None:
    """Let the kernel err ``factor`` times as much as plain PyTorch in the same dtype, and four roundings more.

    ``ref`` is the float64 reference. float64 results have no wider reference; they get 1e-13 of the largest value.
    ``slack`` is allowed on top, where a result may cancel to far less than its terms.
    """
    assert out.shape == ref.shape, f"{what}: shape {tuple(out.shape)}, wanted {tuple(ref.shape)}"
    assert out.dtype == plain.dtype, f"{what}: {out.dtype}, wanted {plain.dtype}"
    if out.numel() == 0:
        return
    ref = ref.double()
    relative = 1e-13 if out.dtype == torch.float64 else 4 * torch.finfo(out.dtype).eps
    floor = relative * ref.abs().amax() + torch.finfo(out.dtype).tiny
    allowed = factor * (plain.double() - ref).abs().amax() + floor + slack
    worst = (out.double() - ref).abs().amax()
    assert worst <= allowed, f"{what}: error {worst:.2e} exceeds {allowed:.2e}"  # a NaN fails too
