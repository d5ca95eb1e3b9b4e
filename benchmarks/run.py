"""Run every ``bench_*.py`` of this folder; write one JSON file and print one Markdown table.

python benchmarks/run.py [--only pushpull] [--heap default|warm|both] [--device cpu|cuda] [--rounds N] [--compile]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="comma-separated op families, for example pushpull")
    parser.add_argument("--match", default="", help="only rows whose title contains this text")
    parser.add_argument("--heap", choices=["default", "warm", "both"], default="both", help="of CPU runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="times that every contender is measured")
    parser.add_argument("--compile", action="store_true", help="torch.compile among the contenders (minutes to build)")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; default: results/MACHINE.json")
    parser.add_argument("--one-heap", type=Path, help=argparse.SUPPRESS)  # measure in this process, rows to this file
    return parser.parse_args()


def families(only: str) -> list[str]:
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    chosen = [name for name in only.split(",") if name] or known
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"run.py: no benchmark for {', '.join(unknown)}; there is {', '.join(known)}")
    return chosen


def measure_here(options: argparse.Namespace, target: Path) -> None:
    """Measure with the heap that this process was started with."""
    from harness import measure, to_json

    rows = []
    for family in families(options.only):
        for comparison in importlib.import_module(f"bench_{family}").comparisons():
            if options.match not in comparison.title():
                continue
            row = to_json(measure(comparison, rounds=options.rounds, heap=options.heap, device=options.device))
            rows.append(row)
            ratios = ", ".join(f"{name} {value:.2f}x" for name, value in row["ratio"].items())
            print(
                f"{options.heap}: {comparison.title()}: {row['ms']['sturdy']:.3g} ms; {ratios}",
                file=sys.stderr,
                flush=True,
            )
    target.write_text(json.dumps(rows))


def main() -> int:
    options = arguments()
    sys.path.insert(0, str(HERE))
    os.environ["STURDY_BENCH_DEVICE"] = options.device
    os.environ["STURDY_BENCH_COMPILE"] = "1" if options.compile else ""
    if options.one_heap is not None:
        measure_here(options, options.one_heap)
        return 0
    families(options.only)
    from harness import HEAPS, machine, machine_name, table, with_heap

    described = machine(options.device)
    if described["load before the start"] > 0.5:
        # Threads that wait for one another on cores that others use make short calls hundreds of times slower.
        print("run.py: this machine is busy with other work; measure on an idle one", file=sys.stderr)
    rows = []
    # Torch's allocator keeps a GPU's memory anyway.
    heaps = ["default"] if options.device == "cuda" else [h for h in HEAPS if options.heap in (h, "both")]
    with tempfile.TemporaryDirectory() as folder:
        for heap in heaps:
            part = Path(folder) / f"{heap}.json"
            again = [str(Path(__file__).resolve()), "--one-heap", str(part), "--heap", heap, "--device", options.device]
            again += ["--rounds", str(options.rounds), "--only", options.only, "--match", options.match]
            status = with_heap(heap, [*again, *(["--compile"] if options.compile else [])])
            if status != 0:
                print(f"run.py: the measurement with the {heap} heap failed; nothing is written", file=sys.stderr)
                return status
            rows += json.loads(part.read_text())
    output = options.output or HERE / "results" / f"{machine_name(described)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": described, "rows": rows}, indent=1) + "\n")
    text = table(described, rows)
    output.with_suffix(".md").write_text(text)
    print(text)
    print(f"written: {output} and {output.with_suffix('.md').name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
