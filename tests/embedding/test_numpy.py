"""The ops on NumPy arrays."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy_cases import OPTIONS, RNG, address, channels_last, make, reference

import sturdy
from sturdy.numpy import push_pull_conv2d, push_pull_conv2d_backward

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
    "range": ({"range_dims": "row"}, ValueError, "range_dims must be 'filter' or 'channel', got 'row'"),
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
