"""filter2d, smooth_color, sine_warp and the transform Prime beside the formulation of PRIME's authors in eager torch.

What the authors' code does is written out here: a convolution with a group for each image; sines of a tensor with one
dimension more, of frequencies; a field by ``einsum`` and four indexed copies of the image; for the whole transform, all
three changes of all images in all chains, of which a mask keeps one. ``copy`` is what no op that reads and writes an
image can beat.

``python benchmarks/run.py --only prime`` takes the measurements to publish.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from harness import SUBJECT, Comparison, synchronize
from torch import Tensor
from torch.nn import functional as F

from sturdy.functional import filter2d, sine_warp, smooth_color
from sturdy.transforms import Prime
from sturdy.transforms.prime import field_deviation, temperatures

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")
LARGE, SMALL = ((32, 3, 224, 224), (512, 3, 32, 32)) if DEVICE == "cpu" else ((256, 3, 224, 224), (4096, 3, 32, 32))
FEW = 2  # images of 224 x 224 that the authors' change of colour takes at a time: 100 frequencies are 120 MB
MOST_EACH = 1024  # images that the authors' warp is called for one by one; more would take seconds a time on a GPU
CHECKED = 16


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(shape: tuple[int, ...], dtype: str) -> Tensor:
    values = torch.rand(shape, generator=generator())
    return ((255 * values).round() if dtype == "uint8" else values).to(DEVICE, getattr(torch, dtype))


def as_float(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


# ---- what the authors do ---------------------------------------------------------------------------------------------


def authors_filter(x: Tensor, kernel: Tensor) -> Tensor:
    """``kernel`` is (N, 3, 3): images become the channels of a grouped convolution."""
    swapped = as_float(x).transpose(0, 1)
    return F.conv2d(swapped, kernel[:, None], padding="same", groups=len(x)).transpose(0, 1).clamp(0, 1)


def authors_color(x: Tensor, coefficients: Tensor, first: int = 1) -> Tensor:
    """``coefficients`` are (N, C, K)."""
    colors = as_float(x).flatten(2)
    k = torch.arange(first, first + coefficients.shape[2], device=x.device)
    sines = torch.sin(colors[..., None] * k * math.pi)
    return (torch.einsum("bcf,bcnf->bcn", coefficients, sines) + colors).clamp(0, 1).reshape(x.shape)


def authors_color_in_parts(x: Tensor, coefficients: Tensor, first: int = 1) -> Tensor:
    """The same on a few images at a time, where memory for all of them would not do."""
    return torch.cat([authors_color(*part, first) for part in zip(x.split(FEW), coefficients.split(FEW), strict=True)])


def authors_warp(x: Tensor, coefficients: Tensor) -> Tensor:
    """One field (2, K, K) for all images."""
    image = as_float(x)
    n = image.shape[-1]
    at = torch.linspace(0, 1, n, device=x.device)
    sines = torch.sin(math.pi * at[:, None] * torch.arange(1, coefficients.shape[1] + 1, device=x.device))
    dx, dy = (torch.einsum("ij,xi,yj->yx", c, sines, sines) for c in coefficients)
    y, x_ = torch.meshgrid(torch.arange(n, device=x.device), torch.arange(n, device=x.device), indexing="ij")
    xn, yn = (x_ - dx).clamp(0, n - 1), (y - dy).clamp(0, n - 1)
    xf, yf, xc, yc = xn.floor().long(), yn.floor().long(), xn.ceil().long(), yn.ceil().long()
    xv, yv = xn - xf, yn - yf
    return (
        (1 - yv) * (1 - xv) * image[..., yf, xf]
        + (1 - yv) * xv * image[..., yf, xc]
        + yv * (1 - xv) * image[..., yc, xf]
        + yv * xv * image[..., yc, xc]
    )


def authors_warp_each(x: Tensor, coefficients: Tensor) -> Tensor:
    """A field (N, 2, K, K) for each image: one call for each."""
    return torch.cat([authors_warp(one, c) for one, c in zip(x.split(1), coefficients, strict=True)])


def authors_prime(x: Tensor, preset: str) -> Tensor:
    """Three chains, one to three steps: every change of every image, times a mask."""
    image, n = as_float(x), x.shape[-1]
    cifar = preset == "cifar"
    count = 3 * len(x)
    state = image.repeat(3, 1, 1, 1)
    weights = torch.distributions.Dirichlet(torch.ones(3)).sample((len(x),)).to(x.device)
    share = torch.rand(len(x), 1, 1, 1, device=x.device)
    depth = torch.randint(1, 4, (count,), device=x.device)
    for step in range(3):
        most = int(torch.randint(3, (100 if cifar else 500) + 1, ()))
        cut = int(torch.distributions.Beta(0.5, 0.5).sample() * (most - 1) + 2)
        low, high = temperatures(n, torch.tensor(float(cut)))
        scale = torch.sqrt(low + torch.rand(()) * (high - low)) * n
        k = torch.arange(1, cut + 1, device=x.device).float()
        r = torch.sqrt(k[:, None] ** 2 + k**2)
        field = torch.randn(2, cut, cut, device=x.device) * (r < cut + 0.5) / r * scale
        limit = int(torch.randint(1, (100 if cifar else 500) + 1, ()))
        first = 1 if cifar else int(torch.randint(1, limit + 1, ()))
        terms = limit if cifar else min(20, limit - first + 1)
        colors = torch.randn(count, 3, terms, device=x.device) * math.sqrt(
            (0.01 if cifar else 0.05) * float(torch.rand(()))
        )
        kernels = float(4 * torch.rand(())) * torch.randn(count, 3, 3, device=x.device)
        kernels[:, 2, 2] += 1
        kind = torch.randint(0, 3, (count,), device=x.device)
        changed = torch.zeros_like(state)
        recolor = authors_color if cifar else authors_color_in_parts
        for number, out in enumerate(
            (authors_warp(state, field), recolor(state, colors, first), authors_filter(state, kernels))
        ):
            changed += out * (kind == number)[:, None, None, None]
        mask = (depth > step)[:, None, None, None].float()
        state = mask * changed + (1 - mask) * state
    mix = torch.einsum("bm,mbchw->bchw", weights, state.unflatten(0, (3, len(x))))
    return (1 - share) * image + share * mix


# ---- comparisons -----------------------------------------------------------------------------------------------------


def checked(found: dict[str, Callable[[], Any]], tolerance: float) -> dict[str, Callable[[], Any]]:
    """Contenders that agree with the subject; a wrong one is never timed."""
    wanted = found[SUBJECT]()
    for name, call in found.items():
        if name not in (SUBJECT, "copy"):
            error = (call().float() - wanted.float()).abs().amax()
            assert error <= tolerance, f"{name}: differs by {error:.1e}"

    def run(call: Callable[[], Any]) -> Callable[[], Any]:
        def without_gradient() -> Any:
            with torch.inference_mode():
                return call()

        return without_gradient

    return {name: run(call) for name, call in found.items()}


def filter_calls(shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], Any]]:
    x = images(shape, dtype)
    kernel = torch.randn(shape[0], 3, 3, generator=generator()).to(DEVICE)
    found = {
        SUBJECT: lambda: filter2d(x, kernel[:, None], (0, 1)),
        "eager": lambda: authors_filter(x, kernel),
        "copy": lambda: x.float() if dtype == "uint8" else x.clone(),
    }
    return checked(found, 1e-5)


def color_calls(shape: tuple[int, ...], dtype: str, terms: int) -> dict[str, Callable[[], Any]]:
    x = images(shape, dtype)
    c = (0.05 * torch.randn(*shape[:2], terms, generator=generator())).to(DEVICE)
    found = {
        SUBJECT: lambda: smooth_color(x, c, (0, 1)),
        "eager": lambda: (authors_color_in_parts if shape[-1] > 64 else authors_color)(x, c),
        "copy": lambda: x.float() if dtype == "uint8" else x.clone(),
    }
    return checked(found, 1e-3)


def warp_calls(shape: tuple[int, ...], dtype: str, cut: int) -> dict[str, Callable[[], Any]]:
    x = images(shape, dtype)
    n = shape[-1]
    k = torch.arange(1, cut + 1).float()
    r = torch.sqrt(k[:, None] ** 2 + k**2)
    scale = n * math.sqrt(float(temperatures(n, torch.tensor(float(cut)))[0]))
    c = (torch.randn(shape[0], 2, cut, cut, generator=generator()) * (r < cut + 0.5) / r * scale).to(DEVICE)
    shared = c[:1]
    found = {SUBJECT: lambda: sine_warp(x, c), "copy": lambda: x.float() if dtype == "uint8" else x.clone()}
    if shape[0] <= MOST_EACH:
        found["eager, a field each"] = lambda: authors_warp_each(x, c)
    calls = checked(found, 2e-3)
    some = x[:CHECKED], c[:CHECKED]
    checked({SUBJECT: lambda: sine_warp(*some), "eager": lambda: authors_warp_each(*some)}, 2e-3)
    alone = checked(
        {SUBJECT: lambda: sine_warp(x, shared), "eager, one field": lambda: authors_warp(x, shared[0])}, 2e-3
    )
    return {**calls, "eager, one field": alone["eager, one field"], "sturdy, one field": alone[SUBJECT]}


def prime_calls(shape: tuple[int, ...], dtype: str, preset: str) -> dict[str, Callable[[], Any]]:
    """Both draw anew at each call; the transform can also take what it drew before."""
    x = images(shape, dtype)
    transform = Prime(preset=preset)
    params = transform.make_params([x])
    assert field_deviation(torch.tensor([3.0]), (8, 8), 3).shape == (1, 3, 3)
    return {
        SUBJECT: lambda: transform(x),
        "sturdy, drawn before": lambda: transform(x, params=params),
        "eager": lambda: authors_prime(x, preset),
        "copy": lambda: x.float() if dtype == "uint8" else x.clone(),
    }


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of these ops."""

    def row(op: str, shape: tuple[int, ...], variant: str, dtype: str, flops: int, prepare: Any) -> Comparison:
        pixels = math.prod(shape)
        size = getattr(torch, dtype).itemsize
        return Comparison(
            op=op,
            shape="x".join(map(str, shape)),
            variant=variant + (", bytes in" if dtype == "uint8" else ""),
            work="forward",
            dtype="float32",  # of the result
            prepare=prepare,
            flops=flops * pixels,
            bytes=pixels * (size + 4),
        )

    for dtype in ("float32", "uint8"):
        for shape in (LARGE, SMALL):
            n, c = shape[-1], shape[1]

            yield row("filter2d", shape, "3 x 3", dtype, 18, lambda s=shape, d=dtype: filter_calls(s, d))
            for terms in (20, 100):
                prepare = lambda s=shape, d=dtype, k=terms: color_calls(s, d, k)  # noqa: E731
                yield row("smooth_color", shape, f"{terms} terms", dtype, 4 * terms, prepare)
            for cut in (20, 100):
                kept = min(cut, n - 2)
                products = 4 * kept * (n + kept) // (n * c)  # of both fields, for each pixel of a channel
                prepare = lambda s=shape, d=dtype, k=cut: warp_calls(s, d, k)  # noqa: E731
                yield row("sine_warp", shape, f"cut-off {cut}", dtype, products + 6, prepare)
    for shape, preset in ((SMALL, "cifar"), (LARGE, "imagenet")):
        # Two changes in each of three chains on average, and the mix.
        prepare = lambda s=shape, p=preset: prime_calls(s, "float32", p)  # noqa: E731
        yield row("Prime", shape, f"{preset}, transform", "float32", 6 * 100, prepare)


@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison) -> None:
    call = row.prepare()[SUBJECT]

    def synced() -> None:
        call()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)
