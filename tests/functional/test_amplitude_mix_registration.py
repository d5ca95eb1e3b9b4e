"""amplitude_mix inside torch: opcheck, no gradient, compile, export, autocast, vmap; and what wrong arguments hear."""

from __future__ import annotations

import pytest
import torch

import sturdy
from spectral_support import on, uniform
from sturdy.functional import amplitude_mix
from support import dtype_id


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# x, other, index, strength, strengths, window, windows, color_fft, clip
SAMPLES = {
    "apr": ((3, 3, 8, 10), None, [1, 2, -1], 1.0, None, [], None, True, []),
    "fact": ((2, 3, 9, 11), None, [1, 0], 1.0, (2,), [], None, False, [0.0, 1.0]),
    "fda": ((2, 2, 8, 10), (4, 2, 8, 10), [3, 0], 1.0, None, [1, 2], None, False, []),
    "windows": ((2, 4, 6, 7), (1, 4, 6, 7), None, 0.5, (1,), [], (2, 2), True, []),
    "no_images": ((0, 3, 6, 7), (0, 3, 6, 7), None, 1.0, None, [], None, False, []),
}


def sample_args(name, device, dtype=torch.float32, channels_last=False):
    shape, other, index, strength, strengths, window, windows, color_fft, clip = SAMPLES[name]
    x = uniform(shape, 1, dtype, device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return (
        x.requires_grad_(),
        None if other is None else uniform(other, 2, dtype, device).requires_grad_(),
        None if index is None else torch.tensor(index, device=device),
        strength,
        None if strengths is None else uniform(strengths, 3, device=device).requires_grad_(),
        window,
        None if windows is None else torch.ones(windows, dtype=torch.int64, device=device),
        color_fft,
        clip,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in SAMPLES), ("fact", torch.bfloat16), ("apr", torch.float64)]
)
def test_opcheck(backend, name, dtype):
    torch.library.opcheck(backend.op("amplitude_mix"), sample_args(name, backend.device, dtype, name == "fact"))


def test_the_result_is_detached(backend):
    x, other = (
        uniform((2, 3, 8, 10), 1, device=backend.device).requires_grad_(),
        uniform((2, 3, 8, 10), 2, device=backend.device).requires_grad_(),
    )
    out = amplitude_mix(x, other, strength=torch.tensor([0.5, 0.6], device=backend.device).requires_grad_())
    assert not out.requires_grad and out.grad_fn is None
    (x * out).sum().backward()
    assert torch.equal(x.grad, out) and other.grad is None
    compiled = torch.compile(lambda x: amplitude_mix(x * 2, other) * x, backend="aot_eager", fullgraph=True)
    (grad,) = torch.autograd.grad(compiled(x).sum(), x)
    assert torch.equal(grad, amplitude_mix(x * 2, other))


def test_compiles_with_dynamic_sizes(backend):
    fn = torch.compile(lambda x, i: amplitude_mix(x, index=i, color_fft=True), fullgraph=True, dynamic=True)
    for size in ((8, 10), (9, 7), (28, 28)):
        x, index = uniform((3, 3, *size), 5, device=backend.device), torch.tensor([2, 0, 1], device=backend.device)
        assert torch.equal(fn(x, index), amplitude_mix(x, index=index, color_fft=True))


def test_exports(backend):
    class Mix(torch.nn.Module):
        def forward(self, x, index, strength):
            return amplitude_mix(x, index=index, strength=strength, window=(2, 2), clip=(0.0, 1.0))

    args = (
        uniform((2, 3, 8, 10), 8, device=backend.device),
        torch.tensor([1, 0], device=backend.device),
        torch.tensor([0.5, 0.25], device=backend.device),
    )
    program = torch.export.export(Mix(), args)
    assert torch.equal(program.module()(*args), Mix()(*args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
def test_autocast_changes_no_dtype(backend, dtype):
    x, index = uniform((2, 3, 8, 10), 9, device=backend.device), torch.tensor([1, 0], device=backend.device)
    plain = amplitude_mix(x, index=index)
    with torch.autocast(backend.device, dtype=dtype):
        assert torch.equal(amplitude_mix(x, index=index), plain)
        half = amplitude_mix(x.to(dtype), index=index)
    assert half.dtype == dtype


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (1, 0)], ids=str)
def test_vmap(backend, in_dims):
    x = uniform((2, 2, 3, 8, 10) if in_dims[0] is not None else (2, 3, 8, 10), 11, device=backend.device)
    other = uniform((2, 2, 3, 8, 10) if in_dims[1] is not None else (2, 3, 8, 10), 12, device=backend.device)
    out = torch.func.vmap(amplitude_mix, in_dims=in_dims)(x, other)
    for i in range(2):
        one = x if in_dims[0] is None else x.select(in_dims[0], i)
        assert torch.equal(out[i], amplitude_mix(one, other if in_dims[1] is None else other[i]))


# ---- wrong arguments -------------------------------------------------------------------------------------------------

X = torch.rand(2, 3, 8, 10)
SWAP = torch.tensor([1, 0])

WRONG = {
    "neither other nor index": ({}, sturdy.ShapeError, "index must say which images of x amplitudes are taken from"),
    "other of another size": ({"other": torch.rand(2, 3, 8, 9)}, sturdy.ShapeError, r"other must have 10 columns"),
    "other of other channels": ({"other": torch.rand(2, 1, 8, 10)}, sturdy.ShapeError, r"other must have 3 channels"),
    "others without index": (
        {"other": torch.rand(3, 3, 8, 10)},
        sturdy.ShapeError,
        r"other must have 2 images \(N\) or",
    ),
    "other of three dimensions": ({"other": X[0]}, sturdy.ShapeError, r"other must have 4 dimensions"),
    "other of another dtype": (
        {"other": X.double()},
        TypeError,
        "other must have the dtype of x, float32, got float64",
    ),
    "index beyond": ({"index": SWAP + 1}, sturdy.ShapeError, "-1 or an image of x, 0 to 1, got 2 for image 0"),
    "index below": ({"index": SWAP - 3}, sturdy.ShapeError, "got -2 for image 0"),
    "index beyond other": ({"other": X[:1], "index": SWAP}, sturdy.ShapeError, "an image of other, 0 to 0, got 1"),
    "index of int32": ({"index": SWAP.int()}, TypeError, "index must be int64"),
    "index too short": ({"index": SWAP[:1]}, sturdy.ShapeError, "index must have 2 entries"),
    "index of two dimensions": ({"index": SWAP[None]}, sturdy.ShapeError, "index must have 1 dimension"),
    "strength above": ({"index": SWAP, "strength": 1.5}, ValueError, r"strength must be in \[0, 1\], got 1.5"),
    "strength below": ({"index": SWAP, "strength": -0.1}, ValueError, r"strength must be in \[0, 1\]"),
    "strength of nan": ({"index": SWAP, "strength": float("nan")}, ValueError, r"strength must be in \[0, 1\]"),
    "strengths too many": (
        {"index": SWAP, "strength": torch.rand(3)},
        sturdy.ShapeError,
        r"strength must have 2 images",
    ),
    "strengths of half": ({"index": SWAP, "strength": torch.rand(2).half()}, TypeError, "strength must be float32 or"),
    "strengths of two dimensions": ({"index": SWAP, "strength": torch.rand(2, 1)}, sturdy.ShapeError, "1 dimension"),
    "window of one": ({"index": SWAP, "window": 3}, ValueError, r"window must be \(rows, columns\), two integers"),
    "window of three": ({"index": SWAP, "window": (1, 2, 3)}, ValueError, "window must be"),
    "window of floats": ({"index": SWAP, "window": (0.5, 0.5)}, ValueError, "window must be"),
    "windows of floats": ({"index": SWAP, "window": torch.ones(2, 2)}, TypeError, "window must be int64"),
    "windows too many": (
        {"index": SWAP, "window": torch.ones(3, 2).long()},
        sturdy.ShapeError,
        "window must have 2 im",
    ),
    "windows of three": ({"index": SWAP, "window": torch.ones(2, 3).long()}, sturdy.ShapeError, "2 half-widths"),
    "clip in the wrong order": ({"index": SWAP, "clip": (1.0, 0.0)}, ValueError, "clip must be .low, high."),
    "unknown keyword": ({"index": SWAP, "lam": 1.0}, TypeError, "unexpected keyword"),
}

WRONG_VALUES = ("index beyond", "index below", "index beyond other")

WRONG_IMAGES = {
    "complex": (X.to(torch.complex64), TypeError, "x must be float16, bfloat16, float32 or float64, got"),
    "bytes": (X.byte(), TypeError, "got uint8"),
    "two dimensions": (X[0, 0], sturdy.ShapeError, r"x must be \(N, C, H, W\) or \(C, H, W\), got shape"),
    "no rows": (X[:, :, :0], sturdy.ShapeError, "image height must be at least 1, got 0"),
    "no columns": (X[..., :0], sturdy.ShapeError, "image width must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(backend, name):
    options, error, message = WRONG[name]
    if backend.name == "cuda" and name in WRONG_VALUES:
        pytest.skip("the values of an index on a GPU are not looked at")
    with pytest.raises(error, match=message):
        amplitude_mix(X.to(backend.device), **on(backend.device, options))


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_wrong_images(backend, name):
    x, error, message = WRONG_IMAGES[name]
    with pytest.raises(error, match=message):
        amplitude_mix(*on(backend.device, (x,)), index=SWAP.to(backend.device))


def test_other_devices(backend):
    with pytest.raises(RuntimeError, match="index must be on meta"):
        amplitude_mix(X.to("meta"), index=SWAP.to(backend.device))


@pytest.mark.parametrize("backend", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("argument", ["other", "index", "strength", "window"])
def test_mixed_devices(backend, argument):
    call = {"x": X, "other": X, "index": SWAP, "strength": torch.rand(2), "window": torch.tensor([1, 2])}
    call = {name: value if name == argument else value.to(backend.device) for name, value in call.items()}
    with pytest.raises(sturdy.ShapeError, match=f"{argument} must be on the device of x"):
        amplitude_mix(**call)
