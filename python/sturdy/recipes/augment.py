"""Augmentations of a batch on its device. Each maps images, their labels and their random streams to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.recipes.errors import UsageError
from sturdy.recipes.keyed_random import KeyedRandom
from sturdy.recipes.settings import Settings

_LEAST_AREA, _LEAST_RATIO = 0.08, 3 / 4

Augmentation = Callable[[Tensor, Tensor, KeyedRandom], Tensor]


def crop(images: Tensor, random: KeyedRandom, pad: int | None = None) -> Tensor:
    """Pad with zeros and cut the old size out at a random place.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        random: One stream per image.
        pad: Pixels on each side; by default an eighth of the shorter side, 4 for 32.
    """
    height, width = images.shape[-2:]
    pad = max(1, min(height, width) // 8) if pad is None else pad
    padded = F.pad(images, (pad, pad, pad, pad))
    offsets = random.integers(2 * pad + 1, 2)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def crop_boxes(random: KeyedRandom, height: int, width: int) -> Tensor:
    """Random parts of images: an area of 8 to 100 %, an aspect ratio of 3/4 to 4/3, as is usual for ImageNet.

    The first of ten tries that fits into the image counts; if none does, the image's middle of a permitted ratio.

    Args:
        random: One stream per image.
        height, width: Of the images, in pixels.

    Returns:
        ``(N, 4)`` int64: top, left, height, width.
    """
    u = random.uniform(4, 10, dtype=torch.float64)  # area, aspect ratio, place
    area = height * width * (_LEAST_AREA + (1 - _LEAST_AREA) * u[:, 0])
    ratio = _LEAST_RATIO ** (1 - 2 * u[:, 1])  # uniform in its logarithm
    rows, columns = ((area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long())
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    top, left = ((u[:, 2] * (height - rows + 1)).long(), (u[:, 3] * (width - columns + 1)).long())
    boxes = torch.stack((top, left, rows, columns), 2)  # (N, 10, 4)
    first = fits.long().argmax(1)
    chosen = boxes[torch.arange(len(boxes), device=boxes.device), first]
    whole_rows, whole_columns = min(height, round(width / _LEAST_RATIO)), min(width, round(height / _LEAST_RATIO))
    middle = [(height - whole_rows) // 2, (width - whole_columns) // 2, whole_rows, whole_columns]
    return torch.where(fits.any(1)[:, None], chosen, torch.tensor(middle, device=boxes.device))


def resized_crop(images: Tensor, random: KeyedRandom) -> Tensor:
    """Enlarge a random part of each image, see :func:`crop_boxes`, to its size; bilinear, ``(N, C, H, W)``."""
    height, width = images.shape[-2:]
    top, left, rows, columns = crop_boxes(random, height, width).to(images.dtype).T

    def places(start: Tensor, extent: Tensor, size: int) -> Tensor:
        """Where the pixels of the result lie, in the coordinates of grid_sample; not beyond the part's edge."""
        step = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
        inside = (step * (extent / size)[:, None] - 0.5).clamp(min=0).minimum(extent[:, None] - 1)
        return (2 * (start[:, None] + inside) + 1) / size - 1

    y, x = places(top, rows, height), places(left, columns, width)
    grid = torch.stack((x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), 3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flip(images: Tensor, random: KeyedRandom) -> Tensor:
    """Mirror each image left to right with probability 1/2; ``(N, C, H, W)``."""
    mirrored = random.uniform() < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def afa(settings: Settings) -> Augmentation:
    """Plane waves; :class:`sturdy.transforms.FourierBasisAugment` with numbers of the images' own streams."""
    from sturdy.transforms import FourierBasisAugment

    transform = FourierBasisAugment(settings.afa_strength, mode="reference" if settings.afa_reference else "centered")

    def augment(images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
        draw = partial(random.fork().uniform, dtype=torch.float64)
        return transform.transform(images, transform.sample(draw, images))

    return augment


def dfmx(settings: Settings, masks: Tensor, device: torch.device) -> Augmentation:
    """Dominant frequencies of other classes; :class:`sturdy.transforms.DominantFrequencyMix`, keyed as the others.

    Args:
        settings: Of the run.
        masks: ``(classes, H, W)``, frequency 0 in the middle.
        device: Where the images will be.
    """
    from sturdy.transforms import DominantFrequencyMix, effective_mask

    transform = DominantFrequencyMix(effective_mask(masks), settings.dfm_p, invert=settings.dfm_invert).to(device)

    def augment(images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
        draw = partial(random.fork().uniform, dtype=torch.float64)
        return transform.transform(images, transform.sample(draw, images, labels))

    return augment


def apr(settings: Settings) -> Augmentation:
    """Amplitudes of other images of the batch; :class:`sturdy.transforms.AmplitudeMix`, as the authors use it.

    A whole batch is changed or is not. The order in which its images exchange amplitudes follows from their streams,
    the other numbers from that of the first image.
    """
    from sturdy.transforms import AmplitudeMix

    transform = AmplitudeMix("apr", p=settings.apr_p, same_on_batch=True)

    def augment(images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
        if len(images) < 2:
            return images
        stream = random.fork()

        def draw(*shape: int) -> Tensor:
            if shape:  # a number for each image: of its own stream
                return stream.uniform(dtype=torch.float64)[None]
            return stream.uniform(dtype=torch.float64)[:1]

        return transform.transform(images, transform.sample(draw, images))

    return augment


def prime(settings: Settings) -> Augmentation:
    """Mixed chains of changes; :class:`sturdy.transforms.Prime` with numbers of the images' own streams."""
    from sturdy.transforms import Prime

    transform = Prime(preset=settings.prime_preset, center="reference" if settings.prime_reference else "true")

    def augment(images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
        draw = partial(random.fork().uniform, dtype=torch.float64)
        return transform.transform(images, transform.sample(draw, images))

    return augment


def build(settings: Settings, masks: Tensor | None, device: torch.device) -> dict[str, Augmentation]:
    """The augmentations of a run by name, in the order of ``settings.augment``.

    Args:
        settings: Of the run.
        masks: Dominant frequency masks of the classes, for ``dfmx``.
        device: Where the images will be.

    The random crops of an image folder are left out: its loader makes them as it decodes.

    Raises:
        UsageError: there are no masks, but ``dfmx`` needs them.
    """
    built: dict[str, Augmentation] = {}
    geometric: dict[str, Callable[[Tensor, KeyedRandom], Tensor]] = {
        "crop": partial(crop, pad=settings.crop_padding),
        "resized-crop": resized_crop,
        "flip": flip,
    }
    for name in settings.augment:
        if name == "resized-crop" and settings.data == "imagefolder":
            continue
        if name == "afa":
            built[name] = afa(settings)
        elif name == "dfmx":
            if masks is None:
                raise UsageError("--augment dfmx needs --dfm-masks, or the preset dfmx, which finds masks itself")
            built[name] = dfmx(settings, masks, device)
        elif name == "apr":
            built[name] = apr(settings)
        elif name == "prime":
            built[name] = prime(settings)
        else:
            built[name] = _for_any_label(geometric[name])
    return built


def apply(augmentations: Sequence[Augmentation], images: Tensor, labels: Tensor, random: KeyedRandom) -> Tensor:
    """Apply the augmentations in the given order."""
    for augment in augmentations:
        images = augment(images, labels, random)
    return images


def _for_any_label(change: Callable[[Tensor, KeyedRandom], Tensor]) -> Augmentation:
    return lambda images, labels, random: change(images, random)
