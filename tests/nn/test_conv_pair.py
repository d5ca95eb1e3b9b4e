"""to_conv_pair: the same values and gradients from torch's own operations, and what it exports to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reference import pushpull as reference
from sturdy.nn import PushPullConv2d
from sturdy.nn.conv_pair import PushPullConvPair
from support import dtype_id, random

F64 = torch.float64
OPTIONS = {
    "plain": dict(),
    "stem": dict(stride=2, padding=3, avg_kernel_size=3, trainable_inhibition=True),
    "groups": dict(groups=2, avg_kernel_size=(3, 5), inhibition=-0.4, bias=False),
    "same_even": dict(kernel_size=(4, 2), padding="same", trainable_inhibition=True),
    "valid": dict(padding="valid", dilation=(1, 2), avg_kernel_size=None),
    "reflect": dict(padding=(2, 1), padding_mode="reflect", avg_kernel_size=5),
    "circular_same": dict(padding="same", padding_mode="circular", dilation=2),
    "pool_beyond_map": dict(kernel_size=7, avg_kernel_size=11),
    "channel_range": dict(padding=1, avg_kernel_size=3, range_dims="channel", trainable_inhibition=True),
}


def layer_of(name: str, dtype=F64) -> PushPullConv2d:
    torch.manual_seed(0)
    options = {"kernel_size": 3, **OPTIONS[name]}
    return PushPullConv2d(4, 6, dtype=dtype, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_same_values_and_gradients(name):
    layer = layer_of(name)
    pair = layer.to_conv_pair()
    assert isinstance(pair, PushPullConvPair)
    image = random((2, 4, 12, 11), 1, F64).requires_grad_()
    out, wanted = pair(image), layer(image)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair(image[0]), layer(image[0]), rtol=1e-12, atol=1e-12)
    grad_out = random(tuple(out.shape), 7, F64)
    sources = [image, *layer.parameters()]
    for got, grad in zip(
        torch.autograd.grad(out, sources, grad_out), torch.autograd.grad(wanted, sources, grad_out), strict=True
    ):
        torch.testing.assert_close(got, grad, rtol=1e-11, atol=1e-11)


def test_parameters_are_shared():
    layer = layer_of("stem").eval()
    pair = layer.to_conv_pair()
    assert {n: id(p) for n, p in pair.named_parameters()} == {n: id(p) for n, p in layer.named_parameters()}
    assert list(pair.state_dict()) == list(layer.state_dict())
    assert not pair.training
    image = random((1, 4, 12, 11), 1, F64)
    before = pair(image)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert not torch.equal(pair(image), before)
    torch.testing.assert_close(pair.pull_weight, layer.pull_weight)
    assert torch.equal(copy.deepcopy(pair)(image), pair(image))
    assert "avg_kernel_size=(3, 3)" in repr(pair)


@pytest.mark.parametrize("avg_kernel_size", [0, 3])
def test_range_of_each_input_channel(avg_kernel_size):
    # Set by hand: this is about the pair alone, whatever the kernels can do.
    layer = layer_of("plain")
    layer.range_dims, layer.avg_kernel_size = "channel", avg_kernel_size
    pair = layer.to_conv_pair()
    weight = layer.weight
    middle = torch.stack([torch.stack([w.min() + w.max() for w in filters]) for filters in weight])[:, :, None, None]
    assert torch.equal(pair.pull_weight, middle - weight)
    image = random((2, 4, 9, 8), 1, F64)
    pull = reference.average(torch.nn.functional.conv2d(image, middle - weight), avg_kernel_size)
    push = torch.nn.functional.conv2d(image, weight)
    wanted = push.relu() - pull.relu() + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(pair(image), wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(wanted, layer_of("plain")(image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_half_precision(dtype):
    layer = layer_of("stem", torch.float32)
    image = random((2, 4, 12, 11), 1)
    pair = layer.to_conv_pair()
    with torch.autocast("cpu", dtype=dtype):
        out = pair(image)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), layer(image), rtol=0, atol=30 * torch.finfo(dtype).eps)


# Every one has a counterpart in ONNX: ReduceMin, ReduceMax, Conv, AveragePool, Relu, Mul, Sub, Add, Neg, Reshape, Pad.
ONNX_HAS = {"amin", "amax", "convolution", "avg_pool2d", "relu", "mul", "sub", "add", "neg", "view", "constant_pad_nd"}


@pytest.mark.parametrize("name", ["plain", "stem", "groups", "same_even"])
def test_exports_to_operations_that_onnx_has(name, tmp_path):
    layer = layer_of(name, torch.float32)
    model = nn.Sequential(layer.to_conv_pair(), nn.ReLU()).eval()
    image = random((2, 4, 12, 10), 1)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (image,), dynamic_shapes=({0: batch},)).run_decompositions()
    used = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert all(isinstance(target, torch._ops.OpOverload) for target in used)
    assert {target._schema.name.removeprefix("aten::") for target in used} <= ONNX_HAS
    averages = [node for node in program.graph.nodes if "avg_pool2d" in str(node.target)]
    assert len(averages) == (layer.avg_kernel_size != 0)
    assert all(node.args[5] is False for node in averages)  # count_include_pad
    torch.export.save(program, tmp_path / "pair.pt2")
    loaded = torch.export.load(tmp_path / "pair.pt2").module()
    for size in (2, 5):
        image = random((size, 4, 12, 10), size)
        torch.testing.assert_close(loaded(image), layer(image).relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["stem", "groups"])
def test_onnx_runtime_agrees(name, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import onnxruntime

    layer = layer_of(name, torch.float32).eval()
    image = random((2, 4, 12, 10), 1)
    path = str(tmp_path / "pair.onnx")
    torch.onnx.export(layer.to_conv_pair(), (image,), path, dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(image).detach(), rtol=1e-4, atol=1e-4)
