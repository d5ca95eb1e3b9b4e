"""What was built, what this machine has, and whether the two fit."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from dataclasses import dataclass
from typing import Any

from sturdy._load import core, library_path, package_dir
from sturdy._version import __version__

# The libraries that each extra brings, by import name.
_EXTRAS = {
    "recipes": ["torchvision", "sklearn", "typer", "rich", "matplotlib", "safetensors"],
    "test": ["pytest", "pytest_benchmark", "hypothesis"],
}

_BFLOAT16 = {"none": "in float32", "avx512_bf16": "AVX512-BF16", "amx": "AMX"}


def build_info() -> dict[str, Any]:
    """What this build contains.

    Returns:
        A dictionary: ``version``, ``abi``, ``compiler``, ``build_type``, ``cpu_kernels`` (instruction sets compiled),
        ``cpu_kernels_used`` (the one chosen on this machine), ``cpu_bfloat16`` (what multiplies bfloat16 matrices on
        it: ``"none"`` for the float32 vectors, ``"avx512_bf16"`` or ``"amx"``), ``cuda`` (None, or ``toolkit``,
        ``architectures``, ``runtime`` inside the library, ``least_driver`` it needs, and ``driver`` found, None without
        one) and ``bindings`` (name to whether it was built).

    Raises:
        ImportError: the C library is missing or of another version.
    """
    info = json.loads(core().sturdy_build_info().decode())
    cuda = info["cuda"]
    if cuda is not None:
        runtime = cuda["runtime"]
        cuda["runtime"] = _cuda_version(runtime)
        # Minor version compatibility: a runtime needs a driver of its own major version.
        cuda["least_driver"] = f"CUDA {runtime // 1000}.0"
        cuda["driver"] = _cuda_version(cuda["driver"]) if cuda["driver"] else None
    info["bindings"] = {
        "torch": library_path("sturdy_torch").exists(),
        "numpy": importlib.util.find_spec("sturdy._numpy") is not None,
    }
    return info


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def info_lines() -> list[str]:
    """The build and the machine, as ``sturdy info`` prints them."""
    lines = [f"sturdy {__version__} in {package_dir()}"]
    info = build_info()
    lines.append(f"build: {info['compiler']}, {info['build_type']}, C ABI {info['abi']}")
    bindings = ", ".join(f"{name} {'yes' if built else 'no'}" for name, built in info["bindings"].items())
    lines.append(f"bindings: {bindings}")
    lines.append(f"CPU kernels: {', '.join(info['cpu_kernels'])}; used here: {info['cpu_kernels_used']}")
    lines.append(f"bfloat16 matrix products on the CPU: {_BFLOAT16[info['cpu_bfloat16']]}")
    cuda = info["cuda"]
    if cuda is None:
        lines.append("CUDA kernels: none in this build")
    else:
        lines.append(f"CUDA kernels: {', '.join(cuda['architectures'])} (toolkit {cuda['toolkit']})")
        driver = f"driver for CUDA {cuda['driver']}" if cuda["driver"] else "no driver"
        lines.append(
            f"CUDA runtime inside: {cuda['runtime']}; needs a driver for {cuda['least_driver']}; found: {driver}"
        )
    lines.append(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    lines.append(f"Python {platform.python_version()}, torch {_installed('torch')}, numpy {_installed('numpy')}")
    return lines


@dataclass(frozen=True)
class Finding:
    """One thing that :func:`doctor` looked at."""

    ok: bool
    what: str
    advice: str = ""


def doctor() -> list[Finding]:
    """Look for what keeps an installation from working, and say what to do about each finding."""
    findings = [_check_python()]
    library = _check_library()
    findings.append(library)
    if library.ok:
        findings += [_check_torch(), _check_op(), _check_cuda()]
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        findings.append(
            Finding(True, f"extra [{extra}]: complete")
            if not missing
            else Finding(
                False, f"extra [{extra}]: without {', '.join(missing)}", f"pip install 'sturdy-kernels[{extra}]'"
            )
        )
    return findings


def _check_python() -> Finding:
    what = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return Finding(True, f"{what} (untested: portable CPU kernels)")
    return Finding(True, what)


def _check_library() -> Finding:
    try:
        info = build_info()
    except (ImportError, OSError) as error:
        return Finding(False, f"the C library: {error}", "build it: `pip install .` in the source tree")
    if info["version"] != __version__:
        return Finding(
            False,
            f"the C library is version {info['version']}, the Python package {__version__}",
            "build again: `pip install .` in the source tree",
        )
    return Finding(True, f"the C library: version {info['version']}, {info['cpu_kernels_used']} CPU kernels")


def _check_torch() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding(False, "torch is not installed", "pip install 'torch>=2.10' (NumPy users can do without)")
    try:
        importlib.import_module("sturdy.functional")
    except (ImportError, OSError) as error:
        return Finding(
            False, f"torch {torch.__version__}: {error}", "build again against the torch in use: `pip install .`"
        )
    return Finding(True, f"torch {torch.__version__}: ops loaded")


def _check_op() -> Finding:
    """One small call, compared with torch."""
    try:
        import torch

        from sturdy.functional import push_pull_conv2d
        from sturdy.functional.pushpull import composite
    except (ImportError, OSError):
        return Finding(False, "a test call: not made", "see the line on torch")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 12, 12, generator=generator)
    weight = torch.randn(8, 3, 3, 3, generator=generator)
    got = push_pull_conv2d(image, weight, avg_kernel_size=3)
    wanted = composite(image, weight, None, 1.0, None, (1, 1), (0, 0, 0, 0), (1, 1), 1, (3, 3))
    if torch.allclose(got, wanted, rtol=1e-4, atol=1e-4):
        return Finding(True, "a test call on the CPU: as torch computes it")
    return Finding(False, "a test call on the CPU: wrong numbers", "report this with the output of `sturdy info`")


def _check_cuda() -> Finding:
    cuda = build_info()["cuda"]
    if cuda is None:
        hint = " (nvcc is here: set FORCE_CUDA=1 and build again to have them)" if shutil.which("nvcc") else ""
        return Finding(True, f"no CUDA kernels in this build{hint}")
    if cuda["driver"] is None:
        return Finding(True, "CUDA kernels built; no NVIDIA driver here, so the CPU is used")
    if int(cuda["driver"].split(".")[0]) < int(cuda["runtime"].split(".")[0]):
        return Finding(
            False,
            f"the NVIDIA driver serves CUDA {cuda['driver']}, the library needs {cuda['least_driver']}",
            "update the driver, or build with an older CUDA toolkit",
        )
    return Finding(True, f"CUDA kernels built; driver for CUDA {cuda['driver']}")
