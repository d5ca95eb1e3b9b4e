"""amplitude_mix and spectrum_accumulate on NumPy arrays, and through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64
from typing import Any

import c_library
import numpy as np
import pytest
from c_library import AmplitudeMixOptions, SpectrumAccumulateOptions
from embedding_support import NO_CUDA, ROOT, run

import sturdy
from sturdy.numpy import amplitude_mix, spectrum_accumulate

RNG = np.random.default_rng
TOLERANCE = {"float16": 4e-3, "float32": 2e-5, "float64": 4e-12}
CLIP, WINDOW, COLOR, ADD = 1, 2, 4, 1


def recombined(x: np.ndarray, other: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    spectrum, wanted = (np.fft.fftn(a.astype(np.float64), axes=axes) for a in (x, other))
    return np.fft.ifftn(np.abs(wanted) * np.exp(1j * np.angle(spectrum)), axes=axes).real


# ---- NumPy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(8, 8), (28, 30), (37, 5), (32, 64)], ids=str)
def test_matches_the_definition(size: tuple[int, int], dtype: str) -> None:
    x = RNG(0).random((3, 3, *size)).astype(dtype)
    index = np.array([2, 0, 1])
    for color_fft, axes in ((False, (2, 3)), (True, (1, 2, 3))):
        out = amplitude_mix(x, index=index, color_fft=color_fft)
        assert isinstance(out, np.ndarray) and out.dtype == dtype
        assert np.abs(out - recombined(x, x[index], axes)).max() <= TOLERANCE[dtype]
        np.testing.assert_array_equal(amplitude_mix(x[0], x[2], color_fft=color_fft), out[0])
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    kept = amplitude_mix(last, index=index)
    np.testing.assert_array_equal(kept, amplitude_mix(x, index=index))
    assert kept.strides[1] == kept.itemsize
    np.testing.assert_array_equal(
        amplitude_mix(x[:, :, ::-1], index=index), amplitude_mix(x[:, :, ::-1].copy(), index=index)
    )


def test_equals_the_torch_ops_to_the_last_bit() -> None:
    torch = pytest.importorskip("torch")
    from sturdy import functional

    x, other = RNG(1).random((4, 3, 12, 14), "float32"), RNG(2).random((5, 3, 12, 14), "float32")
    index, strength = np.array([4, -1, 0, 2]), RNG(3).random(4)
    window = np.array([[1, 2], [3, 4], [-1, 0], [9, 9]])
    arrays = {"index": index, "strength": strength, "window": window}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = amplitude_mix(x, other, **arrays, color_fft=True, clip=(0.1, 0.9))
    wanted = functional.amplitude_mix(
        torch.from_numpy(x), torch.from_numpy(other), **tensors, color_fft=True, clip=(0.1, 0.9)
    )
    np.testing.assert_array_equal(found, wanted.numpy())
    found = amplitude_mix(x, other, index=index, strength=0.25, window=(2, 3))
    wanted = functional.amplitude_mix(
        torch.from_numpy(x), torch.from_numpy(other), index=tensors["index"], strength=0.25, window=(2, 3)
    )
    np.testing.assert_array_equal(found, wanted.numpy())
    group = np.array([1, 0, -1, 1])
    for power in (1, 2):
        sums = spectrum_accumulate(x, group, 2, power=power)
        again = functional.spectrum_accumulate(torch.from_numpy(x), torch.from_numpy(group), 2, power=power)
        np.testing.assert_array_equal(sums, again.numpy())


def test_sums() -> None:
    x, group = RNG(4).random((9, 2, 13, 10)), np.arange(9) % 4 - 1
    sums = spectrum_accumulate(x, group, 3)
    amplitude = np.abs(np.fft.rfft2(x))
    wanted = np.stack([amplitude[group == g].sum(0) for g in range(3)])
    np.testing.assert_allclose(sums, wanted, rtol=0, atol=1e-11)
    out = np.ones((3, 2, 13, 6))
    assert spectrum_accumulate(x, group, 3, out=out, add=True) is out
    np.testing.assert_allclose(out, wanted + 1, rtol=0, atol=1e-11)
    wide = spectrum_accumulate(x.astype("float32"), group, 3, out=np.full((3, 2, 13, 6), np.nan))
    np.testing.assert_allclose(wide, wanted, rtol=0, atol=1e-4)


def test_into_given_memory() -> None:
    x = RNG(5).random((2, 3, 8, 10))
    out, index = np.full_like(x, np.nan), np.array([1, 0])
    assert amplitude_mix(x, index=index, out=out) is out
    np.testing.assert_array_equal(out, amplitude_mix(x, index=index))
    with pytest.raises(sturdy.ShapeError, match="out must not share memory with x"):
        amplitude_mix(x, index=index, out=x)
    with pytest.raises(sturdy.ShapeError, match="out must not share memory with other"):
        amplitude_mix(x, out, out=out)
    out.flags.writeable = False
    with pytest.raises(BufferError):
        amplitude_mix(x, index=index, out=out)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": None}, sturdy.ShapeError, "index must say which images of x"),
        ({"index": np.array([0, 2])}, sturdy.ShapeError, "got 2 for image 1"),
        ({"index": np.array([0, 1], "int32")}, TypeError, "index must be int64"),
        ({"x": np.ones((2, 1, 8, 10), "int32")}, TypeError, "x must be float16"),
        ({"x": np.ones((8, 10))}, sturdy.ShapeError, r"x must be \(N, C, H, W\) or \(C, H, W\)"),
        ({"other": np.ones((2, 3, 8, 10), "float32")}, TypeError, "other must have the dtype of x"),
        ({"strength": 2.0}, ValueError, r"strength must be in \[0, 1\]"),
        ({"strength": np.ones(3)}, sturdy.ShapeError, "strength must have 2 images"),
        ({"window": (1,)}, ValueError, "window must be"),
        ({"window": np.ones((2, 2))}, TypeError, "window must be int64"),
        ({"clip": (1, 0)}, ValueError, "low <= high"),
    ],
    ids=str,
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": np.ones((2, 3, 8, 10)), "index": np.array([1, 0]), **change}
    with pytest.raises(error, match=message):
        amplitude_mix(**arguments)


def test_wrong_sums() -> None:
    x, group = np.ones((2, 3, 8, 10)), np.array([0, 1])
    for change, error, message in (
        ({"group": np.array([0, 2])}, sturdy.ShapeError, "got 2 for image 1"),
        ({"groups": -1}, sturdy.ShapeError, "groups must be at least 0"),
        ({"groups": 1.5}, TypeError, "groups must be made of integers"),
        ({"power": 3}, sturdy.ShapeError, "power must be 1 or 2, got 3"),
        ({"add": True}, ValueError, "add needs out"),
        ({"out": np.zeros((2, 3, 8, 10))}, sturdy.ShapeError, "out must have shape"),
        ({"out": np.zeros((2, 3, 8, 6), "float32")}, TypeError, "out must be float64 for float64 images"),
        ({"out": np.zeros((2, 3, 6, 8)).transpose(0, 1, 3, 2)}, sturdy.ShapeError, "out must be contiguous"),
    ):
        with pytest.raises(error, match=message):
            spectrum_accumulate(**{"x": x, "group": group, "groups": 2, **change})


# ---- C ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return c_library.load()


def last_error(library: ctypes.CDLL) -> str:
    return library.sturdy_last_error().decode()


def test_layout_agrees_with_the_header(tmp_path: Any) -> None:
    source = tmp_path / "size.c"
    source.write_text(
        '#include <stdio.h>\n#include "sturdy/fourier.h"\nint main(void) { printf("%zu %zu", '
        "sizeof(sturdy_amplitude_mix_options), sizeof(sturdy_spectrum_accumulate_options)); return 0; }\n"
    )
    run("gcc", "-std=c99", f"-I{ROOT / 'csrc' / 'include'}", source, "-o", tmp_path / "size")
    sizes = [ctypes.sizeof(AmplitudeMixOptions), ctypes.sizeof(SpectrumAccumulateOptions)]
    assert list(map(int, run(tmp_path / "size").stdout.split())) == sizes


def mix_options(flags: int = 0, strength: float = 1.0, window: tuple[int, int] = (0, 0)) -> AmplitudeMixOptions:
    return AmplitudeMixOptions(ctypes.sizeof(AmplitudeMixOptions), flags, strength, window, 0.2, 0.8)


def test_c_calls(library: ctypes.CDLL) -> None:
    x, index = RNG(6).random((3, 3, 8, 10)), np.array([1, 2, 0])
    shape = (c_int64 * 4)()
    inferred, views = c_library.Tensor(shape=shape), [c_library.view(a) for a in (x, index)]
    options = mix_options(CLIP | WINDOW | COLOR, 0.5, (1, 2))
    rest = (None, byref(views[1]), None, None)
    assert library.sturdy_amplitude_mix_infer(options, byref(views[0]), *rest, byref(inferred)) == c_library.OK
    assert inferred.ndim == 4 and list(shape) == [3, 3, 8, 10]
    assert library.sturdy_amplitude_mix_workspace(options, byref(views[0]), *rest) == 0
    out = np.full(tuple(shape), np.nan)
    target = c_library.view(out)
    status = library.sturdy_amplitude_mix(None, options, byref(views[0]), *rest, byref(target))
    assert status == c_library.OK, last_error(library)
    wanted = amplitude_mix(x, index=index, strength=0.5, window=(1, 2), color_fft=True, clip=(0.2, 0.8))
    np.testing.assert_array_equal(out, wanted)

    sum_options = SpectrumAccumulateOptions(ctypes.sizeof(SpectrumAccumulateOptions), 0, 3, 2)
    inferred = c_library.Tensor(shape=shape)
    both = [byref(view) for view in views]
    assert library.sturdy_spectrum_accumulate_infer(sum_options, *both, byref(inferred)) == c_library.OK
    assert list(shape) == [3, 3, 8, 6] and inferred.dtype.bits == 64
    assert library.sturdy_spectrum_accumulate_workspace(sum_options, *both) == 0
    sums = np.full(tuple(shape), np.nan)
    target = c_library.view(sums)
    status = library.sturdy_spectrum_accumulate(None, sum_options, *both, byref(target))
    assert status == c_library.OK, last_error(library)
    np.testing.assert_array_equal(sums, spectrum_accumulate(x, index, 3, power=2))


def test_c_refusals(library: ctypes.CDLL) -> None:
    x, index, out = RNG(7).random((2, 3, 8, 10)), np.array([1, 0]), np.full((2, 3, 8, 10), np.nan)

    def call(options: Any = None, **changes: Any) -> tuple[int, str]:
        given = {"x": x, "other": None, "index": index, "strength": None, "window": None, "out": out, **changes}
        views = [c_library.view(a) for a in given.values()]
        status = library.sturdy_amplitude_mix(
            None, options or mix_options(), *(view if view is None else byref(view) for view in views)
        )
        return status, last_error(library)

    for options, changes, status, words in (
        (AmplitudeMixOptions(4), {}, c_library.EINVAL, "struct_size must be at least"),
        (mix_options(8), {}, c_library.EINVAL, "options.flags must be 0, got 8"),
        (mix_options(0, float("nan")), {}, c_library.EINVAL, "strength must be finite"),
        (None, {"window": np.ones((1, 2), "int64")}, c_library.EINVAL, "window must be NULL without"),
        (None, {"x": None}, c_library.EINVAL, "x must not be NULL"),
        (None, {"out": None}, c_library.EINVAL, "out must not be NULL"),
        (None, {"index": None}, c_library.EINVAL, "index must say"),
        (None, {"out": np.empty((2, 3, 8, 9))}, c_library.EINVAL, "out must have shape"),
        (None, {"out": np.empty((2, 3, 8, 10), "float32")}, c_library.ETYPE, "out must have the dtype of x"),
        (None, {"strength": np.ones((2, 1))}, c_library.EINVAL, "strength must have 1 dimension"),
    ):
        got, message = call(options, **changes)
        assert got == status and message.startswith("amplitude_mix: ") and words in message, message
    assert np.isnan(out).all()
    good = mix_options()
    good.high = -1.0
    assert call(good)[0] == c_library.OK  # bounds are not looked at without the flag
    good.flags = CLIP
    assert call(good)[1].startswith("amplitude_mix: clip must be")
    assert library.sturdy_amplitude_mix_workspace(None, *[None] * 5) == 0

    sums = np.full((2, 3, 8, 6), np.nan)
    views = [c_library.view(a) for a in (x, index, sums)]
    size = ctypes.sizeof(SpectrumAccumulateOptions)
    for options, words in (
        (SpectrumAccumulateOptions(size, 2, 2, 1), "options.flags must be 0, got 2"),
        (SpectrumAccumulateOptions(size, 0, -1, 1), "groups must be at least 0"),
        (SpectrumAccumulateOptions(size, 0, 2, 0), "power must be 1 or 2"),
        (SpectrumAccumulateOptions(size, 0, 1, 1), "out must have shape"),
    ):
        assert library.sturdy_spectrum_accumulate(None, options, *map(byref, views)) == c_library.EINVAL
        assert last_error(library).startswith("spectrum_accumulate: ") and words in last_error(library)
    assert np.isnan(sums).all()


@NO_CUDA
def test_a_gpu_is_refused_in_plain_words(library: ctypes.CDLL) -> None:
    x, index = np.zeros((1, 1, 8, 8), "float32"), np.zeros(1, "int64")
    views = [c_library.view(a) for a in (x, index, x.copy())]
    for view in views:
        view.device = c_library.Device(c_library.CUDA, 0)
    image, integers, out = map(byref, views)
    status = library.sturdy_amplitude_mix(None, mix_options(), image, None, integers, None, None, out)
    assert status == c_library.EUNSUPPORTED
    assert "amplitude_mix: this build has no CUDA kernels" in last_error(library)
