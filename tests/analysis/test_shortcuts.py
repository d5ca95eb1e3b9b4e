"""Planted shortcuts: a class that a network knows by one plane wave is found, one that it does not is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from analysis_support import Detector, Linear, batches, cell, marked, masked, once, uniform
from torch import Tensor

from sturdy import ShapeError
from sturdy.analysis import hfss, mirror_cells, shortcut_report
from sturdy.analysis.subset_search import _draw, _mirror, default_stages
from sturdy.transforms import effective_mask, load_masks

SIZE = (8, 8)
BINS = [(1, 2), (3, 0), (2, 3), (0, 1)]


def only(bins: list[tuple[int, int]], size: tuple[int, int] = SIZE) -> Tensor:
    """Masks of one frequency each, with its mirror image."""
    masks = torch.zeros(len(bins), *size)
    for mask, bin in zip(masks, bins, strict=True):
        for k in (1, -1):
            mask[cell((k * bin[0], k * bin[1]), size)] = 1
    return masks


# ---- report ----------------------------------------------------------------------------------------------------------


def test_tells_a_shortcut_from_a_sound_class() -> None:
    """Class 0 is answered to any trace of its wave once others are gone; the rest ask for a strong one."""
    images, labels = marked(BINS, SIZE, 12)
    model = Detector(BINS, biases=[0.0, 0.15, 0.15, 0.15])
    report = shortcut_report(model, once(batches(images, labels)), only(BINS))
    assert report.tpr.tolist() == [1] * 4 and report.fpr.tolist() == [0] * 4
    assert report.filtered_tpr.tolist() == [1] * 4
    assert report.filtered_fpr.tolist() == [1, 0, 0, 0]
    assert report.shortcut.tolist() == [True, False, False, False]
    assert torch.equal(report.confusion, 12 * torch.eye(4, dtype=torch.int64))


def test_rates_by_their_definition() -> None:
    model = Linear(5, (2, 6, 7))  # a class more than there are masks
    images, labels = uniform(60, 2, 6, 7, seed=1, dtype=torch.float64), torch.arange(60) % 4
    masks = (uniform(3, 6, 7, seed=4) < 0.5).float()  # not symmetric
    classes = [2, 0, 3]
    report = shortcut_report(model, once(batches(images, labels)), masks, classes=classes, fpr_threshold=0.25)
    plain = model(images).argmax(1)
    for i, c in enumerate(classes):
        answers = model(masked(images, masks[i])).argmax(1)
        own = labels == c
        assert report.tpr[i] == pytest.approx(float((plain[own] == c).double().mean()))
        assert report.fpr[i] == pytest.approx(float((plain[~own] == c).double().mean()))
        assert report.filtered_tpr[i] == pytest.approx(float((answers[own] == c).double().mean()))
        assert report.filtered_fpr[i] == pytest.approx(float((answers[~own] == c).double().mean()))
        for true in range(5):
            for answer in range(5):
                wanted = int(((labels == true) & (answers == answer)).sum())
                assert report.filtered_confusion[i, true, answer] == wanted
    assert report.confusion.sum() == 60 and report.confusion.shape == (5, 5)
    high = (report.filtered_tpr >= 0.5 * report.tpr) & (report.filtered_fpr >= 0.25) & (report.filtered_tpr > 0)
    assert torch.equal(report.shortcut, high)


def test_rates_of_groups() -> None:
    images, labels = marked(BINS, SIZE, 8)
    report = shortcut_report(Detector(BINS), batches(images, labels), only([BINS[0], BINS[0], BINS[2], BINS[3]]))
    assert report.above(0.5).tolist() == [True, False, True, True]
    rates = report.average_tpr(0.5)
    assert rates == {"shortcut": 1.0, "other": 1.0, "filtered_shortcut": 1.0, "filtered_other": 0.0}
    assert math.isnan(report.average_tpr(1.0)["shortcut"]) and report.average_tpr(1.0)["other"] == 1


def test_batches_do_not_matter() -> None:
    model = Linear(4, (1, *SIZE))
    images, labels = uniform(30, 1, *SIZE, seed=1), torch.arange(30) % 4
    masks = (uniform(4, *SIZE, seed=4) < 0.5).float()
    state = torch.random.get_rng_state()
    one = shortcut_report(model, batches(images, labels, 3), masks, batch_size=4)
    other = shortcut_report(model, [(images, labels)], masks)
    assert torch.equal(one.filtered_confusion, other.filtered_confusion)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_report_errors() -> None:
    images, labels = marked(BINS, SIZE, 2)
    good, masks, model = batches(images, labels), only(BINS), Detector(BINS)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (RuntimeError, "must be in evaluation mode", {"model": Detector(BINS).train()}),
        (ShapeError, r"masks must be \(8, 8\) as the images", {"masks": torch.ones(4, 8, 9)}),
        (ShapeError, r"masks must be \(K, H, W\)", {"masks": torch.ones(8, 8)}),
        (ShapeError, "4 masks for 2 classes", {"classes": [0, 1]}),
        (IndexError, "class 4 is not one of the 4 outputs", {"masks": torch.ones(5, 8, 8)}),
        (IndexError, "label 5 is not one of the 4 outputs", {"loader": [(images, labels + 2)]}),
        (ValueError, "no image of class 1", {"loader": [(images, labels // 2 * 2)]}),
        (ValueError, "images of class 0 only", {"loader": [(images, labels * 0)], "masks": masks[:1]}),
        (ValueError, "tpr_threshold must be between 0 and 1, got 2", {"tpr_threshold": 2}),
        (ValueError, "fpr_threshold must be", {"fpr_threshold": -0.1}),
    ]
    for error, text, changed in cases:
        words = {"model": model, "loader": good, "masks": masks, **changed}
        with pytest.raises(error, match=text) as caught:
            shortcut_report(words.pop("model"), words.pop("loader"), words.pop("masks"), **words)
        assert str(caught.value).startswith("shortcut_report: ")


# ---- search ----------------------------------------------------------------------------------------------------------


def test_search_recovers_planted_waves() -> None:
    """Of each class's small mask the planted frequency is a part, and that mask makes it a shortcut."""
    images, labels = marked(BINS, SIZE, 4)
    model = Detector(BINS, scale=5.0)
    found = hfss(model, batches(images, labels), [2, 4, 8], 240, 5, fraction=0.4)
    for c, mask in enumerate(only(BINS)):
        assert bool((found.masks[c][mask == 1] == 1).all()), c
        others = torch.stack([m for d, m in enumerate(only(BINS)) if d != c]).amax(0)
        assert found.masks[c][others == 1].sum() <= 2  # of six
    assert float(found.masks.mean()) < 0.3
    assert bool((found.history.diff(dim=0) < 1e-5).all()) and bool((found.losses < found.unfiltered).all())
    report = shortcut_report(model, batches(images, labels), found.masks)
    assert report.filtered_tpr.tolist() == [1] * 4 and bool((report.filtered_fpr > 0.5).all())


@pytest.mark.parametrize("hermitian", ["exact", "reference"])
def test_losses_are_those_of_the_masks(hermitian: Any) -> None:
    size = (8, 10)
    model = Linear(3, (2, *size))
    images, labels = uniform(50, 2, *size, seed=1, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1] * 10)
    found = hfss(model, once(batches(images, labels)), [2, 4, 8], 30, 4, hermitian=hermitian, seed=3, batch_size=64)
    assert found.masks.shape == (3, *size) and found.candidates.shape == (3, 4, *size)
    assert torch.equal(found.masks, found.candidates[:, 0]) and torch.equal(found.losses, found.candidate_losses[:, 0])
    assert bool((found.candidate_losses.diff(dim=1) >= 0).all()) and found.history.shape == (3, 3)
    assert torch.equal(found.history[-1], found.losses)
    for c in range(3):
        own = images[labels == c]
        target = torch.full((len(own),), c)
        for mask, loss in zip(found.candidates[c], found.candidate_losses[c], strict=True):
            filtered = torch.nn.functional.cross_entropy(model(masked(own, mask)).detach(), target)
            assert float(loss) == pytest.approx(float(filtered), abs=1e-9)
        plain = torch.nn.functional.cross_entropy(model(own).detach(), target)
        assert float(found.unfiltered[c]) == pytest.approx(float(plain), abs=1e-9)
    assert torch.equal(found.masks, effective_mask(found.masks))
    assert bool((found.masks == 0.5).any()) == (hermitian == "reference")


def of_cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    cells = mirror_cells(torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])), size)
    return mask[..., cells[:, 0], cells[:, 1]].reshape(mask.shape)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (12, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("grid", [1, 2, 4, 7])
def test_exact_masks_are_symmetric_and_of_the_right_density(size: tuple[int, int], grid: int) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = _mirror(_draw(300, grid, size, 0.5, "exact", generator), "exact")
    assert torch.equal(masks, of_cells(masks, size)) and set(masks.unique().tolist()) <= {0.0, 1.0}
    if grid > 1:
        share = masks.mean(0)
        assert float(share.min()) > 0.25 and float(share.max()) < 0.7  # no frequency is left out or always in


def test_plain_squares_are_a_kronecker_product_and_shifted_ones_lie_between() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = _draw(9, 4, (16, 16), 0.5, "reference", generator)
    for kind, mask in enumerate(masks):
        upper = mask[:8]
        if kind % 3 == 0:
            cells = upper[::4, ::4]
            assert torch.equal(upper, cells.repeat_interleave(4, 0).repeat_interleave(4, 1)) and cells.sum() == 4
            assert mask[8:].sum() == 0
        elif kind % 3 == 1:
            whole = torch.nn.functional.pad(mask, (2, 2, 2, 2))  # two pixels of the outer squares are cut off
            cells = whole[2::4, 2::4]
            inner = whole[4:16, 4:16]
            again = inner[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1)
            assert torch.equal(inner, again) and cells.shape == (5, 5) and cells[3:].sum() == 0


def test_reference_mirrors_one_place_off() -> None:
    masks = _mirror(_draw(30, 4, (16, 16), 0.8, "reference", torch.Generator().manual_seed(0)), "reference")
    assert torch.equal(masks, masks.flip((-2, -1)))
    assert not torch.equal(masks, of_cells(masks, (16, 16)))


def test_search_is_repeatable_and_leaves_random_numbers_alone() -> None:
    model = Linear(3, (1, *SIZE))
    images, labels = uniform(30, 1, *SIZE, seed=1), torch.arange(30) % 3
    state = torch.random.get_rng_state()
    told: list[tuple[int, int]] = []
    words: dict[str, Any] = {"stages": [2, 4], "n_candidates": 12, "keep": 3, "classes": [2, 0]}
    first = hfss(model, batches(images, labels), **words, progress=lambda *more: told.append(more))
    again = hfss(model, [(images, labels)], **words)
    other = hfss(model, batches(images, labels), **words, seed=1)
    assert torch.equal(first.masks, again.masks) and torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first.candidates, other.candidates)
    assert first.classes == (2, 0) and first.stages == (2, 4)
    assert {stage for stage, _ in told} == {0, 1} and sum(count for _, count in told) == 2 * 12 * 20


def test_found_masks_can_be_kept(tmp_path: Any) -> None:
    images, labels = marked(BINS, SIZE, 2)
    found = hfss(Detector(BINS), batches(images, labels), [2], 6, 2, hermitian="reference")
    found.save(tmp_path / "found.npz")
    assert torch.equal(load_masks(tmp_path / "found.npz").masks["model"], found.masks)


def test_stages() -> None:
    assert default_stages(224) == (4, 8, 16, 28, 56, 112) and default_stages(32) == (4, 8, 16, 32)
    assert default_stages(128) == (4, 8, 16, 32, 64, 128) and default_stages(28) == (4, 8, 16)
    assert default_stages(3) == (3,)


def test_search_errors() -> None:
    images, labels = marked(BINS, SIZE, 1)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (RuntimeError, "must be in evaluation mode", {"model": Detector(BINS).train()}),
        (ValueError, "no image of class 4", {"model": Detector([*BINS, (1, 1)])}),
        (ValueError, "from 1 to 8, got \\[4, 16\\]", {"stages": [4, 16]}),
        (ValueError, "from 1 to 8, got \\[\\]", {"stages": []}),
        (ValueError, "fraction must be above 0", {"fraction": 0.0}),
        (ValueError, '"exact" or "reference"', {"hermitian": "half"}),
        (ValueError, "n_candidates must be 1 or more", {"n_candidates": 0}),
        (ValueError, "keep must be 1 or more", {"keep": 0}),
    ]
    for error, text, changed in cases:
        words = {"model": Detector(BINS), **changed}
        with pytest.raises(error, match=text) as caught:
            hfss(words.pop("model"), batches(images, labels), **words)
        assert str(caught.value).startswith("hfss: ")
