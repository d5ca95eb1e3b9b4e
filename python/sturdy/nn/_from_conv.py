"""How a layer of ours takes the place of a plain convolution."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

_Layer = TypeVar("_Layer", bound=nn.Conv2d)
_ARGUMENTS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def from_conv(cls: type[_Layer], conv: nn.Conv2d, options: dict[str, Any]) -> _Layer:
    """A ``cls`` with the arguments of ``conv`` and the same weight and bias parameters, in the same mode.

    Raises:
        TypeError: ``conv`` is of another class than ``nn.Conv2d``, or its parameters are not there yet (a lazy module).
    """
    if type(conv) is not nn.Conv2d:
        raise TypeError(f"{cls.__name__}.from_conv: needs an nn.Conv2d itself, got {type(conv).__name__}")
    same: dict[str, Any] = {name: getattr(conv, name) for name in _ARGUMENTS}
    where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    layer = cls(**same, bias=conv.bias is not None, **where, **options)
    layer.weight = conv.weight
    layer.bias = conv.bias
    layer.train(conv.training)
    return layer
