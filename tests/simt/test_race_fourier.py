"""Every CUDA kernel of the Fourier family under the race checker: the fixture fails a test that raced."""

from __future__ import annotations

import pytest
import torch

from reference import fourier as reference
from sturdy.functional import wave_add
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
