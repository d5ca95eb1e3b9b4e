"""CASTAttention: ordinary attention where it should be, padding, short sequences, clusters, repeatability."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from reference import cast as reference
from sturdy.functional import cast_attention, cast_cluster
from sturdy.nn import CASTAttention, keep_clusters
from support import random

METHODS = ["topk", "sa_topk"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def make(backend, *sizes: int | None, dtype: torch.dtype = torch.float64, **options) -> CASTAttention:
    """A layer whose surrogates and gate are nothing special."""
    torch.manual_seed(0)
    layer = CASTAttention(*sizes, device=backend.device, dtype=dtype, **options)
    with torch.no_grad():
        layer.gate.weight.copy_(random(layer.gate.weight.shape, 11, dtype))
        for bias in (layer.in_proj_bias, layer.out_proj.bias):
            if bias is not None:
                bias.copy_(random(bias.shape, 12, dtype) / 4)
    return layer


def gradients(layer: nn.Module, out: Tensor, *inputs: Tensor, seed: int = 9) -> dict[str, Tensor]:
    """Of a weighted sum of ``out``, of the layer's parameters by name and of the inputs by their place."""
    names = [*dict(layer.named_parameters()), *map(str, range(len(inputs)))]
    leaves = [*layer.parameters(), *inputs]
    weights = random(tuple(out.shape), seed, out.dtype, out.device)
    found = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    return dict(zip(names, found, strict=True))


def assert_near(got: Tensor, wanted: Tensor, tolerance: float, what: str = "") -> None:
    assert got.shape == wanted.shape, what
    worst = (got.double() - wanted.double()).abs().max().item() if got.numel() else 0.0
    allowed = tolerance * max(1.0, wanted.double().abs().max().item() if got.numel() else 0.0)
    assert worst <= allowed, f"{what}: off by {worst:.1e}, allowed {allowed:.1e}"  # a NaN fails too


# ---- ordinary attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("clusters", "method"), [(1, "topk"), (1, "sa_topk"), (7, "topk")])
def test_clusters_of_all_tokens_are_ordinary_attention(backend, clusters, method, dtype):
    layer = make(backend, 16, 2, clusters, 13, method=method, dtype=dtype, full_attention_below=0)
    x = random((2, 13, 16), 1, dtype, backend.device).requires_grad_()
    out = layer(x)
    found = gradients(layer, out, x)
    plain = nn.MultiheadAttention(16, 2, batch_first=True, device=backend.device, dtype=torch.float64)
    plain.load_state_dict({k: v.double() for k, v in layer.state_dict().items()}, strict=False)
    exact_x = x.detach().double().requires_grad_()
    exact, _ = plain(exact_x, exact_x, exact_x, need_weights=False)
    wanted = gradients(plain, exact, exact_x)
    assert_near(out, exact, TOLERANCE[dtype], "out")
    for name, gradient in wanted.items():
        assert_near(found[name], gradient, 4 * TOLERANCE[dtype], name)
    for name in ("surrogates", "gate.weight", "gate.bias"):
        # Each cluster has the same to offer, so that their mixture does not matter.
        assert_near(found[name], torch.zeros_like(found[name]), 4 * TOLERANCE[dtype], name)


@pytest.mark.parametrize(
    ("sizes", "options", "tokens", "full"),
    [
        ((4, 8), {}, 8, True),
        ((4, 8), {}, 9, False),
        ((4, None), {}, 3, True),
        ((4, None), {}, 4, False),
        ((4, 2), {}, 3, True),
        ((4, 2), {"full_attention_below": 0}, 3, False),
        ((4, 2), {"full_attention_below": 11}, 11, True),
        ((4, 2), {"full_attention_below": 11}, 12, False),
        ((4, 8), {"method": "sa_topk"}, 8, True),
    ],
)
def test_where_attention_is_full(backend, sizes, options, tokens, full):
    layer = make(backend, 8, 2, *sizes, **options)
    x = random((2, tokens, 8), 1, torch.float64, backend.device)
    out, clusters = layer(x, return_clusters=True)
    assert (clusters is None) == full
    plain = nn.MultiheadAttention(8, 2, batch_first=True, device=backend.device, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict(), strict=False)
    exact, _ = plain(x, x, x, need_weights=False)
    assert torch.allclose(out, exact, rtol=1e-12, atol=1e-12) == full
    assert layer(x).equal(out)


def test_full_attention_gives_zero_gradients_to_what_it_does_not_use():
    layer = CASTAttention(8, 2, 4, 8)
    layer(torch.randn(2, 5, 8)).sum().backward()
    for parameter in (layer.surrogates, layer.gate.weight, layer.gate.bias):
        assert parameter.grad is not None and not parameter.grad.any()
    assert layer.in_proj_weight.grad.any()


def test_full_attention_with_padding_and_twice_differentiable():
    layer = CASTAttention(8, 2, 4, 8, backend="reference", dtype=torch.float64)
    x = random((3, 6, 8), 1, torch.float64)
    padding = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [1] * 6]).bool()
    out = layer(x, key_padding_mask=padding)
    assert torch.equal(out[2], layer.out_proj.bias.expand(6, 8))
    short = layer(x[1:2, [0, 1, 3]])
    torch.testing.assert_close(out[1:2, [0, 1, 3]], short, rtol=1e-12, atol=1e-12)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: layer(t, key_padding_mask=padding), (x,))


# ---- what the op is known to do --------------------------------------------------------------------------------------


def tensors(backend, batch=2, heads=2, tokens=15, dim=4, clusters=3, dtype=torch.float64):
    shapes = [(batch, heads, tokens, dim)] * 3 + [(heads, clusters, dim), (batch, tokens)]
    return [random(shape, 20 + i, dtype, backend.device) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 4, 5])
def test_constant_values_stay(backend, method, size):
    # Rows of the result are convex combinations of rows of v, for tokens in no cluster and in several too.
    clusters = 15 if size == 1 else 4
    q, k, v, surrogates, phi = tensors(backend, clusters=clusters)
    v = v[:, :, :1].expand_as(v)
    out, found = cast_attention(q, k, v, surrogates, phi, size, method=method, return_clusters=True)
    torch.testing.assert_close(out, v.contiguous(), rtol=1e-13, atol=1e-13)
    if method == "topk":
        memberships = torch.zeros(2, 15).scatter_add(1, found.index.flatten(1).long().cpu(), torch.ones(2, 15 * 4))
        assert size > 1 or (memberships == 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_order_of_tokens_and_of_clusters_does_not_matter(backend, method):
    q, k, v, surrogates, phi = tensors(backend)
    out = cast_attention(q, k, v, surrogates, phi, 5, method=method)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1)).to(q.device)
    moved = cast_attention(*(t[:, :, order] for t in (q, k, v)), surrogates, phi[:, order], 5, method=method)
    torch.testing.assert_close(moved, out[:, :, order], rtol=1e-13, atol=1e-13)
    relabelled = cast_attention(q, k, v, surrogates[:, [2, 0, 1]], phi, 5, method=method)
    torch.testing.assert_close(relabelled, out, rtol=1e-13, atol=1e-13)


def test_token_in_no_cluster(backend):
    q, k, v, surrogates, phi = tensors(backend, batch=1, tokens=12)
    leaves = [t.requires_grad_() for t in (q, k, v, surrogates, phi)]
    out, clusters = cast_attention(*leaves, 2, return_clusters=True)
    inside = clusters.index.flatten().unique().tolist()
    outside = [i for i in range(12) if i not in inside]
    assert outside
    dq, dk, dv, _, dphi = torch.autograd.grad(out.square().sum(), leaves)
    assert not dk[:, :, outside].any() and not dv[:, :, outside].any()
    assert (dq[:, :, outside] != 0).all() and (dphi[:, outside] != 0).all()
    assert dk[:, :, inside].any() and dv[:, :, inside].any()


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns(backend, method):
    layer = make(backend, 16, 2, 4, 5, method=method)
    x = random((2, 20, 16), 1, torch.float64, backend.device)
    for name, gradient in gradients(layer, layer(x)).items():
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("method", METHODS)
def test_equals_its_parts(backend, method):
    options = {"scale": 0.3, "tau_q": 0.7, "tau_k": 1.9, "tau_g": 2.5}
    layer = make(backend, 12, 3, 4, 6, method=method, **options)
    x = random((2, 21, 12), 1, torch.float64, backend.device)
    out, clusters = layer(x, return_clusters=True)
    q, k, v = (
        part.view(2, 21, 3, 4).transpose(1, 2)
        for part in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, 2)
    )
    surrogates = layer.surrogates.view(4, 3, 4).transpose(0, 1)
    phi = (x @ layer.gate.weight.T + layer.gate.bias).squeeze(2)
    exact = [t.detach().cpu() for t in (q, k, v, surrogates, phi)]
    scores = reference.affinity(*exact[:2], *exact[3:], tau_g=2.5)
    chosen = (reference.top_k if method == "topk" else reference.sa_top_k)(scores, None, 6)
    assert torch.equal(clusters.index.cpu(), chosen.index)
    mixed = reference.attention(*exact, chosen.index, tau=1 / 0.3, tau_q=0.7, tau_k=1.9).out
    wanted = layer.out_proj(mixed.to(x.device).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_reference_backend_is_the_same(backend, method):
    layer = make(backend, 16, 2, 4, 5, method=method, dropout=0.25)
    other = copy.deepcopy(layer)
    other.backend = "reference"
    x = random((2, 20, 16), 1, torch.float64, backend.device).requires_grad_()
    found = []
    for each in (layer, other):
        torch.manual_seed(5)  # the same weights are dropped
        out = each(x)
        found.append((out, gradients(each, out, x)))
    assert_near(found[0][0], found[1][0], 1e-12)
    for name, gradient in found[1][1].items():
        assert_near(found[0][1][name], gradient, 1e-11, name)
    torch.manual_seed(6)
    assert not torch.allclose(layer(x), found[0][0])


# ---- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [None, 30])
def test_padding_changes_nothing(backend, method, size):
    tokens, padded = (100, 137) if backend.name != "simt" else (20, 29)
    size = size and size * tokens // 100
    layer = make(backend, 8, 2, 5, size, method=method)
    if method == "topk" and size is None:
        layer.cluster_size = tokens // 5  # else it follows the padded length
    x = random((2, tokens, 8), 1, torch.float64, backend.device)
    right = torch.full((2, padded, 8), math.nan, dtype=torch.float64, device=x.device)
    right[:, :tokens] = x
    right[1, tokens:] = math.inf
    mask = torch.arange(padded, device=x.device).expand(2, padded) >= tokens
    assert_same_without(layer, x, right, mask, torch.arange(tokens))
    order = torch.randperm(padded, generator=torch.Generator().manual_seed(2))
    places = order[:tokens].sort().values.to(x.device)
    inside = torch.full_like(right, math.nan)
    inside[:, places] = x
    mask = torch.ones_like(mask).index_fill(1, places, False)
    assert_same_without(layer, x, inside, mask, places)


def assert_same_without(layer: CASTAttention, x: Tensor, padded: Tensor, mask: Tensor, places: Tensor) -> None:
    x, padded = x.detach().requires_grad_(), padded.detach().requires_grad_()
    alone, with_padding = layer(x), layer(padded, key_padding_mask=mask)
    torch.testing.assert_close(with_padding[:, places], alone, rtol=1e-12, atol=1e-12)
    nothing = with_padding[mask]
    assert torch.equal(nothing, layer.out_proj.bias.expand_as(nothing))
    weights = random(tuple(alone.shape), 3, torch.float64, x.device)
    leaves = [layer.in_proj_weight, layer.in_proj_bias, layer.surrogates, layer.gate.weight]
    wanted = torch.autograd.grad((alone * weights).sum(), [x, *leaves])
    found = torch.autograd.grad((with_padding[:, places] * weights).sum(), [padded, *leaves])
    assert not found[0][mask].any()
    torch.testing.assert_close(found[0][:, places], wanted[0], rtol=1e-11, atol=1e-11)
    for got, expected in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_ways_to_say_padding(backend, method):
    layer = make(backend, 8, 2, 3, 5, method=method)
    x = random((3, 14, 8), 1, torch.float64, backend.device)
    lengths = torch.tensor([14, 6, 0])
    mask = torch.arange(14) >= lengths[:, None]
    minus_infinity = torch.zeros(3, 14).masked_fill(mask, -math.inf)
    out = layer(x, key_padding_mask=mask.to(x.device))
    for way in (
        {"key_padding_mask": minus_infinity.to(x.device)},
        {"key_padding_mask": minus_infinity.double().to(x.device)},
        {"lengths": lengths.to(x.device)},
        {"lengths": lengths.int().to(x.device)},
    ):
        assert torch.equal(layer(x, **way), out)
    assert torch.equal(out[2], layer.out_proj.bias.expand(14, 8))
    one = layer(x[1], key_padding_mask=mask[1].to(x.device))
    assert one.shape == (14, 8)
    torch.testing.assert_close(one, out[1], rtol=1e-13, atol=1e-13)
    assert torch.equal(layer(x[1], lengths=torch.tensor(6)), one)
    assert torch.equal(layer(x[1], lengths=torch.tensor([6])), one)
    everything = torch.zeros(3, 14, dtype=torch.bool, device=x.device)
    assert torch.equal(layer(x, key_padding_mask=everything), layer(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("full_attention_below", [None, 0])
@pytest.mark.parametrize(
    ("shape", "valid"),
    [((2, 9, 8), 0), ((2, 9, 8), 1), ((2, 3, 8), 3), ((2, 1, 8), 1), ((0, 9, 8), 9), ((2, 0, 8), 0), ((0, 8), 0)],
)
def test_few_tokens(backend, method, full_attention_below, shape, valid):
    layer = make(backend, 8, 2, 5, 2, method=method, full_attention_below=full_attention_below)
    x = random(shape, 1, torch.float64, backend.device).requires_grad_()
    places = torch.arange(shape[-2], device=x.device)
    mask = (places >= valid).expand(shape[:-1])
    out = layer(x, key_padding_mask=mask)
    assert out.shape == x.shape
    assert out.isfinite().all()
    found = gradients(layer, out, x)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    assert not found["0"][mask].any()
    if valid == 0:
        assert torch.equal(out, layer.out_proj.bias.expand_as(out))
        assert not any(gradient.any() for name, gradient in found.items() if name != "out_proj.bias")


# ---- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_given_clusters(backend, method):
    layer = make(backend, 8, 2, 3, 5, method=method)
    x = random((2, 14, 8), 1, torch.float64, backend.device)
    out, clusters = layer(x, return_clusters=True)
    assert clusters.method == method
    assert torch.equal(layer(x, clusters=clusters), out)
    other = random((2, 14, 8), 2, torch.float64, backend.device)
    frozen, same = layer(other, clusters=clusters, return_clusters=True)
    assert same.index is clusters.index
    assert not torch.allclose(frozen, layer(other))
    # Ordinary attention is not what was asked for, however short the sequence is.
    layer.full_attention_below = 100
    assert torch.equal(layer(x, clusters=clusters), out)


def test_gradients_hold_clusters_fixed(backend):
    for method, tokens, size in (("topk", 11, 4), ("sa_topk", 11, None), ("topk", 5, 2)):
        layer = make(backend, 6, 2, 4, size, method=method, full_attention_below=0)
        x = random((2, tokens, 6), 1, torch.float64, backend.device)
        clusters = layer(x, return_clusters=True)[1]
        x.requires_grad_()
        names = ["surrogates", "gate.weight", "in_proj_weight"]

        def call(x, *parameters, layer=layer, clusters=clusters, names=names):
            own = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(layer, own, (x,), {"clusters": clusters})

        assert torch.autograd.gradcheck(call, (x, *(layer.get_parameter(name) for name in names)), fast_mode=True)


def test_equal_affinities(backend):
    # Without anything to choose by, tokens are taken in their order.
    for size, wanted in ((None, [[0, 1, 2], [3, 4, 5], [6, 7, -1]]), (4, [[0, 1, 2, 3], [4, 5, 6, 7], [-1] * 4])):
        flat = torch.zeros(1, 8, 3, device=backend.device)
        assert cast_cluster(flat, size, "sa_topk").index[0].tolist() == wanted
    layer = make(backend, 6, 2, 3, 4)
    nn.init.zeros_(layer.surrogates)
    _, clusters = layer(random((1, 9, 6), 1, torch.float64, backend.device), return_clusters=True)
    assert clusters.index[0].tolist() == [[0, 1, 2, 3]] * 3


# ---- repeatability ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_runs_are_the_same_bits_checkpointed_or_not(backend, method):
    layer = make(backend, 16, 2, 4, 5, method=method, dropout=0.2, dtype=torch.float32)
    x = random((2, 20, 16), 1, torch.float32, backend.device).requires_grad_()
    ways = {
        "once": lambda: layer(x),
        "again": lambda: layer(x),
        "reentrant": lambda: checkpoint(layer, x, use_reentrant=True),
        "checkpointed": lambda: checkpoint(layer, x, use_reentrant=False),
        "keep_clusters": lambda: checkpoint(layer, x, use_reentrant=False, context_fn=keep_clusters),
    }
    found = {}
    for name, run in ways.items():
        torch.manual_seed(3)
        layer.zero_grad()
        x.grad = None
        out = run()
        out.square().sum().backward()
        found[name] = [out.detach(), x.grad, *(p.grad for p in layer.parameters())]
    for name, results in found.items():
        assert all(torch.equal(a, b) for a, b in zip(results, found["once"], strict=True)), name


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how often each op runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1]
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("options", "chosen"), [({}, 2), ({"context_fn": keep_clusters}, 1)], ids=["default", "kept"])
def test_how_often_checkpointing_chooses(backend, options, chosen):
    layer = make(backend, 16, 2, 4, 5, dtype=torch.float32)
    x = random((2, 20, 16), 1, torch.float32, backend.device).requires_grad_()
    with Calls() as calls:
        checkpoint(layer, x, use_reentrant=False, **options).sum().backward()
    assert calls.counts["cast_cluster"] == chosen
    assert calls.counts["cast_attention"] == 2


def test_kept_clusters_are_those_of_the_first_pass(backend):
    """Even if recomputation comes from other numbers."""
    layer = make(backend, 16, 2, 4, 5, dtype=torch.float64)
    x = random((1, 20, 16), 1, torch.float64, backend.device).requires_grad_()
    frozen = layer(x, return_clusters=True)[1]
    drift = [0.0]

    def region(x: Tensor) -> Tensor:
        drift[0] += 1.0  # something before the layer that is not repeatable
        return layer(x + drift[0] * random((1, 20, 16), 7, torch.float64, x.device))

    moved = x + 2.0 * random((1, 20, 16), 7, torch.float64, x.device)
    first = layer(x + random((1, 20, 16), 7, torch.float64, x.device), return_clusters=True)[1]
    second = layer(moved, return_clusters=True)[1]
    assert not torch.equal(first.index, second.index) and not torch.equal(first.index, frozen.index)
    out = checkpoint(region, x, use_reentrant=False, context_fn=keep_clusters)
    (found,) = torch.autograd.grad(out.sum(), x)
    (wanted,) = torch.autograd.grad(layer(moved, clusters=first).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


# ---- as a module -----------------------------------------------------------------------------------------------------


def test_dropout_is_for_training_alone(backend):
    layer = make(backend, 16, 2, 4, 5, dropout=0.5)
    x = random((2, 20, 16), 1, torch.float64, backend.device)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    quiet = copy.deepcopy(layer).eval()
    assert torch.equal(quiet(x), quiet(x))
    layer.dropout = 0.0
    assert torch.equal(layer(x), quiet(x))


def test_state_dict_of_multihead_attention():
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    layer = CASTAttention(8, 2, 3, 4)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert set(plain.state_dict()) < set(before)
    assert layer.load_state_dict(plain.state_dict()) == ([], [])
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, plain.state_dict().get(name, before[name])), name
    nested = nn.Sequential(nn.Linear(8, 8), CASTAttention(8, 2, 3, 4))
    nested.load_state_dict(nn.Sequential(nn.Linear(8, 8), plain).state_dict())
    assert torch.equal(nested[1].in_proj_weight, plain.in_proj_weight)
    # What is cut short is not taken for one of those.
    short = {name: tensor for name, tensor in layer.state_dict().items() if name != "surrogates"}
    with pytest.raises(RuntimeError, match="surrogates"):
        layer.load_state_dict(short)
    assert layer.load_state_dict(short, strict=False).missing_keys == ["surrogates"]
    again = CASTAttention(8, 2, 3, 4)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(2, 13, 8)
    assert torch.equal(again(x), layer(x))


def test_from_multihead_attention():
    plain = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True, dtype=torch.float64).eval()
    layer = CASTAttention.from_multihead_attention(plain, 3, 30, full_attention_below=0)
    assert layer.in_proj_weight is plain.in_proj_weight and layer.in_proj_bias is plain.in_proj_bias
    assert layer.out_proj.weight is plain.out_proj.weight and layer.out_proj.bias is plain.out_proj.bias
    assert (layer.dropout, layer.training, layer.surrogates.dtype) == (0.1, False, torch.float64)
    x = random((2, 13, 8), 1, torch.float64)
    torch.testing.assert_close(layer(x), plain(x, x, x)[0], rtol=1e-12, atol=1e-12)
    without = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    layer = CASTAttention.from_multihead_attention(without, 3, dropout=0.3)
    assert layer.in_proj_bias is None and layer.out_proj.bias is None and layer.dropout == 0.3
    layer(torch.randn(2, 13, 8))
    refused = {
        "batch_first": nn.MultiheadAttention(8, 2),
        "width": nn.MultiheadAttention(8, 2, kdim=4, batch_first=True),
        "add_bias_kv": nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True),
        "add_zero_attn": nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True),
    }
    for word, module in refused.items():
        with pytest.raises(ValueError, match=word):
            CASTAttention.from_multihead_attention(module, 3)
    with pytest.raises(TypeError, match="Linear"):
        CASTAttention.from_multihead_attention(nn.Linear(8, 8), 3)


def test_new_parameters():
    torch.manual_seed(0)
    layer = CASTAttention(64, 4, 32)
    assert layer.surrogates.shape == (32, 64)
    assert abs(layer.surrogates.mean()) < 0.1 and abs(layer.surrogates.std() - 1) < 0.1
    assert not any(t.any() for t in (layer.gate.weight, layer.gate.bias, layer.in_proj_bias, layer.out_proj.bias))
    bound = math.sqrt(6 / 256)
    assert 0.9 * bound < layer.in_proj_weight.abs().max() <= bound
    plain = sum(p.numel() for p in nn.MultiheadAttention(64, 4).parameters())
    assert sum(p.numel() for p in layer.parameters()) == plain + 32 * 64 + 64 + 1
    assert CASTAttention(8, 2, 3, bias=False).in_proj_bias is None
    with torch.device("meta"):
        on_meta = CASTAttention(8, 2, 3, 4)
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    assert on_meta(torch.empty(2, 9, 8, device="meta")).shape == (2, 9, 8)


def test_copies_and_pickles():
    layer = CASTAttention(8, 2, 3, 4, method="sa_topk", tau_g=2.0, dtype=torch.float64).eval()
    x = random((2, 12, 8), 1, torch.float64)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert other.surrogates is not layer.surrogates
    assert repr(layer) == repr(copy.deepcopy(layer))
    assert "8, 2, num_clusters=3, cluster_size=4, method='sa_topk', tau_g=2" in repr(layer)
    long = repr(CASTAttention(8, 2, 3, dropout=0.1, bias=False, full_attention_below=7, backend="reference"))
    assert "full_attention_below=7, dropout=0.1, bias=False, backend='reference'" in long


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast(backend, low):
    layer = make(backend, 16, 2, 4, 5, dtype=torch.float32)
    x = random((2, 20, 16), 1, torch.float32, backend.device)
    exact = copy.deepcopy(layer).double()
    clusters = exact(x.double(), return_clusters=True)[1]
    wanted = exact(x.double(), clusters=clusters)
    with torch.autocast(backend.device, dtype=low):
        for tokens in (x, x.to(low)):
            out = layer(tokens, clusters=clusters)
            assert out.dtype == low
            assert_near(out, wanted, 0.05)
        loss = layer(x).float().square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    half = copy.deepcopy(layer).to(low)
    assert_near(half(x.to(low), clusters=clusters), wanted, 0.05)
    assert half(x.to(low)).dtype == low


def test_operations_are_counted(backend):
    layer = make(backend, 16, 2, 4, 5, dtype=torch.float32)
    x = random((3, 20, 16), 1, torch.float32, backend.device)
    with FlopCounterMode(display=False) as counter:
        out = layer(x)
    projections = 2 * 3 * 20 * 16 * (4 * 16 + 1)
    affinity = 2 * 2 * 3 * 20 * 16 * 4
    attention = 2 * 2 * 3 * 16 * (4 * 5 * 5 + 4 * 5 + 20 * 4)
    assert counter.get_total_flops() == projections + affinity + attention
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_flop_counts()["Global"][backend_packet(backend)] == attention * 5 // 2


def backend_packet(backend):
    return getattr(torch.ops, backend.namespace).cast_attention_backward
