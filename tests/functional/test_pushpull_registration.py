"""push_pull_conv2d inside torch: opcheck, compile, export, autocast, vmap, and what torch.func says."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from reference import pushpull as reference
from reference.pushpull import assert_close_to_reference
from sturdy.functional import push_pull_conv2d
from sturdy.nn import PushPullConv2d
from support import BY_NAME, CHANNEL_BY_NAME, Tensors, channel_range, dtype_id, random

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- opcheck ---------------------------------------------------------------------------------------------------------

# input (shape, memory format), weight, strength as number, strength and bias as tensors, stride, padding, dilation,
# groups, pool, range per input channel, tf32, dtype
SAMPLES = {
    "plain": dict(),
    "vectors": dict(vectors=True, pool=[3, 3], padding=[1, 1, 1, 1]),
    "asymmetric": dict(padding=[0, 1, 1, 2], stride=[2, 1], dilation=[1, 2], pool=[1, 5]),
    "groups_channels_last": dict(vectors=True, groups=2, channels=4, format=torch.channels_last),
    "bfloat16": dict(vectors=True, dtype=torch.bfloat16, format=torch.channels_last),
    "float64_recompute": dict(vectors=True, dtype=torch.float64, keep_push=False),
    "one_channel": dict(channels=1, format=torch.channels_last),
    "no_images": dict(vectors=True, batch=0),
    "tf32": dict(vectors=True, channels=8, out_channels=8, allow_tf32=True, pool=[3, 3]),
}
CHANNEL_SAMPLES = {
    "channel_range": dict(channel_range=True, vectors=True, pool=[3, 3], padding=[1, 1, 1, 1]),
    "channel_range_groups": dict(channel_range=True, groups=2, channels=4, dtype=torch.float64, keep_push=False),
}
EVERY_SAMPLE = [*SAMPLES.values(), *(pytest.param(s, marks=channel_range) for s in CHANNEL_SAMPLES.values())]
every_sample = pytest.mark.parametrize("sample", EVERY_SAMPLE, ids=[*SAMPLES, *CHANNEL_SAMPLES])


def forward_args(device: str, **sample) -> tuple:
    dtype, channels, groups = sample.get("dtype", torch.float32), sample.get("channels", 3), sample.get("groups", 1)

    def leaf(*shape: int) -> torch.Tensor:
        values = random(shape, len(shape), dtype, device)
        if len(shape) == 4 and "format" in sample:
            values = values.contiguous(memory_format=sample["format"])
        return values.requires_grad_()

    vectors, filters = sample.get("vectors", False), sample.get("out_channels", 4)
    return (
        leaf(sample.get("batch", 2), channels, 7, 8),
        leaf(filters, channels // groups, 3, 3),
        leaf(filters) if vectors else None,
        0.75,
        leaf(filters) if vectors else None,
        sample.get("stride", [1, 1]),
        sample.get("padding", [0, 0, 0, 0]),
        sample.get("dilation", [1, 1]),
        groups,
        sample.get("pool", [1, 1]),
        sample.get("channel_range", False),
        sample.get("allow_tf32", False),
        sample.get("keep_push", True),
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@every_sample
def test_opcheck_forward(backend, sample):
    torch.library.opcheck(backend.op("push_pull_conv2d"), forward_args(backend.device, **sample))


@pytest.mark.parametrize("wanted", [(True, True, True, True), (False, True, False, True)], ids=["all", "some"])
@every_sample
def test_opcheck_backward(backend, sample, wanted):
    input, weight, inhibition, strength, bias, *options, keep_push = forward_args(backend.device, **sample)
    out, push = backend.op("push_pull_conv2d")(input, weight, inhibition, strength, bias, *options, keep_push)
    args = (torch.ones_like(out), input, weight, inhibition, strength, push if keep_push else None, *options, *wanted)
    args = tuple(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args)
    torch.library.opcheck(backend.op("push_pull_conv2d_backward"), args)


@every_sample
def test_fake_outputs_match_real_ones(backend, sample):
    # opcheck compares sizes and dtypes of what it runs; strides and empty extras are compared here one by one.
    args = forward_args(backend.device, **sample)
    args = tuple(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args)
    real = backend.op("push_pull_conv2d")(*args)
    mode = torch._subclasses.FakeTensorMode()
    faked = tuple(mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)
    with mode:
        fake = backend.op("push_pull_conv2d")(*faked)
    for one, other in zip(fake, real, strict=True):
        assert (one.shape, one.stride(), one.dtype, one.device) == (
            other.shape,
            other.stride(),
            other.dtype,
            other.device,
        )


# ---- compile and export ----------------------------------------------------------------------------------------------


def values_and_gradients(function, image: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    image = image.detach().requires_grad_()
    out = function(image)
    grads = torch.autograd.grad(out.square().mean(), [image, *parameters])
    return [out.detach(), *grads]


def test_compile_with_dynamic_batch_and_size(backend):
    torch.manual_seed(0)
    layer = PushPullConv2d(3, 6, 3, padding="same", avg_kernel_size=3, trainable_inhibition=True, device=backend.device)
    parameters = list(layer.parameters())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch, height, width in [(2, 7, 9), (3, 8, 12), (5, 11, 6), (4, 9, 9)]:
        image = random((batch, 3, height, width), batch, device=backend.device)
        found = values_and_gradients(compiled, image, parameters)
        wanted = values_and_gradients(layer, image, parameters)
        for got, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, expected)
    assert counter.frame_count <= 2, "more than one recompilation"


@pytest.mark.parametrize(
    "name",
    [
        *("stem", "groups", "reflect", "number_negative", "same_even"),
        *(pytest.param(name, marks=channel_range) for name in ("channel_stem", "channel_groups")),
    ],
)
def test_compiles_to_one_graph(backend, name):
    case = {**BY_NAME, **CHANNEL_BY_NAME}[name]
    leaves = case.tensors(device=backend.device, layout="channels_last").leaves()
    counter = CompileCounterWithBackend("aot_eager")

    def run(*values):
        return case.call(push_pull_conv2d, Tensors(*values)) * 2

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    values = (leaves.input, leaves.weight, leaves.inhibition, leaves.bias)
    out, expected = compiled(*values), run(*values)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()
    grad_out = random(tuple(out.shape), 7, device=backend.device)
    found = torch.autograd.grad(out, leaves.all(), grad_out)
    wanted = torch.autograd.grad(expected, leaves.all(), grad_out)
    for got, grad in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, grad)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("cpu", "cuda")], indirect=True
)
@pytest.mark.filterwarnings("ignore")  # TorchInductor's own
def test_inductor(backend):
    # One process and no precompiled headers: there is one small kernel to compile in each direction.
    settings = {"compile_threads": 1, "cpp_cache_precompile_headers": False}
    with torch._inductor.config.patch(settings):
        check_inductor(backend)


def check_inductor(backend) -> None:
    torch.manual_seed(0)
    layer = PushPullConv2d(3, 6, 3, padding=1, avg_kernel_size=3, trainable_inhibition=True, device=backend.device)

    def model(image: torch.Tensor) -> torch.Tensor:
        return F.gelu(layer(2 * image)) + 1

    image = random((2, 3, 9, 11), 1, device=backend.device).contiguous(memory_format=torch.channels_last)
    found = values_and_gradients(torch.compile(model, fullgraph=True), image, list(layer.parameters()))
    wanted = values_and_gradients(model, image, list(layer.parameters()))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_compile_error_carries_our_text(backend):
    compiled = torch.compile(push_pull_conv2d, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="input channels") as caught:
        compiled(torch.randn(1, 3, 8, 8, device=backend.device), torch.randn(4, 2, 3, 3, device=backend.device))
    assert "push_pull_conv2d" in str(caught.value)


def test_compiled_autocast_region(backend):
    layer = PushPullConv2d(3, 6, 3, padding=1, device=backend.device)

    def model(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            return layer(image)

    image = random((2, 3, 8, 8), 1, device=backend.device)
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(image)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, model(image))


def test_export_keeps_the_op(backend, tmp_path):
    layer = PushPullConv2d(3, 6, 3, stride=2, padding=1, avg_kernel_size=3, device=backend.device).eval()
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    image = random((2, 3, 12, 10), 1, device=backend.device)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (image,), dynamic_shapes=({0: batch},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert backend.op("push_pull_conv2d") in targets
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    for size in (2, 5):
        image = random((size, 3, 12, 10), size, device=backend.device)
        assert torch.equal(loaded(image), model(image))


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stem", pytest.param("channel_stem", marks=channel_range)])
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)
def test_autocast(backend, dtype, name):
    case = {**BY_NAME, **CHANNEL_BY_NAME}[name]
    leaves = case.tensors(device=backend.device).leaves()
    with torch.autocast(backend.device, dtype=dtype):
        out = case.call(push_pull_conv2d, leaves)
    assert out.dtype == dtype
    grad_out = random(tuple(out.shape), 7, dtype, backend.device)
    found = torch.autograd.grad(out, leaves.all(), grad_out)
    assert all(grad.dtype == torch.float32 for grad in found)
    # Input and weight are rounded, inhibition and bias are not.
    rounded = Tensors(leaves.input.to(dtype), leaves.weight.to(dtype), leaves.inhibition, leaves.bias)
    expected = case.call(push_pull_conv2d, rounded)
    assert torch.equal(out, expected)
    for got, grad in zip(found, torch.autograd.grad(expected, leaves.all(), grad_out), strict=True):
        assert torch.equal(got, grad)


def test_autocast_leaves_float64_alone(backend):
    case = BY_NAME["plain"]
    tensors = case.tensors(torch.float64, backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        assert case.call(push_pull_conv2d, tensors).dtype == torch.float64


def test_disabled_autocast(backend):
    case = BY_NAME["plain"]
    tensors = case.tensors(device=backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16), torch.autocast(backend.device, enabled=False):
        assert case.call(push_pull_conv2d, tensors).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)
def test_training_with_a_gradient_scaler(backend, dtype):
    torch.manual_seed(0)
    layer = PushPullConv2d(1, 4, 3, padding=1, avg_kernel_size=3, trainable_inhibition=True, device=backend.device)
    model = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2, device=backend.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(backend.device, init_scale=2.0**8)
    image, label = random((8, 1, 6, 6), 1, device=backend.device), torch.arange(8, device=backend.device) % 2
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast(backend.device, dtype=dtype):
            loss = F.cross_entropy(model(image), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert losses[-1] < losses[0]


# ---- transforms and copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("name", ["plain", "groups", pytest.param("channel_plain", marks=channel_range)])
def test_vmap_over_the_input(backend, name, dim):
    case = {**BY_NAME, **CHANNEL_BY_NAME}[name]
    tensors = case.tensors(torch.float64, backend.device)
    stacked = torch.stack([tensors.input, 2 * tensors.input, -tensors.input], dim=dim)

    def one(image: torch.Tensor) -> torch.Tensor:
        return case.call(push_pull_conv2d, Tensors(image, tensors.weight, tensors.inhibition, tensors.bias))

    found = torch.func.vmap(one, in_dims=dim)(stacked)
    wanted = torch.stack([one(image) for image in stacked.unbind(dim)])
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mapped", ["weight", "inhibition", "bias", "input and weight"])
def test_vmap_over_parameters(backend, mapped):
    case = BY_NAME["plain"]
    tensors = case.tensors(torch.float64, backend.device)
    values = {"input": tensors.input, "weight": tensors.weight, "inhibition": tensors.inhibition, "bias": tensors.bias}
    stacked = {name: torch.stack([value, -value]) if name in mapped else value for name, value in values.items()}

    def one(*given: torch.Tensor) -> torch.Tensor:
        return case.call(push_pull_conv2d, Tensors(*given))

    in_dims = tuple(0 if name in mapped else None for name in values)
    found = torch.func.vmap(one, in_dims=in_dims)(*stacked.values())
    for index in range(2):
        given = [value[index] if name in mapped else value for name, value in stacked.items()]
        torch.testing.assert_close(found[index], one(*given), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["groups", pytest.param("channel_groups", marks=channel_range)])
@pytest.mark.parametrize("keep_push", [True, False])
def test_several_gradients_at_once(backend, keep_push, name):
    case = {**BY_NAME, **CHANNEL_BY_NAME}[name]
    leaves = case.tensors(torch.float64, backend.device).leaves()
    out = case.call(push_pull_conv2d, leaves, keep_push=keep_push)
    stacked = torch.stack([random(tuple(out.shape), seed, torch.float64, backend.device) for seed in (7, 8, 9)])
    found = torch.autograd.grad(out, leaves.all(), stacked, is_grads_batched=True, retain_graph=True)
    for index, grad_out in enumerate(stacked):
        wanted = torch.autograd.grad(out, leaves.all(), grad_out, retain_graph=True)
        for got, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(got[index], expected, rtol=1e-12, atol=1e-12)


def test_func_grad_says_that_it_cannot(backend):
    case = BY_NAME["plain"]
    tensors = case.tensors(device=backend.device)

    def loss(image: torch.Tensor) -> torch.Tensor:
        return case.call(push_pull_conv2d, Tensors(image, tensors.weight, tensors.inhibition, tensors.bias)).sum()

    with pytest.raises(RuntimeError, match=r"autograd\.Function|functorch|setup_context"):
        torch.func.grad(loss)(tensors.input)


def test_backward_op_has_no_derivative(backend):
    args = forward_args(backend.device, vectors=True)
    out, push = backend.op("push_pull_conv2d")(*args)
    backward = backend.op("push_pull_conv2d_backward")
    grad_out = torch.ones_like(out).requires_grad_()
    found = backward(grad_out, *args[:4], push, *args[5:12], True, True, True, True)
    with pytest.raises(RuntimeError, match="differentiate push_pull_conv2d twice"):
        found[1].sum().backward()


def test_deepcopy_and_pickle(backend):
    torch.manual_seed(0)
    layer = PushPullConv2d(3, 6, 3, padding=1, avg_kernel_size=(3, 5), trainable_inhibition=True, device=backend.device)
    fixed = PushPullConv2d(3, 6, 3, inhibition=0.25, padding_mode="reflect", padding=2, keep_push=False)
    image = random((2, 3, 8, 8), 1, device=backend.device)
    for original in (layer, fixed.to(backend.device)):
        for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
            assert torch.equal(twin(image), original(image))
            assert repr(twin) == repr(original)
            with torch.no_grad():
                twin.weight.add_(1.0)
            assert not torch.equal(twin(image), original(image))


def test_functional_call(backend):
    torch.manual_seed(0)
    layer = PushPullConv2d(3, 6, 3, trainable_inhibition=True, device=backend.device)
    image = random((2, 3, 8, 8), 1, device=backend.device)
    other = {name: random(tuple(value.shape), 9, device=backend.device) for name, value in layer.named_parameters()}
    found = torch.func.functional_call(layer, other, (image,))
    wanted = push_pull_conv2d(image, other["weight"], other["inhibition"], other["bias"])
    assert torch.equal(found, wanted)
    assert not torch.equal(found, layer(image))


def test_reparametrised_weight(backend):
    torch.manual_seed(0)
    layer = PushPullConv2d(3, 6, 3, bias=False, device=backend.device)
    torch.nn.utils.parametrizations.weight_norm(layer)
    image = random((2, 3, 8, 8), 1, device=backend.device)
    layer(image).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    exact = reference.push_pull_conv2d(image.double(), layer.weight.double())
    assert_close_to_reference(layer(image), reference.push_pull_conv2d(image, layer.weight), exact)


def test_runs_in_the_namespace_of_its_backend(backend):
    # Otherwise tests "on simt" might pass on the CPU kernels.
    case = BY_NAME["plain"]
    seen = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "push_pull" in str(function):
                seen.append(str(function).split(".")[0])
            return function(*args, **(kwargs or {}))

    leaves = case.tensors(device=backend.device).leaves()
    with Calls():
        case.call(push_pull_conv2d, leaves).sum().backward()
    assert seen == [backend.namespace, backend.namespace]
