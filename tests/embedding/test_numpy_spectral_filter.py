"""spectral_filter on NumPy arrays, and through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64
from typing import Any

import c_library
import numpy as np
import pytest
from c_library import SpectralFilterOptions as Options
from embedding_support import NO_CUDA

import sturdy
from sturdy.numpy import spectral_filter, spectral_filter_backward

RNG = np.random.default_rng
TOLERANCE = {"float16": 1e-3, "float32": 5e-6, "float64": 1e-12}


def reference(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fftshift(np.fft.fft2(x.astype(np.float64)), axes=(-2, -1)) * mask
    return np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(8, 8), (28, 30), (37, 5), (32, 64)], ids=str)
def test_matches_the_definition(size: tuple[int, int], dtype: str) -> None:
    x = RNG(0).random((2, 3, *size)).astype(dtype)
    mask = RNG(1).random(size).astype("float64" if dtype == "float64" else "float32")
    out = spectral_filter(x, mask)
    assert isinstance(out, np.ndarray) and out.dtype == dtype
    assert np.abs(out - reference(x, mask)).max() <= TOLERANCE[dtype]
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    kept = spectral_filter(strided, mask)
    np.testing.assert_array_equal(kept, out)
    assert kept.strides[1] == kept.itemsize
    np.testing.assert_array_equal(spectral_filter(x[:, :, ::-1], mask), spectral_filter(x[:, :, ::-1].copy(), mask))
    np.testing.assert_array_equal(spectral_filter(x[0], mask), out[0])


@pytest.mark.parametrize("kind", ["shared", "half", "table", "many"])
def test_equals_the_torch_op_to_the_last_bit(kind: str) -> None:
    torch = pytest.importorskip("torch")
    from sturdy.functional import spectral_filter as torch_op

    shape = {"shared": (12, 14), "half": (3, 12, 8), "table": (4, 12, 14), "many": (1, 2, 3, 12, 14)}[kind]
    x, mask = RNG(2).random((3, 3, 12, 14), "float32"), RNG(3).random(shape, "float32")
    index = np.array([3, -1, 0]) if kind == "table" else None
    layout = "half" if kind == "half" else "shifted"
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, mask)]
    wanted = torch_op(*tensors, layout, None if index is None else torch.from_numpy(index), (0.1, 0.5))
    out = spectral_filter(x, mask, layout, index, (0.1, 0.5))
    np.testing.assert_array_equal(out, wanted.detach().numpy())
    grad_out = RNG(4).random(out.shape, "float32")
    wanted.backward(torch.from_numpy(grad_out))
    grads = spectral_filter_backward(grad_out, x, mask, layout, index, (0.1, 0.5))
    np.testing.assert_array_equal(grads.x, tensors[0].grad.numpy())
    np.testing.assert_array_equal(grads.mask, tensors[1].grad.numpy())
    alone = spectral_filter_backward(grad_out, x, mask, layout, index, (0.1, 0.5), out=(None, np.empty_like(mask)))
    assert alone.x is None
    np.testing.assert_array_equal(alone.mask, grads.mask)


def test_into_given_memory() -> None:
    x, mask = RNG(5).random((2, 3, 8, 10)), RNG(6).random((8, 10))
    out = np.full_like(x, np.nan)
    assert spectral_filter(x, mask, out=out) is out
    np.testing.assert_array_equal(out, spectral_filter(x, mask))
    with pytest.raises(sturdy.ShapeError, match="out must not share memory with x"):
        spectral_filter(x, mask, out=x)
    with pytest.raises(BufferError):
        out.flags.writeable = False
        spectral_filter(x, mask, out=out)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": np.ones((8, 9))}, sturdy.ShapeError, r"\(8, 10\) for layout 'shifted' or \(8, 6\)"),
        ({"mask": np.ones((8, 10), complex)}, TypeError, "mask must be float32"),
        ({"mask": np.ones((8, 10), "float32"), "x": np.ones((1, 1, 8, 10), "int32")}, TypeError, "x must be float16"),
        ({"x": np.ones((8, 10))}, sturdy.ShapeError, r"x must be \(N, C, H, W\) or \(C, H, W\)"),
        ({"layout": "full"}, ValueError, "layout must be 'shifted' or 'half'"),
        ({"clip": (1, 0)}, ValueError, "low <= high"),
        ({"mask": np.ones((2, 8, 10)), "index": np.array([2])}, sturdy.ShapeError, "got 2 for image 0"),
        ({"mask": np.ones((2, 8, 10)), "index": np.array([1], "int32")}, TypeError, "index must be int64"),
    ],
    ids=["mask", "complex", "integers", "rank", "layout", "clip", "index", "index dtype"],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": np.ones((1, 1, 8, 10)), "mask": np.ones((8, 10)), **change}
    with pytest.raises(error, match=message):
        spectral_filter(**arguments)


# ---- C ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return c_library.load()


def last_error(library: ctypes.CDLL) -> str:
    return library.sturdy_last_error().decode()


def test_c_call(library: ctypes.CDLL) -> None:
    x, mask = RNG(7).random((2, 3, 8, 10)), RNG(8).random((1, 4, 1, 8, 10))
    options = Options(ctypes.sizeof(Options), 1, 0.2, 0.4)
    shape = (c_int64 * 5)()
    inferred = c_library.Tensor(shape=shape)
    views = [c_library.view(a) for a in (x, mask)]
    assert library.sturdy_spectral_filter_infer(options, *map(byref, views), None, byref(inferred)) == c_library.OK
    assert inferred.ndim == 5 and list(shape) == [2, 4, 3, 8, 10]
    out = np.full(tuple(shape), np.nan)
    target = c_library.view(out)
    status = library.sturdy_spectral_filter(None, options, *map(byref, views), None, byref(target))
    assert status == c_library.OK, last_error(library)
    np.testing.assert_array_equal(out, spectral_filter(x, mask, clip=(0.2, 0.4)))


def test_c_refusals(library: ctypes.CDLL) -> None:
    x, mask, out = RNG(9).random((2, 3, 8, 10)), RNG(10).random((8, 10)), np.empty((2, 3, 8, 10))
    good = Options(ctypes.sizeof(Options), 0, 0, 0)

    def call(options: Any = good, x: Any = x, mask: Any = mask, out: Any = out) -> tuple[int, str]:
        views = [c_library.view(a) for a in (x, mask, None, out)]
        status = library.sturdy_spectral_filter(None, options, *(v and byref(v) for v in views))
        return status, last_error(library)

    assert call()[0] == c_library.OK
    assert call(options=None) == (c_library.EINVAL, "spectral_filter: options must not be NULL")
    assert call(options=Options(4, 0, 0, 0))[0] == c_library.EINVAL
    assert call(options=Options(ctypes.sizeof(Options), 4, 0, 0))[1].endswith("options.flags must be 0, got 4")
    assert call(options=Options(ctypes.sizeof(Options), 1, 1, 0))[1].startswith("spectral_filter: clip must be")
    for name in ("x", "mask", "out"):
        assert call(**{name: None}) == (c_library.EINVAL, f"spectral_filter: {name} must not be NULL")
    assert call(out=np.empty((2, 3, 8, 9)))[0] == c_library.EINVAL
    assert call(out=np.empty((2, 3, 8, 10), "float32"))[0] == c_library.ETYPE
    assert call(out=np.empty((2, 3, 10, 8)).transpose(0, 1, 3, 2))[1].endswith("contiguous or channels-last")
    no_x = library.sturdy_spectral_filter_backward(
        None, good, *(byref(c_library.view(a)) if a is not None else None for a in (out, None, mask, None, None, mask))
    )
    assert no_x == c_library.EINVAL and "x must not be NULL" in last_error(library)


@NO_CUDA
def test_a_gpu_is_refused_in_plain_words(library: ctypes.CDLL) -> None:
    x, mask = np.zeros((1, 1, 8, 8), "float32"), np.zeros((8, 8), "float32")
    views = [c_library.view(a) for a in (x, mask, x.copy())]
    for view in views:
        view.device = c_library.Device(c_library.CUDA, 0)
    options = Options(ctypes.sizeof(Options), 0, 0, 0)
    status = library.sturdy_spectral_filter(None, options, *map(byref, views[:2]), None, byref(views[2]))
    assert status == c_library.EUNSUPPORTED
    assert "spectral_filter: this build has no CUDA kernels" in last_error(library)
