"""What torch.utils.flop_counter counts for our ops."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sturdy import _flops
from sturdy.nn import PushPullConv2d

CASES = {
    # options, image, and the multiply-adds of one convolution: maps x size of the map x filter
    "plain": (dict(), (2, 4, 9, 8), 2 * 6 * (7 * 6) * (4 * 9)),
    "stem": (dict(stride=2, padding=1, avg_kernel_size=3), (1, 4, 9, 8), 6 * (5 * 4) * (4 * 9)),
    "groups": (dict(groups=2, padding=1), (2, 4, 6, 5), 2 * 6 * (6 * 5) * (2 * 9)),
    "dilation": (dict(dilation=(2, 1), stride=(1, 3)), (1, 4, 9, 9), 6 * (5 * 3) * (4 * 9)),
}


def layer_and_image(name: str, device: str, **more: object) -> tuple[PushPullConv2d, torch.Tensor, int]:
    options, shape, macs = CASES[name]
    layer = PushPullConv2d(4, 6, 3, device=device, trainable_inhibition=True, **options, **more)
    return layer, torch.randn(shape, device=device), 2 * macs


def count(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_forward_is_one_convolution(backend, name):
    layer, image, convolution = layer_and_image(name, backend.device)
    assert count(lambda: layer(image)) == convolution
    with torch.no_grad():
        assert count(lambda: layer(image)) == convolution
        assert count(lambda: layer(image[0])) * image.shape[0] == convolution


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("keep_push", [True, False])
def test_backward_is_one_product_for_each_gradient(backend, name, keep_push):
    layer, image, convolution = layer_and_image(name, backend.device, keep_push=keep_push)
    again = 0 if keep_push else 1
    for wants_input, wants_weight, wants_others in [(True, True, True), (False, True, True), (True, False, False)]:
        image.requires_grad_(wants_input)
        layer.weight.requires_grad_(wants_weight)
        layer.inhibition.requires_grad_(wants_others)
        loss = layer(image).sum()
        assert count(loss.backward) == convolution * (wants_input + wants_weight + again)
    layer.bias.requires_grad_(True)
    image.requires_grad_(False)
    loss = layer(image).sum()
    assert count(loss.backward) == 0  # the sum of a gradient has no product, kept response or not


@pytest.mark.parametrize("name", ["plain", "stem", "dilation"])
def test_half_of_two_convolutions(backend, name):
    layer, image, _ = layer_and_image(name, backend.device)
    pair = layer.to_conv_pair()
    image.requires_grad_()

    def train(module: torch.nn.Module):
        return lambda: module(image).sum().backward()

    assert count(train(layer)) > 0
    assert 2 * count(train(layer)) == count(train(pair))
    assert 2 * count(lambda: layer(image)) == count(lambda: pair(image))


def test_belongs_to_its_module_and_needs_no_memory():
    with torch.device("meta"):
        model = torch.nn.Sequential(PushPullConv2d(3, 64, 7, stride=2, padding=3), torch.nn.ReLU())
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    stem = counter.get_flop_counts()["Sequential.0"]
    assert stem == {torch.ops.sturdy.push_pull_conv2d: 2 * 64 * 112 * 112 * 3 * 49}


def test_arguments_by_name():
    # However an op is called, its formula sees names; other families' ops may have defaults.
    packet = torch.ops.aten.addmm
    counted = _flops._by_name(packet, lambda arguments, result: (arguments["beta"], arguments["mat1"], result))
    assert counted("self", "left", "right", out_shape=3) == (1, "left", 3)
    assert counted("self", mat1="left", mat2="right", beta=2, out_shape=3) == (2, "left", 3)


PROGRAM = """
import sys
{imports}
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    sturdy.functional.push_pull_conv2d(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3))
print(counter.get_total_flops())
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import torch, sturdy.functional; assert 'torch.utils.flop_counter' not in sys.modules",
        "import torch, torch.utils.flop_counter, sturdy.functional",
        "import torch, sturdy.functional, importlib; importlib.import_module('torch.utils.flop_counter')",
    ],
    ids=["after", "before", "by name"],
)
def test_whoever_imports_the_counter_and_when(imports):
    program = PROGRAM.format(imports=imports)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 * 3 * 9 * 18


def test_telling_again_does_no_harm():
    counter = sys.modules["torch.utils.flop_counter"]
    before = counter.flop_registry[torch.ops.sturdy.push_pull_conv2d]
    _flops._tell(counter, "sturdy")
    assert counter.flop_registry[torch.ops.sturdy.push_pull_conv2d] is before
