"""convert_first_conv: the right layer, the same parameters, and a clear word where it cannot."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sturdy
from sturdy.nn import PushPullConv2d, convert_first_conv
from support import random


class TwoStems(nn.Module):
    """Two convolutions that read the input, registered in the order of the arguments."""

    def __init__(self, first: str = "left", second: str = "right") -> None:
        super().__init__()
        setattr(self, first, nn.Conv2d(3, 4, 3, padding=1))
        setattr(self, second, nn.Conv2d(3, 4, 3, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.left(image) + self.right(image)


class HeadRegisteredFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 2, 1)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv1(image)))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


def test_first_by_default():
    model = small()
    first, second = model[0], model[2][0]
    assert convert_first_conv(model, inhibition=0.5, avg_kernel_size=3) is model
    assert type(model[0]) is PushPullConv2d
    assert model[0].weight is first.weight and model[0].bias is first.bias
    assert (model[0].inhibition, model[0].avg_kernel_size) == (0.5, 3)
    assert model[2][0] is second
    assert sturdy.convert_first_conv is convert_first_conv


def test_by_name():
    model = small()
    first = model[0]
    convert_first_conv(model, layer="2.0")
    assert model[0] is first
    assert type(model[2][0]) is PushPullConv2d


def test_a_convolution_by_itself():
    conv = nn.Conv2d(3, 4, 3)
    layer = convert_first_conv(conv)
    assert type(layer) is PushPullConv2d
    assert layer.weight is conv.weight


def test_mode_and_dtype_stay():
    model = convert_first_conv(small().double().eval())
    assert not model[0].training
    assert model(random((1, 3, 9, 9), 1, torch.float64)).dtype == torch.float64
    assert convert_first_conv(small())[0].training


def test_twice_warns_and_changes_nothing():
    model = convert_first_conv(small(), inhibition=0.5)
    layer = model[0]
    for name in (None, "0"):
        with pytest.warns(UserWarning, match="already") as caught:
            assert convert_first_conv(model, layer=name, inhibition=2.0) is model
        assert caught[0].filename == __file__
        assert model[0] is layer
        assert layer.inhibition == 0.5


def test_wrong_name_lists_close_ones():
    with pytest.raises(KeyError, match=r"2\.O.*2\.0"):
        convert_first_conv(small(), layer="2.O")
    with pytest.raises(KeyError, match="conv1"):
        convert_first_conv(HeadRegisteredFirst(), layer="conv_1")
    with pytest.raises(KeyError, match="stem"):
        convert_first_conv(nn.ReLU(), layer="stem")


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_other_layers_are_refused():
    with pytest.raises(TypeError, match=r"'1'.*nn\.Conv2d.*ReLU"):
        convert_first_conv(small(), layer="1")
    with pytest.raises(TypeError, match="LazyConv2d"):
        convert_first_conv(nn.Sequential(nn.LazyConv2d(4, 3)))
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Conv2d"):
        convert_first_conv(nn.Sequential(nn.Linear(3, 3)))


def test_unknown_option():
    model = small()
    with pytest.raises(TypeError, match="avg_kernel"):
        convert_first_conv(model, avg_kernel=3)
    with pytest.raises(ValueError, match="odd"):
        convert_first_conv(model, avg_kernel_size=2)
    assert type(model[0]) is nn.Conv2d  # untouched


# ---- example_input ---------------------------------------------------------------------------------------------------


def test_example_input_agrees():
    model = small().train()
    norm = model[2][1]
    before = norm.running_mean.clone()
    convert_first_conv(model, example_input=random((2, 3, 9, 9), 1))
    assert type(model[0]) is PushPullConv2d
    assert model.training and norm.training
    assert torch.equal(norm.running_mean, before)
    assert not model[2][0]._forward_pre_hooks


def test_example_input_finds_that_another_layer_reads_it():
    model = HeadRegisteredFirst()
    image = random((1, 3, 8, 8), 1)
    with pytest.raises(ValueError, match=r"'head'.*'conv1'"):
        convert_first_conv(model, example_input=image)
    assert type(model.head) is nn.Conv2d
    convert_first_conv(model, layer="conv1", example_input=image)
    assert type(model.conv1) is PushPullConv2d


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")])
def test_example_input_finds_two_readers(order):
    model = TwoStems(*order)
    with pytest.raises(ValueError, match=r"'left'.*'right'"):
        convert_first_conv(model, example_input=random((1, 3, 8, 8), 1))
    assert type(model.left) is nn.Conv2d


def test_example_input_that_the_model_refuses():
    model = small()
    with pytest.raises(RuntimeError, match="channels"):
        convert_first_conv(model, example_input=random((1, 5, 9, 9), 1))
    assert type(model[0]) is nn.Conv2d
    assert model.training
    assert not model[0]._forward_pre_hooks


# ---- optimizers ------------------------------------------------------------------------------------------------------


def test_live_optimizer_goes_on():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    convert_first_conv(model, optimizers=optimizer)
    assert len(optimizer.param_groups) == 1
    before = model[0].weight.detach().clone()
    model(random((2, 3, 9, 9), 1)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("listed", [False, True])
def test_trainable_inhibition_joins_the_optimizer_without_decay(listed):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    convert_first_conv(model, optimizers=[optimizer, other] if listed else optimizer, trainable_inhibition=True)
    group = optimizer.param_groups[-1]
    assert group["params"] == [model[0].inhibition]
    assert (group["weight_decay"], group["lr"]) == (0.0, 0.1)
    assert len(other.param_groups) == 1
    before = model[0].inhibition.detach().clone()
    model(random((2, 3, 9, 9), 1)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].inhibition, before)


def test_failed_conversion_leaves_the_optimizer_alone():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in (dict(avg_kernel_size=2), dict(layer="nothing")):
        with pytest.raises((ValueError, KeyError)):
            convert_first_conv(model, optimizers=optimizer, trainable_inhibition=True, **options)
    assert len(optimizer.param_groups) == 1


# ---- real networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "conv1"])
def test_torchvision_resnet(name):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model = models.resnet18(num_classes=5)
    stock = model.state_dict()
    example = random((1, 3, 64, 64), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_first_conv(model, layer=name, example_input=example, avg_kernel_size=3)
    assert type(model.conv1) is PushPullConv2d
    assert sum(type(module) is PushPullConv2d for module in model.modules()) == 1
    model.load_state_dict(stock, strict=True)
    fresh = convert_first_conv(models.resnet18(num_classes=5), avg_kernel_size=3)
    fresh.load_state_dict(model.state_dict(), strict=True)
    image = random((2, 3, 64, 64), 2)
    assert torch.equal(fresh.eval()(image), model.eval()(image))
    assert not torch.equal(model(image), models.resnet18(num_classes=5).eval()(image))
    model.train()(image).sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("network", "layer"), [("alexnet", "features.0"), ("efficientnet_b0", "features.0.0")])
def test_other_torchvision_stems(network, layer):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.device("meta"):
        model = getattr(models, network)()
    convert_first_conv(model)
    assert type(model.get_submodule(layer)) is PushPullConv2d
