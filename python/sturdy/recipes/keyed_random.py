"""Random numbers that depend on a key per image and on nothing else.

A batch of ``N`` keys gives ``N`` independent streams, computed with integer tensor operations. The numbers of an
image are therefore the same in every batch size, batch order, number of processes and on every device.

Each stream is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):
the finaliser applied to ``key + counter * odd constant``.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The 64-bit pattern of ``value`` as the signed integer that int64 tensors hold."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; ``>>`` on int64 repeats the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def mix_key(*parts: int | str) -> int:
    """One number in ``[0, 2**63)`` from several numbers or names; any change of a part changes all bits."""
    state = 0
    for part in parts:
        value = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = (state + value * _GOLDEN + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
        state ^= state >> 31
    return state >> 1


class KeyedRandom:
    """Streams of random numbers, one per image.

    Args:
        indices: ``(N,)`` integers, the number of each image in its data set. Decides the device.
        key: What else the numbers depend on, for example ``mix_key(seed, "gaussian_noise", severity)``.
    """

    def __init__(self, indices: Tensor, key: int) -> None:
        self._keys = _mix(_mix(indices.to(torch.int64) * _signed(_GOLDEN) + _signed(key)) + _signed(key ^ _GOLDEN))
        self._drawn = 0

    def fork(self) -> KeyedRandom:
        """Streams of their own, for a consumer that draws an unknown number of times."""
        self._drawn += 1
        child = KeyedRandom(self._keys, _GOLDEN)
        child._keys = _mix(self._keys + _signed(self._drawn * _GOLDEN))
        return child

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """``(N, *shape)`` int64 with 64 random bits each."""
        count = math.prod(shape)
        steps = torch.arange(self._drawn + 1, self._drawn + count + 1, device=self._keys.device)
        self._drawn += count
        return _mix(self._keys[:, None] + steps * _signed(_GOLDEN)).view(-1, *shape)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(N, *shape)`` numbers in ``[0, 1)``: 24 random bits in float32, 53 in float64."""
        bits = 53 if dtype == torch.float64 else 24
        return _shift_right(self._bits(shape), 64 - bits).to(dtype) * 2.0**-bits

    def integers(self, high: int, *shape: int) -> Tensor:
        """``(N, *shape)`` int64 in ``[0, high)``, ``high`` far below 2**53."""
        return (self.uniform(*shape, dtype=torch.float64) * high).to(torch.int64)

    def normal(self, *shape: int) -> Tensor:
        """``(N, *shape)`` float32 from N(0, 1), by the Box-Muller transform."""
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(*shape)))
        return radius * torch.cos((2.0 * math.pi) * self.uniform(*shape))

    def poisson(self, mean: Tensor) -> Tensor:
        """Counts with the given means, exactly distributed.

        Args:
            mean: ``(N, ...)``, not negative.

        Returns:
            float64 of the shape of ``mean``, whole numbers.

        Below 10 the distribution function is inverted term by term; above, transformed rejection with squeeze
        (PTRS; Hoermann, "The transformed rejection method for generating Poisson random variables", 1993).
        """
        mean = mean.to(torch.float64)
        shape = tuple(mean.shape[1:])
        stream = self.fork()
        counts = _poisson_by_inversion(mean.clamp(max=10.0), stream.uniform(*shape, dtype=torch.float64))
        # Every round draws for all elements, so that an element's numbers do not depend on its neighbours.
        waiting = mean >= 10.0
        while bool(waiting.any()):
            u = stream.uniform(*shape, dtype=torch.float64)[waiting] - 0.5
            v = 1.0 - stream.uniform(*shape, dtype=torch.float64)[waiting]
            candidate, accepted = _poisson_candidate(mean[waiting], u, v)
            where = torch.nonzero(waiting, as_tuple=True)
            done = tuple(index[accepted] for index in where)
            counts[done] = candidate[accepted]
            waiting[done] = False
        return counts


def _poisson_by_inversion(mean: Tensor, u: Tensor) -> Tensor:
    term = torch.exp(-mean)
    total = term.clone()
    counts = torch.zeros_like(mean)
    for k in range(1, 64):  # for a mean of 10, more than 63 has a probability below 1e-29
        above = u >= total
        if not bool(above.any()):
            break
        counts += above
        term = term * mean / k
        total += term
    return counts


def _poisson_candidate(mean: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One proposal of PTRS per element and whether it is accepted; ``u`` in [-0.5, 0.5), ``v`` in (0, 1]."""
    b = 0.931 + 2.53 * mean.sqrt()
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    margin = 0.5 - u.abs()
    k = torch.floor((2.0 * a / margin.clamp(min=1e-12) + b) * u + mean + 0.43)
    surely = (margin >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2.0))
    never = (k < 0) | ((margin < 0.013) & (v > margin))
    left = torch.log(v * inverse_alpha / (a / margin.clamp(min=1e-12) ** 2 + b))
    right = k * torch.log(mean) - mean - torch.lgamma(k.clamp(min=0) + 1.0)
    return k, surely | (~never & (left <= right))
