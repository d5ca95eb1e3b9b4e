"""Dominant frequency maps: against the search by its definition, on networks whose frequencies are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis_support import Batches, Detector, Linear, batches, cell, marked, masked, once, uniform
from torch import Tensor, nn

from sturdy import ShapeError
from sturdy.analysis import compute_dfm, mirror_cells, removal_order
from sturdy.transforms import effective_mask, load_masks

SIZE = (8, 8)
BINS = [(1, 2), (3, 0), (2, 3), (0, 1)]


def search(model: nn.Module, images: Tensor, c: int, order: Tensor, tolerance: int, scope: str) -> tuple[Tensor, int]:
    """The paper's search: every candidate filters the images anew."""

    def correct(x: Tensor) -> int:
        return int((model(x).argmax(1) == c).sum())

    start = now = correct(images)
    kept = (order > 0).double()
    for level in sorted({v for v in order.flatten().tolist() if v > 0}, reverse=True):
        candidate = torch.where(order == level, 0.0, kept)
        count = correct(masked(images, candidate))
        if count >= (now if scope == "step" else start) - tolerance:
            kept, now = candidate, count
    return kept, correct(masked(images, kept))


@pytest.fixture(scope="module")
def random_case() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of three classes, and images of which it knows some."""
    model = Linear(3, (2, 6, 7))
    images = uniform(240, 2, 6, 7, seed=1, dtype=torch.float64)
    labels = model(images - 0.6 * uniform(240, 2, 6, 7, seed=2, dtype=torch.float64)).argmax(1)
    return model, images, labels


@pytest.mark.parametrize("scope", ["step", "global"])
@pytest.mark.parametrize("kind", ["default", "one-sided"])
@pytest.mark.parametrize("tolerance", [0, 2])
def test_equals_the_search_by_its_definition(random_case: Any, scope: str, kind: str, tolerance: int) -> None:
    """Also where a cell has another level than its mirror image, levels are missing, and some cells are never tried."""
    model, images, labels = random_case
    order = removal_order(6, 7)
    if kind == "one-sided":
        order = torch.randint(0, 15, (6, 7), generator=torch.Generator().manual_seed(3)) * 7
    found = compute_dfm(model, once(batches(images, labels)), order, tolerance, scope)
    assert found.classes == (0, 1, 2) and torch.equal(found.order, order)
    for c in range(3):
        own = images[labels == c]
        kept, count = search(model, own, c, order, tolerance, scope)
        assert torch.equal(found.masks[c].double(), effective_mask(kept))
        assert found.images[c] == len(own) and found.correct_after[c] == count
        assert found.correct_before[c] == int((model(own).argmax(1) == c).sum())
        mirrored = kept[tuple(mirror_cells(torch.cartesian_prod(torch.arange(6), torch.arange(7)), (6, 7)).T)]
        assert found.one_sided[c] == int((kept > mirrored.reshape(6, 7)).sum())
    assert bool((found.one_sided > 0).any()) == (kind == "one-sided")


def test_tolerance_over_all_steps_bounds_the_loss(random_case: Any) -> None:
    model, images, labels = random_case
    lost = {}
    for scope in ("step", "global"):
        found = compute_dfm(model, batches(images, labels), None, 2, scope)
        lost[scope] = found.correct_before - found.correct_after
    assert bool((lost["global"] <= 2).all()) and int(lost["step"].max()) > 2
    part = compute_dfm(model, batches(images, labels), None, 0.1, "global")
    allowed = (0.1 * part.correct_before.double() + 1e-9).floor()
    assert bool((part.correct_before - part.correct_after <= allowed).all())
    assert bool((part.correct_before - part.correct_after > 0).any())


def test_keeps_what_the_network_looks_at() -> None:
    """Each class has one frequency; in the mask are that one and its mirror image."""
    images, labels = marked(BINS, SIZE, 6)
    model = Detector([*BINS, (1, 1)], biases=[0.1, 0.1, 0.1, 0.1, 0.0])  # the last one is for images without any
    found = compute_dfm(model, batches(images, labels), tolerance=0, classes=range(4))
    for c, bin in enumerate(BINS):
        wanted = torch.zeros(SIZE)
        for k in (1, -1):
            wanted[cell((k * bin[0], k * bin[1]), SIZE)] = 1
        assert torch.equal(found.masks[c], wanted), c
    assert torch.equal(found.correct_after, found.images)


def test_frequency_0_stays_if_asked_for() -> None:
    images, labels = marked(BINS[:2], SIZE, 4)
    model = Detector([*BINS[:2], (2, 3)], biases=[0.1, 0.1, 0.0])
    without = compute_dfm(model, batches(images, labels), tolerance=0, classes=[0, 1])
    order = removal_order(*SIZE)
    order[4, 4] = 0  # never tried, and kept all the same
    for given in (None, order):
        kept = compute_dfm(model, batches(images, labels), given, 0, classes=[0, 1], keep_dc=True)
        assert bool((kept.masks[:, 4, 4] == 1).all()) and bool((without.masks[:, 4, 4] == 0).all())
        assert int((kept.masks != without.masks).sum()) == 2


def test_a_class_that_is_not_recognised_keeps_everything() -> None:
    images, labels = marked(BINS, SIZE, 2)
    order = removal_order(*SIZE)
    order[0] = 0
    found = compute_dfm(Detector(BINS[::-1]), batches(images, labels), order)
    assert found.correct_before.tolist() == [0] * 4
    assert torch.equal(found.masks, effective_mask((order > 0).float()).expand(4, -1, -1))


def test_images_of_a_class_in_order_and_progress(random_case: Any) -> None:
    model, images, labels = random_case
    told: list[tuple[int, int]] = []
    kwargs: dict[str, Any] = {"images_per_class": 9, "progress": lambda *words: told.append(words)}
    some = compute_dfm(model, batches(images, labels), classes=[2, 0], **kwargs)
    own = torch.cat([(labels == c).nonzero().flatten()[:9] for c in (0, 2)])
    whole = compute_dfm(model, batches(images[own], labels[own]), classes=[2, 0])
    assert some.classes == (2, 0) and some.images.tolist() == [9, 9]
    assert torch.equal(some.masks, whole.masks)
    levels = int(removal_order(6, 7).max())
    assert told == [(2, 9)] * levels + [(0, 9)] * levels


def test_repeatable_and_without_random_numbers(random_case: Any) -> None:
    model, images, labels = random_case
    state = torch.random.get_rng_state()
    first = compute_dfm(model, batches(images, labels), batch_size=5)
    again = compute_dfm(model, batches(images, labels, 100), batch_size=1000)
    assert torch.equal(first.masks, again.masks) and torch.equal(torch.random.get_rng_state(), state)
    assert first.masks.dtype == torch.float32 and not first.masks.requires_grad


def test_the_published_files(tmp_path: Path, random_case: Any) -> None:
    """A file in their form: bytes of 0 and 1 by network, levels as int16, cells of level 0, and one-sided ones."""
    model, images, labels = random_case
    order = np.random.default_rng(0).integers(0, 30, (6, 7)).astype(np.int16)
    masks = np.random.default_rng(1).integers(0, 2, (3, 6, 7)).astype(np.uint8)
    np.savez(tmp_path / "published.npz", removal_order=order, resnet18=masks)
    given = load_masks(tmp_path / "published.npz")
    found = compute_dfm(model, batches(images, labels), given.removal_order)
    found.save(tmp_path / "found.npz", "linear")
    read = load_masks(tmp_path / "found.npz")
    assert torch.equal(read.masks["linear"], found.masks)
    assert read.removal_order is not None and torch.equal(read.removal_order, torch.from_numpy(order).long())
    found = compute_dfm(model, batches(images, labels), torch.from_numpy(order))
    assert torch.equal(read.masks["linear"], found.masks)


def errors() -> list[Any]:
    images, labels = marked(BINS, SIZE, 2)
    good = batches(images, labels)
    order = removal_order(*SIZE)
    eye = Detector(BINS)

    def case(error: type[Exception], text: str, loader: Any = good, model: Any = eye, **more: Any) -> Any:
        return pytest.param(error, text, loader, model, more, id=text[:30])

    three_d: Batches = [(images[0], labels[:1])]
    return [
        case(RuntimeError, "evaluation mode; call model.eval", model=Detector(BINS).train()),
        case(ValueError, "no image of class 4", model=Detector([*BINS, (1, 1)])),
        case(ValueError, "no positive level", order=torch.zeros(SIZE, dtype=torch.int64)),
        case(ValueError, "0 or more, got -2", order=order - 3),
        case(ShapeError, r"order must be \(8, 8\)", order=removal_order(8, 9)),
        case(ShapeError, r"order must be \(H, W\)", order=order[0]),
        case(TypeError, "integers, got torch.float32", order=order.float()),
        case(ValueError, "tolerance must be 0 or more", tolerance=-1),
        case(ValueError, "tolerance must be 0 or more", tolerance=float("nan")),
        case(ValueError, '"step" or "global", got \'total\'', scope="total"),
        case(ValueError, "images_per_class must be 1 or more", images_per_class=0),
        case(ValueError, "batch_size must be 1 or more", batch_size=0),
        case(IndexError, "class 4 is not one of the 4 outputs", classes=[4]),
        case(ValueError, "the loader gave no images", loader=[]),
        case(TypeError, "uint8", loader=[(images.byte(), labels)]),
        case(TypeError, "labels must be int64", loader=[(images, labels.int())]),
        case(TypeError, r"must give \(images, labels\)", loader=[images]),
        case(ShapeError, r"\(N, C, H, W\), got shape \(1, 8, 8\)", loader=three_d),
        case(ShapeError, "8 images came with labels of shape", loader=[(images, labels[:3])]),
        case(ShapeError, "one shape", loader=[*good, (images[..., :4], labels)]),
        case(IndexError, "label -1", loader=[(images, labels - 1)]),
        case(ShapeError, r"model must give \(N, classes\)", model=lambda x: x),
    ]


@pytest.mark.parametrize(("error", "text", "loader", "model", "more"), errors())
def test_errors(error: type[Exception], text: str, loader: Any, model: Any, more: dict[str, Any]) -> None:
    with pytest.raises(error, match=text) as caught:
        compute_dfm(model, loader, **more)
    assert str(caught.value).startswith("compute_dfm: ")
