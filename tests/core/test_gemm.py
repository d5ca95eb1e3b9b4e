"""Matrix products of the CPU kernels against float64, on every level of instructions that the machine has."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from core_library import (
    ACTIVATIONS,
    DTYPES,
    LEAST,
    LEVELS,
    OK,
    ROUNDING,
    STORAGE,
    VECTOR_LEVELS,
    ReduceRequest,
    Request,
    address,
    from_storage,
    library,
    nan_filled,
    need_level,
    to_storage,
)

BACKWARDS = -1  # instead of a number of threads: every unit of work alone, the last one first
# Every level multiplies float32 and float64 as one of the first three does.
LEVEL_DTYPES = [(level, dtype) for level in VECTOR_LEVELS for dtype in DTYPES]
LEVEL_DTYPES += [(level, "bf16") for level in LEVELS[3:]]


@pytest.fixture(params=LEVEL_DTYPES, ids=lambda pair: "-".join(pair))
def kind(request: pytest.FixtureRequest) -> tuple[int, str]:
    level, dtype = request.param
    return need_level(level), dtype


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The same values stored differently; what lies between them is NaN."""
    if layout == "transposed":
        return np.ascontiguousarray(values.T).T
    if layout == "reversed":
        return np.ascontiguousarray(values[::-1, ::-1])[::-1, ::-1]
    if layout == "expanded":
        return np.broadcast_to(values[:1], values.shape)
    if layout == "sliced":
        name = "bf16" if values.dtype == np.uint16 else next(n for n in STORAGE if STORAGE[n] == values.dtype)
        space = nan_filled((2 * values.shape[0] + 1, 3 * values.shape[1] + 2), name)
        view = space[1 : 2 * values.shape[0] + 1 : 2, 1 : 3 * values.shape[1] + 1 : 3]
        view[...] = values
        return view
    return np.ascontiguousarray(values)


@dataclass
class Product:
    """One product with random operands, and all that can be asked of it."""

    level: int
    dtype: str
    rows: int
    columns: int
    depth: int
    out_dtype: str = ""
    a_layout: str = "contiguous"
    b_layout: str = "contiguous"
    out_layout: str = "contiguous"
    add: bool = False
    bias: tuple[bool, bool] = (False, False)  # by row, by column
    activation: str = "none"
    visit: bool = False
    seed: int = 1
    a: np.ndarray = field(init=False)
    b: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.out_dtype = self.out_dtype or ("f64" if self.dtype == "f64" else "f32")
        sums = np.float64 if self.dtype == "f64" else np.float32
        self.a = laid_out(to_storage(rng.standard_normal((self.rows, self.depth)), self.dtype), self.a_layout)
        self.b = laid_out(to_storage(rng.standard_normal((self.depth, self.columns)), self.dtype), self.b_layout)
        self.old = to_storage(rng.standard_normal((self.rows, self.columns)), self.out_dtype)
        self.row_bias = rng.standard_normal(self.rows).astype(sums) if self.bias[0] else None
        self.column_bias = rng.standard_normal(self.columns).astype(sums) if self.bias[1] else None

    def run(self, threads: int = 1, rows: slice | None = None) -> np.ndarray:
        """The result as it is stored. What is not written stays NaN."""
        a = self.a if rows is None else self.a[rows]
        old = self.old if rows is None else self.old[rows]
        base = laid_out(nan_filled(old.shape, self.out_dtype), self.out_layout)
        if self.add:
            base[...] = old
        size = a.itemsize
        out_size = base.itemsize
        request = Request(
            *(a.shape[0], self.columns, self.depth),
            *(a.ctypes.data, a.strides[0] // size, a.strides[1] // size),
            *(self.b.ctypes.data, self.b.strides[0] // size, self.b.strides[1] // size),
            *(base.ctypes.data, base.strides[0] // out_size, base.strides[1] // out_size),
            row_bias=address(self.row_bias),
            column_bias=address(self.column_bias),
            dtype=DTYPES.index(self.dtype),
            out_dtype=DTYPES.index(self.out_dtype),
            add=self.add,
            activation=ACTIVATIONS.index(self.activation),
            visit=self.visit,
            threads=threads,
            level=self.level,
        )
        assert library().core_test_gemm(ctypes.byref(request)) == OK
        if self.out_layout == "sliced":  # nothing was written between the elements
            everything = from_storage(base.base, self.out_dtype)
            assert np.isnan(everything).sum() >= everything.size - base.size
        return base

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """The result in float64, and how far from it rounding may lead."""
        a, b = from_storage(self.a, self.dtype), from_storage(self.b, self.dtype)
        exact, room = a @ b, np.abs(a) @ np.abs(b)
        # In float64 numpy rounds as often as the kernel does.
        unit = 2 * ROUNDING["f64"] if self.dtype == "f64" else ROUNDING["f32"]
        least = LEAST["f64" if self.dtype == "f64" else "f32"]
        # Additions and products on the longest way of a term: a block of 256 words of up to two elements, its place
        # among 16 blocks of a chunk, the chunks.
        steps = 2 * min(self.depth, 512) + 16 + self.depth // 4096 + 2
        if self.dtype == "f64":
            steps += self.depth
        bound = steps * unit * room + self.depth * least
        for term in (
            from_storage(self.old, self.out_dtype) if self.add else None,
            self.row_bias[:, None].astype(np.float64) if self.row_bias is not None else None,
            self.column_bias.astype(np.float64) if self.column_bias is not None else None,
        ):
            if term is not None:
                exact = exact + term
                bound = bound + unit * (np.abs(exact) + bound)
        if self.activation == "relu":
            exact = np.maximum(exact, 0)
        elif self.activation == "gelu":
            value = exact
            exact = value * 0.5 * (1 + np.vectorize(math.erf)(value * 0.5**0.5))
            bound = 1.13 * bound + 8 * unit * np.abs(value) + least  # the greatest slope of gelu; vector_math.h
        if self.visit:
            rows, columns = exact.shape
            exact = 2 * exact + np.arange(rows * columns).reshape(rows, columns)
            bound = 2 * bound + unit * (np.abs(exact) + 2 * bound)
        stored = ROUNDING[self.out_dtype] * (np.abs(exact) + bound) + LEAST[self.out_dtype] * ROUNDING[self.out_dtype]
        return exact, bound + (stored if self.out_dtype != ("f64" if self.dtype == "f64" else "f32") else 0)

    def check(self, threads: int = 1) -> np.ndarray:
        out = self.run(threads)
        exact, bound = self.reference()
        error = np.abs(from_storage(out, self.out_dtype) - exact)
        assert np.all(error <= bound), f"{self}: {np.nanmax(error - bound)} beyond the bound"  # a NaN fails too
        return out


# ---- values ----------------------------------------------------------------------------------------------------------

SIZES = [
    (1, 1, 1),
    (1, 33, 5),
    (7, 1, 300),
    (3, 50, 0),
    (8, 48, 256),
    (33, 65, 257),
    (5, 17, 513),
    (64, 49, 33),
    (131, 97, 259),
    (9, 200, 31),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_sizes(kind, size):
    """Ragged edges in every dimension, one row, one column, no depth."""
    Product(*kind, *size).check()
    Product(*kind, *size, add=True, b_layout="transposed").check()


@pytest.mark.parametrize("rows", range(1, 18))
def test_every_number_of_rows(kind, rows):
    Product(*kind, rows, 2 * rows + 15, 19).check()


LAYOUTS = ["contiguous", "transposed", "reversed", "expanded", "sliced"]


@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
def test_layouts(kind, a_layout, b_layout):
    Product(*kind, 37, 71, 45, a_layout=a_layout, b_layout=b_layout).check()


@pytest.mark.parametrize("out_layout", ["contiguous", "transposed", "reversed", "sliced"])
@pytest.mark.parametrize("add", [False, True])
def test_layouts_of_the_result(kind, out_layout, add):
    for depth in (40, 300):  # stored by the tile, and from sums of several blocks
        Product(*kind, 37, 71, depth, out_layout=out_layout, add=add, bias=(True, False)).check()
        Product(*kind, 37, 71, depth, out_layout=out_layout, add=add).check()


@pytest.mark.parametrize("size", [(0, 4, 3), (4, 0, 3), (0, 0, 0)])
def test_empty_results(kind, size):
    assert Product(*kind, *size).run().size == 0


def test_no_depth_is_zero(kind):
    out = Product(*kind, 5, 21, 0).run()
    np.testing.assert_array_equal(out, np.zeros((5, 21)))
    kept = Product(*kind, 5, 21, 0, add=True)
    np.testing.assert_array_equal(kept.run(), kept.old)


@pytest.mark.parametrize("size", [(6, 10, 9001), (70, 20, 4500)], ids=["split", "chunks"])
def test_deep(kind, size):
    """Several chunks of depth."""
    Product(*kind, *size, add=True, bias=(True, True)).check(threads=2)


@pytest.mark.parametrize("size", [(140, 3000, 4300), (130, 480, 27_000)], ids=["rounds", "packed by tasks"])
def test_large(size):
    """More packed columns than are kept at once: rounds, and packing anew for each block of rows.

    Whole numbers, so that any order of the sums gives the same: they stay below 2^24.
    """
    product = Product(library().core_test_level(), "f32", 1, 1, 1)
    product.rows, product.columns, product.depth = size
    rng = np.random.default_rng(6)
    product.a = rng.integers(-4, 5, (product.rows, product.depth), np.int8).astype(np.float32)
    product.b = rng.integers(-4, 5, (product.depth, product.columns), np.int8).astype(np.float32)
    product.old = nan_filled((product.rows, product.columns), "f32")
    np.testing.assert_array_equal(product.run(threads=2), product.a @ product.b)


@pytest.mark.parametrize("out_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_storage_types(dtype, out_dtype):
    for name in LEVELS:
        level = LEVELS.index(name)
        if library().core_test_has(level):
            Product(level, dtype, 21, 43, 270, out_dtype=out_dtype, add=True, activation="relu").check()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [30, 600])
@pytest.mark.parametrize("bias", [(False, False), (True, False), (False, True), (True, True)])
def test_epilogue(kind, activation, depth, bias):
    Product(*kind, 19, 53, depth, bias=bias, activation=activation).check()
    Product(*kind, 19, 53, depth, bias=bias, activation=activation, add=True, visit=True).check()


def test_visit_sees_each_element_once(kind):
    """Also where the result is stored along rows, and in several blocks and chunks."""
    for layout in ("contiguous", "transposed"):
        Product(*kind, 150, 130, 20, out_layout=layout, visit=True).check(threads=2)
    Product(*kind, 9, 30, 8500, visit=True).check(threads=2)


def test_numbers_that_are_not(kind):
    """NaN and infinity reach the elements they belong to and no others, out of the padding neither."""
    product = Product(*kind, 21, 35, 70)
    a = from_storage(product.a, product.dtype)
    b = from_storage(product.b, product.dtype)
    bits = {"bf16": (0x7FC0, 0x7F80)}.get(product.dtype, (np.nan, np.inf))
    product.a[3, 69], product.b[0, 34] = bits
    a[3, 69], b[0, 34] = np.nan, np.inf
    out = from_storage(product.run(), product.out_dtype)
    with np.errstate(invalid="ignore"):
        expected = a @ b
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    np.testing.assert_array_equal(out[np.isinf(expected)], expected[np.isinf(expected)])
    assert np.isinf(expected).any() and np.isfinite(out).sum() == 20 * 34


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 700, 300), (300, 140, 520), (6, 10, 9001), (150, 30, 8300)])
def test_bits_do_not_depend_on_threads(kind, size):
    product = Product(*kind, *size, bias=(True, True), activation="gelu", add=True)
    first = product.run(threads=1)
    for threads in (1, 2, 3, BACKWARDS):
        np.testing.assert_array_equal(product.run(threads), first)


@pytest.mark.parametrize("b_layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("depth", [100, 700, 8300])
def test_rows_alone_have_the_bits_they_have_among_others(kind, depth, b_layout):
    """One to four rows take another path; and so have columns, whatever the layout."""
    rows = 139 if depth < 1000 else 12
    product = Product(*kind, rows, 61, depth, b_layout=b_layout)
    whole = product.run(threads=2)
    for first, count in ((0, 1), (5, 2), (7, 3), (rows - 4, 4), (1, 5)):
        some = slice(first, first + count)
        np.testing.assert_array_equal(product.run(rows=some), whole[some])
    other = Product(*kind, rows, 61, depth, a_layout="transposed", b_layout="transposed", out_layout="transposed")
    np.testing.assert_array_equal(other.run(), whole)


# ---- the tile --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=VECTOR_LEVELS)
def vector_level(request: pytest.FixtureRequest) -> int:
    return need_level(request.param)


def tile_size(level: int) -> tuple[int, int]:
    rows, columns = ctypes.c_int64(), ctypes.c_int64()
    library().core_test_tile_size(level, ctypes.byref(rows), ctypes.byref(columns))
    return rows.value, columns.value


@pytest.mark.parametrize("add", [False, True])
def test_tiles_of_every_size(vector_level, add):
    """Each product and each sum is rounded once at most; what lies beside the tile is not touched."""
    most_rows, most_columns = tile_size(vector_level)
    lanes = {"portable": 4, "avx2": 8, "avx512": 16}[LEVELS[vector_level]]
    rng = np.random.default_rng(2)
    depth = 37
    for rows in range(1, most_rows + 1):
        for columns in range(lanes, most_columns + 1, lanes):
            a = rng.standard_normal((depth, rows)).astype(np.float32)
            b = rng.standard_normal((depth, columns + 3)).astype(np.float32)
            old = rng.standard_normal((rows, columns)).astype(np.float32)
            out = np.full((rows, columns + 5), np.nan, np.float32)
            if add:
                out[:, :columns] = old
            sizes = [ctypes.c_int64(n) for n in (rows, columns)]
            steps = [ctypes.c_int64(n) for n in (columns + 3, depth)]
            where = (address(a), address(b), *steps, address(out), ctypes.c_int64(columns + 5))
            assert library().core_test_tile(vector_level, *sizes, *where, int(add)) == 1
            a64, b64 = a.T.astype(np.float64), b[:, :columns].astype(np.float64)
            exact = a64 @ b64 + (old if add else 0)
            bound = (2 * depth + 1) * 2.0**-24 * (np.abs(a64) @ np.abs(b64) + np.abs(old))
            assert np.all(np.abs(out[:, :columns] - exact) <= bound)
            assert np.isnan(out[:, columns:]).all()


@pytest.mark.parametrize("depths", [[], [5], [0, 7, 0], [64, 1, 30, 3]])
def test_batch_reduce(vector_level, depths):
    """A list of panel products, a bias, relu, rounding to bfloat16, one store."""
    rows, columns = tile_size(vector_level)
    rng = np.random.default_rng(3)
    a = [rng.standard_normal((depth, rows)).astype(np.float32) for depth in depths]
    b = [rng.standard_normal((depth, columns)).astype(np.float32) for depth in depths]
    bias = rng.standard_normal(columns).astype(np.float32)
    out = nan_filled((rows, columns), "bf16")
    pointers = ctypes.c_void_p * len(depths)
    request = ReduceRequest(
        len(depths),
        pointers(*(panel.ctypes.data for panel in a)),
        pointers(*(panel.ctypes.data for panel in b)),
        (ctypes.c_int64 * len(depths))(*depths),
        address(bias),
        address(out),
    )
    library().core_test_reduce(vector_level, ctypes.byref(request))
    exact = np.zeros((rows, columns)) + bias
    size = np.abs(exact)
    for left, right in zip(a, b, strict=True):
        exact += left.T.astype(np.float64) @ right.astype(np.float64)
        size += np.abs(left.T).astype(np.float64) @ np.abs(right).astype(np.float64)
    bound = (2 * sum(depths) + 1) * 2.0**-24 * size
    bound += ROUNDING["bf16"] * (np.maximum(exact, 0) + bound)
    assert np.all(np.abs(from_storage(out, "bf16") - np.maximum(exact, 0)) <= bound)


# ---- the tile registers, and the choice of a level -------------------------------------------------------------------


def test_tile_registers_are_released():
    before = library().core_test_twin_configurations()
    product = Product(need_level("twin"), "bf16", 200, 70, 300)
    for threads in (1, 3, BACKWARDS):
        product.check(threads)
    assert library().core_test_twin_configurations() >= before + 3
    assert library().core_test_twin_configured() == 0


def test_pairs_agree_with_floats():
    """bfloat16 products are exact in float: with whole numbers every level gives the same."""
    expected = None
    for name in LEVELS:
        level = LEVELS.index(name)
        if library().core_test_has(level):
            product = Product(level, "bf16", 45, 67, 523)
            rng = np.random.default_rng(4)
            product.a = to_storage(rng.integers(-8, 9, product.a.shape).astype(np.float64), "bf16")
            product.b = to_storage(rng.integers(-8, 9, product.b.shape).astype(np.float64), "bf16")
            if expected is None:
                expected = from_storage(product.a, "bf16") @ from_storage(product.b, "bf16")
            np.testing.assert_array_equal(product.run(), expected)


@pytest.mark.parametrize("wanted", [None, "portable", "avx2", "avx512", "avx512_bf16", "amx", "nonsense"])
def test_environment_lowers_the_level(wanted):
    """The names, each in a process of its own, which reads STURDY_ISA once."""
    have = [level for level in range(5) if library().core_test_has(level)]
    most = LEVELS.index(wanted) if wanted in LEVELS else LEVELS.index("amx")
    environment = {name: value for name, value in os.environ.items() if name != "STURDY_ISA"}
    if wanted is not None:
        environment["STURDY_ISA"] = wanted
    code = "from core_library import library; print(library().core_test_level())"
    here = Path(__file__).resolve().parent
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=here, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == max(level for level in have if level <= most)
