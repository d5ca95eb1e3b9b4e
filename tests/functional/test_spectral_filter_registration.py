"""spectral_filter inside torch: opcheck, compile, export, autocast, vmap; and what each wrong argument gets to hear."""

from __future__ import annotations

import pytest
import torch

import sturdy
from spectral_support import on, uniform
from sturdy.functional import spectral_filter
from support import dtype_id


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# x, mask, index, half, clip
SAMPLES = {
    "shared": ((2, 3, 8, 10), (8, 10), None, False, []),
    "half": ((2, 3, 9, 11), (2, 3, 9, 6), None, True, [0.0, 1.0]),
    "table": ((3, 2, 8, 10), (4, 8, 10), [3, -1, 0], False, []),
    "many": ((2, 3, 6, 7), (1, 4, 3, 6, 7), None, False, [0.1, 0.4]),
    "no_images": ((0, 3, 6, 7), (6, 7), None, False, []),
}


def sample_args(name, device, dtype=torch.float32, channels_last=False):
    shape, mask_shape, index, half, clip = SAMPLES[name]
    x = uniform(shape, 1, dtype, device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    mask = uniform(mask_shape, 2, torch.float64 if dtype == torch.float64 else torch.float32, device)
    index = None if index is None else torch.tensor(index, device=device)
    return x.requires_grad_(), mask.requires_grad_(), index, half, clip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in SAMPLES), ("half", torch.bfloat16), ("many", torch.float64)]
)
def test_opcheck_forward(backend, name, dtype):
    torch.library.opcheck(backend.op("spectral_filter"), sample_args(name, backend.device, dtype, name == "half"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [*((name, (True, True)) for name in SAMPLES), ("half", (True, False)), ("shared", (False, True))],
)
def test_opcheck_backward(backend, name, wanted):
    x, mask, *rest = (a.detach() if isinstance(a, torch.Tensor) else a for a in sample_args(name, backend.device))
    grad_out = torch.rand_like(backend.op("spectral_filter")(x, mask, *rest))
    torch.library.opcheck(backend.op("spectral_filter_backward"), (grad_out, x, mask, *rest, *wanted))


def test_compiles_without_a_break(backend):
    def step(x, mask):
        return spectral_filter(x * 2, mask, "half", None, (0.0, 1.0)).square().mean()

    x, mask = (
        uniform((2, 3, 12, 14), 3, device=backend.device).requires_grad_(),
        uniform((12, 8), 4, device=backend.device).requires_grad_(),
    )
    expected = torch.autograd.grad(step(x, mask), (x, mask))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x, mask), (x, mask))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_compiles_with_dynamic_sizes(backend):
    fn = torch.compile(lambda x, m: spectral_filter(x, m), backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((8, 10), (9, 7), (28, 28)):
        x, mask = uniform((2, 3, *size), 5, device=backend.device), uniform(size, 6, device=backend.device)
        assert torch.equal(fn(x, mask), spectral_filter(x, mask))


def test_exports(backend):
    class Filter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", uniform((8, 10), 7, device=backend.device))

        def forward(self, x):
            return spectral_filter(x, self.mask, clip=(0.0, 1.0))

    x = uniform((2, 3, 8, 10), 8, device=backend.device)
    program = torch.export.export(Filter(), (x,))
    assert torch.equal(program.module()(x), Filter()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
def test_autocast_changes_no_dtype(backend, dtype):
    x, mask = uniform((2, 3, 8, 10), 9, device=backend.device), uniform((8, 10), 10, device=backend.device)
    with torch.autocast(backend.device, dtype=dtype):
        assert torch.equal(spectral_filter(x, mask), spectral_filter(x, mask))
        assert spectral_filter(x, mask).dtype == torch.float32
        half = spectral_filter(x.to(dtype), mask)
    assert half.dtype == dtype and torch.equal(half, spectral_filter(x.to(dtype), mask))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (1, 0)], ids=str)
def test_vmap(backend, in_dims):
    x = uniform((2, 2, 3, 8, 10) if in_dims[0] is not None else (2, 3, 8, 10), 11, device=backend.device)
    mask = uniform((2, 8, 10) if in_dims[1] is not None else (8, 10), 12, device=backend.device)
    out = torch.func.vmap(spectral_filter, in_dims=in_dims)(x, mask)
    for i in range(2):
        one = x if in_dims[0] is None else x.select(in_dims[0], i)
        assert torch.equal(out[i], spectral_filter(one, mask if in_dims[1] is None else mask[i]))


def test_batched_gradients(backend):
    x, mask = (
        uniform((1, 2, 6, 8), 13, device=backend.device).requires_grad_(),
        uniform((6, 8), 14, device=backend.device).requires_grad_(),
    )
    out = spectral_filter(x, mask)
    many = uniform((3, *out.shape), 15, device=backend.device)
    together = torch.autograd.grad(out, (x, mask), many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        apart = torch.autograd.grad(out, (x, mask), many[i], retain_graph=True)
        assert all(torch.equal(a[i], b) for a, b in zip(together, apart, strict=True))


# ---- wrong arguments -------------------------------------------------------------------------------------------------

X = torch.rand(2, 3, 8, 10)
M = torch.rand(8, 10)

WRONG = {
    "mask of another size": (
        (X, torch.rand(8, 9)),
        sturdy.ShapeError,
        r"the last two \(8, 10\) for layout 'shifted' or \(8, 6\) for layout 'half', got shape \(8, 9\) with layout",
    ),
    "half mask called shifted": ((X, torch.rand(8, 6)), sturdy.ShapeError, r"\(8, 6\) for layout 'half', got shape"),
    "shifted mask called half": ((X, M, "half"), sturdy.ShapeError, r"got shape \(8, 10\) with layout 'half'"),
    "mask of one dimension": ((X, torch.rand(10)), sturdy.ShapeError, r"2 to 5 dimensions.*got shape \(10,\)"),
    "mask of six": ((X, M.expand(1, 1, 1, 1, 8, 10)), sturdy.ShapeError, "2 to 5 dimensions"),
    "masks per channel": ((X, torch.rand(2, 8, 10)), sturdy.ShapeError, r"mask must have 3 channels \(C\) or 1, got 2"),
    "masks per image": ((X, torch.rand(3, 3, 8, 10)), sturdy.ShapeError, r"mask must have 2 images \(N\) or 1, got 3"),
    "complex mask": ((X, M.to(torch.complex64)), TypeError, "mask must be float32 or have the dtype of x.*complex64"),
    "mask of float64": (
        (X, M.double()),
        TypeError,
        "mask must be float32 or have the dtype of x, float32, got float64",
    ),
    "mask of integers": ((X, M.long()), TypeError, "mask must be float32"),
    "complex image": ((X.to(torch.complex64), M), TypeError, "x must be float16, bfloat16, float32 or float64, got"),
    "image of bytes": ((X.byte(), M), TypeError, "x must be float16, bfloat16, float32 or float64, got uint8"),
    "image of two dimensions": ((X[0, 0], M), sturdy.ShapeError, r"x must be \(N, C, H, W\) or \(C, H, W\), got shape"),
    "no rows": ((X[:, :, :0], M[:0]), sturdy.ShapeError, "image height must be at least 1, got 0"),
    "layout": ((X, M, "centered"), ValueError, "layout must be 'shifted' or 'half', got 'centered'"),
    "clip in the wrong order": ((X, M, "shifted", None, (1.0, 0.0)), ValueError, "clip must be .low, high."),
    "clip of nan": ((X, M, "shifted", None, (float("nan"), 1.0)), ValueError, "clip must be .low, high."),
    "index beyond the table": (
        (X, M.expand(4, 8, 10), "shifted", torch.tensor([0, 4])),
        sturdy.ShapeError,
        "index must be -1 or an entry of the mask table, 0 to 3, got 4 for image 1",
    ),
    "index below": ((X, M.expand(4, 8, 10), "shifted", torch.tensor([-2, 0])), sturdy.ShapeError, "got -2 for image 0"),
    "index of int32": (
        (X, M.expand(4, 8, 10), "shifted", torch.tensor([0, 1]).int()),
        TypeError,
        "index must be int64",
    ),
    "index too short": ((X, M.expand(4, 8, 10), "shifted", torch.tensor([0])), sturdy.ShapeError, "index must have 2"),
    "index without a table": ((X, M, "shifted", torch.tensor([0, 0])), sturdy.ShapeError, "mask must be a table"),
    "index and many masks": (
        (X, M.expand(1, 4, 1, 8, 10), "shifted", torch.tensor([0, 0])),
        sturdy.ShapeError,
        "mask must be a table",
    ),
}

WRONG_VALUES = ("index beyond the table", "index below")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(backend, name):
    args, error, message = WRONG[name]
    if backend.name == "cuda" and name in WRONG_VALUES:
        pytest.skip("the values of an index on a GPU are not looked at")
    with pytest.raises(error, match=message):
        spectral_filter(*on(backend.device, args))


def test_unknown_keyword(backend):
    with pytest.raises(TypeError):
        spectral_filter(*on(backend.device, (X, M)), padding=1)


def test_other_devices(backend):
    with pytest.raises(RuntimeError, match=f"mask must be on meta, got {backend.device}"):
        spectral_filter(X.to("meta"), M.to(backend.device))


def test_wrong_gradients(backend):
    op = backend.op("spectral_filter_backward")
    x, mask = on(backend.device, (X, M))
    with pytest.raises(RuntimeError, match=r"grad_out must have shape \(2, 3, 8, 10\)"):
        op(x[:, :2].contiguous(), x, mask, None, False, [], True, False)
    with pytest.raises(RuntimeError, match="x must not be NULL where there is a clamp or grad_mask is wanted"):
        op(x, None, mask, None, False, [], False, True)


@pytest.mark.parametrize("backend", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("argument", ["mask", "index"])
def test_mixed_devices(backend, argument):
    call = {"x": X, "mask": M[None], "index": torch.tensor([0, -1])}
    call = {name: value if name == argument else value.to(backend.device) for name, value in call.items()}
    with pytest.raises(sturdy.ShapeError, match=f"{argument} must be on the device of x"):
        spectral_filter(**call)
