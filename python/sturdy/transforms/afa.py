"""AFA: images to which plane waves of random frequency, direction and strength are added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sturdy.functional import wave_add
from sturdy.transforms.base import Draw, Transform, to_device

# A wave of L2 norm N / 32 on N x N pixels has the amplitude (N / 32) / (N / sqrt(2)), whatever its frequency, since the
# norm of sin(... - pi / 4) over a grid that is symmetric about 0 is N / sqrt(2) exactly.
AMPLITUDE_PER_STRENGTH = math.sqrt(2.0) / 32.0

_PHASE = -math.pi / 4


class FourierBasisAugment(Transform):
    """Adds plane waves to images: augmentation with Fourier-basis functions (AFA).

    ``clamp(x + mean over the waves of amplitude * sin(2 pi k / max(H, W) * (y cos(phi) + x sin(phi)) - pi / 4))``, with
    pixel coordinates from the middle of the image, a frequency ``k`` (cycles per image) uniform on ``1, 2, ...,
    max_freq`` and a direction ``phi`` uniform on ``granularity`` equally spaced angles, 0 and ``-pi`` among them.

    **Strength.** The authors divide a wave by its L2 norm and multiply it with a strength and a thirty-second of the
    side of the image. That is an amplitude (peak value) of ``0.0442 * strength``, for all sizes and frequencies. The
    strength is exponentially distributed with mean ``mean_strength``, plus ``min_strength``: a mean of 10 gives a mean
    amplitude of 0.44, above 1 for one wave in ten. ``amplitude`` says it directly.

    Drawn in this order: frequencies ``(C, F)``, directions ``(C, F, P)``, strengths ``(C, F, P)`` and, for ``p`` other
    than 0 and 1, whether an image is changed. One that is not is clamped only.

    Args:
        mean_strength: Mean of the exponential part of the strength.
        min_strength: Added to it.
        waves: ``(F, P)``: so many frequencies per channel, each in so many directions; the waves are averaged.
        max_freq: Highest frequency in cycles per image; ``max(H, W)`` by default, as the authors have it. Above half
            of that a wave can alias: it is sampled as one of a lower frequency.
        granularity: Number of directions.
        mode: ``"centered"``: coordinates in pixels, any size. ``"reference"``: the grid of the authors' code, which
            stretches coordinates by ``N / (N - 1)``, for square images alone.
        p, same_on_batch, generator, validate, dtype: As for :class:`sturdy.transforms.Transform`.
        per_channel: Draw waves of its own for each channel; else the channels share them.
        clip: The range that the result is clamped to; None for none.
        amplitude: In place of the strengths: the amplitude of every wave in units of the image, or a pair
            ``(low, high)`` between which it is uniform.

    Raises:
        ValueError: an option is out of range, ``amplitude`` is given beside strengths, or ``mode="reference"`` gets an
            image that is not square. Others as :class:`sturdy.transforms.Transform`.

    Example::

        augment = FourierBasisAugment(mean_strength=10)
        params = augment.make_params([x])   # frequency, amplitude and phase, as wave_add takes them
        y = augment(x, params=params)       # the same again, at any time and on any device

    Source: Vaish, Wang, Strisciuglio, *Fourier-basis functions to bridge augmentation gap: Rethinking frequency
    augmentation in image classification*, CVPR 2024.
    """

    def __init__(
        self,
        mean_strength: float = 10.0,
        min_strength: float = 0.0,
        waves: tuple[int, int] = (1, 1),
        max_freq: int | None = None,
        granularity: int = 448,
        mode: Literal["centered", "reference"] = "centered",
        p: float = 1.0,
        same_on_batch: bool = False,
        per_channel: bool = True,
        clip: tuple[float, float] | None = (0.0, 1.0),
        generator: torch.Generator | None = None,
        *,
        amplitude: float | tuple[float, float] | None = None,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, generator=generator, validate=validate, dtype=dtype)
        name = self._name()
        for option, value in (("mean_strength", mean_strength), ("min_strength", min_strength)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: {option} must not be negative, got {value}")
        if len(waves) != 2 or min(waves) < 1:
            raise ValueError(f"{name}: waves must be (frequencies, directions), both at least 1, got {waves!r}")
        if max_freq is not None and max_freq < 1:
            raise ValueError(f"{name}: max_freq must be at least 1, got {max_freq}")
        if granularity < 2:
            raise ValueError(f"{name}: granularity must be at least 2, got {granularity}")
        if mode not in ("centered", "reference"):
            raise ValueError(f'{name}: mode must be "centered" or "reference", got {mode!r}')
        if clip is not None and not (len(clip) == 2 and clip[0] <= clip[1]):
            raise ValueError(f"{name}: clip must be (low, high) with low <= high, or None, got {clip!r}")
        self.mean_strength = float(mean_strength)
        self.min_strength = float(min_strength)
        self.waves = (int(waves[0]), int(waves[1]))
        self.max_freq = max_freq
        self.granularity = int(granularity)
        self.mode = mode
        self.per_channel = bool(per_channel)
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        self.amplitude = self._amplitude_range(amplitude)

    def _amplitude_range(self, amplitude: float | tuple[float, float] | None) -> tuple[float, float] | None:
        if amplitude is None:
            return None
        pair = amplitude if isinstance(amplitude, (tuple, list)) else (amplitude, amplitude)
        if len(pair) != 2 or not (0 <= pair[0] <= pair[1] and math.isfinite(pair[1])):
            raise ValueError(
                f"{self._name()}: amplitude must be a number from 0 or a pair (low, high), got {amplitude!r}"
            )
        if (self.mean_strength, self.min_strength) != (10.0, 0.0):
            raise ValueError(f"{self._name()}: give mean_strength and min_strength, or amplitude, not both")
        return float(pair[0]), float(pair[1])

    def sample(self, draw: Draw, image: Tensor) -> dict[str, Tensor]:
        """Draw waves.

        Returns:
            ``frequency (N or 1, C or 1, F * P, 2)``, in cycles per pixel, ``amplitude (N or 1, C or 1, F * P)``,
            divided by the number of waves already, and ``phase (1, 1, 1)``, float64: arguments of
            :func:`sturdy.functional.wave_add`. No waves at all for ``p=0``.
        """
        channels, height, width = image.shape[-3:]
        side = max(height, width)
        if self.mode == "reference" and (height != width or side < 2):
            raise ValueError(
                f'{self._name()}: mode="reference" needs square images of 2 x 2 pixels or more, got {height} x {width}'
                '; use mode="centered"'
            )
        frequencies, directions = self.waves
        if self.p == 0:
            frequencies = 0
        planes = channels if self.per_channel else 1
        # The reference has its first and last pixel half a side from the middle, so that a step is N / (N - 1).
        scale = 1.0 / (side - 1 if self.mode == "reference" else side)
        cycles = torch.floor(draw(planes, frequencies) * (self.max_freq or side)) + 1
        turn = torch.floor(draw(planes, frequencies, directions) * self.granularity) / (self.granularity - 1)
        angle = -math.pi * turn
        frequency = torch.stack((torch.cos(angle), torch.sin(angle)), dim=-1) * (cycles * scale)[..., None, None]
        amplitude = self._amplitudes(draw(planes, frequencies, directions)) / max(1, frequencies * directions)
        if 0 < self.p < 1:
            amplitude = torch.where((draw() < self.p)[:, None, None, None], amplitude, 0.0)
        return {
            "frequency": frequency.flatten(2, 3),
            "amplitude": amplitude.flatten(2, 3),
            "phase": torch.full((1, 1, 1), _PHASE, dtype=torch.float64, device=amplitude.device),
        }

    def _amplitudes(self, uniform: Tensor) -> Tensor:
        if self.amplitude is not None:
            low, high = self.amplitude
            return low + (high - low) * uniform
        return (self.min_strength - self.mean_strength * torch.log1p(-uniform)) * AMPLITUDE_PER_STRENGTH

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Add the waves that ``params`` describe; ``(N, C, H, W)`` or ``(C, H, W)``."""
        waves = {key: to_device(params[key], image.device) for key in ("frequency", "amplitude", "phase")}
        if waves["frequency"].shape[-2] == 0:
            return self._as_float(image)
        wanted = self.dtype if image.dtype == torch.uint8 else None
        return wave_add(image, **waves, clip=self.clip, dtype=wanted)

    def extra_repr(self) -> str:
        """The options."""
        if self.amplitude is None:
            strength = f"mean_strength={self.mean_strength:g}, min_strength={self.min_strength:g}"
        else:
            strength = f"amplitude={self.amplitude}"
        return (
            f"{strength}, waves={self.waves}, max_freq={self.max_freq}, granularity={self.granularity}, "
            f"mode={self.mode!r}, per_channel={self.per_channel}, clip={self.clip}, {super().extra_repr()}"
        )
