"""CAST inside torch: opcheck, compile, export, autocast, vmap, derivatives of derivatives."""

from __future__ import annotations

import pytest
import torch

from cast_support import make_tokens, random_padding
from sturdy.functional import CASTClusters, cast_affinity, cast_attention, cast_cluster
from support import dtype_id


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


SAMPLES = ["plain", "packed", "padded", "single", "no_sequences", "no_tokens"]


def sample(name, device, dtype=torch.float32):
    """Tokens, padding, single assignment."""
    sizes = {"no_sequences": {"batch": 0}, "no_tokens": {"tokens": 0}}.get(name, {})
    given = make_tokens(dtype=dtype, device=device, packed=name == "packed", **sizes)
    padding = random_padding(2, 21, device=device) if name == "padded" else None
    return given, padding, name == "single"


def clustered(backend, given, padding, single):
    affinity = backend.op("cast_affinity")(*given.all()[:2], given.surrogates, given.phi, padding, 0.0, False)
    return backend.op("cast_cluster")(affinity, padding, 0, single)[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_affinity(backend, name):
    given, padding, _ = sample(name, backend.device)
    leaves = given.leaves()
    args = (leaves.q, leaves.k, leaves.surrogates, leaves.phi, padding, 0.0, False)
    torch.library.opcheck(backend.op("cast_affinity"), args)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [0, 5])
def test_opcheck_cluster(backend, name, size):
    given, padding, single = sample(name, backend.device)
    affinity = backend.op("cast_affinity")(given.q, given.k, given.surrogates, given.phi, padding, 0.0, False)
    torch.library.opcheck(backend.op("cast_cluster"), (affinity, padding, 8 if single and size else size, single))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in SAMPLES), ("plain", torch.bfloat16), ("single", torch.float64)],
)
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "forget"])
def test_opcheck_attention(backend, name, dtype, keep):
    given, padding, single = sample(name, backend.device, dtype)
    index = clustered(backend, given, padding, single)
    tensors = given.leaves().all() if keep else given.all()
    args = (*tensors, index, padding, None, 0.0, 0.0, 0.0, 0.0, single, False, keep)
    torch.library.opcheck(backend.op("cast_attention"), args)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_backward(backend, name):
    given, padding, single = sample(name, backend.device)
    index = clustered(backend, given, padding, single)
    inputs = (*given.all(), index, padding, None)
    numbers = (0.0, 0.0, 0.0, 0.0, single, False)
    kept = backend.op("cast_attention")(*inputs, *numbers, True)
    args = (torch.rand_like(kept[0]), *inputs, *kept, *numbers)
    torch.library.opcheck(backend.op("cast_attention_backward"), args)


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
def test_compiles_without_a_break(backend, method):
    given = make_tokens(device=backend.device).leaves()

    def step(q, k, v, surrogates, phi):
        return cast_attention(q * 2, k, v, surrogates, phi, method=method).square().mean()

    expected = torch.autograd.grad(step(*given.all()), given.all())
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*given.all()), given.all())
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_compiles_with_dynamic_sizes(backend):
    compiled = torch.compile(
        lambda *tensors: cast_attention(*tensors, cluster_size=9), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for tokens in (21, 34, 13):
        given = make_tokens(tokens=tokens, device=backend.device)
        assert torch.equal(compiled(*given.all()), cast_attention(*given.all(), cluster_size=9))


def test_compiles_with_dropout(backend):
    given = make_tokens(device=backend.device)
    seed = torch.tensor([7], device=backend.device)
    compiled = torch.compile(
        lambda *tensors: cast_attention(*tensors, dropout=0.5, seed=seed), backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(*given.all()), cast_attention(*given.all(), dropout=0.5, seed=seed))


def test_exports(backend):
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, surrogates, phi):
            return cast_attention(q, k, v, surrogates, phi, method="sa_topk")

    given = make_tokens(device=backend.device)
    program = torch.export.export(Attention(), given.all())
    assert torch.equal(program.module()(*given.all()), Attention()(*given.all()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
def test_autocast_casts_tokens_and_surrogates(backend, dtype):
    given = make_tokens(device=backend.device)
    low = given.but(**{name: getattr(given, name).to(dtype) for name in ("q", "k", "v", "surrogates")})
    with torch.autocast(backend.device, dtype=dtype):
        found, clusters = cast_attention(*given.all(), return_clusters=True)
        affinity = cast_affinity(given.q, given.k, given.surrogates, given.phi)
    assert found.dtype == dtype and affinity.dtype == torch.float32
    expected, expected_clusters = cast_attention(*low.all(), return_clusters=True)
    assert torch.equal(found, expected) and torch.equal(clusters.index, expected_clusters.index)


def test_gradients_under_autocast_have_the_dtype_of_the_parameters(backend):
    given = make_tokens(device=backend.device).leaves()
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        out = cast_attention(*given.all())
    for tensor, grad in zip(given.all(), torch.autograd.grad(out.float().sum(), given.all()), strict=True):
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape


@pytest.mark.parametrize("in_dims", [(0, 0, 0, None, 0), (None, None, None, 0, None), (1, 0, 0, 0, 0)], ids=str)
def test_vmap(backend, in_dims):
    given = make_tokens(device=backend.device).all()
    mapped = [t if dim is None else torch.stack((t, t.flip(-1)), dim) for t, dim in zip(given, in_dims, strict=True)]
    out = torch.func.vmap(cast_attention, in_dims=in_dims)(*mapped)
    for i in range(2):
        one = [t if dim is None else t.select(dim, i) for t, dim in zip(mapped, in_dims, strict=True)]
        assert torch.equal(out[i], cast_attention(*one))


def test_batched_gradients(backend):
    given = make_tokens(batch=1, device=backend.device).leaves()
    out = cast_attention(*given.all())
    many = torch.rand((3, *out.shape), device=backend.device)
    together = torch.autograd.grad(out, given.all(), many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        apart = torch.autograd.grad(out, given.all(), many[i], retain_graph=True)
        assert all(torch.equal(a[i], b) for a, b in zip(together, apart, strict=True))


def test_no_second_derivative(backend):
    given = make_tokens(device=backend.device, dtype=torch.float64).leaves()
    grad = torch.autograd.grad(cast_attention(*given.all()).square().sum(), given.q, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="cast_attention can be differentiated once; backend='reference' can be"):
        grad.sum().backward()


def test_second_derivative_of_the_reference():
    given = make_tokens(tokens=7, dim=3, dtype=torch.float64)
    clusters = cast_attention(*given.all(), return_clusters=True, backend="reference")[1]

    def function(q, k, v, surrogates, phi):
        return cast_attention(q, k, v, surrogates, phi, clusters=clusters, backend="reference")

    assert torch.autograd.gradgradcheck(function, given.leaves().all())


def test_no_gradient_through_clusters(backend):
    given = make_tokens(device=backend.device).leaves()
    affinity = cast_affinity(given.q, given.k, given.surrogates, given.phi)
    assert not affinity.requires_grad
    clusters = cast_cluster(affinity, method="sa_topk")
    assert isinstance(clusters, CASTClusters) and not clusters.index.requires_grad


def test_a_gradient_of_one_number(backend):
    """The gradient of a sum is one number, expanded with strides of 0."""
    given = make_tokens(device=backend.device).leaves()
    out = cast_attention(*given.all())
    found = torch.autograd.grad(out.sum(), given.all(), retain_graph=True)
    expected = torch.autograd.grad(out, given.all(), torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
