"""AFA: training with plane waves added to the images, as the authors do it.

By default with their auxiliary objective: the images themselves and images with AFA, each through normalisations of
its own, and the mean of both cross-entropies. CIFAR-10, CIFAR-100, TinyImageNet and image folders (ImageNet) follow the
authors' recipes for ResNets; compact convolutional transformers, and images mixed by MixUp and CutMix, have values of
their own. The paper has no recipe for small grey images; they take the objective with a small network and few epochs,
and weaker waves for the digits, which are 8 pixels wide.
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

_CIFAR100: dict[str, Any] = {
    **_CIFAR10,
    "epochs": 100,
    "batch_size": 128,
    "lr": 0.2,
    "grad_clip": 0.5,
    "jsd_lambda": 1.0,
}

_TINY_IMAGENET: dict[str, Any] = {
    **_CIFAR100,
    "resnet_stem": "tinyimagenet",
    "crop_padding": 4,
    "jsd_lambda": 10.0,
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
    "augment": ("resized-crop", "flip", "afa"),
    "test_crop": 224 / 256,
}

# What is other with MixUp and CutMix (their alphas are 1; for ImageNet 0.2 and 1).
_MIXED: dict[str, dict[str, Any]] = {
    "cifar10": {"epochs": 300, "weight_decay": 1e-4, "grad_clip": 0.5},
    "cifar100": {"epochs": 200, "weight_decay": 1e-4},
}

_CCT: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 6e-4,
    "weight_decay": 6e-2,
    "schedule": "cosine",
    "warmup_epochs": 10,
    "warmup_start": 0.1,
    "grad_clip": 0.0,
    "mixup": 0.8,
    "cutmix": 1.0,
}
_CCT_FLOOR = 1e-3  # of the learning rate

_CCT_CIFAR: dict[str, Any] = {**_CCT, "epochs": 300, "batch_size": 128}

# The authors have 128 images on each of eight devices.
_CCT_IMAGENET: dict[str, Any] = {
    **_CCT,
    "epochs": 300,
    "batch_size": 1024,
    "accumulate": 1,
    "lr": 5e-4,
    "weight_decay": 5e-2,
    "warmup_epochs": 25,
    "grad_clip": 5.0,
    "mixup": 0.2,
}

_BY_DATA_CCT = {
    "cifar10": _CCT_CIFAR,
    "cifar100": _CCT_CIFAR,
    "tinyimagenet": _CCT_CIFAR,
    "imagefolder": _CCT_IMAGENET,
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
    "cifar100": _CIFAR100,
    "tinyimagenet": _TINY_IMAGENET,
    "npz": {**_SMALL, "epochs": 20, "augment": ("afa",)},
    "imagefolder": _IMAGENET,
}


def _refine(values: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """What the authors do otherwise for transformers, for mixed images, and together with PRIME."""
    data, with_prime = values["data"], "prime" in values["augment"]
    if values["model"].startswith("cct"):
        refined = dict(_BY_DATA_CCT.get(data, _CCT))
        if data == "imagefolder" and with_prime:
            refined.update(batch_size=256, accumulate=4, grad_clip=0.5)
        # Values of the user, who may train for less long or at another rate, count for what follows from them.
        epochs, lr = (chosen.get(name, refined.get(name, values[name])) for name in ("epochs", "lr"))
        return {**refined, "warmup_epochs": min(refined["warmup_epochs"], epochs // 3), "min_lr": _CCT_FLOOR * lr}
    refined = dict(_MIXED.get(data, {})) if values.get("mixup") or values.get("cutmix") else {}
    if data == "imagefolder" and with_prime:
        refined["grad_clip"] = 0.5
    return refined


PRESET = Preset(
    name="afa",
    summary="AFA: plane waves as augmentation, with normalisations and a loss of their own",
    source="Vaish, Wang, Strisciuglio, Fourier-basis functions to bridge augmentation gap: Rethinking frequency "
    "augmentation in image classification, CVPR 2024",
    defaults=lambda data: dict(_BY_DATA[data]),
    refine=_refine,
)
