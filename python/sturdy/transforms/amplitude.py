"""Augmentations that exchange or mix the amplitudes of images' spectra: APR, FACT and FDA."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.functional import amplitude_mix
from sturdy.transforms.base import Draw, Transform, to_device

# Of each method: along the channels too, and how often.
_DEFAULTS = {"apr": (True, 0.6), "fact": (False, 1.0), "fda": (False, 1.0)}


class AmplitudeMix(Transform):
    """Mixes the amplitudes of images' spectra with those of other images and keeps the phases.

    The label of an image stays that of its phases. Three methods differ in what they mix:

    - ``"apr"``: all amplitudes are exchanged, those of colours too (APR-P);
    - ``"fact"``: all amplitudes are mixed, with a share of the other image that is uniform in ``[0, lam]``;
    - ``"fda"``: those of low frequencies are exchanged, ``|k| <= window * H`` and ``|l| <= window * W``.

    The other images are those of the batch in a random order, or random ones of ``target``. Nothing is clamped by
    default, and nothing is differentiable: results are detached.

    Drawn in this order: whether an image is changed, ``(N,)``; for ``"fact"`` the share, ``(N,)``; the other image,
    ``(N,)``, of the batch by the order of the numbers. With ``same_on_batch`` each is drawn once, so that a whole batch
    is changed or is not, as the authors of APR do it; the order of a batch still takes ``(1, N)`` numbers.

    Args:
        kind: The method.
        lam: Share of the other image's amplitudes, in [0, 1]; for ``"fact"`` the largest.
        window: Half-widths of the box of frequencies around 0 that change, as shares of height and width; one number
            or (rows, columns). None: all frequencies, for ``"fda"`` 0.01.
        color_fft: Transform along the channels as well. None: for ``"apr"`` alone.
        p: Probability that an image is changed. None: 0.6 for ``"apr"``, else 1.
        target: ``(M, C, H, W)``, uint8 or floating: the images to take amplitudes from, for example of another domain.
            Kept as floating point; moves with the module and is not in its state dict.
        clip: The range that results are clamped to; None for none.
        same_on_batch, generator, validate, dtype: As for :class:`sturdy.transforms.Transform`. An image that is not
            changed stays as it is, bit for bit.

    Shape:
        As for :class:`sturdy.transforms.Transform`. A batch of one image, or an image without N, has no other image
        unless there is a ``target``: it is returned as it is, with a warning.

    Raises:
        ValueError: ``kind`` is not one of the three; ``lam`` or ``window`` is not in [0, 1] or negative.
        ShapeError: ``target`` is not of four dimensions, has no images, or does not fit the images.
        Others as :class:`sturdy.transforms.Transform`.

    Source: Chen et al., *Amplitude-phase recombination: Rethinking robustness of convolutional neural networks in
    frequency domain*, ICCV 2021 (APR); Xu et al., *A Fourier-based framework for domain generalization*, CVPR 2021
    (FACT); Yang and Soatto, *FDA: Fourier domain adaptation for semantic segmentation*, CVPR 2020.
    """

    target: Tensor | None

    def __init__(
        self,
        kind: Literal["apr", "fact", "fda"] = "apr",
        lam: float = 1.0,
        window: float | tuple[float, float] | None = None,
        color_fft: bool | None = None,
        p: float | None = None,
        *,
        target: Tensor | None = None,
        clip: tuple[float, float] | None = None,
        same_on_batch: bool = False,
        generator: torch.Generator | None = None,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = self._name()
        if kind not in _DEFAULTS:
            raise ValueError(f"{name}: kind must be 'apr', 'fact' or 'fda', got {kind!r}")
        color, often = _DEFAULTS[kind]
        super().__init__(
            p=often if p is None else p,
            same_on_batch=same_on_batch,
            generator=generator,
            validate=validate,
            dtype=dtype,
        )
        if not 0 <= lam <= 1:
            raise ValueError(f"{name}: lam must be in [0, 1], got {lam}")
        shares = (window, window) if isinstance(window, (int, float)) else window
        if shares is None and kind == "fda":
            shares = (0.01, 0.01)
        if shares is not None and not (len(shares) == 2 and min(shares) >= 0):
            raise ValueError(f"{name}: window must be one or two shares of the size, not negative, got {window}")
        if clip is not None and not (len(clip) == 2 and clip[0] <= clip[1]):
            raise ValueError(f"{name}: clip must be (low, high) with low <= high, or None, got {clip!r}")
        if target is not None and (target.dim() != 4 or len(target) == 0):
            raise ShapeError(f"{name}: target must be (M, C, H, W) with M at least 1, got shape {tuple(target.shape)}")
        self.kind = kind
        self.lam = float(lam)
        self.window = None if shares is None else (float(shares[0]), float(shares[1]))
        self.color_fft = color if color_fft is None else bool(color_fft)
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        self.register_buffer("target", None if target is None else self._as_float(target.detach()), persistent=False)

    def sample(self, draw: Draw, image: Tensor) -> dict[str, Tensor]:
        """Draw what happens to each image.

        Returns:
            ``index (N,)``, int64: the image of the batch, or of ``target``, whose amplitudes it takes, -1 for none;
            ``strength (N or 1,)``, float64: the share of them.
        """
        count = image.shape[0] if image.dim() == 4 else 1
        chosen = draw() < self.p
        strength = torch.full_like(chosen, self.lam, dtype=torch.float64)
        if self.kind == "fact":
            strength = self.lam * draw()
        if self.target is None and count == 1:
            warnings.warn(
                f"{self._name()}: one image has no other to take amplitudes from; it stays as it is", stacklevel=2
            )
            return {"index": torch.full_like(chosen, -1, dtype=torch.int64), "strength": strength}
        if self.target is None:
            numbers = draw() if len(chosen) == count else draw(count)[0]
            other = torch.argsort(numbers, stable=True)
        else:
            other = torch.floor(draw() * len(self.target)).to(torch.int64)
        return {"index": torch.where(chosen, other, -1).expand(count), "strength": strength}

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Mix the amplitudes that ``params`` name; ``(N, C, H, W)`` or ``(C, H, W)``."""
        image = self._as_float(image)
        batched = image if image.dim() == 4 else image[None]
        target = self.target
        if target is not None:
            if target.shape[1:] != batched.shape[1:]:
                raise ShapeError(
                    f"{self._name()}: the images of target are {tuple(target.shape[1:])}, "
                    f"those to change {tuple(batched.shape[1:])}"
                )
            target = target.to(batched.dtype)
        window = None
        if self.window is not None:
            height, width = batched.shape[-2:]
            window = (int(self.window[0] * height), int(self.window[1] * width))
        out = amplitude_mix(
            batched,
            target,
            index=to_device(params["index"], image.device),
            strength=to_device(params["strength"], image.device),
            window=window,
            color_fft=self.color_fft,
            clip=self.clip,
        )
        return out if image.dim() == 4 else out[0]

    def extra_repr(self) -> str:
        """The options."""
        parts = [f"{self.kind!r}, lam={self.lam:g}"]
        if self.window is not None:
            parts.append(f"window=({self.window[0]:g}, {self.window[1]:g})")
        if self.target is not None:
            parts.append(f"target={tuple(self.target.shape)}")
        return ", ".join([*parts, f"color_fft={self.color_fft}", super().extra_repr()])


class SelfAmplitudeMix(Transform):
    """Recombines amplitudes and phases of two distorted versions of the same image (APR-S).

    An image is distorted by one operation drawn from nine: contrast stretched, histogram equalised, posterised,
    rotated, solarised, sheared or shifted along either axis. With probability 1/2 a copy of the result is distorted
    once more, and the result is the phases of one version with the amplitudes of the other, either way with probability
    1/2, clamped to [0, 1]; the authors cast to bytes instead, which wraps around. The operations are those of
    ``torchvision.transforms.v2`` on 8-bit images, one image after the other; it must be installed. Unlike the others it
    waits for numbers that are drawn on a GPU.

    Drawn in this order, ``(N, 9)`` numbers: whether the image is changed; operation, strength and sign of the first;
    whether there is a second; the same three of it; which gives the phases.

    Args:
        severity: Of the operations, 1 to 10; strengths are uniform in [0.1, severity] tenths of their range.
        color_fft: Transform along the channels as well.
        p: Probability that an image is changed.
        same_on_batch, generator, validate, dtype: As for :class:`sturdy.transforms.Transform`. An image that is not
            changed stays as it is, bit for bit; changed ones are rounded to multiples of 1/255 before the operations.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: ``severity`` is not in [1, 10].
        TypeError: an image has neither one nor three channels.
        Others as :class:`sturdy.transforms.Transform`.

    Source: Chen et al., *Amplitude-phase recombination: Rethinking robustness of convolutional neural networks in
    frequency domain*, ICCV 2021; operations after Hendrycks et al., *AugMix: A simple data processing method to improve
    robustness and uncertainty*, ICLR 2020.
    """

    def __init__(
        self,
        severity: float = 3.0,
        *,
        color_fft: bool = True,
        p: float = 1.0,
        same_on_batch: bool = False,
        generator: torch.Generator | None = None,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, generator=generator, validate=validate, dtype=dtype)
        if not 1 <= severity <= 10:
            raise ValueError(f"{self._name()}: severity must be in [1, 10], got {severity}")
        _operations(self._name())  # says now if torchvision is missing
        self.severity = float(severity)
        self.color_fft = bool(color_fft)

    def sample(self, draw: Draw, image: Tensor) -> dict[str, Tensor]:
        """Draw operations for each image.

        Returns:
            ``numbers (N or 1, 9)``, float64 in [0, 1), in the order of the class.
        """
        return {"numbers": draw(9)}

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Distort and recombine as ``params`` say; ``(N, C, H, W)`` or ``(C, H, W)``."""
        if image.shape[-3] not in (1, 3):
            raise TypeError(f"{self._name()}: images must have 1 or 3 channels, got {image.shape[-3]}")
        whole = self._as_float(image)
        batched = whole if whole.dim() == 4 else whole[None]
        rows = params["numbers"].tolist()
        plan = [rows[n if len(rows) > 1 else 0] for n in range(len(batched))]
        changed = [n for n, row in enumerate(plan) if row[0] < self.p]
        if not changed:
            return whole
        phases, amplitudes, index = [], [], []
        bytes_of = image if image.dim() == 4 else image[None]
        for place, n in enumerate(changed):
            one = bytes_of[n]
            if one.dtype != torch.uint8:
                one = (one.clamp(0, 1) * 255).round().to(torch.uint8)
            first = self._distorted(one, *plan[n][1:4])
            second = self._distorted(first, *plan[n][5:8]) if plan[n][4] < 0.5 else first
            swap = plan[n][8] < 0.5
            phases.append(second if swap else first)
            amplitudes.append(first if swap else second)
            index.append(place if plan[n][4] < 0.5 else -1)
        mixed = amplitude_mix(
            (torch.stack(phases).to(batched.dtype) / 255),
            (torch.stack(amplitudes).to(batched.dtype) / 255),
            index=torch.tensor(index, device=image.device),
            color_fft=self.color_fft,
            clip=(0.0, 1.0),
        )
        out = batched.clone()
        out[torch.tensor(changed, device=image.device)] = mixed
        return out if image.dim() == 4 else out[0]

    def _distorted(self, image: Tensor, which: float, strength: float, sign: float) -> Tensor:
        operations = _operations(self._name())
        level = (0.1 + (self.severity - 0.1) * strength) / 10
        return operations[int(which * len(operations))](image, level, 1 if sign < 0.5 else -1)

    def extra_repr(self) -> str:
        """The options."""
        return f"severity={self.severity:g}, color_fft={self.color_fft}, {super().extra_repr()}"


# Maps an uint8 image, a level in (0, 1] and a sign to an image.
_Operation = Callable[[Tensor, float, int], Tensor]


def _operations(name: str) -> list[_Operation]:
    """The operations of AugMix that are not among the corruptions of ImageNet-C."""
    try:
        from torchvision.transforms.v2 import functional as v2
    except ImportError as error:
        raise ImportError(f"{name}: needs torchvision for its image operations: pip install torchvision") from error

    smooth = v2.InterpolationMode.BILINEAR

    def shear(image: Tensor, horizontal: float, vertical: float) -> Tensor:
        degrees = [math.degrees(math.atan(factor)) for factor in (horizontal, vertical)]
        found: Tensor = v2.affine(image, 0.0, [0, 0], 1.0, degrees, interpolation=smooth, center=[0.0, 0.0])
        return found

    def shift(image: Tensor, columns: int, rows: int) -> Tensor:
        found: Tensor = v2.affine(image, 0.0, [columns, rows], 1.0, [0.0, 0.0])
        return found

    return [
        lambda image, level, sign: v2.autocontrast(image),
        lambda image, level, sign: v2.equalize(image),
        lambda image, level, sign: v2.posterize(image, 4 - int(4 * level)),
        lambda image, level, sign: v2.rotate(image, sign * float(int(30 * level)), interpolation=smooth),
        lambda image, level, sign: v2.solarize(image, 256 - int(256 * level)),
        lambda image, level, sign: shear(image, sign * 0.3 * level, 0.0),
        lambda image, level, sign: shear(image, 0.0, sign * 0.3 * level),
        lambda image, level, sign: shift(image, sign * int(image.shape[-1] / 3 * level), 0),
        lambda image, level, sign: shift(image, 0, sign * int(image.shape[-2] / 3 * level)),
    ]
