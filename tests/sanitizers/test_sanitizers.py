"""The C library under AddressSanitizer and UndefinedBehaviorSanitizer, driven through the NumPy module."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "asan"


def _program(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: pip install {name}", False)
    return found


def _run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=1800, check=False, **options
    )


@pytest.fixture(scope="module")
def package() -> Path:
    """A folder with a `sturdy` package whose libraries are sanitized; kept between runs in build/."""
    folder = BUILD / "package"
    definitions = {
        "CMAKE_MAKE_PROGRAM": _program("ninja"),
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS": "-O1",  # much quicker to build than -O3, and to run than -O0
        "CMAKE_INSTALL_PREFIX": folder / "sturdy",
        "CMAKE_INSTALL_LIBDIR": "lib",
        "Python_EXECUTABLE": sys.executable,
        "STURDY_SANITIZE": "address,undefined",
        "STURDY_WHEEL": "ON",
        "STURDY_WITH_CUDA": "OFF",
        "STURDY_WITH_TORCH": "OFF",
    }
    cmake = _program("cmake")
    for command in (
        (cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *(f"-D{name}={value}" for name, value in definitions.items())),
        (cmake, "--build", BUILD, "--parallel", "2"),
        (cmake, "--install", BUILD),
    ):
        done = _run(*command)
        if done.returncode != 0:
            pytest.fail(
                f"{' '.join(map(str, command[:4]))} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}", False
            )
    for path in (ROOT / "python" / "sturdy").glob("*.py"):
        shutil.copy(path, folder / "sturdy")
    numpy = folder / "sturdy" / "numpy"
    shutil.copytree(ROOT / "python" / "sturdy" / "numpy", numpy, dirs_exist_ok=True)
    return folder


def _run_sanitized(script: Path, package: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    library = _run("gcc", "-print-file-name=libasan.so").stdout.strip()
    assert os.path.isabs(library), "gcc has no libasan.so"
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        # Python itself leaves memory to the end of the process, so leaks are not looked for.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(package),
        **extra,
    }
    return _run(sys.executable, script, env=environment, cwd=package)


@pytest.mark.parametrize("driver", ["geometry.py", "geometry_fourier.py", "geometry_prime.py", "geometry_cast.py"])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_geometry(package: Path, isa: str, driver: str) -> None:
    code = "import json, sturdy; print(json.dumps(sturdy.build_info()))"
    script = package / "info.py"
    script.write_text(code)
    info = json.loads(_run_sanitized(script, package, STURDY_ISA=isa).stdout)
    if info["cpu_kernels_used"] != isa:
        pytest.skip(f"this machine or build has no {isa}")
    done = _run_sanitized(HERE / driver, package, STURDY_ISA=isa)
    said = f"{done.stdout}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, said
    assert f" shapes on {isa}" in done.stdout, said
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, said


def test_a_planted_bug_is_caught(package: Path) -> None:
    """Else the silence of the other test would mean nothing."""
    done = _run_sanitized(HERE / "planted.py", package)
    assert done.returncode != 0, done.stdout
    # A vector that begins inside the array and ends outside is reported as an unknown crash.
    assert re.search(r"AddressSanitizer: (heap-buffer-overflow|unknown-crash)", done.stderr), done.stderr[-3000:]
    assert f"{4095 * 8}-byte region" in done.stderr, done.stderr[-3000:]
    assert "not caught" not in done.stdout


def test_undefined_behaviour_is_looked_for(package: Path) -> None:
    undefined = _run("nm", "-D", "--undefined-only", package / "sturdy" / "lib" / "libsturdy_core.so").stdout
    # The handlers that end the process, for overflow and shifts among others.
    for name in ("add_overflow", "mul_overflow", "shift_out_of_bounds", "pointer_overflow"):
        assert f"__ubsan_handle_{name}_abort" in undefined
