"""DFM-X: images that keep only the frequencies on which the recognition of another class rests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.transforms.base import Draw, Transform, to_device
from sturdy.transforms.masks import effective_mask, half_mask
from sturdy.transforms.spectral import check_symmetric, filter_by_table


class DominantFrequencyMix(Transform):
    """Keeps only the dominant frequencies of a randomly drawn other class: augmentation DFM-X.

    For each image a class ``m`` is drawn from all ``K``. If ``m`` is not the label, the image is with probability ``p``
    filtered by the mask of class ``m``; else it stays as it is, bit for bit. So a share of ``p * (K - 1) / K`` of the
    images is filtered. Nothing is clamped: on images in [0, 1] with frequency 0 kept, that equals filtering after a
    normalisation by mean and deviation, as the authors do.

    Call it with images and labels: ``transform(x, y)`` gives the new ``x``, and ``y`` as it was. In a dictionary the
    label is the first value under a key in which "label" or "target" occurs, in a pair it is the second.

    Drawn in this order: the classes, whether an image of another class is filtered; ``(N,)`` each.

    Args:
        masks: ``(K, H, W)``, real, frequency 0 at ``(H // 2, W // 2)``; for files see :func:`load_masks`. They act by
            their symmetric part, and are stored in this form in a buffer.
        p: Probability for an image whose drawn class is not its own.
        num_classes: ``K``, to check the masks against; None for no check.
        invert: Use ``1 - mask``: take the dominant frequencies away instead.
        keep_dc: Keep frequency 0, the mean of the image, whatever the mask says of it, inverted or not.
        strict: Refuse masks that are not symmetric.
        same_on_batch, generator, validate, dtype: As for :class:`sturdy.transforms.Transform`. ``validate`` looks at
            labels on a GPU, too, which otherwise would have to be waited for.

    Raises:
        ShapeError: masks are not ``(K, H, W)``, do not fit the images, or there is another number of labels.
        ValueError: ``strict`` and masks are not symmetric, or ``num_classes`` is not their number.
        TypeError: labels are not int64; there are none; masks are complex.
        IndexError: a label is not in ``0, ..., K - 1``.
        Others as :class:`sturdy.transforms.Transform`.

    Source: Wang, Strisciuglio et al., *DFM-X: Augmentation by leveraging prior knowledge of shortcut learning*, ICCV
    workshops 2023.
    """

    masks: Tensor

    def __init__(
        self,
        masks: Tensor,
        p: float = 0.3,
        num_classes: int | None = None,
        invert: bool = False,
        keep_dc: bool = True,
        *,
        strict: bool = False,
        same_on_batch: bool = False,
        generator: torch.Generator | None = None,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, generator=generator, validate=validate, dtype=dtype)
        name = self._name()
        if masks.dim() != 3 or 0 in masks.shape:
            raise ShapeError(f"{name}: masks must be (classes, H, W), got shape {tuple(masks.shape)}")
        if num_classes is not None and num_classes != masks.shape[0]:
            raise ValueError(f"{name}: there are {masks.shape[0]} masks for {num_classes} classes")
        check_symmetric(name, masks, strict)
        effective = effective_mask(masks.detach())
        empty = (effective == 0).flatten(1).all(dim=1).nonzero().flatten().tolist()
        if empty:
            classes = ", ".join(map(str, empty))
            warnings.warn(f"{name}: the mask of class {classes} is 0 everywhere; it makes images flat", stacklevel=2)
        if invert:
            effective = 1 - effective
        if keep_dc:
            effective[:, effective.shape[1] // 2, effective.shape[2] // 2] = 1
        self.invert = bool(invert)
        self.keep_dc = bool(keep_dc)
        self.width = int(masks.shape[2])
        self.register_buffer("masks", half_mask(effective))

    @property
    def num_classes(self) -> int:
        """``K``."""
        return int(self.masks.shape[0])

    def make_params(
        self,
        inputs: Sequence[Any],
        generator: torch.Generator | None = None,
        labels: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Draw masks for the first image of ``inputs``, whose labels are ``labels`` or beside it in ``inputs``.

        Returns:
            ``index (N,)``, int64: the class whose mask filters each image, -1 for none.
        """
        places = self._places(inputs)
        image = self._checked(inputs[places[0]])
        return self.sample(
            self._draws(image, generator), image, find_labels(self._name(), inputs) if labels is None else labels
        )

    def _make_params(
        self, images: Sequence[Tensor], inputs: tuple[Any, ...], generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        return self.sample(self._draws(images[0], generator), images[0], find_labels(self._name(), inputs))

    def sample(self, draw: Draw, image: Tensor, labels: Tensor | int | None = None) -> dict[str, Tensor]:
        """Parameters for images like ``image`` with these labels, ``(N,)`` int64, from uniform random numbers."""
        count = image.shape[0] if image.dim() == 4 else 1
        own = self._checked_labels(labels, count)
        other = torch.floor(draw() * self.num_classes).to(torch.int64)
        chosen = draw() < self.p
        other, chosen = to_device(other, own.device), to_device(chosen, own.device)
        return {"index": torch.where(chosen & (other != own), other, -1)}

    def _checked_labels(self, labels: Tensor | int | None, count: int) -> Tensor:
        name = self._name()
        if isinstance(labels, bool) or not isinstance(labels, (int, Tensor)):
            raise TypeError(f"{name}: labels must be an int64 tensor or an int, got {type(labels).__name__}")
        own = torch.tensor([labels]) if isinstance(labels, int) else labels.as_subclass(Tensor)
        if own.dtype != torch.int64:
            raise TypeError(f"{name}: labels must be int64, got {own.dtype}")
        own = own.reshape(1) if own.dim() == 0 else own
        if own.shape != (count,):
            raise ShapeError(f"{name}: labels must have shape ({count},), one per image, got {tuple(own.shape)}")
        if (own.device.type == "cpu" or self.validate) and own.numel():
            low, high = int(own.min()), int(own.max())
            if low < 0 or high >= self.num_classes:
                wrong = low if low < 0 else high
                raise IndexError(f"{name}: label {wrong} is not one of the {self.num_classes} classes of the masks")
        return own

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Filter each image by the mask that ``params`` name; ``(N, C, H, W)`` or ``(C, H, W)``."""
        return filter_by_table(self._name(), self._as_float(image), self.masks, self.width, params["index"])

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"masks=({self.num_classes}, {self.masks.shape[1]}, {self.width}), invert={self.invert}, "
            f"keep_dc={self.keep_dc}, {super().extra_repr()}"
        )


def find_labels(name: str, inputs: Sequence[Any]) -> Tensor | int:
    """The labels in a sample: beside the images, or under a key of a dictionary in it."""
    candidates = list(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)) else list(inputs)
    for value in candidates:
        if isinstance(value, Mapping):
            for key, entry in value.items():
                if isinstance(key, str) and ("label" in key.lower() or "target" in key.lower()):
                    found: Tensor | int = entry
                    return found
    if len(candidates) < 2:
        raise TypeError(f"{name}: needs labels: call it with (images, labels), or a dictionary with a key 'labels'")
    second: Tensor | int = candidates[1]
    return second
