"""The check of ptxas reports finds spills, budgets that are exceeded or missing, and reports that cannot be read."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cmake" / "check_ptxas.py"
_spec = importlib.util.spec_from_file_location("check_ptxas", SCRIPT)
assert _spec is not None and _spec.loader is not None
check_ptxas = importlib.util.module_from_spec(_spec)
sys.modules["check_ptxas"] = check_ptxas
_spec.loader.exec_module(check_ptxas)

# As nvcc mangles sum_kernel<float> and copy_kernel<__half> of an unnamed namespace in example.cu.
UNNAMED = "_GLOBAL__N__2ccf75b6_10_example_cu_82a3cec0"
SUM = f"_ZN6sturdy4cuda{len(UNNAMED)}{UNNAMED}10sum_kernelIfEEvPKT_PS3_i"
COPY = f"_ZN6sturdy4cuda{len(UNNAMED)}{UNNAMED}11copy_kernelI6__halfEEvPKT_PS4_l"

SOURCE = """\
// An example.
// ptxas-budget: sum_kernel 40
// ptxas-budget: copy_kernel 32
"""


def entry(symbol: str, registers: int, stores: int = 0, loads: int = 0, arch: str = "sm_90a") -> str:
    return f"""\
ptxas info    : Compiling entry function '{symbol}' for '{arch}'
ptxas info    : Function properties for {symbol}
    {stores + loads} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
ptxas info    : Compile time = 12.025 ms
"""


HEAD = "ptxas info    : 0 bytes gmem\n"


def run(tmp_path: Path, report: str, source: str = SOURCE) -> int:
    (tmp_path / "report.txt").write_text(report)
    (tmp_path / "example.cu").write_text(source)
    return check_ptxas.main([str(tmp_path / "report.txt"), "--source", str(tmp_path / "example.cu")])


def test_good_report_is_one_line(tmp_path, capsys):
    report = HEAD + entry(SUM, 40) + entry(COPY, 18) + entry(SUM, 38, arch="sm_80") + entry(COPY, 20, arch="sm_80")
    assert run(tmp_path, report) == 0
    assert capsys.readouterr().out == "check_ptxas: 4 kernels, at most 40 registers, 0 findings\n"


@pytest.mark.parametrize(
    ("sum_entry", "finding"),
    [
        (entry(SUM, 40, stores=24, loads=20), f"{SUM} (sm_90a) spills: 24 bytes stored, 20 loaded"),
        (entry(SUM, 40, loads=4), f"{SUM} (sm_90a) spills: 0 bytes stored, 4 loaded"),
        (entry(SUM, 41, arch="sm_100"), f"{SUM} (sm_100) takes 41 registers, budget 40"),
    ],
    ids=["spill", "spill_loads_only", "over_budget"],
)
def test_finding(tmp_path, capsys, sum_entry, finding):
    assert run(tmp_path, HEAD + entry(COPY, 18) + sum_entry) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"check_ptxas: {finding}"
    assert lines[1].endswith("2 kernels, at most " + ("41" if "41" in finding else "40") + " registers, 1 findings")


def test_kernel_without_budget(tmp_path, capsys):
    other = SUM.replace("10sum_kernel", "12other_kernel")
    assert run(tmp_path, HEAD + entry(SUM, 10) + entry(COPY, 10) + entry(other, 10)) == 1
    assert f"{other} (sm_90a) has no budget" in capsys.readouterr().out


def test_budget_names_are_whole_identifiers(tmp_path, capsys):
    longer = SUM.replace("10sum_kernel", "17column_sum_kernel")
    assert "column_sum_kernel" in check_ptxas.identifiers(longer)
    assert run(tmp_path, HEAD + entry(longer, 10) + entry(SUM, 10) + entry(COPY, 10)) == 1
    assert f"{longer} (sm_90a) has no budget" in capsys.readouterr().out


def test_budget_without_kernel(tmp_path, capsys):
    assert run(tmp_path, HEAD + entry(SUM, 10)) == 1
    assert "no kernel has the name copy_kernel of a budget" in capsys.readouterr().out


def test_plain_symbol():
    assert check_ptxas.identifiers("fill") == ["fill"]
    assert check_ptxas.identifiers("_Z11copy_kernelPKfPf") == ["copy_kernel"]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("", "names no kernel"),
        (HEAD + entry(SUM, 10).split("ptxas info    : Used")[0], "nothing about the registers"),
        (HEAD + re.sub(".*spill.*\n", "", entry(SUM, 10)), "nothing about the spills"),
    ],
    ids=["empty", "cut_off", "without_spills"],
)
def test_unreadable_report(tmp_path, capsys, report, message):
    assert run(tmp_path, report) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["// ptxas-budget: sum_kernel", "// ptxas-budget: sum_kernel many", "// ptxas-budget sum_kernel 3"]
)
def test_malformed_budget(tmp_path, capsys, line):
    assert run(tmp_path, HEAD + entry(SUM, 10), line + "\n") == 2
    assert "example.cu:1: want" in capsys.readouterr().err


def test_budget_given_twice(tmp_path, capsys):
    assert run(tmp_path, HEAD + entry(SUM, 10), SOURCE + "// ptxas-budget: sum_kernel 41\n") == 2
    assert "a second budget for sum_kernel" in capsys.readouterr().err


def test_missing_file(tmp_path, capsys):
    assert check_ptxas.main([str(tmp_path / "none.txt"), "--source", str(tmp_path / "none.cu")]) == 2
    assert "none.cu" in capsys.readouterr().err
