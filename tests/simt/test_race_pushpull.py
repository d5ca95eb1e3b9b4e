"""Every CUDA kernel of push_pull_conv2d under the race checker: the fixture fails a test that raced."""

from __future__ import annotations

import pytest
import torch

from reference import pushpull as reference
from sturdy.functional import push_pull_conv2d
from support import BY_NAME, CASES, CHANNEL_BY_NAME, Case, dtype_id, gradients, random, smooth_gradient

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
    out = case.call(push_pull_conv2d, tensors, **more)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    tolerance = 2.0**-7 if more.get("allow_tf32") else 64 * torch.finfo(dtype).eps
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


@pytest.mark.parametrize("name", ["wide_both", "groups", "pool_wide_window", "depthwise_multiplied"])
def test_range_of_each_input_channel(race_backend, name):
    run(CHANNEL_BY_NAME[f"channel_{name}"], torch.float32)


# ---- tensor cores: one and several chunks, passes and tiles, both kinds of words and both memory formats -------------

TENSOR_CASES = {
    case.name: case
    for case in (
        Case("stem", batch=1, size=(21, 37), kernel=(7, 7), stride=2, padding=3, out_channels=40, pool=3),
        Case("tiles", batch=1, in_channels=2, size=(20, 36), out_channels=8, padding=1, pool=(3, 5)),
        Case("chunks", batch=1, in_channels=64, size=(9, 18), out_channels=40, padding=1, pool=3),
        Case("no_pool", batch=2, in_channels=8, size=(6, 9), out_channels=9, groups=1),
        Case("groups", batch=1, in_channels=6, size=(9, 12), out_channels=24, groups=2, padding=1, pool=7),
    )
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_id)
@pytest.mark.parametrize("name", TENSOR_CASES)
def test_tensor_cores(race_backend, name, dtype):
    case = TENSOR_CASES[name]
    run(case, dtype, allow_tf32=True)
    parameters_alone(case, dtype, "contiguous", allow_tf32=True)


@pytest.mark.parametrize("name", ["stem", "chunks"])
def test_tensor_cores_on_channels_last(race_backend, name):
    parameters_alone(TENSOR_CASES[name], torch.float16, "channels_last", keep_push=False)


def parameters_alone(case: Case, dtype: torch.dtype, layout: str, **more) -> None:
    """As for a network's first layer, whose input wants no gradient."""
    leaves = case.tensors(dtype, layout=layout).leaves()
    leaves.input.requires_grad_(False)
    out = case.call(push_pull_conv2d, leaves, **more)
    for grad in torch.autograd.grad(out, leaves.all()[1:], random(tuple(out.shape), 7, dtype)):
        assert grad.isfinite().all()
