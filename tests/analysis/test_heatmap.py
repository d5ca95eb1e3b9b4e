"""Fourier heatmaps and accuracy under low- and high-pass filters, where the right answer has a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from analysis_support import Detector, Linear, batches, cell, marked, masked, once, uniform
from torch import Tensor, nn

from sturdy import ShapeError
from sturdy.analysis import fourier_basis, fourier_heatmap, mirror_cells, radius_accuracy, radius_map
from sturdy.functional import wave_add

SIZES = [(8, 8), (7, 9), (6, 5), (1, 4)]


def all_cells(size: tuple[int, int]) -> Tensor:
    return torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))


# ---- waves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_basis_has_norm_1_and_one_frequency(size: tuple[int, int]) -> None:
    """Frequency 0, half the sampling rate, and those in between: the inverse transform of one or two equal numbers."""
    for one in all_cells(size):
        frequency, amplitude, phase = fourier_basis(one[None], size)
        wave = wave_add(torch.zeros(1, 1, *size, dtype=torch.float64), frequency, amplitude, phase)[0, 0]
        assert float(wave.norm()) == pytest.approx(1, abs=1e-12)
        spectrum = torch.zeros(size, dtype=torch.complex128)
        for i, j in {tuple(one.tolist()), tuple(mirror_cells(one, size).tolist())}:
            spectrum[i, j] = 1
        image = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real
        torch.testing.assert_close(wave, image / image.norm(), rtol=0, atol=1e-12)


def test_basis_errors() -> None:
    with pytest.raises(ShapeError, match=r"cells must be \(K, 2\)"):
        fourier_basis(torch.tensor([1, 2]), (8, 8))


# ---- heatmap ---------------------------------------------------------------------------------------------------------


class Sensitive(nn.Module):
    """Is right while a linear function of the pixels is smaller in size than the mean of the image."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        answer = torch.einsum("nchw,hw->n", x.double(), self.weight)
        return torch.stack((x.double().mean((1, 2, 3)), answer, -answer), dim=1)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=str)
@pytest.mark.parametrize("eps", [0.5, 2.0])
def test_closed_form(size: tuple[int, int], eps: float) -> None:
    """On flat images a wave moves the linear function by eps times its product with the wave, whatever the sign."""
    weight = uniform(*size, seed=5, dtype=torch.float64)
    weight = weight - weight.mean()
    levels = torch.linspace(0.01, 1, 40, dtype=torch.float64)
    images = levels[:, None, None, None].expand(-1, 1, *size).contiguous()
    found = fourier_heatmap(
        Sensitive(weight), once(batches(images, torch.zeros(40, dtype=torch.int64))), eps, clip=None
    )
    transform = torch.fft.fftshift(torch.fft.fft2(weight))
    wanted = torch.zeros(size, dtype=torch.float64)
    for i, j in all_cells(size).tolist():
        single = mirror_cells(torch.tensor([i, j]), size).tolist() == [i, j]
        moved = eps * math.sqrt((1 if single else 2) / (size[0] * size[1])) * abs(float(transform[i, j].real))
        wanted[i, j] = (levels < moved).double().mean()
    middle = (size[0] // 2, size[1] // 2)  # there the mean itself moves
    wanted[middle] = found.errors[middle]
    assert torch.equal(found.errors, wanted) and len(found.errors.unique()) > 4
    assert (found.clean_error, found.eps, found.images) == (0, eps, 40)


def test_a_detector_minds_its_own_frequency() -> None:
    """A network that answers class 1 to one frequency errs there and nowhere else."""
    size, bin = (8, 8), (2, 3)
    images = torch.full((6, 1, *size), 0.5)
    found = fourier_heatmap(Detector([(1, 1), bin], [-0.1, 0.0]), [(images, torch.zeros(6, dtype=torch.int64))], 1.5)
    wanted = torch.zeros(size, dtype=torch.float64)
    for k in (1, -1):
        wanted[cell((k * bin[0], k * bin[1]), size)] = 1
    assert torch.equal(found.errors, wanted)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=str)
@pytest.mark.parametrize("part", [1, 3, 4, 5, 20])
def test_central_part(size: tuple[int, int], part: int) -> None:
    model = Linear(3, (2, *size))
    images, labels = uniform(25, 2, *size, seed=1), torch.arange(25) % 3
    whole = fourier_heatmap(model, batches(images, labels), 30.0, clip=None)
    some = fourier_heatmap(model, batches(images, labels), 30.0, part, clip=None)
    height, width = (min(part, n) for n in size)
    assert some.errors.shape == (height, width)
    at = (size[0] // 2 - height // 2, size[1] // 2 - width // 2)
    central = whole.errors[at[0] : at[0] + height, at[1] : at[1] + width]
    # The signs are drawn for the frequencies that are looked at, so that only rates agree.
    assert (some.errors - central).abs().max() < 0.45
    mirrored = mirror_cells(all_cells(size), size)
    assert torch.equal(whole.errors.flatten(), whole.errors[mirrored[:, 0], mirrored[:, 1]])


def test_heatmap_is_repeatable_whatever_the_batches() -> None:
    model = Linear(3, (2, 6, 7))
    images, labels = uniform(40, 2, 6, 7, seed=1), torch.arange(40) % 3
    state, told = torch.random.get_rng_state(), []
    first = fourier_heatmap(model, batches(images, labels), 4.0, batch_size=3)
    again = fourier_heatmap(model, batches(images, labels, 11), 4.0, progress=told.append)
    other = fourier_heatmap(model, batches(images, labels), 4.0, seed=1)
    assert torch.equal(first.errors, again.errors) and not torch.equal(first.errors, other.errors)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(told) == 40 * 22  # frequencies, mirror images aside


def test_nothing_is_added_for_eps_0_and_sums_are_clamped() -> None:
    seen: list[Tensor] = []

    class Watch(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    model = Watch(3, (1, 4, 4))
    images, labels = uniform(9, 1, 4, 4, seed=1), torch.arange(9) % 3
    plain = fourier_heatmap(model, [(images, labels)], 0.0)
    assert bool((plain.errors == plain.clean_error).all())
    seen.clear()
    fourier_heatmap(model, [(images, labels)], 3.0, clip=(0.2, 0.8))
    waves = torch.stack(seen[1:])
    assert float(waves.min()) == pytest.approx(0.2) and float(waves.max()) == pytest.approx(0.8)
    seen.clear()
    fourier_heatmap(model, [(images, labels)], 3.0, clip=None)
    added = (torch.stack(seen[1:]) - images).flatten(-2).norm(dim=-1)
    torch.testing.assert_close(added, torch.full_like(added, 3.0), rtol=1e-5, atol=0)


def test_heatmap_errors() -> None:
    images, labels = uniform(4, 1, 4, 4), torch.arange(4) % 3
    model = Linear(3, (1, 4, 4))
    with pytest.raises(RuntimeError, match="fourier_heatmap: the model must be in evaluation mode"):
        fourier_heatmap(Linear(3, (1, 4, 4)).train(), [(images, labels)], 1.0)
    for eps in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="fourier_heatmap: eps must be a number, 0 or more"):
            fourier_heatmap(model, [(images, labels)], eps)
    with pytest.raises(ValueError, match="fourier_heatmap: size must be 1 or more"):
        fourier_heatmap(model, [(images, labels)], 1.0, 0)
    with pytest.raises(ValueError, match="fourier_heatmap: the loader gave no images"):
        fourier_heatmap(model, [], 1.0)


# ---- radius ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "bin"), [((8, 8), (1, 2)), ((8, 8), (3, 0)), ((9, 12), (2, 3))], ids=str)
def test_accuracy_steps_at_the_radius_of_the_frequency(size: tuple[int, int], bin: tuple[int, int]) -> None:
    images, labels = marked([bin, (0, 1)], size, 5)
    images, labels = images[labels == 0], labels[labels == 0]
    model = Detector([bin, (1, 1)], [0.1, 0.0])
    radius = float(radius_map(*size)[cell(bin, size)])
    radii = [0, radius - 0.01, radius, radius + 0.01, 20]
    for keep_dc in (True, False):
        low = radius_accuracy(model, once(batches(images, labels)), radii, "low", keep_dc=keep_dc)
        high = radius_accuracy(model, once(batches(images, labels)), radii, "high", keep_dc=keep_dc)
        assert low.accuracy.tolist() == [0, 0, 1, 1, 1] and high.accuracy.tolist() == [1, 1, 1, 0, 0]
        assert (low.clean_accuracy, low.images, low.kind) == (1, 5, "low") and low.radii.tolist() == radii


@pytest.mark.parametrize("kind", ["low", "high"])
@pytest.mark.parametrize("keep_dc", [True, False])
def test_filters_are_discs(kind: Any, keep_dc: bool) -> None:
    size, seen = (8, 6), []

    class Watch(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    images, labels = uniform(5, 2, *size, seed=1, dtype=torch.float64), torch.arange(5) % 3
    curve = radius_accuracy(Watch(3, (2, *size)), [(images, labels)], kind=kind, keep_dc=keep_dc, batch_size=1000)
    assert curve.radii.tolist() == [0, 1, 2, 3, 4, 5, 6] and len(seen) == 2
    filtered = seen[1].reshape(5, 7, 2, *size)
    for r in range(7):
        disc = radius_map(*size) <= r + 1e-6 if kind == "low" else radius_map(*size) >= r - 1e-6
        if kind == "high" and keep_dc:
            disc[4, 3] = True
        torch.testing.assert_close(filtered[:, r], masked(images, disc.double()), rtol=0, atol=1e-12)


def test_radius_batches_and_errors() -> None:
    model = Linear(3, (1, 6, 7))
    images, labels = uniform(40, 1, 6, 7, seed=1), torch.arange(40) % 3
    one = radius_accuracy(model, batches(images, labels), batch_size=3)
    other = radius_accuracy(model, [(images, labels)])
    assert torch.equal(one.accuracy, other.accuracy)
    assert one.accuracy[-1] == one.clean_accuracy
    with pytest.raises(RuntimeError, match="radius_accuracy: the model must be in evaluation mode"):
        radius_accuracy(Linear(3, (1, 6, 7)).train(), [(images, labels)])
    with pytest.raises(ValueError, match='"low" or "high", got \'band\''):
        radius_accuracy(model, [(images, labels)], kind="band")  # type: ignore[arg-type]
    for radii in ([], [-1.0], [math.nan]):
        with pytest.raises(ValueError, match="radii must be one or more numbers"):
            radius_accuracy(model, [(images, labels)], radii)
