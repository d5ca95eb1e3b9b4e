"""DFM-X: training on images that keep only the frequencies on which the recognition of another class rests.

Without ``--dfm-masks`` the plain network is trained first, into ``baseline/``, and the masks are found with it on the
validation images. CIFAR-10 follows the authors' recipe; image folders take it with larger batches. The paper has
no recipe for small grey images, which take the augmentation with a small network and few epochs.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes.presets import Preset

_PAPER: dict[str, Any] = {
    "stem": "plain",
    "dfm_p": 0.3,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "lr": 0.01,
    "weight_decay": 1e-4,
    "schedule": "plateau",
    "batch_size": 64,
    "epochs": 200,
    "val_fraction": 0.1,
}

_SMALL: dict[str, Any] = {
    **_PAPER,
    "model": "small-cnn",
    "schedule": "cosine",
    "lr": 0.1,
}

_BY_DATA: dict[str, dict[str, Any]] = {
    "digits": {**_SMALL, "epochs": 20, "augment": ("crop", "dfmx")},
    "fashion-mnist": {**_SMALL, "epochs": 10, "augment": ("crop", "flip", "dfmx")},
    "cifar10": {**_PAPER, "model": "resnet18", "augment": ("crop", "flip", "resized-crop", "dfmx")},
    "npz": {**_SMALL, "epochs": 20, "augment": ("dfmx",)},
    "imagefolder": {**_PAPER, "model": "resnet50", "epochs": 90, "batch_size": 128, "augment": ("flip", "dfmx")},
}

PRESET = Preset(
    name="dfmx",
    summary="DFM-X: dominant frequencies of other classes as augmentation, against frequency shortcuts",
    source="Wang et al., DFM-X: Augmentation by leveraging prior knowledge of shortcut learning, ICCV workshops 2023",
    defaults=lambda data: dict(_BY_DATA[data]),
)
