"""APR: training with the amplitudes of other images' spectra, as the authors' variant for pairs (APR-P) does it.

With probability 0.6 a batch is seen with its images' amplitudes exchanged in a random order, else as it is, and always
beside the images themselves: the loss is the mean of both cross-entropies, from one pass of both, and labels are those
of the phases. So a step costs two passes. The optimisation is the usual one for each data set, not the authors'.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes.presets import Preset

_PAPER: dict[str, Any] = {
    "stem": "plain",
    "objective": "pair",
    "apr_p": 0.6,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "cosine",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 200,
    "val_fraction": 0.02,
}

_SMALL: dict[str, Any] = {**_PAPER, "model": "small-cnn", "batch_size": 64, "val_fraction": 0.1}

_BY_DATA: dict[str, dict[str, Any]] = {
    "digits": {**_SMALL, "epochs": 20, "augment": ("crop", "apr")},
    "fashion-mnist": {**_SMALL, "epochs": 10, "augment": ("crop", "flip", "apr")},
    "cifar10": {**_PAPER, "model": "resnet18", "augment": ("crop", "flip", "apr")},
    "npz": {**_SMALL, "epochs": 20, "augment": ("apr",)},
    "imagefolder": {
        **_PAPER,
        "model": "resnet50",
        "epochs": 90,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "schedule": "steps",
        "augment": ("resized-crop", "flip", "apr"),
    },
}

PRESET = Preset(
    name="apr",
    summary="APR: amplitudes of other images' spectra as augmentation, beside the images themselves",
    source="Chen et al., Amplitude-phase recombination: Rethinking robustness of convolutional neural networks in "
    "frequency domain, ICCV 2021",
    defaults=lambda data: dict(_BY_DATA[data]),
)
