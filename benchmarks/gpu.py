"""What `make gpu` runs on a machine with an NVIDIA GPU: build, test, sanitize, bench.

Uses the Python it is started with and that Python's torch; installs nothing, needs no network and writes only into this
tree. Every piece stays under ten minutes, so that they can be run one by one: ``python benchmarks/gpu.py build test``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIECES = ("build", "test", "sanitize", "bench")
LIMIT_S = 590  # of a piece

# Small cases that between them launch every CUDA kernel, forward and backward.
SANITIZED = """
import sys
sys.path[:0] = ["tests"]
import torch
from support import BY_NAME, gradients, random
from sturdy.functional import push_pull_conv2d
names = "plain wide_filters wide_both depthwise_multiplied groups stride_dilation pool_beyond_map pool_wide_window"
for name in names.split():
    case = BY_NAME[name]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            tensors = case.tensors(dtype, "cuda", layout=layout)
            out = case.call(push_pull_conv2d, tensors)
            grad_out = random(tuple(out.shape), 7, dtype, "cuda")
            for keep_push in (True, False):
                gradients(case, push_pull_conv2d, tensors, grad_out, keep_push=keep_push)
from spectral_support import uniform
from sturdy.functional import amplitude_mix, spectral_filter, spectrum_accumulate
# Fused and in passes; a chirp, odd widths, large primes.
for size in ((32, 32), (28, 31), (37, 22), (224, 224), (300, 299)):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = uniform((3, 2, *size), 1, dtype, "cuda").requires_grad_()
        mask_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        table = uniform((2, *size), 2, mask_dtype, "cuda").requires_grad_()
        index = torch.tensor([1, -1, 0], device="cuda")
        spectral_filter(x, table, index=index, clip=(0.2, 0.6)).sum().backward()
        spectral_filter(x, table[None, :, None]).sum().backward()
        for color_fft in (False, True):
            amplitude_mix(x.detach(), index=index, strength=0.5, window=(9, 9), color_fft=color_fft)
        spectrum_accumulate(x.detach(), index, 2)
from prime_support import normal, pixels
from support import with_layout
from sturdy.functional import filter2d, sine_warp, smooth_color, wave_add
# Packed and ragged rows, several tiles, more waves and terms than are summed at a time; no pixels.
for shape in ((2, 3, 20, 68), (1, 2, 70, 67), (3, 2, 0, 8)):
    planes = shape[:2]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8):
        for layout in ("contiguous", "channels_last"):
            x = with_layout(pixels(shape, dtype, "cuda"), layout).requires_grad_(dtype != torch.uint8)
            kernel, terms = (normal((*planes, *rest), "cuda").requires_grad_() for rest in ((3, 3), (40,)))
            amplitude, phase = (normal((*planes, 9), "cuda", seed).requires_grad_(seed == 3) for seed in (3, 4))
            waves = normal((*planes, 9, 2), "cuda"), amplitude, phase
            for clip in (None, (0, 1)):
                for out in (wave_add(x, *waves, clip=clip), filter2d(x, kernel, clip), smooth_color(x, terms, clip)):
                    out.backward(torch.ones_like(out))
            for modes in (3, 9):
                sine_warp(x.detach(), normal((shape[0], 2, modes, modes), "cuda"))
from cast_support import make_tokens, random_padding
from sturdy.functional import cast_attention
# More than one tile of everything with ragged edges, heads of every width, rows that are not aligned, many clusters.
for sizes in ((2, 2, 75, 16, 3), (1, 1, 40, 24, 67), (2, 1, 90, 33, 5), (1, 2, 600, 64, 4), (1, 1, 70, 128, 2)):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for method in ("topk", "sa_topk"):
            for allow_tf32 in (False, True) if dtype == torch.float32 else (False,):
                given = make_tokens(*sizes, dtype, "cuda", packed=True)
                options = {"method": method, "dropout": 0.2, "allow_tf32": allow_tf32}
                padding = random_padding(sizes[0], sizes[2], device="cuda")
                cast_attention(*given.all(), **options)
                cast_attention(*given.leaves().all(), key_padding_mask=padding, **options).sum().backward()
torch.cuda.synchronize()
"""


def stop(message: str) -> None:
    """End with one line on stderr."""
    print(f"gpu.py: {message}", file=sys.stderr)
    sys.exit(1)


def environment(**more: str) -> dict[str, str]:
    """The tree's package before any installed one, and no test libraries, which this machine did not build."""
    path = os.pathsep.join(filter(None, [str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "STURDY_SKIP_SIMT": "1", "HYPOTHESIS_PROFILE": "ci", **more}


def run(*command: str, **more: str) -> int:
    """Run a command in the root of the tree, within the time of a piece."""
    print(f"$ {' '.join(part if len(part) < 80 else '...' for part in command)}", flush=True)
    try:
        return subprocess.run(command, cwd=ROOT, env=environment(**more), timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        print(f"gpu.py: not done after {LIMIT_S} s", file=sys.stderr)
        return 124


def build() -> int:
    """Compile the package in place for the GPU that is here."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    # 9.0 and newer have instructions that only code for exactly this architecture may use.
    architecture = f"{major}{minor}{'a' if major == 9 else ''}-real"
    wanted = {"FORCE_CUDA": "1", "STURDY_CUDA_ARCHS": os.environ.get("STURDY_CUDA_ARCHS", architecture)}
    if importlib.util.find_spec("pybind11") is None:
        wanted["STURDY_WITH_NUMPY"] = "OFF"
        print("gpu.py: pybind11 is not installed, so the NumPy module is left out")
    return run(sys.executable, "setup.py", "build_ext", "--inplace", **wanted)


def test() -> int:
    """Run the op and module tests on the GPU."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        stop(f"the tests need {' and '.join(missing)}, which this Python does not have")
    # Not every Python with a torch has the plugin that the project's own options name.
    options = ["-o", "addopts=", "-ra", "--strict-markers", "-m", "cuda"]
    return run(sys.executable, "-m", "pytest", "tests/functional", "tests/nn", *options)


def sanitize() -> int:
    """Small cases of every kernel under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        print("gpu.py: compute-sanitizer is not here, so nothing is checked with it")
        return 0
    status = 0
    for check in ("memcheck", "racecheck"):
        # Torch's caching allocator would hide what lies between tensors.
        found = run(
            *(tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", SANITIZED),
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        status = status or found
    return status


def bench() -> int:
    """Measure on the GPU."""
    return run(sys.executable, "benchmarks/run.py", "--device", "cuda", "--rounds", "15")


def main() -> int:
    pieces = sys.argv[1:] or list(PIECES)
    unknown = [piece for piece in pieces if piece not in PIECES]
    if unknown:
        stop(f"no piece {', '.join(unknown)}; there is {', '.join(PIECES)}")
    if importlib.util.find_spec("torch") is None:
        stop(f"{sys.executable} has no torch; start me with a Python that has one")
    import torch

    if not torch.cuda.is_available():
        stop("no NVIDIA GPU that this torch can use, so there is nothing to run")
    print(f"gpu.py: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for piece in pieces:
        status = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}[piece]()
        if status != 0:
            stop(f"{piece} failed with status {status}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
