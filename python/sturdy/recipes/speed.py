"""How long a training step takes and how much memory: what the log of a network of sequences says about each epoch."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

_T = TypeVar("_T")


def peak_memory(step: Callable[[], _T], device: torch.device) -> tuple[_T, int]:
    """Run ``step``; what it returns, and the most bytes that torch had allocated during it beyond those before it.

    On the CPU the profiler records what torch's allocator hands out, which leaves scratch memory inside libraries out.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = step()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with _without_native_messages(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = step()
    recorded = profiler.profiler
    assert recorded is not None and recorded.kineto_results is not None
    changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in changes:
        held += event.nbytes()
        peak = max(peak, held)
    return result, peak


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Drop what is written to stderr meanwhile: the profiler tells of its start and of GPUs that it does not find."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class StepMeter:
    """Times the steps of an epoch, and measures the memory of one of them.

    Args:
        device: Where the network is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: list[float] = []
        self._tokens = 0
        self._memory: int | None = None
        self._steps = 0

    def run(self, step: Callable[[], _T], tokens: int) -> _T:
        """Run one step, in which there are so many tokens.

        The first one warms up and the memory is that of the second one, when the optimizer has its own; neither counts
        for the time.
        """
        self._steps += 1
        if self._steps == 1:
            return step()
        if self._steps == 2:
            result, self._memory = peak_memory(step, self.device)
            return result
        started = time.perf_counter()
        result = step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds.append(time.perf_counter() - started)
        self._tokens += tokens
        return result

    def report(self) -> dict[str, float | int]:
        """Of the steps since the last report: median milliseconds, tokens per second in all, peak bytes."""
        found: dict[str, float | int] = {}
        if self._seconds:
            found["step_ms"] = round(1e3 * statistics.median(self._seconds), 3)
            found["tokens_per_second"] = round(self._tokens / sum(self._seconds), 1)
        if self._memory is not None:
            found["peak_memory"] = self._memory
        self._seconds, self._tokens = [], 0
        return found
