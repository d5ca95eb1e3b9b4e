"""Random parts of images, whether in memory or as they are decoded, and the folders of TinyImageNet and CIFAR-100."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from sturdy.recipes import augment
from sturdy.recipes.data import ArraySplit, DataSet, FolderSplit, load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.errors import RecipeError
from sturdy.recipes.keyed_random import KeyedRandom, mix_key
from sturdy.recipes.loader import Loader
from sturdy.recipes.presets import resolve

CPU = torch.device("cpu")


def load(**chosen: Any) -> DataSet:
    return load_data(resolve("afa", {"batch_size": 4, "accumulate": 1, "val_fraction": 0.0, **chosen}))


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_areas_and_ratios_of_the_boxes() -> None:
    boxes = augment.crop_boxes(KeyedRandom(torch.arange(4000), 1), 200, 200).double()
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 200).all() and (left + width <= 200).all()
    area, ratio = height * width / 200**2, (width / height).log()
    assert area.min() > 0.078 and area.min() < 0.1 and area.max() > 0.9
    bound = math.log(4 / 3)
    assert ratio.abs().max() < bound + 0.02 and abs(ratio.mean()) < 0.01
    assert ratio.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    # Tries of more than 3/4 of the area are refused where their ratio does not fit; below that all are taken.
    small = area[area < 0.7]
    assert small.mean() == pytest.approx((0.08 + 0.7) / 2, rel=0.03)
    room = (top / (200 - height))[height < 150]
    assert room.min() < 0.01 and room.max() > 0.99 and room.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("height", "width", "middle"), [(2, 400, (0, 198, 2, 3)), (400, 2, (198, 0, 3, 2))], ids=str)
def test_the_middle_where_no_try_fits(height: int, width: int, middle: tuple[int, ...]) -> None:
    boxes = augment.crop_boxes(KeyedRandom(torch.arange(50), 1), height, width)
    assert (boxes == torch.tensor(middle)).all(1).sum() > 40


def test_boxes_follow_from_the_image() -> None:
    whole = augment.crop_boxes(KeyedRandom(torch.arange(20), 7), 32, 48)
    assert torch.equal(augment.crop_boxes(KeyedRandom(torch.tensor([11, 3]), 7), 32, 48), whole[[11, 3]])
    assert not torch.equal(augment.crop_boxes(KeyedRandom(torch.arange(20), 8), 32, 48), whole)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_resized_crop_is_that_of_torchvision(size: tuple[int, int]) -> None:
    images = torch.rand((30, 3, *size), generator=torch.Generator().manual_seed(0))
    found = augment.resized_crop(images, KeyedRandom(torch.arange(30), 2))
    boxes = augment.crop_boxes(KeyedRandom(torch.arange(30), 2), *size).tolist()
    wanted = [tv.resized_crop(x, *box, list(size), antialias=False) for x, box in zip(images, boxes, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=2e-5)


def test_padding_of_crops() -> None:
    images = torch.rand(40, 1, 16, 16)
    kept = augment.crop(images, KeyedRandom(torch.arange(40), 0), 0)
    assert torch.equal(kept, images)
    wide = augment.crop(images, KeyedRandom(torch.arange(40), 0), 15)
    assert (wide.flatten(1) == 0).float().mean() > 0.5


# ---- image folders ---------------------------------------------------------------------------------------------------


def test_resized_crops_of_an_image_folder(image_folder: Path) -> None:
    data = load(data="imagefolder", data_dir=str(image_folder), image_size=16)
    assert isinstance(data.train, FolderSplit) and data.train.train_crop == "resized"
    batches = [list(Loader(data.train, 4, World(CPU), workers).training(seed=1, epoch=2)) for workers in (0, 2)]
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here.images, there.images)
    batch = batches[0][0]
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        pixels = pixels_of(data.train.files[index][0])
        random = KeyedRandom(torch.tensor([index]), mix_key(1, 2))
        box = augment.crop_boxes(random, *pixels.shape[1:])[0].tolist()
        assert torch.equal(image, tv.resized_crop(pixels, *box, [16, 16], antialias=True) / 255)


@pytest.mark.parametrize(("part", "whole"), [(1.0, 14), (0.875, 16), (0.7, 20)])
def test_part_of_the_image_that_is_tested_on(image_folder: Path, part: float, whole: int) -> None:
    data = load(data="imagefolder", data_dir=str(image_folder), image_size=14, test_crop=part)
    assert isinstance(data.test, FolderSplit)
    batch = next(Loader(data.test, 4, World(CPU)).in_order())
    pixels = pixels_of(data.test.files[0][0])
    wanted = tv.center_crop(tv.resize(pixels, [whole], antialias=True), [14, 14])
    assert torch.equal(batch.images[0], wanted / 255)


def pixels_of(path: str) -> torch.Tensor:
    from PIL import Image

    with Image.open(path) as file:
        return tv.pil_to_tensor(file.convert("RGB"))


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    """Two classes in the published layout, JPEG files of 64 x 64."""
    from PIL import Image

    root = tmp_path / "tiny-imagenet-200"
    random = np.random.default_rng(0)
    lines = []
    (root / "val" / "images").mkdir(parents=True)
    for label, name in enumerate(("n01443537", "n01629819")):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
        for i in range(6):
            pixels = random.integers(130 * label, 130 * label + 90, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / "images" / f"{name}_{i}.JPEG")
            if i < 2:
                Image.fromarray(pixels).save(root / "val" / "images" / f"val_{2 * i + label}.JPEG")
                lines.append(f"val_{2 * i + label}.JPEG\t{name}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tiny_imagenet_as_published(tiny_imagenet: Path) -> None:
    data = load(data="tinyimagenet", data_dir=str(tiny_imagenet))
    assert (len(data.train), len(data.test), data.classes) == (12, 4, ["n01443537", "n01629819"])
    assert (data.channels, data.image_size, data.image_shape) == (3, 64, (64, 64))
    for batch in Loader(data.test, 4, World(CPU)).in_order():
        assert ((batch.images.mean((1, 2, 3)) > 0.4) == (batch.labels == 1)).all()
    assert isinstance(data.train, FolderSplit)
    batch = next(Loader(data.train, 4, World(CPU)).training(0, 0))
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):  # pixel for pixel
        assert torch.equal(image, pixels_of(data.train.files[index][0]) / 255)


def test_tiny_imagenet_with_a_folder_for_each_class(tiny_imagenet: Path) -> None:
    for line in (tiny_imagenet / "val" / "val_annotations.txt").read_text().splitlines():
        file, name, *_ = line.split()
        (tiny_imagenet / "val" / name).mkdir(exist_ok=True)
        shutil.move(tiny_imagenet / "val" / "images" / file, tiny_imagenet / "val" / name / file)
    (tiny_imagenet / "val" / "val_annotations.txt").unlink()
    (tiny_imagenet / "val" / "images").rmdir()
    data = load(data="tinyimagenet", data_dir=str(tiny_imagenet))
    assert len(data.test) == 4 and data.classes == ["n01443537", "n01629819"]


def test_wrong_folders_of_tiny_imagenet(tiny_imagenet: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        load(data="tinyimagenet", data_dir=str(tiny_imagenet / "nowhere"))
    annotations = tiny_imagenet / "val" / "val_annotations.txt"
    good = annotations.read_text()
    annotations.write_text(good + "val_9.JPEG\tn09999999\t0\t0\t1\t1\n")
    with pytest.raises(RecipeError, match=r"val_annotations.txt: no image and class of train/ .*n09999999"):
        load(data="tinyimagenet", data_dir=str(tiny_imagenet))
    annotations.write_text(good)
    shutil.rmtree(tiny_imagenet / "val" / "images")
    with pytest.raises(RecipeError, match=r"does not hold the images of val_annotations\.txt"):
        load(data="tinyimagenet", data_dir=str(tiny_imagenet))


# ---- CIFAR-100 -------------------------------------------------------------------------------------------------------


def test_cifar100_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    random = np.random.default_rng(0)
    sums = {}
    for name, count in (("train", 300), ("test", 200)):
        rows = random.integers(0, 256, (count, 3072)).astype(np.uint8)
        content = {"data": rows, "fine_labels": [i % 100 for i in range(count)]}
        sums[name] = hashlib.md5(write_pickle(folder / name, content)).hexdigest()
    names = [f"class {i:02d}" for i in range(100)]
    sums["meta"] = hashlib.md5(write_pickle(folder / "meta", {"fine_label_names": names})).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    data = load(data="cifar100", data_dir=str(tmp_path))
    assert (len(data.train), len(data.test), data.classes) == (300, 200, names)
    assert (data.channels, data.image_size, data.mean) == (3, 32, (0.5071, 0.4865, 0.4409))
    assert isinstance(data.test, ArraySplit) and data.test.labels[:101].tolist() == [*range(100), 0]
    (folder / "test").write_bytes(b"too short")
    with pytest.raises(RecipeError, match=r"test is truncated or damaged \(wrong checksum\)"):
        load(data="cifar100", data_dir=str(tmp_path))
    (folder / "test").unlink()
    with pytest.raises(RecipeError, match="test is missing; is --data-dir the folder of CIFAR-100"):
        load(data="cifar100", data_dir=str(tmp_path))


def write_pickle(path: Path, content: dict[str, Any]) -> bytes:
    path.write_bytes(pickle.dumps(content))
    return path.read_bytes()
