"""sine_warp: right values, on every backend, for every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prime_support import FLOATS, LARGE, SHAPES, TOLERANCE, normal, pixels
from reference import prime as reference
from sturdy.functional import sine_warp
from support import dtype_id, with_layout
from support import uninitialized_memory_is_nan as poisoned


def coefficients(batch: int, terms: tuple[int, int], device: str = "cpu", scale: float = 2.0) -> torch.Tensor:
    """That displace by about `scale` pixels."""
    return scale * normal((batch, 2, *terms), device) / math.sqrt(terms[0] * terms[1])


def check(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    out = sine_warp(x, c)
    exact = reference.sine_warp(x, c, torch.float64)
    # A coordinate in float32 holds 24 bits, and a pixel differs from the next by at most 1.
    side = max(x.shape[-2:])
    coordinate = side * 2.0 ** (-50 if out.dtype == torch.float64 else -22)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[out.dtype] + coordinate)
    return out


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=dtype_id)
def test_values(backend, dtype, layout):
    for shape in SHAPES:
        x = with_layout(pixels(shape, dtype, backend.device), layout)
        out = check(x, coefficients(shape[0], (5, 4), backend.device))
        assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        check(x, coefficients(1, (11, 17), backend.device, 9.0))


# Fewer, as many and more sines than the axis tells apart; several times round; none.
@pytest.mark.parametrize("terms", [(1, 1), (3, 30), (30, 7), (31, 62), (63, 64), (130, 100), (0, 3), (3, 0)], ids=str)
def test_numbers_of_terms(backend, terms):
    x = pixels((2, 2, 24, 32), torch.float64, backend.device)
    c = coefficients(2, (max(terms[0], 1), max(terms[1], 1)), backend.device)[:, :, : terms[0], : terms[1]]
    check(x, c)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_images(backend, shape):
    check(pixels(shape, device=backend.device), coefficients(1, (20, 21), backend.device, 5.0))


def test_sliced_images_and_coefficients(backend):
    x = with_layout(pixels((2, 3, 9, 20), device=backend.device), "sliced")
    c = coefficients(2, (4, 5), backend.device)
    assert torch.equal(check(x, with_layout(c, "sliced")), sine_warp(x.contiguous(), c))


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_bytes_into_any_dtype(backend, dtype):
    x = pixels((2, 3, 12, 10), torch.uint8, backend.device)
    c = coefficients(2, (3, 3), backend.device)
    out = sine_warp(x, c, dtype=dtype)
    assert out.dtype == dtype
    exact = reference.sine_warp(x, c, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[dtype] + 4e-6)


def test_no_field_copies(backend):
    for dtype in FLOATS:
        x = pixels((2, 3, 12, 20), dtype, backend.device)
        assert torch.equal(sine_warp(x, torch.zeros(2, 6, 6, device=backend.device)), x)


def test_whole_pixels_shift(backend):
    """On three points the only sine is 0, 1, 0: the middle comes from the left and from above."""
    x = pixels((1, 2, 3, 3), torch.float64, backend.device)
    c = torch.zeros(1, 2, 1, 1, dtype=torch.float64, device=backend.device)
    for moves, source in (((1.0, 0.0), (1, 0)), ((0.0, 1.0), (0, 1)), ((-1.0, -1.0), (2, 2)), ((5.0, 0.0), (1, 0))):
        c[0, :, 0, 0] = torch.tensor(moves)
        wanted = x.clone()
        wanted[..., 1, 1] = x[..., source[0], source[1]]
        torch.testing.assert_close(sine_warp(x, c), wanted, rtol=0, atol=1e-12)


def test_the_first_field_moves_along_columns(backend):
    columns = torch.arange(20.0, dtype=torch.float64, device=backend.device).expand(1, 1, 12, 20)
    rows = torch.arange(12.0, dtype=torch.float64, device=backend.device)[:, None].expand(1, 1, 12, 20)
    c = torch.zeros(1, 2, 2, 2, dtype=torch.float64, device=backend.device)
    c[0, 0, 1, 0] = 0.4  # twice along columns, once along rows
    x = torch.linspace(0, 1, 20, dtype=torch.float64, device=backend.device)
    y = torch.linspace(0, 1, 12, dtype=torch.float64, device=backend.device)[:, None]
    field = 0.4 * torch.sin(2 * math.pi * x) * torch.sin(math.pi * y)
    torch.testing.assert_close(sine_warp(columns, c), columns - field, rtol=0, atol=1e-12)
    assert torch.equal(sine_warp(rows, c), rows)


def test_shared_coefficients(backend):
    x = pixels((3, 2, 8, 9), torch.float64, backend.device)
    c = coefficients(1, (4, 3), backend.device)
    wanted = sine_warp(x, c.expand(3, -1, -1, -1).contiguous())
    assert torch.equal(sine_warp(x, c), wanted) and torch.equal(sine_warp(x, c[0]), wanted)
    torch.testing.assert_close(sine_warp(x, c.float()), wanted, rtol=0, atol=1e-5)


def test_single_image_and_memory_format(backend):
    x, c = pixels((2, 3, 8, 9), device=backend.device), coefficients(2, (4, 3), backend.device)
    out = sine_warp(x, c)
    assert torch.equal(sine_warp(x[0], c[0]), out[0])
    last = sine_warp(x.contiguous(memory_format=torch.channels_last), c)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, out)


def test_nan_touches_its_neighbours_alone(backend):
    x = pixels((2, 2, 16, 20), device=backend.device)
    c = coefficients(2, (2, 2), backend.device, 1.0)
    clean = sine_warp(x, c)
    x[1, 0, 8, 9] = math.nan
    out = sine_warp(x, c)
    bad = out.isnan()
    assert bad[1, 0].any() and bad.sum() < 30 and not bad[0].any() and not bad[1, 1].any()
    assert torch.equal(torch.where(bad, clean, out), clean)
    still = sine_warp(x, torch.zeros(2, 2, 2, device=backend.device))
    assert torch.equal(still.isnan(), x.isnan())


def test_nan_among_the_coefficients(backend):
    x = pixels((2, 1, 9, 9), device=backend.device)
    c = coefficients(2, (3, 20), backend.device)
    clean = sine_warp(x, c)
    c[0, 1, 2, 15] = math.nan
    out = sine_warp(x, c)
    assert out[0, :, 1:-1, 1:-1].isnan().all() and torch.equal(out[1], clean[1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
def test_nothing_to_do(backend, shape):
    x = torch.zeros(shape, device=backend.device)
    assert sine_warp(x, torch.ones(2, 2, 2, device=backend.device)).shape == shape


def test_batch_of_one_is_a_row(backend):
    for dtype in (torch.float32, torch.float16):
        x, c = pixels((4, 3, 70, 33), dtype, backend.device), coefficients(4, (9, 90), backend.device)
        out = sine_warp(x, c)
        for i in (0, 3):
            assert torch.equal(sine_warp(x[i : i + 1], c[i : i + 1]), out[i : i + 1])


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
def test_does_not_depend_on_threads(backend):
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            outs.append(sine_warp(pixels((1, 3, 200, 90)), coefficients(1, (30, 30))))
        finally:
            torch.set_num_threads(2)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_every_output_is_written(backend, dtype, layout):
    for shape in SHAPES:
        x = with_layout(pixels(shape, dtype, backend.device), layout)
        with poisoned():
            out = sine_warp(x, coefficients(shape[0], (3, 2), backend.device))
        assert not out.isnan().any()


def test_a_backward_pass_is_refused(backend):
    x = pixels((1, 1, 5, 6), torch.float64, backend.device).requires_grad_()
    out = sine_warp(x, coefficients(1, (2, 2), backend.device))
    with pytest.raises(RuntimeError, match="sine_warp has no derivative"):
        out.sum().backward()
    assert not sine_warp(x.detach(), coefficients(1, (2, 2), backend.device)).requires_grad


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    terms=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "channels_last"]),
)
def test_random_cases(backend, batch, channels, size, terms, dtype, layout):
    x = with_layout(pixels((batch, channels, *size), dtype, backend.device), layout)
    check(x, coefficients(batch, terms, backend.device))
