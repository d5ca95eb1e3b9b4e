"""Runs the CPU kernels over the shapes where they could step out of their arrays. Started by test_sanitizers.py.

Needs NumPy and the package, no more. Every array is a heap block of its own, so that a step beyond its end is seen.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np

import sturdy
from sturdy.numpy import push_pull_conv2d, push_pull_conv2d_backward

# in channels, out channels, groups, kernel, height and width of the input
SIZES = [
    (1, 1, 1, (1, 1), (1, 1)),
    (3, 2, 1, (3, 3), (3, 3)),
    (2, 5, 1, (2, 3), (7, 4)),
    (4, 6, 2, (3, 1), (9, 17)),
    (3, 33, 1, (3, 3), (8, 8)),
    (1, 17, 1, (5, 5), (16, 31)),
    (16, 16, 16, (3, 3), (6, 35)),
    (6, 40, 2, (1, 1), (5, 64)),
    (35, 20, 1, (2, 3), (6, 19)),
    (40, 9, 1, (3, 3), (37, 40)),
    (3, 20, 1, (7, 7), (23, 41)),
]
OPTIONS = [
    {},
    {"padding": 1, "avg_kernel_size": 3},
    {"padding": (3, 2), "stride": 2, "avg_kernel_size": 5},
    {"padding": (0, 4), "stride": (3, 1), "dilation": (1, 2)},
    {"padding": 4, "stride": (1, 5), "dilation": (2, 3), "avg_kernel_size": (1, 7)},
    {"padding": "same", "avg_kernel_size": (9, 1)},
    {"padding": (3, 2), "stride": (2, 1), "avg_kernel_size": 3, "range_dims": "channel"},
    {"padding": 4, "stride": (1, 3), "dilation": (2, 3), "range_dims": "channel"},
]
LAYOUTS = ["contiguous", "channels-last", "reversed", "every second", "expanded"]


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same shape and dtype, stored differently."""
    if layout == "channels-last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if layout == "reversed":
        return array[::-1, ::-1, ::-1, ::-1]
    if layout == "every second":
        return np.repeat(array, 2, axis=3)[..., ::2]
    if layout == "expanded":
        return np.broadcast_to(array[:1, :1], array.shape)
    return array


def check(name: str, array: np.ndarray, about: object) -> None:
    if not np.isfinite(array).all():
        raise SystemExit(f"{name} is not finite for {about}")


def main() -> None:
    rng = np.random.default_rng(0)
    layouts = itertools.cycle(LAYOUTS)
    batches = itertools.cycle((2, 1, 3, 0))
    threads = itertools.cycle((1, 3))
    calls = 0
    for dtype, size, options in itertools.product(("float32", "float64", "float16"), SIZES, OPTIONS):
        channels, filters, groups, kernel, image = size
        batch = next(batches)
        x = lay_out(rng.standard_normal((batch, channels, *image)).astype(dtype), next(layouts))
        w = lay_out(rng.standard_normal((filters, channels // groups, *kernel)).astype(dtype), next(layouts))
        alpha, bias = rng.random(filters).astype("float32"), rng.random(filters).astype(dtype)
        sturdy.set_num_threads(next(threads))
        about = (dtype, size, options, batch)
        try:
            out = push_pull_conv2d(x, w, alpha, bias, **options, groups=groups)
        except ValueError:  # the kernel does not fit, or "same" with a stride: the next one
            continue
        last = next(layouts) == "channels-last"
        shape = out.shape
        memory = [np.full(shape if not last else (shape[0], *shape[2:], shape[1]), np.nan, dtype) for _ in range(2)]
        maps = [np.moveaxis(array, -1, 1) if last else array for array in memory]
        push_pull_conv2d(x, w, alpha[::-1], bias[::-1], **options, groups=groups, out=maps[0], push=maps[1])
        for name, array in (("out", out), ("out", maps[0]), ("push", maps[1])):
            check(name, array, about)
        grad = lay_out(rng.standard_normal(shape).astype(dtype), next(layouts))
        for push in (None, maps[1]):
            grads = push_pull_conv2d_backward(grad, x, w, alpha, **options, groups=groups, push=push)
            for name, array in grads._asdict().items():
                check(f"gradient of {name}", array, about)
        calls += 1
    if calls < 100:
        raise SystemExit(f"only {calls} shapes were run")
    print(f"{calls} shapes on {sturdy.build_info()['cpu_kernels_used']}")


if __name__ == "__main__":
    sys.exit(main())
