"""Gradients where the CPU takes Winograd's form: every way in which its tiles, panels and bands can be ragged."""

from __future__ import annotations

import pytest
import torch

import sturdy
from reference import pushpull as reference
from reference.pushpull import assert_close_to_reference
from sturdy.functional import push_pull_conv2d
from support import (
    LAYOUTS,
    Case,
    Tensors,
    dtype_id,
    gradient_names,
    gradients,
    random,
    smooth_gradient,
    uninitialized_memory_is_nan,
    with_layout,
)

# At least eight filters a group, no dilation, and kernels that Winograd's algorithm shortens. Tiles are 2 x 2 outputs,
# a vector has 4, 8 or 16 lanes, a panel one or two vectors of filters.
CASES = [
    Case("even_map", out_channels=16, size=(8, 16), padding=1),
    Case("odd_map", out_channels=32, size=(9, 17), padding=1),
    Case("odd_rows", out_channels=33, size=(7, 18), padding=1, pool=3),
    Case("odd_columns", out_channels=17, size=(10, 35), padding=1, pool=5),
    Case("one_output", out_channels=9, size=(3, 3), pool=3),
    Case("one_row", out_channels=12, size=(3, 40), pool=3),
    Case("one_column", out_channels=12, size=(40, 3), pool=3),
    Case("row_kernel", out_channels=8, kernel=(1, 3), size=(6, 21), pool=3),
    Case("column_kernel", out_channels=8, kernel=(3, 1), size=(21, 6), pool=(1, 3)),
    Case("two_by_two", out_channels=10, kernel=(2, 2), size=(9, 12), pool=3),
    Case("five_by_five", out_channels=24, kernel=(5, 5), size=(13, 19), padding=2, pool=5),
    Case("rectangle", out_channels=11, kernel=(3, 5), size=(12, 14), padding=(1, 2), pool=(5, 3)),
    Case("stem", out_channels=64, size=(37, 43), kernel=(7, 7), stride=2, padding=3, pool=3),
    Case("wide_stem", batch=1, out_channels=64, size=(96, 120), kernel=(7, 7), stride=2, padding=3, pool=3),
    Case("eleven_by_eleven", batch=1, out_channels=18, size=(51, 47), kernel=(11, 11), stride=4, padding=2),
    Case("strided", out_channels=20, size=(19, 22), stride=2, padding=1, kernel=(5, 5), pool=3),
    Case("strides_differ", out_channels=20, size=(20, 23), stride=(1, 2), padding=(0, 2), kernel=(3, 7), pool=3),
    Case("groups", in_channels=6, out_channels=40, groups=2, size=(10, 13), padding=1, pool=3),
    Case("many_filters", batch=1, in_channels=2, out_channels=150, size=(9, 10), padding=1),
    Case("deep", batch=1, in_channels=70, out_channels=24, size=(7, 9), padding=1, pool=3),
    Case("pool_beyond_map", out_channels=16, size=(8, 7), padding=1, pool=(11, 13)),
    Case("pool_rows", out_channels=16, size=(21, 9), padding=1, pool=(7, 1)),
    Case("padding_beyond_kernel", out_channels=16, size=(4, 5), padding=4, pool=3),
    Case("bands", batch=1, out_channels=64, size=(81, 63), padding=1, pool=3),
    Case("unpooled_bands", batch=1, out_channels=64, size=(81, 63), padding=1),
]
BY_NAME = {case.name: case for case in CASES}
STORAGE = [torch.float32, torch.float16, torch.bfloat16]


def check(case: Case, tensors: Tensors, grad_out: torch.Tensor, **more) -> None:
    found = gradients(case, push_pull_conv2d, tensors, grad_out, **more)
    plain = gradients(case, reference.push_pull_conv2d, tensors, grad_out)
    exact = gradients(case, reference.push_pull_conv2d, tensors.double(), grad_out.double())
    magnitudes = reference.sums_of_magnitudes(
        grad_out, tensors.input, tensors.weight, tensors.inhibition, **case.options()
    )
    for name, got, expected, ref in zip(gradient_names(tensors), found, plain, exact, strict=True):
        slack = torch.finfo(torch.float32).eps * magnitudes[name]
        assert_close_to_reference(got, expected, ref, slack=slack, what=f"grad of {name}")


@pytest.mark.parametrize("keep_push", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("dtype", STORAGE, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_autograd_of_two_convolutions(case, dtype, keep_push):
    tensors = case.tensors(dtype)
    check(case, tensors, smooth_gradient(case, tensors), keep_push=keep_push)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["odd_map", "odd_columns", "stem"])
def test_any_layout(name, layout, grad_layout):
    case = BY_NAME[name]
    tensors = case.tensors(layout=layout, weight_layout=layout)
    check(case, tensors, with_layout(smooth_gradient(case, tensors), grad_layout))


@pytest.mark.parametrize("name", ["odd_map", "odd_rows", "stem"])
def test_summed_output(name):
    # sum() sends a gradient whose strides are all zero.
    case = BY_NAME[name]
    tensors = case.tensors()
    one = torch.ones(())
    ones = one.expand(case.call(push_pull_conv2d, tensors).shape)
    found = gradients(case, push_pull_conv2d, tensors, ones)
    expected = gradients(case, push_pull_conv2d, tensors, ones.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", STORAGE, ids=dtype_id)
@pytest.mark.parametrize("name", ["unpooled_bands", "odd_rows", "stem", "pool_beyond_map", "groups"])
def test_each_gradient_alone_is_the_same(name, dtype):
    case = BY_NAME[name]
    leaves = case.tensors(dtype).leaves()
    out = case.call(push_pull_conv2d, leaves)
    grad_out = random(tuple(out.shape), 5, dtype)
    together = torch.autograd.grad(out, leaves.all(), grad_out, retain_graph=True)
    for leaf, expected in zip(leaves.all(), together, strict=True):
        with uninitialized_memory_is_nan():
            (alone,) = torch.autograd.grad(out, leaf, grad_out, retain_graph=True)
        assert torch.equal(alone, expected)


@pytest.mark.parametrize("name", ["stem", "odd_rows", "many_filters", "deep", "bands"])
def test_threads_do_not_change_a_bit(name):
    case = BY_NAME[name]
    tensors = case.tensors()
    grad_out = random(tuple(case.call(push_pull_conv2d, tensors).shape), 5)
    torch_threads = torch.get_num_threads()
    own_threads = sturdy.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            sturdy.set_num_threads(threads)
            results.append(gradients(case, push_pull_conv2d, tensors, grad_out))
    finally:
        torch.set_num_threads(torch_threads)
        sturdy.set_num_threads(own_threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("pool", [0, 3])
def test_tied_extremes_share_their_gradient(pool):
    case = Case("ties", out_channels=8, size=(10, 12), padding=1, pool=pool)
    drawn = case.tensors()
    weight = drawn.weight.clone()
    flat = weight.view(8, -1)
    flat[:, [1, 7, 20]] = -3.0
    flat[:, [0, 13]] = 3.5
    flat[2, 5] = 3.5  # one filter with a different count
    weight[3] = 0.25  # and one whose entries are all extreme
    tensors = Tensors(drawn.input, weight, drawn.inhibition, drawn.bias)
    check(case, tensors, smooth_gradient(case, tensors))


@pytest.mark.parametrize("pool", [0, 3])
def test_a_nan_stays_in_its_image_filter_or_channel(pool):
    case = Case("nan", batch=3, out_channels=40, size=(12, 21), padding=1, pool=pool)
    tensors = case.tensors()
    grad_out = random((3, 40, 12, 21), 5)
    clean = gradients(case, push_pull_conv2d, tensors, grad_out)
    grad_out[1, 33] = float("nan")
    found = gradients(case, push_pull_conv2d, tensors, grad_out)
    others = [i for i in range(40) if i != 33]
    assert torch.equal(found[0][[0, 2]], clean[0][[0, 2]])
    assert found[0][1].isnan().all()
    for got, expected in zip(found[1:], clean[1:], strict=True):
        assert got[33].isnan().all()
        assert torch.equal(got[others], expected[others])
