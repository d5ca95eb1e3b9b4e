"""CPU kernels of the Fourier ops that are chosen by size: small planes, large primes, narrow planes of one wave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import sturdy.numpy as numpy_ops
from reference import fourier as reference
from spectral_support import TOLERANCE, mask_shape, uniform
from sturdy.functional import spectral_filter, wave_add
from support import DTYPES, LAYOUTS, dtype_id, with_layout

SMALL = [28, 32]  # sides of planes that have kernels of their own where vectors have 16 lanes


def error(out, expected):
    return (out.double() - expected.double()).abs().max().item()


# ---- small planes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (4,), (4, 1), (4, 3)], ids=str)
@pytest.mark.parametrize("layout", ["shifted", "half"])
@pytest.mark.parametrize("n", SMALL)
def test_masks_of_small_planes(n, layout, leading):
    x, mask = uniform((5, 3, n, n), 1), uniform((*leading, *mask_shape((n, n), layout)), 2)
    if not leading:
        out = spectral_filter(x, mask, layout)
        assert error(out, reference.spectral_filter(x, mask, layout)) <= 1e-6
        return
    index = torch.tensor([3, -1, 0, 3, 1])
    out = spectral_filter(x, mask, layout, index=index)
    for image, entry in enumerate(index.tolist()):
        if entry < 0:
            assert torch.equal(out[image], x[image])
        else:
            one = spectral_filter(x[image : image + 1], mask[entry : entry + 1], layout)
            assert torch.equal(out[image : image + 1], one)
            assert error(one, reference.spectral_filter(x[image : image + 1], mask[entry : entry + 1], layout)) <= 1e-6


@pytest.mark.parametrize("n", SMALL)
@pytest.mark.parametrize("k", [0, 1, 5, 8, 13, "half", -1], ids=str)
def test_single_frequencies_of_small_planes(n, k):
    """Each alone, so that none stands in another's place: those of real columns share a row in the kernels."""
    row = n // 2 if k == "half" else k % n
    mask = torch.zeros(n, n // 2 + 1, dtype=torch.float64)
    x = uniform((2, 2, n, n), 3)
    for column in range(n // 2 + 1):
        mask.zero_()
        mask[row, column] = 1
        out = spectral_filter(x, mask.float(), "half")
        assert error(out, reference.spectral_filter(x.double(), mask, "half")) <= 1e-6, column


@pytest.mark.parametrize("clip", [None, (0.3, 0.6)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", SMALL)
def test_layouts_of_small_planes(n, layout, dtype, clip):
    plain, mask = uniform((3, 4, n, n), 4, dtype), uniform((n, n), 5)
    x = with_layout(plain, layout)
    out = spectral_filter(x, mask, clip=clip)
    assert error(out, reference.spectral_filter(x, mask, clip=clip)) <= TOLERANCE[dtype]
    assert torch.equal(out, spectral_filter(x.contiguous(), mask, clip=clip))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("n", SMALL)
def test_small_planes_do_not_meet(n, value):
    """Plane after plane through the same memory: what one leaves there must not reach the next."""
    x, mask = uniform((7, 3, n, n), 6), uniform((n, n), 7) + 0.1
    clean = spectral_filter(x, mask)
    for image, channel in ((0, 0), (3, 1), (6, 2)):
        spoiled = x.clone()
        spoiled[image, channel, n - 1, n - 1] = value
        out = spectral_filter(spoiled, mask)
        assert out[image, channel].isnan().all()
        out[image, channel] = clean[image, channel]
        assert torch.equal(out, clean)
    for image in range(7):
        assert torch.equal(spectral_filter(x[image : image + 1], mask), clean[image : image + 1])


@pytest.mark.parametrize("n", SMALL)
def test_small_planes_write_nothing_else(n):
    """The kernel may store whole vectors only where it will write itself."""
    whole = torch.full((9, n * n), -7.0)
    x, mask = uniform((3, 1, n, n), 8), uniform((n, n), 9)
    target = whole[3:6].view(3, 1, n, n)
    numpy_ops.spectral_filter(x.numpy(), mask.numpy(), out=target.numpy())
    assert torch.equal(target, spectral_filter(x, mask))
    assert (whole[:3] == -7).all() and (whole[6:] == -7).all()


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("n", SMALL)
def test_gradient_of_small_planes(n, many):
    """The filter is its own transpose, with masks of an index too."""
    x = uniform((4, 2, n, n), 10).requires_grad_()
    table = uniform((3, many, 2, n, n) if many > 1 else (3, 2, n, n), 11)
    index = torch.tensor([2, 0, -1, 1]) if many == 1 else None
    mask = table if many == 1 else table[:1]
    out = spectral_filter(x, mask, index=index)
    grad = uniform(tuple(out.shape), 12)
    (found,) = torch.autograd.grad(out, x, grad)
    if many == 1:
        assert torch.equal(found, spectral_filter(grad, mask, index=index))
    else:
        parts = [spectral_filter(grad[:, t].contiguous(), table[:1, t]) for t in range(many)]
        assert error(found, sum(parts)) <= 5e-6


# ---- large prime radices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize(
    "size",
    # Each prime first, with rotations after it, and last, where the spectra of columns come apart.
    [(143, 26), (169, 34), (187, 39), (323, 46), (38, 253), (361, 58), (62, 319), (46, 23), (529, 3), (13, 961)],
    ids=str,
)
def test_large_prime_factors(size, dtype):
    x, mask = uniform((1, 2, *size), 13, dtype), uniform(size, 14, dtype)
    expected = reference.spectral_filter(x.double(), mask.double())
    assert error(spectral_filter(x, mask), expected) <= (2e-6 if dtype == torch.float32 else 1e-13)


# ---- waves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=dtype_id)
def test_waves_on_narrow_planes(width, dtype):
    """Widths at and beside whole numbers of vectors; every plane has a wave of its own."""
    shape = (3, 2, 37, width)
    x = uniform(shape, 15) if dtype == torch.float32 else (255 * uniform(shape, 15)).to(dtype)
    frequency, phase = 4 * uniform((3, 2, 1, 2), 16, torch.float64) - 2, 6 * uniform((3, 2, 1), 17, torch.float64)
    amplitude = uniform((3, 2, 1), 18, torch.float64)
    for clip in (None, (0.2, 0.9)):
        out = wave_add(x, frequency, amplitude, phase, clip=clip)
        image = x.double() / 255 if dtype == torch.uint8 else x.double()
        expected = reference.wave_add(image, frequency, amplitude, phase, clip)
        assert error(out, expected) <= 5e-7
        for n, c in ((0, 0), (1, 1), (2, 0)):
            one = (slice(n, n + 1), slice(c, c + 1))
            alone = wave_add(x[one], frequency[one], amplitude[one], phase[one], clip=clip)
            assert torch.equal(alone, out[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=dtype_id)
@pytest.mark.parametrize("width", [832, 833])
def test_large_results_are_those_of_small_calls(width, dtype):
    """Beyond 16 MiB they are stored another way, if rows begin at whole vectors."""
    shape = (6, 1, 900, width)
    x = uniform(shape, 27) if dtype == torch.float32 else (255 * uniform(shape, 27)).to(dtype)
    frequency, amplitude = uniform((6, 1, 1, 2), 28, torch.float64), uniform((6, 1, 1), 29, torch.float64)
    out = wave_add(x, frequency, amplitude, 0.5, clip=(0.1, 0.8))
    for n in range(6):
        one = slice(n, n + 1)
        assert torch.equal(out[one], wave_add(x[one], frequency[one], amplitude[one], 0.5, clip=(0.1, 0.8)))


def test_error_of_a_wave():
    """3e-7 of the amplitude, whatever the size and the frequency."""
    for size in ((32, 32), (28, 30), (64, 40), (224, 224), (3, 512)):
        frequency = 8 * uniform((40, 1, 1, 2), 19, torch.float64) - 4
        phase = 20 * uniform((40, 1, 1), 20, torch.float64) - 10
        x = torch.zeros(40, 1, *size)
        out = wave_add(x, frequency, torch.ones(40, 1, 1, dtype=torch.float64), phase)
        assert error(out, reference.plane_waves(frequency, phase, size)[:, :, 0]) <= 3.2e-7, size


def test_phases_at_quarter_turns():
    """Where sine and cosine change places and signs, from both sides of zero."""
    x = torch.zeros(33, 1, 8, 16)
    phase = (torch.arange(33, dtype=torch.float64) - 16).mul(torch.pi / 4).reshape(33, 1, 1)
    for frequency in ((0.0, 0.0), (0.25, 0.5), (-0.25, 0.125)):
        given = torch.tensor(frequency, dtype=torch.float64).expand(33, 1, 1, 2)
        out = wave_add(x, given, torch.ones(33, 1, 1), phase)
        assert error(out, reference.plane_waves(given, phase, (8, 16))[:, :, 0]) <= 3.2e-7


# ---- every instruction set -------------------------------------------------------------------------------------------

PROGRAM = """
import sys, torch, sturdy
from sturdy.functional import spectral_filter, wave_add
if sturdy.build_info()["cpu_kernels_used"] != sys.argv[1]:
    sys.exit(77)
results = []
for case in torch.load(sys.argv[2]):
    if case["op"] == "filter":
        results.append(spectral_filter(case["x"], case["mask"], clip=case["clip"]))
    else:
        results.append(wave_add(case["x"], case["frequency"], case["amplitude"], case["phase"], clip=case["clip"]))
torch.save(results, sys.argv[3])
"""


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa, tmp_path):
    """The same cases in a process of its own, which reads STURDY_ISA once."""
    cases, expected = [], []
    for clip in (None, (0.3, 0.6)):
        for dtype in DTYPES:
            for size in ((28, 28), (32, 32), (17, 34), (29, 26), (23, 38), (16, 48), (31, 22)):
                x, mask = uniform((3, 3, *size), 21, dtype), uniform(size, 22)
                cases.append({"op": "filter", "x": x, "mask": mask, "clip": clip})
                expected.append(reference.spectral_filter(x, mask, clip=clip))
            for width in (5, 16, 31, 32, 64, 70):
                wave = {
                    "frequency": 2 * uniform((3, 3, 1, 2), 23, torch.float64) - 1,
                    "amplitude": uniform((3, 3, 1), 24, torch.float64),
                    "phase": 6 * uniform((3, 3, 1), 25, torch.float64),
                }
                x = uniform((3, 3, 21, width), 26, dtype)
                cases.append({"op": "wave", "x": x, **wave, "clip": clip})
                expected.append(reference.wave_add(x, **wave, clip=clip))
    given, got = tmp_path / "given.pt", tmp_path / "got.pt"
    torch.save(cases, given)
    environment = {**os.environ, "STURDY_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, isa, str(given), str(got)], env=environment, capture_output=True, text=True
    )
    if done.returncode == 77:
        pytest.skip(f"this machine or build has no {isa}")
    assert done.returncode == 0, done.stderr
    for case, out, exact in zip(cases, torch.load(got), expected, strict=True):
        assert error(out, exact) <= TOLERANCE[out.dtype], (case["op"], tuple(out.shape), out.dtype, case["clip"])
