"""Data sets of sequences: symbols of different numbers, a class each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sturdy.recipes.errors import RecipeError, one_line
from sturdy.recipes.listops import Expressions

PADDING = 0


@dataclass(frozen=True)
class TokenSplit:
    """Sequences in memory.

    Attributes:
        symbols: uint8, all sequences joined.
        starts: ``(N,)`` int64: where each sequence begins.
        lengths: ``(N,)`` int64: its number of symbols.
        labels: ``(N,)`` int64.
    """

    symbols: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> TokenSplit:
        """The split with these sequences, in this order."""
        return replace(self, starts=self.starts[indices], lengths=self.lengths[indices], labels=self.labels[indices])

    def at_most(self, length: int) -> TokenSplit:
        """The split with the first ``length`` symbols of each sequence."""
        return replace(self, lengths=self.lengths.clamp(max=length))

    def batch(self, indices: Tensor) -> Tensor:
        """``(n, L)`` int64: symbols numbered from 1, and 0 after the end of those that are shorter than the longest."""
        lengths = self.lengths[indices, None]
        place = torch.arange(int(lengths.max())) if len(indices) else torch.arange(0)
        inside = place < lengths
        where = torch.where(inside, self.starts[indices, None] + place, 0)
        return torch.where(inside, self.symbols[where].long() + 1, PADDING)


def joined(parts: list[bytes], labels: list[int]) -> TokenSplit:
    """Sequences of bytes as a split."""
    lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    symbols = torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy())
    return TokenSplit(symbols, lengths.cumsum(0) - lengths, lengths, torch.tensor(labels, dtype=torch.int64))


def from_expressions(expressions: Expressions) -> TokenSplit:
    """ListOps expressions as a split."""
    offsets = torch.from_numpy(expressions.offsets)
    symbols = torch.from_numpy(expressions.tokens - np.uint8(1))
    labels = torch.from_numpy(expressions.labels.astype(np.int64))
    return TokenSplit(symbols, offsets[:-1], offsets[1:] - offsets[:-1], labels)


def read_texts(path: Path) -> tuple[TokenSplit, TokenSplit, list[str]]:
    """Training and test part of a set of texts, as bytes, and the names of the classes.

    Args:
        path: A folder with ``train/CLASS/*`` and ``test/CLASS/*``, one file a text, as IMDb has it; folders that only
            one of the two has are left out. Or an ``.npz`` file with ``text_train`` (all bytes joined, uint8),
            ``offsets_train`` (``(N + 1,)``) and ``y_train`` (class numbers from 0), and the same for ``test``.

    Raises:
        RecipeError: it is missing, damaged or something else.
    """
    if path.is_dir():
        return _text_folder(path)
    if not path.exists():
        raise RecipeError(f"no such file or folder: {path}")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib, lzma and the npy reader each have their own exceptions
        raise RecipeError(f"{path} is truncated or not an npz file ({one_line(error)[:120]})") from None
    train, test = (_from_arrays(path, part, arrays) for part in ("train", "test"))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    return train, test, [str(i) for i in range(classes)]


def _from_arrays(path: Path, part: str, arrays: dict[str, np.ndarray]) -> TokenSplit:
    names = [f"{kind}_{part}" for kind in ("text", "offsets", "y")]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise RecipeError(f"{path} lacks {', '.join(missing)} (it holds {', '.join(arrays) or 'nothing'})")
    text, offsets, y = (arrays[name] for name in names)
    if text.dtype != np.uint8 or text.ndim != 1:
        raise RecipeError(f"{path}: text_{part} must hold bytes, got {text.dtype} {text.shape}")
    if offsets.ndim != 1 or not len(offsets) or not np.issubdtype(offsets.dtype, np.integer):
        raise RecipeError(f"{path}: offsets_{part} must hold whole numbers, got {offsets.dtype} {offsets.shape}")
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
        raise RecipeError(f"{path}: offsets_{part} must rise from 0 to the length of text_{part}")
    if y.shape != (len(offsets) - 1,) or not np.issubdtype(y.dtype, np.integer) or not len(y) or y.min() < 0:
        raise RecipeError(
            f"{path}: y_{part} must hold {len(offsets) - 1} class numbers from 0, got {y.dtype} {y.shape}"
        )
    starts = torch.from_numpy(offsets)
    labels = torch.from_numpy(y.astype(np.int64))
    return TokenSplit(torch.from_numpy(text), starts[:-1], starts[1:] - starts[:-1], labels)


def _text_folder(root: Path) -> tuple[TokenSplit, TokenSplit, list[str]]:
    found = []
    for name in ("train", "test"):
        if not (root / name).is_dir():
            raise RecipeError(f"no such folder: {root / name} (texts are in train/CLASS/ and test/CLASS/)")
        found.append({folder.name for folder in (root / name).iterdir() if folder.is_dir()})
    classes = sorted(found[0] & found[1])
    if len(classes) < 2:
        raise RecipeError(f"{root}: train/ and test/ have fewer than two folders in common, one for each class")
    parts = []
    for name in ("train", "test"):
        files = [(file, i) for i, c in enumerate(classes) for file in sorted((root / name / c).iterdir())]
        if not files:
            raise RecipeError(f"{root / name} holds no texts")
        try:
            parts.append(joined([file.read_bytes() for file, _ in files], [label for _, label in files]))
        except OSError as error:
            raise RecipeError(f"cannot read {error.filename}: {error.strerror or one_line(error)}") from None
    return parts[0], parts[1], classes
