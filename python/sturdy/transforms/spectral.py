"""A fixed filter in the frequency domain as a transform."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.functional import spectral_filter
from sturdy.transforms.base import Draw, Transform, to_device
from sturdy.transforms.masks import half_mask, mirrored


class SpectralFilter(Transform):
    """Multiplies the spectra of images by a fixed mask: a low-pass filter, a dominant frequency mask, ...

    Args:
        mask: ``(H, W)``, or with ``per_image`` ``(N, H, W)``, one for each image of a batch; bool, integer or
            floating. It is kept in a buffer, so that it moves with the module and is in its state dict.
        layout: ``"shifted"``: frequency 0 at ``(H // 2, W // 2)``; the mask may have any form and acts by its symmetric
            part (:func:`sturdy.transforms.effective_mask`), in which form it is stored. ``"half"``: ``(H, W // 2 + 1)``
            as ``torch.fft.rfft2`` orders frequencies.
        per_image: One mask for each image.
        clip: The range that the result is clamped to; None, the default, for none.
        strict: Refuse a mask of layout ``"shifted"`` that is not symmetric.
        p, same_on_batch, generator, validate, dtype: As for :class:`sturdy.transforms.Transform`. An image that is not
            filtered stays as it is, bit for bit.

    Raises:
        ShapeError: the mask does not fit its layout or the images; says which shapes do.
        TypeError: the mask is complex.
        ValueError: ``strict`` and not symmetric, or an unknown layout.
        Others as :class:`sturdy.transforms.Transform`.
    """

    mask: Tensor

    def __init__(
        self,
        mask: Tensor,
        layout: Literal["shifted", "half"] = "shifted",
        per_image: bool = False,
        clip: tuple[float, float] | None = None,
        *,
        strict: bool = False,
        p: float = 1.0,
        same_on_batch: bool = False,
        generator: torch.Generator | None = None,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, generator=generator, validate=validate, dtype=dtype)
        name = self._name()
        if layout not in ("shifted", "half"):
            raise ValueError(f'{name}: layout must be "shifted" or "half", got {layout!r}')
        if clip is not None and not (len(clip) == 2 and clip[0] <= clip[1]):
            raise ValueError(f"{name}: clip must be (low, high) with low <= high, or None, got {clip!r}")
        if mask.dim() != (3 if per_image else 2):
            wanted = "(N, H, W), one for each image" if per_image else "(H, W)"
            raise ShapeError(f"{name}: the mask must be {wanted}, got shape {tuple(mask.shape)}")
        if mask.is_complex():
            raise TypeError(f"{name}: the mask must be real, got {mask.dtype}")
        self.per_image = bool(per_image)
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        self.width: int | None = None
        if layout == "shifted":
            check_symmetric(name, mask, strict)
            self.width = mask.shape[-1]
            stored = half_mask(mask)
        else:
            stored = mask if mask.dtype == torch.float64 else mask.float()
        self.register_buffer("mask", stored.detach().clone())

    def sample(self, draw: Draw, image: Tensor) -> dict[str, Tensor]:
        """Draw which images are filtered.

        Returns:
            ``index (N,)``, int64: the mask of each image, -1 for none.
        """
        count = image.shape[0] if image.dim() == 4 else 1
        if self.per_image and count != self.mask.shape[0]:
            raise ShapeError(f"{self._name()}: there are {self.mask.shape[0]} masks for {count} images")
        own = torch.arange(count) if self.per_image else torch.zeros(count, dtype=torch.int64)
        if self.p == 1:
            return {"index": own}
        chosen = draw() < self.p
        return {"index": torch.where(chosen, own.to(chosen.device), -1)}

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Filter the images that ``params`` name; ``(N, C, H, W)`` or ``(C, H, W)``."""
        return filter_by_table(
            self._name(), self._as_float(image), self.mask, self.width, params["index"], clip=self.clip
        )

    def extra_repr(self) -> str:
        """The options."""
        shape = (*self.mask.shape[:-1], self.width) if self.width is not None else tuple(self.mask.shape)
        return f"mask={shape}, per_image={self.per_image}, clip={self.clip}, {super().extra_repr()}"


def check_symmetric(name: str, masks: Tensor, strict: bool) -> None:
    """Warn of masks that act by their symmetric part, or refuse them.

    Args:
        name: Of the transform, for the message.
        masks: ``(..., H, W)``, frequency 0 in the middle.
        strict: Raise a ``ValueError`` instead.
    """
    cells = int((masks != mirrored(masks)).sum())
    if cells:
        text = (
            f"{name}: {cells} cells of the mask differ from their mirror images; the mean of both acts on real images"
        )
        if strict:
            raise ValueError(text)
        warnings.warn(text + " (effective_mask gives it)", stacklevel=3)


def filter_by_table(
    name: str,
    image: Tensor,
    table: Tensor,
    width: int | None,
    index: Tensor,
    *,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Filter each image by the mask of a table that ``index`` names, -1 for none.

    Args:
        name: Of the transform, for messages.
        image: ``(N, C, H, W)`` or ``(C, H, W)``, floating.
        table: ``(T, H, W // 2 + 1)`` or ``(H, W // 2 + 1)``, half masks.
        width: The width that the masks were made for, if it is known: 2 m and 2 m + 1 have half masks of one shape.
        index: ``(N,)`` int64.
        clip: The range that results are clamped to.
    """
    height, columns = image.shape[-2:]
    if table.shape[-2:] != (height, columns // 2 + 1) or width not in (None, columns):
        shape = (table.shape[-2], width) if width is not None else tuple(table.shape[-2:])
        raise ShapeError(
            f"{name}: the mask must be ({height}, {columns}), or ({height}, {columns // 2 + 1}) as a half, for images "
            f"of {height} x {columns}, got {shape}"
        )
    masks = table if table.dim() == 3 else table[None]
    masks = masks.to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    batched = image if image.dim() == 4 else image[None]
    out = spectral_filter(batched, masks, layout="half", index=to_device(index, image.device), clip=clip)
    return out if image.dim() == 4 else out[0]
