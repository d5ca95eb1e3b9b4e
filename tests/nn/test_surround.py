"""Surround suppression: the ring, the function against its definition, and the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference import composites as reference
from sturdy.functional import surround_kernel, surround_suppression_conv2d
from sturdy.nn import SurroundSuppressionConv2d
from support import dtype_id, random

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_ring():
    ring = surround_kernel(dtype=F64)
    torch.testing.assert_close(ring, reference.surround(), rtol=1e-13, atol=0)
    assert ring.shape == (17, 17)
    assert (ring >= 0).all()
    assert ring.sum().item() == pytest.approx(1, abs=1e-14)
    assert torch.equal(ring, ring.flip(0)) and torch.equal(ring, ring.T)
    # The Gaussians meet where exp(-r^2 (1/8 - 1/128)) = 1/16, at a radius of 4.86 pixels.
    radius = (torch.arange(-8, 9)[:, None] ** 2 + torch.arange(-8, 9) ** 2).sqrt()
    assert torch.equal(ring > 0, radius > 4.86)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=dtype_id)
def test_ring_is_rounded_once(dtype):
    assert torch.equal(surround_kernel(dtype=dtype), reference.surround().to(dtype))
    assert surround_kernel(device="meta").device.type == "meta"
    assert surround_kernel().dtype == torch.get_default_dtype()


CASES = {
    "plain": dict(),
    "stem": dict(kernel=(7, 7), stride=2, padding=3, size=(21, 40)),
    "groups": dict(groups=2, channels=4, filters=6, padding=1, dilation=(1, 2)),
    "small": dict(size=(3, 4)),
    "no_bias": dict(bias=False, strength=-0.7),
}


def case(kernel=(3, 3), channels=3, filters=4, groups=1, size=(14, 11), strength=None, bias=True, **options):
    tensors = {
        "input": random((2, channels, *size), 1, F64),
        "weight": random((filters, channels // groups, *kernel), 2, F64),
        "inhibition": random((filters,), 3, F64) if strength is None else strength,
        "bias": random((filters,), 4, F64) if bias else None,
    }
    return tensors, dict(options, groups=groups)


@pytest.mark.parametrize("name", CASES)
def test_matches_the_definition(name):
    tensors, options = case(**CASES[name])
    leaves = {key: t.requires_grad_() if isinstance(t, torch.Tensor) else t for key, t in tensors.items()}
    found = surround_suppression_conv2d(**leaves, **options)
    wanted = reference.surround_suppression_conv2d(**leaves, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grad_out = random(tuple(found.shape), 7, F64)
    sources = [t for t in leaves.values() if isinstance(t, torch.Tensor)]
    for got, grad in zip(
        torch.autograd.grad(found, sources, grad_out), torch.autograd.grad(wanted, sources, grad_out), strict=True
    ):
        torch.testing.assert_close(got, grad, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    tensors, options = case(size=(6, 5))
    leaves = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(lambda *values: surround_suppression_conv2d(*values, **options), leaves)


def test_texture_is_suppressed_and_a_point_is_not():
    weight = torch.ones(1, 1, 1, 1)
    flat = surround_suppression_conv2d(torch.ones(1, 1, 33, 33), weight)
    assert flat[0, 0, 16, 16].abs() < 1e-6
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    assert surround_suppression_conv2d(point, weight)[0, 0, 16, 16] == 1


def test_padding_modes():
    tensors, options = case(size=(9, 9))
    for mode, torchs in (("reflect", "reflect"), ("replicate", "replicate"), ("circular", "circular")):
        padded = torch.nn.functional.pad(tensors["input"], (2, 2, 1, 1), mode=torchs)
        wanted = reference.surround_suppression_conv2d(**{**tensors, "input": padded}, **options)
        found = surround_suppression_conv2d(**tensors, padding=(1, 2), padding_mode=mode, **options)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"padding_mode.*mirror"):
        surround_suppression_conv2d(**tensors, padding_mode="mirror")
    even = surround_suppression_conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 2, 4), padding="same")
    assert even.shape == (1, 1, 5, 5)


def test_own_surround():
    tensors, _ = case(strength=1.0, bias=False)
    mean = torch.full((3, 3), 1 / 9, dtype=F64)
    found = surround_suppression_conv2d(**tensors, surround=mean)
    response = reference.correlate(tensors["input"], tensors["weight"]).relu()
    torch.testing.assert_close(found, response - torch.nn.functional.avg_pool2d(response, 3, 1, 1))
    for bad in (torch.ones(4, 3), torch.ones(1, 3, 3)):
        with pytest.raises(ValueError, match="surround"):
            surround_suppression_conv2d(**tensors, surround=bad.double())


@pytest.mark.parametrize(
    ("changes", "exception"),
    [
        (dict(input=torch.zeros(1, 4, 8, 8)), ValueError),
        (dict(inhibition=torch.zeros(3)), ValueError),
        (dict(weight=torch.zeros(4, 3, 3, 3, dtype=F64)), TypeError),
        (dict(dilation=0), ValueError),
        (dict(input=torch.zeros(1, 3, 2, 2)), RuntimeError),
    ],
    ids=str,
)
def test_bad_input(changes, exception):
    arguments = dict(input=torch.zeros(1, 3, 8, 8), weight=torch.zeros(4, 3, 3, 3))
    with pytest.raises(exception):
        surround_suppression_conv2d(**{**arguments, **changes})


# ---- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(stride=2, padding=1, inhibition=0.4), dict(groups=2)], ids=str)
def test_forward_is_the_function_of_its_parts(options):
    layer = SurroundSuppressionConv2d(4, 6, 3, dtype=F64, **options)
    image = random((2, 4, 12, 13), 1, F64)
    strength = options.pop("inhibition", 1.0)
    wanted = reference.surround_suppression_conv2d(image, layer.weight, strength, layer.bias, **options)
    torch.testing.assert_close(layer(image), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(image[0]), wanted[0], rtol=1e-12, atol=1e-12)


def test_state_dict_is_that_of_conv2d():
    layer = SurroundSuppressionConv2d(3, 8, 3)
    layer.load_state_dict(nn.Conv2d(3, 8, 3).state_dict(), strict=True)
    trainable = SurroundSuppressionConv2d(3, 8, 3, trainable_inhibition=True)
    assert set(trainable.state_dict()) == {"weight", "bias", "inhibition"}
    assert trainable.inhibition.min() >= 0 and trainable.inhibition.max() <= 1
    trainable(torch.randn(1, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters())


def test_ring_moves_with_the_module():
    layer = SurroundSuppressionConv2d(3, 8, 3).to(torch.float64)
    assert layer.surround.dtype == F64
    assert layer(torch.zeros(1, 3, 8, 8, dtype=F64)).dtype == F64
    half = SurroundSuppressionConv2d(3, 8, 3, trainable_inhibition=True, dtype=torch.bfloat16)
    assert half.surround.dtype == torch.bfloat16
    assert half(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.device("meta"):
        layer = SurroundSuppressionConv2d(3, 8, 3)
    assert layer.surround.device.type == "meta"
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.equal(layer.surround, reference.surround().float())


def test_autocast_gives_its_dtype():
    layer = SurroundSuppressionConv2d(3, 8, 3, trainable_inhibition=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(1, 3, 8, 8))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


def test_from_conv_and_repr():
    conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect").eval()
    layer = SurroundSuppressionConv2d.from_conv(conv, inhibition=0.25)
    assert layer.weight is conv.weight and layer.bias is conv.bias and not layer.training
    assert repr(layer).endswith("padding_mode=reflect, inhibition=0.25)")
    with pytest.raises(TypeError, match=r"SurroundSuppressionConv2d.*nn\.Conv2d.*Linear"):
        SurroundSuppressionConv2d.from_conv(nn.Linear(3, 3))


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    layer = SurroundSuppressionConv2d(3, 4, 3, padding=1, trainable_inhibition=True)
    image = random((2, 3, 8, 8), 1)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(image), layer(image))
    torch._dynamo.reset()
