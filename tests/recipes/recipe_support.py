"""Helpers of the tests of the recipes: tiny data, runs in a process of their own, logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PYTHON = [sys.executable, "-m", "sturdy.recipes.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@dataclass
class Result:
    status: int
    out: str
    err: str


def assert_one_line_error(result: Result, *parts: str, status: int | None = None) -> None:
    """The command failed with one line on stderr that has all the parts in it."""
    assert result.status != 0 if status is None else result.status == status, result
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sturdy: error: "), result.err
    for part in parts:
        assert part in lines[0], lines[0]


def make_images(count: int, size: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of four classes that differ in the place of a bright square: ``(N, H, W, C)`` uint8, ``(N,)``."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    images = random.integers(0, 90, (count, size, size, channels))
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 120
    return images.astype(np.uint8), labels.astype(np.uint8)


def tiny(npz: Path, out: Path, *more: object) -> list[object]:
    """Words that train for 3 epochs of 5 steps."""
    words = ["train", "pushpull", "--data", "npz", "--data-dir", npz, "--out", out, "--device", "cpu"]
    return [*words, "--epochs", 3, "--batch-size", 16, "--log-every", 1, *more]


def losses(run: Path) -> list[tuple[Any, ...]]:
    """All that a log says about numbers, without times and resumes."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in event.items() if k != "seconds"} for event in events if event["event"] != "resume"]
    return [tuple(sorted(event.items())) for event in kept]


def run_process(words: list[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [*PYTHON, *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **options)
