"""Check what ptxas reported about the kernels: no spills, and registers within each kernel's budget.

A source states its budgets, in threads' 32-bit registers, next to its kernels::

    // ptxas-budget: <kernel name> <registers>

A kernel belongs to the budget that bears its unqualified name, whatever its template arguments. Use::

    nvcc ... -Xptxas -v -c kernels.cu 2> report.txt
    python check_ptxas.py report.txt --source kernels.cu

Prints one line per finding and a summary; the exit status is 1 if there is a finding, 2 if the call makes no sense.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BUDGET = re.compile(r"^\s*//\s*ptxas-budget:\s*(?P<kernel>[A-Za-z_]\w*)\s+(?P<registers>\d+)\s*$")
BUDGET_MARK = re.compile(r"^\s*//\s*ptxas-budget\b")
ENTRY = re.compile(r"Compiling entry function '(?P<symbol>\S+)' for '(?P<arch>\w+)'")
SPILLS = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")


@dataclass(frozen=True)
class Kernel:
    """What ptxas said about one instance of a kernel: registers of a thread, spills in bytes."""

    symbol: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int

    @property
    def names(self) -> list[str]:
        """The identifiers in the mangled symbol, in order; the kernel's own name is among them."""
        return identifiers(self.symbol)


def identifiers(symbol: str) -> list[str]:
    """Read the length-prefixed identifiers of an Itanium-mangled symbol (a plain C name stands for itself)."""
    if not symbol.startswith("_Z"):
        return [symbol]
    found = []
    at = 2
    while at < len(symbol):
        number = re.match(r"\d+", symbol[at:])
        if number is None:
            at += 1
            continue
        begin = at + number.end()
        name = symbol[begin : begin + int(number.group())]
        found.append(name)
        at = begin + len(name)
    return found


def parse_budgets(text: str, source: str = "source") -> dict[str, int]:
    """Read the budget lines of a source. Raises ValueError for one that is malformed or given twice."""
    budgets: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if BUDGET_MARK.match(line) is None:
            continue
        match = BUDGET.match(line)
        if match is None:
            raise ValueError(
                f"{source}:{number}: want '// ptxas-budget: <kernel name> <registers>', got {line.strip()!r}"
            )
        if match["kernel"] in budgets:
            raise ValueError(f"{source}:{number}: a second budget for {match['kernel']}")
        budgets[match["kernel"]] = int(match["registers"])
    return budgets


def parse_report(text: str) -> list[Kernel]:
    """Read a report of ``ptxas -v``. Raises ValueError where an entry lacks its numbers."""
    kernels = []
    entry: re.Match[str] | None = None
    spills: re.Match[str] | None = None
    for line in text.splitlines():
        if (match := ENTRY.search(line)) is not None:
            if entry is not None:
                raise ValueError(f"the report says nothing about the registers of {entry['symbol']}")
            entry, spills = match, None
        elif (match := SPILLS.search(line)) is not None:
            spills = match
        elif (match := REGISTERS.search(line)) is not None and entry is not None:
            if spills is None:
                raise ValueError(f"the report says nothing about the spills of {entry['symbol']}")
            kernels.append(
                Kernel(
                    entry["symbol"], entry["arch"], int(match["registers"]), int(spills["stores"]), int(spills["loads"])
                )
            )
            entry = None
    if entry is not None:
        raise ValueError(f"the report says nothing about the registers of {entry['symbol']}")
    return kernels


def find_problems(kernels: Iterable[Kernel], budgets: dict[str, int]) -> list[str]:
    """One line for each spill, each kernel over its budget or without one, and each budget without a kernel."""
    problems = []
    used = set()
    for kernel in kernels:
        where = f"{kernel.symbol} ({kernel.arch})"
        if kernel.spill_stores > 0 or kernel.spill_loads > 0:
            problems.append(f"{where} spills: {kernel.spill_stores} bytes stored, {kernel.spill_loads} loaded")
        name = next((name for name in kernel.names if name in budgets), None)
        if name is None:
            problems.append(f"{where} has no budget")
            continue
        used.add(name)
        if kernel.registers > budgets[name]:
            problems.append(f"{where} takes {kernel.registers} registers, budget {budgets[name]}")
    problems += [f"no kernel has the name {name} of a budget" for name in budgets if name not in used]
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Run the check on report files; see the module's text."""
    parser = argparse.ArgumentParser(description="Check a report of ptxas -v for spills and registers over budget.")
    parser.add_argument("reports", nargs="+", type=Path, help="captured output of nvcc -Xptxas -v")
    parser.add_argument(
        "--source", action="append", required=True, type=Path, help="source with ptxas-budget lines; may be repeated"
    )
    options = parser.parse_args(arguments)
    try:
        budgets: dict[str, int] = {}
        for source in options.source:
            for name, registers in parse_budgets(source.read_text(), str(source)).items():
                if budgets.setdefault(name, registers) != registers:
                    raise ValueError(f"{source}: another source has a different budget for {name}")
        kernels = [kernel for report in options.reports for kernel in parse_report(report.read_text())]
    except (OSError, ValueError) as error:
        print(f"check_ptxas: {error}", file=sys.stderr)
        return 2
    if not kernels:
        print("check_ptxas: the report names no kernel; was it made with -Xptxas -v?", file=sys.stderr)
        return 2
    problems = find_problems(kernels, budgets)
    for problem in problems:
        print(f"check_ptxas: {problem}")
    most = max(kernel.registers for kernel in kernels)
    print(f"check_ptxas: {len(kernels)} kernels, at most {most} registers, {len(problems)} findings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
