"""PushPullConv2d: a drop-in for nn.Conv2d that calls the function with what it holds."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import sturdy
from reference import pushpull as reference
from sturdy.functional import push_pull_conv2d
from sturdy.nn import PushPullConv2d
from support import channel_range, random


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_signature_begins_as_that_of_conv2d():
    ours = list(inspect.signature(PushPullConv2d.__init__).parameters.values())
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])
    defaults = {p.name: p.default for p in ours[len(theirs) :]}
    assert defaults["avg_kernel_size"] == 0
    assert defaults["inhibition"] == 1.0
    assert defaults["trainable_inhibition"] is False
    assert defaults["range_dims"] == "filter"


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(stride=2, padding=3, avg_kernel_size=3),
        dict(padding="same", dilation=(1, 2), avg_kernel_size=(3, 5), inhibition=0.5),
        dict(groups=2, bias=False, trainable_inhibition=True),
        dict(padding=2, padding_mode="reflect", avg_kernel_size=None, inhibition=-1),
        dict(padding=(1, 2), padding_mode="circular", keep_push=False),
        dict(padding=1, padding_mode="replicate", dtype=torch.float64),
        pytest.param(dict(groups=2, padding=1, avg_kernel_size=3, range_dims="channel"), marks=channel_range),
    ],
    ids=str,
)
def test_forward_is_the_function_of_its_parts(backend, options):
    layer = PushPullConv2d(4, 6, (3, 5), device=backend.device, **options)
    image = random((2, 4, 13, 14), 1, layer.weight.dtype, backend.device)
    own = ("bias", "dtype", "trainable_inhibition", "inhibition", "keep_push")
    arguments = {name: value for name, value in options.items() if name not in own}
    expected = push_pull_conv2d(image, layer.weight, layer.inhibition, layer.bias, **arguments)
    assert torch.equal(layer(image), expected)
    exact = reference.push_pull_conv2d(
        image.double(),
        layer.weight.double(),
        layer.inhibition.double() if isinstance(layer.inhibition, torch.Tensor) else layer.inhibition,
        None if layer.bias is None else layer.bias.double(),
        **arguments,
    )
    torch.testing.assert_close(layer(image).double(), exact, rtol=1e-4, atol=1e-4)
    assert layer(image[0]).shape == expected.shape[1:]


def test_kernel_size_stride_and_parameters_are_those_of_conv2d():
    layer, plain = PushPullConv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2)
    assert isinstance(layer, nn.Conv2d)
    assert {n: p.shape for n, p in layer.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert list(layer.buffers()) == []
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(plain, name)


def test_state_dict_of_conv2d_loads_strictly():
    plain, layer = nn.Conv2d(3, 8, 7, stride=2, padding=3), PushPullConv2d(3, 8, 7, stride=2, padding=3, inhibition=0.3)
    layer.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    plain.load_state_dict(layer.state_dict(), strict=True)  # and back


def test_state_dict_with_trainable_inhibition():
    layer = PushPullConv2d(3, 8, 3, trainable_inhibition=True)
    assert set(layer.state_dict()) == {"weight", "bias", "inhibition"}
    assert layer.inhibition.shape == (8,)
    other = PushPullConv2d(3, 8, 3, trainable_inhibition=True)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other.inhibition, layer.inhibition)
    with pytest.raises(RuntimeError, match="inhibition"):
        PushPullConv2d(3, 8, 3).load_state_dict(layer.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="inhibition"):
        layer.load_state_dict(nn.Conv2d(3, 8, 3).state_dict(), strict=True)


def test_initial_values():
    layer = PushPullConv2d(3, 4000, 3, trainable_inhibition=True)
    assert -1 <= layer.bias.min() < -0.99 and 0.99 < layer.bias.max() <= 1
    assert 0 <= layer.inhibition.min() < 0.01 and 0.99 < layer.inhibition.max() <= 1
    bound = 1 / (3 * 9) ** 0.5  # as nn.Conv2d
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    before = [parameter.clone() for parameter in layer.parameters()]
    layer.reset_parameters()
    for parameter, old in zip(layer.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)
    assert -1 <= layer.bias.min() < -0.99 and 0 <= layer.inhibition.min() < 0.01


def test_trainable_inhibition_learns():
    layer = PushPullConv2d(1, 4, 3, padding=1, trainable_inhibition=True)
    before = layer.inhibition.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(random((2, 1, 8, 8), 1)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(layer.inhibition, before)
    assert "inhibition" not in dict(PushPullConv2d(1, 4, 3).named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("groups", "kernel"), [(1, 7), (3, (1, 5)), (1, 1)])
def test_pull_weight_has_the_range_of_the_weight(groups, kernel, dtype):
    layer = PushPullConv2d(3, 12, kernel, groups=groups, dtype=dtype)
    pull = layer.pull_weight
    assert pull.shape == layer.weight.shape
    assert not torch.equal(pull, layer.weight)
    for extreme in (torch.amin, torch.amax):
        wanted = extreme(layer.weight, dim=(1, 2, 3))
        largest = layer.weight.abs().amax(dim=(1, 2, 3))
        difference = (extreme(pull, dim=(1, 2, 3)) - wanted).abs()
        assert (difference <= torch.finfo(dtype).eps * largest).all()
    # Mirrored about the middle: the entry that is the least becomes the greatest.
    assert torch.equal(pull.flatten(1).argmax(1), layer.weight.flatten(1).argmin(1))
    assert torch.autograd.gradcheck(lambda w: reference.pull_kernel(w), layer.weight.detach().double().requires_grad_())
    layer.pull_weight.square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_pull_weight_gives_the_pull_response():
    layer = PushPullConv2d(3, 5, 3, bias=False, dtype=torch.float64)
    image = random((2, 3, 9, 9), 1, torch.float64)
    push = torch.nn.functional.conv2d(image, layer.weight)
    pull = torch.nn.functional.conv2d(image, layer.pull_weight)
    torch.testing.assert_close(layer(image), push.relu() - pull.relu(), rtol=1e-12, atol=1e-12)


def test_pull_weight_of_channel_range():
    layer = PushPullConv2d(4, 6, (3, 5), groups=2, bias=False, range_dims="channel", dtype=torch.float64)
    weight, pull = layer.weight, layer.pull_weight
    torch.testing.assert_close(pull, reference.pull_kernel(weight, "channel"), rtol=1e-15, atol=1e-15)
    assert not torch.allclose(pull, PushPullConv2d.from_conv(plain_twin(layer)).pull_weight)
    image = random((2, 4, 9, 9), 1, torch.float64)
    responses = (torch.nn.functional.conv2d(image, kernel, groups=2).relu() for kernel in (weight, pull))
    push, inhibited = responses
    torch.testing.assert_close(layer(image), push - inhibited, rtol=1e-12, atol=1e-12)


def plain_twin(layer: PushPullConv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups, bias=False, dtype=torch.float64
    )
    plain.load_state_dict(layer.state_dict())
    return plain


def test_conversion_with_channel_range():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    image = random((2, 3, 8, 8), 1)
    wanted = push_pull_conv2d(image, conv.weight, 1.0, conv.bias, padding=1, range_dims="channel")
    model = sturdy.convert_first_conv(nn.Sequential(conv, nn.ReLU()), range_dims="channel")
    for layer in (PushPullConv2d.from_conv(conv, range_dims="channel"), model[0]):
        assert layer.range_dims == "channel"
        assert torch.equal(layer(image), wanted)


def test_extra_repr():
    plain = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    layer = PushPullConv2d(3, 8, 7, stride=2, padding=3, bias=False, avg_kernel_size=5, inhibition=0.5)
    assert repr(layer) == f"PushPullConv2d({plain.extra_repr()}, avg_kernel_size=5, inhibition=0.5)"
    trainable = repr(PushPullConv2d(3, 8, 3, trainable_inhibition=True, keep_push=False))
    assert "trainable_inhibition=True" in trainable
    assert "keep_push=False" in trainable
    assert repr(PushPullConv2d(3, 8, 3, range_dims="channel")).endswith("inhibition=1, range_dims='channel')")


@pytest.mark.parametrize(
    ("options", "exception", "word"),
    [
        (dict(avg_kernel_size=4), ValueError, "odd"),
        (dict(avg_kernel_size=-1), ValueError, "odd"),
        (dict(range_dims="pixel"), ValueError, "range_dims"),
        (dict(groups=2), ValueError, "divisible"),
        (dict(padding="same", stride=2), ValueError, "stride"),
        (dict(padding_mode="mirror"), ValueError, "padding_mode"),
    ],
    ids=str,
)
def test_options_are_checked_at_construction(options, exception, word):
    with pytest.raises(exception, match=word):
        PushPullConv2d(3, 8, 3, **options)


def test_device_dtype_and_memory_format_move_with_the_module():
    layer = PushPullConv2d(3, 8, 3, trainable_inhibition=True).to(torch.float64, memory_format=torch.channels_last)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    out = layer(random((2, 3, 8, 8), 1, torch.float64).contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    with torch.device("meta"):
        on_meta = PushPullConv2d(3, 8, 3, trainable_inhibition=True)
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    assert on_meta(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 8, 6, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_module(dtype):
    layer = PushPullConv2d(3, 8, 3, trainable_inhibition=True, dtype=dtype)
    out = layer(random((2, 3, 8, 8), 1, dtype))
    out.sum().backward()
    assert out.dtype == dtype
    assert {p.grad.dtype for p in layer.parameters()} == {dtype}


def test_from_conv_shares_parameters():
    conv = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, padding_mode="reflect")
    conv = conv.to(torch.float64, memory_format=torch.channels_last).eval()
    conv.weight.requires_grad_(False)
    layer = PushPullConv2d.from_conv(conv, avg_kernel_size=3, inhibition=0.5)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert not layer.training
    assert not layer.weight.requires_grad
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(conv, name), name
    assert layer.avg_kernel_size == 3
    assert layer.inhibition == 0.5
    image = random((2, 4, 12, 13), 1, torch.float64)
    exact = reference.push_pull_conv2d(
        image, conv.weight, 0.5, conv.bias, (2, 1), (1, 2), (1, 2), 2, avg_kernel_size=3, padding_mode="reflect"
    )
    torch.testing.assert_close(layer(image), exact, rtol=1e-12, atol=1e-12)


def test_from_conv_does_not_draw_random_numbers_into_its_source():
    conv = nn.Conv2d(3, 8, 3)
    weight, bias = conv.weight.detach().clone(), conv.bias.detach().clone()
    layer = PushPullConv2d.from_conv(conv, trainable_inhibition=True)
    assert torch.equal(conv.weight, weight) and torch.equal(conv.bias, bias)
    assert layer.inhibition.dtype == conv.weight.dtype
    assert PushPullConv2d.from_conv(nn.Conv2d(3, 8, 3, bias=False)).bias is None
    same = PushPullConv2d.from_conv(nn.Conv2d(3, 8, 3, padding="same"))
    assert same(torch.zeros(1, 3, 9, 9)).shape == (1, 8, 9, 9)


@pytest.mark.parametrize(
    "module",
    [nn.Linear(3, 3), nn.Conv1d(3, 3, 3), nn.LazyConv2d(8, 3), PushPullConv2d(3, 3, 3)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_from_conv_takes_plain_convolutions_alone(module):
    with pytest.raises(TypeError, match=f"nn.Conv2d.*{type(module).__name__}"):
        PushPullConv2d.from_conv(module)
