"""Every CUDA kernel of push_pull_conv2d under the race checker: the fixture fails a test that raced."""

from __future__ import annotations

import pytest
import torch

from reference import pushpull as reference
from sturdy.functional import push_pull_conv2d
from support import BY_NAME, CASES, Case, dtype_id, gradients, random, smooth_gradient

# Each tile shape, with the pool in the tile and by way of maps; grouped, strided and dilated; ragged edges.
NAMES = [
    "plain",
    "wide_filters",
    "wide_both",
    "depthwise_multiplied",
    "groups",
    "stride_dilation",
    "one_pixel",
    "pool_beyond_map",
    "pool_wide_window",
    "number_negative",
    "one_filter",
]
assert set(NAMES) <= {case.name for case in CASES}


def run(case: Case, dtype: torch.dtype, layout: str = "contiguous", **more) -> None:
    tensors = case.tensors(dtype, layout=layout)
    grad_out = smooth_gradient(case, tensors)
    out = case.call(push_pull_conv2d, tensors)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=float(tolerance * exact.abs().amax()))
    for grad in gradients(case, push_pull_conv2d, tensors, grad_out, **more):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(race_backend, name):
    run(BY_NAME[name], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("name", ["wide_both", "pool_wide_window", "depthwise_multiplied"])
def test_other_dtypes(race_backend, name, dtype):
    run(BY_NAME[name], dtype)


@pytest.mark.parametrize("name", ["wide_both", "pool_wide_window"])
def test_push_response_computed_again(race_backend, name):
    run(BY_NAME[name], torch.float32, keep_push=False)


@pytest.mark.parametrize("layout", ["channels_last", "expanded"])
def test_layouts(race_backend, layout):
    run(BY_NAME["groups"], torch.float32, layout)


def test_a_single_gradient(race_backend):
    case = BY_NAME["groups"]
    tensors = case.tensors()
    for index in range(4):
        leaves = tensors.map(lambda t: t.detach())
        leaves.all()[index].requires_grad_()
        out = case.call(push_pull_conv2d, leaves)
        out.backward(random(tuple(out.shape), 7))
        assert leaves.all()[index].grad.isfinite().all()
