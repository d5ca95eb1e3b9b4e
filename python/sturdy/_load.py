"""Finds and loads the compiled libraries of this package."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_ABI = 1  # STURDY_ABI_VERSION of csrc/include/sturdy/sturdy.h


def package_dir() -> Path:
    """The folder that holds ``lib/``, ``include/`` and ``share/`` of the C library."""
    return Path(__file__).resolve().parent


def library_path(name: str) -> Path:
    """Where ``lib<name>.so`` should be, whether it is there or not."""
    return package_dir() / "lib" / f"lib{name}.so"


@cache
def core() -> ctypes.CDLL:
    """The C library, with the types of what Python itself calls in it.

    Raises:
        ImportError: it is not there, or was built from another version of the sources.
    """
    path = library_path("sturdy_core")
    if not path.exists():
        raise ImportError(
            f"sturdy was not built: {path} is missing; run `pip install .` (or `make build` in the source tree)"
        )
    library = ctypes.CDLL(str(path))
    library.sturdy_abi_version.restype = ctypes.c_uint32
    library.sturdy_last_error.restype = ctypes.c_char_p
    library.sturdy_build_info.restype = ctypes.c_char_p
    library.sturdy_set_num_threads.argtypes = [ctypes.c_int32]
    found = library.sturdy_abi_version()
    if found != _ABI:
        raise ImportError(f"{path} has ABI {found}, this Python package needs {_ABI}: build both from one version")
    return library


@cache
def load_library() -> Path:
    """Load the PyTorch ops and register what belongs to them; done at the import of ``sturdy.functional``.

    Programs that call ``torch.export.load`` on a model with our ops need this first.

    Returns:
        The path of the loaded library.

    Raises:
        ImportError: the library is missing, another copy of it is loaded already, or PyTorch is too old.
    """
    import torch

    path = library_path("sturdy_torch")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise ImportError(f"sturdy needs torch 2.10 or newer, found {torch.__version__}")
    # A second copy of an op library makes torch end the process, so this has to be seen beforehand.
    if hasattr(torch.ops.sturdy, "push_pull_conv2d"):
        others = [name for name in torch.ops.loaded_libraries if "sturdy_torch" in name] or ["another copy"]
        raise ImportError(
            f"the sturdy ops are already loaded from {', '.join(others)}; refusing to load {path} as well"
        )
    core()
    if not path.exists():
        raise ImportError(
            f"sturdy was built without its PyTorch binding: {path} is missing; "
            "run `pip install .` with torch installed, or `make build` in the source tree"
        )
    torch.ops.load_library(str(path))
    return path
