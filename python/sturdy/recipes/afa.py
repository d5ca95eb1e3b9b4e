"""AFA: training with plane waves added to the images, as the authors do it.

By default with their auxiliary objective: the images themselves and images with AFA, each through normalisations of
its own, and the mean of both cross-entropies. CIFAR-10 and image folders follow the authors' recipes for CIFAR-10 and
ImageNet; what they do for CIFAR-100 (``--epochs 100 --batch-size 128 --lr 0.2 --grad-clip 0.5 --jsd-lambda 1``) and
TinyImageNet (the same with ``--jsd-lambda 10``) are options. The paper has no recipe for small grey images; they take
the objective with a small network and few epochs, and weaker waves for the digits, which are 8 pixels wide.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes.presets import Preset

_PAPER: dict[str, Any] = {
    "stem": "plain",
    "objective": "ace",
    "ibn": True,
    "afa_reference": True,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "norm_weight_decay": False,
    "schedule": "cosine",
    "min_lr": 1e-5,
    "val_fraction": 0.02,
}

_CIFAR10: dict[str, Any] = {
    **_PAPER,
    "model": "resnet18",
    "epochs": 200,
    "batch_size": 256,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "grad_clip": 1.0,
    "jsd_lambda": 10.0,
    "augment": ("crop", "flip", "afa"),
}

# The authors add up the gradients of four batches of 128.
_IMAGENET: dict[str, Any] = {
    **_PAPER,
    "model": "resnet50",
    "epochs": 90,
    "batch_size": 512,
    "accumulate": 4,
    "lr": 0.2,
    "nesterov": False,
    "weight_decay": 1e-4,
    "schedule": "steps",
    "warmup_epochs": 5,
    "warmup_start": 0.5,
    "grad_clip": 1.0,
    "jsd_lambda": 12.0,
    "augment": ("flip", "afa"),
}

_SMALL: dict[str, Any] = {
    **_CIFAR10,
    "model": "small-cnn",
    "afa_reference": False,
    "batch_size": 64,
    "val_fraction": 0.1,
}

_BY_DATA: dict[str, dict[str, Any]] = {
    "digits": {**_SMALL, "epochs": 20, "afa_strength": 5.0, "augment": ("crop", "afa")},
    "fashion-mnist": {**_SMALL, "epochs": 10},
    "cifar10": _CIFAR10,
    "npz": {**_SMALL, "epochs": 20, "augment": ("afa",)},
    "imagefolder": _IMAGENET,
}

PRESET = Preset(
    name="afa",
    summary="AFA: plane waves as augmentation, with normalisations and a loss of their own",
    source="Vaish, Wang, Strisciuglio, Fourier-basis functions to bridge augmentation gap: Rethinking frequency "
    "augmentation in image classification, CVPR 2024",
    defaults=lambda data: dict(_BY_DATA[data]),
)
