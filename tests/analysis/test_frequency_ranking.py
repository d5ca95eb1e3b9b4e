"""The importance of single frequencies, class by class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from analysis_support import Detector, Linear, batches, cell, marked, masked, once, uniform
from torch.nn import functional as F

from sturdy.analysis import FrequencyRanking, rank_frequencies
from sturdy.analysis.frequencies import patches

SIZE = (6, 7)
BINS = [(1, 2), (2, 0), (2, 3), (0, 1)]


@pytest.mark.parametrize("patch", [1, 2])
def test_equals_the_loss_under_masks(patch: int) -> None:
    model = Linear(3, (2, *SIZE))
    images = uniform(40, 2, *SIZE, seed=1, dtype=torch.float64)
    labels = torch.arange(40) % 3
    found = rank_frequencies(model, once(batches(images, labels)), patch=patch, batch_size=5)
    groups = patches(*SIZE, patch)
    for c in range(3):
        own = images[labels == c]

        def loss(x: torch.Tensor, c: int = c) -> float:
            return float(F.cross_entropy(model(x).detach(), torch.full((len(x),), c)))

        assert found.loss[c] == pytest.approx(loss(own))
        for g in range(int(groups.max()) + 1):
            wanted = loss(masked(own, (groups != g).double())) - loss(own)
            torch.testing.assert_close(
                found.importance[c][groups == g],
                torch.full((int((groups == g).sum()),), wanted, dtype=torch.float64),
                rtol=0,
                atol=1e-12,
            )


def test_finds_the_frequency_of_each_class() -> None:
    images, labels = marked(BINS, SIZE, 5)
    found = rank_frequencies(Detector(BINS), batches(images, labels))
    top = found.top(100 * 2 / 42)  # one frequency and its mirror image
    for c, bin in enumerate(BINS):
        wanted = torch.zeros(SIZE)
        for k in (1, -1):
            wanted[cell((k * bin[0], k * bin[1]), SIZE)] = 1
        assert torch.equal(top[c], wanted), c


def test_top_keeps_ties_together() -> None:
    importance = torch.tensor([[[5.0, 1.0, 1.0, 5.0], [3.0, 3.0, -2.0, 0.0]]], dtype=torch.float64)
    ranking = FrequencyRanking(importance, torch.zeros(1), (0,))
    assert ranking.top(12.5).flatten().tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert ranking.top(37.5).flatten().tolist() == [1, 0, 0, 1, 1, 1, 0, 0]
    assert ranking.top(100).sum() == 8
    for percent in (0, -1, 101, 12, float("nan")):
        with pytest.raises(ValueError, match="percent must be above 0"):
            ranking.top(percent)


def test_classes_and_images_in_order() -> None:
    model, told = Linear(3, (1, *SIZE)), []
    images, labels = uniform(40, 1, *SIZE, seed=1), torch.arange(40) % 3
    state = torch.random.get_rng_state()
    kwargs: dict[str, Any] = {"progress": lambda *words: told.append(words), "images_per_class": 4}
    some = rank_frequencies(model, batches(images, labels), classes=[2, 1], **kwargs)
    whole = rank_frequencies(model, [(images[:12], labels[:12])])
    assert some.classes == (2, 1) and torch.equal(some.importance, whole.importance[[2, 1]])
    pairs = int(patches(*SIZE, 1).max()) + 1
    assert told == [(2, 4)] * pairs + [(1, 4)] * pairs
    assert torch.equal(torch.random.get_rng_state(), state)


def test_errors() -> None:
    images, labels = marked(BINS, SIZE, 1)
    good = batches(images, labels)
    with pytest.raises(RuntimeError, match="rank_frequencies: the model must be in evaluation mode"):
        rank_frequencies(Detector(BINS).train(), good)
    with pytest.raises(ValueError, match="rank_frequencies: the loader has no image of class 4"):
        rank_frequencies(Detector([*BINS, (1, 1)]), good)
    with pytest.raises(ValueError, match="patch must be 1 or more, got 0"):
        rank_frequencies(Detector(BINS), good, patch=0)
