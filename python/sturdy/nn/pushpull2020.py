"""The PushPull layer of 2020 as a module."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sturdy.functional.pushpull2020 import enlarge_kernel, pull_kernel_size, push_pull_2020_conv2d
from sturdy.nn._from_conv import from_conv
from sturdy.nn._inhibited import InhibitedConv2d


class PushPull2020Conv2d(InhibitedConv2d):
    """A convolution inhibited by the response to its own kernel, enlarged and of opposite sign.

    ``relu(p + bias) - inhibition * relu(-q - bias)``, see :func:`sturdy.functional.push_pull_2020_conv2d`. The layer
    before :class:`sturdy.nn.PushPullConv2d`; the two share the idea, not the formula.

    Args:
        in_channels, out_channels, stride, padding, dilation, groups, bias, device, dtype: As in ``torch.nn.Conv2d``.
        kernel_size: Of the push kernel, odd.
        padding_mode: ``"zeros"`` alone.
        inhibition: Strength of the pull response, no unit, used as it is; the paper uses 1. Not used with
            ``trainable_inhibition`` or ``dual_output``.
        scale: Size of the pull kernel over that of the push kernel, at least 1; the paper uses 2.
        trainable_inhibition: Learn one strength per output channel as parameter ``inhibition``, used as
            ``relu(inhibition)`` and started from U(1/2 - r, 1/2 + r) with ``r = 1 / sqrt(in_channels * out_channels)``.
        dual_output: Learn ``out_channels / 2`` filters and return push and pull responses one after the other, each
            rectified. The authors call it untested.

    Shape:
        ``(N, C_in, H, W)`` to ``(N, C_out, H_out, W_out)``, or the same without ``N``.

    Raises:
        ValueError: an even kernel, a scale below 1, another padding mode than zeros, an odd number of output channels
            with ``dual_output``, or ``trainable_inhibition`` with it.

    Source: Strisciuglio, Lopez-Antequera, Petkov, *Enhanced robustness of convolutional networks with a push-pull
    inhibition layer*, Neural Computing and Applications, 2020.
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
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        inhibition: float = 1.0,
        scale: float = 2.0,
        trainable_inhibition: bool = False,
        dual_output: bool = False,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"PushPull2020Conv2d: padding_mode must be 'zeros', got {padding_mode!r}")
        if dual_output and out_channels % 2 != 0:
            raise ValueError(f"PushPull2020Conv2d: out_channels must be even with dual_output, got {out_channels}")
        if dual_output and trainable_inhibition:
            raise ValueError("PushPull2020Conv2d: dual_output has no inhibition that could be trained")
        pull_kernel_size(kernel_size, scale)  # refuses what has no pull kernel
        filters = out_channels // 2 if dual_output else out_channels
        super().__init__(
            in_channels, filters, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.out_channels = out_channels
        self.scale = scale
        self.dual_output = dual_output
        self._set_inhibition(inhibition, trainable_inhibition)

    def reset_parameters(self) -> None:
        """Draw new parameters: weight and bias as ``nn.Conv2d``, a trainable inhibition about 1/2."""
        super().reset_parameters()

    def _reset_own_parameters(self) -> None:
        if isinstance(self.inhibition, nn.Parameter):
            spread = (self.in_channels * self.out_channels) ** -0.5
            nn.init.uniform_(self.inhibition, 0.5 - spread, 0.5 + spread)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; see the class."""
        strength = F.relu(self.inhibition) if isinstance(self.inhibition, Tensor) else self.inhibition
        return push_pull_2020_conv2d(
            input,
            self.weight,
            strength,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            scale=self.scale,
            dual_output=self.dual_output,
        )

    @property
    def pull_weight(self) -> Tensor:
        """The kernel of the pull response, ``weight`` enlarged and negated: ``(filters, C_in / groups, K_h, K_w)``."""
        return -enlarge_kernel(self.weight, pull_kernel_size(self.kernel_size, self.scale))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> PushPull2020Conv2d:
        """A layer that shares the weight and bias parameters of ``conv``.

        Args:
            conv: A plain ``nn.Conv2d``.
            **options: The keyword-only options of the class, but for ``dual_output``, which would return twice as many
                channels as ``conv``.

        Raises:
            TypeError: ``conv`` is of another class, or its parameters are not there yet (a lazy module).
            ValueError: its kernel is even, its padding is not of zeros, or an option is out of range.
        """
        if options.get("dual_output"):
            raise ValueError("PushPull2020Conv2d.from_conv: dual_output would double the number of output channels")
        return from_conv(cls, conv, options)

    def extra_repr(self) -> str:
        """The options, after those of ``nn.Conv2d``."""
        own = [f"scale={self.scale:g}"]
        if self.dual_output:
            own.append("dual_output=True")
        else:
            own.append("trainable_inhibition=True" if self.trainable_inhibition else f"inhibition={self.inhibition:g}")
        return ", ".join([super().extra_repr(), *own])
