"""The ops on NumPy arrays and on DLPack tensors."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

import sturdy
from sturdy.numpy import push_pull_conv2d, push_pull_conv2d_backward

Arrays = dict[str, np.ndarray]
RNG = np.random.default_rng

# Options of the op, each with what an input of (2, 4, 9, 11) and a weight of (6, 4 / groups, 3, 3) make of it.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "uneven": {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
    "same": {"padding": "same", "dilation": 2},
    "pooled": {"padding": 1, "avg_kernel_size": 3},
    "pooled wide": {"avg_kernel_size": (3, 9)},
    "grouped": {"groups": 2, "padding": 1, "avg_kernel_size": 3},
}


def make(options: dict[str, Any], dtype: str = "float32", batch: int | None = 2) -> Arrays:
    """Input, weight, inhibition and bias with numbers of the usual size."""
    rng = RNG(0)
    input = rng.standard_normal((batch or 1, 4, 9, 11)).astype(dtype)
    return {
        "input": input if batch is not None else input[0],
        "weight": (0.3 * rng.standard_normal((6, 4 // options.get("groups", 1), 3, 3))).astype(dtype),
        "inhibition": rng.uniform(0.2, 1.5, 6).astype(dtype),
        "bias": rng.standard_normal(6).astype(dtype),
    }


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same numbers, with the channels side by side in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -3, -1)), -1, -3)


def address(array: Any) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def reference(input: np.ndarray, weight: np.ndarray, inhibition: Any, bias: Any, options: dict[str, Any]) -> np.ndarray:
    """Two convolutions, from the definition, in float64."""
    x, w = input.astype(np.float64), weight.astype(np.float64)
    middle = w.min(axis=(1, 2, 3)) + w.max(axis=(1, 2, 3))
    push = _convolve(x, w, options)
    pull = _average(_convolve(x, middle[:, None, None, None] - w, options), options.get("avg_kernel_size", 0))
    alpha = np.broadcast_to(np.asarray(inhibition, np.float64).reshape(-1), (w.shape[0],))[:, None, None]
    shift = np.zeros(1) if bias is None else bias.astype(np.float64)
    return np.maximum(push, 0) - alpha * np.maximum(pull, 0) + shift[:, None, None]


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _convolve(x: np.ndarray, w: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    (rows, columns), (down, right) = _two(options.get("stride", 1)), _two(options.get("dilation", 1))
    kernel = w.shape[2:]
    if options.get("padding") == "same":
        extent = [d * (k - 1) for d, k in zip((down, right), kernel, strict=True)]
        pads = [(e // 2, e - e // 2) for e in extent]
    else:
        pads = [(p, p) for p in _two(options.get("padding", 0))]
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    size = [x.shape[2] - down * (kernel[0] - 1), x.shape[3] - right * (kernel[1] - 1)]
    groups = options.get("groups", 1)
    parts = []
    for part, filters in zip(np.split(x, groups, 1), np.split(w, groups, 0), strict=True):
        total = 0
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                shifted = part[:, :, i * down : i * down + size[0] : rows, j * right : j * right + size[1] : columns]
                total = total + np.einsum("nchw,oc->nohw", shifted, filters[:, :, i, j])
        parts.append(total)
    return np.concatenate(parts, 1)


def _average(u: np.ndarray, window: Any) -> np.ndarray:
    """Over the cells of the window that lie in the map."""
    half = [size // 2 for size in _two(window)]
    out = np.empty_like(u)
    for i in range(u.shape[2]):
        for j in range(u.shape[3]):
            cells = u[:, :, max(0, i - half[0]) : i + half[0] + 1, max(0, j - half[1]) : j + half[1] + 1]
            out[:, :, i, j] = cells.mean(axis=(2, 3))
    return out


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_the_definition(options: dict[str, Any], dtype: str) -> None:
    arrays = make(options, dtype)
    out = push_pull_conv2d(**arrays, **options)
    wanted = reference(**arrays, options=options)
    assert out.dtype == dtype and out.shape == wanted.shape
    # A sum of n products errs by at most n roundings of its accumulator; one more rounding at the store.
    terms = arrays["weight"][0].size
    scale = np.abs(arrays["input"]).max() * np.abs(arrays["weight"]).max() * terms * 4
    accumulator = np.finfo("float64" if dtype == "float64" else "float32").eps
    bound = terms * accumulator * scale + np.finfo(dtype).eps * np.abs(wanted).max()
    assert np.abs(out - wanted).max() <= bound


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_torch_op_to_the_last_bit(options: dict[str, Any], dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from sturdy.functional import push_pull_conv2d as torch_op

    arrays = make(options, dtype)
    vectors = "float64" if dtype == "float64" else "float32"  # of sums over a map
    for keep in (True, False):  # whether backward gets p, rounded to the dtype, or computes it again
        tensors = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in arrays.items()}
        wanted = torch_op(**tensors, **options, keep_push=keep)
        push = np.empty(wanted.shape, dtype) if keep else None
        out = push_pull_conv2d(**arrays, **options, push=push)
        np.testing.assert_array_equal(out, wanted.detach().numpy())

        grad_out = RNG(1).standard_normal(wanted.shape).astype(dtype)
        wanted.backward(torch.from_numpy(grad_out))
        inputs = {name: array for name, array in arrays.items() if name != "bias"}
        grads = push_pull_conv2d_backward(grad_out, **inputs, **options, push=push)
        assert grads._fields == tuple(tensors)
        for name, tensor in tensors.items():
            found = getattr(grads, name)
            assert found.dtype == (vectors if found.ndim == 1 else dtype)
            np.testing.assert_array_equal(found.astype(dtype), tensor.grad.numpy(), err_msg=name)


def test_equals_the_torch_op_above_the_parallel_grain() -> None:
    torch = pytest.importorskip("torch")
    from sturdy.functional import push_pull_conv2d as torch_op

    x = RNG(2).standard_normal((4, 16, 64, 64), dtype=np.float32)
    w = RNG(3).standard_normal((32, 16, 3, 3), dtype=np.float32)
    wanted = torch_op(torch.from_numpy(x), torch.from_numpy(w), 0.5, avg_kernel_size=3).numpy()
    np.testing.assert_array_equal(push_pull_conv2d(x, w, 0.5, avg_kernel_size=3), wanted)


@pytest.mark.parametrize("name", ["input", "weight"])
@pytest.mark.parametrize("layout", ["channels-last", "reversed", "every second", "expanded", "transposed"])
def test_strides(name: str, layout: str) -> None:
    options = {"padding": 1, "avg_kernel_size": 3}
    arrays = make(options)
    plain = arrays[name]
    if layout == "channels-last":
        arrays[name] = channels_last(plain)
    elif layout == "reversed":
        arrays[name] = np.ascontiguousarray(plain[..., ::-1, ::-1])[..., ::-1, ::-1]
    elif layout == "every second":
        arrays[name] = np.repeat(plain, 2, axis=3)[..., ::2]
    elif layout == "transposed":
        arrays[name] = np.ascontiguousarray(plain.swapaxes(2, 3)).swapaxes(2, 3)
    else:
        plain = np.broadcast_to(plain[:1], plain.shape)
        arrays[name] = plain
    out = push_pull_conv2d(**arrays, **options)
    np.testing.assert_array_equal(out, push_pull_conv2d(**{**arrays, name: plain.copy()}, **options))
    last = layout == "channels-last" and name == "input"
    assert (out.strides[1] == out.itemsize) == last  # the memory format follows that of the input
    del arrays["bias"]
    grads = push_pull_conv2d_backward(np.ones_like(out), **arrays, **options)
    for found, same in zip(
        grads, push_pull_conv2d_backward(np.ones_like(out), **{**arrays, name: plain.copy()}, **options), strict=True
    ):
        np.testing.assert_array_equal(found, same)
    assert (getattr(grads, name).strides[1] == out.itemsize) == (layout == "channels-last")


def test_gradient_of_any_strides() -> None:
    arrays = make({})
    out = push_pull_conv2d(**arrays)
    del arrays["bias"]
    expanded = np.broadcast_to(np.float32(0.5), out.shape)
    for found, same in zip(
        push_pull_conv2d_backward(expanded, **arrays),
        push_pull_conv2d_backward(expanded.copy(), **arrays),
        strict=True,
    ):
        np.testing.assert_array_equal(found, same)


def test_unbatched() -> None:
    options = {"padding": 1, "avg_kernel_size": 3}
    one, batch = make(options, batch=None), make(options, batch=1)
    out = push_pull_conv2d(**one, **options)
    assert out.shape == (6, 9, 11)
    np.testing.assert_array_equal(out, push_pull_conv2d(**batch, **options)[0])
    last = push_pull_conv2d(**{**one, "input": channels_last(one["input"])}, **options)
    assert last.strides[0] == last.itemsize
    np.testing.assert_array_equal(out, last)
    written = np.full((6, 9, 11), np.nan, np.float32)
    push = np.full((6, 9, 11), np.nan, np.float32)
    assert push_pull_conv2d(**one, **options, out=written, push=push) is written
    np.testing.assert_array_equal(out, written)
    for arrays in (one, batch):
        del arrays["bias"]
    grads = push_pull_conv2d_backward(np.ones_like(out), **one, **options, push=push)
    wanted = push_pull_conv2d_backward(np.ones_like(out)[None], **batch, **options)
    assert grads.input.shape == (4, 9, 11)
    np.testing.assert_array_equal(grads.input, wanted.input[0])
    np.testing.assert_array_equal(grads.weight, wanted.weight)


@pytest.mark.parametrize("shape", [(0, 4, 9, 11), (2, 4, 3, 3)])
def test_empty_and_tiny(shape: tuple[int, ...]) -> None:
    x, w = np.ones(shape, np.float32), np.ones((6, 4, 3, 3), np.float32)
    out = push_pull_conv2d(x, w, avg_kernel_size=5)
    assert out.shape == (shape[0], 6, shape[2] - 2, shape[3] - 2)
    grads = push_pull_conv2d_backward(np.ones_like(out), x, w, avg_kernel_size=5)
    assert grads.input.shape == shape
    assert np.isfinite(grads.weight).all()
    if shape[0] == 0:
        assert not grads.weight.any() and not grads.bias.any()
    none = push_pull_conv2d(np.ones((2, 4, 9, 11), np.float32), np.empty((0, 4, 3, 3), np.float32))
    assert none.shape == (2, 0, 7, 9)


def test_spellings_of_inhibition() -> None:
    arrays = make({})
    arrays["inhibition"] = np.full(6, 0.75, np.float32)
    wanted = push_pull_conv2d(**arrays)
    spellings = [
        0.75,
        np.float64(0.75),
        np.array(0.75, np.float32),
        np.array([0.75], np.float32),
        np.full((1, 6, 1, 1), 0.75, np.float32),
        np.full(12, 0.75, np.float32)[::2],
    ]
    for inhibition in spellings:
        np.testing.assert_array_equal(push_pull_conv2d(**{**arrays, "inhibition": inhibition}), wanted)
    arrays["inhibition"] = 2
    np.testing.assert_array_equal(push_pull_conv2d(**arrays), push_pull_conv2d(**{**arrays, "inhibition": 2.0}))


def test_channel_vectors_may_be_float32() -> None:
    arrays = make({}, "float16")
    wanted = push_pull_conv2d(**arrays)
    for name in ("inhibition", "bias"):
        arrays[name] = arrays[name].astype(np.float32)
    np.testing.assert_array_equal(push_pull_conv2d(**arrays), wanted)


def test_integers_of_numpy_are_options() -> None:
    arrays = make({})
    wanted = push_pull_conv2d(**arrays, stride=(2, 1), padding=1, avg_kernel_size=3)
    found = push_pull_conv2d(
        **arrays, stride=np.array([2, 1]), padding=np.int64(1), groups=np.uint8(1), avg_kernel_size=[np.int32(3)] * 2
    )
    np.testing.assert_array_equal(found, wanted)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_out_is_written_in_place(layout: str) -> None:
    options = {"padding": 1, "avg_kernel_size": 3}
    arrays = make(options)
    wanted = push_pull_conv2d(**arrays, **options)
    out = np.full(wanted.shape, np.nan, np.float32)
    if layout == "channels-last":
        out = channels_last(out)
    before = address(out)
    assert push_pull_conv2d(**arrays, **options, out=out) is out
    assert address(out) == before
    np.testing.assert_array_equal(out, wanted)


def test_chosen_gradients() -> None:
    arrays = make({})
    grad_out = np.ones_like(push_pull_conv2d(**arrays))
    del arrays["bias"]
    wanted = push_pull_conv2d_backward(grad_out, **arrays)
    weight = np.full_like(arrays["weight"], np.nan)
    found = push_pull_conv2d_backward(grad_out, **arrays, out=(None, weight, None, None))
    assert found.weight is weight
    assert found.input is None and found.inhibition is None and found.bias is None
    np.testing.assert_array_equal(weight, wanted.weight)
    every = tuple(np.full_like(grad, np.nan) for grad in wanted)
    again = push_pull_conv2d_backward(grad_out, **arrays, out=every)
    for given, found_grad, wanted_grad in zip(every, again, wanted, strict=True):
        assert given is found_grad
        np.testing.assert_array_equal(given, wanted_grad)


def test_inputs_are_left_alone_and_not_copied() -> None:
    arrays = make({})
    before = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False  # reading needs no more
    out = np.empty((2, 6, 7, 9), np.float32)
    push_pull_conv2d(**arrays, out=out)
    tracemalloc.start()
    try:
        push_pull_conv2d(**arrays, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < arrays["input"].nbytes / 2  # NumPy reports its memory there
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_nothing_leaks() -> None:
    torch = pytest.importorskip("torch")
    x, w, out = (np.ones(shape, np.float32) for shape in ((1, 1, 3, 3), (1, 1, 3, 3), (1, 1, 1, 1)))
    tx, tout = torch.ones(1, 1, 3, 3), torch.empty(1, 1, 1, 1)

    def call_each() -> None:
        push_pull_conv2d(x, w)
        push_pull_conv2d(tx, w, out=tout)
        with pytest.raises(sturdy.ShapeError):
            push_pull_conv2d(tx, w, groups=2, out=out)

    objects = (x, w, out, tx, tout)
    for _ in range(100):
        call_each()
    counts = [sys.getrefcount(thing) for thing in objects]
    storage = tx.untyped_storage()._use_count() if hasattr(tx.untyped_storage(), "_use_count") else None
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10_000):
            push_pull_conv2d(x, w)
            push_pull_conv2d(tx, w, out=tout)
        for _ in range(100):
            call_each()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(thing) for thing in objects] == counts
    if storage is not None:
        assert tx.untyped_storage()._use_count() == storage
    assert after - before < 100_000  # ten bytes a call


def test_other_threads_run_during_a_call() -> None:
    x = RNG(0).standard_normal((4, 16, 96, 96))
    w = RNG(1).standard_normal((32, 16, 7, 7))
    push_pull_conv2d(x[:1], w)
    beats = 0
    stop = threading.Event()

    def heart() -> None:
        nonlocal beats
        while not stop.wait(0.001):
            beats += 1

    thread = threading.Thread(target=heart)
    thread.start()
    try:
        during = 0
        begin = time.monotonic()
        # A call that held the interpreter would let no beat through; as many calls as a slow heart needs.
        while during < 5 and time.monotonic() - begin < 60:
            seen = beats
            push_pull_conv2d(x, w)
            during = max(during, beats - seen)
            x = np.concatenate([x, x]) if x.nbytes < 1 << 27 else x
    finally:
        stop.set()
        thread.join()
    assert during >= 5


def test_four_threads_at_once() -> None:
    arrays = make({})
    wanted = push_pull_conv2d(**arrays, avg_kernel_size=3)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            if not np.array_equal(push_pull_conv2d(**arrays, avg_kernel_size=3), wanted):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- refusals --------------------------------------------------------------------------------------------------------


def _read_only(shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


X = np.zeros((2, 4, 9, 11), np.float32)
W = np.zeros((6, 4, 3, 3), np.float32)
OUT = (2, 6, 7, 9)
UNALIGNED = np.zeros(X.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(X.shape)
IN_RECORDS = np.zeros(X.shape, np.dtype([("value", "f4"), ("tag", "u1")]))["value"]

REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "list": ({"input": X.tolist()}, TypeError, "input must be a NumPy array or offer __dlpack__, got list"),
    "scalar": (
        {"input": np.float32(1)},
        TypeError,
        "input must be a NumPy array or offer __dlpack__, got numpy.float32",
    ),
    "no weight": ({"weight": None}, TypeError, "weight must be a NumPy array or offer __dlpack__, got NoneType"),
    "no weight, same": ({"weight": None, "padding": "same"}, TypeError, "weight must be a NumPy array .*NoneType"),
    "integers": ({"input": X.astype(int)}, TypeError, "input must be float16, bfloat16, float32 or float64, got int64"),
    "complex": ({"input": X.astype("complex64")}, TypeError, "got complex64"),
    "bool": ({"input": X.astype(bool)}, TypeError, "got bool"),
    "long double": ({"input": X.astype(np.longdouble)}, TypeError, "got float128"),
    "objects": ({"input": X.astype(object)}, TypeError, "input must hold floating point numbers .*object"),
    "byte order": ({"input": X.astype(">f4")}, TypeError, "native byte order, got dtype >f4"),
    "two dtypes": ({"weight": W.astype("f8")}, TypeError, "weight must have the dtype of input, float32, got float64"),
    "wide bias": (
        {"bias": np.zeros(6)},
        TypeError,
        "bias must be float32 or have the dtype of input, float32, got float64",
    ),
    "number as bias": ({"bias": 1.0}, TypeError, "bias must be a NumPy array or offer __dlpack__, got float"),
    "no inhibition": ({"inhibition": None}, TypeError, "inhibition must be a number or an array, got None"),
    "word as inhibition": ({"inhibition": "much"}, TypeError, "inhibition must be a NumPy array .* got str"),
    "input rank": (
        {"input": X[0, 0]},
        sturdy.ShapeError,
        r"input must be \(N, C, H, W\) or \(C, H, W\), got 2 dimensions",
    ),
    "weight rank": ({"weight": W[0]}, sturdy.ShapeError, "weight must have 4 dimensions"),
    "channels": ({"weight": W[:, :3]}, sturdy.ShapeError, "weight must have 4 input channels .* got 3"),
    "kernel": (
        {"input": X[:, :, :2]},
        sturdy.ShapeError,
        "kernel height of 3 .* must not exceed the padded input of 2",
    ),
    "bias shape": ({"bias": np.zeros(5, "f4")}, sturdy.ShapeError, r"bias must have shape \(6,\), got \(5,\)"),
    "inhibition shape": (
        {"inhibition": np.zeros((6, 1), "f4")},
        sturdy.ShapeError,
        r"inhibition must have shape \(6,\)",
    ),
    "out shape": ({"out": np.zeros((2, 6, 7, 8), "f4")}, sturdy.ShapeError, r"out must have shape \(2, 6, 7, 9\)"),
    "out rank": (
        {"out": np.zeros((6, 7, 9), "f4")},
        sturdy.ShapeError,
        "out must have 4 dimensions, as input has, got 3",
    ),
    "out dtype": ({"out": np.zeros(OUT)}, TypeError, "out must have the dtype of input"),
    "out layout": ({"out": np.zeros((2, 6, 7, 18), "f4")[..., ::2]}, sturdy.ShapeError, "contiguous or channels-last"),
    "out list": ({"out": []}, TypeError, "out must be a NumPy array or offer __dlpack__, got list"),
    "out read-only": ({"out": _read_only(OUT)}, BufferError, "out is read-only"),
    "push read-only": ({"push": _read_only(OUT)}, BufferError, "push is read-only"),
    "push shape": ({"push": np.zeros((2, 6, 7, 8), "f4")}, sturdy.ShapeError, r"push must have shape \(2, 6, 7, 9\)"),
    "unaligned": ({"input": UNALIGNED}, sturdy.ShapeError, "input.data must be aligned to its elements"),
    "in records": ({"input": IN_RECORDS}, sturdy.ShapeError, "input has elements that are not a whole number"),
    "stride": ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    "fraction": ({"stride": 1.5}, TypeError, "stride must be made of integers, got 1.5"),
    "three": ({"dilation": (1, 1, 1)}, ValueError, "dilation must be one or two integers"),
    "vast": ({"padding": 2**63}, ValueError, "padding must fit in 64 bits"),
    "large": ({"padding": 2**62}, NotImplementedError, "more rows or columns than can be addressed"),
    "padding": ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    "padding word": ({"padding": "full"}, ValueError, "padding must be a number, 'valid' or 'same', got 'full'"),
    "same stride": ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs a stride of 1"),
    "even window": ({"avg_kernel_size": 2}, ValueError, "avg_kernel_size must be odd"),
    "groups": ({"groups": 3}, sturdy.ShapeError, "input channels must be divisible by groups, got 4"),
    "no groups": ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    change, exception, message = REFUSALS[name]
    out = np.full(OUT, 7, np.float32)
    arguments = {"input": X, "weight": W, "out": out, **change}
    with pytest.raises(exception, match=f"^push_pull_conv2d: .*{message}"):
        push_pull_conv2d(arguments.pop("input"), arguments.pop("weight"), **arguments)
    assert (out == 7).all()  # nothing was written


def test_outputs_apart_from_inputs() -> None:
    x = np.zeros((1, 1, 3, 3), np.float32)
    memory = np.zeros(9, np.float32)
    with pytest.raises(sturdy.ShapeError, match="out must not share memory with weight"):
        push_pull_conv2d(x, memory.reshape(1, 1, 3, 3), out=memory[4:5].reshape(1, 1, 1, 1))
    out = np.zeros((1, 1, 1, 1), np.float32)
    with pytest.raises(sturdy.ShapeError, match="push must not share memory with out"):
        push_pull_conv2d(x, x.copy(), out=out, push=out)


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"grad_out": np.zeros((2, 6, 7, 8), "f4")}, sturdy.ShapeError, r"grad_out must have shape \(2, 6, 7, 9\)"),
        ({"grad_out": np.zeros((6, 7, 9), "f4")}, sturdy.ShapeError, "grad_out must have 4 dimensions, as input has"),
        ({"grad_out": np.zeros(OUT)}, TypeError, "grad_out must have the dtype of input"),
        ({"push": np.zeros((2, 6, 7, 8), "f4")}, sturdy.ShapeError, r"push must have shape \(2, 6, 7, 9\)"),
        ({"out": [None] * 4}, TypeError, "out must be a tuple of four arrays"),
        ({"out": (None, None)}, TypeError, "out must be a tuple of four arrays"),
        ({"out": (X.astype("f8"), None, None, None)}, TypeError, "grad_input must have the dtype of input"),
        ({"out": (None, _read_only(W.shape), None, None)}, BufferError, "out.weight is read-only"),
        ({"out": (None, None, np.zeros(5, "f4"), None)}, sturdy.ShapeError, r"grad_inhibition must have shape \(6,\)"),
        ({"out": (X, None, None, None)}, sturdy.ShapeError, "grad_input must not share memory with input"),
    ],
)
def test_refusals_of_backward(change: dict[str, Any], exception: type[Exception], message: str) -> None:
    arguments = {"grad_out": np.zeros(OUT, np.float32), "input": X, "weight": W, **change}
    with pytest.raises(exception, match=f"^push_pull_conv2d_backward: {message}"):
        push_pull_conv2d_backward(**arguments)


# ---- DLPack ----------------------------------------------------------------------------------------------------------


class Producer:
    """A library that exports a NumPy array, in one of the ways that libraries do."""

    def __init__(self, array: np.ndarray, kind: str = "versioned", device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.kind = kind
        self.device = device
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **wishes: Any) -> Any:
        self.asked.append(wishes)
        if self.kind == "versioned":
            return self.array.__dlpack__(max_version=(1, 1))
        if self.kind == "no versions" and wishes:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        if self.kind == "broken":
            raise RuntimeError("not today")
        if self.kind == "nonsense":
            return 42
        return self.array.__dlpack__()  # a capsule of the older kind, whatever was asked for: as JAX does


@pytest.mark.parametrize("kind", ["versioned", "legacy", "no versions"])
def test_dlpack_inputs(kind: str) -> None:
    arrays = make({})
    wanted = push_pull_conv2d(**arrays)
    producers = {name: Producer(array, kind) for name, array in arrays.items()}
    counts = [sys.getrefcount(array) for array in arrays.values()]
    np.testing.assert_array_equal(push_pull_conv2d(**producers), wanted)
    asked = {"versioned": 1, "legacy": 1, "no versions": 2}[kind]
    for producer in producers.values():
        assert producer.asked[0] == {"max_version": (1, 1)}
        assert len(producer.asked) == asked
    assert [sys.getrefcount(array) for array in arrays.values()] == counts  # the loans were given back


def test_dlpack_output_needs_leave_to_write() -> None:
    x, w = make({})["input"], make({})["weight"]
    wanted = push_pull_conv2d(x, w)
    out = np.zeros_like(wanted)
    versioned = Producer(out)
    assert push_pull_conv2d(x, w, out=versioned) is versioned
    np.testing.assert_array_equal(out, wanted)
    out[:] = 7
    for producer in (Producer(out, "legacy"), Producer(out, "no versions")):
        with pytest.raises(BufferError, match="out is read-only, or its library does not say"):
            push_pull_conv2d(x, w, out=producer)
    out.flags.writeable = False
    with pytest.raises(BufferError, match="out is read-only"):
        push_pull_conv2d(x, w, out=Producer(out))
    assert (out == 7).all()


def test_dlpack_devices_and_failures() -> None:
    arrays = make({})
    x, w = arrays["input"], arrays["weight"]
    with pytest.raises(BufferError, match="input must be in CPU memory, got a tensor on DLPack device type 2"):
        push_pull_conv2d(Producer(x, device=(2, 0)), w)
    np.testing.assert_array_equal(push_pull_conv2d(Producer(x, device=(3, 0)), w), push_pull_conv2d(x, w))  # pinned
    with pytest.raises(RuntimeError, match="not today"):
        push_pull_conv2d(Producer(x, "broken"), w)
    with pytest.raises(BufferError, match="__dlpack__ did not return a DLPack capsule"):
        push_pull_conv2d(Producer(x, "nonsense"), w)


def test_dlpack_version_of_the_future() -> None:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    memory = (ctypes.c_uint32 * 64)(2, 0)  # major version 2; the rest may mean anything

    class Future(Producer):
        def __dlpack__(self, **wishes: Any) -> Any:
            return new(ctypes.addressof(memory), b"dltensor_versioned", None)

    with pytest.raises(BufferError, match="input came as DLPack version 2"):
        push_pull_conv2d(Future(X), W)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    arrays = make({})
    wanted = push_pull_conv2d(**arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    out = torch.full(wanted.shape, torch.nan)
    before = address(out)
    assert push_pull_conv2d(**tensors, out=out) is out
    assert address(out) == before
    np.testing.assert_array_equal(out.numpy(), wanted)
    assert isinstance(push_pull_conv2d(**tensors), np.ndarray)
    with pytest.raises(BufferError, match="require gradient"):
        push_pull_conv2d(tensors["input"].requires_grad_(), arrays["weight"])


def test_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    from sturdy.functional import push_pull_conv2d as torch_op

    arrays = make({})
    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    wanted = torch_op(**leaves, avg_kernel_size=3, keep_push=False)
    with pytest.raises(TypeError, match="NumPy has no bfloat16 to return the result in; give out"):
        push_pull_conv2d(**tensors, avg_kernel_size=3)
    out = torch.empty_like(wanted)
    push_pull_conv2d(**tensors, avg_kernel_size=3, out=out)
    assert torch.equal(out, wanted)

    grad_out = torch.ones_like(wanted)
    wanted.backward(grad_out)
    del tensors["bias"]
    with pytest.raises(TypeError, match="NumPy has no bfloat16 to return the result in; give out"):
        push_pull_conv2d_backward(grad_out, **tensors, avg_kernel_size=3)
    vectors = [torch.empty(6), torch.empty(6)]
    memory = (torch.empty_like(tensors["input"]), torch.empty_like(tensors["weight"]), *vectors)
    grads = push_pull_conv2d_backward(grad_out, **tensors, avg_kernel_size=3, out=memory)
    for name, leaf in leaves.items():
        assert torch.equal(getattr(grads, name).bfloat16(), leaf.grad), name


def test_jax_arrays() -> None:
    jnp = pytest.importorskip("jax.numpy")
    arrays = make({})
    wanted = push_pull_conv2d(**arrays)
    theirs = {name: jnp.asarray(array) for name, array in arrays.items()}
    np.testing.assert_array_equal(push_pull_conv2d(**theirs), wanted)
    with pytest.raises(BufferError, match="out is read-only"):
        push_pull_conv2d(**arrays, out=jnp.zeros(wanted.shape))
