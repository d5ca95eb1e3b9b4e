"""PushPull-Net: a first layer that subtracts the response to the contrast-inverted kernel.

CIFAR-10 and image folders follow the recipe of the paper's authors: SGD without Nesterov, one weight decay for all
parameters, one cycle per run with cycled momentum, fixed inhibition of strength 1, evaluation after the last epoch.
The paper has no recipe for images as small as the digits; they take the same first layer and optimizer with a small
network and fewer epochs.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes.presets import Preset

# The learning rate goes 1/40 of the peak -> peak -> 1/40000 of the start.
_PAPER: dict[str, Any] = {
    "stem": "pushpull",
    "avg_kernel_size": 3,
    "inhibition": 1.0,
    "trainable_inhibition": False,
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.2,
    "schedule": "onecycle",
    "div_factor": 40.0,
    "final_div_factor": 40000.0,
    "weight_decay": 1e-5,
    "batch_size": 64,
    "val_fraction": 0.02,
}

_SMALL: dict[str, Any] = {
    **_PAPER,
    "model": "small-cnn",
    "val_fraction": 0.1,
}

_BY_DATA: dict[str, dict[str, Any]] = {
    "digits": {**_SMALL, "epochs": 20, "augment": ("crop",)},
    "fashion-mnist": {**_SMALL, "epochs": 10, "augment": ("crop", "flip")},
    "cifar10": {**_PAPER, "model": "resnet18", "epochs": 30, "augment": ("crop", "flip")},
    "npz": {**_SMALL, "epochs": 20},
    "imagefolder": {**_PAPER, "model": "resnet50", "epochs": 20, "augment": ("flip",)},
}

PRESET = Preset(
    name="pushpull",
    summary="PushPull stem: robust to noise by inhibition in the first layer",
    source="Bennabhaktula et al., PushPull-Net: Inhibition-driven ResNet robust to image corruptions, ICPR 2024",
    defaults=lambda data: dict(_BY_DATA[data]),
)
