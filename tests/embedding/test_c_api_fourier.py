"""The Fourier family of the C library through ctypes alone: values, refusals that never crash."""

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
    EUNSUPPORTED,
    OK,
    Device,
    DType,
    Tensor,
    WaveAddOptions,
    load,
    message,
    view,
)
from embedding_support import ROOT, run

CLIP = 1


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return load()


class Call:
    """The arguments of calls of wave_add that succeed; a test spoils some of them."""

    def __init__(self, dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        wide = "float64" if dtype == "float64" else "float32"
        self.arrays: dict[str, np.ndarray] = {
            "input": rng.random((2, 3, 5, 7)).astype(dtype),
            "frequency": rng.random((1, 1, 2, 2)) - 0.5,
            "amplitude": rng.standard_normal((2, 3, 2)),
            "phase": rng.random((1, 3, 2)).astype("float32"),
            "out": np.full((2, 3, 5, 7), np.nan, dtype),
            "grad_out": rng.standard_normal((2, 3, 5, 7)).astype(dtype),
            "grad_input": np.full((2, 3, 5, 7), np.nan, dtype),
            "grad_amplitude": np.full((2, 3, 2), np.nan, wide),
        }
        self.views: dict[str, Tensor | None] = {name: view(array) for name, array in self.arrays.items()}
        self.options: WaveAddOptions | None = WaveAddOptions(ctypes.sizeof(WaveAddOptions), CLIP, 0.0, 1.0)

    def _pass(self, *names: str) -> list[Any]:
        options = None if self.options is None else byref(self.options)
        return [options, *(None if self.views[name] is None else byref(self.views[name]) for name in names)]

    def infer(self, library: ctypes.CDLL) -> int:
        return library.sturdy_wave_add_infer(*self._pass("input", "frequency", "amplitude", "phase", "out"))

    def forward(self, library: ctypes.CDLL) -> int:
        return library.sturdy_wave_add(None, *self._pass("input", "frequency", "amplitude", "phase", "out"))

    def backward(self, library: ctypes.CDLL) -> int:
        names = ("grad_out", "input", "frequency", "amplitude", "phase", "grad_input", "grad_amplitude")
        return library.sturdy_wave_add_backward(None, *self._pass(*names))

    def sum(self) -> np.ndarray:
        """What is clamped, by the definition."""
        a = {name: array.astype("f8") for name, array in self.arrays.items()}
        y, x = (np.arange(5) - 2)[:, None], np.arange(7) - 3
        f = a["frequency"][..., None, None]
        angle = 2 * np.pi * (f[:, :, :, 0] * y + f[:, :, :, 1] * x) + a["phase"][..., None, None]
        return a["input"] + (a["amplitude"][..., None, None] * np.sin(angle)).sum(axis=2)


def test_layout_agrees_with_the_header(tmp_path: Any) -> None:
    source = tmp_path / "size.c"
    source.write_text(
        '#include <stdio.h>\n#include "sturdy/fourier.h"\n'
        'int main(void) { printf("%zu", sizeof(sturdy_wave_add_options)); return 0; }\n'
    )
    run("gcc", "-std=c99", f"-I{ROOT / 'csrc' / 'include'}", source, "-o", tmp_path / "size")
    assert int(run(tmp_path / "size").stdout) == ctypes.sizeof(WaveAddOptions)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6), ("float16", 2e-3)])
def test_values(library: ctypes.CDLL, dtype: str, tolerance: float) -> None:
    call = Call(dtype)
    assert call.forward(library) == OK, message(library)
    np.testing.assert_allclose(call.arrays["out"], call.sum().clip(0, 1), rtol=0, atol=tolerance)
    assert call.backward(library) == OK, message(library)
    inside = (call.sum() >= 0) & (call.sum() <= 1)
    np.testing.assert_array_equal(call.arrays["grad_input"], call.arrays["grad_out"] * inside)
    assert np.isfinite(call.arrays["grad_amplitude"]).all()


def test_infer(library: ctypes.CDLL) -> None:
    call = Call()
    sizes = (ctypes.c_int64 * 4)()
    call.views["out"] = Tensor(shape=sizes)
    for name in ("input", "frequency", "amplitude", "phase"):
        call.views[name].data = None
    assert call.infer(library) == OK, message(library)
    assert list(sizes) == [2, 3, 5, 7] and call.views["out"].dtype.bits == 32
    for wanted, got in ((DType(), (2, 32)), (DType(4, 16, 1), (4, 16)), (DType(2, 64, 1), (2, 64))):
        call.views["input"].dtype = DType(1, 8, 1)
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
            setattr(call.views[view_name], name, value)

    return spoil


def remove(name: str) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        if name == "options":
            call.options = None
        else:
            call.views[name] = None

    return spoil


REFUSALS: dict[str, tuple[Callable[[Call], None], int, str]] = {
    "no options": (remove("options"), EINVAL, "options must not be NULL"),
    "small struct": (set_options(struct_size=4), EINVAL, "struct_size must be at least"),
    "flags": (set_options(flags=6), EINVAL, "options.flags must be 0, got 6"),
    "bounds": (set_options(low=2.0), EINVAL, "clip must be (low, high)"),
    "nan": (set_options(high=float("nan")), EINVAL, "clip must be (low, high)"),
    "no input": (remove("input"), EINVAL, "input must not be NULL"),
    "no frequency": (remove("frequency"), EINVAL, "frequency must not be NULL"),
    "no amplitude": (remove("amplitude"), EINVAL, "amplitude must not be NULL"),
    "no phase": (remove("phase"), EINVAL, "phase must not be NULL"),
    "no out": (remove("out"), EINVAL, "out must not be NULL"),
    "null data": (set_view("input", data=None), EINVAL, "input.data must not be NULL"),
    "null phase data": (set_view("phase", data=None), EINVAL, "phase.data must not be NULL"),
    "rank": (set_view("input", ndim=3), EINVAL, "input must have 4 dimensions"),
    "dtype": (set_view("input", dtype=DType(0, 64, 1)), ETYPE, "got int64"),
    "out dtype": (set_view("out", dtype=DType(2, 64, 1)), ETYPE, "out must have the dtype of input"),
    "amplitude dtype": (set_view("amplitude", dtype=DType(2, 16, 1)), ETYPE, "amplitude must be float32 or float64"),
    "other device": (set_view("phase", device=Device(CUDA, 0)), EINVAL, "phase must be on the device of input"),
    "unknown device": (set_view("input", device=Device(9, 0)), EUNSUPPORTED, "input must be on the CPU"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(library: ctypes.CDLL, name: str) -> None:
    spoil, status, words = REFUSALS[name]
    call = Call()
    spoil(call)
    assert call.forward(library) == status
    assert message(library).startswith("wave_add: ") and words in message(library)
    assert np.isnan(call.arrays["out"]).all()


def test_refusals_of_backward(library: ctypes.CDLL) -> None:
    for spoil, status, words in [
        (remove("grad_out"), EINVAL, "grad_out must not be NULL"),
        (remove("input"), EINVAL, "input must not be NULL"),
        (set_view("grad_amplitude", dtype=DType(2, 64, 1)), ETYPE, "grad_amplitude must be float64 for float64"),
        (set_view("grad_amplitude", ndim=2), EINVAL, "grad_amplitude must have shape (2, 3, 2)"),
        (set_view("grad_input", dtype=DType(2, 16, 1)), ETYPE, "grad_input must have the dtype of grad_out"),
    ]:
        call = Call()
        spoil(call)
        assert call.backward(library) == status
        assert message(library).startswith("wave_add_backward: ") and words in message(library)
        assert np.isnan(call.arrays["grad_input"]).all()
    call = Call()
    call.options.flags = 0
    call.views["input"] = None
    call.views["grad_input"] = None
    assert call.backward(library) == OK, message(library)
    assert np.isnan(call.arrays["grad_input"]).all() and np.isfinite(call.arrays["grad_amplitude"]).all()


def test_nothing_beyond_the_arrays_is_touched(library: ctypes.CDLL) -> None:
    for dtype in ("float32", "float64", "float16"):
        call = Call(dtype)
        size = call.arrays["out"].size
        memory = np.full(size + 64, 77, dtype)
        call.arrays["out"] = memory[32 : 32 + size].reshape(2, 3, 5, 7)
        call.views["out"] = view(call.arrays["out"])
        assert call.forward(library) == OK, message(library)
        assert (memory[:32] == 77).all() and (memory[32 + size :] == 77).all()
