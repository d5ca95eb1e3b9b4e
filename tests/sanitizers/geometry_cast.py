"""Runs the CPU kernels of CAST where they could step out of their arrays. Started by test_sanitizers.py.

Needs NumPy and the package, no more. Every array is a heap block of its own, so that a step beyond its end is seen.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from geometry import check

import sturdy
from sturdy.numpy import cast_affinity, cast_attention, cast_attention_backward, cast_cluster

# batch, heads, tokens, dim, clusters, cluster size
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 2, 5, 3, 2, 3),
    (1, 3, 16, 8, 4, 4),
    (1, 1, 33, 17, 3, 11),
    (2, 1, 70, 16, 5, 70),
    (1, 2, 130, 40, 2, 65),
    (1, 1, 300, 5, 17, 18),
    (1, 2, 37, 130, 3, 37),
    (0, 2, 5, 3, 2, 3),
    (2, 1, 3, 4, 7, 1),
    (1, 1, 700, 64, 1, 700),
]


def packed(array: np.ndarray) -> np.ndarray:
    """The same numbers, with the heads of a token side by side."""
    return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)


def main() -> None:
    rng = np.random.default_rng(0)
    threads = itertools.cycle((1, 3))
    layouts = itertools.cycle((packed, np.ascontiguousarray))
    calls = 0
    for dtype, shape, method in itertools.product(("float32", "float64", "float16"), SHAPES, ("topk", "sa_topk")):
        batch, heads, tokens, dim, clusters, size = shape
        sturdy.set_num_threads(next(threads))
        lay_out = next(layouts)
        q, k, v, grad = (lay_out(rng.standard_normal((batch, heads, tokens, dim)).astype(dtype)) for _ in range(4))
        surrogates = rng.standard_normal((heads, clusters, dim)).astype(dtype)
        phi = rng.standard_normal((batch, tokens)).astype(dtype)
        padding = None if calls % 3 else rng.random((batch, tokens)) < 0.2
        about = (dtype, shape, method)
        affinity = cast_affinity(q, k, surrogates, phi, padding=padding)
        chosen = cast_cluster(affinity, size, method, padding=padding)
        inputs = (q, k, v, surrogates, phi, chosen)
        options = {"padding": padding, "dropout": 0.25 * (calls % 2), "seed": np.array([calls])}
        out, kept = cast_attention(*inputs, keep=True, **options)
        check("attention", out, about)
        check("attention again", cast_attention(*inputs, **options), about)
        for name, array in cast_attention_backward(grad, *inputs, out, kept, **options)._asdict().items():
            check(f"gradient of {name}", array, about)
        calls += 1
    print(f"{calls} shapes on {sturdy.build_info()['cpu_kernels_used']}")


if __name__ == "__main__":
    sys.exit(main())
