"""Corruptions against their definitions, written anew with NumPy, SciPy, colorsys and Pillow."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sturdy.recipes.corruption import NAMES, PARAMETERS, SEVERITIES, SIZES, corrupt, table_for
from sturdy.recipes.errors import UsageError

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")


def photos(count: int = 2, channels: int = 3, size: int = 48) -> torch.Tensor:
    """Smooth images with edges and all brightnesses from 0 to 1."""
    random = np.random.default_rng(0)
    field = random.standard_normal((count, channels, size, size))
    smooth = scipy.ndimage.gaussian_filter(field, (0, 0, 2, 2))
    smooth[:, :, size // 3 : size // 2, size // 4 :] += 0.3
    low, high = smooth.min((2, 3), keepdims=True), smooth.max((2, 3), keepdims=True)
    return torch.from_numpy((smooth - low) / (high - low)).float()


def level(name: str, severity: int, table: int = 32) -> float:
    return PARAMETERS[name][table][severity - 1]


def test_there_are_the_promised_corruptions() -> None:
    wanted = {*NOISE, "gaussian_blur", "brightness", "contrast", "pixelate"}
    assert wanted <= set(NAMES)
    assert all(set(PARAMETERS[name]) == set(SIZES) for name in NAMES)


@pytest.mark.parametrize(
    ("size", "table"), [(8, 32), (28, 32), (32, 32), (48, 32), (50, 64), (96, 64), (160, 224), (256, 224), (299, 299)]
)
def test_nearest_table(size: int, table: int) -> None:
    assert table_for(size, size + 10) == table


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_shifts_the_hsv_value(severity: int) -> None:
    images = photos(1, size=12)
    images[0, :, 0, 0] = 0.0  # black has no hue
    shift = level("brightness", severity)
    expected = np.empty((3, 12, 12))
    for y in range(12):
        for x in range(12):
            h, s, v = colorsys.rgb_to_hsv(*images[0, :, y, x].double().tolist())
            expected[:, y, x] = colorsys.hsv_to_rgb(h, s, min(v + shift, 1.0))
    np.testing.assert_allclose(corrupt(images, "brightness", severity)[0], expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_scales_about_the_mean_of_each_channel(severity: int) -> None:
    images = photos()
    x = images.double().numpy()
    mean = x.mean((2, 3), keepdims=True)
    expected = np.clip((x - mean) * level("contrast", severity) + mean, 0, 1)
    np.testing.assert_allclose(corrupt(images, "contrast", severity, size_table=32), expected, atol=1e-6)


@pytest.mark.parametrize("table", SIZES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_scipys(severity: int, table: int) -> None:
    images = photos(size=20)
    sigma = level("gaussian_blur", severity, table)
    expected = scipy.ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0
    )
    np.testing.assert_allclose(corrupt(images, "gaussian_blur", severity, size_table=table), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (33, 47), (224, 224)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_filter(severity: int, shape: tuple[int, int]) -> None:
    height, width = shape
    image = torch.from_numpy(np.random.default_rng(1).random((1, 1, height, width), np.float32))
    table = table_for(height, width)
    factor = level("pixelate", severity, table)
    small = Image.fromarray(image[0, 0].numpy()).resize(
        (int(width * factor), int(height * factor)), Image.Resampling.BOX
    )
    expected = np.asarray(small.resize((width, height), Image.Resampling.BOX))
    np.testing.assert_allclose(corrupt(image, "pixelate", severity)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_moments_of_gaussian_noise(severity: int) -> None:
    noise = (corrupt(torch.full((40, 3, 32, 32), 0.5), "gaussian_noise", severity) - 0.5).double()
    sigma, count = level("gaussian_noise", severity), noise.numel()
    assert abs(noise.mean()) < 5 * sigma / math.sqrt(count)
    assert abs(noise.std() / sigma - 1) < 5 / math.sqrt(2 * count)
    # Independent between channels and between neighbours.
    assert abs((noise[:, 0] * noise[:, 1]).mean()) < 5 * sigma**2 / math.sqrt(count / 3)
    assert abs((noise[..., 1:] * noise[..., :-1]).mean()) < 5 * sigma**2 / math.sqrt(count)


@pytest.mark.parametrize("brightness", [0.1, 0.6])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_moments_of_shot_noise(severity: int, brightness: float) -> None:
    x = corrupt(torch.full((40, 3, 32, 32), brightness), "shot_noise", severity).double()
    photons, count = level("shot_noise", severity), x.numel()
    variance = brightness / photons
    assert abs(x.mean() - brightness) < 5 * math.sqrt(variance / count)
    # Kurtosis of a Poisson law: the variance of the variance is 2 + 1 / mean.
    assert abs(x.var() / variance - 1) < 5 * math.sqrt((2 + 1 / (photons * brightness)) / count)
    counts = x * photons
    assert (counts - counts.round()).abs().max() < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_replaces_the_stated_fraction(severity: int) -> None:
    x = corrupt(torch.full((40, 3, 32, 32), 0.25), "impulse_noise", severity)
    amount, count = level("impulse_noise", severity), x.numel()
    salt, pepper = (x == 1).double().mean(), (x == 0).double().mean()
    tolerance = 5 * math.sqrt(amount / 2 / count)
    assert abs(salt - amount / 2) < tolerance and abs(pepper - amount / 2) < tolerance
    assert ((x == 0.25) | (x == 0) | (x == 1)).all()


@pytest.mark.parametrize("table", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_damage_grows_with_severity(name: str, table: int) -> None:
    images = photos(4, size=64)
    damage = [float((corrupt(images, name, s, size_table=table) - images).abs().mean()) for s in SEVERITIES]
    assert damage[0] > 0 and damage == sorted(damage) and len(set(damage)) == 5, damage


@given(st.permutations(range(6)), st.integers(1, 6), st.sampled_from(NAMES), st.sampled_from(SEVERITIES))
def test_result_does_not_depend_on_the_batch(order: list[int], first: int, name: str, severity: int) -> None:
    images, indices = photos(6, size=16), torch.tensor([3, 0, 8, 100, 2**33, 7])
    whole = corrupt(images, name, severity, indices=indices)
    picked = torch.tensor(order)
    parts = [corrupt(images[p], name, severity, indices=indices[p]) for p in (picked[:first], picked[first:]) if len(p)]
    again = torch.cat(parts)
    if name in NOISE:
        assert torch.equal(again, whole[picked])
    else:  # a convolution or matrix product may add in another order
        torch.testing.assert_close(again, whole[picked], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NOISE)
def test_noise_depends_on_seed_image_severity_and_name(name: str) -> None:
    images = torch.full((2, 1, 16, 16), 0.5)
    a = corrupt(images, name, 5)
    assert torch.equal(a, corrupt(images, name, 5))
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, corrupt(images, name, 5, seed=1))
    assert not torch.equal(a, corrupt(images, name, 4))
    assert not torch.equal(a, corrupt(images, name, 5, indices=torch.tensor([5, 6])))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOISE])
def test_one_channel_counts_as_three_equal_ones(name: str) -> None:
    grey = photos(channels=1)
    for severity in SEVERITIES:
        coloured = corrupt(grey.expand(-1, 3, -1, -1), name, severity)
        torch.testing.assert_close(coloured, corrupt(grey, name, severity).expand(-1, 3, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_range_shape_and_input_kept(name: str) -> None:
    for images in (photos(3, 1, 8), photos(1, 3, 33), photos()[:0], torch.zeros(2, 3, 5, 9), torch.ones(2, 1, 40, 32)):
        before = images.clone()
        for severity in SEVERITIES:
            out = corrupt(images, name, severity)
            assert out.shape == images.shape and out.dtype == torch.float32
            assert ((out >= 0) & (out <= 1)).all()
        assert torch.equal(images, before)


def test_bad_arguments() -> None:
    images = photos()
    with pytest.raises(UsageError, match="did you mean 'gaussian_noise'"):
        corrupt(images, "gausian_noise", 1)
    with pytest.raises(ValueError, match="severity must be 1 to 5, got 6"):
        corrupt(images, "contrast", 6)
    with pytest.raises(ValueError, match="images must be"):
        corrupt(images[0], "contrast", 1)
    with pytest.raises(ValueError, match="size_table"):
        corrupt(images, "contrast", 1, size_table=100)
    with pytest.raises(ValueError, match="indices must be"):
        corrupt(images, "contrast", 1, indices=torch.arange(5))
    with pytest.raises(TypeError, match="float32"):
        corrupt(images.double(), "contrast", 1)
