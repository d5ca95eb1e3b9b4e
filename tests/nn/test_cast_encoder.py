"""CAST's encoder layers, stacks of them, their normalisations, and conversion of torch's."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sturdy
from sturdy.nn import (
    CASTEncoder,
    CASTEncoderLayer,
    MaskedBatchNorm,
    ScaleNorm,
    convert_encoder_layers,
)
from support import random

NORMS = ["layer", "scale", "batch"]


def block(backend, *, size: int | None = 4, dtype: torch.dtype = torch.float64, **options) -> CASTEncoderLayer:
    torch.manual_seed(0)
    return CASTEncoderLayer(8, 2, 3, size, 16, 0.0, device=backend.device, dtype=dtype, **options)


def some_padding(device: str, tokens: int = 11) -> Tensor:
    mask = torch.arange(tokens) >= torch.tensor([tokens, 6, 0])[:, None]
    mask[0, 2] = True
    return mask.to(device)


# ---- the block -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "scale"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_block(backend, norm, norm_first):
    layer = block(backend, norm=norm, norm_first=norm_first, activation="relu", bias=False)
    x = random((3, 11, 8), 1, torch.float64, backend.device)

    def feed_forward(tokens: Tensor) -> Tensor:
        return torch.relu(tokens @ layer.linear1.weight.T) @ layer.linear2.weight.T

    if norm_first:
        wanted = x + layer.self_attn(layer.norm1(x))
        wanted = wanted + feed_forward(layer.norm2(wanted))
    else:
        wanted = layer.norm1(x + layer.self_attn(x))
        wanted = layer.norm2(wanted + feed_forward(wanted))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm_first", [True, False])
def test_with_clusters_of_everything_it_is_torchs_layer(backend, norm_first):
    plain = nn.TransformerEncoderLayer(
        *(8, 2, 16, 0.0),
        **dict(activation=F.gelu, batch_first=True, norm_first=norm_first, device=backend.device, dtype=torch.float64),
    )
    ours = block(backend, size=11, norm_first=norm_first, full_attention_below=0)
    assert ours.load_state_dict(plain.state_dict()) == ([], [])
    x = random((2, 11, 8), 1, torch.float64, backend.device)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("method", ["topk", "sa_topk"])
def test_what_padding_holds_reaches_nothing(backend, norm, norm_first, method):
    encoder = CASTEncoder(block(backend, norm=norm, norm_first=norm_first, method=method), 2, ScaleNorm().double())
    encoder.to(backend.device)
    mask = some_padding(backend.device)
    x = random((3, 11, 8), 1, torch.float64, backend.device)
    weights = random((3, 11, 8), 2, torch.float64, backend.device).masked_fill(mask[..., None], 0)
    found = []
    for fill in (0.0, math.nan, math.inf, 1e30):
        twin = copy.deepcopy(encoder)
        tokens = x.masked_fill(mask[..., None], fill).requires_grad_()
        out = twin(tokens, src_key_padding_mask=mask)
        assert out.isfinite().all()
        (out * weights).sum().backward()
        assert not tokens.grad[mask].any()
        buffers = [buffer.double() for buffer in twin.buffers()]
        found.append([out.detach(), tokens.grad, *(p.grad for p in twin.parameters()), *buffers])
    for results in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results, found[0], strict=True))
    assert all(result.isfinite().all() for result in found[0])


def test_shapes_and_modes(backend):
    layer = block(backend, norm="batch").eval()
    x = random((2, 11, 8), 1, torch.float64, backend.device)
    out, clusters = layer(x, return_clusters=True)
    assert clusters.index.shape == (2, 3, 4)
    torch.testing.assert_close(layer(x[0]), out[0], rtol=1e-13, atol=1e-13)
    mask = some_padding(backend.device)[1]
    torch.testing.assert_close(
        layer(x[0], src_key_padding_mask=mask), layer(x[:1], src_key_padding_mask=mask[None])[0], rtol=0, atol=1e-13
    )
    assert torch.equal(layer(x, clusters=clusters), out)
    assert layer(x[:, :0]).shape == (2, 0, 8)
    assert layer(x[:0]).shape == (0, 11, 8)
    assert "norm_first=True, activation=gelu" in repr(layer)


def test_dropout_in_training(backend):
    layer = CASTEncoderLayer(8, 2, 3, 4, 16, 0.5, attention_dropout=0.25, device=backend.device)
    assert layer.self_attn.dropout == 0.25 and layer.dropout1.p == layer.dropout2.p == layer.dropout.p == 0.5
    x = torch.randn(2, 11, 8, device=backend.device)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# ---- stacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_inside_torchs_encoder(backend, training):
    layer = block(backend)
    torchs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
    torchs.to(backend.device, torch.float64).train(training)
    ours = CASTEncoder(layer, 2, nn.LayerNorm(8)).to(backend.device, torch.float64).train(training)
    assert ours.load_state_dict(torchs.state_dict()) == ([], [])
    x = random((3, 11, 8), 1, torch.float64, backend.device)
    mask = some_padding(backend.device)
    with torch.set_grad_enabled(training):
        for padding in (None, mask):
            assert torch.equal(torchs(x, src_key_padding_mask=padding), ours(x, src_key_padding_mask=padding))
        assert torch.equal(torchs(x[0]), ours(x[0]))
    with pytest.raises(NotImplementedError, match="causal"):
        torchs(x, mask=nn.Transformer.generate_square_subsequent_mask(11, backend.device, torch.float64))


def test_layers_of_an_encoder_are_copies(backend):
    layer = block(backend)
    encoder = CASTEncoder(layer, 3)
    for member in encoder.layers:
        assert member is not layer
        assert torch.equal(member.self_attn.surrogates, layer.self_attn.surrogates)
    with torch.no_grad():
        encoder.layers[0].self_attn.surrogates.zero_()
    assert encoder.layers[1].self_attn.surrogates.any() and layer.self_attn.surrogates.any()


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
def test_sharing_clusters(backend, method):
    apart = CASTEncoder(block(backend, method=method), 3)
    with torch.no_grad():
        for number, layer in enumerate(apart.layers):
            layer.self_attn.surrogates.copy_(random((3, 8), 30 + number))
    shared = copy.deepcopy(apart)
    shared.share_clusters = True
    x = random((2, 11, 8), 1, torch.float64, backend.device)
    out, clusters = apart(x, return_clusters=True)
    assert torch.equal(apart(x), out)
    assert len({tuple(found.index.flatten().tolist()) for found in clusters}) > 1
    out_shared, clusters_shared = shared(x, return_clusters=True)
    assert torch.equal(clusters_shared[0].index, clusters[0].index)
    assert all(found.index is clusters_shared[0].index for found in clusters_shared)
    assert not torch.allclose(out, out_shared)
    out_shared.sum().backward()
    assert all(layer.self_attn.surrogates.grad.any() for layer in shared.layers)
    assert "share_clusters=True" in repr(shared) and "share_clusters" not in repr(apart)
    short, nothing = shared(x[:, :2], return_clusters=True)
    assert nothing == [None] * 3
    assert torch.equal(short, apart(x[:, :2]))


# ---- normalisations --------------------------------------------------------------------------------------------------


def test_scale_norm():
    norm = ScaleNorm(eps=1e-3).double()
    x = random((2, 5, 7), 1, torch.float64).requires_grad_()
    with torch.no_grad():
        norm.weight.fill_(1.7)
    wanted = 1.7 * x / (x.square().sum(-1, keepdim=True) / 7 + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), wanted, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(norm, (x,))
    norm(x).sum().backward()
    assert norm.weight.grad.shape == () and norm.weight.grad != 0
    assert [name for name, _ in ScaleNorm().named_parameters()] == ["weight"]
    assert ScaleNorm().weight == 1 and ScaleNorm().eps == 1e-6 and "eps=1e-06" in repr(ScaleNorm())
    zeros = ScaleNorm()(torch.zeros(2, 3))
    assert torch.equal(zeros, torch.zeros(2, 3))
    large = torch.full((1, 64), 3e4, dtype=torch.float16)  # whose squares overflow
    torch.testing.assert_close(ScaleNorm()(large), torch.ones_like(large))


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("padded", [False, True])
def test_masked_batch_norm_is_batch_norm_of_the_tokens(options, padded):
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(5, **options).double()
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    ours = MaskedBatchNorm(5, **options).double()
    assert ours.load_state_dict(plain.state_dict()) == ([], [])
    mask = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.4 if padded else torch.zeros(3, 9).bool()
    for step in range(3):
        x = random((3, 9, 5), step, torch.float64).requires_grad_()
        twin = x.detach()[~mask].requires_grad_()
        out = ours(x.masked_fill(mask[..., None], 7.0), mask if padded else None)
        wanted = plain(twin)
        torch.testing.assert_close(out[~mask], wanted, rtol=1e-12, atol=1e-12)
        weights = random(tuple(wanted.shape), 50 + step, torch.float64)
        (out[~mask] * weights).sum().backward()
        (wanted * weights).sum().backward()
        torch.testing.assert_close(x.grad[~mask], twin.grad, rtol=1e-11, atol=1e-11)
        for name, buffer in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=1e-12, atol=1e-12)
    ours.eval(), plain.eval()
    if plain.track_running_stats:
        torch.testing.assert_close(ours(x, mask), plain(x.flatten(0, 1)).view(x.shape), rtol=1e-12, atol=1e-12)
    if padded:
        ours.train()
        assert torch.equal(ours(x[0], mask[0]), ours(x[:1], mask[:1])[0])


def test_masked_batch_norm_of_nothing():
    norm = MaskedBatchNorm(5)
    before = copy.deepcopy(norm.state_dict())
    out = norm(torch.randn(2, 3, 5), torch.ones(2, 3).bool())
    assert torch.equal(out, torch.zeros(2, 3, 5))
    assert torch.equal(norm.running_mean, before["running_mean"]) and torch.equal(
        norm.running_var, before["running_var"]
    )
    assert norm(torch.randn(0, 3, 5)).shape == (0, 3, 5)
    one = torch.zeros(1, 3).bool()
    one[0, 1:] = True
    assert norm(torch.randn(1, 3, 5), one).isfinite().all()
    assert norm.running_var.isfinite().all()
    assert not isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))[0], nn.SyncBatchNorm)
    half = MaskedBatchNorm(5)
    low = torch.randn(2, 3, 5).bfloat16()
    assert half(low, torch.zeros(2, 3).bool()).dtype == torch.bfloat16


# ---- conversion ------------------------------------------------------------------------------------------------------


def torchs(layers: int = 2, **options) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, dtype=torch.float64, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its short cuts, which it does not always have
        return nn.TransformerEncoder(layer, layers)


@pytest.mark.parametrize("norm_first", [True, False])
def test_conversion(norm_first):
    model = torchs(norm_first=norm_first, activation="relu").eval()
    before = dict(model.named_parameters())
    x = random((3, 11, 8), 1, torch.float64)
    mask = some_padding("cpu")[:2]
    wanted = model(x), model(x[:2], src_key_padding_mask=mask)
    assert sturdy.convert_encoder_layers(model, 3, 11) is model
    assert [type(layer) for layer in model.layers] == [CASTEncoderLayer] * 2
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    new = set(after) - set(before)
    assert new == {f"layers.{i}.self_attn.{n}" for i in range(2) for n in ("surrogates", "gate.weight", "gate.bias")}
    assert model.layers[0].self_attn.dropout == 0.1 and not model.layers[0].self_attn.training
    with torch.no_grad():  # torch's own short cut would want a nested tensor here
        torch.testing.assert_close(model(x), wanted[0], rtol=1e-12, atol=1e-12)
        found = model(x[:2], src_key_padding_mask=mask)
    torch.testing.assert_close(found[~mask], wanted[1][~mask], rtol=1e-12, atol=1e-12)


def test_conversion_of_some_with_options():
    model = nn.ModuleDict({"left": torchs(), "right": torchs(1)})
    model["again"] = model["right"]
    convert_encoder_layers(
        model, 3, 4, layers=["left.layers.1", "right.layers.0"], method="sa_topk", attention_dropout=0.0
    )
    kinds = [type(layer) for layer in model["left"].layers]
    assert kinds == [nn.TransformerEncoderLayer, CASTEncoderLayer]
    converted = model["right"].layers[0]
    assert model["again"].layers[0] is converted
    assert (converted.self_attn.method, converted.self_attn.cluster_size, converted.self_attn.dropout) == (
        "sa_topk",
        4,
        0.0,
    )
    alone = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layer = convert_encoder_layers(alone, 3)
    assert type(layer) is CASTEncoderLayer and layer.linear1 is alone.linear1


@pytest.mark.parametrize("weight_decay", [0.0, None])
def test_optimizer_gets_the_new_parameters(weight_decay):
    model = torchs(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, weight_decay=0.2)
    convert_encoder_layers(model, 3, 4, optimizers=optimizer, new_weight_decay=weight_decay, backend="reference")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    groups = optimizer.param_groups[1:]
    assert all(
        group["lr"] == 0.3 and group["weight_decay"] == (0.2 if weight_decay is None else 0.0) for group in groups
    )
    surrogates = model.layers[0].self_attn.surrogates
    before = surrogates.detach().clone()
    model(random((2, 11, 8), 1, torch.float64)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(surrogates, before)
