"""The ops as functions on PyTorch tensors."""

from sturdy._load import load_library

load_library()

from sturdy.functional.pushpull import push_pull_conv2d  # noqa: E402  (the ops must be loaded first)

__all__ = ["push_pull_conv2d"]
