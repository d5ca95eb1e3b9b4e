"""The matrix product that CPU kernels share, beside torch's, for square and skinny shapes.

The product is no op of the package: it is called through the library of its tests, which ``make simt`` builds. The
contender "FMA alone" does as many float32 multiply-adds in registers and nothing else: its column is the share of the
processor's rate that ours reaches (above 1 it is bfloat16 instructions that do more than one at a time).

``python benchmarks/run.py --only gemm --heap warm`` takes the measurements.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import SUBJECT, Comparison
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "core"))
from core_library import DTYPES, OK, Request, library_file

CODES = {torch.float32: DTYPES.index("f32"), torch.bfloat16: DTYPES.index("bf16")}


@dataclass(frozen=True)
class Shape:
    """A product (rows, depth) x (depth, columns)."""

    rows: int
    columns: int
    depth: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}"

    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.columns * self.depth


SQUARE = [Shape(n, n, n) for n in (256, 512, 1024, 2048)]
SKINNY = [
    Shape(2048, 1024, 4096),
    Shape(1, 4096, 1024),
    Shape(16, 4096, 1024),
    Shape(64, 4096, 1024),
    Shape(2048, 64, 1024),
    Shape(2048, 1024, 64),
    Shape(64, 64, 65536),
]
TINY = Shape(8, 16, 8)


def ours(library: ctypes.CDLL, a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b``: CPU tensors of rank 2 with any strides, float32 or bfloat16."""
    request = Request(
        *(a.shape[0], b.shape[1], a.shape[1]),
        *(a.data_ptr(), *a.stride()),
        *(b.data_ptr(), *b.stride()),
        *(out.data_ptr(), *out.stride()),
        dtype=CODES[a.dtype],
        out_dtype=CODES[out.dtype],
        threads=torch.get_num_threads(),
        level=-1,
    )
    if library.core_test_gemm(ctypes.byref(request)) != OK:
        raise RuntimeError("the product failed")


def comparison(library: ctypes.CDLL, shape: Shape, transposed: bool, dtype: str) -> Comparison:
    """One row. ``transposed``: b is stored as the weight of a linear layer is, (columns, depth)."""
    kind = getattr(torch, dtype)

    def prepare() -> dict[str, Callable[[], Any]]:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(shape.rows, shape.depth, generator=generator).to(kind)
        b = torch.randn(shape.columns, shape.depth, generator=generator).to(kind).t()
        b = b if transposed else b.contiguous()
        out, peer = torch.full((2, shape.rows, shape.columns), torch.nan, dtype=kind)
        ours(library, a, b, out)
        torch.mm(a, b, out=peer)
        exact = a.double() @ b.double()
        room = a.double().abs() @ b.double().abs()
        allowed = shape.depth * torch.finfo(torch.float32).eps * room + torch.finfo(kind).eps * exact.abs()
        assert bool(((out.double() - exact).abs() <= allowed).all()), "a wrong product"
        threads = torch.get_num_threads()
        return {
            SUBJECT: lambda: ours(library, a, b, out),
            "torch.mm": lambda: torch.mm(a, b, out=peer),
            "FMA alone": lambda: library.core_test_multiply_adds(ctypes.c_int64(shape.flops() // 2), threads),
        }

    elements = shape.rows * shape.depth + shape.depth * shape.columns + shape.rows * shape.columns
    return Comparison(
        op="gemm",
        shape=str(shape),
        variant="a b^T" if transposed else "a b",
        work="forward",
        dtype=dtype,
        prepare=prepare,
        flops=shape.flops(),
        bytes=elements * kind.itemsize,
    )


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of the product; nothing without the library of its tests, or on a GPU."""
    if os.environ.get("STURDY_BENCH_DEVICE", "cpu") != "cpu":
        return
    path = library_file()
    if not path.exists():
        print(f"bench_gemm: {path} is missing: `make simt` builds it; no product is measured", file=sys.stderr)
        return
    library = ctypes.CDLL(str(path))
    for dtype in ("float32", "bfloat16"):
        for shape in [*SQUARE, *SKINNY]:
            yield comparison(library, shape, False, dtype)
        for shape in (SQUARE[2], *SKINNY[1:4]):
            yield comparison(library, shape, True, dtype)
        yield comparison(library, TINY, False, dtype)


@pytest.mark.parametrize("name", [SUBJECT, "torch.mm"])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]
    benchmark.group = row.title()
    benchmark(call)
