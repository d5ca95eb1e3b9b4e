"""What the tests of the C library, its CMake package and the Python packaging share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sturdy

ROOT = Path(__file__).resolve().parents[2]
NO_CUDA = pytest.mark.skipif(sturdy.build_info()["cuda"] is not None, reason="this build has CUDA kernels")


def program(name: str) -> str:
    """A build tool: beside the interpreter, where pip puts it, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: pip install {name}", False)
    return found


def run(*command: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program and keep what it says; fail with that if its exit code is not 0 and ``check`` holds."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=900, check=False, **options
    )
    if check and done.returncode != 0:
        said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}", False)
    return done


def python_environment(package_parent: Path | None = None, **extra: str) -> dict[str, str]:
    """An environment in which a child interpreter finds the package of this process, or another one."""
    if package_parent is None:
        import sturdy

        package_parent = Path(sturdy.__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": str(package_parent), **extra}


def run_python(
    code: str, *arguments: object, check: bool = True, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, outside the source tree's folders."""
    options.setdefault("env", python_environment())
    return run(sys.executable, "-c", code, *arguments, check=check, **options)


def configure(
    source: Path, build: Path, *definitions: str, check: bool = True, build_type: str = "Release"
) -> subprocess.CompletedProcess[str]:
    """Configure a CMake project with ninja."""
    return run(
        *(program("cmake"), "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}"),
        *(f"-DCMAKE_BUILD_TYPE={build_type}", f"-DPython_EXECUTABLE={sys.executable}"),
        *(f"-D{definition}" for definition in definitions),
        check=check,
    )


def build(folder: Path, *targets: str) -> None:
    """Build a configured project, with two jobs."""
    chosen = ["--target", *targets] if targets else []
    run(program("cmake"), "--build", folder, "--parallel", "2", *chosen)
