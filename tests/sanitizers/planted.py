"""Tells the C library that an array is larger than it is. Started by test_sanitizers.py, to see it caught."""

from __future__ import annotations

import ctypes

import numpy as np

from sturdy._load import core

# The structs of sturdy.h and pushpull.h, as numbers: a tensor is data, device, rank, dtype, shape, strides, offset.
DOUBLE = 2 | 64 << 8 | 1 << 16


def tensor(data: int, shape: list[int]) -> ctypes.Array:
    sizes = (ctypes.c_int64 * 4)(*shape)
    KEPT.append(sizes)
    return (ctypes.c_uint64 * 6)(data, 1, 4 | DOUBLE << 32, ctypes.addressof(sizes), 0, 0)


KEPT: list[ctypes.Array] = []
x, w, out = np.ones(4096 - 1), np.ones(9), np.ones(62 * 62)
options = (ctypes.c_int64 * 13)(104, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0)
status = core().sturdy_push_pull_conv2d(
    *(None, options, tensor(x.ctypes.data, [1, 1, 64, 64]), tensor(w.ctypes.data, [1, 1, 3, 3])),
    *(None, None, tensor(out.ctypes.data, [1, 1, 62, 62]), None),
)
print("not caught, status", status, core().sturdy_last_error())
