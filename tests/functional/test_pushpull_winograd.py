"""The fast form of the CPU kernels: shapes at which tiles, bands and blocks of filters are ragged.

Calls with eight filters a group or more, no dilation and row-major output are computed in 2 x 2 tiles of outputs:
sixteen tiles or fewer to a vector, eight filters or fewer to a block, some rows of tiles to a band. float64 and
channels-last outputs are not, so they serve as a second opinion beside the definition.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference import pushpull as reference
from reference.pushpull import assert_close_to_reference
from sturdy.functional import push_pull_conv2d
from support import Case, Tensors, dtype_id, random
from support import uninitialized_memory_is_nan as poisoned

pytestmark = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)

CASES = [
    Case("one_pixel", size=(1, 1), padding=1, pool=3),
    Case("one_pixel_of_many", size=(3, 3), out_channels=11),
    Case("one_row", size=(1, 70), padding=1, pool=3, out_channels=10),
    Case("one_column", size=(70, 1), padding=1, pool=5, out_channels=10),
    Case("two_by_two_map", size=(4, 4), pool=5),
    Case("odd_map", size=(13, 35), padding=1, pool=3, out_channels=9),
    Case("whole_vectors", batch=1, size=(32, 64), padding=1, pool=5, out_channels=17),
    Case("whole_vectors_unpooled", size=(31, 64), padding=1, out_channels=19),
    Case("whole_vectors_of_groups", in_channels=4, groups=2, size=(32, 32), padding=1, out_channels=20),
    Case("row_kernel", kernel=(1, 3), size=(7, 33), pool=(1, 5)),
    Case("column_kernel", kernel=(3, 1), size=(33, 7), pool=(5, 1)),
    Case("two_taps", kernel=(2, 2), size=(11, 18), padding=1, pool=3),
    Case("four_by_two_taps", kernel=(4, 2), size=(12, 37), padding=(2, 0), out_channels=12),
    Case("five_taps", kernel=(5, 5), size=(14, 31), padding=2, pool=(3, 5)),
    Case("six_by_seven_taps", kernel=(6, 7), size=(16, 20), padding=3, pool=7),
    Case("seven_taps_stride_2", kernel=(7, 7), stride=2, size=(43, 77), padding=3, out_channels=20, pool=3),
    Case("eleven_taps_stride_4", kernel=(11, 11), stride=4, size=(63, 51), padding=2, pool=3),
    Case("nine_taps_stride_3", kernel=(9, 9), stride=3, size=(40, 38), padding=4),
    Case("stride_2", stride=2, size=(18, 35), padding=1, pool=5),
    Case("strides_apart", kernel=(5, 3), stride=(1, 2), size=(15, 40), padding=(0, 2), pool=3),
    Case("strides_apart_again", kernel=(3, 7), stride=(2, 1), size=(21, 16), padding=(1, 3), pool=(5, 3)),
    Case("padding_beyond_kernel", kernel=(3, 3), size=(4, 5), padding=6, pool=3),
    Case("same_even", kernel=(4, 4), size=(9, 19), padding="same", pool=3),
    Case("groups", in_channels=6, out_channels=30, groups=3, size=(11, 18), padding=1, pool=3),
    Case("depthwise_multiplied", in_channels=3, out_channels=24, groups=3, size=(10, 21), padding=1, pool=5),
    Case("many_filters", batch=1, in_channels=2, out_channels=70, size=(9, 18), padding=1, pool=3),
    Case("deep", batch=1, in_channels=23, size=(10, 38), padding=1, pool=3),
    Case("very_deep", batch=1, in_channels=340, size=(26, 25), padding=1),
    Case("pool_wide", size=(21, 40), padding=1, pool=7),
    Case("pool_flat", size=(20, 22), padding=1, pool=(1, 3)),
    Case("pool_tall", size=(20, 22), padding=1, pool=(7, 1)),
    Case("pool_beyond_map", size=(7, 19), padding=1, pool=(21, 45)),
    Case("bands", batch=1, in_channels=64, size=(70, 24), padding=1),
    Case("bands_pooled", batch=1, in_channels=64, size=(70, 24), padding=1, pool=5),
    Case("bands_shorter_than_windows", batch=1, in_channels=112, size=(37, 48), padding=1, pool=(9, 3)),
    Case("many_tasks", batch=1, size=(150, 20), padding=1, pool=3, out_channels=24),
    Case("reflect", size=(9, 14), padding=2, padding_mode="reflect", pool=3),
    Case("negative_strength", size=(9, 14), padding=1, strength=-1.5, pool=3),
]
BY_NAME = {case.name: case for case in CASES}


def check(case: Case, tensors: Tensors) -> torch.Tensor:
    with poisoned():
        out = case.call(push_pull_conv2d, tensors)
    plain = case.call(reference.push_pull_conv2d, tensors)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    assert_close_to_reference(out, plain, exact, what=str(case))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_two_convolutions(backend, case, dtype):
    check(case, case.tensors(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("name", ["seven_taps_stride_2", "odd_map", "groups"])
def test_any_strides(backend, name, layout, dtype):
    case = BY_NAME[name]
    check(case, case.tensors(dtype, layout=layout, weight_layout="transposed"))


@pytest.mark.parametrize("name", ["seven_taps_stride_2", "odd_map", "bands_pooled"])
def test_agrees_with_the_other_kernels(backend, name):
    case = BY_NAME[name]
    out = case.call(push_pull_conv2d, case.tensors())
    other = case.call(push_pull_conv2d, case.tensors(layout="channels_last"))
    assert out.is_contiguous()
    assert not other.is_contiguous()
    exact = case.call(push_pull_conv2d, case.tensors().double())
    assert_close_to_reference(out, other, exact, factor=3.0)


@pytest.mark.parametrize("channels", [3, 96])
@pytest.mark.parametrize("side", [1, 6, 14, 33])
def test_a_batch_of_one_is_its_row(backend, side, channels):
    """Which form is taken is a matter of the image's size, not of how many images there are."""
    images, weight = random((24, channels, side, side), 0), random((96, channels, 3, 3), 1)
    gradient = random((24, 96, side, side), 2)

    def out_and_gradient(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        image = images[rows].clone().requires_grad_()
        out = push_pull_conv2d(image, weight, 0.7, padding=1, avg_kernel_size=3)
        (grad,) = torch.autograd.grad(out, image, gradient[rows])
        return out.detach(), grad

    out, grad = out_and_gradient(slice(None))
    for image in (0, 23):
        alone, grad_alone = out_and_gradient(slice(image, image + 1))
        assert torch.equal(alone[0], out[image])
        assert torch.equal(grad_alone[0], grad[image])


@pytest.mark.parametrize(
    "name",
    ["odd_map", "whole_vectors_unpooled", "seven_taps_stride_2", "bands_shorter_than_windows", "many_filters"],
)
def test_keeps_the_push_response(backend, name):
    """The second output of the op, from which the gradient is taken."""
    case = BY_NAME[name]
    tensors = case.tensors()
    strides, pools, padding = (list(reference.pair(v)) for v in (case.stride, case.pool or 1, case.padding))
    sides = [padding[0], padding[0], padding[1], padding[1]]  # top, bottom, left, right
    args = (tensors.input, tensors.weight, tensors.inhibition, 0.0, tensors.bias, strides, sides, [1, 1], 1, pools)
    channel_range, allow_tf32, keep_push = False, False, True
    with poisoned():
        out, push = backend.op("push_pull_conv2d")(*args, channel_range, allow_tf32, keep_push)
    assert torch.equal(out, case.call(push_pull_conv2d, tensors))
    plain = F.conv2d(tensors.input, tensors.weight, None, case.stride, case.padding)
    exact = F.conv2d(tensors.input.double(), tensors.weight.double(), None, case.stride, case.padding)
    assert_close_to_reference(push, plain, exact)


@pytest.mark.parametrize(
    "name",
    [
        "odd_map",
        "whole_vectors_unpooled",
        "seven_taps_stride_2",
        "row_kernel",
        "bands_pooled",
        "pool_wide",
        "groups",
    ],
)
def test_a_nan_reaches_the_outputs_that_see_it_and_no_others(backend, name):
    case = BY_NAME[name]
    tensors = case.tensors()
    clean = case.call(push_pull_conv2d, tensors)
    height, width = case.size
    for row, column in ((0, 0), (height // 2, width // 3), (height - 1, width - 1)):
        image = tensors.input.clone()
        image[0, -1, row, column] = float("nan")
        out = case.call(push_pull_conv2d, Tensors(image, tensors.weight, tensors.inhibition, tensors.bias))
        seen = torch.zeros_like(image)
        seen[0, -1, row, column] = 1.0
        padding = reference.pair(case.padding)
        ones = torch.ones_like(tensors.weight)
        sees = F.conv2d(seen, ones, None, case.stride, padding, groups=case.groups)
        sees = reference.average(sees, case.pool) > 0
        assert torch.equal(out.isnan(), sees)
        assert torch.equal(out[~sees], clean[~sees])


def test_a_nan_in_a_filter_stays_in_its_channel(backend):
    case = BY_NAME["many_filters"]
    tensors = case.tensors()
    clean = case.call(push_pull_conv2d, tensors)
    for channel in (0, 5, 69):
        weight = tensors.weight.clone()
        weight[channel, 1, 2, 0] = float("nan")
        out = case.call(push_pull_conv2d, Tensors(tensors.input, weight, tensors.inhibition, tensors.bias))
        assert out[:, channel].isnan().all()
        others = [c for c in range(case.out_channels) if c != channel]
        assert torch.equal(out[:, others], clean[:, others])


@pytest.mark.parametrize("name", ["bands_pooled", "bands_shorter_than_windows", "many_tasks", "many_filters"])
def test_does_not_depend_on_the_number_of_threads(backend, name):
    case = BY_NAME[name]
    tensors = case.tensors()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(case.call(push_pull_conv2d, tensors))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other, found[0])


@pytest.mark.parametrize("name", ["bands_pooled", "many_tasks", "seven_taps_stride_2"])
def test_an_image_does_not_depend_on_how_its_batch_is_cut(backend, name):
    case = BY_NAME[name].but(batch=33)  # enough images for a task each; one image alone is cut into rows and filters
    tensors = case.tensors()
    out = case.call(push_pull_conv2d, tensors)
    for index in (0, 32):
        image = tensors.input[index : index + 1]
        alone = case.call(push_pull_conv2d, Tensors(image, tensors.weight, tensors.inhibition, tensors.bias))
        assert torch.equal(alone, out[index : index + 1])


def test_the_error_stays_near_that_of_a_direct_sum(backend):
    """Inputs of one sign and a long sum: where rounding errors of the transform would add up."""
    weight = random((16, 128, 3, 3), 2).abs()
    image = 100 + random((1, 128, 12, 12), 1)
    exact = reference.push_pull_conv2d(image.double(), weight.double(), padding=1, avg_kernel_size=3)
    out = push_pull_conv2d(image, weight, padding=1, avg_kernel_size=3)
    scale = F.conv2d(image.double(), weight.double(), padding=1).amax()
    assert (out - exact).abs().amax() <= 2e-6 * scale
