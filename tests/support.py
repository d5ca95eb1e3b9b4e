"""What the op tests share: tensors of any layout, the list of cases, calls of an op and of its reference."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from reference import pushpull as reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "transposed", "sliced", "expanded", "channels_last"]


def dtype_id(value: Any) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
    """Standard normal numbers; the same ones, rounded, in every dtype and on every device."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(device)


def with_layout(values: Tensor, layout: str) -> Tensor:
    """The same values stored differently. "expanded" repeats the first element of dimension 0 with stride 0.

    What lies in memory between and around the elements of a sliced tensor is NaN, so that a misread shows.
    """
    if layout == "contiguous":
        return values.contiguous()
    if layout == "expanded":
        return values[:1].contiguous().expand(values.shape) if values.shape[0] else values
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = values.new_full([2 * size + 3 for size in values.shape], float("nan"))
        view = wide[tuple(slice(2, 2 + 2 * size, 2) for size in values.shape)]
        view.copy_(values)
        return view
    raise ValueError(layout)


@dataclass(frozen=True)
class Tensors:
    """The tensor arguments of a call."""

    input: Tensor
    weight: Tensor
    inhibition: Tensor | float
    bias: Tensor | None

    def all(self) -> list[Tensor]:
        return [t for t in (self.input, self.weight, self.inhibition, self.bias) if isinstance(t, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Tensors:
        values = (self.input, self.weight, self.inhibition, self.bias)
        return Tensors(*(change(t) if isinstance(t, Tensor) else t for t in values))

    def double(self) -> Tensors:
        return self.map(lambda t: t.detach().double())

    def leaves(self) -> Tensors:
        """The same values in leaf tensors of the same layout that want a gradient."""
        return self.map(lambda t: t.detach().requires_grad_())


@dataclass(frozen=True)
class Case:
    """One call: shapes, options, and how the strength is given."""

    name: str
    batch: int = 2
    in_channels: int = 3
    out_channels: int = 8
    size: tuple[int, int] = (9, 7)
    kernel: tuple[int, int] = (3, 3)
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    pool: int | tuple[int, int] | None = 0
    padding_mode: str = "zeros"
    strength: float | str = "channel"  # a number, or "channel": one value each, some of them negative
    bias: bool = True
    range_dims: str = "filter"

    def __str__(self) -> str:
        return self.name

    def tensors(
        self,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
        *,
        layout: str = "contiguous",
        weight_layout: str = "contiguous",
        vector_dtype: torch.dtype | None = None,
    ) -> Tensors:
        vector = vector_dtype or dtype
        image = random((self.batch, self.in_channels, *self.size), 1, dtype, device)
        filters = (self.out_channels, self.in_channels // self.groups, *self.kernel)
        strength: Tensor | float = 0.0
        if self.strength == "channel":
            strength = random((self.out_channels,), 3, vector, device)
        else:
            strength = float(self.strength)
        return Tensors(
            with_layout(image, layout),
            with_layout(random(filters, 2, dtype, device), weight_layout),
            strength,
            random((self.out_channels,), 4, vector, device) if self.bias else None,
        )

    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "avg_kernel_size": self.pool,
            "padding_mode": self.padding_mode,
            "range_dims": self.range_dims,
        }

    def call(self, function: Callable[..., Tensor], tensors: Tensors, **more: Any) -> Tensor:
        options = {**self.options(), **more}
        return function(tensors.input, tensors.weight, tensors.inhibition, tensors.bias, **options)

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


# Small enough for an executor that runs one CUDA thread after another, and between them: every padding mode and kind of
# stride, dilation, grouping and pool; one to three tiles of the kernels along each axis and a ragged last one (tiles
# are 8 x 8 or 16 x 16 pixels and 2, 16 or 64 filters on a GPU; 14 pixels and 16 or 32 filters on the CPU).
CASES = [
    Case("plain"),
    Case("stem", size=(21, 37), kernel=(7, 7), stride=2, padding=3, out_channels=16, pool=3),
    Case("wide_filters", batch=1, out_channels=70, size=(5, 6), padding=1, pool=3),
    Case("wide_map", batch=1, out_channels=20, size=(18, 35), padding=1, pool=3),
    Case("wide_both", batch=1, in_channels=2, out_channels=66, size=(10, 18), padding=1),
    Case("deep", batch=1, in_channels=19, out_channels=9, size=(6, 6), padding=1),
    Case("depthwise", in_channels=5, out_channels=5, groups=5, padding=1, pool=3),
    Case("depthwise_multiplied", in_channels=3, out_channels=9, groups=3, size=(17, 19), padding=1, pool=(3, 5)),
    Case("groups", in_channels=4, out_channels=8, groups=2, padding=1, pool=5),
    Case("groups_wide", batch=1, in_channels=6, out_channels=40, groups=2, size=(9, 17), padding=1),
    Case("stride", stride=(4, 3), size=(14, 13), padding=(1, 2), pool=3),
    Case("dilation", dilation=(2, 1), size=(10, 9), padding=2, pool=3),
    Case("stride_dilation", stride=(1, 2), dilation=(2, 3), size=(12, 13), padding=(2, 3), kernel=(3, 2)),
    Case("rectangle", kernel=(3, 5), padding=(1, 2), size=(5, 17), pool=(5, 3)),
    Case("row_kernel", kernel=(1, 4), size=(3, 33), pool=(1, 3)),
    Case("column_kernel", kernel=(4, 1), size=(33, 2), pool=(3, 1)),
    Case("one_by_one", kernel=(1, 1), size=(6, 5), pool=3),
    Case("one_channel_one_tap", in_channels=1, kernel=(1, 1), size=(6, 5), pool=3),
    Case("one_pixel", size=(3, 3), pool=5),
    Case("pool_beyond_map", size=(6, 4), padding=1, pool=(9, 11)),
    Case("pool_wide_window", batch=1, out_channels=5, size=(20, 21), padding=1, pool=(15, 9)),
    Case("pool_one", pool=1),
    Case("pool_none", pool=None),
    Case("same", padding="same", kernel=(3, 5), pool=3),
    Case("same_even", padding="same", kernel=(4, 2), pool=3),
    Case("same_even_dilated", padding="same", kernel=(4, 2), dilation=(1, 3), size=(9, 11)),
    Case("valid", padding="valid", pool=3),
    Case("padding_beyond_kernel", padding=5, kernel=(2, 3), size=(4, 5), pool=3),
    Case("reflect", padding=(2, 3), padding_mode="reflect", pool=3),
    Case("reflect_same_even", padding="same", kernel=(4, 4), padding_mode="reflect"),
    Case("replicate", padding=3, padding_mode="replicate", stride=2, pool=3),
    Case("circular", padding=(2, 1), padding_mode="circular", groups=3, out_channels=6, pool=3),
    Case("number", strength=0.7, padding=1),
    Case("number_negative", strength=-1.3, padding=1, pool=3, bias=False),
    Case("number_zero", strength=0.0, padding=1, pool=3),
    Case("number_large", strength=250.0, padding=1, bias=False),
    Case("one_filter", out_channels=1, size=(12, 18), padding=1, pool=3),
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES)

# The same for range_dims="channel": what differs there are the box maps, their pooling and gradients.
channel_range = pytest.mark.channel_range
CHANNEL_BY_NAME = {
    f"channel_{case.name}": case.but(name=f"channel_{case.name}", range_dims="channel")
    for case in (
        *(BY_NAME[name] for name in ("plain", "stem", "wide_filters", "wide_map", "wide_both", "deep", "depthwise")),
        *(BY_NAME[name] for name in ("depthwise_multiplied", "groups", "groups_wide", "stride", "stride_dilation")),
        *(BY_NAME[name] for name in ("rectangle", "one_by_one", "one_channel_one_tap", "one_pixel", "pool_beyond_map")),
        *(BY_NAME[name] for name in ("pool_wide_window", "same_even_dilated", "padding_beyond_kernel", "reflect")),
        *(BY_NAME[name] for name in ("replicate", "circular", "number_negative", "number_zero", "one_filter")),
        Case("very_deep", batch=1, in_channels=165, out_channels=3, size=(4, 5), padding=1, pool=3),
        Case("deep_stride", in_channels=6, out_channels=20, size=(9, 8), stride=(1, 3), dilation=(2, 1), padding=2),
        Case("few_deep_groups", in_channels=34, groups=2, out_channels=36, size=(5, 18), padding=1, pool=(1, 3)),
    )
}
CHANNEL_CASES = [pytest.param(case, id=name, marks=channel_range) for name, case in CHANNEL_BY_NAME.items()]


@st.composite
def random_cases(draw: st.DrawFn, range_dims: str = "filter") -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    size = tuple(draw(st.integers(e, e + 18)) for e in extent)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    same = draw(st.sampled_from([False, False, True])) and all(s > e for s, e in zip(size, extent, strict=True))
    most = [min(4, s - 1) if mode in ("reflect", "circular") else 4 for s in size]
    return Case(
        "random",
        batch=draw(st.integers(0, 3)),
        in_channels=groups * draw(st.integers(1, 5)),
        out_channels=groups * draw(st.integers(1, 20)),
        size=size,
        kernel=kernel,
        stride=1 if same else (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        padding="same" if same else tuple(draw(st.integers(0, limit)) for limit in most),
        dilation=dilation,
        groups=groups,
        pool=draw(st.sampled_from([0, 1, 3, 5, (3, 1), (1, 7), (11, 3)])),
        padding_mode=mode,
        strength=draw(st.sampled_from(["channel", 1.0, -0.5])),
        bias=draw(st.booleans()),
        range_dims=range_dims,
    )


def smooth_gradient(case: Case, tensors: Tensors, seed: int = 5) -> Tensor:
    """A gradient of the output, zero where a response lies so close to 0 that rounding may choose its side.

    Both one-sided derivatives of a rectification are right there, so kernel and reference could differ by all of it.
    """
    exact = tensors.double()
    push, pull = reference.responses(exact.input, exact.weight, **case.options())
    # Half-precision kernels keep float32 sums, of a rounded push response at worst; the others round every term.
    eps = torch.finfo(tensors.input.dtype).eps
    relative = 4 * eps if eps > 1e-4 else 64 * eps
    keep = torch.ones_like(push)
    for response in (push, pull):
        if response.numel():
            keep = keep * (response.abs() > relative * max(push.abs().amax(), pull.abs().amax()))
    return (random(tuple(push.shape), seed, torch.float64, push.device) * keep).to(tensors.input.dtype)


def gradients(
    case: Case, function: Callable[..., Tensor], tensors: Tensors, grad_out: Tensor, **more: Any
) -> tuple[Tensor, ...]:
    """Gradients of every tensor argument, in the order of the call."""
    leaves = tensors.leaves()
    out = case.call(function, leaves, **more)
    return torch.autograd.grad(out, leaves.all(), grad_out)


def gradient_names(tensors: Tensors) -> list[str]:
    values = {"input": tensors.input, "weight": tensors.weight, "inhibition": tensors.inhibition, "bias": tensors.bias}
    return [name for name, value in values.items() if isinstance(value, Tensor)]


@contextlib.contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    """Within, torch fills every fresh tensor with NaN, those that an op allocates for its results included."""
    before = torch.are_deterministic_algorithms_enabled()
    # Filling comes with the deterministic mode, in which some of the reference's own ops on a GPU would only warn.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "torch no longer fills fresh memory with NaN"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(before)
