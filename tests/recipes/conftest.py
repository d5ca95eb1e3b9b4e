"""Tiny data sets and a way to call the command line as a user does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

for _module in ("typer", "rich", "safetensors", "sklearn", "torchvision", "matplotlib"):
    pytest.importorskip(_module, reason="needs the extra `recipes`")

from recipe_support import Result, make_images  # noqa: E402 (after the skip)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small to share between threads, which would only wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sturdy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process: ``sturdy("train", "pushpull", ...)``."""
    from sturdy.recipes import cli

    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["sturdy", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 40 test images, 8 x 8 x 1, four classes."""
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    x_train, y_train = make_images(96, 8, 1, seed=1)
    x_test, y_test = make_images(40, 8, 1, seed=2)
    np.savez(path, x_train=x_train[..., 0], y_train=y_train, x_test=x_test[..., 0], y_test=y_test)
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of PNG files with two classes, 20 x 24 pixels."""
    from PIL import Image

    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(3)
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(120 * label, 120 * label + 100, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root
