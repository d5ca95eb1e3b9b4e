"""filter2d: right values and gradients, on every backend, for every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prime_support import CLIP, FLOATS, LARGE, SHAPES, TOLERANCE, clear_of_bounds, normal, pixels, shared_shapes
from reference import prime as reference
from sturdy.functional import filter2d
from support import dtype_id, random, with_layout
from support import uninitialized_memory_is_nan as poisoned


def kernels(shape: tuple[int, ...], device: str = "cpu") -> torch.Tensor:
    return normal((*shape, 3, 3), device)


def check(x: torch.Tensor, kernel: torch.Tensor, clip: tuple[float, float] | None = CLIP) -> torch.Tensor:
    out = filter2d(x, kernel, clip)
    exact = reference.filter2d(x, kernel, clip, torch.float64)
    scale = 1.0 if clip else max(1.0, exact.abs().amax().item()) if exact.numel() else 1.0
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[out.dtype] * scale)
    return out


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=dtype_id)
def test_values(backend, dtype, layout):
    for shape in SHAPES:
        values = pixels(shape, torch.float64 if dtype == torch.uint8 and layout == "sliced" else dtype, backend.device)
        x = values.to(dtype) if layout == "sliced" and dtype == torch.uint8 else with_layout(values, layout)
        out = check(x, kernels(shape[:2], backend.device))
        assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        check(x, kernels((shape[0], 1), backend.device), None)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_images(backend, shape):
    check(pixels(shape, device=backend.device), kernels(shape[:2], backend.device))


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_bytes_into_any_dtype(backend, dtype):
    x = pixels((2, 3, 9, 10), torch.uint8, backend.device)
    kernel = kernels((2, 1), backend.device)
    out = filter2d(x, kernel, CLIP, dtype=dtype)
    assert out.dtype == dtype
    exact = reference.filter2d(x, kernel, CLIP, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[dtype])


def test_shared_kernels(backend):
    x = pixels((3, 2, 8, 9), torch.float64, backend.device)
    for shape in shared_shapes(3, 3):
        kernel = normal(shape, backend.device)
        full = kernel.expand(3, 2, 3, 3)
        assert torch.equal(filter2d(x, kernel), filter2d(x, full.contiguous()))
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(filter2d(last, kernel), filter2d(x, kernel))


def test_a_delta_copies_and_shifts(backend):
    x = pixels((2, 3, 12, 20), device=backend.device)
    delta = torch.zeros(3, 3, device=backend.device)
    delta[1, 1] = 1
    assert torch.equal(filter2d(x, delta), x)
    corner = torch.zeros(3, 3, device=backend.device)
    corner[2, 2] = 1
    shifted = torch.zeros_like(x)
    shifted[..., :-1, :-1] = x[..., 1:, 1:]
    assert torch.equal(filter2d(x, corner), shifted)


def test_equals_a_grouped_convolution(backend):
    x = pixels((2, 3, 17, 19), torch.float64, backend.device)
    kernel = kernels((2, 3), backend.device)
    flat = x.reshape(1, 6, 17, 19)
    wanted = torch.nn.functional.conv2d(flat, kernel.reshape(6, 1, 3, 3), padding=1, groups=6).reshape(x.shape)
    torch.testing.assert_close(filter2d(x, kernel), wanted, rtol=0, atol=1e-12)


def test_single_image_and_memory_format(backend):
    x, kernel = pixels((2, 3, 8, 9), device=backend.device), kernels((2, 3), backend.device)
    out = filter2d(x, kernel, CLIP)
    assert torch.equal(filter2d(x[0], kernel[:1], CLIP), out[0])
    last = filter2d(x.contiguous(memory_format=torch.channels_last), kernel, CLIP)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, out)


def test_nan_touches_its_neighbours_alone(backend):
    x = pixels((2, 2, 20, 70), device=backend.device)
    kernel = kernels((2, 2), backend.device)
    clean = filter2d(x, kernel, CLIP)
    x[1, 0, 10, 64] = math.nan
    out = filter2d(x, kernel, CLIP)
    assert out[1, 0, 9:12, 63:66].isnan().all()
    out[1, 0, 9:12, 63:66] = clean[1, 0, 9:12, 63:66]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
def test_nothing_to_do(backend, shape):
    x = torch.zeros(shape, device=backend.device).requires_grad_()
    kernel = torch.ones(3, 3, device=backend.device).requires_grad_()
    out = filter2d(x, kernel)
    assert out.shape == shape
    grads = torch.autograd.grad(out.sum(), [x, kernel])
    assert grads[0].shape == shape and torch.equal(grads[1], torch.zeros_like(kernel))


def test_batch_of_one_is_a_row(backend):
    x = pixels((4, 3, 33, 70), device=backend.device).requires_grad_()
    kernel = kernels((4, 1), backend.device).requires_grad_()
    out = filter2d(x, kernel, CLIP)
    grad_out = random(out.shape, 3, device=backend.device)
    grads = torch.autograd.grad(out, [x, kernel], grad_out)
    for i in (0, 3):
        leaves = [x.detach()[i : i + 1].requires_grad_(), kernel.detach()[i : i + 1].requires_grad_()]
        alone = filter2d(*leaves, CLIP)
        assert torch.equal(alone, out[i : i + 1])
        for got, whole in zip(torch.autograd.grad(alone, leaves, grad_out[i : i + 1]), grads, strict=True):
            assert torch.equal(got, whole[i : i + 1])


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
def test_does_not_depend_on_threads(backend):
    x, kernel = pixels((1, 3, 200, 90)), kernels((1, 3))
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            outs.append(filter2d(x, kernel, CLIP))
        finally:
            torch.set_num_threads(2)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_every_output_is_written(backend, dtype, layout):
    for shape in SHAPES:
        x = with_layout(pixels(shape, dtype, backend.device), layout).requires_grad_()
        kernel = kernels(shape[:2], backend.device).requires_grad_()
        with poisoned():
            out = filter2d(x, kernel, CLIP)
            grads = torch.autograd.grad(out, [x, kernel], torch.ones_like(out))
        assert not any(t.isnan().any() for t in (out, *grads))


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, CLIP], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_gradients_match_reference(backend, layout, dtype, clip):
    for shape in [(2, 3, 16, 32), (1, 2, 35, 70), (2, 1, 1, 9)]:
        x = with_layout(pixels(shape, dtype, backend.device), layout)
        kernel = kernels(shape[:2], backend.device)
        free = clear_of_bounds(reference.filter2d(x, kernel, None, torch.float64))
        grad_out = with_layout((random(shape, 9, torch.float64, backend.device) * free).to(dtype), layout)
        found, wanted = [], []
        for function, image, into in ((filter2d, x, found), (reference.filter2d, x.double(), wanted)):
            leaves = [image.detach().requires_grad_(), kernel.detach().requires_grad_()]
            into += torch.autograd.grad(function(*leaves, clip), leaves, grad_out.to(image.dtype))
        eps = torch.finfo(dtype).eps
        scale = wanted[0].abs().amax().item()
        torch.testing.assert_close(found[0].double(), wanted[0], rtol=0, atol=4 * eps * scale)
        sums = grad_out.double().abs().sum(dim=(2, 3)).amax().item()
        accumulated = 1e-14 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=accumulated * sums)


def test_gradient_of_a_shared_kernel_is_the_sum(backend):
    x = pixels((3, 2, 8, 8), torch.float64, backend.device)
    for shape in shared_shapes(3, 3):
        leaf = normal(shape, backend.device).requires_grad_()
        full = leaf.detach().expand(3, 2, 3, 3).clone().requires_grad_()
        (found,) = torch.autograd.grad(filter2d(x, leaf).square().sum(), leaf)
        (each,) = torch.autograd.grad(filter2d(x, full).square().sum(), full)
        torch.testing.assert_close(found, each.sum_to_size(shape), rtol=1e-12, atol=1e-12)
    single = torch.ones(3, 3, device=backend.device).requires_grad_()
    (found,) = torch.autograd.grad(filter2d(x, single).sum(), single)
    assert found.dtype == torch.float32


def test_gradient_at_and_beyond_the_bounds(backend):
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, math.nan], device=backend.device).reshape(6, 1, 1, 1).requires_grad_()
    delta = torch.zeros(3, 3, device=backend.device)
    delta[1, 1] = 1
    (grad,) = torch.autograd.grad(filter2d(x, delta, CLIP).sum(), x)
    assert grad.flatten().tolist() == [0, 1, 1, 1, 0, 0]


def test_bytes_have_no_gradient_but_their_kernel_has(backend):
    x = pixels((2, 3, 8, 9), torch.uint8, backend.device)
    kernel = 0.1 * kernels((2, 3), backend.device)
    found = []
    for function in (filter2d, lambda *a: reference.filter2d(*a, torch.float64)):
        leaf = kernel.detach().requires_grad_()
        found += torch.autograd.grad(function(x, leaf, CLIP).sum(), leaf)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", [None, (-9.0, 9.0)], ids=str)
def test_gradcheck(backend, clip):
    x = pixels((2, 2, 4, 5), torch.float64, backend.device).requires_grad_()
    kernel = kernels((2, 1), backend.device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, k: filter2d(x, k, clip), (x, kernel))


def test_second_derivative_is_refused(backend):
    x = pixels((1, 1, 5, 6), torch.float64, backend.device).requires_grad_()
    (grad,) = torch.autograd.grad(filter2d(x, kernels((1, 1), backend.device)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="filter2d can be differentiated once"):
        grad.sum().backward()


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "channels_last"]),
    shared=st.booleans(),
)
def test_random_cases(backend, batch, channels, size, dtype, layout, shared):
    x = with_layout(pixels((batch, channels, *size), dtype, backend.device), layout)
    check(x, kernels((1, 1) if shared else (batch, channels), backend.device))
