"""PushPull convolution beside what a user would otherwise run.

The peers: the layer's definition in eager PyTorch (two convolutions, a pool, in-place rectifications), the same under
``torch.compile`` (slow to build, so only on request), and a plain ``conv2d``, the yardstick: half of the work.

``python benchmarks/run.py`` takes the measurements to publish. ``pytest benchmarks/bench_pushpull.py -o addopts=`` is
the quick look, one contender after the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import SUBJECT, Comparison, kept_bytes, synchronize
from torch import Tensor

from sturdy.functional import push_pull_conv2d

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")
WITH_COMPILE = os.environ.get("STURDY_BENCH_COMPILE", "") not in ("", "0")
DTYPES = ["float32"] if DEVICE == "cpu" else ["float32", "bfloat16"]


@dataclass(frozen=True)
class Shape:
    """Where a layer of this size is found, and the size."""

    what: str
    input: tuple[int, int, int, int]
    filters: int
    kernel: int
    stride: int
    padding: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.input))
        return f"{size}; {self.kernel}x{self.kernel} s{self.stride} p{self.padding} {self.filters}"

    def output(self) -> tuple[int, int, int, int]:
        """Shape of the output."""
        rows, columns = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.input[2:])
        return (self.input[0], self.filters, rows, columns)

    def convolution_flops(self) -> int:
        """Multiplications and additions of one convolution."""
        batch, filters, rows, columns = self.output()
        return 2 * batch * filters * rows * columns * self.input[1] * self.kernel**2


SHAPES = [
    Shape("ImageNet stem", (16, 3, 224, 224), 64, 7, 2, 3),
    Shape("CIFAR stem", (128, 3, 32, 32), 64, 3, 1, 1),
    Shape("inside a ResNet", (32, 64, 56, 56), 64, 3, 1, 1),
]
TINY = Shape("cost of a call", (1, 1, 8, 8), 4, 3, 1, 1)


def eager(x: Tensor, w: Tensor, inhibition: Tensor, bias: Tensor, stride: int, padding: int, pool: int) -> Tensor:
    """The layer as its paper writes it."""
    pull_weight = -w + w.amin(dim=(1, 2, 3), keepdim=True) + w.amax(dim=(1, 2, 3), keepdim=True)
    push = F.conv2d(x, w, None, stride, padding)
    pull = F.conv2d(x, pull_weight, None, stride, padding)
    if pool:
        pull = F.avg_pool2d(pull, pool, 1, pool // 2, count_include_pad=False)
    push, pull = F.relu(push, inplace=True), F.relu(pull, inplace=True)
    return push - inhibition.view(-1, 1, 1) * pull + bias.view(-1, 1, 1)


def ours(x: Tensor, w: Tensor, inhibition: Tensor, bias: Tensor, stride: int, padding: int, pool: int) -> Tensor:
    return push_pull_conv2d(x, w, inhibition, bias, stride, padding, avg_kernel_size=pool)


def plain(x: Tensor, w: Tensor, inhibition: Tensor, bias: Tensor, stride: int, padding: int, pool: int) -> Tensor:
    return F.conv2d(x, w, bias, stride, padding)


def contenders() -> dict[str, Callable[..., Tensor]]:
    found = {SUBJECT: ours, "eager": eager, "conv2d": plain}
    if WITH_COMPILE:
        found["compiled"] = torch.compile(eager)
    return found


@dataclass
class Problem:
    """The tensors of one comparison, and the calls on them."""

    shape: Shape
    pool: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(DEVICE, self.dtype)

        fan_in = self.shape.input[1] * self.shape.kernel**2
        self.x = normal(*self.shape.input)
        weight = normal(self.shape.filters, self.shape.input[1], self.shape.kernel, self.shape.kernel) / fan_in**0.5
        self.parameters = [weight, normal(self.shape.filters).abs(), normal(self.shape.filters)]
        self.grad_out = normal(*self.shape.output())

    def call(self, function: Callable[..., Tensor], parameters: list[Tensor]) -> Tensor:
        """One call of a contender."""
        return function(self.x, *parameters, self.shape.stride, self.shape.padding, self.pool)

    def forward(self, function: Callable[..., Tensor]) -> Callable[[], Any]:
        """What is timed of inference."""

        def run() -> Tensor:
            with torch.inference_mode():
                return self.call(function, self.parameters)

        return run

    def training(self, function: Callable[..., Tensor]) -> Callable[[], Any]:
        """What is timed of training: the input of a first layer needs no gradient."""
        leaves = [parameter.clone().requires_grad_() for parameter in self.parameters]
        wanted = [leaves[0], leaves[2]] if function is plain else leaves

        def run() -> tuple[Tensor, ...]:
            return torch.autograd.grad(self.call(function, leaves), wanted, self.grad_out)

        return run

    def check(self, functions: dict[str, Callable[..., Tensor]], training: bool) -> None:
        """Compare with the definition in float64, on the first two images; time nothing that is wrong."""
        small = Problem(self.shape, self.pool, self.dtype)
        small.x, small.grad_out = self.x[:2], self.grad_out[:2]
        exact = Problem(self.shape, self.pool, torch.float64)
        exact.x, exact.parameters = small.x.double(), [p.double() for p in small.parameters]
        ref = exact.forward(eager)()
        tolerance = 64 * torch.finfo(self.dtype).eps
        for name, function in functions.items():
            if function is not plain:
                error = (small.forward(function)().double() - ref).abs().amax() / ref.abs().amax()
                assert error <= tolerance, f"{name}: wrong by {error:.1e} of the largest value"
        if not training:
            return
        # Where a response is close to 0 both sides of its rectification are right: no gradient comes from there.
        push = F.conv2d(exact.x, exact.parameters[0], None, self.shape.stride, self.shape.padding)
        zero, one = torch.zeros(()).to(push), torch.ones(()).to(push)
        pull = eager(exact.x, exact.parameters[0], one, zero, self.shape.stride, self.shape.padding, self.pool)
        keep = (push.abs() > tolerance * push.abs().amax()) & (
            (pull - push.relu()).abs() > tolerance * pull.abs().amax()
        )
        small.grad_out = small.grad_out * keep
        exact.grad_out = small.grad_out.double()
        refs = exact.training(eager)()
        for name, function in functions.items():
            if function is not plain:
                for grad, wanted in zip(small.training(function)(), refs, strict=True):
                    error = (grad.double() - wanted).abs().amax() / wanted.abs().amax()
                    assert error <= 4 * tolerance, f"{name}: gradient wrong by {error:.1e} of the largest value"


def comparison(shape: Shape, pool: int, training: bool, dtype: str) -> Comparison:
    """One row: what is timed, and the least that it must compute and move."""
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    x = torch.Size(shape.input).numel() * size
    one_map = torch.Size(shape.output()).numel() * size

    def prepare() -> dict[str, Callable[[], Any]]:
        functions, problem = contenders(), Problem(shape, pool, getattr(torch, dtype))
        problem.check(functions, training)
        make = problem.training if training else problem.forward
        return {name: make(function) for name, function in functions.items()}

    def kept() -> dict[str, int]:
        if not training:
            return {}
        problem = Problem(shape, pool, getattr(torch, dtype))
        leaves = [parameter.requires_grad_() for parameter in problem.parameters]
        named = {name: function for name, function in contenders().items() if name != "compiled"}
        return {
            name: kept_bytes(lambda f=function: problem.call(f, leaves), leaves) for name, function in named.items()
        }

    return Comparison(
        op="push_pull_conv2d",
        shape=str(shape),
        variant=f"pool {pool}",
        work="forward + backward" if training else "forward",
        dtype=dtype,
        prepare=prepare,
        # Backward for weight, inhibition and bias: one more product of the convolution's size.
        flops=shape.convolution_flops() * (2 if training else 1),
        # Forward reads x and writes y; in training it writes p too, and backward reads x, p and the gradient.
        bytes=2 * x + 4 * one_map if training else x + one_map,
        kept=kept,
    )


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of this op."""
    for dtype in DTYPES:
        for shape in SHAPES:
            for pool in (0, 3, 5):
                yield comparison(shape, pool, False, dtype)
            for pool in (0, 3):
                yield comparison(shape, pool, True, dtype)
        yield comparison(TINY, 3, False, dtype)
        yield comparison(TINY, 3, True, dtype)


@pytest.mark.parametrize("name", ["sturdy", "eager", "conv2d", *(["compiled"] if WITH_COMPILE else [])])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    call = row.prepare()[name]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
