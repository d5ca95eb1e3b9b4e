"""The test library of what CPU kernels share, by ctypes."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# As the library numbers them; "twin" is the kernel of the tile registers on their twin in ordinary memory.
LEVELS = ["portable", "avx2", "avx512", "avx512_bf16", "amx", "twin"]
VECTOR_LEVELS = LEVELS[:3]
DTYPES = ["f32", "f64", "f16", "bf16"]
ACTIVATIONS = ["none", "relu", "gelu"]
FUNCTIONS = ["exp", "sin", "cos", "erf", "gelu"]
OK = 0


class Request(ctypes.Structure):
    """One product, as core_tests.cpp declares it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "depth")),
        ("a", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("a_row_stride", "a_depth_stride")),
        ("b", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("b_depth_stride", "b_column_stride")),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("out_row_stride", "out_column_stride")),
        ("row_bias", ctypes.c_void_p),
        ("column_bias", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("dtype", "out_dtype", "add", "activation", "visit", "threads", "level")),
    )


class ReduceRequest(ctypes.Structure):
    """A batch-reduce product of one tile, as core_tests.h declares it."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("a", ctypes.POINTER(ctypes.c_void_p)),
        ("b", ctypes.POINTER(ctypes.c_void_p)),
        ("depths", ctypes.POINTER(ctypes.c_int64)),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


def library_file() -> Path:
    return Path(os.environ.get("STURDY_SIMT_DIR") or ROOT / "build" / "simt") / "libsturdy_core_tests.so"


@cache
def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.core_test_twin_configured.restype = ctypes.c_int64
    found.core_test_twin_configurations.restype = ctypes.c_int64
    return found


def library() -> ctypes.CDLL:
    if os.environ.get("STURDY_SKIP_SIMT", "") not in ("", "0"):
        pytest.skip("STURDY_SKIP_SIMT is set")
    path = library_file()
    if not path.exists():
        pytest.fail(f"{path} is missing: build it with `make simt`, or set STURDY_SKIP_SIMT=1", pytrace=False)
    return _load(path)


def need_level(name: str) -> int:
    level = LEVELS.index(name)
    if not library().core_test_has(level):
        pytest.skip(f"{name}: not on this machine, or not in this build")
    return level


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


# ---- storage types: bfloat16 is kept as its bits, in uint16 ----------------------------------------------------------

STORAGE = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": np.uint16}
ROUNDING = {"f32": 2.0**-24, "f64": 2.0**-53, "f16": 2.0**-11, "bf16": 2.0**-8}  # half an ulp of 1 and the least normal
LEAST = {"f32": 2.0**-126, "f64": 2.0**-1022, "f16": 2.0**-14, "bf16": 2.0**-126}


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to nearest even. No NaN."""
    if dtype != "bf16":
        return values.astype(STORAGE[dtype])
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_storage(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers, in float64."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def nan_filled(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.full(shape, 0x7FFF if dtype == "bf16" else np.nan, STORAGE[dtype])
