"""What a training step minimises: views of the images, a pass of the network over them, and a loss.

``ce``
    All augmentations in a row, cross-entropy.
``pair``
    Two views of each image, itself and with the other augmentations; the mean of both cross-entropies, from one pass of
    both.
``ace``
    Two views of each image: the main one, and one with AFA for the auxiliary normalisations; the mean of both
    cross-entropies (:class:`sturdy.losses.ACE`).
``jsd``
    Three views: the image, with another augmentation, and with AFA for the auxiliary normalisations; cross-entropy
    on the first, and agreement of all (:class:`sturdy.losses.ThreeWayJSD`).

With these three crops and flips come first and are common to all views. With ``ace`` and ``jsd`` AFA makes the
auxiliary view, and what else is among the augmentations makes the other one; without anything else that is the image
again. ``jsd`` with PRIME and without AFA takes two views with PRIME, drawn one after the other, and one set of
normalisations for all three.

MixUp and CutMix come after all augmentations but AFA. With ``ace`` the two views are mixed each in a way of its own;
with ``jsd``, where all views are to agree, and ``pair`` they come first and are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.recipes import augment
from sturdy.recipes.keyed_random import KeyedRandom, mix_key
from sturdy.recipes.mixing import Mix, Mixing
from sturdy.recipes.settings import AUXILIARY_AUGMENTATIONS, AUXILIARY_OBJECTIVES, GEOMETRIC_AUGMENTATIONS, Settings

# Where the views of an objective go; see sturdy.nn.route.
ROUTES = {"ce": ("main",), "ace": ("main", "aux"), "jsd": ("main", "main", "aux")}
MIXES = {"ce": 1, "pair": 1, "ace": 2, "jsd": 1}  # how many ways to mix a batch there are in one step


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
        auxiliary = self.kind in AUXILIARY_OBJECTIVES
        self.auxiliary = [f for name, f in built.items() if auxiliary and name in AUXILIARY_AUGMENTATIONS]
        self.other = [f for f in built.values() if f not in self.common and f not in self.auxiliary]
        self.routes = ROUTES[self.kind] if settings.has_auxiliary_view else ()
        self.mixing = Mixing(settings.mixup, settings.cutmix)
        # With ce all augmentations are in a row, and mixing is before this one of them.
        names = list(built)
        self.before_mixing = next((i for i, n in enumerate(names) if n in AUXILIARY_AUGMENTATIONS), len(names))

    def mixes(self, key: int, images: Tensor) -> list[Mix]:
        """How to mix a batch ``(N, C, H, W)``: as many ways as the objective needs, or none without mixing."""
        if not self.mixing:
            return []
        count, height, width = len(images), *images.shape[-2:]
        return [self.mixing.draw(mix_key(key, i), count, height, width) for i in range(MIXES[self.kind])]

    def views(self, images: Tensor, labels: Tensor, random: KeyedRandom, mixes: Sequence[Mix] = ()) -> list[Tensor]:
        """The views of a batch, each ``(N, C, H, W)`` in [0, 1].

        Args:
            images: ``(N, C, H, W)`` in [0, 1].
            labels: ``(N,)`` int64.
            random: One stream per image.
            mixes: What :meth:`mixes` gave.
        """
        if self.kind == "ce":
            images = augment.apply(self.common[: self.before_mixing], images, labels, random)
            images = mixes[0].images(images) if mixes else images
            return [augment.apply(self.common[self.before_mixing :], images, labels, random)]
        common = augment.apply(self.common, images, labels, random)
        if self.kind in ("pair", "jsd"):
            common = mixes[0].images(common) if mixes else common
            other = augment.apply(self.other, common, labels, random)
            if self.kind == "pair":
                return [common, other]
            return [common, other, augment.apply(self.auxiliary or self.other, common, labels, random)]
        other, mixed = augment.apply(self.other, common, labels, random), common
        if mixes:
            other, mixed = mixes[0].images(other), mixes[1].images(common)
        return [other, augment.apply(self.auxiliary, mixed, labels, random)]

    def __call__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        views: list[Tensor],
        labels: Tensor,
        mixes: Sequence[Mix] = (),
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and the logits of its first view.

        Args:
            model: The network, whose normalisations are to be switched.
            forward: How to call it, for example a wrapper for several processes.
            views: What :meth:`views` gave, normalised.
            labels: ``(N,)`` int64.
            mixes: What :meth:`views` mixed them by.
        """
        if self.kind in ("ce", "pair"):
            logits = forward(torch.cat(views) if len(views) > 1 else views[0])
            target = mixes[0].target(labels, logits.shape[1]) if mixes else labels
            whole = torch.cat([target] * len(views)) if len(views) > 1 else target
            return F.cross_entropy(logits.float(), whole), logits[: len(labels)]
        from sturdy.nn import route

        # One pass: a wrapper for several processes does not take two passes before one backward pass.
        with route(model, self.routes) if self.routes else nullcontext():
            parts = forward(torch.cat(views)).chunk(len(views))
        targets = [mix.target(labels, parts[0].shape[1]) for mix in mixes] or [labels]
        return (self.ace if self.kind == "ace" else self.jsd)(*parts, *targets), parts[0]
