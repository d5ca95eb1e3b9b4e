"""What a training step minimises: views of the images, a pass of the network over them, and a loss.

``ce``
    All augmentations in a row, cross-entropy.
``ace``
    Two views of each image: the main one, and one with AFA for the auxiliary normalisations; the mean of both
    cross-entropies (:class:`sturdy.losses.ACE`).
``jsd``
    Three views: the image, with another augmentation, and with AFA for the auxiliary normalisations; cross-entropy
    on the first, and agreement of all (:class:`sturdy.losses.ThreeWayJSD`).

With ``ace`` and ``jsd`` crops and flips come first and are common to all views, AFA makes the auxiliary view, and what
else is among the augmentations makes the other one; without anything else that is the image again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.recipes import augment
from sturdy.recipes.keyed_random import KeyedRandom
from sturdy.recipes.settings import AUXILIARY_AUGMENTATIONS, GEOMETRIC_AUGMENTATIONS, Settings

# Where the views of an objective go; see sturdy.nn.route.
ROUTES = {"ce": ("main",), "ace": ("main", "aux"), "jsd": ("main", "main", "aux")}


class Objective:
    """The objective of a run.

    Args:
        settings: Of the run.
        masks: Dominant frequency masks of the classes, for the augmentation ``dfmx``.
        device: Where the images will be.
    """

    def __init__(self, settings: Settings, masks: Tensor | None, device: torch.device) -> None:
        from sturdy.losses import ACE, ThreeWayJSD

        self.kind = settings.objective
        self.ace, self.jsd = ACE(), ThreeWayJSD(settings.jsd_lambda)
        built = augment.build(settings, masks, device)
        split = self.kind != "ce"
        self.common = [f for name, f in built.items() if not split or name in GEOMETRIC_AUGMENTATIONS]
        self.auxiliary = [f for name, f in built.items() if split and name in AUXILIARY_AUGMENTATIONS]
        self.other = [f for f in built.values() if f not in self.common and f not in self.auxiliary]

    def views(self, images: Tensor, labels: Tensor, random: KeyedRandom) -> list[Tensor]:
        """The views of a batch, each ``(N, C, H, W)`` in [0, 1]."""
        common = augment.apply(self.common, images, labels, random)
        if self.kind == "ce":
            return [common]
        other = augment.apply(self.other, common, labels, random)
        auxiliary = augment.apply(self.auxiliary, common, labels, random)
        return [other, auxiliary] if self.kind == "ace" else [common, other, auxiliary]

    def __call__(
        self, model: nn.Module, forward: Callable[[Tensor], Tensor], views: list[Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and the logits of its first view.

        Args:
            model: The network, whose normalisations are to be switched.
            forward: How to call it, for example a wrapper for several processes.
            views: What :meth:`views` gave, normalised.
            labels: ``(N,)`` int64.
        """
        if self.kind == "ce":
            logits = forward(views[0])
            return F.cross_entropy(logits.float(), labels), logits
        from sturdy.nn import route

        # One pass: a wrapper for several processes does not take two passes before one backward pass.
        with route(model, ROUTES[self.kind]):
            parts = forward(torch.cat(views)).chunk(len(views))
        loss = self.ace(*parts, labels) if self.kind == "ace" else self.jsd(*parts, labels)
        return loss, parts[0]
