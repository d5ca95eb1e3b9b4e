"""convert_first_conv and convert_layers: the right layer, the same parameters, and a clear word where it cannot."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sturdy
from sturdy.nn import (
    PushPull2020Conv2d,
    PushPullConv2d,
    SurroundSuppressionConv2d,
    convert_first_conv,
    convert_layers,
)
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


# The layer, and an image size small enough for a quick test.
TORCHVISION = {
    "resnet18": ("conv1", 64),
    "convnext_tiny": ("features.0.0", 64),
    "efficientnet_b0": ("features.0.0", 64),
    "alexnet": ("features.0", 80),
}


@pytest.mark.parametrize("explicit", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("network", TORCHVISION)
def test_torchvision_stems(network, explicit):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    layer, size = TORCHVISION[network]
    model = getattr(models, network)(weights=None, num_classes=3)
    check_stem(model, layer, random((2, 3, size, size), 1), layer if explicit else None)


class BesideStem(nn.Module):
    """As timm names things: a stem, whatever its depth, and a head."""

    def __init__(self, stem: nn.Module, name: str, channels: int) -> None:
        super().__init__()
        setattr(self, name, stem)
        self.name = name
        self.blocks = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(getattr(self, self.name)(image)).mean((2, 3)))


def timm_like(layer: str) -> nn.Module:
    torch.manual_seed(0)
    if layer == "conv_stem":  # EfficientNet
        return BesideStem(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), "conv_stem", 8)
    if layer == "stem.0":  # ConvNeXt
        return BesideStem(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GroupNorm(1, 8)), "stem", 8)
    block = nn.Sequential()  # a ConvNormAct
    block.add_module("conv", nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False))
    block.add_module("bn", nn.BatchNorm2d(8))
    return BesideStem(block, "stem", 8)


@pytest.mark.parametrize("explicit", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("layer", ["conv_stem", "stem.0", "stem.conv"])
def test_stems_as_timm_names_them(layer, explicit):
    check_stem(timm_like(layer), layer, random((2, 3, 32, 32), 1), layer if explicit else None)


def check_stem(model: nn.Module, layer: str, image: torch.Tensor, name: str | None) -> None:
    """The right layer, with its parameters; nothing the second time; a live optimizer trains it."""
    plain, stock = model.get_submodule(layer), model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.eval()(image)
    model.train()
    convert_first_conv(model, layer=name, example_input=image, optimizers=optimizer, avg_kernel_size=3)
    converted = model.get_submodule(layer)
    assert type(converted) is PushPullConv2d
    assert sum(isinstance(module, PushPullConv2d) for module in model.modules()) == 1
    assert converted.weight is plain.weight and converted.bias is plain.bias
    assert model.state_dict().keys() == stock.keys()
    assert not torch.equal(model.eval()(image), before)
    with pytest.warns(UserWarning, match="already"):
        convert_first_conv(model, layer=name, example_input=image, optimizers=optimizer)
    assert model.get_submodule(layer) is converted
    weight = converted.weight.detach().clone()
    model.train()(image).square().sum().backward()
    optimizer.step()
    assert not torch.equal(converted.weight, weight)


# ---- other layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_class", [PushPull2020Conv2d, SurroundSuppressionConv2d])
def test_other_classes(layer_class):
    model = small()
    convert_first_conv(model, layer_class=layer_class, inhibition=0.5)
    assert type(model[0]) is layer_class and model[0].inhibition == 0.5
    with pytest.warns(UserWarning, match=f"{layer_class.__name__} already"):
        convert_first_conv(model, layer_class=layer_class)
    with pytest.raises(TypeError, match=layer_class.__name__):
        convert_first_conv(model)


# ---- several layers --------------------------------------------------------------------------------------------------


def test_layers_by_name():
    model = small()
    convs = [model[0], model[2][0]]
    assert convert_layers(model, ["2.0", "0"], avg_kernel_size=3) is model
    for layer, conv in zip((model[0], model[2][0]), convs, strict=True):
        assert type(layer) is PushPullConv2d and layer.avg_kernel_size == 3
        assert layer.weight is conv.weight
    assert sturdy.convert_layers is convert_layers


def test_layers_that_are_converted_already_stay():
    model = convert_layers(small(), ["0"], inhibition=0.5)
    first = model[0]
    with pytest.warns(UserWarning, match=r"convert_layers: '0' is a PushPullConv2d already") as caught:
        convert_layers(model, ["0", "2.0"], inhibition=2.0)
    assert caught[0].filename == __file__
    assert model[0] is first and first.inhibition == 0.5
    assert model[2][0].inhibition == 2.0
    assert convert_layers(model, []) is model


@pytest.mark.parametrize(
    ("layers", "options", "exception", "text"),
    [
        (["0", "2.1"], dict(), TypeError, r"'2\.1'.*BatchNorm2d"),
        (["0", "2.2"], dict(), KeyError, r"2\.2.*2\.0"),
        (["0", "2.0"], dict(avg_kernel_size=4), ValueError, "odd"),
        ("0", dict(), TypeError, "sequence"),
    ],
)
def test_all_layers_or_none(layers, options, exception, text):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(exception, match=text):
        convert_layers(model, layers, optimizers=optimizer, trainable_inhibition=True, **options)
    assert not any(isinstance(module, PushPullConv2d) for module in model.modules())
    assert len(optimizer.param_groups) == 1


def test_derived_convolutions_are_left_alone():
    class Derived(nn.Conv2d):
        pass

    with pytest.raises(TypeError, match="Derived"):
        convert_layers(nn.Sequential(Derived(3, 3, 3)), ["0"])


def test_a_shared_convolution_is_converted_everywhere():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    convert_layers(model, ["2"], trainable_inhibition=True)
    assert type(model[0]) is PushPullConv2d and model[2] is model[0]
    assert convert_layers(conv, [""]).weight is conv.weight


# ---- parameter groups ------------------------------------------------------------------------------------------------


def two_groups(model: nn.Module, **options: object) -> torch.optim.SGD:
    stem, rest = list(model[0].parameters()), list(model[2].parameters())
    return torch.optim.SGD([{"params": rest}, {"params": stem, "lr": 0.01}], lr=0.1, momentum=0.9, **options)


def test_inhibition_is_trained_as_the_weight_is():
    model = small()
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5.0)
    optimizer = two_groups(model, weight_decay=0.2)
    convert_first_conv(model, optimizers=[other, optimizer], trainable_inhibition=True)
    group = optimizer.param_groups[2]
    assert group["params"] == [model[0].inhibition]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 0.0)
    assert len(other.param_groups) == 1
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.005, 0.005]


@pytest.mark.parametrize(("wanted", "found"), [(None, 0.2), (0.0, 0.0), (0.7, 0.7)])
def test_weight_decay_of_the_inhibition(wanted, found):
    model = small()
    optimizer = two_groups(model, weight_decay=0.2)
    convert_layers(model, ["0", "2.0"], optimizers=optimizer, trainable_inhibition=True, inhibition_weight_decay=wanted)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.2, found, found]
    assert [group["params"][0] for group in optimizer.param_groups[2:]] == [model[0].inhibition, model[2][0].inhibition]
    assert [group["lr"] for group in optimizer.param_groups[2:]] == [0.01, 0.1]


def test_optimizer_of_named_parameters():
    model = small()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    convert_layers(model, ["2.0"], optimizers=optimizer, trainable_inhibition=True)
    assert optimizer.param_groups[1]["param_names"] == ["2.0.inhibition"]


def test_optimizer_that_does_not_train_the_weight():
    model = small()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, weight_decay=0.3)
    convert_first_conv(model, optimizers=optimizer, trainable_inhibition=True, inhibition_weight_decay=None)
    group = optimizer.param_groups[1]
    assert (group["params"], group["weight_decay"]) == ([model[0].inhibition], 0.3)
    assert len(convert_first_conv(small(), optimizers=[], trainable_inhibition=True)) == 3
