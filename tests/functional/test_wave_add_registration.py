"""wave_add and torch: schema, fakes, tracing, export, vmap, autocast."""

from __future__ import annotations

import pytest
import torch

from sturdy.functional import wave_add
from support import random, with_layout


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(device: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> list[torch.Tensor]:
    image = with_layout(random((2, 3, 6, 9), 1, torch.float32, device).to(dtype), layout)
    return [
        image,
        random((2, 3, 2, 2), 2, torch.float64, device),
        *(random((2, 3, 2), i, torch.float64, device) for i in (3, 4)),
    ]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("clip", [[], [0.0, 1.0]], ids=str)
def test_opcheck(backend, layout, clip):
    image, frequency, amplitude, phase = arguments(backend.device, layout=layout)
    leaves = (image.requires_grad_(), frequency, amplitude.requires_grad_(), phase)
    torch.library.opcheck(backend.op("wave_add"), (*leaves, clip, None))
    grad_out = random((2, 3, 6, 9), 7, device=backend.device)
    for wanted in ((True, True), (False, True), (True, False)):
        detached = [leaf.detach() for leaf in leaves]
        kept = detached[0] if clip else None
        torch.library.opcheck(backend.op("wave_add_backward"), (grad_out, kept, *detached[1:], clip, *wanted))


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float64], ids=str)
def test_opcheck_of_bytes(backend, dtype):
    image = (100 * random((2, 3, 6, 9), 1)).byte().to(backend.device)
    torch.library.opcheck(backend.op("wave_add"), (image, *arguments(backend.device)[1:], [0.0, 1.0], dtype))


def test_compile(backend):
    def function(x, f, a, p):
        return 2 * wave_add(x + 1, f, a, p, clip=(0, 1))

    leaves = arguments(backend.device)
    leaves[0].requires_grad_(), leaves[2].requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, wanted in ((compiled(*leaves), function(*leaves)),):
        assert torch.equal(got, wanted)
        found = torch.autograd.grad(got.square().sum(), [leaves[0], leaves[2]])
        expected = torch.autograd.grad(wanted.square().sum(), [leaves[0], leaves[2]])
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
def test_export(backend):
    class Augment(torch.nn.Module):
        def forward(self, x, f, a, p):
            return wave_add(x, f, a, p, clip=(0, 1))

    leaves = arguments("cpu")
    batch = torch.export.Dim("batch", min=2)
    shapes = {name: {0: batch} for name in "xfap"}
    program = torch.export.export(Augment(), tuple(leaves), dynamic_shapes=shapes)
    more = [torch.cat([leaf, leaf, leaf]) for leaf in leaves]
    assert torch.equal(program.module()(*more), wave_add(*more, clip=(0, 1)))


def test_vmap(backend):
    image, frequency, amplitude, phase = arguments(backend.device)
    strengths = torch.stack([amplitude, 2 * amplitude, 0 * amplitude])
    found = torch.vmap(lambda a: wave_add(image, frequency, a, phase))(strengths)
    assert torch.equal(found, torch.stack([wave_add(image, frequency, a, phase) for a in strengths]))


def test_batched_gradients(backend):
    image, frequency, amplitude, phase = arguments(backend.device)
    amplitude.requires_grad_()
    out = wave_add(image, frequency, amplitude, phase, clip=(-1, 1))
    grads = random((3, *out.shape), 8, device=backend.device)
    (found,) = torch.autograd.grad(out, amplitude, grads, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        assert torch.equal(found[i], torch.autograd.grad(out, amplitude, grads[i], retain_graph=True)[0])


def test_autocast_changes_no_dtype(backend):
    leaves = arguments(backend.device)
    expected = wave_add(*leaves)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        out = wave_add(*leaves)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
