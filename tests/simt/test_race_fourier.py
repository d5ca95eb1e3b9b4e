"""Every CUDA kernel of the Fourier family under the race checker: the fixture fails a test that raced."""

from __future__ import annotations

import pytest
import torch

from reference import amplitude as amplitude_reference
from reference import fourier as reference
from spectral_support import TOLERANCE, mask_shape, uniform
from sturdy.functional import amplitude_mix, spectral_filter, spectrum_accumulate, wave_add
from support import dtype_id, random, with_layout

# ---- wave_add --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
# several planes a tile, several tiles a plane, rows that do not fill vectors; more waves than shared memory holds
@pytest.mark.parametrize(
    ("shape", "count"), [((5, 3, 8, 8), 2), ((1, 2, 66, 72), 1), ((2, 2, 9, 7), 3), ((1, 1, 4, 1030), 9)]
)
def test_wave_add(race_backend, shape, count, layout, dtype):
    x = with_layout(random(shape, 1, dtype), layout).requires_grad_()
    frequency = random((*shape[:2], count, 2), 2, torch.float64)
    amplitude, phase = (random((*shape[:2], count), i, torch.float64) for i in (3, 4))
    amplitude.requires_grad_()
    out = wave_add(x, frequency, amplitude, phase, clip=(-1, 1))
    exact = reference.wave_add(x.double(), frequency, amplitude, phase, (-1, 1))
    tolerance = 1e-11 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps + 1e-5
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=tolerance)
    for grad in torch.autograd.grad(out, [x, amplitude], random(shape, 5, dtype)):
        assert grad.isfinite().all()


def test_wave_add_of_bytes(race_backend):
    x = (100 * random((2, 3, 9, 8), 1)).byte()
    out = wave_add(x, random((1, 1, 2, 2), 2, torch.float64), 0.1, clip=(0, 1))
    assert out.isfinite().all()


# ---- spectral_filter -------------------------------------------------------------------------------------------------

# Several planes a block, steps of one and of two radices, large primes, odd widths, one row, one column, a chirp along
# one axis and along both.
SIZES = [(8, 8), (28, 30), (7, 9), (13, 22), (1, 8), (9, 1), (37, 12), (41, 37)]
# Shared memory that holds a few columns of such planes, and a cache for two planes or so.
SMALL = {"STURDY_SIMT_SHARED_BYTES": "6000", "STURDY_SIMT_CACHE_BYTES": "20000"}


def check_filter(x, mask, layout, index=None, clip=None):
    """Result and both gradients against the complex filter."""
    x, mask = x.requires_grad_(), mask.requires_grad_()
    out = spectral_filter(x, mask, layout, index, clip)
    wide = (x.detach().double().requires_grad_(), mask.detach().double().requires_grad_())
    exact = reference.spectral_filter(*wide, layout, index, clip)
    assert (out.double() - exact).abs().max() <= TOLERANCE[x.dtype]
    grad_out = uniform(tuple(out.shape), 5, x.dtype)
    if clip is not None:  # which side of a bound a value falls on is a matter of rounding
        grad_out = torch.where(sum((exact - b).abs() < 10 * TOLERANCE[x.dtype] for b in clip) > 0, 0, grad_out)
    got = torch.autograd.grad(out, (x, mask), grad_out)
    wanted = torch.autograd.grad(exact, wide, grad_out.double())
    for a, b, tolerance in zip(got, wanted, (TOLERANCE[x.dtype], 1e-5), strict=True):
        assert (a.double() - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("memory", ["large", "small"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_spectral_filter(race_backend, monkeypatch, size, memory):
    if memory == "small":
        for name, value in SMALL.items():
            monkeypatch.setenv(name, value)
    layout = "half" if size[0] % 2 else "shifted"
    table = uniform((2, 1, *mask_shape(size, layout)), 2)
    check_filter(uniform((3, 2, *size), 1), table, layout, torch.tensor([1, -1, 0]), (0.2, 0.6))


@pytest.mark.parametrize("memory", ["large", "small"])
@pytest.mark.parametrize("clip", [None, (0.1, 0.4)], ids=["free", "clamped"])
def test_spectral_filter_of_many_masks(race_backend, monkeypatch, clip, memory):
    if memory == "small":
        for name, value in SMALL.items():
            monkeypatch.setenv(name, value)
    check_filter(uniform((2, 2, 12, 9), 1), uniform((1, 3, 2, 12, 9), 2), "shifted", None, clip)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("strides", ["channels_last", "sliced"])
def test_spectral_filter_of_other_images(race_backend, strides, dtype):
    mask_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    x = with_layout(uniform((2, 3, 10, 12), 1, dtype), strides)
    check_filter(x, uniform((2, 3, 10, 12), 2, mask_dtype), "shifted")


# ---- amplitude_mix and spectrum_accumulate ----


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize(("size", "channels"), [((8, 9), 3), ((13, 22), 2), ((37, 12), 4), ((1, 8), 1)], ids=str)
def test_amplitude_mix(race_backend, size, channels, color_fft):
    x = uniform((3, channels, *size), 1)
    args = {"index": torch.tensor([2, -1, 0]), "strength": 0.7, "window": (3, 2), "color_fft": color_fft}
    out = amplitude_mix(x, clip=(0, 1), **args)
    assert (out.double() - amplitude_reference.amplitude_mix(x, clip=(0, 1), **args).double()).abs().max() <= 2e-5


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [(8, 9), (13, 22), (37, 12), (1, 8)], ids=str)
def test_spectrum_accumulate(race_backend, size, power):
    x, group = uniform((20, 2, *size), 1), torch.tensor([0, 2, -1, 0] * 5)
    sums = spectrum_accumulate(x, group, 3, power=power)
    exact = amplitude_reference.spectrum_accumulate(x, group, 3, power)
    assert (sums.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
