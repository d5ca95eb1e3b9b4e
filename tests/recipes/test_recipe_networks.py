"""The networks beyond the small one: compact convolutional transformers and the first layers of ResNets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_support import Result, assert_one_line_error, make_images, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.recipes.cct import CCT
from sturdy.recipes.models import build_model
from sturdy.recipes.presets import resolve

Sturdy = Callable[..., Result]


def network(model: str, size: int, classes: int = 10, channels: int = 3, **chosen: Any) -> nn.Module:
    settings = resolve("afa", {"data": "cifar10", "model": model, **chosen})
    return build_model(settings, in_channels=channels, num_classes=classes, image_size=size)


def small_cct(size: int = 8, channels: int = 1, classes: int = 4, layers: int = 2) -> CCT:
    torch.manual_seed(0)
    shape = {"layers": layers, "heads": 2, "mlp_ratio": 2, "dim": 16, "kernel_size": 3, "convolutions": 1}
    return CCT(channels, classes, size, **shape)


# ---- transformers ----------------------------------------------------------------------------------------------------


def test_published_numbers_of_parameters() -> None:
    """3.76 million for CIFAR-10 and 22.36 million for ImageNet, as the authors' tables say (not rounded, cut off)."""
    small, large = network("cct_7_3x1", 32), network("cct_14_7x2", 224, 1000)
    counts = [sum(p.numel() for p in model.parameters()) for model in (small, large)]
    assert [count // 10**4 for count in counts] == [376, 2236]
    assert small.state_dict()["classifier.positional_emb"].shape == (1, 256, 256)
    assert large.state_dict()["classifier.positional_emb"].shape == (1, 196, 384)
    assert small.state_dict()["classifier.blocks.6.self_attn.qkv.weight"].shape == (768, 256)
    assert large.state_dict()["tokenizer.conv_layers.1.0.weight"].shape == (384, 64, 7, 7)
    assert large(torch.rand(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize(("size", "channels", "tokens"), [(8, 1, 16), (28, 1, 196), (32, 3, 256), (64, 3, 1024)])
def test_sizes(size: int, channels: int, tokens: int) -> None:
    model = small_cct(size, channels)
    x = torch.rand(3, channels, size, size)
    assert model.tokenizer(x).shape == (3, tokens, 16) and model(x).shape == (3, 4)


def test_forward_by_hand() -> None:
    """Attention written out with softmax, the blocks as the authors have them, tokens weighted by the pool."""
    model = small_cct().eval().double()
    w = model.state_dict()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)

    def norm(t: Tensor, name: str) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    t = F.conv2d(x, w["tokenizer.conv_layers.0.0.weight"], padding=1).relu()
    t = F.max_pool2d(t, 3, 2, 1).flatten(2).mT + w["classifier.positional_emb"]
    for i in range(2):
        name = f"classifier.blocks.{i}"
        q, k, v = (norm(t, f"{name}.pre_norm") @ w[f"{name}.self_attn.qkv.weight"].T).split(16, dim=2)
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            attention = (q[..., part] @ k[..., part].mT / 8**0.5).softmax(-1)
            heads.append(attention @ v[..., part])
        out = torch.cat(heads, 2) @ w[f"{name}.self_attn.proj.weight"].T + w[f"{name}.self_attn.proj.bias"]
        t = norm(t + out, f"{name}.norm1")
        hidden = F.gelu(t @ w[f"{name}.linear1.weight"].T + w[f"{name}.linear1.bias"])
        t = t + hidden @ w[f"{name}.linear2.weight"].T + w[f"{name}.linear2.bias"]
    t = norm(t, "classifier.norm")
    share = (t @ w["classifier.attention_pool.weight"].T + w["classifier.attention_pool.bias"]).softmax(1)
    wanted = (share * t).sum(1) @ w["classifier.fc.weight"].T + w["classifier.fc.bias"]
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-12)


def test_stochastic_depth_leaves_branches_out_and_keeps_their_mean() -> None:
    block = small_cct(layers=7).classifier.blocks[-1]
    assert [b.drop_rate for b in small_cct(layers=3).classifier.blocks] == pytest.approx([0, 0.05, 0.1])
    torch.manual_seed(0)
    ones = torch.ones(20000, 2, 3)
    dropped = block._drop(ones)
    by_image = dropped.flatten(1)
    assert ((by_image == 0).all(1) | (by_image == 1 / 0.9).all(1)).all()
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(block.eval()._drop(ones), ones)


def test_a_short_training_lowers_the_loss() -> None:
    images, labels = make_images(64, 8, 1, seed=5)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.3
    y = torch.from_numpy(labels).long()
    model = small_cct().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    seen = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[0] == pytest.approx(np.log(4), abs=0.3) and sum(seen[-5:]) / 5 < 0.3 * seen[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_pushpull_in_a_transformer() -> None:
    """In place of the first convolution, from its weights; no normalisations of two routes to be had."""
    from sturdy.nn import DualBatchNorm2d, PushPullConv2d

    plain = network("cct_7_3x1", 32)
    model = network("cct_7_3x1", 32, stem="pushpull", avg_kernel_size=3)
    first = model.tokenizer.conv_layers[0][0]
    assert isinstance(first, PushPullConv2d) and first.avg_kernel_size == 3
    assert torch.equal(first.weight, plain.state_dict()["tokenizer.conv_layers.0.0.weight"])
    assert not any(isinstance(m, DualBatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, PushPullConv2d) for m in model.modules()) == 1


def test_weight_decay_of_a_transformer() -> None:
    """All but the parameters of the layer normalisations."""
    from sturdy.recipes.optimisation import make_optimizer

    settings = resolve("afa", {"data": "cifar10", "model": "cct_7_3x1"})
    model = build_model(settings, in_channels=3, num_classes=10, image_size=32)
    optimizer = make_optimizer(settings, model)
    decayed, free = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW) and (decayed["weight_decay"], free["weight_decay"]) == (6e-2, 0)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    assert {id(p) for p in free["params"]} == norms and len(norms) == 2 * (2 * 7 + 1)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters()} - norms


def test_images_that_are_not_square(sturdy: Sturdy, tmp_path: Path) -> None:
    x, y = make_images(40, 10, 1, seed=0)
    np.savez(tmp_path / "a.npz", x_train=x[:, :8], y_train=y, x_test=x[:, :8], y_test=y)
    result = sturdy(*tiny(tmp_path / "a.npz", tmp_path / "run", "--model", "cct_7_3x1"))
    assert_one_line_error(result, "images of 8 x 8 pixels got 8 x 10", "square", status=2)


# ---- first layers of ResNets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "size", "geometry", "resolution"),
    [
        ("auto", 32, (3, 1), 32),
        ("auto", 64, (3, 1), 64),
        ("auto", 96, (7, 2), 24),
        ("cifar", 96, (3, 1), 96),
        ("tinyimagenet", 64, (3, 2), 32),
        ("imagenet", 64, (7, 2), 16),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_first_layers(stem: str, size: int, geometry: tuple[int, int], resolution: int, channels: int) -> None:
    model = network("resnet18", size, channels=channels, resnet_stem=stem).eval()
    conv = model.conv1
    assert (conv.kernel_size[0], conv.stride[0], conv.in_channels) == (*geometry, channels)
    seen = []
    model.layer1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    assert model(torch.rand(1, channels, size, size)).shape == (1, 10)
    assert seen == [(resolution, resolution)]
    fan_out = 64 * geometry[0] ** 2
    assert conv.weight.detach().std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
