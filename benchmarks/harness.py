"""Measures contenders side by side in one process, against each other and against the machine's own limits.

Machines are noisy, so contenders take turns and what is reported is the median over rounds of the ratio of two times of
the same round; the machine's copy bandwidth and matrix-product rate are measured in the same rounds.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which tells peak memory, is talkative; set before torch

import torch

# Freed blocks stay with the process, so that outputs reuse pages instead of having the kernel map and clear new ones.
WARM_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
HEAPS = ("default", "warm")
SUBJECT = "sturdy"


@dataclass(frozen=True)
class Comparison:
    """One row of a table: the same work by several contenders.

    ``prepare`` makes the tensors, checks every contender's answer (a wrong one is never timed) and returns the calls to
    time by name, ``SUBJECT`` among them. ``bytes`` is what the work cannot do without, ``flops`` what its plain
    formulation takes: a kernel that needs fewer products can be faster than these at the rate of a matrix product.
    """

    op: str
    shape: str
    variant: str
    work: str  # "forward", "forward + backward"
    dtype: str
    prepare: Callable[[], dict[str, Callable[[], Any]]]
    flops: int
    bytes: int
    kept: Callable[[], dict[str, int]] = field(default=dict)  # bytes kept for backward, by contender

    def title(self) -> str:
        """All that tells this row from others."""
        return f"{self.op} {self.shape} {self.variant} {self.work} {self.dtype}"


@dataclass
class Row:
    """What was measured of one comparison. Times in ms, rates in units of 1e9 per second, memory in MB (1e6 bytes)."""

    op: str
    shape: str
    variant: str
    work: str
    dtype: str
    heap: str
    rounds: int
    ms: dict[str, float]  # median by contender
    ratio: dict[str, float]  # median of (contender's time / subject's time of the same round)
    gflops: float
    gbytes: float
    gemm_gflops: float
    copy_gbytes: float
    floor_ms: dict[str, float]  # by what it is due to: "traffic", "arithmetic"
    peak_mb: dict[str, float]
    kept_mb: dict[str, float]


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], calls: int, device: str) -> float:
    """Time of one call, measured over several in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


class Limits:
    """Measures what the machine can do at best: copying memory, and multiplying matrices of a dtype."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device = device
        side, megabytes = (8192, 2048) if device == "cuda" else (1536, 128)
        self.source = torch.ones(megabytes * 250_000, device=device)
        self.target = torch.empty_like(self.source)
        kind = getattr(torch, dtype)
        self.left = torch.randn(side, side, device=device).to(kind)
        self.right = torch.randn(side, side, device=device).to(kind)
        self.product = torch.empty_like(self.left)
        self.copy_rates: list[float] = []
        self.gemm_rates: list[float] = []

    def measure(self) -> None:
        """Take one sample of both."""
        calls = 10 if self.device == "cuda" else 1
        moved = 2 * self.source.numel() * self.source.element_size()
        self.copy_rates.append(moved / seconds(lambda: self.target.copy_(self.source), calls, self.device))
        operations = 2 * self.left.shape[0] ** 3
        multiply = seconds(lambda: torch.mm(self.left, self.right, out=self.product), calls, self.device)
        self.gemm_rates.append(operations / multiply)


def peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Most memory taken during a call beyond what was held before it; None where that cannot be had."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    # Torch's own records of its allocator: the process's size says nothing once the heap keeps what was freed.
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most if events else None


def kept_bytes(forward: Callable[[], Any], parameters: list[torch.Tensor]) -> int:
    """Bytes that autograd keeps after a forward pass, parameters left out, each block of memory counted once."""
    blocks: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    for parameter in parameters:
        blocks.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(blocks.values())


def measure(comparison: Comparison, *, rounds: int, heap: str, device: str) -> Row:
    """Time the contenders of a comparison in turns."""
    contenders = comparison.prepare()
    # About 20 ms a sample, so that short calls are not lost in the clock's resolution.
    calls = {}
    for name, call in contenders.items():
        call()
        calls[name] = max(1, min(2000, int(0.02 / max(seconds(call, 2, device), 1e-7))))
    limits = Limits(device, comparison.dtype)
    limits.measure()  # the first one pays for fresh pages
    limits.copy_rates.clear()
    limits.gemm_rates.clear()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for round in range(rounds):
        limits.measure()
        # Every contender takes every place in the order, as the one before it leaves the caches to it.
        turn = round % len(order)
        for name in order[turn:] + order[:turn]:
            times[name].append(seconds(contenders[name], calls[name], device))
    peak = {name: peak_bytes(call, device) for name, call in contenders.items()}
    subject = times[SUBJECT]
    median = statistics.median(subject)
    gemm, copy = statistics.median(limits.gemm_rates), statistics.median(limits.copy_rates)
    return Row(
        op=comparison.op,
        shape=comparison.shape,
        variant=comparison.variant,
        work=comparison.work,
        dtype=comparison.dtype,
        heap=heap,
        rounds=rounds,
        ms={name: 1e3 * statistics.median(values) for name, values in times.items()},
        ratio={
            name: statistics.median(one / ours for one, ours in zip(values, subject, strict=True))
            for name, values in times.items()
            if name != SUBJECT
        },
        gflops=comparison.flops / median / 1e9,
        gbytes=comparison.bytes / median / 1e9,
        gemm_gflops=gemm / 1e9,
        copy_gbytes=copy / 1e9,
        floor_ms={"traffic": 1e3 * comparison.bytes / copy, "arithmetic": 1e3 * comparison.flops / gemm},
        peak_mb={name: size / 1e6 for name, size in peak.items() if size is not None},
        kept_mb={name: size / 1e6 for name, size in comparison.kept().items()},
    )


# ---- machine ---------------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    """What a number means nothing without."""
    import sturdy

    build = sturdy.build_info()
    described = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load before the start": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sturdy": build["version"],
        "compiler": build["compiler"],
        "cpu_kernels": build["cpu_kernels_used"],
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
        described["cuda"] = build["cuda"]
    return described


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_name(described: dict[str, Any]) -> str:
    """A file name for a machine."""
    name = described.get("gpu") or f"{described['processor']} {described['cores']} cores"
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


# ---- heaps and output ------------------------------------------------------------------------------------------------


def with_heap(heap: str, arguments: list[str]) -> int:
    """Run this interpreter again with a heap of this kind; returns its exit status."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if heap == "warm":
        environment.update(WARM_HEAP)
    return subprocess.run([sys.executable, *arguments], env=environment).returncode


def to_json(row: Row) -> dict[str, Any]:
    """A row as plain data, four digits each: no machine measures more."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return value

    return rounded(asdict(row))


def table(described: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The rows as one Markdown table, with what they were measured on above it."""
    peers = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    head = ["op", "input; kernel", "variant", "work", "dtype", "heap", "ms"]
    head += [f"{peer} / ours" for peer in peers]
    head += ["GFLOP/s (GEMM)", "GB/s (copy)", "floor: traffic, arithmetic (ms)", "peak MB", "kept MB"]
    lines = ["# Benchmarks", ""]
    lines += [f"- {name}: {value}" for name, value in described.items()]
    lines += [
        "",
        "Medians; a ratio is the median over rounds of two times of the same round, above 1 where ours wins.",
        "In parentheses what a matrix product and a copy reach in the same rounds; the floors are the least traffic,",
        "and the arithmetic of the plain formulation, at those rates: a kernel that needs fewer products can be below",
        "the second. Memory is what torch's allocator hands out, outputs included: ours, then the peers' in the order",
        "of the columns; kept is what autograd holds after forward, parameters left out.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        cells = [
            row["op"],
            row["shape"],
            row["variant"],
            row["work"],
            row["dtype"],
            row["heap"],
            f"{row['ms'][SUBJECT]:.3g}",
        ]
        cells += [f"{row['ratio'][peer]:.2f}" if peer in row["ratio"] else "" for peer in peers]
        cells.append(f"{row['gflops']:.4g} ({row['gemm_gflops']:.4g})")
        cells.append(f"{row['gbytes']:.3g} ({row['copy_gbytes']:.3g})")
        cells.append(f"{row['floor_ms']['traffic']:.3g}, {row['floor_ms']['arithmetic']:.3g}")
        for memory in (row["peak_mb"], row["kept_mb"]):
            cells.append(" / ".join(f"{memory[name]:.3g}" for name in (SUBJECT, *peers) if name in memory))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
