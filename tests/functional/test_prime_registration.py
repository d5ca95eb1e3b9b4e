"""filter2d, smooth_color, sine_warp and torch: schema, fakes, tracing, export, vmap, autocast; and bad arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sturdy
from prime_support import normal, pixels
from sturdy.functional import filter2d, sine_warp, smooth_color
from support import random, with_layout

OPS: dict[str, tuple[Callable[..., torch.Tensor], tuple[int, ...]]] = {
    "filter2d": (filter2d, (2, 3, 3, 3)),
    "smooth_color": (smooth_color, (2, 3, 4)),
    "sine_warp": (sine_warp, (2, 2, 3, 2)),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(op: str, device: str, layout: str = "contiguous") -> tuple[torch.Tensor, torch.Tensor]:
    return with_layout(pixels((2, 3, 6, 9), device=device), layout), 0.3 * normal(OPS[op][1], device)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("clip", [[], [0.0, 1.0]], ids=str)
def test_opcheck(backend, layout, clip):
    grad_out = random((2, 3, 6, 9), 7, device=backend.device)
    for op, between in (("filter2d", ()), ("smooth_color", (None,))):
        x, parameter = arguments(op, backend.device, layout)
        leaves = (x.requires_grad_(), parameter.requires_grad_(), *between)
        torch.library.opcheck(backend.op(op), (*leaves, clip, None))
        for wanted in ((True, True), (False, True), (True, False)):
            detached = [leaf.detach() if leaf is not None else None for leaf in leaves]
            torch.library.opcheck(backend.op(f"{op}_backward"), (grad_out, *detached, clip, *wanted))
    torch.library.opcheck(backend.op("sine_warp"), (*arguments("sine_warp", backend.device, layout), None))


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float64], ids=str)
def test_opcheck_of_bytes(backend, dtype):
    x = pixels((2, 3, 6, 9), torch.uint8, backend.device)
    first = torch.tensor([3, 1], device=backend.device)
    for op, more in (("filter2d", ([],)), ("smooth_color", (first, [0.0, 1.0])), ("sine_warp", ())):
        torch.library.opcheck(backend.op(op), (x, arguments(op, backend.device)[1], *more, dtype))


@pytest.mark.parametrize("op", OPS)
def test_compile(backend, op):
    function = OPS[op][0]
    x, parameter = arguments(op, backend.device)
    compiled = torch.compile(lambda x, p: 2 * function(x + 1, p), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, parameter), 2 * function(x + 1, parameter))
    if op != "sine_warp":
        leaves = [x.requires_grad_(), parameter.requires_grad_()]
        found = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
        wanted = torch.autograd.grad((2 * function(leaves[0] + 1, leaves[1])).square().sum(), leaves)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
def test_export(backend, op):
    function = OPS[op][0]

    class Change(torch.nn.Module):
        def forward(self, x, p):
            return function(x, p)

    leaves = arguments(op, "cpu")
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Change(), leaves, dynamic_shapes={"x": {0: batch}, "p": {0: batch}})
    more = [torch.cat([leaf, leaf, leaf]) for leaf in leaves]
    assert torch.equal(program.module()(*more), function(*more))


@pytest.mark.parametrize("op", OPS)
def test_vmap(backend, op):
    function = OPS[op][0]
    x, parameter = arguments(op, backend.device)
    several = torch.stack([parameter, 2 * parameter, 0 * parameter])
    found = torch.vmap(lambda p: function(x, p))(several)
    assert torch.equal(found, torch.stack([function(x, p) for p in several]))


@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_no_dtype(backend, op):
    leaves = arguments(op, backend.device)
    expected = OPS[op][0](*leaves)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        out = OPS[op][0](*leaves)
    assert out.dtype == torch.float32 and torch.equal(out, expected)


# ---- bad arguments ---------------------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


IMAGES: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "2d": (dict(x=zeros(8, 9)), sturdy.ShapeError, ["x", "(N, C, H, W)", "(8, 9)"]),
    "5d": (dict(x=zeros(1, 2, 3, 8, 9)), sturdy.ShapeError, ["x", "(1, 2, 3, 8, 9)"]),
    "int64": (dict(x=zeros(2, 3, 6, 9, dtype=torch.int64)), TypeError, ["x", "int64", "uint8"]),
    "bool": (dict(x=zeros(2, 3, 6, 9, dtype=torch.bool)), TypeError, ["x", "bool"]),
    "complex": (dict(x=zeros(2, 3, 6, 9, dtype=torch.complex64)), TypeError, ["x", "complex64"]),
    "dtype_of_float": (dict(dtype=torch.float64), TypeError, ["dtype", "float32", "float64"]),
    "dtype_int": (dict(x=zeros(2, 3, 6, 9, dtype=torch.uint8), dtype=torch.int32), TypeError, ["dtype", "int32"]),
}
CLIPS: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "clip_order": (dict(clip=(1.0, 0.0)), ValueError, ["clip", "low <= high", "(1.0, 0.0)"]),
    "clip_nan": (dict(clip=(float("nan"), 1.0)), ValueError, ["clip", "low <= high"]),
    "clip_three": (dict(clip=(0.0, 0.5, 1.0)), ValueError, ["clip"]),
}
BAD: dict[str, dict[str, tuple[dict[str, Any], type[Exception], list[str]]]] = {
    "filter2d": {
        **IMAGES,
        **CLIPS,
        "number": (dict(kernel=1.0), sturdy.ShapeError, ["kernel", "(N or 1, C or 1, 3, 3)", "float"]),
        "size": (dict(kernel=zeros(5, 5)), sturdy.ShapeError, ["kernel", "3 rows", "got 5"]),
        "columns": (dict(kernel=zeros(3, 2)), sturdy.ShapeError, ["kernel", "3 columns", "got 2"]),
        "batch": (dict(kernel=zeros(3, 1, 3, 3)), sturdy.ShapeError, ["kernel", "2 images", "got 3"]),
        "channels": (dict(kernel=zeros(1, 2, 3, 3)), sturdy.ShapeError, ["kernel", "3 channels", "got 2"]),
        "half": (dict(kernel=zeros(3, 3).half()), TypeError, ["kernel", "float32 or float64", "float16"]),
    },
    "smooth_color": {
        **IMAGES,
        **CLIPS,
        "batch": (dict(coefficients=zeros(3, 1, 4)), sturdy.ShapeError, ["coefficients", "2 images", "got 3"]),
        "channels": (dict(coefficients=zeros(1, 2, 4)), sturdy.ShapeError, ["coefficients", "3 channels"]),
        "int": (dict(coefficients=zeros(4, dtype=torch.int64)), TypeError, ["coefficients", "int64"]),
        "first_dtype": (dict(first=torch.ones(1)), TypeError, ["first", "int64"]),
        "first_batch": (
            dict(first=torch.ones(3, dtype=torch.int64)),
            sturdy.ShapeError,
            ["first", "2 images", "got 3"],
        ),
    },
    "sine_warp": {
        **IMAGES,
        "number": (dict(coefficients=1.0), sturdy.ShapeError, ["coefficients", "(N or 1, 2, I, J)", "float"]),
        "one_field": (
            dict(coefficients=zeros(4, 4)),
            sturdy.ShapeError,
            ["coefficients", "(N or 1, 2, I, J)", "(4, 4)"],
        ),
        "fields": (dict(coefficients=zeros(2, 3, 4, 4)), sturdy.ShapeError, ["coefficients", "2 fields", "got 3"]),
        "batch": (dict(coefficients=zeros(3, 2, 4, 4)), sturdy.ShapeError, ["coefficients", "2 images", "got 3"]),
        "bfloat16": (dict(coefficients=zeros(2, 4, 4).bfloat16()), TypeError, ["coefficients", "bfloat16"]),
    },
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in BAD for name in BAD[op]])
def test_bad_arguments(backend, op, name):
    change, exception, words = BAD[op][name]
    parameter = "kernel" if op == "filter2d" else "coefficients"
    call = {"x": zeros(2, 3, 6, 9), parameter: zeros(*OPS[op][1]), **change}
    call = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    with pytest.raises(exception) as raised:
        OPS[op][0](**call)
    for word in [op, *words]:
        assert word in str(raised.value), str(raised.value)


@pytest.mark.parametrize("op", OPS)
def test_unknown_keyword(op):
    with pytest.raises(TypeError, match="strength"):
        OPS[op][0](*arguments(op, "cpu"), strength=2.0)
