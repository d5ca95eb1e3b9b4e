"""What CAST modules refuse, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sturdy
from sturdy.functional import CASTClusters
from sturdy.nn import CASTAttention, CASTEncoder, CASTEncoderLayer, MaskedBatchNorm, convert_encoder_layers


def layer(**options) -> CASTAttention:
    return CASTAttention(8, 2, 3, 4, **{"backend": "reference", **options})


def x(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 11, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((8, 3, 4), {}, "embed_dim must be a multiple of num_heads.* 8 and 3"),
        ((0, 1, 4), {}, "embed_dim"),
        ((8, 0, 4), {}, "num_heads"),
        ((8, 2, 0), {}, "num_clusters must be at least 1, got 0"),
        ((8, 2, 3, 0), {}, "cluster_size must be at least 1, got 0"),
        ((8, 2, 3), {"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1"),
        ((8, 2, 3), {"dropout": -0.1}, "dropout"),
        ((8, 2, 3), {"dropout": math.nan}, "dropout"),
        ((8, 2, 3), {"method": "best"}, "method must be one of 'topk', 'sa_topk', got 'best'"),
        ((8, 2, 3), {"backend": "gpu"}, "backend must be one of 'auto', 'cuda', 'cpu', 'reference', got 'gpu'"),
        ((258, 2, 3), {"backend": "cuda"}, "at most 128 with backend='cuda', got 129"),
        ((8, 2, 3), {"full_attention_below": -1}, "full_attention_below must be at least 0, got -1"),
        ((8, 2, 3), {"scale": 0.0}, "scale must be greater than 0 and finite, got 0"),
        ((8, 2, 3), {"tau_q": -1.0}, "tau_q"),
        ((8, 2, 3), {"tau_k": math.inf}, "tau_k"),
        ((8, 2, 3), {"tau_g": math.nan}, "tau_g"),
    ],
    ids=str,
)
def test_construction(arguments, options, words):
    with pytest.raises(ValueError, match=f"CASTAttention: .*{words}"):
        CASTAttention(*arguments, **options)
    if arguments[:2] == (8, 2):
        with pytest.raises(ValueError, match=words):
            CASTEncoderLayer(
                *arguments, **({"attention_dropout" if k == "dropout" else k: v for k, v in options.items()})
            )


def test_head_dimension_is_free_elsewhere():
    assert CASTAttention(258, 2, 3).head_dim == 129


@pytest.mark.parametrize("shape", [(8,), (2, 11, 7), (11, 9), (1, 2, 11, 8)])
def test_shape_of_tokens(shape):
    words = rf"embed_dim=8, got shape \({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=f"CASTAttention: x must be .*{words}"):
        layer()(x(*shape))
    with pytest.raises(sturdy.ShapeError, match=f"CASTEncoderLayer: x must be .*{words}"):
        CASTEncoderLayer(8, 2, 3)(x(*shape))


def test_dtype_and_device_of_tokens():
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        layer()(torch.zeros(2, 11, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"dtype of the layer's parameters, torch\.float32, got torch\.float64"):
        layer()(x().double())
    with pytest.raises(RuntimeError, match="x is on meta, the layer's parameters are on cpu"):
        layer()(x().to("meta"))
    with pytest.raises(TypeError, match="nested"), torch.no_grad():
        layer()(torch.nested.nested_tensor([x(3, 8), x(4, 8)], layout=torch.jagged))


@pytest.mark.parametrize(
    ("arguments", "exception", "words"),
    [
        ({"attn_mask": torch.zeros(11, 11)}, NotImplementedError, "summaries are not causal"),
        ({"is_causal": True}, NotImplementedError, "summaries are not causal"),
        ({"key_padding_mask": torch.zeros(2, 10).bool()}, ValueError, r"key_padding_mask.*\(2, 11\), got \(2, 10\)"),
        ({"key_padding_mask": torch.zeros(11, 2).bool()}, ValueError, "key_padding_mask"),
        ({"key_padding_mask": torch.zeros(11).bool()}, ValueError, "key_padding_mask"),
        ({"key_padding_mask": torch.zeros(2, 11).int()}, TypeError, "key_padding_mask.*torch.int32"),
        ({"key_padding_mask": torch.zeros(2, 11).byte()}, TypeError, "key_padding_mask.*torch.uint8"),
        ({"key_padding_mask": torch.ones(2, 11)}, ValueError, "0 and -inf"),
        ({"key_padding_mask": torch.full((2, 11), -1e9)}, ValueError, "0 and -inf"),
        ({"key_padding_mask": torch.full((2, 11), math.nan)}, ValueError, "0 and -inf"),
        ({"key_padding_mask": torch.zeros(2, 11).bool().to("meta")}, RuntimeError, "on meta, x is on cpu"),
        (
            {"key_padding_mask": torch.zeros(2, 11).bool(), "lengths": torch.tensor([1, 2])},
            ValueError,
            "key_padding_mask or lengths, not both",
        ),
        ({"lengths": torch.tensor([1, 12])}, ValueError, r"lengths must be 0 to N = 11, got \[1, 12\]"),
        ({"lengths": torch.tensor([-1, 2])}, ValueError, "lengths"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, "lengths"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths must be integers"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_masks(arguments, exception, words):
    for module in (layer(), layer(full_attention_below=100)):
        with pytest.raises(exception, match=f"CASTAttention: .*{words}"):
            module(x(), **arguments)


def test_arguments_of_multihead_attention_that_have_no_meaning():
    with pytest.raises(TypeError, match="need_weights"):
        layer()(x(), need_weights=True)
    with pytest.raises(TypeError):
        layer()(x(), x(), x())


def test_room_for_all_tokens():
    # 3 clusters of 4 hold 12 tokens.
    small = layer(method="sa_topk")
    assert small(x(2, 12, 8)).shape == (2, 12, 8)
    with pytest.raises(ValueError, match=r"12.*13"):
        small(x(2, 13, 8))


def clusters(index: list, method: str = "topk") -> CASTClusters:
    tensor = torch.tensor(index, dtype=torch.int32)
    return CASTClusters(tensor, (tensor >= 0).sum(2, dtype=torch.int32), None, method)


@pytest.mark.parametrize(
    ("index", "method"),
    [
        ([[[0], [1], [2]]], "topk"),  # one sequence
        ([[[0], [1]]] * 2, "topk"),  # two clusters
        ([[[0, 1], [2, 11], [3, 4]]] * 2, "topk"),
        ([[[0, 1], [2, -2], [3, 4]]] * 2, "topk"),
        ([[[0, 1], [2, 2], [3, 4]]] * 2, "topk"),
        ([[[0, 1], [2, 0], [3, 4]]] * 2, "sa_topk"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_given_clusters(index, method, backend):
    with pytest.raises(ValueError, match="index"):
        layer(backend=backend)(x(), clusters=clusters(index, method))


def test_backends():
    with pytest.raises(RuntimeError, match="backend='cuda' needs tensors on that device, got cpu; this build has"):
        layer(backend="cuda")(x())
    with pytest.raises(RuntimeError, match="backend='cuda'"):
        layer(backend="cuda")(x(2, 3, 8))  # ordinary attention, which the layer was not asked to do elsewhere either


def test_second_derivative():
    tokens = x().double().requires_grad_()
    module = CASTAttention(8, 2, 3, 4, dtype=torch.float64)
    (first,) = torch.autograd.grad(module(tokens).square().sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        first.sum().backward()
    module.backend = "reference"
    (first,) = torch.autograd.grad(module(tokens).square().sum(), tokens, create_graph=True)
    first.square().sum().backward()
    assert tokens.grad.isfinite().all() and tokens.grad.any()


def test_encoders():
    for options, words in (
        ({"norm": "group"}, "norm must be one of 'layer', 'scale', 'batch', got 'group'"),
        ({"activation": "tanh"}, "activation must be one of 'gelu', 'relu' or a function, got 'tanh'"),
        ({"method": "best"}, "method"),
    ):
        with pytest.raises(ValueError, match=words):
            CASTEncoderLayer(8, 2, 3, **options)
    with pytest.raises(TypeError, match="cluster_count"):
        CASTEncoderLayer(8, 2, 3, cluster_count=5)
    block = CASTEncoderLayer(8, 2, 3, 4, 16, backend="reference")
    for module, name in ((block, "CASTEncoderLayer"), (CASTEncoder(block, 2), "CASTEncoder")):
        for masks in ((torch.zeros(11, 11), None, False), (None, None, True)):
            with pytest.raises(NotImplementedError, match=f"{name}: .*not causal"):
                module(x(), *masks)
        with pytest.raises(ValueError, match=f"{name}: key_padding_mask"):
            module(x(), src_key_padding_mask=torch.zeros(2, 10).bool())
    with pytest.raises(TypeError, match="TransformerEncoderLayer"):
        CASTEncoder(nn.TransformerEncoderLayer(8, 2), 2)
    with pytest.raises(ValueError, match="num_layers"):
        CASTEncoder(block, 0)
    with pytest.raises(NotImplementedError, match="nested"):
        CASTEncoder(block, 2, enable_nested_tensor=True)
    with pytest.raises(ValueError, match=r"MaskedBatchNorm: x must be \(B, N, 8\)"):
        MaskedBatchNorm(8)(x(2, 3, 7))


def test_conversion():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8))
    with pytest.raises(KeyError, match="similar name: 0"):
        convert_encoder_layers(model, 3, layers=["00"])
    with pytest.raises(TypeError, match=r"'1' must be an nn\.TransformerEncoderLayer, got Linear"):
        convert_encoder_layers(model, 3, layers=["0", "1"])
    with pytest.raises(TypeError, match="sequence of names"):
        convert_encoder_layers(model, 3, layers="0")
    with pytest.raises(ValueError, match=r"Linear has no nn\.TransformerEncoderLayer"):
        convert_encoder_layers(nn.Linear(8, 8), 3)
    with pytest.raises(ValueError, match="num_clusters"):
        convert_encoder_layers(model, 0)
    with pytest.raises(TypeError, match="clusters_size"):
        convert_encoder_layers(model, 3, clusters_size=4)
    assert type(model[0]) is nn.TransformerEncoderLayer
    model.append(nn.TransformerEncoderLayer(8, 2, 16))
    with pytest.raises(ValueError, match="batch_first"):
        convert_encoder_layers(model, 3)
    assert type(model[0]) is nn.TransformerEncoderLayer
