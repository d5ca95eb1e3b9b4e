"""Runs the CPU kernels of the Fourier family where they could step out of their arrays. Started by test_sanitizers.py.

Needs NumPy and the package, no more. Every array is a heap block of its own, so that a step beyond its end is seen.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from geometry import LAYOUTS, check, lay_out

import sturdy
from sturdy.numpy import (
    amplitude_mix,
    spectral_filter,
    spectral_filter_backward,
    spectrum_accumulate,
    wave_add,
    wave_add_backward,
)

# batch, channels, height, width
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 1, 4, 15),
    (1, 2, 3, 16),
    (2, 17, 3, 5),
    (1, 3, 33, 31),
    (2, 2, 9, 65),
    (0, 3, 4, 4),
    (1, 5, 70, 64),
]
COUNTS = (0, 1, 2, 8, 9, 17)

# height, width: with kernels of their own, one row or column, large prime factors in every place, above 31
SIZES = [(28, 28), (32, 32), (1, 5), (7, 1), (26, 13), (23, 46), (19, 34), (58, 62), (37, 16), (12, 41)]
# Transforms of each kind: a power of two, packed and not, odd, Bluestein along either axis.
IMAGES = [(3, 1, 1, 1), (2, 3, 32, 32), (3, 2, 16, 48), (2, 3, 9, 13), (4, 1, 37, 6), (2, 5, 8, 41), (0, 3, 8, 8)]


def check_amplitudes(rng: np.random.Generator) -> int:
    layouts = itertools.cycle(LAYOUTS)
    threads = itertools.cycle((1, 3))
    calls = 0
    for dtype, shape, color_fft in itertools.product(("float32", "float64", "float16"), IMAGES, (False, True)):
        x, other = (lay_out(rng.random(shape).astype(dtype), next(layouts)) for _ in range(2))
        index = rng.permutation(shape[0]) - (1 if calls % 3 == 0 else 0)
        strength, window = rng.random(shape[0]), rng.integers(-1, 9, (shape[0], 2))
        sturdy.set_num_threads(next(threads))
        about = (dtype, shape, color_fft)
        check("mixture", amplitude_mix(x, index=index, color_fft=color_fft), about)
        options = {"strength": strength, "window": window, "clip": (0, 1)}
        check("mixture with others", amplitude_mix(x, other, color_fft=color_fft, **options), about)
        check("sums", spectrum_accumulate(x, rng.integers(-1, 2, shape[0]), 2, power=1 + color_fft), about)
        calls += 1
    return calls


def check_filters(rng: np.random.Generator) -> int:
    layouts = itertools.cycle(LAYOUTS)
    threads = itertools.cycle((1, 3))
    calls = 0
    for dtype, size, clip in itertools.product(("float32", "float64", "float16"), SIZES, (None, (20.0, 60.0))):
        x = lay_out((100 * rng.random((3, 2, *size))).astype(dtype), next(layouts))
        mask = rng.random(size).astype("float64" if dtype == "float64" else "float32")
        sturdy.set_num_threads(next(threads))
        about = (dtype, size, clip)
        out = spectral_filter(x, mask, clip=clip)
        check("filtered", out, about)
        grad = lay_out(rng.standard_normal(x.shape).astype(dtype), next(layouts))
        grads = spectral_filter_backward(grad, x, mask, clip=clip)
        for name, array in grads._asdict().items():
            check(f"gradient of {name}", array, about)
        calls += 1
    return calls


def main() -> None:
    rng = np.random.default_rng(0)
    layouts = itertools.cycle(LAYOUTS)
    threads = itertools.cycle((1, 3))
    calls = 0
    for dtype, shape, count in itertools.product(("float32", "float64", "float16", "uint8"), SHAPES, COUNTS):
        x = lay_out((100 * rng.random(shape)).astype(dtype), next(layouts))
        sizes = shape[:2] if count % 2 else (1, 1)
        frequency = rng.random((*sizes, count, 2))
        amplitude, phase = (rng.random((*sizes, count)) for _ in range(2))
        clip = (0, 90.0) if count != 2 else None
        sturdy.set_num_threads(next(threads))
        about = (dtype, shape, count)
        out = wave_add(x, frequency, amplitude, phase, clip=clip)
        check("out", out, about)
        grad = lay_out(rng.standard_normal(shape).astype(out.dtype), next(layouts))
        grads = wave_add_backward(grad, x, frequency, amplitude, phase, clip=clip)
        for name, array in grads._asdict().items():
            check(f"gradient of {name}", array, about)
        calls += 1
    calls += check_filters(rng)
    calls += check_amplitudes(rng)
    print(f"{calls} shapes on {sturdy.build_info()['cpu_kernels_used']}")


if __name__ == "__main__":
    sys.exit(main())
