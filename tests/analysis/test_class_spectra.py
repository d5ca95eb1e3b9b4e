"""Average spectra of classes and what tells them apart."""

from __future__ import annotations

import pytest
import torch
from analysis_support import batches, cell, marked, once, uniform

from sturdy import ShapeError
from sturdy.analysis import adcs
from sturdy.analysis.class_spectra import LUMA, _class_spectra

SIZES = [(6, 7), (5, 8), (8, 8)]


def by_definition(images: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    spectra = torch.fft.fftshift(torch.fft.fft2(images.double()).abs(), dim=(-2, -1))
    return torch.stack([spectra[labels == c].mean(0) for c in range(k)])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_equals_the_definition(size: tuple[int, int], channels: int) -> None:
    images = uniform(30, channels, *size, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3, 2] * 5)
    found = adcs(once(batches(images, labels)))
    wanted = by_definition(images, labels, 4)
    torch.testing.assert_close(found.amplitude, wanted, rtol=0, atol=1e-12)
    assert found.images.tolist() == [5, 5, 10, 10]
    weights = torch.tensor(LUMA if channels == 3 else [1 / channels] * channels, dtype=torch.float64)
    one = (wanted * weights[:, None, None]).sum(1)
    for c in range(4):
        signs = sum((one[c] - one[j]).sign() for j in range(4) if j != c)
        assert torch.equal(found.adcs[c].double(), signs)
    assert int(found.adcs.max()) == 3 and int(found.adcs.min()) == -3
    reference = adcs(batches(images, labels), reference=True)
    assert torch.equal(reference.adcs, found.adcs - 1)  # no ties here: the class itself counts as -1


def test_two_classes_are_opposite() -> None:
    found = adcs(batches(uniform(20, 3, 6, 7), torch.arange(20) % 2))
    assert torch.equal(found.adcs[0], -found.adcs[1]) and set(found.adcs.unique().tolist()) == {-1, 1}
    same = uniform(1, 3, 6, 7).expand(4, -1, -1, -1)
    assert bool((adcs([(same, torch.arange(4) % 2)]).adcs == 0).all())
    assert bool((adcs([(same, torch.arange(4) % 2)], reference=True).adcs == -2).all())


def test_marked_frequencies_stand_out() -> None:
    bins = [(1, 2), (2, 0), (2, 3), (0, 1)]
    images, labels = marked(bins, (8, 8), 10, channels=3)
    found = adcs(batches(images, labels), num_classes=4)
    for c, bin in enumerate(bins):
        for k in (1, -1):
            at = cell((k * bin[0], k * bin[1]), (8, 8))
            assert found.adcs[(c, *at)] == 3 and bool((found.adcs[:, at[0], at[1]].sort().values[:3] < 3).all())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_parseval(size: tuple[int, int]) -> None:
    """The sum of squared amplitudes over all frequencies is HW times that of the pixels."""
    images, labels = uniform(20, 2, *size, dtype=torch.float64), torch.arange(20) % 3
    sums, counts, width = _class_spectra("test", once(batches(images, labels)), None, 2)
    assert width == size[1] and counts.tolist() == [7, 7, 6]
    weight = torch.full((size[1] // 2 + 1,), 2.0, dtype=torch.float64)
    weight[0] = 1
    weight[-1] = 1 if size[1] % 2 == 0 else 2
    energy = torch.stack([images[labels == c].square().sum((0, 2, 3)) for c in range(3)])
    torch.testing.assert_close((sums * weight).sum((2, 3)), size[0] * size[1] * energy, rtol=1e-12, atol=0)


def test_classes_that_come_late_and_batches() -> None:
    images = uniform(12, 1, 5, 5, dtype=torch.float64)
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    whole, parts = adcs([(images, labels)]), adcs(batches(images, labels, 4))
    assert torch.equal(whole.adcs, parts.adcs)
    torch.testing.assert_close(whole.amplitude, parts.amplitude, rtol=0, atol=1e-13)


def test_errors() -> None:
    images, labels = uniform(6, 3, 5, 5), torch.arange(6) % 3
    with pytest.raises(ValueError, match="adcs: the loader has no image of class 1"):
        adcs([(images, labels * 2)])
    with pytest.raises(ValueError, match="no image of class 3, 4"):
        adcs([(images, labels)], num_classes=5)
    with pytest.raises(IndexError, match="label 2 is not one of 2 classes"):
        adcs([(images, labels)], num_classes=2)
    with pytest.raises(ValueError, match="two classes or more"):
        adcs([(images, labels * 0)])
    with pytest.raises(ShapeError, match="2 weights for 3 channels"):
        adcs([(images, labels)], weights=[0.5, 0.5])
    with pytest.raises(ValueError, match="gave no images"):
        adcs([])
