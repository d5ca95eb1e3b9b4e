"""Maps over frequencies, and images without some of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from analysis_support import masked, uniform

from sturdy import ShapeError
from sturdy.analysis import FrequencyRemover, mirror_cells, radius_map, removal_order
from sturdy.analysis.frequencies import patches

SIZES = [(8, 8), (7, 9), (6, 5), (5, 8), (1, 6), (1, 1)]


def all_cells(size: tuple[int, int]) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mirror_image_has_the_conjugate_frequency(size: tuple[int, int]) -> None:
    spectrum = torch.fft.fftshift(torch.fft.fft2(uniform(*size, dtype=torch.float64)))
    cells = all_cells(size)
    mirrored = mirror_cells(cells, size)
    there, back = spectrum[cells[:, 0], cells[:, 1]], spectrum[mirrored[:, 0], mirrored[:, 1]]
    torch.testing.assert_close(there, back.conj(), rtol=0, atol=1e-12)
    assert torch.equal(mirror_cells(mirrored, size), cells)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_order_goes_outwards_by_pairs(size: tuple[int, int]) -> None:
    order = removal_order(*size)
    cells = all_cells(size)
    mirrored = mirror_cells(cells, size)
    assert torch.equal(order[cells[:, 0], cells[:, 1]], order[mirrored[:, 0], mirrored[:, 1]])
    assert order[size[0] // 2, size[1] // 2] == order.max()
    assert sorted(order.unique().tolist()) == list(range(1, int(order.max()) + 1))
    longer, by_level = max(size), {}
    for i, j in cells.tolist():
        k, m = (i - size[0] // 2) / size[0], (j - size[1] // 2) / size[1]
        by_level.setdefault(int(order[i, j]), []).append(longer * math.hypot(k, m))
        assert radius_map(*size)[i, j] == pytest.approx(longer * math.hypot(k, m))
    assert all(len(radii) <= 2 for radii in by_level.values())
    outwards = [by_level[level][0] for level in sorted(by_level, reverse=True)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(outwards))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_squares_with_their_mirror_images(size: tuple[int, int], patch: int) -> None:
    groups = patches(*size, patch)
    cells = all_cells(size)
    mirrored = mirror_cells(cells, size)
    assert torch.equal(groups[cells[:, 0], cells[:, 1]], groups[mirrored[:, 0], mirrored[:, 1]])
    assert sorted(groups.unique().tolist()) == list(range(int(groups.max()) + 1))
    for g in range(int(groups.max()) + 1):
        members = (groups == g).nonzero()
        assert len(members) <= 2 * patch**2
        if patch == 1:
            assert set(map(tuple, members.tolist())) == {
                tuple(members[0].tolist()),
                tuple(mirror_cells(members[0], size).tolist()),
            }


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (32, 32), (13, 4)], ids=str)
def test_removal_equals_the_filter_at_every_frequency(size: tuple[int, int]) -> None:
    """Frequency 0, half the sampling rate on either axis and on both, other cells; with and without mirror images."""
    images = uniform(2, 3, *size, dtype=torch.float64)
    remover = FrequencyRemover(images)
    for number, one in enumerate(all_cells(size)):
        if size == (32, 32) and number % 37:
            continue
        pair = torch.stack((one, mirror_cells(one, size))).unique(dim=0)
        for cells in (one[None], pair):
            mask = torch.ones(size)
            mask[cells[:, 0], cells[:, 1]] = 0
            torch.testing.assert_close(remover.without(cells), masked(images, mask), rtol=0, atol=1e-12)
    assert torch.equal(remover.images, images) and bool(remover.kept.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_removals_in_any_order(dtype: torch.dtype) -> None:
    size = (9, 12)
    images = uniform(3, 2, *size, dtype=dtype)
    before = images.clone()
    remover = FrequencyRemover(images)
    mask = torch.ones(size)
    order = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(0))
    for step, chosen in enumerate(order.split(4)):
        cells = torch.stack((chosen // size[1], chosen % size[1]), dim=1)
        without = remover.without(cells)
        if step % 3:
            remover.remove(cells)
            mask[cells[:, 0], cells[:, 1]] = 0
            assert remover.images is without
        remover.remove(cells[:0])  # nothing
        assert torch.equal(remover.kept, mask.bool())
    wanted = masked(images, mask)
    assert (remover.images - wanted).abs().max() < (1e-6 if dtype == torch.float32 else 1e-13)
    assert torch.equal(images, before)


def test_what_was_removed_is_not_removed_again() -> None:
    images = uniform(1, 1, 8, 8, dtype=torch.float64)
    remover = FrequencyRemover(images)
    one = torch.tensor([[5, 6]])
    remover.without(torch.tensor([[1, 1]]))  # a candidate that is not taken
    remover.remove(one)
    once = remover.images
    assert remover.without(one) is once
    remover.remove(one)
    assert remover.images is once
    both = torch.tensor([[5, 6], [3, 2]])
    mask = torch.ones(8, 8)
    mask[both[:, 0], both[:, 1]] = 0
    torch.testing.assert_close(remover.without(both), masked(images, mask), rtol=0, atol=1e-13)


def test_bad_cells_and_images() -> None:
    with pytest.raises(ShapeError, match=r"images must be \(N, C, H, W\), got shape \(3, 8, 8\)"):
        FrequencyRemover(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.float16"):
        FrequencyRemover(torch.rand(1, 3, 8, 8).half())
    remover = FrequencyRemover(torch.rand(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"cells must be \(K, 2\)"):
        remover.without(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="int64"):
        remover.without(torch.tensor([[1.0, 2.0]]))
    for outside in ([0, 8], [-1, 0]):
        with pytest.raises(IndexError, match="outside the 8 x 8"):
            remover.remove(torch.tensor([outside]))
    with pytest.raises(ShapeError, match="0 x 4"):
        radius_map(0, 4)
