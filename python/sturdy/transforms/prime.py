"""PRIME: images warped, recoloured and filtered at random, in chains that are mixed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sturdy import functional
from sturdy.transforms.base import Draw, Transform, to_device

WARP, COLOR, FILTER = range(3)
_OPS = 3


@dataclass(frozen=True)
class PrimePreset:
    """How strongly :class:`Prime` changes images.

    Attributes:
        warp_cut: Most half waves of a displacement field along an axis; at least 3.
        color_cut: Highest frequency of a change of colour, in half periods over [0, 1].
        color_temperature: Highest variance of its coefficients.
        color_band: So many neighbouring frequencies at a time; None for all from 1 on.
        filter_sigma: Highest standard deviation of a filter's coefficients.
    """

    warp_cut: int
    color_cut: int
    color_temperature: float
    color_band: int | None
    filter_sigma: float

    def __post_init__(self) -> None:
        if self.warp_cut < 3 or self.color_cut < 1 or (self.color_band is not None and self.color_band < 1):
            raise ValueError(
                f"PrimePreset: warp_cut must be at least 3, color_cut and color_band at least 1, got {self}"
            )
        for value in (self.color_temperature, self.filter_sigma):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"PrimePreset: color_temperature and filter_sigma must not be negative, got {self}")


PRESETS = {
    "cifar": PrimePreset(100, 100, 0.01, None, 4.0),
    "imagenet": PrimePreset(500, 500, 0.05, 20, 4.0),
}


class Prime(Transform):
    """Warps, recolours and filters images at random: augmentation PRIME.

    Each image goes through ``width`` chains of 1 to ``depth`` changes; the results are averaged with random weights
    (Dirichlet, all concentrations 1), and that is mixed with the image itself (a uniform share). Every change in a
    chain is one of, with equal probability,

    - a **warp** (:func:`sturdy.functional.sine_warp`): with ``m`` uniform on 3, ..., ``warp_cut``, the cut-off ``c`` is
      ``floor(2 + (m - 1) b)`` with ``b`` from Beta(1/2, 1/2). Coefficients are normal with deviation ``sqrt(T) side /
      r`` where ``r = sqrt(i^2 + j^2) < c + 1/2``, else 0. ``T`` lies between ``T1 = 1 / (pi n^2 ln c)``, a typical
      displacement of half a pixel, and ``max(T1, T2)``, ``T2 = 4 / (pi^3 c^2 ln c)``, beyond which images fold over, at
      a share from Beta(1/2, 1/2). ``n`` is the longer side of the image.
    - a change of **colour** (:func:`sturdy.functional.smooth_color`): coefficients of each channel are normal with a
      variance uniform on 0 to ``color_temperature``, for frequencies up to a cut-off uniform on 1, ..., ``color_cut``;
      with ``color_band`` only so many of them, from one uniform on 1 to the cut-off. Clamped to [0, 1].
    - a **filter** (:func:`sturdy.functional.filter2d`) of 3 x 3, the same for all channels: a delta plus normal numbers
      with a deviation uniform on 0 to ``filter_sigma``. Clamped to [0, 1].

    The authors evaluate all three changes on all images and keep one; here each is evaluated on the images that drew
    it. They draw cut-offs, ``T``, deviations and fields once for the whole batch; here each image has its own. The
    chains of an image share the field of a step, as theirs do.

    Drawn in this order: weights ``(width,)``, share ``()``, number of changes ``(width,)``, kinds ``(width, depth)``;
    for each step a field's ``m``, cut-off and ``T``, ``()`` each, and coefficients ``(2, I, J)``; cut-offs, variances,
    first frequencies (with ``color_band``) and coefficients of colour, ``(width, depth)``, and with ``(C, K)`` twice;
    deviations and coefficients of filters, ``(width, depth)``, and with ``(9,)`` twice; and, for ``p`` other than 0 and
    1, whether an image is changed. Normal numbers are those of Box and Muller, in float32.

    Args:
        width: Number of chains.
        depth: Most changes in a chain.
        preset: ``"cifar"``, ``"imagenet"`` or a :class:`PrimePreset`.
        center: Where the delta of a filter is: ``"true"``: in the middle, so that a deviation of 0 changes nothing;
            ``"reference"``: at index 2 of both axes, as in the authors' code, which shifts the image by a pixel.
        same_field: Draw one field for a step of all images, as the authors do.
        p, same_on_batch, generator, validate, dtype: As for :class:`sturdy.transforms.Transform`. A generator on a GPU
            makes each call wait for the kinds that were drawn there, which decide what is launched.

    Raises:
        ValueError: an option is out of range. Others as :class:`sturdy.transforms.Transform`.

    Note:
        The result has no gradient: images are detached.

    Source: Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, *PRIME: A few primitives can boost robustness to
    common corruptions*, ECCV 2022; fields after Petrini, Favero, Geiger, Wyart, NeurIPS 2021.
    """

    def __init__(
        self,
        width: int = 3,
        depth: int = 3,
        preset: str | PrimePreset = "cifar",
        center: Literal["true", "reference"] = "true",
        same_field: bool = False,
        p: float = 1.0,
        same_on_batch: bool = False,
        generator: torch.Generator | None = None,
        *,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, generator=generator, validate=validate, dtype=dtype)
        name = self._name()
        for option, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name}: {option} must be at least 1, got {value}")
        if isinstance(preset, str) and preset not in PRESETS:
            known = ", ".join(map(repr, PRESETS))
            raise ValueError(f"{name}: preset must be one of {known} or a PrimePreset, got {preset!r}")
        if center not in ("true", "reference"):
            raise ValueError(f'{name}: center must be "true" or "reference", got {center!r}')
        self.width = int(width)
        self.depth = int(depth)
        self.preset = PRESETS[preset] if isinstance(preset, str) else preset
        self.center = center
        self.same_field = bool(same_field)

    # ---- what is drawn ----

    def sample(self, draw: Draw, image: Tensor) -> dict[str, Tensor]:
        """Draw chains.

        Returns:
            ``weights (N, width)`` and ``share (N,)`` float64; ``kind (N, width, depth)`` int64, 0 a warp, 1 a colour, 2
            a filter, -1 none; ``field (N, depth, 2, I, J)``, ``color (N, width, depth, C, K)`` and ``kernel (N, width,
            depth, 3, 3)`` float32, ``first (N, width, depth)`` int64: what the functions take. ``N`` is 1 for
            ``same_on_batch``, and for the field with ``same_field``. Of fields, those that no chain needs are 0.
        """
        channels, height, width = image.shape[-3:]
        weights = -torch.log1p(-draw(self.width))
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-300)
        share = draw()
        length = torch.floor(draw(self.width) * self.depth)[..., None]
        kind = torch.floor(draw(self.width, self.depth) * _OPS).to(torch.int64)
        kind = torch.where(torch.arange(self.depth, device=kind.device) <= length, kind, -1)
        fields = [self._field(draw, kind[..., step], height, width) for step in range(self.depth)]
        params = {"weights": weights, "share": share, "kind": kind, "field": torch.stack(fields, dim=1)}
        params |= self._colors(draw, channels)
        params["kernel"] = self._kernels(draw)
        if self.p < 1:
            unchanged = draw() >= self.p if self.p > 0 else torch.ones_like(share, dtype=torch.bool)
            params["share"] = torch.where(unchanged, 0.0, share)
            params["kind"] = torch.where(unchanged[:, None, None], -1, kind)
        return params

    def _field(self, draw: Draw, kind: Tensor, height: int, width: int) -> Tensor:
        """``(N or 1, 2, I, J)``: the field of a step, for the images one of whose chains warps at it."""
        most = self.preset.warp_cut
        below, cut, temperature = 3 + torch.floor(draw() * (most - 2)), _arcsine(draw()), _arcsine(draw())
        cut = torch.floor(2 + cut * (below - 1))
        columns, rows = _different(most, width), _different(most, height)
        used = (kind == WARP).any(dim=1)
        if self.same_field:
            count = kind.shape[0]
            cut, temperature, used = cut[:1], temperature[:1], used.any(dim=0, keepdim=True)
            needed = 2 * columns * rows
            uniform = draw(-(-needed // max(count, 1))).flatten()[:needed].reshape(min(count, 1), 2, columns, rows)
        else:
            uniform = draw(2, columns, rows)
        field = torch.zeros(uniform.shape, dtype=torch.float32, device=uniform.device)
        at = used.nonzero().flatten()
        if at.numel() and columns and rows:
            low, high = temperatures(max(height, width), cut[at])
            scale = torch.sqrt(low + temperature[at] * (high - low))
            deviation = field_deviation(cut[at], (height, width), most) * scale.float()[:, None, None]
            for axis, normal in enumerate(_normal(uniform[at, 0], uniform[at, 1])):
                field[at, axis] = normal * deviation * (width, height)[axis]
        return field

    def _colors(self, draw: Draw, channels: int) -> dict[str, Tensor]:
        preset = self.preset
        cut = 1 + torch.floor(draw(self.width, self.depth) * preset.color_cut)
        variance = preset.color_temperature * draw(self.width, self.depth)
        first = torch.ones_like(cut)
        count = preset.color_cut
        if preset.color_band is not None:
            first = 1 + torch.floor(draw(self.width, self.depth) * cut)
            count = min(preset.color_band, preset.color_cut)
        shape = (self.width, self.depth, channels, count)
        normal, _ = _normal(draw(*shape), draw(*shape))
        frequency = first[..., None] + torch.arange(count, device=cut.device)
        deviation = torch.where(frequency <= cut[..., None], torch.sqrt(variance)[..., None], 0.0).float()
        return {"color": normal * deviation[..., None, :], "first": first.to(torch.int64)}

    def _kernels(self, draw: Draw) -> Tensor:
        sigma = (self.preset.filter_sigma * draw(self.width, self.depth)).float()
        shape = (self.width, self.depth, 9)
        normal, _ = _normal(draw(*shape), draw(*shape))
        delta = torch.zeros(9, device=normal.device)
        delta[4 if self.center == "true" else 8] = 1
        return (delta + sigma[..., None] * normal).unflatten(-1, (3, 3))

    # ---- what is done ----

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Change images as ``params`` say; ``(N, C, H, W)`` or ``(C, H, W)``."""
        x = image.detach() if image.dim() == 4 else image.detach().unsqueeze(0)
        clean = self._as_float(x)
        if self.p == 0 or len(x) == 0:
            return clean if image.dim() == 4 else clean.squeeze(0)
        chains = self._chains(x, clean, params)
        wide = clean if clean.dtype == torch.float64 else clean.float()
        share = params["share"].to(wide.dtype)
        weights = params["weights"].to(wide.dtype) * share[:, None]
        # Addition by addition, so that an image's sum does not depend on how many others there are.
        mixed = wide * to_device(1 - share, x.device)[:, None, None, None]
        for chain, one in zip(chains, to_device(weights, x.device).unbind(dim=1), strict=True):
            mixed += chain.to(wide.dtype) * one[:, None, None, None]
        mixed = mixed.to(clean.dtype)
        return mixed if image.dim() == 4 else mixed.squeeze(0)

    def _chains(self, x: Tensor, clean: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The results of the chains, each like ``clean``."""
        count = len(x)
        kind = params["kind"].cpu().expand(count, -1, -1).transpose(0, 1)  # (width, N, depth)
        width, _, depth = kind.shape
        kind = kind.reshape(width * count, depth)
        dtype = self.dtype if x.dtype == torch.uint8 else None
        state = clean.repeat(width, 1, 1, 1) if bool((kind[:, 0] < 0).any()) else _empty(clean, width * count)
        for step in range(depth):
            for number in range(_OPS):
                rows = (kind[:, step] == number).nonzero().flatten()
                if len(rows) == 0:
                    continue
                places = rows % count, rows // count, step
                source = _rows(x, places[0]) if step == 0 else _rows(state, rows)
                if number == WARP:
                    out = functional.sine_warp(source, _of(params["field"], x, places[0], step), dtype=dtype)
                elif number == COLOR:
                    first = _of(params["first"], x, *places)
                    color = _of(params["color"], x, *places)
                    out = functional.smooth_color(source, color, (0, 1), first, dtype=dtype)
                else:
                    out = functional.filter2d(source, _of(params["kernel"], x, *places)[:, None], (0, 1), dtype=dtype)
                state.index_copy_(0, to_device(rows, x.device), out)
            dtype = None  # what comes now is in the result's dtype
        return state.split(count)

    def extra_repr(self) -> str:
        """The options."""
        name = next((repr(name) for name, preset in PRESETS.items() if preset == self.preset), repr(self.preset))
        return (
            f"width={self.width}, depth={self.depth}, preset={name}, center={self.center!r}, "
            f"same_field={self.same_field}, {super().extra_repr()}"
        )


# ---- distributions ---------------------------------------------------------------------------------------------------


def temperatures(side: int, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest variance of a displacement field with this cut-off, for images of this side.

    At the lowest the typical displacement is half a pixel; at the highest, if that is more, images barely do not fold.
    """
    log = torch.log(cut + 1e-6)
    low = 1 / (math.pi * side**2 * log)
    return low, torch.maximum(low, 4 / (math.pi**3 * cut**2 * log))


def field_deviation(cut: Tensor, size: tuple[int, int], most: int) -> Tensor:
    """Standard deviations ``(N, I, J)`` of a field's coefficients at a temperature of 1, in parts of the side.

    Those of the authors are ``1 / r`` with ``r = sqrt(i^2 + j^2)`` where ``r < cut + 1/2``, for all ``i`` and ``j`` up
    to the cut-off. On the pixels of an image many of these sines are the same but for their sign, so that their
    coefficients add up; a sum of normal numbers is normal, with the sum of their variances.

    Args:
        cut: ``(N,)``, at most ``most``.
        size: Height and width of the image.
        most: The largest cut-off.
    """
    limit = (cut + 0.5).float() ** 2
    columns, rows = _different(most, size[1]), _different(most, size[0])
    variance = torch.zeros(len(cut), columns, rows, device=cut.device)
    for i in _same_sines(columns, size[1], most):
        for j in _same_sines(rows, size[0], most):
            square = i.to(cut.device)[:, None] ** 2 + j.to(cut.device) ** 2
            reached = (limit > square.min()).nonzero().flatten()  # most cut-offs are low
            if len(reached):
                variance[reached] += torch.where(square < limit[reached, None, None], 1 / square, 0.0)
    return torch.sqrt(variance)


def _different(most: int, side: int) -> int:
    """How many of the sines up to ``most`` differ on the pixels of an axis, beyond those that vanish on all."""
    return max(0, min(most, side - 2))


def _same_sines(count: int, side: int, most: int) -> list[Tensor]:
    """Frequencies that are sines 1 ... ``count`` or their negatives on the pixels of an axis; all up to ``most``."""
    if count == 0:
        return []
    base = torch.arange(1, count + 1, dtype=torch.float32)
    found = [base]
    for turn in range(2 * (side - 1), most + side, 2 * (side - 1)):
        found += [turn - base, turn + base]
    return [frequency for frequency in found if frequency.min() <= most]


def _arcsine(uniform: Tensor) -> Tensor:
    """From Beta(1/2, 1/2)."""
    return torch.sin(math.pi / 2 * uniform).square()


def _normal(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal float32 numbers from two uniform ones, by the transform of Box and Muller."""
    radius = torch.sqrt(-2 * torch.log1p(-first)).float()
    angle = (2 * math.pi * second).float()
    return radius * torch.cos(angle), radius * torch.sin(angle)


# ---- images ----------------------------------------------------------------------------------------------------------


def _is_channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _empty(like: Tensor, count: int) -> Tensor:
    layout = torch.channels_last if _is_channels_last(like) else torch.contiguous_format
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=layout)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Images by their numbers, in the memory format they have."""
    index = to_device(rows, x.device)
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def _of(parameter: Tensor, x: Tensor, images: Tensor, *more: Tensor | int) -> Tensor:
    """The parameters of some images, chains and a step, on the device of the images."""
    if parameter.shape[0] == 1:
        images = torch.zeros_like(images)
    places = [place.to(parameter.device) if isinstance(place, Tensor) else place for place in (images, *more)]
    return to_device(parameter[tuple(places)].contiguous(), x.device)
