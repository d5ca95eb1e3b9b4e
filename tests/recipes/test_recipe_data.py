"""Data sets, their splits, their errors, and the batches made of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_support import make_images

from sturdy.recipes import augment
from sturdy.recipes.data import ArraySplit, DataSet, load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.errors import RecipeError, UsageError
from sturdy.recipes.keyed_random import KeyedRandom
from sturdy.recipes.loader import Loader
from sturdy.recipes.presets import resolve

CPU = torch.device("cpu")


def load(**chosen: Any) -> DataSet:
    return load_data(resolve("pushpull", {"batch_size": 4, **chosen}))


def test_digits() -> None:
    data = load(data="digits")
    assert (data.channels, data.image_size, len(data.classes)) == (1, 8, 10)
    assert len(data.train) + len(data.val) + len(data.test) == 1797 and len(data.test) == 360
    assert isinstance(data.train, ArraySplit) and isinstance(data.test, ArraySplit) and isinstance(data.val, ArraySplit)
    images = torch.cat([data.train.images, data.val.images, data.test.images])
    assert images.min() == 0 and images.max() == 1
    rows = {tuple(image.flatten().tolist()) for image in images}
    assert len(rows) == 1797  # all images are distinct, so no part shares one with another
    assert torch.bincount(data.test.labels).min() >= 34
    normal = (data.train.images - data.mean[0]) / data.std[0]
    assert abs(normal.mean()) < 1e-3 and abs(normal.std() - 1) < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_npz(tmp_path: Path, channels: int, kind: str) -> None:
    x, y = make_images(30, 6, channels, seed=0)
    stored = x if kind == "uint8" else (x / 255).astype(kind)
    np.savez_compressed(tmp_path / "a.npz", x_train=stored, y_train=y[:, None], x_test=stored[:7], y_test=y[:7])
    data = load(data="npz", data_dir=str(tmp_path / "a.npz"), val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 7)
    (batch,) = Loader(data.test, 10, World(CPU)).in_order()
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1), x[:7] / 255, atol=1e-6)
    assert batch.labels.tolist() == y[:7].tolist()


def write_npz(path: Path, **changes: Any) -> str:
    x, y = make_images(12, 6, 1, seed=0)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None}, r"lacks x_test, y_test \(it holds x_train, y_train\)"),
        ({"x_train": np.zeros((12, 6, 6, 2), np.uint8)}, r"x_train must be \(N, H, W\)"),
        ({"x_train": np.full((12, 6, 6), 2.0)}, "must be uint8 or lie in"),
        ({"x_train": np.full((12, 6, 6), np.nan)}, "must be uint8 or lie in"),
        ({"y_train": np.zeros(11, np.int64)}, "y_train must hold 12 class numbers"),
        ({"y_test": np.zeros(12)}, "y_test must hold 12 class numbers"),
        ({"y_test": np.full(12, -1)}, "y_test must hold 12 class numbers"),
        ({"x_test": np.zeros((12, 5, 6), np.uint8)}, "different shapes"),
    ],
)
def test_npz_with_wrong_content(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(data="npz", data_dir=write_npz(tmp_path / "a.npz", **changes))


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(RecipeError, match=r"no such file: .*a.npz"):
        load(data="npz", data_dir=str(path))
    with pytest.raises(RecipeError, match="is a folder"):
        load(data="npz", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="needs --data-dir"):
        load(data="npz")
    whole = Path(write_npz(path)).read_bytes()
    for kept in (0, 3, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:kept])
        with pytest.raises(RecipeError, match=r"a.npz is truncated or not an npz file") as error:
            load(data="npz", data_dir=str(path))
        assert "\n" not in str(error.value)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(RecipeError, match="holds a single array"):
        load(data="npz", data_dir=str(tmp_path / "b.npy"))


def test_limits_and_validation_part(npz: Path) -> None:
    data = load(data="npz", data_dir=str(npz), limit_train=40, limit_test=10, val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    again = load(data="npz", data_dir=str(npz), limit_train=40, limit_test=10, val_fraction=0.25, seed=5)
    assert torch.equal(data.train.labels, again.train.labels)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="--batch-size 64 exceeds the 30 training images"):
        load(data="npz", data_dir=str(npz), limit_train=40, val_fraction=0.25, batch_size=64)


def test_image_folder(image_folder: Path) -> None:
    data = load(data="imagefolder", data_dir=str(image_folder), image_size=16)
    assert data.classes == ["dark", "light"] and data.channels == 3 and len(data.test) == 8
    first = list(Loader(data.train, 4, World(CPU)).training(seed=1, epoch=0))
    in_workers = list(Loader(data.train, 4, World(CPU), workers=2).training(seed=1, epoch=0))
    later = list(Loader(data.train, 4, World(CPU)).training(seed=1, epoch=0, first_step=2))
    for a, b in (*zip(first, in_workers, strict=True), *zip(first[2:], later, strict=True)):
        assert a.images.shape == (4, 3, 16, 16)
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    for batch in Loader(data.test, 4, World(CPU)).in_order():
        assert ((batch.images.mean((1, 2, 3)) > 0.4) == (batch.labels == 1)).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named(image_folder: Path, tmp_path: Path, workers: int) -> None:
    root = tmp_path / "copy"
    shutil.copytree(image_folder, root)
    broken = root / "val" / "light" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    data = load(data="imagefolder", data_dir=str(root), image_size=16)
    with pytest.raises(RecipeError, match=r"cannot read image .*val/light/1.png") as error:
        list(Loader(data.test, 4, World(CPU), workers).in_order())
    assert "\n" not in str(error.value)


def test_wrong_image_folders(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such folder: .*nowhere"):
        load(data="imagefolder", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match=r"no such folder: .*train"):
        load(data="imagefolder", data_dir=str(tmp_path))
    shutil.copytree(image_folder, tmp_path / "copy")
    (tmp_path / "copy" / "val" / "light").rename(tmp_path / "copy" / "val" / "lite")
    with pytest.raises(RecipeError, match="do not have the same classes; 'light'"):
        load(data="imagefolder", data_dir=str(tmp_path / "copy"))


def test_wrong_folders_of_known_sets(tmp_path: Path) -> None:
    for name in ("cifar10", "fashion-mnist"):
        with pytest.raises(RecipeError, match="no such folder"):
            load(data=name, data_dir=str(tmp_path / "nowhere"))
        with pytest.raises(RecipeError, match="is missing; is --data-dir the folder of"):
            load(data=name, data_dir=str(tmp_path))


def test_truncated_files_of_known_sets(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"too short")
    with pytest.raises(RecipeError, match=r"data_batch_1 is truncated or damaged \(wrong checksum\)"):
        load(data="cifar10", data_dir=str(tmp_path))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"too short")
    with pytest.raises(RecipeError, match=r"train-images-idx3-ubyte is truncated or damaged \(9 bytes, not 47040016\)"):
        load(data="fashion-mnist", data_dir=str(tmp_path))


def test_fashion_mnist_through_torchvision(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 60000), ("t10k", 10000)):
        pixels = np.arange(count * 784, dtype=np.uint64).astype(np.uint8)
        head = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = b"".join(n.to_bytes(4, "big") for n in (0x801, count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes(i % 10 for i in range(count)))
    data = load(data="fashion-mnist", data_dir=str(tmp_path), val_fraction=0.1)
    assert (len(data.train), len(data.val), len(data.test)) == (54000, 6000, 10000)
    assert data.classes[0] == "T-shirt/top" and (data.channels, data.image_size) == (1, 28)
    assert isinstance(data.test, ArraySplit)
    assert data.test.images[5].flatten().tolist() == [(5 * 784 + i) % 256 for i in range(784)]
    assert data.test.labels[:12].tolist() == [*range(10), 0, 1]


def test_training_batches(npz: Path) -> None:
    data = load(data="npz", data_dir=str(npz), val_fraction=0)
    loader = Loader(data.train, 20, World(CPU))
    assert loader.steps_per_epoch == 4
    epochs = [list(loader.training(seed=0, epoch=e)) for e in range(2)]
    for epoch in epochs:
        indices = torch.cat([batch.indices for batch in epoch])
        assert len(indices) == 80 == len(indices.unique())
    assert not torch.equal(epochs[0][0].indices, epochs[1][0].indices)
    assert not torch.equal(epochs[0][0].indices, next(loader.training(seed=1, epoch=0)).indices)
    tail = list(loader.training(seed=0, epoch=1, first_step=3))
    assert len(tail) == 1 and torch.equal(tail[0].indices, epochs[1][3].indices)


def test_processes_share_each_batch(npz: Path) -> None:
    data = load(data="npz", data_dir=str(npz))
    whole = list(Loader(data.train, 12, World(CPU)).training(0, 0))
    parts = [list(Loader(data.train, 12, World(CPU, rank, 3)).training(0, 0)) for rank in range(3)]
    for step, batch in enumerate(whole):
        shares = [part[step].indices for part in parts]
        assert all(len(share) == 4 for share in shares)
        assert sorted(torch.cat(shares).tolist()) == sorted(batch.indices.tolist())
    tested = torch.cat([b.indices for rank in range(3) for b in Loader(data.test, 12, World(CPU, rank, 3)).in_order()])
    assert sorted(tested.tolist()) == list(range(len(data.test)))


def test_crop_and_flip() -> None:
    images = torch.rand(50, 2, 16, 16)
    random = KeyedRandom(torch.arange(50), 0)
    seen = set()
    for image, cropped in zip(images, augment.crop(images, random), strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        fits = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 16, x : x + 16], cropped)]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > 15
    flipped = augment.flip(images, KeyedRandom(torch.arange(50), 1))
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(images, flipped, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(images, flipped, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True)) and 10 < sum(mirrored) < 40
