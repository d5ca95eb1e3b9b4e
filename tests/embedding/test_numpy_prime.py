"""filter2d, smooth_color and sine_warp on NumPy arrays and DLPack tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sturdy
from sturdy import numpy as snp

RNG = np.random.default_rng
OPS: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "filter2d": (snp.filter2d, "kernel", (2, 3, 3, 3)),
    "smooth_color": (snp.smooth_color, "coefficients", (2, 3, 4)),
    "sine_warp": (snp.sine_warp, "coefficients", (2, 2, 3, 4)),
}


def make(op: str, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    x = RNG(0).random((2, 3, 9, 21))
    parameter = 0.3 * RNG(1).standard_normal(OPS[op][2])
    return (255 * x).astype(dtype) if dtype == "uint8" else x.astype(dtype), parameter


def test_filter2d_matches_definition() -> None:
    for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-6), ("float16", 1e-3), ("uint8", 2e-6)):
        x, kernel = make("filter2d", dtype)
        image = x / 255 if dtype == "uint8" else x.astype("f8")
        padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
        taps = [(a, b) for a in range(3) for b in range(3)]
        exact = sum(kernel[..., a, b, None, None] * padded[..., a : a + 9, b : b + 21] for a, b in taps)
        out = snp.filter2d(x, kernel, (0, 1))
        assert out.dtype == ("float32" if dtype == "uint8" else dtype)
        np.testing.assert_allclose(out, exact.clip(0, 1), rtol=0, atol=tolerance)


def test_smooth_color_matches_definition() -> None:
    x, c = make("smooth_color", "float64")
    for first in (1, 3, np.int64(3), np.array([2, 5])):
        frequency = np.reshape(first, (-1, 1, 1)) + np.arange(4)
        exact = x + (c[..., None, None] * np.sin(np.pi * frequency[..., None, None] * x[:, :, None])).sum(axis=2)
        np.testing.assert_allclose(snp.smooth_color(x, c, first=first), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8"])
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_as_torch(op: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from sturdy import functional

    x, parameter = make(op, dtype)
    tensors = torch.from_numpy(x), torch.from_numpy(parameter)
    wanted = getattr(functional, op)(*tensors).numpy()
    np.testing.assert_array_equal(OPS[op][0](x, parameter), wanted)
    np.testing.assert_array_equal(OPS[op][0](*tensors), wanted)


@pytest.mark.parametrize("op", OPS)
def test_out_and_layouts(op: str) -> None:
    function = OPS[op][0]
    x, parameter = make(op)
    wanted = function(x, parameter)
    out = np.full_like(wanted, np.nan)
    assert function(x, parameter, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    found = function(last, parameter)
    assert found.strides[1] == 4
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(function(x[1], parameter[1:]), wanted[1])
    np.testing.assert_array_equal(
        function(x, parameter[0, 0] if op != "sine_warp" else parameter[0])[0, 0], wanted[0, 0]
    )
    wide = np.empty(wanted.shape)
    assert function((255 * x).astype("u1"), parameter, out=wide) is wide


def test_gradients() -> None:
    grad_out = RNG(2).standard_normal((2, 3, 9, 21))
    for op, backward in (("filter2d", snp.filter2d_backward), ("smooth_color", snp.smooth_color_backward)):
        function = OPS[op][0]
        x, parameter = make(op, "float64")
        found = backward(grad_out, x, parameter)
        assert found._fields == ("x", OPS[op][1])
        for change, gradient, at in (
            (x, found[0], (1, 2, 4, 5)),
            (parameter, found[1], (1, 2, *[1] * (parameter.ndim - 2))),
        ):
            step = np.zeros_like(change)
            step[at] = 1e-5
            high, low = (
                (
                    grad_out * function(x + s * step, parameter)
                    if change is x
                    else grad_out * function(x, parameter + s * step)
                )
                for s in (1, -1)
            )
            np.testing.assert_allclose(gradient[at], (high - low).sum() / 2e-5, rtol=1e-6, atol=1e-8)
        memory = np.full(found[1].shape, np.nan)
        only = backward(grad_out, x, parameter, out=(None, memory))
        assert only[0] is None and only[1] is memory
        np.testing.assert_array_equal(memory, found[1])


X = np.zeros((2, 3, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("op", "change", "exception", "message"),
    [
        ("filter2d", {"x": X.astype("i8")}, TypeError, "x must be uint8, float16, .*got int64: convert it"),
        ("filter2d", {"x": X[0, 0]}, sturdy.ShapeError, "x must be .* got 2 dimensions"),
        ("filter2d", {"kernel": np.zeros((2, 2))}, sturdy.ShapeError, "kernel must have 3 rows"),
        ("filter2d", {"kernel": np.zeros((3, 3), "f2")}, TypeError, "kernel must be float32 or float64, got float16"),
        ("filter2d", {"clip": (1, 0)}, ValueError, "clip must be"),
        ("filter2d", {"out": X}, sturdy.ShapeError, "out must not share memory with x"),
        ("smooth_color", {"coefficients": np.zeros((3, 1, 2))}, sturdy.ShapeError, "coefficients must have 2 images"),
        ("smooth_color", {"first": np.zeros(2)}, TypeError, "first must be int64"),
        ("smooth_color", {"first": 1.5}, TypeError, "first must be made of integers"),
        (
            "smooth_color",
            {"first": np.zeros(3, "i8")},
            sturdy.ShapeError,
            r"first must have 2 images \(N\) or 1, got 3",
        ),
        ("smooth_color", {"out": np.zeros((2, 3, 4, 5))}, TypeError, "out must have the dtype of x"),
        ("sine_warp", {"coefficients": np.zeros((1, 3, 2, 2))}, sturdy.ShapeError, "coefficients must have 2 fields"),
        ("sine_warp", {"coefficients": np.zeros((3, 2, 2, 2))}, sturdy.ShapeError, "coefficients must have 2 images"),
    ],
)
def test_refusals(op: str, change: dict[str, Any], exception: type[Exception], message: str) -> None:
    function, name, shape = OPS[op]
    arguments = {
        "x": X,
        name: np.zeros((1, *shape[1:])) if op == "sine_warp" else np.zeros((1, 1, *shape[2:])),
        **change,
    }
    with pytest.raises(exception, match=f"^{op}: .*{message}"):
        function(**arguments)


def test_refusals_of_backward() -> None:
    with pytest.raises(TypeError, match="out must be a tuple of two arrays"):
        snp.filter2d_backward(X, X, np.zeros((3, 3)), out=(None,))
    with pytest.raises(sturdy.ShapeError, match=r"grad_kernel must have shape \(2, 3, 3, 3\)"):
        snp.filter2d_backward(X, X, np.zeros((3, 3)), out=(None, np.zeros((1, 1, 3, 3), "f4")))
    with pytest.raises(sturdy.ShapeError, match="x must have shape"):
        snp.smooth_color_backward(X, X[:1], np.zeros(2))
