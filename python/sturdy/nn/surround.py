"""Surround suppression as a module."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sturdy.functional.surround import surround_kernel, surround_suppression_conv2d
from sturdy.nn._from_conv import from_conv
from sturdy.nn._inhibited import InhibitedConv2d


class SurroundSuppressionConv2d(InhibitedConv2d):
    """A convolution whose rectified response is inhibited by that in a ring around each pixel.

    ``r - inhibition * conv2d(r, surround) + bias``, see :func:`sturdy.functional.surround_suppression_conv2d`. An
    experiment of the PushPull authors, without published results.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            As in ``torch.nn.Conv2d``.
        inhibition: Strength, no unit. Not used with ``trainable_inhibition``.
        trainable_inhibition: Learn one strength per output channel, started from U(0, 1), as parameter ``inhibition``.

    Attributes:
        surround: The ring, ``(17, 17)``; a buffer that moves with the module and is not in its state dict.

    Shape:
        ``(N, C_in, H, W)`` to ``(N, C_out, H_out, W_out)``, or the same without ``N``.

    Raises:
        ValueError: as ``nn.Conv2d``.

    Source: the code of Bennabhaktula, Alegre, Strisciuglio, Azzopardi, *PushPull-Net: Inhibition-driven ResNet robust
    to image corruptions*, ICPR 2024.
    """

    surround: Tensor

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
        inhibition: float = 1.0,
        trainable_inhibition: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.register_buffer("surround", surround_kernel(self.weight.device, self.weight.dtype), persistent=False)
        self._set_inhibition(inhibition, trainable_inhibition)

    def _reset_own_parameters(self) -> None:
        super()._reset_own_parameters()
        # Of no value yet in a module that came from the meta device by to_empty().
        self.surround = surround_kernel(self.weight.device, self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; see the class."""
        return surround_suppression_conv2d(
            input,
            self.weight,
            self.inhibition,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            surround=self.surround,
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> SurroundSuppressionConv2d:
        """A layer that shares the weight and bias parameters of ``conv``.

        Args:
            conv: A plain ``nn.Conv2d``.
            **options: The keyword-only options of the class.

        Raises:
            TypeError: ``conv`` is of another class, or its parameters are not there yet (a lazy module).
        """
        return from_conv(cls, conv, options)

    def extra_repr(self) -> str:
        """The options, after those of ``nn.Conv2d``."""
        strength = "trainable_inhibition=True" if self.trainable_inhibition else f"inhibition={self.inhibition:g}"
        return f"{super().extra_repr()}, {strength}"
