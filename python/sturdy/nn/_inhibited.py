"""What the convolutions with a strength of inhibition have in common."""

from __future__ import annotations

from torch import nn


class InhibitedConv2d(nn.Conv2d):
    """A convolution with ``inhibition``: a number, or a parameter of one value per output channel."""

    trainable_inhibition: bool
    inhibition: float | nn.Parameter

    def _set_inhibition(self, inhibition: float, trainable: bool) -> None:
        """To be called last in a constructor: draws what the layer has beside weight and bias of ``nn.Conv2d``."""
        self.trainable_inhibition = trainable
        self.inhibition = nn.Parameter(self.weight.new_empty(self.out_channels)) if trainable else float(inhibition)
        self._reset_own_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: the weight as ``nn.Conv2d``, bias from U(-1, 1), trainable inhibition from U(0, 1)."""
        super().reset_parameters()
        if hasattr(self, "trainable_inhibition"):  # not yet while nn.Conv2d is being constructed
            self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1.0, 1.0)
        if isinstance(self.inhibition, nn.Parameter):
            nn.init.uniform_(self.inhibition, 0.0, 1.0)
