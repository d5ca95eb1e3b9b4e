"""load_pushpull_state_dict: every kind of checkpoint, made here as its authors' code makes it, and what goes wrong."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import sturdy
from reference import composites, pushpull
from sturdy.nn import PushPull2020Conv2d, PushPullConv2d, convert_first_conv, load_pushpull_state_dict
from sturdy.nn.checkpoints import PUSHPULL_NET_RESNET
from support import random


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Net(nn.Module):
    """A stem, its normalisation, and a classifier, named as torchvision's ResNets do."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.fc = nn.Linear(stem.out_channels, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn1(self.conv1(image)).mean((2, 3)))


# ---- the authors' layers, as far as their state dicts go -------------------------------------------------------------


class TheirPushPull(nn.Module):
    def __init__(self, trainable: bool, in_channels: int = 3, out_channels: int = 6, kernel_size: int = 5) -> None:
        super().__init__()
        self.out_channels = out_channels
        if trainable:
            self.pull_inhibition_strength = nn.Parameter(torch.rand(out_channels))
        self.push_conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=2, bias=False)
        self.bias = nn.Parameter(torch.rand(out_channels))


class TheirResNet(nn.Module):
    def __init__(self, trainable: bool) -> None:
        super().__init__()
        self.conv1 = TheirPushPull(trainable)
        self.bn = nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 3)
        nn.init.uniform_(self.bn.weight)


class TheirLayerOf2020(nn.Module):
    def __init__(self, out_channels: int, *, bias: bool, trainable: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.push = nn.Conv2d(3, out_channels, 3, padding=1, bias=bias)
        if trainable:
            self.alpha = nn.Parameter(torch.randn(1, out_channels, 1, 1))


def lightning_file(path: Path, net: nn.Module, **hyper_parameters: object) -> Path:
    content = {
        "epoch": 19,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": net.state_dict(),
        "optimizer_states": [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"model": "resnet18", **hyper_parameters},
    }
    torch.save(content, path)
    return path


def ours(trainable: bool = False, **options: object) -> Net:
    return Net(PushPullConv2d(3, 6, 5, padding=2, trainable_inhibition=trainable, **options)).eval()


def check_forward(net: Net, theirs: TheirResNet, strength: torch.Tensor | float, avg_kernel_size: int) -> None:
    """The loaded network computes what theirs does, by the definition of its layer."""
    image = random((2, 3, 9, 9), 1)
    layer, theirs = theirs.conv1, theirs.eval()
    stem = pushpull.push_pull_conv2d(
        image, layer.push_conv.weight, strength, layer.bias, padding=2, avg_kernel_size=avg_kernel_size
    )
    wanted = theirs.classifier(theirs.bn(stem).mean((2, 3)))
    torch.testing.assert_close(net(image), wanted, rtol=1e-5, atol=1e-5)


def check_round_trip(net: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    """What is loaded is saved and loaded again under our own names."""
    path = tmp_path / "own.pt"
    torch.save(net.state_dict(), path)
    assert load_pushpull_state_dict(other, path) == ([], [])
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# ---- every kind loads and round-trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["file", "mapping", "under state_dict"])
def test_plain_keys(tmp_path, container):
    plain = Net(nn.Conv2d(3, 6, 5, padding=2))
    source: object = plain.state_dict()
    if container == "file":
        torch.save(source, tmp_path / "plain.pth")
        source = str(tmp_path / "plain.pth")
    elif container == "under state_dict":
        source = {"state_dict": source, "arch": "resnet18"}
    net = ours(avg_kernel_size=3, inhibition=0.5)
    assert load_pushpull_state_dict(net, source) == ([], [])
    assert torch.equal(net.conv1.weight, plain.conv1.weight) and torch.equal(net.conv1.bias, plain.conv1.bias)
    assert (net.conv1.avg_kernel_size, net.conv1.inhibition) == (3, 0.5)
    assert sturdy.load_pushpull_state_dict is load_pushpull_state_dict
    check_round_trip(net, ours(avg_kernel_size=3, inhibition=0.5), tmp_path)


def test_torchvision_file(tmp_path):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    stock = models.resnet18(weights=None)
    torch.save(stock.state_dict(), tmp_path / "resnet18.pth")
    model = convert_first_conv(models.resnet18(weights=None))
    assert load_pushpull_state_dict(model, tmp_path / "resnet18.pth") == ([], [])
    assert torch.equal(model.layer4[1].conv2.weight, stock.layer4[1].conv2.weight)
    assert torch.equal(model.conv1.weight, stock.conv1.weight)


def test_pushpull_net_into_a_torchvision_resnet(tmp_path):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    theirs = models.resnet18(weights=None, num_classes=10)
    theirs.conv1 = TheirPushPull(False, 3, 64, 7)
    for name, alias in (("bn1", "bn"), ("fc", "classifier")):
        theirs.add_module(alias, getattr(theirs, name))
        delattr(theirs, name)
    path = lightning_file(tmp_path / "last.ckpt", theirs, avg_kernel_size=3, pull_inhibition_strength=1)
    model = models.resnet18(weights=None, num_classes=10)
    model.conv1 = PushPullConv2d(3, 64, 7, stride=2, padding=3)
    assert load_pushpull_state_dict(model, path, rename=PUSHPULL_NET_RESNET) == ([], [])
    assert torch.equal(model.fc.weight, theirs.classifier.weight)
    assert torch.equal(model.conv1.weight, theirs.conv1.push_conv.weight)
    assert torch.equal(model.layer3[0].bn1.running_var, theirs.layer3[0].bn1.running_var)


@pytest.mark.parametrize("avg_kernel_size", [0, 3, [3, 5]])
@pytest.mark.parametrize("trainable", [False, True])
def test_pushpull_net(tmp_path, trainable, avg_kernel_size):
    theirs = TheirResNet(trainable)
    path = lightning_file(
        tmp_path / "last.ckpt", theirs, avg_kernel_size=avg_kernel_size, pull_inhibition_strength=2,
        trainable_pull_inhibition=trainable,
    )  # fmt: skip
    net = ours(trainable, avg_kernel_size=9)
    assert load_pushpull_state_dict(net, path, rename=PUSHPULL_NET_RESNET) == ([], [])
    window = tuple(avg_kernel_size) if isinstance(avg_kernel_size, list) else avg_kernel_size
    assert net.conv1.avg_kernel_size == window
    strength = theirs.conv1.pull_inhibition_strength if trainable else 2.0
    if not trainable:
        assert net.conv1.inhibition == 2.0
    check_forward(net, theirs, strength, window)
    check_round_trip(net, ours(trainable, avg_kernel_size=window), tmp_path)


@pytest.mark.parametrize("trainable", [False, True])
def test_pushpull_net_with_a_number_among_its_parameters(tmp_path, trainable):
    theirs = TheirResNet(False)
    path = lightning_file(tmp_path / "rewritten.ckpt", theirs, avg_kernel_size=5, pull_inhibition_strength=3)
    content = torch.load(path)
    content["state_dict"]["conv1.pull_inhibition_strength"] = 1.5
    torch.save(content, path)
    net = ours(trainable, inhibition=0.1)
    load_pushpull_state_dict(net, path, rename=PUSHPULL_NET_RESNET)
    if trainable:
        assert torch.equal(net.conv1.inhibition, torch.full((6,), 1.5))
    else:
        assert net.conv1.inhibition == 1.5
    check_forward(net, theirs, 1.5, 5)


@pytest.mark.parametrize("prefix", ["features.0", "_conv_stem", "downsample_layers.0.0", "conv1.0"])
def test_pushpull_layers_anywhere(prefix):
    theirs = TheirPushPull(True)
    holder: nn.Module = PushPullConv2d(3, 6, 5, trainable_inhibition=True)
    layer = holder
    for name in reversed(prefix.split(".")):
        outer = nn.Module()
        outer.add_module(name, holder)
        holder = outer
    state = {f"{prefix}.{name}": value for name, value in theirs.state_dict().items()}
    assert load_pushpull_state_dict(holder, state, avg_kernel_size=3) == ([], [])
    assert torch.equal(layer.weight, theirs.push_conv.weight)
    assert torch.equal(layer.bias, theirs.bias)
    assert torch.equal(layer.inhibition, theirs.pull_inhibition_strength)
    assert layer.avg_kernel_size == 3


def test_a_layer_by_itself():
    theirs = TheirPushPull(True)
    layer = PushPullConv2d(3, 6, 5, trainable_inhibition=True)
    load_pushpull_state_dict(layer, theirs.state_dict(), avg_kernel_size=0)
    assert torch.equal(layer.weight, theirs.push_conv.weight)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "DataParallel"])
@pytest.mark.parametrize(("bias", "trainable"), [(False, False), (True, False), (False, True), (True, True)])
def test_layer_of_2020(tmp_path, bias, trainable, wrapped):
    theirs = Net(TheirLayerOf2020(16, bias=bias, trainable=trainable)).eval()
    saved = nn.ModuleDict({"module": theirs}) if wrapped else theirs
    path = tmp_path / "resnet20.pth.tar"
    torch.save({"epoch": 200, "state_dict": saved.state_dict(), "best_prec1": 91.7}, path)

    def build() -> Net:
        return Net(PushPull2020Conv2d(3, 16, 3, padding=1, bias=bias, trainable_inhibition=trainable)).eval()

    net = build()
    assert load_pushpull_state_dict(net, path) == ([], [])
    strength = theirs.conv1.alpha.relu() if trainable else 1.0
    image = random((2, 3, 9, 9), 1)
    push = theirs.conv1.push
    stem = composites.push_pull_2020_conv2d(image, push.weight, strength, push.bias, padding=1)
    torch.testing.assert_close(net(image), theirs.fc(theirs.bn1(stem).mean((2, 3))), rtol=1e-5, atol=1e-6)
    check_round_trip(net, build(), tmp_path)


def test_argument_before_hyper_parameters(tmp_path):
    path = lightning_file(tmp_path / "last.ckpt", TheirResNet(False), avg_kernel_size=3)
    net = ours(inhibition=0.25)
    load_pushpull_state_dict(net, path, rename=PUSHPULL_NET_RESNET, avg_kernel_size=5)
    assert (net.conv1.avg_kernel_size, net.conv1.inhibition) == (5, 0.25)
    load_pushpull_state_dict(net, path, rename=PUSHPULL_NET_RESNET, avg_kernel_size=0)
    assert net.conv1.avg_kernel_size == 0


def test_dtype_and_rename_of_whole_names():
    theirs = nn.Module()
    theirs.bn, theirs.bn_last = nn.BatchNorm2d(2), nn.BatchNorm2d(3)
    net = nn.Module()
    net.bn1, net.bn_last = nn.BatchNorm2d(2, dtype=torch.float64), nn.BatchNorm2d(3)
    nn.init.uniform_(theirs.bn.weight)
    load_pushpull_state_dict(net, theirs.state_dict(), rename={"bn": "bn1"})
    assert torch.equal(net.bn1.weight, theirs.bn.weight.double())
    nested = nn.ModuleDict({"backbone": theirs})
    load_pushpull_state_dict(net, nested.state_dict(), rename={"backbone.bn": "bn1", "backbone": ""})


# ---- what does not fit -----------------------------------------------------------------------------------------------


def untouched(net: nn.Module, source: object, exception: type[Exception], text: str, **options: object) -> str:
    before, layers = copy.deepcopy(net.state_dict()), repr(net)
    with pytest.raises(exception, match=text) as caught:
        load_pushpull_state_dict(net, source, **options)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert repr(net) == layers
    return str(caught.value)


def test_mismatches_are_reported_together_and_by_their_names():
    state = TheirResNet(True).state_dict()
    options = dict(rename=PUSHPULL_NET_RESNET, avg_kernel_size=3)
    message = untouched(ours(), state, RuntimeError, "unexpected.*'conv1.pull_inhibition_strength'", **options)
    assert "missing" not in message
    untouched(ours(), state, RuntimeError, "missing.*'bn1.weight'", avg_kernel_size=3)
    state = TheirResNet(False).state_dict()
    message = untouched(ours(True), state, RuntimeError, r"missing keys: 'conv1\.inhibition'", **options)
    assert "unexpected" not in message
    untouched(Net(nn.Conv2d(3, 6, 5)), state, RuntimeError, r"unexpected.*conv1\.push_conv\.weight", **options)
    state["conv1.push_conv.weight"] = torch.zeros(6, 3, 3, 3)
    untouched(ours(), state, RuntimeError, r"conv1\.weight: \(6, 3, 3, 3\).*\(6, 3, 5, 5\)", strict=False, **options)


def test_not_strict():
    state = TheirResNet(True).state_dict()
    del state["classifier.bias"]
    net = ours()
    found = load_pushpull_state_dict(net, state, rename=PUSHPULL_NET_RESNET, avg_kernel_size=3, strict=False)
    assert found.missing_keys == ["fc.bias"]
    assert found.unexpected_keys == ["conv1.pull_inhibition_strength"]
    assert torch.equal(net.conv1.weight, state["conv1.push_conv.weight"])


def test_unknown_window(tmp_path):
    path = lightning_file(tmp_path / "last.ckpt", TheirResNet(False))
    for source in (path, torch.load(path)["state_dict"]):
        untouched(ours(), source, ValueError, "'conv1': pass avg_kernel_size", rename=PUSHPULL_NET_RESNET)
    untouched(ours(), path, ValueError, "odd", rename=PUSHPULL_NET_RESNET, avg_kernel_size=4)


def test_two_keys_that_become_one():
    state = TheirPushPull(False).state_dict()
    state["weight"] = state["push_conv.weight"]
    layer = PushPullConv2d(3, 6, 5)
    untouched(layer, state, ValueError, r"'push_conv\.weight' and 'weight'", avg_kernel_size=0)


def test_no_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    untouched(ours(), tmp_path / "list.pt", ValueError, r"list\.pt holds a list")
    torch.save({"epoch": 3, "best": 1.0}, tmp_path / "other.pt")
    untouched(ours(), tmp_path / "other.pt", ValueError, r"other\.pt has no state dict.*epoch, best")
    untouched(ours(), {}, ValueError, "the checkpoint has no state dict")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.99])
def test_truncated_file(tmp_path, kept, legacy):
    path = tmp_path / "cut.ckpt"
    torch.save(TheirResNet(False).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    message = untouched(ours(), path, ValueError, "damaged or no checkpoint")
    assert str(path) in message and "\n" not in message


def test_other_files(tmp_path):
    (tmp_path / "text.pt").write_text("hello " * 100)
    message = untouched(ours(), tmp_path / "text.pt", ValueError, "damaged or no checkpoint")
    assert "text.pt" in message and "\n" not in message
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_pushpull_state_dict(ours(), tmp_path / "nothing.pt")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w').write('ran')",)


@pytest.mark.parametrize("kind", ["options", "code", "module"])
def test_files_that_need_code_are_refused(tmp_path, kind):
    proof = tmp_path / "proof"
    extra = {
        "options": (argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
        "code": (Harmful(proof), "exec"),
        "module": (nn.Linear(2, 2), "Linear"),
    }
    value, name = extra[kind]
    path = tmp_path / "unsafe.ckpt"
    torch.save({"state_dict": TheirResNet(False).state_dict(), "hyper_parameters": value}, path)
    message = untouched(ours(), path, ValueError, rf"unsafe\.ckpt needs code.*{name}")
    assert "\n" not in message
    assert not proof.exists()
