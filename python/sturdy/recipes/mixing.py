"""MixUp and CutMix: each image of a batch is mixed with another one, and so are their labels.

A batch takes one of the two, with equal probability where both are on; one share and one permutation, and for CutMix
one box, hold for the whole batch. They follow from a key alone, so that a resumed run mixes as the run would have.

Sources: Zhang et al., *mixup: Beyond empirical risk minimization*, ICLR 2018; Yun et al., *CutMix: Regularization
strategy to train strong classifiers with localizable features*, ICCV 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.recipes.keyed_random import mix_key


@dataclass(frozen=True)
class Mix:
    """What happens to the images and labels of one batch.

    Attributes:
        partner: ``(N,)`` int64, the other image of each.
        share: How much of the label stays; the rest is the partner's.
        box: CutMix: top, left, bottom and right edge of what comes from the partner. None: MixUp.
    """

    partner: Tensor
    share: float
    box: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor) -> Tensor:
        """Mixed images of the same shape, ``(N, C, H, W)``."""
        others = images[self.partner.to(images.device)]
        if self.box is None:
            return torch.lerp(others, images, self.share)
        top, left, bottom, right = self.box
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        return mixed

    def target(self, labels: Tensor, num_classes: int) -> Tensor:
        """Probabilities ``(N, num_classes)``, float32, for classes ``(N,)``."""
        own = F.one_hot(labels, num_classes).float()
        return torch.lerp(own[self.partner.to(labels.device)], own, self.share)


@dataclass(frozen=True)
class Mixing:
    """Draws what happens to batches.

    Attributes:
        mixup, cutmix: The shares of MixUp and the areas of CutMix are from Beta(a, a) with this a; 0 is off.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, key: int, count: int, height: int, width: int) -> Mix:
        """The mix of a batch of so many images of this size."""
        random = np.random.default_rng(mix_key(key, "mix"))
        kinds = [kind for kind, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)) if alpha > 0]
        kind = kinds[int(random.integers(len(kinds)))]
        partner = torch.from_numpy(random.permutation(count))
        alpha = self.mixup if kind == "mixup" else self.cutmix
        share = float(random.beta(alpha, alpha))
        if kind == "mixup":
            return Mix(partner, share)
        # A box of the images' shape around a random pixel; what lies beyond the border is cut off, and the share
        # follows from what is left.
        half = 0.5 * math.sqrt(1 - share)
        row, column = (int(random.integers(size)) for size in (height, width))
        top, bottom = max(0, row - int(half * height)), min(height, row + int(half * height))
        left, right = max(0, column - int(half * width)), min(width, column + int(half * width))
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return Mix(partner, share, (top, left, bottom, right))
