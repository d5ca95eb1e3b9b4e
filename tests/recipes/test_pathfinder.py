"""Pathfinder and Path-X: labels, markers and contours by the log of their construction, and repeatable files."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sturdy.recipes import generated, pathfinder
from sturdy.recipes.pathfinder import HARD, PARAMETERS, Construction, Dash


@pytest.fixture(scope="module")
def small() -> list[tuple[np.ndarray, Construction]]:
    return [pathfinder.generate_image(0, i, 32) for i in range(120)]


@pytest.fixture(scope="module")
def large() -> list[tuple[np.ndarray, Construction]]:
    return [pathfinder.generate_image(0, i, 128) for i in range(4)]


def all_dashes(construction: Construction) -> list[Dash]:
    return [dash for contour in (*construction.contours, *construction.distractors) for dash in contour]


def distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return math.dist(a, b)


def middle(dash: Dash) -> tuple[float, float]:
    return (dash.tail[0] + dash.head[0]) / 2, (dash.tail[1] + dash.head[1]) / 2


def test_labels_are_balanced(small: list[tuple[np.ndarray, Construction]]) -> None:
    labels = [construction.label for _, construction in small]
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / math.sqrt(len(labels))


@pytest.mark.parametrize("images", ["small", "large"])
def test_markers_tell_the_label(images: str, request: pytest.FixtureRequest) -> None:
    """They lie at the beginning of a contour and at the end of the same one for label 1, of the other for label 0."""
    for _, made in request.getfixturevalue(images):
        assert (made.on[0] == made.on[1]) == (made.label == 1)
        begin, end = made.contours[made.on[0]], made.contours[made.on[1]]
        assert made.markers == (begin[0].tail, end[-1].head)


@pytest.mark.parametrize("images", ["small", "large"])
def test_markers_are_bright(images: str, request: pytest.FixtureRequest) -> None:
    """At least 80 % of the brightest pixel in their middles, over a disc of their size."""
    for image, made in request.getfixturevalue(images):
        radius = PARAMETERS[len(image)].marker_radius
        for row, column in made.markers:
            assert image[row, column] >= 0.8 * image.max()
            inside = [
                (r, c)
                for r in range(max(0, row - 4), min(len(image), row + 5))
                for c in range(max(0, column - 4), min(len(image), column + 5))
                if math.dist((r, c), (row, column)) <= radius - 1
            ]
            assert all(image[place] >= 0.8 * image.max() for place in inside)


def test_whole_range_of_grey(small: list[tuple[np.ndarray, Construction]]) -> None:
    for image, _ in small:
        assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255 and (image == 0).mean() > 0.3


@pytest.mark.parametrize("images", ["small", "large"])
def test_contours(images: str, request: pytest.FixtureRequest) -> None:
    """14 dashes each, with the length and the gaps of the recipe, in the image, and turning by less than a limit."""
    for image, made in request.getfixturevalue(images):
        parameters = PARAMETERS[len(image)]
        gaps = []
        for contour in made.contours:
            assert len(contour) == HARD
            for before, after in itertools.pairwise(contour):
                gaps.append(distance(before.head, after.tail))
                turn = abs((after.direction - before.direction + math.pi) % (2 * math.pi) - math.pi)
                assert parameters.continuity * turn < math.pi / 2
        # Places are rounded to pixels several times on the way from one dash to the next.
        assert max(gaps) <= 2 * max(parameters.margins) + 2.9
        assert min(parameters.margins) * 2 - 1 <= np.mean(gaps) <= 2 * max(parameters.margins) + 1
        for dash in all_dashes(made):
            assert abs(distance(dash.tail, dash.head) - parameters.dash) <= 1.5
            assert all(0 <= coordinate < len(image) for coordinate in (*dash.tail, *dash.head))
        for contour in made.distractors:
            assert len(contour) == HARD // 3
        assert len(made.distractors) <= parameters.distractor_dashes // (HARD // 3)
        seeds = distance(made.contours[0][0].tail, made.contours[1][0].tail)
        assert abs(seeds - parameters.seed_distance) <= 1.5


def test_there_are_distractors(
    small: list[tuple[np.ndarray, Construction]], large: list[tuple[np.ndarray, Construction]]
) -> None:
    assert np.mean([len(made.distractors) for _, made in small]) > 3
    assert np.mean([len(made.distractors) for _, made in large]) > 6


def test_dashes_keep_apart(small: list[tuple[np.ndarray, Construction]]) -> None:
    """No dash lies on another one, and hardly ever do ends meet, but for neighbours of one contour."""
    touching = 0
    for _, made in small:
        contours = [*made.contours, *made.distractors]
        for i, contour in enumerate(contours):
            for j, dash in enumerate(contour):
                for k, other in enumerate(contours):
                    for m, another in enumerate(other):
                        if k < i or (k == i and m <= j + 1):
                            continue
                        assert distance(middle(dash), middle(another)) >= 1
                        ends = itertools.product((dash.tail, dash.head), (another.tail, another.head))
                        touching += min(distance(*pair) for pair in ends) < 1
    assert touching <= 0.05 * len(small)


def test_contours_are_drawn_as_bright_as_they_should_be(small: list[tuple[np.ndarray, Construction]]) -> None:
    """The dashes of the two contours have three quarters of the distractors' brightness."""
    target, other = [], []
    for image, made in small:
        target += [max(image[d.tail], image[d.head]) for contour in made.contours for d in contour[1:-1]]
        other += [max(image[d.tail], image[d.head]) for contour in made.distractors for d in contour]
    assert 0.65 <= np.median(target) / np.median(other) <= 0.85


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="32, 128 pixels, not 48"):
        pathfinder.generate_image(0, 0, 48)


def test_same_seed_same_file(tmp_path: Path) -> None:
    """Whether one process draws or several, and an image does not depend on how many there are."""
    one = generated.pathfinder_file(tmp_path / "one", 60, size=32)
    again = generated.pathfinder_file(tmp_path / "again", 60, size=32)
    assert one.read_bytes() == again.read_bytes()
    images, labels = generated.read_pathfinder(one)
    assert images.shape == (60, 32, 32) and labels.shape == (60,)
    for i in (0, 49, 50, 59):
        image, made = pathfinder.generate_image(0, i, 32)
        assert np.array_equal(images[i], image) and labels[i] == made.label
    assert not np.array_equal(images[0], pathfinder.generate_image(1, 0, 32)[0])


def test_several_processes_draw_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "_MIN_BLOCKS_TO_SHARE", 2)
    one = generated.pathfinder_file(tmp_path / "one", 70, size=32)
    two = generated.pathfinder_file(tmp_path / "two", 70, size=32, processes=2)
    assert one.read_bytes() == two.read_bytes()


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        parts = [(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)) for _ in range(2)]
        self.inner = nn.Sequential(*parts[0], nn.ReLU(), *parts[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.inner(x))


def small_cnn() -> nn.Module:
    first = [nn.Conv2d(1, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    second = [nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = [Residual(32) for _ in range(3)]
    return nn.Sequential(
        *first, *blocks, *second, Residual(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)
    )


@pytest.mark.full
def test_a_small_cnn_learns_it() -> None:
    """More than 80 % where contours have 4 dashes, so that some minutes will do: the label is there to be seen."""
    torch.manual_seed(0)
    n, test, batch, epochs = 8000, 1000, 64, 14
    parts = [pathfinder.generate_block(0, block, 32, 4) for block in range((n + test) // pathfinder.BLOCK)]
    x = torch.from_numpy(np.concatenate([images for images, _ in parts]))[:, None] / 255
    y = torch.from_numpy(np.concatenate([labels for _, labels in parts]).astype(np.int64))
    model, steps = small_cnn(), epochs * (n // batch)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        if step % (n // batch) == 0:
            order = torch.randperm(n)
        chosen = order[step % (n // batch) * batch :][:batch]
        turn = int(torch.randint(8, ()))
        images = x[chosen].flip([axis for axis in (-1, -2) if turn & -axis]) if turn & 3 else x[chosen]
        images = images.transpose(-1, -2) if turn & 4 else images
        loss = nn.functional.cross_entropy(model(images), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    with torch.inference_mode():
        right = torch.cat([model(part).argmax(1) for part in x[n:].split(500)]) == y[n:]
    assert right.float().mean() > 0.8
