"""The data sets: images in [0, 1] with a class each, split into training, validation and test part.

Sets that fit into memory are held as one tensor; an image folder is decoded as it is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sturdy.recipes import generated, listops
from sturdy.recipes.errors import RecipeError, UsageError, one_line
from sturdy.recipes.settings import GENERATED_IMAGES, TOKEN_DATA_SETS, Settings
from sturdy.recipes.tokens import TokenSplit, from_expressions, read_texts

# Published statistics, where a recipe names them; elsewhere they are computed from the training part.
_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue

TINY_IMAGENET_SIZE = 64  # pixels
PATHFINDER_SIZES = {"pathfinder": 32, "pathx": 128}

# What the Long Range Arena has: training and test examples, with as many for validation as for the test.
_EXAMPLES = {"listops": (96_000, 2_000), **dict.fromkeys(GENERATED_IMAGES, (160_000, 20_000))}
LISTOPS_LENGTHS = (500, 2000)
TEXT_LENGTH = 4000

_SPLIT_SEED = 0  # which images are validation or a subset is the same in all runs


@dataclass(frozen=True)
class ArraySplit:
    """Images in memory.

    Attributes:
        images: ``(N, C, H, W)``, uint8 in 0..255 or float32 in [0, 1].
        labels: ``(N,)`` int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ArraySplit:
        """The split with these images, in this order."""
        return ArraySplit(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FolderSplit:
    """Images in files.

    Attributes:
        files: ``(path, class)`` per image.
        image_size: Side of the decoded, cropped image in pixels.
        train_crop: How to cut it out in training. ``"random"``: shorter side to 8/7 of the size, then a random place;
            ``"resized"``: a random part, of 8 to 100 % of the area; ``"none"``: the middle, without enlarging.
        test_crop: Part of the shorter side that the square in the middle takes otherwise.
        grey: Decode to one channel.
    """

    files: list[tuple[str, int]]
    image_size: int
    train_crop: str = "random"
    test_crop: float = 1.0
    grey: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Tensor) -> FolderSplit:
        """The split with these images, in this order."""
        return replace(self, files=[self.files[i] for i in indices.tolist()])


Split = ArraySplit | FolderSplit | TokenSplit


@dataclass(frozen=True)
class DataSet:
    """A data set, split.

    Attributes:
        train, val, test: The parts; ``val`` is cut from the training images and may be empty.
        classes: Names of the classes.
        channels: 1 or 3 as a rule; 0 for symbols.
        image_size: The shorter side in pixels; 0 for symbols.
        mean, std: Per channel, of images in [0, 1].
        vocabulary: Number of symbols with that for padding; 0 for images.
        max_length: Most symbols in a sequence; 0 for images.
        floors: Accuracies on the test part that guessing reaches, by what it looks at.
    """

    train: Split
    val: Split
    test: Split
    classes: list[str]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vocabulary: int = 0
    max_length: int = 0
    floors: dict[str, float] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """What a network must know, as arguments of :func:`sturdy.recipes.models.build_model`."""
        height, width = self.image_shape
        return {
            "in_channels": self.channels,
            "num_classes": len(self.classes),
            "image_size": self.image_size,
            "length": self.max_length or height * width,
            "vocabulary": self.vocabulary,
        }

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        if isinstance(self.train, ArraySplit):
            return (int(self.train.images.shape[2]), int(self.train.images.shape[3]))
        return (self.image_size, self.image_size)

    def describe(self) -> dict[str, Any]:
        """What ``config.json`` says about it; a resume compares this."""
        symbols = {"vocabulary": self.vocabulary, "max_length": self.max_length} if self.vocabulary else {}
        floors = {"floors": self.floors} if self.floors else {}
        return {
            "train": len(self.train),
            "val": len(self.val),
            "test": len(self.test),
            "classes": self.classes,
            "channels": self.channels,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            **symbols,
            **floors,
        }


def load_data(
    settings: Settings, *, download: bool = False, processes: int = 1, display: generated.Display = generated.no_display
) -> DataSet:
    """Load, check and split the data set of a run.

    Args:
        settings: Of the run.
        download: Let torchvision fetch it.
        processes: That draw a data set, if it is one of those that are drawn and is not there yet.
        display: Shows the progress of that.

    Raises:
        RecipeError: a file is missing, truncated or not what it should be; the message names it.
    """
    if settings.data in TOKEN_DATA_SETS:
        return _tokens(settings, processes, display)
    data = _images(settings, download, processes, display)
    return grey(data) if settings.reads_sequences else data


def _images(settings: Settings, download: bool, processes: int, display: generated.Display) -> DataSet:
    if settings.data in GENERATED_IMAGES:
        return _pathfinder(settings, processes, display)
    if settings.data == "digits":
        train, test, classes = _digits()
    elif settings.data == "npz":
        train, test, classes = _npz(_given(settings, "the .npz file"))
    elif settings.data == "cifar10":
        train, test, classes = _cifar(
            _given(settings, "the folder that holds cifar-10-batches-py"), "CIFAR10", download
        )
    elif settings.data == "cifar100":
        train, test, classes = _cifar(_given(settings, "the folder that holds cifar-100-python"), "CIFAR100", download)
    elif settings.data == "fashion-mnist":
        train, test, classes = _fashion_mnist(_given(settings, "the folder that holds FashionMNIST"), download)
    elif settings.data == "tinyimagenet":
        return _split(settings, *_tiny_imagenet(_given(settings, "the folder tiny-imagenet-200, with train/ and val/")))
    else:
        return _split(settings, *_image_folder(_given(settings, "the folder with train/ and val/"), settings))
    return _split(settings, train, test, classes)


def _given(settings: Settings, what: str) -> Path:
    if settings.data_dir is None:
        raise UsageError(f"--data {settings.data} needs --data-dir: {what}")
    return Path(settings.data_dir)


def _split(settings: Settings, train: Split, test: Split, classes: list[str]) -> DataSet:
    random = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(len(train), generator=random)[: settings.limit_train]
    test_order = torch.randperm(len(test), generator=random)[: settings.limit_test].sort().values
    n_val = round(settings.val_fraction * len(order))
    if len(order) - n_val < settings.batch_size:
        raise UsageError(
            f"--batch-size {settings.batch_size} exceeds the {len(order) - n_val} training images of {settings.data}"
        )
    parts: dict[str, Any] = {
        "val": train.take(order[:n_val]),
        "test": test.take(test_order),
        "train": train.take(order[n_val:]),
    }
    fit = parts["train"]
    if isinstance(fit, TokenSplit):
        return DataSet(**parts, classes=classes, channels=0, image_size=0, mean=(), std=())
    if isinstance(fit, ArraySplit):
        channels, size = fit.images.shape[1], min(fit.images.shape[2:])
        published = {"cifar10": _CIFAR10_STATISTICS, "cifar100": _CIFAR100_STATISTICS}
        mean, std = published.get(settings.data) or _statistics(fit.images)
    else:
        channels, size, (mean, std) = 3, fit.image_size, _IMAGENET_STATISTICS
    return DataSet(**parts, classes=classes, channels=channels, image_size=size, mean=mean, std=std)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, rounded so that they read well in ``config.json``."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(4096):
        values = chunk.to(torch.float64) / scale
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(max(round(v, 4), 1e-4) for v in std.tolist())


# ---- sequences -------------------------------------------------------------------------------------------------------


def grey(data: DataSet) -> DataSet:
    """The data set with one channel and without normalisation: pixels are read as levels from 0 to 255."""
    parts: dict[str, Any] = {name: _grey_split(getattr(data, name)) for name in ("train", "val", "test")}
    return replace(data, **parts, channels=1, mean=(0.0,), std=(1.0,))


def _grey_split(split: Split) -> Split:
    if isinstance(split, FolderSplit):
        return replace(split, grey=True)
    if isinstance(split, TokenSplit) or split.images.shape[1] == 1:
        return split
    weights = torch.tensor(_GREY_WEIGHTS)[:, None, None]
    chunks = [(chunk.float() * weights).sum(1, keepdim=True) for chunk in split.images.split(4096)]
    images = torch.cat([c.round().to(torch.uint8) if split.images.dtype == torch.uint8 else c for c in chunks])
    return ArraySplit(images, split.labels)


def generated_counts(settings: Settings) -> tuple[int, int]:
    """Training and test examples of a data set that is drawn; of validation examples there are as many as of those."""
    train, test = _EXAMPLES[settings.data]
    return settings.train_examples or train, settings.test_examples or test


def _generated_folder(settings: Settings) -> Path:
    return Path(settings.data_dir) if settings.data_dir is not None else generated.default_folder()


def _pathfinder(settings: Settings, processes: int, display: generated.Display) -> DataSet:
    n_train, n_test = generated_counts(settings)
    size = PATHFINDER_SIZES[settings.data]
    path = generated.pathfinder_file(
        _generated_folder(settings),
        n_train + 2 * n_test,
        size=size,
        seed=settings.data_seed,
        processes=processes,
        display=display,
    )
    images, labels = generated.read_pathfinder(path)
    whole = ArraySplit(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))
    return _split_in_order(settings, whole, n_train, n_test, ["two contours", "one contour"])


def _tokens(settings: Settings, processes: int, display: generated.Display) -> DataSet:
    if settings.data == "text":
        path = _given(settings, "the folder with train/CLASS/ and test/CLASS/, or an npz file")
        train, test, classes = read_texts(path)
        length = settings.max_length or TEXT_LENGTH
        data = _split(settings, train.at_most(length), test.at_most(length), classes)
        return replace(data, vocabulary=257, max_length=length)
    n_train, n_test = generated_counts(settings)
    low, high = settings.min_length or LISTOPS_LENGTHS[0], settings.max_length or LISTOPS_LENGTHS[1]
    if low + 2 > high:
        raise UsageError(f"--min-length {low} and --max-length {high}: no length is between them")
    expressions = generated.read_listops(
        generated.listops_file(
            _generated_folder(settings),
            n_train + 2 * n_test,
            min_length=low,
            max_length=high,
            seed=settings.data_seed,
            processes=processes,
            display=display,
        )
    )
    data = _split_in_order(settings, from_expressions(expressions), n_train, n_test, [str(i) for i in range(10)])
    floors = listops.floors(expressions.take(0, n_train), expressions.take(n_train + n_test, len(expressions)))
    return replace(data, vocabulary=listops.VOCABULARY, max_length=high - 1, floors=vars(floors))


def _split_in_order(settings: Settings, whole: Split, n_train: int, n_test: int, classes: list[str]) -> DataSet:
    """Training, validation and test examples one after another; what is drawn needs no shuffling."""
    n_used = min(n_train, settings.limit_train or n_train)
    if n_used < settings.batch_size:
        raise UsageError(f"--batch-size {settings.batch_size} exceeds the {n_used} training examples")
    n_asked = min(n_test, settings.limit_test or n_test)
    first = {"train": (0, n_used), "val": (n_train, n_asked), "test": (n_train + n_test, n_asked)}
    parts: dict[str, Any] = {name: _span(whole, start, start + count) for name, (start, count) in first.items()}
    fit = parts["train"]
    if isinstance(fit, ArraySplit):
        mean, std = _statistics(fit.images)
        size = min(fit.images.shape[2:])
        return DataSet(**parts, classes=classes, channels=1, image_size=size, mean=mean, std=std)
    return DataSet(**parts, classes=classes, channels=0, image_size=0, mean=(), std=())


def _span(split: Split, first: int, last: int) -> Split:
    """A part without a copy of its images, of which there may be gigabytes."""
    if isinstance(split, ArraySplit):
        return ArraySplit(split.images[first:last], split.labels[first:last])
    return split.take(torch.arange(first, last))


# ---- images ----------------------------------------------------------------------------------------------------------


def _digits() -> tuple[ArraySplit, ArraySplit, list[str]]:
    """scikit-learn's 1797 handwritten digits of 8 x 8; every fifth of each class is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy((digits.images / 16.0).astype(np.float32))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    whole = ArraySplit(images, labels)
    classes = [str(name) for name in digits.target_names]
    return whole.take(torch.from_numpy(train)), whole.take(torch.from_numpy(test)), classes


def _npz(path: Path) -> tuple[ArraySplit, ArraySplit, list[str]]:
    wanted = ("x_train", "y_train", "x_test", "y_test")
    if path.is_dir():
        raise RecipeError(f"--data npz wants a file, but {path} is a folder")
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise RecipeError(f"{path} holds a single array; --data npz wants {', '.join(wanted)}")
            missing = [key for key in wanted if key not in file.files]
            if missing:
                raise RecipeError(f"{path} lacks {', '.join(missing)} (it holds {', '.join(file.files) or 'nothing'})")
            arrays = {key: file[key] for key in wanted}
    except FileNotFoundError:
        raise RecipeError(f"no such file: {path}") from None
    except RecipeError:
        raise
    except Exception as error:  # zipfile, zlib, lzma and the npy reader each have their own exceptions
        raise RecipeError(f"{path} is truncated or not an npz file ({one_line(error)[:120]})") from None
    train = _from_arrays(path, "train", arrays["x_train"], arrays["y_train"])
    test = _from_arrays(path, "test", arrays["x_test"], arrays["y_test"])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise RecipeError(f"{path}: x_train and x_test hold images of different shapes")
    n_classes = int(max(train.labels.max(), test.labels.max())) + 1
    return train, test, [str(i) for i in range(n_classes)]


def _from_arrays(path: Path, part: str, x: np.ndarray, y: np.ndarray) -> ArraySplit:
    """``x`` is (N, H, W) or (N, H, W, C), uint8 or float in [0, 1]; ``y`` (N,) or (N, 1) whole numbers from 0."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise RecipeError(f"{path}: x_{part} must be (N, H, W) or (N, H, W, 1 or 3), got {x.shape}")
    y = y.reshape(-1) if y.shape in ((len(x),), (len(x), 1)) else y
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or len(y) == 0 or y.min() < 0:
        raise RecipeError(f"{path}: y_{part} must hold {len(x)} class numbers from 0, got {y.dtype} {y.shape}")
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise RecipeError(f"{path}: x_{part} must be uint8 or lie in [0, 1]")
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    return ArraySplit(images, torch.from_numpy(y.astype(np.int64)))


def _cifar(root: Path, name: str, download: bool) -> tuple[ArraySplit, ArraySplit, list[str]]:
    """CIFAR-10 or CIFAR-100, by the name of torchvision's class."""
    from torchvision import datasets

    cls = getattr(datasets, name)
    if not download:
        folder = _existing(root) / cls.base_folder
        for name, md5 in [*cls.train_list, *cls.test_list]:
            _check_file(folder / name, cls.__name__.replace("CIFAR", "CIFAR-"))
            if hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() != md5:
                raise RecipeError(f"{folder / name} is truncated or damaged (wrong checksum); fetch it anew")
    parts = _torchvision(cls, root, download)
    splits = [_from_arrays(root, "train", part.data, np.asarray(part.targets)) for part in parts]
    return splits[0], splits[1], list(parts[0].classes)


def _fashion_mnist(root: Path, download: bool) -> tuple[ArraySplit, ArraySplit, list[str]]:
    from torchvision.datasets import FashionMNIST

    if not download:
        folder = _existing(root) / "FashionMNIST" / "raw"
        for name, count, size in (("train", 60000, 28 * 28), ("t10k", 10000, 28 * 28)):
            images, labels = folder / f"{name}-images-idx3-ubyte", folder / f"{name}-labels-idx1-ubyte"
            for path, length in ((images, 16 + count * size), (labels, 8 + count)):
                _check_file(path, "Fashion-MNIST")
                if path.stat().st_size != length:
                    raise RecipeError(
                        f"{path} is truncated or damaged ({path.stat().st_size} bytes, not {length}); fetch it anew"
                    )
    parts = _torchvision(FashionMNIST, root, download)
    splits = [ArraySplit(part.data[:, None], part.targets.to(torch.int64)) for part in parts]
    return splits[0], splits[1], list(parts[0].classes)


def _torchvision(cls: Any, root: Path, download: bool) -> list[Any]:
    """The training and the test part through torchvision, with one-line errors."""
    try:
        return [cls(str(root), train=train, download=download) for train in (True, False)]
    except Exception as error:  # network, archive, checksum and format errors of many types
        raise RecipeError(f"cannot load {cls.__name__} from {root}: {one_line(error)[:160]}") from None


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise RecipeError(f"no such folder: {folder} (--data-dir)")
    return folder


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise RecipeError(f"{path} is missing; is --data-dir the folder of {what}? (--download fetches it)")


def _image_folder(root: Path, settings: Settings) -> tuple[FolderSplit, FolderSplit, list[str]]:
    train, val, classes = _train_and_val(root)
    crop = "resized" if "resized-crop" in settings.augment else "random"
    splits = [FolderSplit(files, settings.image_size, crop, settings.test_crop) for files in (train, val)]
    return splits[0], splits[1], classes


def _tiny_imagenet(root: Path) -> tuple[FolderSplit, FolderSplit, list[str]]:
    """As published, with ``val/val_annotations.txt``, or with a folder for each class in ``val/`` too."""
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        train, val, classes = _train_and_val(root)
    else:
        train, classes = _class_folders(_existing(root) / "train")
        number = {name: i for i, name in enumerate(classes)}
        val = []
        for line in annotations.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) < 2 or words[1] not in number:
                raise RecipeError(f"{annotations}: no image and class of train/ in the line {line[:80]!r}")
            val.append((str(root / "val" / "images" / words[0]), number[words[1]]))
        if not val or not Path(val[0][0]).is_file():
            raise RecipeError(f"{root / 'val' / 'images'} does not hold the images of {annotations.name}")
    splits = [FolderSplit(files, TINY_IMAGENET_SIZE, "none") for files in (train, val)]
    return splits[0], splits[1], classes


def _train_and_val(root: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[str]]:
    """Files with their classes in ``train/`` and ``val/``, and the names of the classes."""
    (train, classes), (val, others) = (_class_folders(_existing(root) / name) for name in ("train", "val"))
    if classes != others:
        odd = sorted(set(classes) ^ set(others))[0]
        raise RecipeError(f"{root}: train/ and val/ do not have the same classes; {odd!r} is only in one of them")
    return train, val, classes


def _class_folders(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise RecipeError(f"no such folder: {folder} (an image folder has train/ and val/ with one folder a class)")
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise RecipeError(f"{folder}: {one_line(error)[:160]}") from None
    return found.samples, found.classes


def without_training_images(data: DataSet) -> DataSet:
    """The data set with its test part only, to free memory before an evaluation."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return replace(data, train=data.train.take(nothing), val=data.val.take(nothing))
