"""spectral_filter: gradients of images and masks."""

from __future__ import annotations

import pytest
import torch

from reference import fourier as reference
from spectral_support import TOLERANCE, mask_shape, uniform
from sturdy.functional import spectral_filter
from support import DTYPES, dtype_id, with_layout
from support import uninitialized_memory_is_nan as poisoned

# Leading dimensions of the mask, and the index.
MASKS = {
    "shared": ((), None),
    "per_channel": ((2,), None),
    "per_image": ((3, 1), None),
    "per_plane": ((3, 2), None),
    "table": ((4,), [2, -1, 2]),
    "table_per_channel": ((4, 2), [3, 0, 3]),
    "many": ((1, 3, 1), None),
    "many_per_plane": ((3, 3, 2), None),
}
SIZES = [(1, 1), (2, 2), (4, 5), (5, 4), (6, 8), (37, 3)]


def leaves(device, kind, size, layout, dtype=torch.float64):
    leading, index = MASKS[kind]
    x = uniform((3, 2, *size), 1, dtype, device).requires_grad_()
    mask_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    mask = uniform((*leading, *mask_shape(size, layout)), 2, mask_dtype, device).requires_grad_()
    return x, mask, None if index is None else torch.tensor(index, device=device)


@pytest.mark.parametrize("layout", ["shifted", "half"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", MASKS)
def test_gradcheck(backend, kind, size, layout):
    x, mask, index = leaves(backend.device, kind, size, layout)
    fast = size[0] * size[1] > 20 or backend.name == "simt"
    assert torch.autograd.gradcheck(lambda x, m: spectral_filter(x, m, layout, index), (x, mask), fast_mode=fast)


@pytest.mark.parametrize("kind", ["shared", "table", "many"])
def test_gradcheck_with_clamp(backend, kind):
    x, mask, index = leaves(backend.device, kind, (4, 6), "shifted")
    clip = (0.2, 0.3)
    free = spectral_filter(x, mask, "shifted", index)
    assert min((free - bound).abs().min() for bound in clip) > 1e-5, "too near to a bound for differences"
    assert ((free > clip[0]) & (free < clip[1])).any() and ((free < clip[0]) | (free > clip[1])).any()
    fast = backend.name == "simt"
    assert torch.autograd.gradcheck(
        lambda x, m: spectral_filter(x, m, "shifted", index, clip), (x, mask), fast_mode=fast
    )


def gradients(fn, x, mask, grad_out, *args):
    x, mask = x.detach().requires_grad_(), mask.detach().requires_grad_()
    fn(x, mask, *args).backward(grad_out)
    return x.grad, mask.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("clip", [None, (0.1, 0.3)], ids=["free", "clamped"])
@pytest.mark.parametrize("layout", ["shifted", "half"])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (31, 37), (224, 64)], ids=str)
def test_matches_the_reference(backend, size, layout, clip, dtype):
    x, mask, _ = leaves(backend.device, "shared", size, layout, dtype)
    grad_out = uniform((3, 2, *size), 3, dtype, device=backend.device)
    index = None
    got = gradients(spectral_filter, x, mask, grad_out, layout, index, clip)
    wide = tuple(t.detach().cpu().double() for t in (x, mask, grad_out))
    expected = gradients(reference.spectral_filter, *wide, layout, index, clip)
    if clip is not None:
        # Which side of a bound a value falls on is a matter of rounding: leave out the gradients it would change.
        free = reference.spectral_filter(wide[0], wide[1], layout)
        near = torch.stack([(free - bound).abs() for bound in clip]).amin(0) < 10 * TOLERANCE[torch.float32]
        if near.any() and dtype != torch.float64:
            grad_out = torch.where(near.to(backend.device), 0, grad_out)
            got = gradients(spectral_filter, x, mask, grad_out, layout, index, clip)
            wide = (*wide[:2], grad_out.cpu().double())
            expected = gradients(reference.spectral_filter, *wide, layout, index, clip)
    assert got[0].dtype == dtype and got[1].dtype == mask.dtype
    assert (got[0].cpu().double() - expected[0]).abs().max() <= TOLERANCE[dtype]
    # The mask's gradient sums products of spectra, whose first is H W times a mean.
    scale = expected[1].abs().max()
    assert (got[1].cpu().double() - expected[1]).abs().max() <= scale * (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kind", MASKS)
def test_gradients_of_any_strides(backend, kind):
    size = (6, 20)
    x, mask, index = leaves(backend.device, kind, size, "half")
    out = spectral_filter(x, mask, "half", index)
    wanted = torch.autograd.grad(out, (x, mask), torch.ones_like(out), retain_graph=True)
    summed = torch.autograd.grad(out.sum(), (x, mask), retain_graph=True)  # a gradient of stride 0
    for a, b in zip(wanted, summed, strict=True):
        assert torch.equal(a, b)
    grad_out = uniform(out.shape, 4, torch.float64, device=backend.device)
    wanted = torch.autograd.grad(out, (x, mask), grad_out, retain_graph=True)
    for strides in ("transposed", "sliced"):
        found = torch.autograd.grad(out, (x, mask), with_layout(grad_out, strides), retain_graph=True)
        for a, b in zip(wanted, found, strict=True):
            assert torch.equal(a, b)


def test_channels_last_gradients(backend):
    x = uniform((2, 3, 8, 20), 5, device=backend.device).contiguous(memory_format=torch.channels_last).requires_grad_()
    mask = uniform((8, 20), 6, device=backend.device)
    out = spectral_filter(x, mask, clip=(0.2, 0.6))
    grad_out = torch.rand_like(out)
    (grad,) = torch.autograd.grad(out, x, grad_out)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    plain = x.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(spectral_filter(plain, mask, clip=(0.2, 0.6)), plain, grad_out.contiguous())
    assert torch.equal(grad, expected)


def test_copied_images_pass_their_gradient_on(backend):
    x, table = (
        uniform((3, 2, 8, 8), 7, device=backend.device).requires_grad_(),
        uniform((2, 8, 8), 8, device=backend.device).requires_grad_(),
    )
    out = spectral_filter(x, table, index=torch.tensor([-1, 0, -1], device=backend.device), clip=(0.4, 0.5))
    grad_out = uniform(out.shape, 9, device=backend.device)
    grad, grad_table = torch.autograd.grad(out, (x, table), grad_out)
    assert torch.equal(grad[0], grad_out[0]) and torch.equal(grad[2], grad_out[2])
    assert not grad_table[1].any() and grad_table[0].any()


def test_gradient_passes_on_the_bounds(backend):
    """Zeros filter to zeros, which a clamp at 0 lets pass, as torch.clamp does."""
    x = torch.zeros(1, 1, 8, 8, requires_grad=True, device=backend.device)
    ones = torch.ones(1, 1, 8, 8, device=backend.device)
    (grad,) = torch.autograd.grad(spectral_filter(x, ones[0, 0], clip=(0.0, 1.0)), x, ones)
    assert (grad - 1).abs().max() < 1e-6
    (grad,) = torch.autograd.grad(spectral_filter(x, ones[0, 0], clip=(0.5, 1.0)), x, ones)
    assert not grad.any()


@pytest.mark.parametrize("kind", MASKS)
def test_bitwise_repeatable(backend, kind):
    x, mask, index = leaves(backend.device, kind, (12, 34), "shifted", torch.float32)
    results = []
    for threads in (2, 2, 1):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            out = spectral_filter(x, mask, "shifted", index, (0.1, 0.4))
            results.append(torch.autograd.grad(out, (x, mask), uniform(out.shape, 10, device=backend.device)))
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 6, 8), (2, 0, 6, 8)], ids=str)
def test_no_planes(backend, shape):
    x, mask = (
        torch.rand(shape, requires_grad=True, device=backend.device),
        torch.rand(6, 8, requires_grad=True, device=backend.device),
    )
    with poisoned():
        grad, grad_mask = torch.autograd.grad(spectral_filter(x, mask).sum(), (x, mask))
    assert grad.shape == shape and torch.equal(grad_mask, torch.zeros(6, 8, device=backend.device))


def test_only_what_is_wanted(backend):
    x, mask = uniform((2, 2, 8, 8), 11, device=backend.device), uniform((8, 8), 12, device=backend.device)
    grad_out = uniform((2, 2, 8, 8), 13, device=backend.device)
    op = backend.op("spectral_filter_backward")
    both = op(grad_out, x, mask, None, False, [], True, True)
    first = op(grad_out, None, mask, None, False, [], True, False)
    second = op(grad_out, x, mask, None, False, [], False, True)
    assert (first[0] - both[0]).abs().max() <= 1e-6 and first[1].numel() == 0
    assert second[0].numel() == 0 and torch.equal(second[1], both[1])
    neither = op(grad_out, None, mask, None, False, [], False, False)
    assert neither[0].numel() == 0 and neither[1].numel() == 0


def test_once_differentiable(backend):
    x, mask = (
        uniform((1, 1, 4, 4), 14, device=backend.device).requires_grad_(),
        uniform((4, 4), 15, device=backend.device).requires_grad_(),
    )
    (grad,) = torch.autograd.grad((spectral_filter(x, mask) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.sum().backward()
