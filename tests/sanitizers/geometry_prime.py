"""Runs the CPU kernels of filter2d, smooth_color and sine_warp where they could step out of their arrays.

Started by test_sanitizers.py. Needs NumPy and the package, no more. Every array is a heap block of its own, so that a
step beyond its end is seen.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from geometry import LAYOUTS, check, lay_out

import sturdy
from sturdy.numpy import filter2d, filter2d_backward, sine_warp, smooth_color, smooth_color_backward

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
    (1, 2, 70, 40),
    (1, 1, 2, 1700),
]
COUNTS = (0, 1, 2, 33, 70)


def main() -> None:
    rng = np.random.default_rng(0)
    layouts = itertools.cycle(LAYOUTS)
    threads = itertools.cycle((1, 3))
    calls = 0
    for dtype, shape, count in itertools.product(("float32", "float64", "float16", "uint8"), SHAPES, COUNTS):
        x = lay_out((100 * rng.random(shape)).astype(dtype), next(layouts))
        sizes = shape[:2] if count % 2 else (1, 1)
        clip = (0, 90.0) if count != 2 else None
        sturdy.set_num_threads(next(threads))
        about = (dtype, shape, count)
        kernel = rng.standard_normal((*sizes, 3, 3))
        coefficients = rng.standard_normal((*sizes, count))
        out = filter2d(x, kernel, clip)
        check("filtered", out, about)
        check("coloured", smooth_color(x, coefficients, clip, first=count), about)
        field = 5 * rng.standard_normal((sizes[0], 2, count, count // 2 + 1))
        check("warped", sine_warp(x, field), about)
        grad = lay_out(rng.standard_normal(shape).astype(out.dtype), next(layouts))
        found = {
            **filter2d_backward(grad, x, kernel, clip)._asdict(),
            **smooth_color_backward(grad, x, coefficients, clip)._asdict(),
        }
        for name, array in found.items():
            check(f"gradient of {name}", array, about)
        calls += 1
    print(f"{calls} shapes on {sturdy.build_info()['cpu_kernels_used']}")


if __name__ == "__main__":
    sys.exit(main())
