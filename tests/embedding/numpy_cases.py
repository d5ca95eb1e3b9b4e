"""Arguments for the NumPy module, and what it should make of them by the definition, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
RNG = np.random.default_rng

# Options of the op, each with what an input of (2, 4, 9, 11) and a weight of (6, 4 / groups, 3, 3) make of it.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "uneven": {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
    "same": {"padding": "same", "dilation": 2},
    "pooled": {"padding": 1, "avg_kernel_size": 3},
    "pooled wide": {"avg_kernel_size": (3, 9)},
    "grouped": {"groups": 2, "padding": 1, "avg_kernel_size": 3},
    "channel range": {"stride": 2, "padding": 1, "range_dims": "channel"},
    "channel range, grouped": {"groups": 2, "padding": 1, "avg_kernel_size": 3, "range_dims": "channel"},
}


def make(options: dict[str, Any], dtype: str = "float32", batch: int | None = 2) -> Arrays:
    """Input, weight, inhibition and bias with numbers of the usual size."""
    rng = RNG(0)
    input = rng.standard_normal((batch or 1, 4, 9, 11)).astype(dtype)
    return {
        "input": input if batch is not None else input[0],
        "weight": (0.3 * rng.standard_normal((6, 4 // options.get("groups", 1), 3, 3))).astype(dtype),
        "inhibition": rng.uniform(0.2, 1.5, 6).astype(dtype),
        "bias": rng.standard_normal(6).astype(dtype),
    }


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same numbers, with the channels side by side in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -3, -1)), -1, -3)


def address(array: Any) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def reference(input: np.ndarray, weight: np.ndarray, inhibition: Any, bias: Any, options: dict[str, Any]) -> np.ndarray:
    """Two convolutions, from the definition, in float64."""
    x, w = input.astype(np.float64), weight.astype(np.float64)
    entries = (2, 3) if options.get("range_dims") == "channel" else (1, 2, 3)
    middle = w.min(axis=entries, keepdims=True) + w.max(axis=entries, keepdims=True)
    push = _convolve(x, w, options)
    pull = _average(_convolve(x, middle - w, options), options.get("avg_kernel_size", 0))
    alpha = np.broadcast_to(np.asarray(inhibition, np.float64).reshape(-1), (w.shape[0],))[:, None, None]
    shift = np.zeros(1) if bias is None else bias.astype(np.float64)
    return np.maximum(push, 0) - alpha * np.maximum(pull, 0) + shift[:, None, None]


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _convolve(x: np.ndarray, w: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    (rows, columns), (down, right) = _two(options.get("stride", 1)), _two(options.get("dilation", 1))
    kernel = w.shape[2:]
    if options.get("padding") == "same":
        extent = [d * (k - 1) for d, k in zip((down, right), kernel, strict=True)]
        pads = [(e // 2, e - e // 2) for e in extent]
    else:
        pads = [(p, p) for p in _two(options.get("padding", 0))]
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    size = [x.shape[2] - down * (kernel[0] - 1), x.shape[3] - right * (kernel[1] - 1)]
    groups = options.get("groups", 1)
    parts = []
    for part, filters in zip(np.split(x, groups, 1), np.split(w, groups, 0), strict=True):
        total = 0
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                shifted = part[:, :, i * down : i * down + size[0] : rows, j * right : j * right + size[1] : columns]
                total = total + np.einsum("nchw,oc->nohw", shifted, filters[:, :, i, j])
        parts.append(total)
    return np.concatenate(parts, 1)


def _average(u: np.ndarray, window: Any) -> np.ndarray:
    """Over the cells of the window that lie in the map."""
    half = [size // 2 for size in _two(window)]
    out = np.empty_like(u)
    for i in range(u.shape[2]):
        for j in range(u.shape[3]):
            cells = u[:, :, max(0, i - half[0]) : i + half[0] + 1, max(0, j - half[1]) : j + half[1] + 1]
            out[:, :, i, j] = cells.mean(axis=(2, 3))
    return out
