"""Masks over the frequencies of an image: their symmetric part, and files of dominant frequency masks.

A mask is ``(..., H, W)`` with frequency 0 at ``(H // 2, W // 2)``, as ``numpy.fft.fftshift`` puts it. On real images it
acts as the mean of itself and its point reflection through frequency 0, its *effective* mask: the real part of a
filtered image keeps nothing else. Report and compare effective masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sturdy._errors import ShapeError

_ORDER = "removal_order"


def effective_mask(mask: Tensor) -> Tensor:
    """The symmetric mask that acts on real images as ``mask`` does.

    Args:
        mask: ``(..., H, W)``, real, frequency 0 in the middle.

    Returns:
        The same shape; float64 for float64, else float32. A mask of zeros and ones gets values 0, 1/2 and 1.

    Raises:
        ShapeError: fewer than two dimensions, or no frequencies. TypeError: the mask is complex.

    Source: derived from ``F(-k) = conj(F(k))`` for real images.
    """
    if mask.is_complex():
        raise TypeError(f"effective_mask: the mask must be real, got {mask.dtype}")
    if mask.dim() < 2 or mask.shape[-1] < 1 or mask.shape[-2] < 1:
        raise ShapeError(f"effective_mask: the mask must be (..., H, W), got shape {tuple(mask.shape)}")
    real = mask if mask.dtype == torch.float64 else mask.float()
    return (real + mirrored(real)) / 2


def mirrored(mask: Tensor) -> Tensor:
    """``mask`` reflected through frequency 0, ``(..., H, W)`` with frequency 0 in the middle."""
    # Reflecting an axis of even length moves frequency 0 from n / 2 to n / 2 - 1.
    shifts = [1 - mask.shape[axis] % 2 for axis in (-2, -1)]
    return mask.flip((-2, -1)).roll(shifts, (-2, -1))


def half_mask(mask: Tensor) -> Tensor:
    """The effective mask in the layout of ``torch.fft.rfft2``: ``(..., H, W // 2 + 1)``, frequency 0 first."""
    whole = torch.fft.ifftshift(effective_mask(mask), dim=(-2, -1))
    return whole[..., : mask.shape[-1] // 2 + 1].contiguous()


@dataclass(frozen=True)
class MaskFile:
    """What a file of dominant frequency masks holds.

    Attributes:
        masks: Name of a network, or of whatever the masks belong to, to ``(K, H, W)`` float32: one mask for each of
            ``K`` classes, as it was found, not made symmetric.
        removal_order: ``(H, W)`` int64, or None: cells that are tried for removal together share a level; the highest
            level goes first; cells of level 0 are never tried and never kept.
    """

    masks: dict[str, Tensor]
    removal_order: Tensor | None = None


def load_masks(path: str | os.PathLike[str]) -> MaskFile:
    """Read a file of dominant frequency masks (DFMs).

    The file is a NumPy ``.npz`` without pickled objects. Each array is ``(K, H, W)``, ``K`` masks with frequency 0 at
    ``(H // 2, W // 2)``, bool, integer or floating, under the name of the network it was found with; an array
    ``removal_order``, if there is one, is ``(H, W)`` and integer. All have the same ``H`` and ``W``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of this format; names the file and the array.
    """
    path = Path(path)
    masks: dict[str, Tensor] = {}
    order: Tensor | None = None
    for name, array in _arrays(path).items():
        whole = np.issubdtype(array.dtype, np.integer)
        if name == _ORDER:
            if array.ndim != 2 or not whole:
                raise ValueError(f"{path}: {name} must be integers (H, W), got {array.dtype} {array.shape}")
            order = torch.from_numpy(array.astype(np.int64))
            continue
        if array.ndim != 3 or not (whole or array.dtype == bool or np.issubdtype(array.dtype, np.floating)):
            raise ValueError(f"{path}: {name} must be real masks (classes, H, W), got {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
        masks[name] = torch.from_numpy(array.astype(np.float32))
    if not masks:
        raise ValueError(f"{path} holds no masks")
    sizes = {tuple(mask.shape[1:]) for mask in masks.values()} | ({tuple(order.shape)} if order is not None else set())
    if len(sizes) > 1:
        raise ValueError(f"{path}: all arrays must have the same height and width, got {sorted(sizes)}")
    return MaskFile(masks, order)


def save_masks(path: str | os.PathLike[str], masks: Mapping[str, Tensor], removal_order: Tensor | None = None) -> None:
    """Write a file that :func:`load_masks` reads.

    Args:
        path: With the ending ``.npz``.
        masks: Name to ``(K, H, W)``. Masks of zeros and ones are stored in a byte each, others as float32.
        removal_order: ``(H, W)`` integers, or None.

    Raises:
        ValueError: ``path`` ends otherwise, a name is reserved, or shapes are not these.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"save_masks: the file name must end in .npz, got {path.name}")
    if not masks or _ORDER in masks:
        raise ValueError(f"save_masks: needs at least one set of masks, and none called {_ORDER}")
    arrays: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        if mask.dim() != 3:
            raise ValueError(f"save_masks: {name} must be (classes, H, W), got shape {tuple(mask.shape)}")
        binary = bool(((mask == 0) | (mask == 1)).all())
        arrays[name] = mask.detach().cpu().to(torch.uint8 if binary else torch.float32).numpy()
    if removal_order is not None:
        if removal_order.dim() != 2:
            raise ValueError(f"save_masks: removal_order must be (H, W), got shape {tuple(removal_order.shape)}")
        arrays[_ORDER] = removal_order.detach().cpu().to(torch.int64).numpy()
    with open(path, "wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and the npy reader each have their own exceptions
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is truncated or not a file of masks ({text[:120]})") from None
