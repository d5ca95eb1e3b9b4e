"""The CUDA kernels of filter2d, smooth_color and sine_warp under the race checker: the fixture fails what raced."""

from __future__ import annotations

import pytest
import torch

from prime_support import CLIP, normal, pixels
from reference import prime as reference
from sturdy.functional import filter2d, sine_warp, smooth_color
from support import dtype_id, random, with_layout

# several tiles along each axis; planes that do not fill one
SHAPES = [(2, 2, 7, 9), (1, 1, 35, 70), (1, 3, 17, 5)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filter2d(race_backend, shape, layout, dtype):
    x = with_layout(pixels(shape, dtype), layout).requires_grad_()
    kernel = normal((*shape[:2], 3, 3)).requires_grad_()
    out = filter2d(x, kernel, CLIP)
    exact = reference.filter2d(x, kernel, CLIP, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[dtype])
    for wanted in ([x, kernel], [x], [kernel]):
        for grad in torch.autograd.grad(out, wanted, random(shape, 5, dtype), retain_graph=True):
            assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
@pytest.mark.parametrize("count", [3, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_smooth_color(race_backend, shape, count, dtype):
    x = pixels(shape, dtype).requires_grad_()
    c = 0.05 * normal((*shape[:2], count))
    c.requires_grad_()
    out = smooth_color(x, c, CLIP, 2)
    exact = reference.smooth_color(x, c, CLIP, 2, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[dtype])
    for grad in torch.autograd.grad(out, [x, c], random(shape, 5, dtype)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
@pytest.mark.parametrize("terms", [(3, 4), (20, 150)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sine_warp(race_backend, shape, terms, dtype):
    x, c = pixels(shape, dtype), 0.3 * normal((shape[0], 2, *terms))
    out = sine_warp(x, c)
    exact = reference.sine_warp(x, c, torch.float64)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=4 * TOLERANCE[dtype])


def test_bytes(race_backend):
    x = pixels((2, 3, 9, 70), torch.uint8)
    for out in (filter2d(x, normal((3, 3))), smooth_color(x, normal((7,))), sine_warp(x, normal((2, 3, 3)))):
        assert out.isfinite().all()
