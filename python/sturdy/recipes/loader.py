"""Batches. Which images a step sees depends on the seed, the epoch and the step, and on nothing that happened before.

So a resumed run continues in the middle of an epoch with the very batch that came next, and several processes see
together what one process would see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sturdy.recipes.augment import crop_boxes
from sturdy.recipes.data import ArraySplit, FolderSplit, Split
from sturdy.recipes.distributed import World
from sturdy.recipes.errors import RecipeError, one_line
from sturdy.recipes.keyed_random import KeyedRandom, mix_key
from sturdy.recipes.tokens import TokenSplit

# Sequences of one batch are of similar length: so many batches are sorted together.
_BATCHES_TO_SORT = 16


@dataclass(frozen=True)
class Batch:
    """Images, or sequences, of one step in one process.

    Attributes:
        images: ``(N, C, H, W)`` float32 in [0, 1], on the run's device; or ``(N, L)`` int64, symbols from 1 and 0 for
            padding.
        labels: ``(N,)`` int64.
        indices: ``(N,)`` int64, places of the images in their split.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def chunk(self, parts: int) -> list[Batch]:
        """The batch in so many equal parts."""
        fields = (self.images.chunk(parts), self.labels.chunk(parts), self.indices.chunk(parts))
        return [Batch(*part) for part in zip(*fields, strict=True)]


class Loader:
    """Reads batches of a split.

    Args:
        split: The images.
        batch_size: Images of a step, over all processes together.
        world: The processes.
        workers: Processes that decode an image folder; 0 decodes in this one.
    """

    def __init__(self, split: Split, batch_size: int, world: World, workers: int = 0) -> None:
        self.split = split
        self.batch_size = batch_size
        self.world = world
        self.workers = workers

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the split; what is left over changes with the order, that is, with each epoch."""
        return len(self.split) // self.batch_size

    def training(self, seed: int, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The part of this process in each batch of an epoch, from ``first_step`` of the epoch on."""
        random = torch.Generator().manual_seed(mix_key(seed, "order", epoch))
        order = torch.randperm(len(self.split), generator=random)
        batches = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.steps_per_epoch)]
        if isinstance(self.split, TokenSplit):
            batches = _by_length(batches, self.split.lengths, random)
        batches = batches[first_step:]
        yield from self._read([batch[self.world.rank :: self.world.size] for batch in batches], mix_key(seed, epoch))

    def in_order(self) -> Iterator[Batch]:
        """The part of this process in the split, each image once, without augmentation."""
        mine = torch.arange(len(self.split))[self.world.rank :: self.world.size]
        yield from self._read(list(mine.split(self.batch_size)) if len(mine) else [], None)

    def _read(self, batches: list[Tensor], crop_key: int | None) -> Iterator[Batch]:
        device = self.world.device
        if isinstance(self.split, ArraySplit):
            for indices in batches:
                images = self.split.images[indices].to(device)
                scaled = images.float() / 255.0 if images.dtype == torch.uint8 else images
                yield Batch(scaled, self.split.labels[indices].to(device), indices.to(device))
            return
        if isinstance(self.split, TokenSplit):
            for indices in batches:
                symbols = self.split.batch(indices)
                yield Batch(symbols.to(device), self.split.labels[indices].to(device), indices.to(device))
            return
        loader: DataLoader[Any] = DataLoader(
            _Files(self.split, crop_key),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )
        for item in loader:
            if isinstance(item, str):
                raise RecipeError(item)
            images, labels, indices = (part.to(device, non_blocking=True) for part in item)
            yield Batch(images.float() / 255.0, labels, indices)


def _by_length(batches: list[Tensor], lengths: Tensor, random: torch.Generator) -> list[Tensor]:
    """The same sequences in batches of similar length, in random order."""
    alike: list[Tensor] = []
    for first in range(0, len(batches), _BATCHES_TO_SORT):
        some = batches[first : first + _BATCHES_TO_SORT]
        together = torch.cat(some)
        alike += together[lengths[together].argsort(stable=True)].chunk(len(some))
    return [alike[i] for i in torch.randperm(len(alike), generator=random).tolist()]


class _Files(Dataset[Any]):
    """Decodes images and cuts squares out of them, as ``FolderSplit`` says; at random places with a ``crop_key``."""

    def __init__(self, split: FolderSplit, crop_key: int | None) -> None:
        self.split = split
        self.crop_key = crop_key

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        from PIL import Image
        from torchvision.transforms.v2 import functional as tv

        path, label = self.split.files[index]
        size, key = self.split.image_size, self.crop_key
        try:
            with Image.open(path) as file:
                image = file.convert("L" if self.split.grey else "RGB")
        except Exception as error:  # Pillow raises many types for a broken file
            return f"cannot read image {path}: {one_line(error)[:160]}"
        pixels = tv.pil_to_tensor(image)
        if key is None or self.split.train_crop == "none":
            whole = size if key is not None else round(size / self.split.test_crop)
            pixels = tv.center_crop(tv.resize(pixels, [whole], antialias=True), [size, size])
        elif self.split.train_crop == "resized":
            box = crop_boxes(KeyedRandom(torch.tensor([index]), key), *pixels.shape[-2:])[0].tolist()
            pixels = tv.resized_crop(pixels, *box, [size, size], antialias=True)
        else:
            pixels = tv.resize(pixels, [size * 8 // 7], antialias=True)
            random = torch.Generator().manual_seed(mix_key(key, index))
            top, left = (int(torch.randint(n - size + 1, (), generator=random)) for n in pixels.shape[-2:])
            pixels = tv.crop(pixels, top, left, size, size)
        return pixels, label, index


def _collate(items: list[tuple[Tensor, int, int] | str]) -> tuple[Tensor, Tensor, Tensor] | str:
    """Stack a batch, or hand on the first error (an exception would lose its type on the way from a worker)."""
    good = []
    for item in items:
        if isinstance(item, str):
            return item
        good.append(item)
    images, labels, indices = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)
