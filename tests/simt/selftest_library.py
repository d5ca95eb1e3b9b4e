"""The libraries of test kernels, by ctypes, and what the tests of this folder share."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Orders of the threads, with the seeds that random order is tried with.
FORWARD, REVERSE, RANDOM = (0, 0), (1, 0), (2, 1)
ORDERS = [FORWARD, REVERSE, RANDOM, (2, 2), (2, 3)]


def order_id(order: tuple[int, int]) -> str:
    return ("forward", "reverse", f"random{order[1]}")[order[0]]


class KernelError(RuntimeError):
    """A launch that the executor ended, with its text."""


class Library:
    """One of the self-test libraries. Arrays are passed by address and must be kept alive by the caller."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.simt_test_error.restype = ctypes.c_char_p
        self.library.sturdy_simt_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]

    def call(self, name: str, *arguments: object) -> None:
        """Call ``simt_test_<name>``; raise KernelError if it reports an error, with the executor's words."""
        status = getattr(self.library, f"simt_test_{name}")(*map(self._convert, arguments))
        assert status in (0, 1), f"simt_test_{name} does not know {arguments}"
        if status != 0:
            raise KernelError(self.library.simt_test_error().decode())

    @staticmethod
    def _convert(argument: object) -> object:
        if argument is None:
            return ctypes.c_void_p(None)
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous
            return ctypes.c_void_p(argument.ctypes.data)
        if isinstance(argument, float):
            return ctypes.c_float(argument)
        if isinstance(argument, str):
            return argument.encode()
        return ctypes.c_int(int(argument))

    def set_order(self, order: tuple[int, int]) -> None:
        assert self.library.sturdy_simt_set_order(*order) == 0

    def stats(self) -> np.ndarray:
        """Launches, blocks, threads, switches, block barriers and warp collectives since the library was loaded."""
        counts = np.zeros(6, np.uint64)
        self.library.sturdy_simt_stats(ctypes.c_void_p(counts.ctypes.data))
        return counts.astype(np.int64)


class RaceLibrary(Library):
    """A self-test library under the race checker."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.library.sturdy_simt_race_report.restype = ctypes.c_char_p

    def race_count(self) -> int:
        return self.library.sturdy_simt_race_count()

    def race_report(self) -> str:
        return self.library.sturdy_simt_race_report().decode()

    def race_reset(self) -> None:
        self.library.sturdy_simt_race_reset()


def _find(name: str) -> Path:
    if os.environ.get("STURDY_SKIP_SIMT", "") not in ("", "0"):
        pytest.skip("STURDY_SKIP_SIMT is set")
    folder = Path(os.environ.get("STURDY_SIMT_DIR") or ROOT / "build" / "simt")
    path = folder / f"lib{name}.so"
    if not path.exists():
        pytest.fail(f"{path} is missing: build it with `make simt`, or set STURDY_SKIP_SIMT=1", pytrace=False)
    return path


@cache
def _load(name: str) -> Library:
    return (RaceLibrary if "race" in name else Library)(_find(name))


def simt_library() -> Library:
    _find("sturdy_simt_selftest")
    return _load("sturdy_simt_selftest")


def race_library() -> RaceLibrary:
    _find("sturdy_race_selftest")
    library = _load("sturdy_race_selftest")
    assert isinstance(library, RaceLibrary)
    return library


def planted_lines(kernel: str) -> list[int]:
    """Line numbers of the marks ``// here`` in a kernel of kernels_planted.cu."""
    lines = (HERE / "kernels_planted.cu").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"__global__ void {kernel}("))
    end = next(i for i in range(start, len(lines)) if lines[i] == "}")
    found = [i + 1 for i in range(start, end) if lines[i].endswith("// here")]
    assert found, f"{kernel} has no mark"
    return found


def named_source_lines(text: str, file: str) -> list[str]:
    """The lines of a file of this folder that a message names as ``file:number``."""
    source = (HERE / file).read_text().splitlines()
    return [source[int(number) - 1].strip() for number in re.findall(rf"\b{re.escape(file)}:(\d+)", text)]


def aligned(array: np.ndarray, alignment: int = 16) -> np.ndarray:
    """A copy whose address is a multiple of ``alignment``."""
    buffer = np.empty(array.nbytes + alignment, np.uint8)
    offset = -buffer.ctypes.data % alignment
    out = buffer[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


# ---- number formats --------------------------------------------------------------------------------------------------


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits (uint16) of float32 values rounded to nearest even. No NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Float32 values rounded to 10 fraction bits, halves away from zero. Finite values only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


# ---- the kernels on random data, with what they must give ------------------------------------------------------------


EPS = float(np.finfo(np.float32).eps)


def check_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """c = a b, within what rounding each product and each sum to float32 can cost."""
    exact = a.astype(np.float64) @ b.astype(np.float64)
    allowed = (a.shape[1] + 2) * EPS * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
    assert np.all(np.abs(c - exact) <= allowed)


def run_gemm(library: Library, m: int, n: int, k: int, bug: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    a = aligned(rng.standard_normal((m, k), np.float32))
    b = aligned(rng.standard_normal((k, n), np.float32))
    c = np.full((m, n), np.nan, np.float32)
    library.call("gemm", a, b, c, m, n, k, bug)
    return c, a, b


def run_mma_gemm(library: Library, kind: str, m: int, n: int, k: int, bug: int = 0) -> tuple[np.ndarray, ...]:
    """Result and the operands as the tensor cores see them."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    c = np.full((m, n), np.nan, np.float32)
    if kind == "bf16":
        a_bits, b_bits = aligned(to_bfloat16(a)), aligned(to_bfloat16(b))
        library.call("mma_gemm", a_bits, b_bits, c, m, n, k, 0, bug)
        return c, from_bfloat16(a_bits), from_bfloat16(b_bits)
    if kind == "f16":
        a_half, b_half = aligned(a.astype(np.float16)), aligned(b.astype(np.float16))
        library.call("mma_gemm", a_half, b_half, c, m, n, k, 1, bug)
        return c, a_half.astype(np.float32), b_half.astype(np.float32)
    a, b = aligned(a), aligned(b)
    library.call("mma_gemm", a, b, c, m, n, k, 2, bug)
    return c, to_tf32(a), to_tf32(b)


def run_attention(library: Library, heads: int, length: int, bug: int = 0) -> np.ndarray:
    """Run it, check it against the definition, and return it."""
    rng = np.random.default_rng(3)
    dim = 32
    q, k, v = (rng.standard_normal((heads, length, dim), np.float32) for _ in range(3))
    scale = dim**-0.5
    out = np.full((heads, length, dim), np.nan, np.float32)
    library.call("attention", q, k, v, out, heads, length, scale, bug)
    q64, k64, v64 = (x.astype(np.float64) for x in (q, k, v))
    score = q64 @ k64.transpose(0, 2, 1) * scale
    p = np.exp(score - score.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    # A score is off by at most `score_error`, a probability by that as a factor, and the sums add their own rounding.
    score_error = (dim + 2) * EPS * (np.abs(q64) @ np.abs(k64).transpose(0, 2, 1) * scale).max()
    allowed = (2 * score_error + (2 * length + 32) * EPS) * (p @ np.abs(v64))
    assert np.all(np.abs(out - p @ v64) <= allowed)
    return out


def run_column_sums(library: Library, kernel: str, tiles: int, columns: int, bug: int = 0) -> None:
    """The pipelines add the rows in order, in float32: the bits are known."""
    x = aligned(np.random.default_rng(4).standard_normal((tiles, columns), np.float32))
    out = np.full(columns, np.nan, np.float32)
    library.call(kernel, x, out, tiles, bug)
    expected = np.zeros(columns, np.float32)
    for row in x:
        expected += row
    np.testing.assert_array_equal(out, expected)
