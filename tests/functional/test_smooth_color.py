"""smooth_color: right values and gradients, on every backend, for every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prime_support import CLIP, FLOATS, LARGE, SHAPES, TOLERANCE, clear_of_bounds, normal, pixels, shared_shapes
from reference import prime as reference
from sturdy.functional import smooth_color
from support import dtype_id, random, with_layout
from support import uninitialized_memory_is_nan as poisoned


def coefficients(shape: tuple[int, ...], count: int, device: str = "cpu") -> torch.Tensor:
    """That change a colour by about a tenth."""
    return 0.1 * normal((*shape, count), device) / math.sqrt(max(count, 1))


def check(x: torch.Tensor, c: torch.Tensor, clip: tuple[float, float] | None = CLIP, first: int = 1) -> torch.Tensor:
    out = smooth_color(x, c, clip, first)
    exact = reference.smooth_color(x, c, clip, first, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[out.dtype])
    return out


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=dtype_id)
def test_values(backend, dtype, layout):
    for shape in SHAPES:
        x = with_layout(pixels(shape, dtype, backend.device), layout)
        out = check(x, coefficients(shape[:2], 33, backend.device))
        assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        check(x, coefficients((shape[0], 1), 5, backend.device), None, 4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 31, 32, 33, 34, 64, 65, 100])
def test_numbers_of_terms(backend, count):
    x = pixels((2, 2, 5, 21), torch.float64, backend.device)
    for first in (1, 2, 7):
        check(x, coefficients((2, 2), count, backend.device), CLIP, first)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_images(backend, shape):
    check(pixels(shape, device=backend.device), coefficients(shape[:2], 20, backend.device))


def test_sliced(backend):
    x = with_layout(pixels((2, 3, 9, 40), device=backend.device), "sliced")
    check(x, coefficients((2, 3), 40, backend.device))


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_bytes_into_any_dtype(backend, dtype):
    x = torch.arange(256, dtype=torch.uint8, device=backend.device).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    c = coefficients((2, 3), 100, backend.device)
    out = smooth_color(x, c, CLIP, dtype=dtype)
    assert out.dtype == dtype
    exact = reference.smooth_color(x, c, CLIP, 1, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[dtype])
    if dtype in (torch.float32, torch.float64):  # the table holds what the images of that dtype become
        wide = (x.to(dtype) / 255).contiguous()
        assert torch.equal(out, smooth_color(wide, c, CLIP))


def edges() -> torch.Tensor:
    """Values in all of [0, 1], and close to its ends, where the textbook recurrence loses its digits."""
    near = torch.logspace(-7, -1, 2000, dtype=torch.float64)
    inner = torch.rand(4000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.cat((inner, near, 1 - near, torch.tensor([0.0, 0.5, 1.0]), torch.linspace(0, 1, 1001))).float()


@pytest.mark.parametrize(("first", "count"), [(1, 20), (1, 100), (1, 500), (481, 20), (250, 20)])
def test_error_is_below_that_of_sines_in_float32(backend, first, count):
    x = edges().reshape(1, 1, 1, -1).to(backend.device)
    c = normal((1, 1, count), backend.device).float()
    exact = reference.smooth_color(x, c, None, first, torch.float64)
    found = (smooth_color(x, c, None, first) - exact).abs().amax().item()
    frequency = torch.arange(first, first + count, device=x.device)
    sines = torch.sin(x[:, :, None] * frequency[:, None, None] * math.pi)
    direct = (x + (c[..., None, None] * sines).sum(dim=2) - exact).abs().amax().item()
    assert found < direct
    # Each of at most 500 sums of 32 terms of size 1 loses a few digits of the last place.
    assert found < 2e-5 * math.sqrt(count / 2)
    wide = smooth_color(x.double(), c.double(), None, first)
    assert (wide - reference.smooth_color(x.double(), c.double(), None, first)).abs().amax() < 1e-11


def test_values_beyond_the_range(backend):
    x = 8 * torch.rand((1, 2, 9, 9), generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 4
    for first in (1, 2):
        check(x.to(backend.device), coefficients((1, 2), 40, backend.device), None, first)
    large = torch.tensor([1e30, -1e30, math.inf, -math.inf], device=backend.device).reshape(1, 1, 1, 4)
    assert torch.equal(smooth_color(large, coefficients((1, 1), 3, backend.device)), large)


def test_black_and_white_stay(backend):
    x = torch.tensor([0.0, 1.0], device=backend.device).reshape(1, 1, 1, 2)
    assert torch.equal(smooth_color(x, normal((1, 1, 100), backend.device)), x)


def test_first_for_each_image(backend):
    x = pixels((3, 2, 8, 9), torch.float64, backend.device)
    c = coefficients((3, 2), 20, backend.device)
    first = torch.tensor([1, 40, 7], device=backend.device)
    out = smooth_color(x, c, CLIP, first)
    for i in range(3):
        assert torch.equal(out[i : i + 1], smooth_color(x[i : i + 1], c[i : i + 1], CLIP, int(first[i])))
    assert torch.equal(smooth_color(x, c, CLIP, first[1]), smooth_color(x, c, CLIP, 40))
    padded = torch.zeros(3, 2, 39 + 20, dtype=torch.float64, device=backend.device)
    padded[..., 39:] = c
    torch.testing.assert_close(smooth_color(x, padded, CLIP), smooth_color(x, c, CLIP, 40), rtol=0, atol=1e-13)


def test_shared_coefficients(backend):
    x = pixels((3, 2, 8, 9), torch.float64, backend.device)
    for shape in shared_shapes(7):
        c = normal(shape, backend.device)
        assert torch.equal(smooth_color(x, c), smooth_color(x, c.expand(3, 2, 7).contiguous()))


def test_single_image_and_memory_format(backend):
    x, c = pixels((2, 3, 8, 9), device=backend.device), coefficients((2, 3), 9, backend.device)
    out = smooth_color(x, c, CLIP)
    assert torch.equal(smooth_color(x[0], c[:1], CLIP), out[0])
    last = smooth_color(x.contiguous(memory_format=torch.channels_last), c, CLIP)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, out)


def test_nan_stays_at_its_place(backend):
    x, c = pixels((2, 2, 9, 40), device=backend.device), coefficients((2, 2), 40, backend.device)
    clean = smooth_color(x, c, CLIP)
    x[1, 0, 4, 17] = math.nan
    out = smooth_color(x, c, CLIP)
    assert out[1, 0, 4, 17].isnan()
    out[1, 0, 4, 17] = clean[1, 0, 4, 17]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=dtype_id)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
def test_nothing_to_do(backend, shape, dtype):
    x = torch.zeros(shape, dtype=dtype, device=backend.device)
    c = torch.ones(2, device=backend.device).requires_grad_()
    out = smooth_color(x, c)
    assert out.shape == shape
    (grad,) = torch.autograd.grad(out.sum(), c)
    assert torch.equal(grad, torch.zeros_like(c))


def test_batch_of_one_is_a_row(backend):
    x = pixels((4, 3, 9, 70), device=backend.device).requires_grad_()
    c = coefficients((4, 3), 40, backend.device).requires_grad_()
    out = smooth_color(x, c, CLIP)
    grad_out = random(out.shape, 3, device=backend.device)
    grads = torch.autograd.grad(out, [x, c], grad_out)
    for i in (0, 3):
        leaves = [x.detach()[i : i + 1].requires_grad_(), c.detach()[i : i + 1].requires_grad_()]
        alone = smooth_color(*leaves, CLIP)
        assert torch.equal(alone, out[i : i + 1])
        for got, whole in zip(torch.autograd.grad(alone, leaves, grad_out[i : i + 1]), grads, strict=True):
            assert torch.equal(got, whole[i : i + 1])


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
def test_does_not_depend_on_threads(backend):
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            outs.append(smooth_color(pixels((1, 3, 200, 90)), coefficients((1, 3), 40), CLIP))
        finally:
            torch.set_num_threads(2)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_every_output_is_written(backend, dtype, layout):
    for shape in SHAPES:
        x = with_layout(pixels(shape, dtype, backend.device), layout).requires_grad_()
        c = coefficients(shape[:2], 3, backend.device).requires_grad_()
        with poisoned():
            out = smooth_color(x, c, CLIP)
            grads = torch.autograd.grad(out, [x, c], torch.ones_like(out))
        assert not any(t.isnan().any() for t in (out, *grads))


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, CLIP], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_match_reference(backend, layout, dtype, clip):
    for shape, count, first in [((2, 3, 8, 12), 5, 1), ((1, 2, 9, 30), 40, 2), ((2, 1, 1, 9), 33, 3)]:
        x = with_layout(pixels(shape, dtype, backend.device), layout)
        c = coefficients(shape[:2], count, backend.device)
        free = clear_of_bounds(reference.smooth_color(x, c, None, first, torch.float64))
        grad_out = with_layout((random(shape, 9, torch.float64, backend.device) * free).to(dtype), layout)
        found, wanted = [], []
        for function, image, into in ((smooth_color, x, found), (reference.smooth_color, x.double(), wanted)):
            leaves = [image.detach().requires_grad_(), c.detach().requires_grad_()]
            into += torch.autograd.grad(function(*leaves, clip, first), leaves, grad_out.to(image.dtype))
        eps = torch.finfo(dtype).eps
        scale = max(1.0, wanted[0].abs().amax().item())
        summed = 1e-13 if dtype == torch.float64 else 3e-6
        torch.testing.assert_close(found[0].double(), wanted[0], rtol=0, atol=(eps + 3 * summed) * scale)
        sums = grad_out.double().abs().sum(dim=(2, 3)).amax().item()
        torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=summed * sums)


def test_gradient_of_shared_coefficients_is_the_sum(backend):
    x = pixels((3, 2, 8, 8), torch.float64, backend.device)
    for shape in shared_shapes(4):
        leaf = normal(shape, backend.device).requires_grad_()
        full = leaf.detach().expand(3, 2, 4).clone().requires_grad_()
        (found,) = torch.autograd.grad(smooth_color(x, leaf).square().sum(), leaf)
        (each,) = torch.autograd.grad(smooth_color(x, full).square().sum(), full)
        torch.testing.assert_close(found, each.sum_to_size(shape), rtol=1e-12, atol=1e-12)


def test_gradient_at_and_beyond_the_bounds(backend):
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, math.nan], device=backend.device).reshape(1, 1, 1, 6).requires_grad_()
    (grad,) = torch.autograd.grad(smooth_color(x, torch.zeros(3, device=backend.device), CLIP).sum(), x)
    assert grad.flatten().tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("clip", [None, (-9.0, 9.0)], ids=str)
def test_gradcheck(backend, clip):
    x = pixels((2, 2, 3, 4), torch.float64, backend.device).requires_grad_()
    c = normal((2, 1, 34), backend.device).requires_grad_()
    first = torch.tensor([1, 4], device=backend.device)
    assert torch.autograd.gradcheck(lambda x, c: smooth_color(x, c, clip, first), (x, c))


def test_second_derivative_is_refused(backend):
    x = pixels((1, 1, 5, 6), torch.float64, backend.device).requires_grad_()
    (grad,) = torch.autograd.grad(smooth_color(x, normal((3,), backend.device)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="smooth_color can be differentiated once"):
        grad.sum().backward()


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    count=st.integers(0, 70),
    first=st.integers(0, 90),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "channels_last"]),
)
def test_random_cases(backend, batch, channels, size, count, first, dtype, layout):
    x = with_layout(pixels((batch, channels, *size), dtype, backend.device), layout)
    check(x, coefficients((batch, channels), count, backend.device), CLIP, first)
