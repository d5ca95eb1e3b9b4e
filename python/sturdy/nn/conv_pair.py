"""PushPull convolution as the two convolutions of its definition, for export and for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from sturdy import _options

if TYPE_CHECKING:
    from sturdy.nn.pushpull import PushPullConv2d

_PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class PushPullConvPair(nn.Module):
    """What a :class:`sturdy.nn.PushPullConv2d` computes, in torch's own operations and on the same parameters.

    Made by :meth:`sturdy.nn.PushPullConv2d.to_conv_pair`. It needs none of our kernels where it is exported to: its
    operations are minimum, maximum, convolution, average, ReLU, product, difference and sum, and padding where that is
    not of zeros or not the same on both sides. Slower, and keeps several maps for the backward pass.

    Args:
        layer: The layer whose parameters it shares: what is learned here is learned there.

    Shape:
        ``(N, C_in, H, W)`` to ``(N, C_out, H_out, W_out)``, or the same without ``N``.

    Raises:
        RuntimeError: as torch's operations.
    """

    def __init__(self, layer: PushPullConv2d) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.inhibition: float | nn.Parameter = layer.inhibition
        self.stride, self.dilation = (
            _options.pair("PushPullConvPair", name, getattr(layer, name), least=1) for name in ("stride", "dilation")
        )
        self.groups = layer.groups
        self.sides = _options.paddings("PushPullConvPair", layer.padding, layer.kernel_size, self.stride, self.dilation)
        self.padding_mode = layer.padding_mode
        self.avg_kernel_size = _options.pool("PushPullConvPair", layer.avg_kernel_size)
        self.range_dims = layer.range_dims
        self.train(layer.training)

    @property
    def pull_weight(self) -> Tensor:
        """The kernel of the pull response, the shape of ``weight``."""
        entries = (2, 3) if self.range_dims == "channel" else (1, 2, 3)
        low = self.weight.amin(dim=entries, keepdim=True)
        high = self.weight.amax(dim=entries, keepdim=True)
        return low + high - self.weight

    def forward(self, input: Tensor) -> Tensor:
        """Apply both convolutions; see :func:`sturdy.functional.push_pull_conv2d`."""
        top, bottom, left, right = self.sides
        padding = (top, left)
        if self.padding_mode != "zeros" or top != bottom or left != right:
            input = F.pad(input, (left, right, top, bottom), mode=_PADDING_MODES[self.padding_mode])
            padding = (0, 0)
        push = F.conv2d(input, self.weight, None, self.stride, padding, self.dilation, self.groups)
        pull = F.conv2d(input, self.pull_weight, None, self.stride, padding, self.dilation, self.groups)
        rows, columns = self.avg_kernel_size
        if (rows, columns) != (1, 1):
            pull = F.avg_pool2d(pull, (rows, columns), 1, (rows // 2, columns // 2), count_include_pad=False)
        strength = _per_channel(self.inhibition, push) if isinstance(self.inhibition, Tensor) else self.inhibition
        out = F.relu(push) - strength * F.relu(pull)
        return out if self.bias is None else out + _per_channel(self.bias, out)

    def extra_repr(self) -> str:
        """The options that differ from those of a plain layer."""
        own = f"weight={tuple(self.weight.shape)}, stride={self.stride}, padding={self.sides}"
        return f"{own}, avg_kernel_size={self.avg_kernel_size}, range_dims={self.range_dims!r}"


def _per_channel(values: Tensor, map: Tensor) -> Tensor:
    """``(C,)`` in the shape and dtype in which it acts on ``(..., C, H, W)``."""
    values = values.view(-1, 1, 1)
    return values if values.dtype == map.dtype else values.to(map.dtype)  # a cast, even an idle one, shows in an export
