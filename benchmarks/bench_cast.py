"""cast_attention, whole (affinity, clusters, attention), beside what a user would otherwise run.

The peers: dense attention (``scaled_dot_product_attention``); a published linear attention, ``FastAttention`` of
performer-pytorch, where that package is installed; the same op as one writes it with torch's gather and einsum, and
once more tuned for torch (the op's ``backend="reference"``); and with ``--compile`` FlexAttention with the clusters of
this call as its block mask, which is the part within clusters alone. Of these only the two in torch have the same
answer, and are checked; the others are timed at the same shapes. What takes minutes a call, or more memory than most
machines have, is left out of a row, which says so.

``python benchmarks/run.py --only cast --heap warm`` takes the measurements to publish. What its table does not have
``python benchmarks/bench_cast.py`` prints: floors, time per token, and the memory that a call takes at most, scratch
included (with the default heap: another one keeps what was freed).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cast_einsum
import pytest
import torch
import torch.nn.functional as F
from harness import SUBJECT, Comparison, kept_bytes, synchronize
from torch import Tensor

from sturdy.functional import cast_affinity, cast_attention, cast_cluster

DEVICE = os.environ.get("STURDY_BENCH_DEVICE", "cpu")
COMPILE = os.environ.get("STURDY_BENCH_COMPILE", "") != ""

WIDTH, HEADS, CLUSTER_SIZE = 512, 8, 256
LENGTHS = [1024, 4096, 16384, 65536]
MOST_DENSE = 16384  # tokens; 65536 take 9 TFLOP
METHODS = ["topk", "sa_topk"]

EINSUM, TORCH, DENSE, LINEAR, FLEX = "gather, einsum", "tuned in torch", "SDPA", "performer", "flex (within clusters)"


@dataclass(frozen=True)
class Work:
    """What a call has to do at least. Every token is in one cluster on average."""

    tokens: int

    @property
    def clusters(self) -> int:
        """As many as hold every token once."""
        return max(1, self.tokens // CLUSTER_SIZE)

    def flops(self, training: bool) -> int:
        """Multiplications and additions.

        Per token, forward: 2 products within the cluster, queries by surrogates and weights by summaries, both
        similarities of the affinity. Backward: 5 products within the cluster, the first of them again; 5 of mixing.
        """
        forward = 4 * CLUSTER_SIZE + 4 * self.clusters + 4 * self.clusters
        backward = 10 * CLUSTER_SIZE + 10 * self.clusters
        return self.tokens * WIDTH * (forward + backward if training else forward)

    def exponentials(self, training: bool) -> int:
        """Weights within clusters and of mixing, again in backward, and those of the affinity."""
        per_head = (CLUSTER_SIZE + self.clusters) * (2 if training else 1)
        return self.tokens * (HEADS * per_head + 2 * self.clusters)

    def bytes(self, training: bool) -> int:
        """Forward reads q, k, v and writes the result; backward reads these and a gradient, and writes three."""
        return 4 * self.tokens * WIDTH * (11 if training else 4)

    def kept(self) -> int:
        """What a layer holds for backward: q, k, v, the result, and attention within clusters."""
        return 4 * self.tokens * WIDTH * 5


def inputs(tokens: int) -> list[Tensor]:
    """q, k, v as projections leave them, surrogates and gates."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, tokens, HEADS, WIDTH // HEADS)
    rows = [torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3)]
    surrogates = torch.randn(HEADS, Work(tokens).clusters, WIDTH // HEADS, generator=generator)
    return [tensor.to(DEVICE) for tensor in (*rows, surrogates, torch.randn(1, tokens, generator=generator))]


def linear_attention() -> Callable[..., Tensor] | None:
    """Of a published package, or None where it is not installed."""
    try:
        package = importlib.import_module("performer_pytorch")
    except ImportError:
        return None
    module = package.FastAttention(dim_heads=WIDTH // HEADS, nb_features=256).to(DEVICE)
    return lambda q, k, v, surrogates, phi: module(q, k, v)


def flex_within_clusters(tensors: list[Tensor]) -> Callable[..., Tensor]:
    """FlexAttention over the clusters of SA Top-K, the block mask made anew in each call as clusters would be."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor, phi: Tensor) -> Tensor:
        tokens = q.shape[2]
        of_token = cast_cluster(cast_affinity(q, k, surrogates, phi), CLUSTER_SIZE, "sa_topk").assignment
        mask = create_block_mask(lambda b, h, i, j: of_token[b, i] == of_token[b, j], 1, None, tokens, tokens, DEVICE)
        return compiled(q, k, v, block_mask=mask)

    with torch.inference_mode():
        run(*tensors)
    return run


def contenders(tokens: int, method: str, training: bool) -> dict[str, Callable[..., Tensor]]:
    """Functions of q, k, v, surrogates and gates."""

    def cast(backend: str) -> Callable[..., Tensor]:
        return lambda *tensors: cast_attention(*tensors, CLUSTER_SIZE, method=method, backend=backend)

    def einsum(q: Tensor, k: Tensor, v: Tensor, surrogates: Tensor, phi: Tensor) -> Tensor:
        index = cast_einsum.choose(q, k, surrogates, phi, CLUSTER_SIZE, method)
        return cast_einsum.attention(q, k, v, surrogates, phi, index)

    found: dict[str, Callable[..., Tensor]] = {SUBJECT: cast("auto")}
    if tokens <= MOST_DENSE:
        found[DENSE] = lambda q, k, v, surrogates, phi: F.scaled_dot_product_attention(q, k, v)
    linear = linear_attention()
    if linear is not None and not (training and tokens > MOST_DENSE):
        found[LINEAR] = linear
    if COMPILE and not training and method == "sa_topk" and tokens <= MOST_DENSE:
        with contextlib.suppress(Exception):  # it does not run everywhere
            found[FLEX] = flex_within_clusters(inputs(tokens))
    found[EINSUM] = einsum
    found[TORCH] = cast("reference")
    return found


def check(tokens: int, method: str) -> None:
    """The op and those in torch agree, given the same clusters: at these sizes rounding may choose others."""
    tensors = inputs(tokens)
    with torch.inference_mode():
        found, clusters = cast_attention(*tensors, CLUSTER_SIZE, method=method, return_clusters=True)
        tuned = cast_attention(*tensors, clusters=clusters, backend="reference")
        plain = cast_einsum.attention(*tensors, clusters.index.long())
    for exact in (tuned, plain):
        error = float((found - exact).abs().max() / exact.abs().max())
        assert error <= 1e-5, f"wrong by {error:.1e}"


def prepare(tokens: int, method: str, training: bool) -> dict[str, Callable[[], Any]]:
    """The calls to time."""
    check(tokens, method)
    tensors = inputs(tokens)

    def forward(function: Callable[..., Tensor]) -> Callable[[], Any]:
        def run() -> Tensor:
            with torch.inference_mode():
                return function(*tensors)

        return run

    def both(function: Callable[..., Tensor]) -> Callable[[], Any]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        grad_out = torch.ones_like(leaves[0])
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad_out, allow_unused=True)

    make = both if training else forward
    return {name: make(function) for name, function in contenders(tokens, method, training).items()}


def kept(tokens: int, method: str) -> dict[str, int]:
    """Bytes that autograd keeps, inputs included."""
    leaves = [tensor.requires_grad_() for tensor in inputs(tokens)]
    functions = contenders(tokens, method, True)
    return {name: kept_bytes(lambda f=function: f(*leaves), []) for name, function in functions.items()}


def comparison(tokens: int, method: str, training: bool) -> Comparison:
    """One row: what is timed, and the least that it must compute and move."""
    work = Work(tokens)
    missing = ""
    if tokens > MOST_DENSE:
        missing = f"; left out: {DENSE} (minutes a call)" + (f", {LINEAR} (several GB)" if training else "")
    return Comparison(
        op="cast_attention",
        shape=f"{tokens} tokens of {WIDTH}, {HEADS} heads; {work.clusters} x {CLUSTER_SIZE}",
        variant=f"{method}; q, k, v, O, R are {work.kept() / 1e6:.3g} MB{missing}",
        work="forward + backward" if training else "forward",
        dtype="float32",
        prepare=lambda: prepare(tokens, method, training),
        flops=work.flops(training),
        bytes=work.bytes(training),
        kept=(lambda: kept(tokens, method)) if training else dict,
    )


def comparisons() -> Iterator[Comparison]:
    """Everything that ``run.py`` measures of this op."""
    for tokens in LENGTHS:
        for method in METHODS:
            for training in (False, True):
                yield comparison(tokens, method, training)


@pytest.mark.parametrize("name", [SUBJECT, DENSE, LINEAR, EINSUM, TORCH])
@pytest.mark.parametrize("row", list(comparisons()), ids=lambda row: row.title())
def test_speed(benchmark: Any, row: Comparison, name: str) -> None:
    calls = row.prepare()
    if name not in calls:
        pytest.skip(f"{name} is not measured here")

    def synced() -> None:
        calls[name]()
        synchronize(DEVICE)

    synced()
    benchmark.group = f"{row.title()} {DEVICE}"
    benchmark(synced)


# ---- floors, time per token, memory of the process -------------------------------------------------------------------


def _high_water(call: Callable[[], Any]) -> int | None:
    """Bytes by which the process grew at most during a call, scratch included; None where Linux does not tell."""
    marks = Path("/proc/self/clear_refs")
    if not marks.exists():
        return None
    marks.write_text("5")  # the highest mark starts again

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def _report(peak_gflops: float, threads: int, fixed_clusters: int | None) -> None:
    torch.set_num_threads(threads)
    head = ["tokens", "clusters", "work", "ms", "floor ms", "M exp", "us/token", "process MB", "q, k, v, O, R MB"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for tokens in LENGTHS:
        for training in (False, True):
            tensors = inputs(tokens)
            if fixed_clusters is not None:
                tensors[3] = torch.randn(HEADS, fixed_clusters, WIDTH // HEADS)
            leaves = [tensor.requires_grad_(training) for tensor in tensors]
            grad_out = torch.ones_like(leaves[0])

            def run(leaves: list[Tensor] = leaves, grad_out: Tensor = grad_out, training: bool = training) -> Any:
                out = cast_attention(*leaves, CLUSTER_SIZE)
                return torch.autograd.grad(out, leaves, grad_out) if training else out

            grown = _high_water(run)
            times = []
            for _ in range(max(3, 20000 // tokens)):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            work = Work(tokens)
            floor = work.flops(training) / (peak_gflops * 1e9 * threads)
            cells = [
                tokens,
                fixed_clusters or work.clusters,
                "forward + backward" if training else "forward",
                f"{1e3 * statistics.median(times):.3g}",
                "" if fixed_clusters else f"{1e3 * floor:.3g}",
                f"{work.exponentials(training) / 1e6:.3g}",
                f"{1e6 * statistics.median(times) / tokens:.3g}",
                "" if grown is None else f"{grown / 1e6:.3g}",
                f"{work.kept() / 1e6:.3g}",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Floors, time per token and memory of cast_attention on the CPU.")
    parser.add_argument("--peak", type=float, default=117.0, help="GFLOP/s of one core's multiply-adds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clusters", type=int, default=None, help="as many at any length; default: tokens / size")
    options = parser.parse_args()
    _report(options.peak, options.threads, options.clusters)
