"""Run nvcc and judge what ptxas says of the kernels: ``nvcc_checked.py nvcc ... -Xptxas -v -c file.cu``.

CMake uses it as compiler launcher. The compilation fails when a kernel spills registers or takes more of them than the
``ptxas-budget`` lines of its source allow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import check_ptxas

# What ptxas -v prints for each kernel; shown no more once it has been read.
_REPORT = re.compile(r"^(ptxas info|\s+\d+ bytes stack frame|.*Function properties for )")


def main() -> int:
    """Compile, check, and return the exit status."""
    run = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE, text=True, errors="replace")
    for line in run.stderr.splitlines():
        if not _REPORT.match(line):
            print(line, file=sys.stderr)
    if run.returncode != 0:
        return run.returncode
    sources = [Path(argument) for argument in sys.argv[1:] if argument.endswith(".cu")]
    budgets: dict[str, int] = {}
    for source in sources:
        budgets.update(check_ptxas.parse_budgets(source.read_text(), str(source)))
    kernels = check_ptxas.parse_report(run.stderr)
    problems = check_ptxas.find_problems(kernels, budgets)
    for problem in problems:
        print(f"{', '.join(map(str, sources))}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
