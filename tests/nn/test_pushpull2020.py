"""The PushPull layer of 2020: the function against its definition, and the module on top of it."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sturdy
from reference import composites as reference
from sturdy.functional import push_pull_2020_conv2d
from sturdy.functional.pushpull2020 import enlarge_kernel, pull_kernel_size
from sturdy.nn import PushPull2020Conv2d
from support import dtype_id, random

F64 = torch.float64
CASES = {
    "plain": dict(),
    "stem": dict(kernel=(7, 7), size=(19, 23), stride=2, padding=3),
    "rectangle": dict(kernel=(3, 5), padding=(1, 2), size=(8, 11)),
    "row": dict(kernel=(1, 3), size=(4, 9)),
    "dilation": dict(dilation=(2, 1), padding=(2, 1), size=(11, 9)),
    "stride_dilation": dict(stride=(1, 3), dilation=2, padding=1, size=(12, 13)),
    "groups": dict(channels=4, filters=6, groups=2, padding=1),
    "same": dict(kernel=(5, 3), padding="same", dilation=2),
    "valid": dict(padding="valid"),
    "scale": dict(scale=1.5, kernel=(5, 7), padding=3),
    "large_scale": dict(scale=4.2, padding=1),
    "scale_of_one": dict(scale=1.0, padding=1),
    "one_tap": dict(kernel=(1, 1)),
    "number": dict(strength=0.3, padding=1),
    "negative": dict(strength=-1.5, padding=1, bias=False),
    "dual": dict(dual_output=True, padding=1),
}


def case(kernel=(3, 3), channels=3, filters=4, groups=1, size=(8, 9), strength=None, bias=True, dtype=F64, **options):
    tensors = {
        "input": random((2, channels, *size), 1, dtype),
        "weight": random((filters, channels // groups, *kernel), 2, dtype),
        "inhibition": random((filters,), 3, dtype) if strength is None else strength,
        "bias": random((filters,), 4, dtype) if bias else None,
    }
    return tensors, dict(options, groups=groups)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- the function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_matches_the_definition(name):
    tensors, options = case(**CASES[name])
    leaves = {key: t.requires_grad_() if isinstance(t, torch.Tensor) else t for key, t in tensors.items()}
    found = push_pull_2020_conv2d(**leaves, **options)
    wanted = reference.push_pull_2020_conv2d(**leaves, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grad_out = random(tuple(found.shape), 7, F64)
    sources = [t for t in leaves.values() if isinstance(t, torch.Tensor)]
    unused = bool(options.get("dual_output"))  # inhibition
    for got, grad in zip(
        torch.autograd.grad(found, sources, grad_out, allow_unused=unused),
        torch.autograd.grad(wanted, sources, grad_out, allow_unused=unused),
        strict=True,
    ):
        torch.testing.assert_close(got, grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["plain", "groups", "row", "scale_of_one", "dual"])
def test_gradcheck(name):
    tensors, options = case(**{**CASES[name], "size": (4, 5)})
    leaves = [t.requires_grad_() for t in tensors.values() if isinstance(t, torch.Tensor)]

    def run(input, weight, inhibition, bias):
        return push_pull_2020_conv2d(input, weight, inhibition, bias, **options)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ("kernel", "scale", "large"),
    [(3, 2, 7), (5, 2, 11), (7, 2, 15), (1, 2, 3), (3, 1, 3), (7, 1, 7), (3, 1.5, 5), (5, 1.5, 7), (3, 2.4, 7)],
)
def test_size_of_the_pull_kernel(kernel, scale, large):
    assert pull_kernel_size(kernel, scale) == (large, large)
    layer = PushPull2020Conv2d(2, 4, kernel, scale=scale)
    assert layer.pull_weight.shape == (4, 2, large, large)


def test_each_axis_has_its_own_size():
    assert pull_kernel_size((3, 5), 2) == (7, 11)
    assert PushPull2020Conv2d(2, 4, (1, 7), padding=(0, 3)).pull_weight.shape == (4, 2, 3, 15)


@pytest.mark.parametrize("size", [(7, 7), (11, 3), (3, 9), (15, 21)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=dtype_id)
def test_enlarged_kernel_is_torchs_bilinear_interpolation(size, dtype):
    weight = random((4, 2, 3, 3), 1, dtype)
    wide = weight if dtype == F64 else weight.float()
    wanted = F.interpolate(wide, size, mode="bilinear", align_corners=True)
    found = enlarge_kernel(weight, size)
    assert found.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps * weight.abs().max().item()
    torch.testing.assert_close(found.to(wide.dtype), wanted, rtol=0, atol=tolerance)
    corners = (slice(None), slice(None), slice(None, None, size[0] - 1), slice(None, None, size[1] - 1))
    assert torch.equal(found[corners], weight[:, :, ::2, ::2])


def test_same_size_and_strength_one_is_the_plain_convolution():
    tensors, _ = case(padding=1)
    plain = F.conv2d(tensors["input"], tensors["weight"], tensors["bias"], 2, 1)
    out = push_pull_2020_conv2d(tensors["input"], tensors["weight"], 1.0, tensors["bias"], 2, 1, scale=1)
    assert torch.equal(out, plain)


def test_strengths_of_any_shape():
    tensors, options = case(padding=1)
    strength = tensors.pop("inhibition")
    wanted = push_pull_2020_conv2d(**tensors, inhibition=strength, **options)
    assert torch.equal(push_pull_2020_conv2d(**tensors, inhibition=strength.view(1, -1, 1, 1), **options), wanted)
    same = torch.full((), 0.5, dtype=F64)
    wanted = push_pull_2020_conv2d(**tensors, inhibition=0.5, **options)
    assert torch.equal(push_pull_2020_conv2d(**tensors, inhibition=same, **options), wanted)
    single = push_pull_2020_conv2d(**{**tensors, "input": tensors["input"][1]}, inhibition=0.5, **options)
    torch.testing.assert_close(single, wanted[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_half_precision_and_autocast(dtype):
    tensors, options = case(padding=1, dtype=torch.float32)
    exact = reference.push_pull_2020_conv2d(**{k: v.double() for k, v in tensors.items()}, **options)
    bound = 20 * torch.finfo(dtype).eps * exact.abs().max()
    rounded = {**tensors, "input": tensors["input"].to(dtype), "weight": tensors["weight"].to(dtype)}
    for values in (rounded, {k: v.to(dtype) for k, v in tensors.items()}):  # inhibition and bias wide or narrow
        out = push_pull_2020_conv2d(**values, **options)
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() <= bound
    weight = tensors["weight"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = push_pull_2020_conv2d(**tensors, **options)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= bound
    out.sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "exception", "text"),
    [
        (dict(weight=torch.zeros(4, 3, 2, 3)), ValueError, "odd"),
        (dict(scale=0.9), ValueError, "scale"),
        (dict(scale=float("nan")), ValueError, "scale"),
        (dict(scale=float("inf")), ValueError, "scale"),
        (dict(input=torch.zeros(8, 8)), ValueError, r"\(8, 8\).*\(4, 3, 3, 3\)"),
        (dict(input=torch.zeros(1, 5, 8, 8)), ValueError, r"5 / 1.*\(1, 5, 8, 8\).*\(4, 3, 3, 3\)"),
        (dict(weight=torch.zeros(4, 3, 3)), ValueError, r"\(4, 3, 3\)"),
        (dict(weight=torch.zeros(4, 1, 3, 3), groups=3), ValueError, "groups=3"),
        (dict(groups=0), ValueError, "groups"),
        (dict(bias=torch.zeros(3)), ValueError, r"\(4,\).*\(3,\)"),
        (dict(inhibition=torch.zeros(3)), ValueError, r"\(1, 4, 1, 1\).*\(3,\)"),
        (dict(stride=0), ValueError, "stride"),
        (dict(padding=-1), ValueError, "padding"),
        (dict(padding="full"), ValueError, "full"),
        (dict(padding="same", stride=2), ValueError, "stride"),
        (dict(weight=torch.zeros(4, 3, 3, 3, dtype=F64)), TypeError, "float32.*float64"),
        (dict(input=torch.zeros(1, 3, 8, 8, dtype=torch.int64)), TypeError, "int64"),
        (dict(weight=torch.zeros(4, 3, 3, 3, dtype=torch.complex64)), TypeError, "complex64"),
        (dict(input=torch.zeros(1, 3, 2, 2)), RuntimeError, "Kernel size"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else None,
)
def test_bad_input(changes, exception, text):
    arguments = dict(input=torch.zeros(1, 3, 8, 8), weight=torch.zeros(4, 3, 3, 3))
    with pytest.raises(exception, match=text):
        push_pull_2020_conv2d(**{**arguments, **changes})


def test_no_images():
    image = torch.zeros(0, 3, 8, 8, requires_grad=True)
    out = push_pull_2020_conv2d(image, torch.zeros(4, 3, 3, 3), padding=1)
    assert out.shape == (0, 4, 8, 8)
    out.sum().backward()
    assert image.grad.shape == image.shape


# ---- the module ------------------------------------------------------------------------------------------------------


def test_signature_begins_as_that_of_conv2d():
    ours = list(inspect.signature(PushPull2020Conv2d.__init__).parameters.values())
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    assert {p.name: p.default for p in ours[len(theirs) :]} == dict(
        inhibition=1.0, scale=2.0, trainable_inhibition=False, dual_output=False
    )


@pytest.mark.parametrize(
    "options",
    [dict(), dict(stride=2, padding=3, inhibition=-0.5), dict(scale=1.0, groups=2), dict(dual_output=True, bias=False)],
    ids=str,
)
def test_forward_is_the_function_of_its_parts(options):
    layer = PushPull2020Conv2d(4, 6, 5, dtype=F64, **options)
    image = random((2, 4, 13, 14), 1, F64)
    names = ("stride", "padding", "groups", "scale", "dual_output")
    arguments = {name: value for name, value in options.items() if name in names}
    strength = options.get("inhibition", 1.0)
    wanted = reference.push_pull_2020_conv2d(image, layer.weight, strength, layer.bias, **arguments)
    torch.testing.assert_close(layer(image), wanted, rtol=1e-12, atol=1e-12)
    assert layer(image).shape[1] == layer.out_channels == 6
    assert layer(image[0]).shape == wanted.shape[1:]


def test_trainable_inhibition_is_rectified():
    layer = PushPull2020Conv2d(3, 4, 3, padding=1, trainable_inhibition=True, dtype=F64)
    assert set(layer.state_dict()) == {"weight", "bias", "inhibition"}
    with torch.no_grad():
        layer.inhibition.copy_(torch.tensor([0.5, -1.0, 2.0, -0.1]))
    image = random((2, 3, 8, 8), 1, F64)
    rectified = torch.tensor([0.5, 0.0, 2.0, 0.0], dtype=F64)
    wanted = reference.push_pull_2020_conv2d(image, layer.weight, rectified, layer.bias, padding=1)
    torch.testing.assert_close(layer(image), wanted, rtol=1e-12, atol=1e-12)
    layer(image).sum().backward()
    assert torch.equal(layer.inhibition.grad != 0, torch.tensor([True, False, True, False]))
    fixed = PushPull2020Conv2d(3, 4, 3, inhibition=-1.0)
    assert set(fixed.state_dict()) == {"weight", "bias"}


def test_initial_values():
    layer = PushPull2020Conv2d(3, 1200, 3, trainable_inhibition=True)
    spread = 1 / (3 * 1200) ** 0.5
    distance = (layer.inhibition - 0.5).abs()
    assert 0.98 * spread < distance.max() <= spread * (1 + 1e-4)
    before = layer.inhibition.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.inhibition, before)
    assert (layer.inhibition - 0.5).abs().max() <= spread * (1 + 1e-4)
    bound = 1 / 27**0.5  # weight and bias as nn.Conv2d
    assert layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(kernel_size=4), "odd"),
        (dict(kernel_size=(3, 2)), "odd"),
        (dict(scale=0.5), "scale"),
        (dict(out_channels=5, dual_output=True), "even.*5"),
        (dict(dual_output=True, trainable_inhibition=True), "dual_output"),
        (dict(padding_mode="reflect"), "zeros.*reflect"),
        (dict(groups=2), "divisible"),
        (dict(padding="same", stride=2), "stride"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_options_are_checked_at_construction(options, text):
    arguments = dict(in_channels=3, out_channels=4, kernel_size=3)
    with pytest.raises(ValueError, match=text):
        PushPull2020Conv2d(**{**arguments, **options})


def test_from_conv_shares_parameters():
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2), groups=2, dtype=F64).eval()
    conv.weight.requires_grad_(False)
    layer = PushPull2020Conv2d.from_conv(conv, scale=1.5, inhibition=0.5)
    assert layer.weight is conv.weight and layer.bias is conv.bias and not layer.training
    image = random((1, 4, 12, 13), 1, F64)
    wanted = reference.push_pull_2020_conv2d(image, conv.weight, 0.5, conv.bias, 2, (1, 2), (1, 2), 2, scale=1.5)
    torch.testing.assert_close(layer(image), wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="dual_output"):
        PushPull2020Conv2d.from_conv(conv, dual_output=True)
    with pytest.raises(ValueError, match="zeros"):
        PushPull2020Conv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    with pytest.raises(TypeError, match=r"PushPull2020Conv2d.*nn\.Conv2d.*PushPullConv2d"):
        PushPull2020Conv2d.from_conv(sturdy.nn.PushPullConv2d(3, 3, 3))


def test_extra_repr():
    assert repr(PushPull2020Conv2d(3, 8, 7, padding=3, inhibition=0.5)).endswith("scale=2, inhibition=0.5)")
    assert repr(PushPull2020Conv2d(3, 8, 3, trainable_inhibition=True)).endswith("trainable_inhibition=True)")
    assert repr(PushPull2020Conv2d(3, 8, 3, dual_output=True)).startswith("PushPull2020Conv2d(3, 8, ")


def test_copies_and_devices():
    layer = PushPull2020Conv2d(3, 4, 3, trainable_inhibition=True)
    image = random((1, 3, 9, 9), 1)
    assert torch.equal(copy.deepcopy(layer)(image), layer(image))
    with torch.device("meta"):
        layer = PushPull2020Conv2d(3, 4, 3, trainable_inhibition=True)
    assert layer(torch.empty(2, 3, 9, 9, device="meta")).shape == (2, 4, 7, 7)


@pytest.mark.parametrize("options", [dict(trainable_inhibition=True), dict(dual_output=True)], ids=str)
def test_compiles_to_one_graph(options):
    torch._dynamo.reset()
    layer = PushPull2020Conv2d(3, 4, 3, padding=1, **options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for size in (8, 11):
        image = random((2, 3, size, size), 1).requires_grad_()
        parameters = [image, *layer.parameters()]
        out, wanted = compiled(image), layer(image)
        torch.testing.assert_close(out, wanted)
        for got, grad in zip(
            torch.autograd.grad(out.square().sum(), parameters),
            torch.autograd.grad(wanted.square().sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(got, grad)
    torch._dynamo.reset()


def test_compiled_autocast_region():
    torch._dynamo.reset()
    layer = PushPull2020Conv2d(3, 4, 3, padding=1)

    def model(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(image)

    image = random((2, 3, 8, 8), 1)
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(image)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, model(image))
    torch._dynamo.reset()


def test_enlarged_kernel_is_rounded_once_under_autocast():
    weight = random((4, 3, 3, 3), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = enlarge_kernel(weight, (7, 7))
    assert found.dtype == torch.float32
    assert torch.equal(found, enlarge_kernel(weight, (7, 7)))


def test_exports_to_plain_operations():
    layer = PushPull2020Conv2d(3, 4, 3, padding=1, trainable_inhibition=True).eval()
    image = random((2, 3, 8, 8), 1)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (image,), dynamic_shapes=({0: batch},))
    used = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert used and all(isinstance(target, torch._ops.OpOverload) for target in used)
    for size in (2, 5):
        image = random((size, 3, 8, 8), size)
        torch.testing.assert_close(program.module()(image), layer(image))
