"""CAST: attention within clusters of tokens, and summaries of the others, in place of attention among all.

The tasks are those of the Long Range Arena but for Retrieval. Sizes and rates are those of the paper's table **as
remembered, not verified against the paper**; what the table does not say follows MEGA's published recipes for the same
tasks, which CAST appears to follow: warm-up and a straight line down to 0, Adam's second moment with 0.98, gradients
clipped to 1, mean pooling, dropout 0.1 on symbols and none on images. Path-X is not in the table; it takes Pathfinder's
sizes with as many clusters as make up its pixels. Other images are read like CIFAR-10, in clusters of the same number.

The digits, with 64 pixels, have small values of our own, and so do the versions of the others with ``quick``.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes.presets import Preset

COMMON: dict[str, Any] = {
    "model": "cast",
    "stem": "plain",
    "clustering": "topk",
    "optimizer": "adamw",
    "momentum": 0.9,
    "beta2": 0.98,
    "norm_weight_decay": True,
    "schedule": "linear",
    "warmup_start": 0.0,
    "grad_clip": 1.0,
    "pooling": "mean",
    "val_fraction": 0.1,
}

# The network alone: depth, heads, width, feed-forward, embedding, clusters, their size, normalisation.
_NETWORK = {
    "listops": (4, 8, 64, 128, 256, 10, 200, "layer"),
    "text": (4, 4, 64, 128, 256, 20, 200, "scale"),
    "image": (2, 8, 128, 128, 256, 16, 64, "batch"),
    "pathfinder": (2, 2, 32, 32, 64, 16, 64, "batch"),
    "pathx": (2, 2, 32, 32, 64, 256, 64, "batch"),
}
_NETWORK_FIELDS = ("depth", "heads", "width", "ff_width", "embed_width", "clusters", "cluster_size", "norm")

# Epochs, warm-up among them, batch, rate, decay.
_COURSE = {
    "listops": (60, 2, 64, 1e-3, 1e-2),
    "text": (25, 10, 25, 1e-3, 1e-2),
    "image": (200, 10, 50, 5e-3, 1e-2),
    "pathfinder": (200, 40, 128, 1e-3, 1e-2),
    "pathx": (200, 40, 16, 1e-3, 1e-2),
}
COURSE_FIELDS = ("epochs", "warmup_epochs", "batch_size", "lr", "weight_decay")

_DIGITS: dict[str, Any] = {
    **COMMON,
    "depth": 2,
    "heads": 4,
    "width": 64,
    "ff_width": 128,
    "clusters": 8,
    "cluster_size": 8,
    "norm": "layer",
    "pixels": "value",
    "epochs": 30,
    "warmup_epochs": 3,
    "batch_size": 32,
    "lr": 3e-3,
    "weight_decay": 1e-2,
}

_QUICK: dict[str, Any] = {"epochs": 10, "warmup_epochs": 1, "batch_size": 32, "lr": 2e-3, "norm": "layer"}
_QUICK_BY_TASK: dict[str, dict[str, Any]] = {
    "listops": {
        "train_examples": 8000,
        "test_examples": 1000,
        "min_length": 20,
        "max_length": 200,
        "depth": 2,
        "embed_width": 0,
        "clusters": 10,
        "cluster_size": 20,
    },
    "text": {
        "limit_train": 4000,
        "limit_test": 1000,
        "max_length": 500,
        "clusters": 20,
        "cluster_size": 25,
        "depth": 2,
    },
    "image": {"limit_train": 8000, "limit_test": 2000, "width": 64, "pixels": "value", "embed_width": 0},
    "pathfinder": {"train_examples": 10000, "test_examples": 1000, "width": 64, "ff_width": 128},
    "pathx": {"train_examples": 1000, "test_examples": 200},
}


def task_of(data: str) -> str:
    """The task whose values a data set takes."""
    return data if data in _NETWORK else "image"


def network(data: str) -> dict[str, Any]:
    """The values of the network for a data set."""
    return dict(zip(_NETWORK_FIELDS, _NETWORK[task_of(data)], strict=True))


def dropout(data: str) -> float:
    """0.1 for symbols."""
    return 0.1 if data in ("listops", "text") else 0.0


def _defaults(data: str) -> dict[str, Any]:
    if data == "digits":
        return dict(_DIGITS)
    course = dict(zip(COURSE_FIELDS, _COURSE[task_of(data)], strict=True))
    return {**COMMON, **network(data), **course, "dropout": dropout(data)}


def quick(data: str) -> dict[str, Any]:
    """What is other in the small version of a task."""
    return {} if data == "digits" else {**_QUICK, **_QUICK_BY_TASK[task_of(data)]}


def refine(values: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """No more warm-up than a third of the epochs that the user wants."""
    return {} if "epochs" not in chosen else {"warmup_epochs": min(values["warmup_epochs"], values["epochs"] // 3)}


PRESET = Preset(
    name="cast",
    summary="CAST: clustered attention with surrogate tokens, on sequences (values as remembered from the paper)",
    source="van Engelenhoven, Strisciuglio, Talavera, CAST: Clustering self-attention using surrogate tokens for "
    "efficient transformers, 2024",
    defaults=_defaults,
    refine=refine,
    quick=quick,
)
