"""What the tools ask of a network and of a loader, and how they read from both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sturdy._errors import ShapeError

Model = Callable[[Tensor], Tensor]  # images (N, C, H, W) to logits (N, classes)
Loader = Iterable[Sequence[Any]]  # of (images, labels, ...)


def check_eval(name: str, model: Model) -> None:
    """Refuse a network in training mode, whose answers depend on the rest of the batch and on chance."""
    if getattr(model, "training", False):
        raise RuntimeError(f"{name}: the model must be in evaluation mode; call model.eval() first")


def check_count(name: str, argument: str, value: int | None) -> None:
    """Refuse counts below 1; None stands for no limit."""
    if value is not None and value < 1:
        raise ValueError(f"{name}: {argument} must be 1 or more, got {value}")


def device_of(model: Model, otherwise: torch.device) -> torch.device:
    """Where the model's parameters are; a model without any works where the images are."""
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return otherwise if first is None else first.device


def read(name: str, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked batches: images ``(N, C, H, W)`` float32 or float64, all of one size, and labels ``(N,)`` int64."""
    shape: tuple[int, ...] | None = None
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(f"{name}: the loader must give (images, labels), got {type(batch).__name__}")
        images, labels = batch[0], batch[1]
        if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"{name}: images must be float32 or float64 tensors, got {kind}")
        if images.dim() != 4 or 0 in images.shape[1:]:
            raise ShapeError(f"{name}: images must be (N, C, H, W), got shape {tuple(images.shape)}")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{name}: labels must be int64 tensors, got {kind}")
        if labels.shape != (images.shape[0],):
            raise ShapeError(f"{name}: {images.shape[0]} images came with labels of shape {tuple(labels.shape)}")
        if len(labels) and int(labels.min()) < 0:
            raise IndexError(f"{name}: label {int(labels.min())} is not a class")
        if shape is not None and tuple(images.shape[1:]) != shape:
            raise ShapeError(f"{name}: all images must have one shape, got {tuple(images.shape[1:])} after {shape}")
        shape = tuple(images.shape[1:])
        if len(labels):
            yield images, labels
    if shape is None:
        raise ValueError(f"{name}: the loader gave no images")


def by_class(name: str, loader: Loader, images_per_class: int | None) -> dict[int, Tensor]:
    """The first images of each class, in the order of the loader."""
    check_count(name, "images_per_class", images_per_class)
    parts: dict[int, list[Tensor]] = {}
    held: dict[int, int] = {}
    for images, labels in read(name, loader):
        for c in labels.unique().tolist():
            wanted = None if images_per_class is None else images_per_class - held.get(c, 0)
            if wanted == 0:
                continue
            own = images[labels == c][:wanted]
            parts.setdefault(c, []).append(own)
            held[c] = held.get(c, 0) + len(own)
    return {c: torch.cat(images) for c, images in sorted(parts.items())}


def choose_classes(name: str, found: dict[int, Tensor], classes: Sequence[int] | None, outputs: int) -> list[int]:
    """The classes to look at, each of which must have images; all outputs of the network if ``classes`` is None."""
    chosen = list(range(outputs)) if classes is None else [int(c) for c in classes]
    for c in chosen:
        if not 0 <= c < outputs:
            raise IndexError(f"{name}: class {c} is not one of the {outputs} outputs of the model")
        if c not in found:
            raise ValueError(f"{name}: the loader has no image of class {c}")
    return chosen


def logits(name: str, model: Model, images: Tensor, batch_size: int) -> Tensor:
    """The model's answers ``(N, classes)`` to images on its device."""
    out = torch.cat([model(part) for part in images.split(batch_size)])
    if out.dim() != 2 or out.shape[0] != images.shape[0]:
        raise ShapeError(f"{name}: the model must give (N, classes), got {tuple(out.shape)} for {len(images)} images")
    return out
