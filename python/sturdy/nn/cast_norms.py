"""Normalisations that encoders with CAST use."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sturdy._errors import ShapeError


class ScaleNorm(nn.Module):
    """Each token divided by the root of its mean square, times one learned number.

    ``weight * x / sqrt(mean(x^2) + eps)``, the mean over the last dimension, computed in float32 for 16-bit types.

    Args:
        eps: Added to the mean square.
        device, dtype: Of ``weight``, one number, started at 1.

    Shape:
        ``(..., d)`` to the same.

    Source: Nguyen, Salazar, *Transformers without tears*, IWSLT 2019; as the code of Ma et al., *Mega: Moving average
    equipped gated attention*, ICLR 2023, has it.
    """

    def __init__(self, eps: float = 1e-6, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones((), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the scale to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; see the class."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = self.weight.to(wide.dtype) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype)

    def extra_repr(self) -> str:
        """The options."""
        return f"eps={self.eps:g}"


class MaskedBatchNorm(_NormBase):
    """Batch normalisation of tokens whose statistics leave padding out.

    Parameters, buffers and options are those of ``nn.BatchNorm1d``, whose state dict loads; without padding it computes
    the same. It is no subclass, so that ``nn.SyncBatchNorm.convert_sync_batchnorm``, which knows no padding and another
    order of dimensions, leaves it alone.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: As in ``nn.BatchNorm1d``.

    Shape:
        ``(B, N, d)`` or ``(N, d)``, and a padding mask ``(B, N)``, to the same. Padding becomes ``bias`` in training.
    """

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: ``(B, N, d)`` or ``(N, d)``.
            padding: ``(B, N)`` or ``(1, N)`` bool, True where there is no token.

        Raises:
            ValueError: the last dimension is not ``num_features``, or there is a single token to train on.
        """
        if x.dim() not in (2, 3) or x.shape[-1] != self.num_features:
            raise ShapeError(
                f"MaskedBatchNorm: x must be (B, N, {self.num_features}) or (N, {self.num_features}), got shape "
                f"{tuple(x.shape)}"
            )
        if x.numel() == 0:
            return x
        own = self.training or self.running_mean is None
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if padding is not None and own:
            return self._normalise_tokens(x, padding.view(x.shape[:-1]))
        factor = self._factor() if self.training else 0.0
        rows = x.reshape(-1, self.num_features)
        out = F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, own, factor, self.eps)
        return out.view(x.shape)

    def _factor(self) -> float:
        """How much of a new batch goes into the running statistics."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1.0 / float(self.num_batches_tracked)

    def _normalise_tokens(self, x: Tensor, padding: Tensor) -> Tensor:
        mask = padding.unsqueeze(-1)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = mask.numel() - mask.sum()
        some = count.clamp(min=1)
        over = tuple(range(x.dim() - 1))
        mean = wide.masked_fill(mask, 0).sum(over) / some
        centred = (wide - mean).masked_fill(mask, 0)
        var = centred.square().sum(over) / some
        if self.training and self.track_running_stats:
            self._update(mean.detach(), var.detach() * some / (some - 1).clamp(min=1), count)
        out = centred * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            out = out * self.weight
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype)

    def _update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        # A batch of padding alone says nothing.
        factor = (count > 0).to(self.running_mean.dtype) * self._factor()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(var.to(self.running_var.dtype), factor)
