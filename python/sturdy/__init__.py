"""Hand-written kernels for networks that are robust to corrupted input and cheap to train.

Importing this package loads nothing else; what needs PyTorch, NumPy or the recipes' extras loads it at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sturdy._version import __version__

if TYPE_CHECKING:
    from sturdy._errors import ShapeError
    from sturdy._info import build_info
    from sturdy._load import load_library
    from sturdy._threads import get_num_threads, set_num_threads
    from sturdy.nn.cast_convert import convert_encoder_layers
    from sturdy.nn.checkpoints import load_pushpull_state_dict
    from sturdy.nn.convert import convert_first_conv, convert_layers

__all__ = [
    "ShapeError",
    "__version__",
    "build_info",
    "convert_encoder_layers",
    "convert_first_conv",
    "convert_layers",
    "get_num_threads",
    "load_library",
    "load_pushpull_state_dict",
    "set_num_threads",
]

_HOME = {
    "ShapeError": "sturdy._errors",
    "build_info": "sturdy._info",
    "convert_encoder_layers": "sturdy.nn.cast_convert",
    "convert_first_conv": "sturdy.nn.convert",
    "convert_layers": "sturdy.nn.convert",
    "get_num_threads": "sturdy._threads",
    "load_library": "sturdy._load",
    "load_pushpull_state_dict": "sturdy.nn.checkpoints",
    "set_num_threads": "sturdy._threads",
}
_SUBMODULES = ("analysis", "functional", "losses", "nn", "numpy", "recipes", "transforms")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"sturdy.{name}")
    raise AttributeError(f"module 'sturdy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
