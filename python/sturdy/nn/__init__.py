"""Drop-in modules on top of :mod:`sturdy.functional`."""

from sturdy.nn.cast import CASTAttention, keep_clusters
from sturdy.nn.cast_convert import convert_encoder_layers
from sturdy.nn.cast_encoder import CASTEncoder, CASTEncoderLayer
from sturdy.nn.cast_norms import MaskedBatchNorm, ScaleNorm
from sturdy.nn.checkpoints import load_pushpull_state_dict
from sturdy.nn.convert import convert_first_conv, convert_layers
from sturdy.nn.dual_norm import DualBatchNorm2d, DuBIN, convert_dual_bn, route
from sturdy.nn.pushpull import PushPullConv2d
from sturdy.nn.pushpull2020 import PushPull2020Conv2d
from sturdy.nn.surround import SurroundSuppressionConv2d

__all__ = [
    "CASTAttention",
    "CASTEncoder",
    "CASTEncoderLayer",
    "DuBIN",
    "DualBatchNorm2d",
    "MaskedBatchNorm",
    "PushPull2020Conv2d",
    "PushPullConv2d",
    "ScaleNorm",
    "SurroundSuppressionConv2d",
    "convert_dual_bn",
    "convert_encoder_layers",
    "convert_first_conv",
    "convert_layers",
    "keep_clusters",
    "load_pushpull_state_dict",
    "route",
]
