"""Losses over two or three views of the images: auxiliary cross-entropy and Jensen-Shannon consistency."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy._errors import ShapeError

_LEAST_PROBABILITY = 1e-7


class ACE(nn.Module):
    """Auxiliary cross-entropy: the mean of that on the main images and that on auxiliary ones.

    ``(CE(main, target) + CE(aux, aux_target)) / 2``, with ``main`` the logits of clean or ordinarily augmented images
    on the main route and ``aux`` those of images with AFA on the auxiliary route (:func:`sturdy.nn.route`).

    Args:
        label_smoothing: As in ``torch.nn.functional.cross_entropy``, for both.

    Source: Vaish, Wang, Strisciuglio, *Fourier-basis functions to bridge augmentation gap*, CVPR 2024.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"ACE: label_smoothing must be in [0, 1], got {label_smoothing}")
        self.label_smoothing = float(label_smoothing)

    def forward(self, main: Tensor, aux: Tensor, target: Tensor, aux_target: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            main, aux: Logits, ``(N, K)`` and ``(M, K)``; computed in float32 if they are of half precision.
            target: Classes ``(N,)`` int64, or probabilities ``(N, K)``, as MixUp and CutMix make them.
            aux_target: The same for ``aux``, where each branch draws a mixture of its own; ``target`` by default.

        Returns:
            A scalar, float32 or wider.

        Raises:
            ShapeError: logits are not ``(N, K)``, or targets do not fit them.
        """
        targets = (target, target if aux_target is None else aux_target)
        losses = [
            _cross_entropy("ACE", name, logits, wanted, self.label_smoothing)
            for name, logits, wanted in zip(("main", "aux"), (main, aux), targets, strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def extra_repr(self) -> str:
        """The options."""
        return f"label_smoothing={self.label_smoothing:g}"


class ThreeWayJSD(nn.Module):
    """Cross-entropy on clean images, and agreement of the predictions for three views of them.

    ``CE(clean, target) + lambda_ / 3 * sum over the views of KL(p_i || m)``, with ``p_i`` the softmax of the three
    views' logits and ``m`` their mean, clamped to ``[1e-7, 1]``; KL summed over classes, averaged over images.

    Args:
        lambda_: Weight of the agreement; 10 for CIFAR-10 and TinyImageNet, 1 for CIFAR-100, 12 for ImageNet.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.

    Source: Vaish, Wang, Strisciuglio, CVPR 2024, after Hendrycks et al., *AugMix: A simple data processing method to
    improve robustness and uncertainty*, ICLR 2020.
    """

    def __init__(self, lambda_: float = 10.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not lambda_ >= 0:
            raise ValueError(f"ThreeWayJSD: lambda_ must not be negative, got {lambda_}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"ThreeWayJSD: label_smoothing must be in [0, 1], got {label_smoothing}")
        self.lambda_ = float(lambda_)
        self.label_smoothing = float(label_smoothing)

    def forward(self, clean: Tensor, augmented: Tensor, aux: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            clean: Logits of the clean images on the main route, ``(N, K)``.
            augmented: Those of the images with another augmentation on the main route, same shape.
            aux: Those of the images with AFA on the auxiliary route, same shape.
            target: Classes ``(N,)`` int64, or probabilities ``(N, K)``.

        Returns:
            A scalar, float32 or wider.

        Raises:
            ShapeError: shapes disagree.
        """
        for name, logits in (("augmented", augmented), ("aux", aux)):
            if logits.shape != clean.shape:
                raise ShapeError(
                    f"ThreeWayJSD: {name} must have the shape of clean, {tuple(clean.shape)}, got {tuple(logits.shape)}"
                )
        loss = _cross_entropy("ThreeWayJSD", "clean", clean, target, self.label_smoothing)
        probabilities = [torch.softmax(_wide(logits), dim=1) for logits in (clean, augmented, aux)]
        mean = (probabilities[0] + probabilities[1] + probabilities[2]) / 3
        log_mean = mean.clamp(_LEAST_PROBABILITY, 1).log()
        divergence = sum(F.kl_div(log_mean, p, reduction="batchmean") for p in probabilities)
        return loss + self.lambda_ / 3 * divergence

    def extra_repr(self) -> str:
        """The options."""
        return f"lambda_={self.lambda_:g}, label_smoothing={self.label_smoothing:g}"


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _cross_entropy(loss: str, name: str, logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    if logits.dim() != 2:
        raise ShapeError(f"{loss}: {name} must be logits (N, K), got shape {tuple(logits.shape)}")
    wanted = logits.shape if target.is_floating_point() else logits.shape[:1]
    if target.shape != wanted:
        raise ShapeError(
            f"{loss}: the target of {name} must be classes ({logits.shape[0]},) or probabilities "
            f"{tuple(logits.shape)}, got shape {tuple(target.shape)}"
        )
    wide = _wide(logits)
    return F.cross_entropy(
        wide, target.to(wide.dtype) if target.is_floating_point() else target, label_smoothing=label_smoothing
    )
