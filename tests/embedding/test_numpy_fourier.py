"""The Fourier family on NumPy arrays and DLPack tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sturdy
from sturdy.numpy import wave_add, wave_add_backward

# ---- wave_add --------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng


def by_definition(x: np.ndarray, f: np.ndarray, a: np.ndarray, p: np.ndarray, clip: Any = None) -> np.ndarray:
    """In float64, with parameters of full rank."""
    y = (np.arange(x.shape[2]) - (x.shape[2] - 1) / 2)[:, None]
    z = np.arange(x.shape[3]) - (x.shape[3] - 1) / 2
    image = x / 255 if x.dtype == np.uint8 else x.astype("f8")
    f, a, p = f[..., None, None], a[..., None, None], p[..., None, None]
    out = image + (a * np.sin(2 * np.pi * (f[:, :, :, 0] * y + f[:, :, :, 1] * z) + p)).sum(axis=2)
    return out if clip is None else out.clip(*clip)


def make(dtype: str = "float32", shape: tuple[int, ...] = (2, 3, 9, 21), count: int = 2) -> dict[str, np.ndarray]:
    rng = RNG(0)
    x = rng.random(shape)
    return {
        "input": (255 * x).astype(dtype) if dtype == "uint8" else x.astype(dtype),
        "frequency": rng.random((*shape[:2], count, 2)) - 0.5,
        "amplitude": 0.2 * rng.standard_normal((*shape[:2], count)),
        "phase": 6 * rng.random((*shape[:2], count)),
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6), ("float16", 1e-3), ("uint8", 2e-6)]
)
@pytest.mark.parametrize("clip", [None, (0, 1)])
def test_matches_definition(dtype: str, tolerance: float, clip: Any) -> None:
    arrays = make(dtype)
    out = wave_add(**arrays, clip=clip)
    assert out.dtype == ("float32" if dtype == "uint8" else dtype)
    np.testing.assert_allclose(out, by_definition(*arrays.values(), clip), rtol=0, atol=tolerance)


def test_spellings() -> None:
    arrays = make(count=1)
    arrays["frequency"] = np.array([[0.1, 0.2]])
    full = {**arrays, "frequency": arrays["frequency"][None, None]}
    for value in (0.25, np.float64(0.25), np.array([0.25]), np.full((1, 3, 1), 0.25, np.float32)):
        out = wave_add(arrays["input"], arrays["frequency"], value, value)
        same = np.full((1, 1, 1), 0.25)
        np.testing.assert_array_equal(out, wave_add(full["input"], full["frequency"], same, same))
    one = wave_add(arrays["input"][1], arrays["frequency"], 0.25)
    np.testing.assert_array_equal(one, wave_add(arrays["input"], arrays["frequency"], 0.25)[1])


def test_out_and_layouts() -> None:
    arrays = make()
    wanted = wave_add(**arrays)
    out = np.full_like(wanted, np.nan)
    assert wave_add(**arrays, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(arrays["input"], 1, -1)), -1, 1)
    found = wave_add(**{**arrays, "input": last})
    assert found.strides[1] == 4
    np.testing.assert_array_equal(found, wanted)
    bytes_in = make("uint8")
    wide = np.empty(wanted.shape)
    assert wave_add(**bytes_in, out=wide) is wide
    np.testing.assert_allclose(wide, by_definition(*bytes_in.values()), rtol=0, atol=1e-12)


def test_torch_tensors_and_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    from sturdy import functional

    arrays = make()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wanted = functional.wave_add(**tensors, clip=(0, 1)).numpy()
    np.testing.assert_array_equal(wave_add(**arrays, clip=(0, 1)), wanted)
    np.testing.assert_array_equal(wave_add(**tensors, clip=(0, 1)), wanted)


def test_gradients() -> None:
    arrays = make("float64")
    grad_out = RNG(1).standard_normal(arrays["input"].shape)
    unclamped = by_definition(*arrays.values())
    inside = (unclamped >= 0) & (unclamped <= 1)
    assert 0 < inside.mean() < 1
    found = wave_add_backward(grad_out, **arrays, clip=(0, 1))
    np.testing.assert_array_equal(found.input, grad_out * inside)
    for k in range(2):
        one = np.zeros((2, 3, 2))
        one[:, :, k] = 1
        wave = by_definition(0 * arrays["input"], arrays["frequency"], one, arrays["phase"])
        wanted = (grad_out * inside * wave).sum(axis=(2, 3))
        np.testing.assert_allclose(found.amplitude[:, :, k], wanted, rtol=0, atol=1e-11)
    del arrays["input"]
    without = wave_add_backward(grad_out, None, **arrays)
    np.testing.assert_array_equal(without.input, grad_out)
    amplitude = np.full((2, 3, 2), np.nan)
    only = wave_add_backward(grad_out, None, **arrays, out=(None, amplitude))
    assert only.input is None and only.amplitude is amplitude
    np.testing.assert_array_equal(amplitude, without.amplitude)


X, F = np.zeros((2, 3, 4, 5), np.float32), np.zeros((1, 1, 1, 2))


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"input": X.astype("i8")}, TypeError, "input must be uint8, float16, .*got int64: convert it"),
        ({"input": X.astype("c8")}, TypeError, "got complex64"),
        ({"input": X[0, 0]}, sturdy.ShapeError, "input must be .* got 2 dimensions"),
        ({"frequency": F[..., :1]}, sturdy.ShapeError, "frequency must have 2 axes"),
        ({"frequency": np.zeros((3, 1, 1, 2))}, sturdy.ShapeError, r"frequency must have 2 images \\(N\\) or 1, got 3"),
        ({"amplitude": np.zeros((2, 3, 2))}, sturdy.ShapeError, r"amplitude must have 1 waves \\(K\\)"),
        ({"phase": np.zeros((1, 1, 1), "f2")}, TypeError, "phase must be float32 or float64, got float16"),
        ({"clip": (1, 0)}, ValueError, "clip must be"),
        ({"out": np.zeros((2, 3, 4, 4), "f4")}, sturdy.ShapeError, r"out must have shape \\(2, 3, 4, 5\\)"),
        ({"out": np.zeros((2, 3, 4, 5))}, TypeError, "out must have the dtype of input"),
        ({"out": X}, sturdy.ShapeError, "out must not share memory with input"),
    ],
)
def test_refusals(change: dict[str, Any], exception: type[Exception], message: str) -> None:
    arguments = {"input": X, "frequency": F, "amplitude": 1.0, **change}
    with pytest.raises(exception, match=f"^wave_add: .*{message}".replace("\\\\", "\\")):
        wave_add(**arguments)


def test_refusals_of_backward() -> None:
    with pytest.raises(sturdy.ShapeError, match="input must not be NULL"):
        wave_add_backward(X, None, F, 1.0, clip=(0, 1))
    with pytest.raises(TypeError, match="out must be a tuple of two arrays"):
        wave_add_backward(X, X, F, 1.0, out=(None,))
    with pytest.raises(sturdy.ShapeError, match=r"grad_amplitude must have shape \(2, 3, 1\)"):
        wave_add_backward(X, X, F, 1.0, out=(None, np.zeros((2, 3, 2), "f4")))
