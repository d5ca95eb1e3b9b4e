"""PushPull convolution as a module."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sturdy import _options
from sturdy.functional import push_pull_conv2d
from sturdy.nn._from_conv import from_conv
from sturdy.nn._inhibited import InhibitedConv2d
from sturdy.nn.conv_pair import PushPullConvPair


class PushPullConv2d(InhibitedConv2d):
    """A convolution whose response is inhibited by that to the contrast-inverted kernel; replaces ``nn.Conv2d``.

    ``relu(p) - inhibition * relu(avg_pool(q)) + bias``, see :func:`sturdy.functional.push_pull_conv2d`. Meant for the
    first convolution of a network, which it makes more robust to noise and other corruptions of the input.

    Weight and bias have the names, shapes and meaning of ``nn.Conv2d``, so that a plain layer's state dict loads; a
    bias from there is added after the rectified difference. What follows the layer stays: there is no rectification of
    the result.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            As in ``torch.nn.Conv2d``.
        avg_kernel_size: Odd window of the average that the pull response goes through, in output pixels; 0, 1 or None
            for none. The paper uses 3 and 5.
        inhibition: Strength of the pull response, no unit; the paper uses 1. With ``trainable_inhibition`` it is
            not used.
        trainable_inhibition: Learn one strength per output channel, started from U(0, 1), as parameter ``inhibition``.
        range_dims: ``"filter"`` or ``"channel"``: of which entries the extremes are taken, see the function.
        keep_push: Keep the push response for the backward pass, or compute it again there and save its memory.

    Shape:
        ``(N, C_in, H, W)`` to ``(N, C_out, H_out, W_out)``, or the same without ``N``.

    Raises:
        ValueError, TypeError, RuntimeError: as the function; options are checked at construction.

    Source: Bennabhaktula, Alegre, Strisciuglio, Azzopardi, *PushPull-Net: Inhibition-driven ResNet robust to image
    corruptions*, ICPR 2024.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        avg_kernel_size: int | tuple[int, ...] | None = 0,
        inhibition: float = 1.0,
        trainable_inhibition: bool = False,
        range_dims: str = "filter",
        keep_push: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        _check_options(avg_kernel_size, range_dims)
        self.avg_kernel_size = avg_kernel_size or 0
        self.range_dims = range_dims
        self.keep_push = keep_push
        self._set_inhibition(inhibition, trainable_inhibition)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; see the class."""
        return push_pull_conv2d(
            input,
            self.weight,
            self.inhibition,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            avg_kernel_size=self.avg_kernel_size,
            padding_mode=self.padding_mode,
            range_dims=self.range_dims,
            keep_push=self.keep_push,
        )

    @property
    def pull_weight(self) -> Tensor:
        """The kernel of the pull response, ``-weight + min + max`` over ``range_dims``; the shape of ``weight``."""
        entries = (2, 3) if self.range_dims == "channel" else (1, 2, 3)
        extremes = self.weight.amin(dim=entries, keepdim=True) + self.weight.amax(dim=entries, keepdim=True)
        return extremes - self.weight

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> PushPullConv2d:
        """A PushPull layer that shares the weight and bias parameters of ``conv``.

        Args:
            conv: A plain ``nn.Conv2d``.
            **options: The keyword-only options of the class.

        Raises:
            TypeError: ``conv`` is of another class, or its parameters are not there yet (a lazy module).
        """
        return from_conv(cls, conv, options)

    def to_conv_pair(self) -> PushPullConvPair:
        """The same layer on the same parameters as two ordinary convolutions, for export or debugging."""
        return PushPullConvPair(self)

    def extra_repr(self) -> str:
        """The options, after those of ``nn.Conv2d``."""
        own = [f"avg_kernel_size={self.avg_kernel_size}"]
        own.append("trainable_inhibition=True" if self.trainable_inhibition else f"inhibition={self.inhibition:g}")
        if self.range_dims != "filter":
            own.append(f"range_dims={self.range_dims!r}")
        if not self.keep_push:
            own.append("keep_push=False")
        return ", ".join([super().extra_repr(), *own])


def _check_options(avg_kernel_size: Any, range_dims: str) -> None:
    """Refuse at construction what the function would refuse at the first call."""
    _options.pool("PushPullConv2d", avg_kernel_size)
    _options.channel_range("PushPullConv2d", range_dims)
