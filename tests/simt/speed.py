"""How fast the executor is on this machine: ``make simt && python tests/simt/speed.py`` prints a Markdown table.

Millions per second on one core, best of five: passes of ``__syncthreads``, warp shuffles, threads started and ended.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

FOLDER = Path(os.environ.get("STURDY_SIMT_DIR", Path(__file__).resolve().parents[2] / "build" / "simt"))
BARRIERS, SHUFFLES, EMPTY = range(3)


def main() -> None:
    """Measure and print."""
    library = ctypes.CDLL(str(FOLDER / "libsturdy_simt_selftest.so"))
    memory = (ctypes.c_float * 4096)()

    def rate(which: int, blocks: int, threads: int, iterations: int) -> float:
        """Millions of events per second, one per thread and iteration."""

        def seconds() -> float:
            start = time.perf_counter()
            if library.simt_test_speed(which, memory, blocks, threads, iterations) != 0:
                raise SystemExit("speed.py: the kernel failed")
            return time.perf_counter() - start

        return blocks * threads * iterations / min(seconds() for _ in range(5)) / 1e6

    print("| threads | passes of `__syncthreads` | shuffles | threads started and ended |")
    print("|---|---|---|---|")
    for threads in (32, 128, 256, 1024):
        rounds = 2_000_000 // threads
        rates = rate(BARRIERS, 1, threads, rounds), rate(SHUFFLES, 1, threads, rounds), rate(EMPTY, rounds, threads, 1)
        print(f"| {threads} | {' | '.join(f'{value:.0f}' for value in rates)} |")


if __name__ == "__main__":
    main()
