"""PRIME: training with chains of warps, changes of colour and filters, as the authors do it.

On CIFAR-10 and CIFAR-100 with agreement of the predictions for the images and two draws of PRIME (``jsd``, weight 12);
on ImageNet with cross-entropy alone, as their released configuration has it. Together with AFA, ``--augment
crop,flip,prime,afa``, PRIME makes the other view of ``ace`` and ``jsd``, and AFA the auxiliary one.

The authors start from a network that is trained on ImageNet already and train it for 100 epochs; here training starts
from random weights, and this case has not been tried. There is no recipe of theirs for TinyImageNet and for small grey
images: the first takes that of CIFAR-10, the others the objective with a small network and few epochs.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes.presets import Preset

_PAPER: dict[str, Any] = {
    "stem": "plain",
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "onecycle",
    "epochs": 100,
    "prime_reference": True,
    "val_fraction": 0.02,
}

_CIFAR: dict[str, Any] = {
    **_PAPER,
    "model": "resnet18",
    "objective": "jsd",
    "jsd_lambda": 12.0,
    "batch_size": 128,
    "lr": 0.2,
    "pct_start": 0.25,
    "weight_decay": 5e-4,
    "grad_clip": 0.5,
    "augment": ("crop", "flip", "prime"),
}

# The authors have two GPUs and scale the batch and the learning rate with their number.
_IMAGENET: dict[str, Any] = {
    **_PAPER,
    "model": "resnet50",
    "objective": "ce",
    "jsd_lambda": 12.0,
    "prime_preset": "imagenet",
    "batch_size": 512,
    "lr": 0.02,
    "pct_start": 0.1,
    "weight_decay": 1e-4,
    "augment": ("resized-crop", "flip", "prime"),
    "test_crop": 224 / 256,
}

_SMALL: dict[str, Any] = {
    **_CIFAR,
    "model": "small-cnn",
    "prime_reference": False,
    "batch_size": 64,
    "val_fraction": 0.1,
}

_BY_DATA: dict[str, dict[str, Any]] = {
    "digits": {**_SMALL, "epochs": 20, "augment": ("crop", "prime")},
    "fashion-mnist": {**_SMALL, "epochs": 10},
    "cifar10": _CIFAR,
    "npz": {**_SMALL, "epochs": 20, "augment": ("prime",)},
    "imagefolder": _IMAGENET,
}

PRESET = Preset(
    name="prime",
    summary="PRIME: chains of warps, changes of colour and filters, against common corruptions",
    source="Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, PRIME: A few primitives can boost robustness to "
    "common corruptions, ECCV 2022",
    defaults=lambda data: dict(_BY_DATA[data]),
)
