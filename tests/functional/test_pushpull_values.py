"""push_pull_conv2d: right values, on every backend, for every option, dtype and layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference import pushpull as reference
from reference.pushpull import assert_close_to_reference
from sturdy.functional import push_pull_conv2d
from support import (
    BY_NAME,
    CASES,
    CHANNEL_BY_NAME,
    CHANNEL_CASES,
    DTYPES,
    LAYOUTS,
    Case,
    Tensors,
    channel_range,
    dtype_id,
    random,
    random_cases,
    with_layout,
)
from support import uninitialized_memory_is_nan as poisoned


def check_values(case: Case, tensors: Tensors) -> torch.Tensor:
    out = case.call(push_pull_conv2d, tensors)
    plain = case.call(reference.push_pull_conv2d, tensors)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    assert_close_to_reference(out, plain, exact, what=str(case))
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", [*CASES, *CHANNEL_CASES], ids=str)
def test_matches_two_convolutions(backend, case, dtype):
    check_values(case, case.tensors(dtype, backend.device))


@pytest.mark.parametrize("weight_layout", ["contiguous", "transposed", "sliced", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["stem", "groups", "wide_both", "circular"])
def test_any_strides(backend, name, layout, weight_layout):
    case = BY_NAME[name]
    tensors = case.tensors(torch.float32, backend.device, layout=layout, weight_layout=weight_layout)
    check_values(case, tensors)


def test_strided_inhibition_and_bias(backend):
    case = BY_NAME["plain"]
    tensors = case.tensors(torch.float32, backend.device)
    strided = Tensors(
        tensors.input, tensors.weight, with_layout(tensors.inhibition, "sliced"), with_layout(tensors.bias, "sliced")
    )
    assert torch.equal(case.call(push_pull_conv2d, strided), case.call(push_pull_conv2d, tensors))
    one = random((1,), 8, device=backend.device)
    for vector in (one.expand(case.out_channels), one, one.reshape(())):
        expanded = Tensors(tensors.input, tensors.weight, vector, None)
        number = Tensors(tensors.input, tensors.weight, one.item(), None)
        assert torch.equal(case.call(push_pull_conv2d, expanded), case.call(push_pull_conv2d, number))
    column = Tensors(tensors.input, tensors.weight, tensors.inhibition.reshape(1, -1, 1, 1), tensors.bias)
    assert torch.equal(case.call(push_pull_conv2d, column), case.call(push_pull_conv2d, tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=dtype_id)
def test_float32_inhibition_and_bias_beside_other_dtypes(backend, dtype):
    case = BY_NAME["plain"]
    tensors = case.tensors(dtype, backend.device, vector_dtype=torch.float32)
    out = case.call(push_pull_conv2d, tensors)
    assert out.dtype == dtype
    plain = case.call(reference.push_pull_conv2d, tensors)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    assert_close_to_reference(out, plain, exact)


# ---- memory formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["stem", "depthwise", "groups_wide", "wide_map", "pool_wide_window", "reflect"])
def test_channels_last_in_channels_last_out(backend, name, dtype):
    case = BY_NAME[name]
    plain = case.tensors(dtype, backend.device)
    strided = case.tensors(dtype, backend.device, layout="channels_last", weight_layout="channels_last")
    out = case.call(push_pull_conv2d, strided)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = case.call(push_pull_conv2d, plain)
    assert expected.is_contiguous()
    exact = case.call(reference.push_pull_conv2d, plain.double())
    assert_close_to_reference(out, expected, exact)


def test_output_is_contiguous_for_other_strides(backend):
    case = BY_NAME["plain"]
    for layout in ("transposed", "sliced", "expanded"):
        assert case.call(push_pull_conv2d, case.tensors(device=backend.device, layout=layout)).is_contiguous()
    # One channel is both formats at once; contiguous is the one that later layers expect.
    one = BY_NAME["one_channel_one_tap"]
    assert one.call(push_pull_conv2d, one.tensors(device=backend.device, layout="channels_last")).is_contiguous()


def test_without_batch(backend):
    case = BY_NAME["groups"]
    tensors = case.tensors(device=backend.device)
    out = case.call(push_pull_conv2d, Tensors(tensors.input[1], tensors.weight, tensors.inhibition, tensors.bias))
    assert torch.equal(out, case.call(push_pull_conv2d, tensors)[1])


@pytest.mark.parametrize(("batch", "out_channels"), [(0, 8), (2, 0), (0, 0)], ids=["no_image", "no_filter", "nothing"])
def test_empty(backend, batch, out_channels):
    case = BY_NAME["stem"].but(batch=batch, out_channels=out_channels)
    tensors = case.tensors(device=backend.device).leaves()
    out = case.call(push_pull_conv2d, tensors)
    assert out.shape == (batch, out_channels, 11, 19)
    grads = torch.autograd.grad(out.sum(), tensors.all())
    for grad, tensor in zip(grads, tensors.all(), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))
    if batch == 0:
        assert (
            case.call(push_pull_conv2d, case.tensors(device=backend.device, layout="channels_last")).shape == out.shape
        )


# ---- facts that follow from the definition ---------------------------------------------------------------------------


def all_ones_response(case: Case, tensors: Tensors) -> torch.Tensor:
    ones = torch.ones_like(tensors.weight)
    padded = reference.pad(tensors.input, case.padding, case.kernel, case.dilation, case.padding_mode)
    return F.conv2d(padded, ones, None, case.stride, 0, case.dilation, case.groups)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_box_map_is_an_all_ones_convolution(backend, padding_mode):
    # With a filter of one 1 and zeros elsewhere, m = 1 and the pull response is box - push. Positive input keeps it and
    # the push response positive, so strength -1 adds them: the output is the box map.
    case = Case("box", in_channels=4, out_channels=4, groups=2, padding=2, padding_mode=padding_mode, size=(7, 9))
    weight = torch.zeros(4, 2, 3, 3, dtype=torch.float64, device=backend.device)
    weight.view(4, -1)[torch.arange(4), torch.tensor([0, 4, 9, 17])] = 1.0
    image = random((2, 4, 7, 9), 1, torch.float64, backend.device).abs() + 0.1
    tensors = Tensors(image, weight, -1.0, None)
    out = case.call(push_pull_conv2d, tensors)
    torch.testing.assert_close(out, all_ones_response(case, tensors), rtol=1e-14, atol=0)


def test_flat_image(backend):
    value, weight = 0.75, random((6, 3, 3, 5), 2, torch.float64, backend.device)
    image = torch.full((1, 3, 11, 12), value, dtype=torch.float64, device=backend.device)
    total = weight.sum(dim=(1, 2, 3))
    middle = weight.amin(dim=(1, 2, 3)) + weight.amax(dim=(1, 2, 3))
    push, pull = value * total, value * (middle * weight[0].numel() - total)
    expected = (push.relu() - 0.9 * pull.relu()).view(1, -1, 1, 1).expand(1, 6, 9, 8)
    for pool in (0, 3, 5, (7, 1)):  # a mean of equal values, at borders too, if it counts its cells
        out = push_pull_conv2d(image, weight, 0.9, avg_kernel_size=pool)
        torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


def test_zero_inhibition_leaves_the_rectified_push(backend):
    case = BY_NAME["plain"].but(strength=0.0, padding=1)
    tensors = case.tensors(torch.float64, backend.device)
    push = F.conv2d(tensors.input, tensors.weight, padding=1)
    expected = push.relu() + tensors.bias.view(-1, 1, 1)
    torch.testing.assert_close(case.call(push_pull_conv2d, tensors), expected, rtol=1e-13, atol=1e-13)


def test_near_the_plain_convolution(backend):
    # |y - p - b| <= |m * box| for strength 1 without pooling: what a converted pretrained layer starts from.
    case = BY_NAME["plain"].but(strength=1.0, padding=1)
    tensors = case.tensors(torch.float64, backend.device)
    push = F.conv2d(tensors.input, tensors.weight, tensors.bias, padding=1)
    middle = tensors.weight.amin(dim=(1, 2, 3)) + tensors.weight.amax(dim=(1, 2, 3))
    bound = (middle.view(-1, 1, 1) * all_ones_response(case, tensors)).abs()
    difference = (case.call(push_pull_conv2d, tensors) - push).abs()
    assert (difference <= bound + 1e-12).all()
    assert (difference > 0.1 * bound).any()


def test_filter_symmetric_about_zero_is_a_leaky_relu(backend):
    weight = random((5, 3, 3, 3), 2, torch.float64, backend.device).clamp(-0.8, 0.8)
    weight[:, 0, 0, 0], weight[:, 0, 0, 1] = -1.0, 1.0  # so that m = 0
    image = random((2, 3, 8, 9), 1, torch.float64, backend.device)
    expected = F.leaky_relu(F.conv2d(image, weight), 0.3)
    torch.testing.assert_close(push_pull_conv2d(image, weight, 0.3), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("strength", [1.0, 0.25, -2.0])
def test_constant_filter(backend, strength):
    weight = random((4, 1, 1, 1), 2, torch.float64, backend.device).expand(4, 3, 3, 3)
    image = random((2, 3, 8, 9), 1, torch.float64, backend.device)
    bias = random((4,), 4, torch.float64, backend.device)
    expected = (1 - strength) * F.conv2d(image, weight).relu() + bias.view(-1, 1, 1)
    out = push_pull_conv2d(image, weight, strength, bias)
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-12)


def test_zero_filter_gives_the_bias(backend):
    bias = random((4,), 4, device=backend.device)
    image = random((2, 3, 8, 9), 1, device=backend.device)
    out = push_pull_conv2d(image, torch.zeros(4, 3, 3, 3, device=backend.device), 1.0, bias, avg_kernel_size=3)
    assert torch.equal(out, bias.view(-1, 1, 1).expand(out.shape))


@pytest.mark.parametrize("factor", [4.0, 1 / 3])
@pytest.mark.parametrize("name", ["stem", "groups"])
def test_scales_with_input_and_with_weight(backend, name, factor):
    case = BY_NAME[name].but(bias=False)
    tensors = case.tensors(torch.float64, backend.device)
    out = case.call(push_pull_conv2d, tensors)
    more_input = Tensors(factor * tensors.input, tensors.weight, tensors.inhibition, None)
    more_weight = Tensors(tensors.input, factor * tensors.weight, tensors.inhibition, None)
    for scaled in (more_input, more_weight):
        torch.testing.assert_close(case.call(push_pull_conv2d, scaled), factor * out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stride", "pool", "border"), [(1, 0, 0), (2, 3, 1), ((2, 3), 5, 2)])
def test_moves_with_its_input(backend, stride, pool, border):
    rows, columns = reference.pair(stride)
    image = random((1, 3, 24, 31), 1, torch.float64, backend.device)
    weight = random((6, 3, 3, 3), 2, torch.float64, backend.device)
    whole = push_pull_conv2d(image, weight, stride=stride, avg_kernel_size=pool)
    moved = push_pull_conv2d(image[:, :, rows:, columns:], weight, stride=stride, avg_kernel_size=pool)
    inside = moved[:, :, border : moved.shape[2] - border, border : moved.shape[3] - border]
    same = whole[:, :, 1 + border :, 1 + border :][:, :, : inside.shape[2], : inside.shape[3]]
    assert inside.numel() > 0
    torch.testing.assert_close(inside, same, rtol=1e-13, atol=1e-13)


def test_number_and_tensor_of_equal_strength_agree(backend):
    for strength in (-2.5, 0.0, 1.0, 300.0):
        case = BY_NAME["stem"].but(strength=strength)
        tensors = case.tensors(device=backend.device)
        per_channel = torch.full((case.out_channels,), strength, device=backend.device)
        other = Tensors(tensors.input, tensors.weight, per_channel, tensors.bias)
        assert torch.equal(case.call(push_pull_conv2d, tensors), case.call(push_pull_conv2d, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["stem", "depthwise_multiplied", "wide_filters"])
def test_nan_in_a_filter_stays_in_its_channel(backend, name, dtype):
    case = BY_NAME[name]
    tensors = case.tensors(dtype, backend.device)
    clean = case.call(push_pull_conv2d, tensors)
    for position in (0, -1):  # of the first and of the last entry
        weight = tensors.weight.clone()
        weight[4].view(-1)[position] = float("nan")
        out = case.call(push_pull_conv2d, Tensors(tensors.input, weight, tensors.inhibition, tensors.bias))
        assert out[:, 4].isnan().all()
        others = [channel for channel in range(case.out_channels) if channel != 4]
        assert torch.equal(out[:, others], clean[:, others])


# ---- the range of each input channel ---------------------------------------------------------------------------------


@channel_range
@pytest.mark.parametrize("weight_layout", ["contiguous", "transposed", "sliced", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["channel_stem", "channel_groups", "channel_reflect"])
def test_channel_range_of_any_strides(backend, name, layout, weight_layout):
    case = CHANNEL_BY_NAME[name]
    tensors = case.tensors(torch.float32, backend.device, layout=layout, weight_layout=weight_layout)
    out = check_values(case, tensors)
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert out.is_contiguous(memory_format=format)


@channel_range
def test_channel_range_on_a_flat_image(backend):
    # Each channel has a value of its own, so that a sum over the wrong channels shows.
    values = torch.tensor([0.75, -0.5, 2.0], dtype=torch.float64, device=backend.device)
    weight = random((6, 3, 3, 5), 2, torch.float64, backend.device)
    image = values.view(1, 3, 1, 1).expand(1, 3, 11, 12)
    middle = weight.amin(dim=(2, 3)) + weight.amax(dim=(2, 3))
    push = weight.sum(dim=(2, 3)) @ values
    pull = 15 * middle @ values - push
    expected = (push.relu() - 0.9 * pull.relu()).view(1, -1, 1, 1).expand(1, 6, 9, 8)
    for pool in (0, 3, (7, 1)):
        out = push_pull_conv2d(image, weight, 0.9, avg_kernel_size=pool, range_dims="channel")
        torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


@channel_range
def test_channel_range_of_one_tap_pulls_as_it_pushes(backend):
    image, weight = random((2, 5, 6, 7), 1, torch.float64, backend.device), random((4, 5, 1, 1), 2, torch.float64)
    weight = weight.to(backend.device)
    expected = (1 - 0.4) * F.conv2d(image, weight).relu()
    torch.testing.assert_close(push_pull_conv2d(image, weight, 0.4, range_dims="channel"), expected)


@channel_range
def test_ranges_agree_for_one_channel_and_differ_for_more(backend):
    for name, same in (("depthwise_multiplied", True), ("plain", False)):
        case = BY_NAME[name].but(strength=1.0)
        tensors = case.tensors(torch.float64, backend.device)
        by_filter, by_channel = (case.call(push_pull_conv2d, tensors, range_dims=r) for r in ("filter", "channel"))
        assert torch.allclose(by_filter, by_channel, rtol=1e-12, atol=1e-12) == same


@channel_range
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_nan_in_a_channel_of_a_filter_stays_in_its_output(backend, dtype):
    case = CHANNEL_BY_NAME["channel_stem"]
    tensors = case.tensors(dtype, backend.device)
    clean = case.call(push_pull_conv2d, tensors)
    weight = tensors.weight.clone()
    weight[4, 1, 0, 0] = float("nan")
    out = case.call(push_pull_conv2d, Tensors(tensors.input, weight, tensors.inhibition, tensors.bias))
    assert out[:, 4].isnan().all()
    others = [channel for channel in range(case.out_channels) if channel != 4]
    assert torch.equal(out[:, others], clean[:, others])


@channel_range
@given(
    case=random_cases("channel"),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    weight_layout=st.sampled_from(LAYOUTS),
)
def test_random_cases_of_channel_range(backend, case, dtype, layout, weight_layout):
    tensors = case.tensors(dtype, backend.device, layout=layout, weight_layout=weight_layout)
    with poisoned():
        check_values(case, tensors)


# ---- memory, order, threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_push", [True, False])
@pytest.mark.parametrize("case", [*CASES, *CHANNEL_CASES], ids=str)
def test_every_output_is_written(backend, case, keep_push):
    tensors = case.tensors(device=backend.device)
    expected = case.call(reference.push_pull_conv2d, tensors)
    with poisoned():
        leaves = tensors.leaves()
        out = case.call(push_pull_conv2d, leaves, keep_push=keep_push)
        grads = torch.autograd.grad(out, leaves.all(), torch.ones_like(expected))
    assert not out.isnan().any()
    for grad in grads:
        assert not grad.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["stem", "groups", "pool_wide_window"])
def test_repeats_bitwise(backend, name, dtype):
    case = BY_NAME[name]

    def run() -> list[torch.Tensor]:
        leaves = case.tensors(dtype, backend.device).leaves()
        out = case.call(push_pull_conv2d, leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves.all(), random(tuple(out.shape), 7, dtype, out.device))]

    first = run()
    for _ in range(9):
        for again, once in zip(run(), first, strict=True):
            assert torch.equal(again, once)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "name",
    ["stem", "groups", "wide_both", "pool_wide_window", pytest.param("channel_few_deep_groups", marks=channel_range)],
)
def test_an_image_does_not_depend_on_its_batch(backend, name, layout):
    case = {**BY_NAME, **CHANNEL_BY_NAME}[name].but(batch=5)
    leaves = case.tensors(device=backend.device, layout=layout).leaves()
    out = case.call(push_pull_conv2d, leaves)
    grad_out = random(tuple(out.shape), 7, device=backend.device)
    (grad_input,) = torch.autograd.grad(out, [leaves.input], grad_out)
    for index in (0, 3, 4):
        image = leaves.input.detach()[index : index + 1].requires_grad_()
        alone = case.call(push_pull_conv2d, Tensors(image, leaves.weight, leaves.inhibition, leaves.bias))
        assert torch.equal(alone, out[index : index + 1])
        (grad_alone,) = torch.autograd.grad(alone, [image], grad_out[index : index + 1])
        assert torch.equal(grad_alone, grad_input[index : index + 1])


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize(
    "case",
    [
        Case("few_large", batch=3, size=(64, 70), kernel=(7, 7), stride=2, padding=3, out_channels=48, pool=3),
        Case("one_image", batch=1, size=(50, 50), padding=1, out_channels=70, pool=5),
        Case("many_small", batch=37, size=(10, 10), padding=1, out_channels=16),
        Case("groups", batch=2, in_channels=8, groups=4, size=(40, 40), padding=1, out_channels=16, pool=3),
        CHANNEL_BY_NAME["channel_stem"].but(size=(64, 70), out_channels=48),
        CHANNEL_BY_NAME["channel_groups"].but(size=(40, 40), out_channels=80, batch=1),
    ],
    ids=str,
)
def test_does_not_depend_on_the_number_of_threads(backend, case, dtype):
    def run(threads: int) -> list[torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaves = case.tensors(dtype).leaves()
            out = case.call(push_pull_conv2d, leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves.all(), random(tuple(out.shape), 7, dtype))]
        finally:
            torch.set_num_threads(before)

    once = run(1)
    for threads in (2, 3, 5):
        for got, expected in zip(run(threads), once, strict=True):
            assert torch.equal(got, expected), f"{threads} threads"


def reserve(elements: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A large tensor whose pages are never touched, so that it takes address space alone (on the CPU)."""
    try:
        return torch.empty(elements, dtype=dtype, device=device)
    except RuntimeError as error:
        pytest.skip(f"no room for {elements} elements of {dtype}: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("far", ["batch", "channel", "row", "column", "offset"])
def test_strides_and_offsets_beyond_32_bits(backend, far):
    far_stride = 2**31 + 8
    memory = reserve(far_stride + 4096, torch.float16, backend.device)
    strides = {"batch": 1024, "channel": 256, "row": 16, "column": 1}
    shape = {
        name: 2 if name == far else size for name, size in (("batch", 2), ("channel", 2), ("row", 7), ("column", 9))
    }
    offset = far_stride if far == "offset" else 0
    if far != "offset":
        strides[far] = far_stride
    image = memory.as_strided(list(shape.values()), list(strides.values()), offset)
    values = random(tuple(image.shape), 1, torch.float16, backend.device)
    image.copy_(values)
    weight = random((3, 2, 2, 2), 2, torch.float16, backend.device)
    out = push_pull_conv2d(image, weight, avg_kernel_size=3)
    assert torch.equal(out, push_pull_conv2d(values, weight, avg_kernel_size=3))
    assert not out.isnan().any()
    assert out.abs().sum() > 0


@pytest.mark.full
@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("cpu", "cuda")], indirect=True
)
def test_output_of_more_than_2_to_the_31_elements(backend):
    height, width = 46400, 46350
    assert height * width > 2**31
    row = random((1, 1, 1, width), 1, torch.float16, backend.device)
    weight = torch.tensor([1.5], dtype=torch.float16, device=backend.device).view(1, 1, 1, 1)
    out = push_pull_conv2d(row.expand(1, 1, height, width), weight, 0.5)
    for index in (0, 1, height // 2, height - 2, height - 1):
        expected = (0.5 * (1.5 * row.float()).relu()).half()[0, 0, 0]  # a filter of one entry: (1 - strength) * relu(p)
        torch.testing.assert_close(out[0, 0, index], expected, rtol=2e-3, atol=1e-3)


# ---- random cases ----------------------------------------------------------------------------------------------------


@given(
    case=random_cases(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    weight_layout=st.sampled_from(LAYOUTS),
)
def test_random_cases(backend, case, dtype, layout, weight_layout):
    tensors = case.tensors(dtype, backend.device, layout=layout, weight_layout=weight_layout)
    with poisoned():
        check_values(case, tensors)
