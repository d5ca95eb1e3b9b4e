"""filter2d, smooth_color and sine_warp of the C library through ctypes alone: values, refusals that never crash."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref
from typing import Any

import numpy as np
import pytest
from c_library import (
    CUDA,
    EINVAL,
    ETYPE,
    OK,
    Device,
    DType,
    Filter2dOptions,
    SineWarpOptions,
    SmoothColorOptions,
    Tensor,
    load,
    message,
    view,
)
from embedding_support import ROOT, run

CLIP = 1
OPTIONS = {"filter2d": Filter2dOptions, "smooth_color": SmoothColorOptions, "sine_warp": SineWarpOptions}
PARAMETER = {"filter2d": "kernel", "smooth_color": "coefficients", "sine_warp": "coefficients"}
SHAPES = {"filter2d": (2, 1, 3, 3), "smooth_color": (2, 3, 5), "sine_warp": (2, 2, 4, 9)}
GRADIENTS = {"filter2d": (2, 3, 3, 3), "smooth_color": (2, 3, 5)}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return load()


class Call:
    """The arguments of calls of an op that succeed; a test spoils some of them."""

    def __init__(self, op: str, dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        self.op = op
        self.arrays: dict[str, np.ndarray] = {
            "x": rng.random((2, 3, 5, 7)).astype(dtype),
            PARAMETER[op]: rng.standard_normal(SHAPES[op]),
            "out": np.full((2, 3, 5, 7), np.nan, dtype),
            "grad_out": rng.standard_normal((2, 3, 5, 7)).astype(dtype),
            "grad_x": np.full((2, 3, 5, 7), np.nan, dtype),
        }
        if op == "smooth_color":
            self.arrays["first"] = np.array([1, 4])
        if op in GRADIENTS:
            self.arrays["grad"] = np.full(GRADIENTS[op], np.nan, "float64" if dtype == "float64" else "float32")
        self.views: dict[str, Tensor | None] = {name: view(array) for name, array in self.arrays.items()}
        self.options: Any = OPTIONS[op](ctypes.sizeof(OPTIONS[op]))
        if op in GRADIENTS:
            self.options.flags, self.options.high = CLIP, 1.0

    def _inputs(self) -> list[str]:
        return ["x", PARAMETER[self.op], *(["first"] if self.op == "smooth_color" else [])]

    def _call(self, library: ctypes.CDLL, function: str, first: list[Any], names: list[str]) -> int:
        options = None if self.options is None else byref(self.options)
        tensors = [None if self.views[name] is None else byref(self.views[name]) for name in names]
        return int(getattr(library, f"sturdy_{function}")(*first, options, *tensors))

    def infer(self, library: ctypes.CDLL) -> int:
        return self._call(library, f"{self.op}_infer", [], [*self._inputs(), "out"])

    def forward(self, library: ctypes.CDLL) -> int:
        return self._call(library, self.op, [None], [*self._inputs(), "out"])

    def backward(self, library: ctypes.CDLL) -> int:
        return self._call(library, f"{self.op}_backward", [None], ["grad_out", *self._inputs(), "grad_x", "grad"])

    def exact(self) -> np.ndarray:
        """By the definition, in float64."""
        x, parameter = self.arrays["x"].astype("f8"), self.arrays[PARAMETER[self.op]]
        if self.op == "filter2d":
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
            taps = [(a, b) for a in range(3) for b in range(3)]
            return sum(parameter[..., a, b, None, None] * padded[..., a : a + 5, b : b + 7] for a, b in taps).clip(0, 1)
        if self.op == "smooth_color":
            frequency = self.arrays["first"][:, None, None] + np.arange(5)
            sines = np.sin(np.pi * frequency[..., None, None] * x[:, :, None])
            return (x + (parameter[..., None, None] * sines).sum(axis=2)).clip(0, 1)
        columns = np.sin(np.pi * np.arange(1, 5)[:, None] * np.arange(7) / 6)
        rows = np.sin(np.pi * np.arange(1, 10)[:, None] * np.arange(5) / 4)
        field = np.einsum("nfij,ic,jr->nfrc", parameter, columns, rows)
        row = (np.arange(5)[:, None] - field[:, 1]).clip(0, 4)
        column = (np.arange(7) - field[:, 0]).clip(0, 6)
        out = np.zeros_like(x)
        for n, c, r, s in np.ndindex(x.shape):
            y, z = row[n, r, s], column[n, r, s]
            for i in {int(np.floor(y)), int(np.ceil(y))}:
                for j in {int(np.floor(z)), int(np.ceil(z))}:
                    out[n, c, r, s] += (1 - abs(y - i)) * (1 - abs(z - j)) * x[n, c, i, j]
        return out


def test_layouts_agree_with_the_header(tmp_path: Any) -> None:
    source = tmp_path / "size.c"
    sizes = ", ".join(f"sizeof(sturdy_{op}_options)" for op in OPTIONS)
    source.write_text(
        '#include <stdio.h>\n#include "sturdy/fourier.h"\n'
        f'int main(void) {{ printf("%zu %zu %zu", {sizes}); return 0; }}\n'
    )
    run("gcc", "-std=c99", f"-I{ROOT / 'csrc' / 'include'}", source, "-o", tmp_path / "size")
    assert run(tmp_path / "size").stdout.split() == [str(ctypes.sizeof(kind)) for kind in OPTIONS.values()]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 5e-6), ("float16", 2e-3)])
@pytest.mark.parametrize("op", OPTIONS)
def test_values(library: ctypes.CDLL, op: str, dtype: str, tolerance: float) -> None:
    call = Call(op, dtype)
    assert call.forward(library) == OK, message(library)
    np.testing.assert_allclose(call.arrays["out"], call.exact(), rtol=0, atol=tolerance)
    if op in GRADIENTS:
        assert call.backward(library) == OK, message(library)
        assert np.isfinite(call.arrays["grad_x"]).all() and np.isfinite(call.arrays["grad"]).all()


@pytest.mark.parametrize("op", OPTIONS)
def test_infer(library: ctypes.CDLL, op: str) -> None:
    call = Call(op)
    sizes = (ctypes.c_int64 * 4)()
    call.views["out"] = Tensor(shape=sizes)
    call.views["x"].data = None
    assert call.infer(library) == OK, message(library)
    assert list(sizes) == [2, 3, 5, 7] and call.views["out"].dtype.bits == 32
    for wanted, got in ((DType(), (2, 32)), (DType(4, 16, 1), (4, 16)), (DType(2, 64, 1), (2, 64))):
        call.views["x"].dtype = DType(1, 8, 1)
        call.views["out"].dtype = wanted
        assert call.infer(library) == OK, message(library)
        assert (call.views["out"].dtype.code, call.views["out"].dtype.bits) == got
    call.views["out"].dtype = DType(0, 32, 1)
    assert call.infer(library) == ETYPE


def set_options(**changes: Any) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        for name, value in changes.items():
            setattr(call.options, name, value)

    return spoil


def set_view(view_name: str, **changes: Any) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        for name, value in changes.items():
            setattr(call.views[PARAMETER[call.op] if view_name == "parameter" else view_name], name, value)

    return spoil


def remove(name: str) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        if name == "options":
            call.options = None
        else:
            call.views[PARAMETER[call.op] if name == "parameter" else name] = None

    return spoil


REFUSALS: dict[str, tuple[Callable[[Call], None], int, str]] = {
    "no options": (remove("options"), EINVAL, "options must not be NULL"),
    "small struct": (set_options(struct_size=4), EINVAL, "struct_size must be at least"),
    "flags": (set_options(flags=6), EINVAL, "options.flags must be 0, got 6"),
    "no x": (remove("x"), EINVAL, "x must not be NULL"),
    "no parameter": (remove("parameter"), EINVAL, "must not be NULL"),
    "no out": (remove("out"), EINVAL, "out must not be NULL"),
    "null data": (set_view("x", data=None), EINVAL, "x.data must not be NULL"),
    "rank": (set_view("x", ndim=3), EINVAL, "x must have 4 dimensions"),
    "dtype": (set_view("x", dtype=DType(0, 64, 1)), ETYPE, "got int64"),
    "out dtype": (set_view("out", dtype=DType(2, 64, 1)), ETYPE, "out must have the dtype of x"),
    "parameter dtype": (set_view("parameter", dtype=DType(2, 16, 1)), ETYPE, "must be float32 or float64"),
    "parameter rank": (set_view("parameter", ndim=2), EINVAL, "dimensions"),
    "other device": (set_view("parameter", device=Device(CUDA, 0)), EINVAL, "must be on the device of x"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("op", OPTIONS)
def test_refusals(library: ctypes.CDLL, op: str, name: str) -> None:
    spoil, status, words = REFUSALS[name]
    call = Call(op)
    spoil(call)
    assert call.forward(library) == status
    assert message(library).startswith(f"{op}: ") and words in message(library), message(library)
    assert np.isnan(call.arrays["out"]).all()


def test_refusals_of_first(library: ctypes.CDLL) -> None:
    for spoil, status, words in [
        (set_view("first", dtype=DType(2, 64, 1)), ETYPE, "first must be int64"),
        (set_view("first", ndim=2), EINVAL, "first must have 1 dimension"),
    ]:
        call = Call("smooth_color")
        spoil(call)
        assert call.forward(library) == status
        assert words in message(library), message(library)
    call = Call("smooth_color")
    call.views["first"] = None
    assert call.forward(library) == OK, message(library)


@pytest.mark.parametrize("op", GRADIENTS)
def test_refusals_of_backward(library: ctypes.CDLL, op: str) -> None:
    name = PARAMETER[op]
    for spoil, status, words in [
        (remove("grad_out"), EINVAL, "grad_out must not be NULL"),
        (remove("x"), EINVAL, "x must not be NULL"),
        (set_view("grad", dtype=DType(2, 64, 1)), ETYPE, f"grad_{name} must be float64 for float64"),
        (set_view("grad", ndim=2), EINVAL, f"grad_{name} must have shape (2, 3, "),
        (set_view("grad_x", dtype=DType(2, 16, 1)), ETYPE, "grad_x must have the dtype of grad_out"),
    ]:
        call = Call(op)
        spoil(call)
        assert call.backward(library) == status
        assert message(library).startswith(f"{op}_backward: ") and words in message(library), message(library)
        assert np.isnan(call.arrays["grad_x"]).all()
    call = Call(op)
    call.views["grad_x"] = None
    assert call.backward(library) == OK, message(library)
    assert np.isnan(call.arrays["grad_x"]).all() and np.isfinite(call.arrays["grad"]).all()


@pytest.mark.parametrize("op", OPTIONS)
def test_nothing_beyond_the_arrays_is_touched(library: ctypes.CDLL, op: str) -> None:
    for dtype in ("float32", "float64", "float16"):
        call = Call(op, dtype)
        size = call.arrays["out"].size
        memory = np.full(size + 64, 77, dtype)
        call.arrays["out"] = memory[32 : 32 + size].reshape(2, 3, 5, 7)
        call.views["out"] = view(call.arrays["out"])
        assert call.forward(library) == OK, message(library)
        assert (memory[:32] == 77).all() and (memory[32 + size :] == 77).all()
