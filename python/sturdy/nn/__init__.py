"""Drop-in modules on top of :mod:`sturdy.functional`."""

from sturdy.nn.convert import convert_first_conv
from sturdy.nn.pushpull import PushPullConv2d

__all__ = ["PushPullConv2d", "convert_first_conv"]
