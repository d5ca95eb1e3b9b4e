"""AFA: the authors' values in mode "reference", the distribution of what is drawn, options and errors."""

from __future__ import annotations

import math

import pytest
import torch

from reference import afa as reference
from sturdy.transforms import FourierBasisAugment

F64 = torch.float64
SIDES = (8, 28, 31, 32, 33, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int, dtype: torch.dtype = F64, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=F64).to(dtype)


class Numbers:
    """A source of uniform numbers that remembers them."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.generator, self.drawn = count, generator(seed), []

    def __call__(self, *shape: int) -> torch.Tensor:
        self.drawn.append(torch.rand((self.count, *shape), generator=self.generator, dtype=F64))
        return self.drawn[-1]


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waves", [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("side", SIDES)
def test_reference_mode_is_the_authors_arithmetic(side, waves):
    augment = FourierBasisAugment(5.0, 0.5, waves, mode="reference")
    x, numbers = image(2, 3, side, side), Numbers(2)
    found = augment.transform(x, augment.sample(numbers, x))
    for_k, for_direction, for_strength = numbers.drawn
    k = torch.floor(for_k * side) + 1
    table = torch.linspace(0, 1, 448, dtype=F64)
    direction = -math.pi * table[torch.floor(for_direction * 448).long()]
    strength = 0.5 + torch.distributions.Exponential(torch.tensor(1 / 5.0, dtype=F64)).icdf(for_strength)
    wanted = reference.augment(x, k / side, direction, strength)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    # In float32 the authors' own arithmetic is off by far more than ours.
    in_float = augment.transform(x.float(), augment.sample(Numbers(2), x))
    assert (in_float.double() - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("side", [8, 32, 33, 224])
def test_reference_norm_is_a_constant(side):
    """Without clamp a strength of 1 adds a wave of L2 norm N / 32."""
    augment = FourierBasisAugment(0.0, 1.0, mode="reference", clip=None, generator=generator(3))
    added = augment(torch.zeros(20, 3, side, side, dtype=F64))
    norm = torch.linalg.vector_norm(added, dim=(-2, -1))
    torch.testing.assert_close(norm, torch.full_like(norm, side / 32), rtol=1e-12, atol=0)


SQUARES = [(8, 8), (33, 33), (224, 224)]


@pytest.mark.parametrize(
    ("mode", "size"),
    [("reference", size) for size in SQUARES] + [("centered", size) for size in [*SQUARES, (31, 33), (20, 64), (1, 5)]],
    ids=str,
)
def test_strength_of_one_changes_grey_by_its_amplitude(mode, size):
    augment = FourierBasisAugment(0.0, 1.0, mode=mode, generator=generator(2))
    grey = torch.full((60, 3, *size), 0.5, dtype=F64)
    change = augment(grey) - 0.5
    limit = math.sqrt(2) / 32
    assert change.abs().max() <= limit * (1 + 1e-12)
    assert change.abs().max() > 0.9 * limit
    direct = FourierBasisAugment(amplitude=limit, mode=mode, generator=generator(2))
    torch.testing.assert_close(direct(grey) - 0.5, change, rtol=0, atol=1e-14)


def test_centered_mode_writes_the_formula():
    augment = FourierBasisAugment(3.0, max_freq=7, clip=None)
    x, numbers = image(2, 3, 10, 14), Numbers(2)
    found = augment.transform(x, augment.sample(numbers, x))
    k = torch.floor(numbers.drawn[0] * 7) + 1
    angle = -math.pi * torch.floor(numbers.drawn[1][..., 0] * 448) / 447
    strength = -3.0 * torch.log1p(-numbers.drawn[2][..., 0])
    y, x_axis = torch.arange(10, dtype=F64) - 4.5, torch.arange(14, dtype=F64) - 6.5
    across = y[:, None] * torch.cos(angle)[..., None] + x_axis * torch.sin(angle)[..., None]
    wave = torch.sin(2 * math.pi * k[..., None] / 14 * across - math.pi / 4)
    torch.testing.assert_close(found, x + strength[..., None] * math.sqrt(2) / 32 * wave, rtol=0, atol=1e-12)


def test_several_waves_are_the_mean_of_single_ones():
    x = image(2, 3, 12, 12)
    augment = FourierBasisAugment(2.0, waves=(2, 3), clip=None, generator=generator())
    params = augment.make_params([x])
    single = [
        augment.transform(x, {**params, "frequency": params["frequency"][:, :, k : k + 1],
                              "amplitude": 6 * params["amplitude"][:, :, k : k + 1]})
        for k in range(6)
    ]  # fmt: skip
    torch.testing.assert_close(augment(x, params=params), torch.stack(single).mean(0), rtol=0, atol=1e-13)


# ---- identities ------------------------------------------------------------------------------------------------------


def test_strength_zero_clamps_and_p_zero_does_nothing():
    x = image(2, 3, 9, 7, dtype=torch.float32) * 2 - 0.5
    x[0, 0, 0, 0] = math.nan
    for options in (dict(mean_strength=0.0), dict(amplitude=0.0)):
        assert torch.equal(FourierBasisAugment(**options)(x).nan_to_num(7), x.clamp(0, 1).nan_to_num(7))
    assert torch.equal(FourierBasisAugment(p=0)(x).nan_to_num(7), x.nan_to_num(7))
    pixels = (image(3, 5, 5) * 255).to(torch.uint8)
    assert torch.equal(FourierBasisAugment(p=0)(pixels), pixels / 255)


def test_uint8_gives_what_its_values_give():
    pixels = (image(4, 3, 9, 11) * 255).to(torch.uint8)
    augment = FourierBasisAugment(generator=generator())
    params = augment.make_params([pixels])
    as_float = augment(pixels / 255, params=params)
    found = augment(pixels, params=params)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, as_float, rtol=0, atol=1e-6)
    half = FourierBasisAugment(dtype=torch.bfloat16)(pixels, params=params)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), as_float, rtol=0, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    x = image(3, 3, 16, 16, dtype=dtype)
    augment = FourierBasisAugment(generator=generator())
    params = augment.make_params([x])
    found = augment(x, params=params)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), augment(x.double(), params=params), rtol=0, atol=max(1e-6, torch.finfo(dtype).eps)
    )


def test_per_channel_and_single_image():
    grey = torch.full((5, 3, 8, 8), 0.5)
    shared = FourierBasisAugment(per_channel=False, generator=generator())(grey)
    assert torch.equal(shared[:, 0], shared[:, 1]) and torch.equal(shared[:, 0], shared[:, 2])
    assert not torch.equal(shared[0], shared[1])
    own = FourierBasisAugment(generator=generator())(grey)
    assert not torch.equal(own[:, 0], own[:, 1])
    assert FourierBasisAugment()(grey[0]).shape == (3, 8, 8)


def test_gradient_reaches_the_image():
    x = image(2, 1, 6, 6).requires_grad_()
    augment = FourierBasisAugment(1.0, generator=generator())
    params = augment.make_params([x])
    augment(x, params=params).sum().backward()
    with torch.no_grad():
        free = FourierBasisAugment(1.0, clip=None)(x, params=params)
    assert torch.equal(x.grad, ((free >= 0) & (free <= 1)).to(F64))


# ---- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draws():
    """Parameters of 1e5 waves on images of 32 x 32."""
    augment = FourierBasisAugment(10.0, mode="centered", generator=generator(11))
    return augment.make_params([torch.zeros(1, 1, 1, 1).expand(25_000, 4, 32, 32)])


def test_strengths_are_exponential(draws):
    strength = draws["amplitude"].flatten() * 32 / math.sqrt(2)
    count = len(strength)
    assert count == 100_000
    # The standard error of the mean of exponential numbers is mean / sqrt(n); six of them are 2 %.
    assert abs(strength.mean().item() - 10) < 6 * 10 / math.sqrt(count)
    below = strength.sort().values
    distance = (1 - torch.exp(-below / 10) - torch.arange(1, count + 1) / count).abs().max()
    assert distance < 2.2 / math.sqrt(count)  # Kolmogorov: probability 1e-4


def test_frequencies_are_uniform(draws):
    k = torch.linalg.vector_norm(draws["frequency"], dim=-1).flatten() * 32
    assert (k - k.round()).abs().max() < 1e-9
    counts = torch.bincount(k.round().long(), minlength=33)
    assert counts[0] == 0 and len(counts) == 33
    expected = len(k) / 32
    chi_square = ((counts[1:] - expected) ** 2 / expected).sum().item()
    assert chi_square < 70  # 31 degrees of freedom: probability 1e-4


def test_directions_cover_half_a_turn(draws):
    frequency = draws["frequency"].flatten(0, 2)
    angle = torch.atan2(frequency[:, 1], frequency[:, 0])
    assert angle.max() <= 1e-12 and angle.min() >= -math.pi - 1e-12
    place = -angle / math.pi * 447
    assert (place - place.round()).abs().max() < 1e-9
    counts = torch.bincount(place.round().long(), minlength=448)
    assert len(counts) == 448 and counts[0] > 0 and counts[447] > 0
    expected = len(angle) / 448
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 570  # 447 degrees of freedom: probability 1e-4


def test_planes_are_independent_of_each_other(draws):
    strength = draws["amplitude"][..., 0] - draws["amplitude"].mean()
    for other in (strength[:, 1], strength[1:, 0]):
        first = strength[: len(other), 0]
        correlation = (first * other).mean() / strength.square().mean()
        assert abs(correlation) < 4 / math.sqrt(len(other))


def test_amplitude_range_and_options_of_the_draw():
    x = torch.zeros(4000, 1, 16, 16)
    params = FourierBasisAugment(amplitude=(0.1, 0.3), max_freq=3, granularity=2, generator=generator()).make_params(
        [x]
    )
    amplitude, frequency = params["amplitude"].flatten(), params["frequency"].flatten(0, 2) * 16
    assert amplitude.min() >= 0.1 and amplitude.max() <= 0.3 and abs(amplitude.mean() - 0.2) < 0.005
    assert set(frequency.norm(dim=-1).round().tolist()) == {1, 2, 3}
    assert set(frequency[:, 0].round().tolist()) == {-3, -2, -1, 1, 2, 3} and frequency[:, 1].abs().max() < 1e-12


def test_p_is_the_share_of_changed_images():
    x = torch.full((4000, 1, 4, 4), 0.5)
    changed = (FourierBasisAugment(p=0.3, generator=generator())(x) != x).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.3) < 4 * math.sqrt(0.21 / 4000)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(mean_strength=-1), "mean_strength"),
        (dict(min_strength=-0.1), "min_strength"),
        (dict(mean_strength=math.nan), "mean_strength"),
        (dict(waves=(0, 1)), "waves"),
        (dict(waves=(1,)), "waves"),
        (dict(max_freq=0), "max_freq"),
        (dict(granularity=1), "granularity"),
        (dict(mode="center"), "mode"),
        (dict(p=1.5), "p must"),
        (dict(p=-0.1), "p must"),
        (dict(clip=(1, 0)), "clip"),
        (dict(amplitude=-1.0), "amplitude"),
        (dict(amplitude=(0.3, 0.1)), "amplitude"),
        (dict(amplitude=0.1, mean_strength=5), "not both"),
    ],
    ids=str,
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=f"FourierBasisAugment: .*{text}"):
        FourierBasisAugment(**options)


def test_reference_mode_refuses_other_than_squares():
    with pytest.raises(ValueError, match=r'6 x 7.*mode="centered"'):
        FourierBasisAugment(mode="reference")(torch.zeros(1, 3, 6, 7))
    with pytest.raises(ValueError, match="1 x 1"):
        FourierBasisAugment(mode="reference")(torch.zeros(1, 3, 1, 1))
