"""push_pull_conv2d: right gradients, once and twice, for every option, dtype and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

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
    gradient_names,
    gradients,
    random,
    random_cases,
    smooth_gradient,
    with_layout,
)


def check_gradients(case: Case, tensors: Tensors, grad_out: torch.Tensor, **more) -> None:
    found = gradients(case, push_pull_conv2d, tensors, grad_out, **more)
    plain = gradients(case, reference.push_pull_conv2d, tensors, grad_out)
    exact = gradients(case, reference.push_pull_conv2d, tensors.double(), grad_out.double())
    magnitudes = reference.sums_of_magnitudes(
        grad_out, tensors.input, tensors.weight, tensors.inhibition, **case.options()
    )
    accumulated = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    for name, got, expected, ref in zip(gradient_names(tensors), found, plain, exact, strict=True):
        slack = torch.finfo(accumulated).eps * magnitudes[name]
        assert_close_to_reference(got, expected, ref, slack=slack, what=f"grad of {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", [*CASES, *CHANNEL_CASES], ids=str)
def test_matches_autograd_of_two_convolutions(backend, case, dtype):
    tensors = case.tensors(dtype, backend.device)
    check_gradients(case, tensors, smooth_gradient(case, tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["stem", "depthwise", "groups_wide", "pool_wide_window", "reflect", "wide_both"])
def test_push_response_computed_again(backend, name, dtype):
    case = BY_NAME[name]
    tensors = case.tensors(dtype, backend.device)
    check_gradients(case, tensors, smooth_gradient(case, tensors), keep_push=False)


@pytest.mark.parametrize("name", ["stem", "depthwise_multiplied", "pool_beyond_map", "stride_dilation", "wide_map"])
def test_keeping_the_push_response_changes_nothing(backend, name):
    case = BY_NAME[name]
    tensors = case.tensors(torch.float64, backend.device)
    grad_out = random(tuple(case.call(push_pull_conv2d, tensors).shape), 5, torch.float64, backend.device)
    kept = gradients(case, push_pull_conv2d, tensors, grad_out, keep_push=True)
    again = gradients(case, push_pull_conv2d, tensors, grad_out, keep_push=False)
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "channels_last", "expanded"])
@pytest.mark.parametrize("name", ["stem", "depthwise_multiplied", "wide_both"])
def test_any_layout_of_the_gradient(backend, name, layout, grad_layout):
    case = BY_NAME[name]
    weight_layout = {"sliced": "transposed", "expanded": "sliced"}.get(layout, layout)
    tensors = case.tensors(torch.float64, backend.device, layout=layout, weight_layout=weight_layout)
    shape = tuple(case.call(push_pull_conv2d, tensors).shape)
    grad_out = with_layout(random(shape, 5, torch.float64, backend.device), grad_layout)
    check_gradients(case, tensors, grad_out)


@pytest.mark.parametrize("keep_push", [True, False])
@pytest.mark.parametrize("name", ["stem", "groups", "pool_wide_window"])
def test_summed_output(backend, name, keep_push):
    # sum() sends a gradient whose strides are all zero.
    case = BY_NAME[name]
    tensors = case.tensors(torch.float64, backend.device)
    found, wanted = (tensors.leaves() for _ in range(2))
    case.call(push_pull_conv2d, found, keep_push=keep_push).sum().backward()
    case.call(reference.push_pull_conv2d, wanted).sum().backward()
    for got, expected in zip(found.all(), wanted.all(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_have_the_layout_of_their_tensors(backend, layout):
    case = BY_NAME["stem"]
    tensors = case.tensors(device=backend.device, layout=layout, weight_layout=layout)
    grad_out = smooth_gradient(case, tensors)
    for name, grad, tensor in zip(
        gradient_names(tensors), gradients(case, push_pull_conv2d, tensors, grad_out), tensors.all(), strict=True
    ):
        assert grad.dtype == tensor.dtype, name
        if tensor.dim() == 4:
            wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            assert grad.is_contiguous(memory_format=wanted), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=dtype_id)
def test_float32_inhibition_and_bias_get_float32_gradients(backend, dtype):
    case = BY_NAME["stem"]
    tensors = case.tensors(dtype, backend.device, vector_dtype=torch.float32)
    found = gradients(case, push_pull_conv2d, tensors, smooth_gradient(case, tensors))
    assert [grad.dtype for grad in found] == [dtype, dtype, torch.float32, torch.float32]
    exact = gradients(case, reference.push_pull_conv2d, tensors.double(), smooth_gradient(case, tensors).double())
    # Sums of dtype-rounded terms, kept in float32: far closer than the dtype itself could hold.
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for got, ref in zip(found[2:], exact[2:], strict=True):
        torch.testing.assert_close(got.double(), ref, rtol=0, atol=float(eps * ref.abs().amax()))


# ---- ties ------------------------------------------------------------------------------------------------------------


def tied_weight(kind: str, device: str) -> torch.Tensor:
    weight = random((4, 3, 3, 3), 2, torch.float64, device)
    if kind == "duplicated_extremes":
        flat = weight.view(4, -1)
        flat[:, [1, 7, 20]] = -3.0
        flat[:, [0, 13]] = 3.5
        flat[2, 5] = 3.5  # one filter with a different count
    elif kind == "quantised":
        weight = (weight * 1.5).round() / 1.5
    elif kind == "constant":
        weight = weight[:, :1, :1, :1].expand(4, 3, 3, 3).contiguous()
    return weight


@pytest.mark.parametrize("keep_push", [True, False])
@pytest.mark.parametrize("kind", ["duplicated_extremes", "quantised", "constant"])
def test_ties_share_the_gradient_of_an_extreme(backend, kind, keep_push):
    case = Case("ties", out_channels=4, size=(10, 11), padding=1, pool=3)
    drawn = case.tensors(torch.float64, backend.device)
    tensors = Tensors(drawn.input, tied_weight(kind, backend.device), drawn.inhibition, drawn.bias)
    grad_out = smooth_gradient(case, tensors)
    assert grad_out.count_nonzero() > grad_out.numel() // 2
    check_gradients(case, tensors, grad_out, keep_push=keep_push)


def test_tied_entries_get_equal_shares(backend):
    # One pixel, positive input, push rectified away: the weight gradient is that of m alone plus the input's own part.
    image = torch.ones(1, 1, 2, 3, dtype=torch.float64, device=backend.device)
    weight = torch.tensor([1.0, 1.0, 3.0, 3.0, 3.0, 2.0], dtype=torch.float64, device=backend.device).view(1, 1, 2, 3)
    weight.requires_grad_()
    push_pull_conv2d(image, weight, -1.0).sum().backward()
    # y = sum(w) + sum(m - w) = 6 m, so the gradient is 6 times that of min + max.
    expected = 6 * torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 0], dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(weight.grad.flatten(), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_ties_in_a_strided_weight(backend, layout):
    case = Case("ties", out_channels=4, size=(10, 11), padding=1)
    drawn = case.tensors(torch.float64, backend.device)
    weight = with_layout(tied_weight("duplicated_extremes", backend.device), layout)
    tensors = Tensors(drawn.input, weight, drawn.inhibition, drawn.bias)
    check_gradients(case, tensors, smooth_gradient(case, tensors))


# ---- the range of each input channel ---------------------------------------------------------------------------------


@channel_range
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["channel_stem", "channel_groups_wide", "channel_pool_wide_window", "channel_reflect"])
def test_channel_range_with_the_push_response_computed_again(backend, name, dtype):
    case = CHANNEL_BY_NAME[name]
    tensors = case.tensors(dtype, backend.device)
    check_gradients(case, tensors, smooth_gradient(case, tensors), keep_push=False)


@channel_range
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["channel_stem", "channel_few_deep_groups"])
def test_channel_range_with_any_layout(backend, name, layout):
    case = CHANNEL_BY_NAME[name]
    tensors = case.tensors(torch.float64, backend.device, layout=layout, weight_layout=layout)
    shape = tuple(case.call(push_pull_conv2d, tensors).shape)
    grad_out = with_layout(random(shape, 5, torch.float64, backend.device), layout)
    check_gradients(case, tensors, grad_out)


@channel_range
@pytest.mark.parametrize("keep_push", [True, False])
@pytest.mark.parametrize("kind", ["duplicated_extremes", "quantised", "constant"])
def test_channel_range_shares_among_ties(backend, kind, keep_push):
    case = Case("ties", out_channels=4, size=(10, 11), padding=1, pool=3, range_dims="channel")
    drawn = case.tensors(torch.float64, backend.device)
    weight = tied_weight(kind, backend.device)
    if kind == "duplicated_extremes":
        weight[:, 2, 1, :2] = 5.0  # two greatest entries in one slice, one in the others
    tensors = Tensors(drawn.input, weight, drawn.inhibition, drawn.bias)
    grad_out = smooth_gradient(case, tensors)
    assert grad_out.count_nonzero() > grad_out.numel() // 2
    check_gradients(case, tensors, grad_out, keep_push=keep_push)


@channel_range
def test_tied_entries_of_a_slice_get_equal_shares(backend):
    # One pixel, y = sum(w x) + sum((m - w) x) = sum over channels of m_c * (sum of x over the slice): 6 x_c for each.
    slices = [[1.0, 1.0, 3.0, 3.0, 3.0, 2.0], [4.0, 4.0, 4.0, 4.0, 4.0, 4.0]]
    weight = torch.tensor(slices, dtype=torch.float64, device=backend.device).view(1, 2, 2, 3).requires_grad_()
    image = torch.tensor([1.0, 2.0], dtype=torch.float64, device=backend.device).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    push_pull_conv2d(image, weight, -1.0, range_dims="channel").sum().backward()
    shares = [[6 / 2, 6 / 2, 6 / 3, 6 / 3, 6 / 3, 0], [12 * 2 / 6] * 6]
    expected = torch.tensor(shares, dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(weight.grad.view(2, 6), expected, rtol=1e-14, atol=1e-14)


@channel_range
@pytest.mark.parametrize("asked", [(1,), (0,), (2,), (0, 2), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("name", ["channel_stem", "channel_groups_wide"])
def test_channel_range_gives_the_same_gradients_whichever_are_wanted(backend, name, asked):
    case = CHANNEL_BY_NAME[name]
    tensors = case.tensors(device=backend.device)
    grad_out = smooth_gradient(case, tensors)
    everything = gradients(case, push_pull_conv2d, tensors, grad_out)
    leaves = tensors.map(lambda t: t.detach())
    for index in asked:
        leaves.all()[index].requires_grad_()
    case.call(push_pull_conv2d, leaves).backward(grad_out)
    for index in asked:
        assert torch.equal(leaves.all()[index].grad, everything[index])


@channel_range
@given(
    case=random_cases("channel"),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    layout=st.sampled_from(LAYOUTS),
    keep_push=st.booleans(),
)
def test_random_cases_of_channel_range(backend, case, dtype, layout, keep_push):
    tensors = case.tensors(dtype, backend.device, layout=layout)
    check_gradients(case, tensors, smooth_gradient(case, tensors), keep_push=keep_push)


# ---- finite differences ----------------------------------------------------------------------------------------------

GRADCHECK = [
    Case("pool_0", size=(5, 6), padding=1, out_channels=2),
    Case("pool_3", size=(5, 6), padding=1, out_channels=2, pool=3),
    Case("pool_5", size=(5, 6), padding=1, out_channels=2, pool=5),
    Case("groups", in_channels=4, out_channels=4, groups=2, size=(5, 5), stride=(2, 1), padding=1, pool=3),
    Case("depthwise", in_channels=3, out_channels=3, groups=3, size=(5, 5), padding=1),
    Case("stride_dilation", size=(8, 7), stride=2, dilation=2, padding=2, out_channels=2, pool=3),
    Case("number", size=(5, 5), strength=0.8, out_channels=2, bias=False),
    Case("reflect", size=(5, 5), padding=2, padding_mode="reflect", out_channels=2, pool=3),
]
GRADCHECK_CHANNEL = [
    pytest.param(case.but(range_dims="channel"), id=f"channel_{case.name}", marks=channel_range) for case in GRADCHECK
]


def as_function(case: Case, tensors: Tensors, **more):
    """A function of the tensor arguments alone, for the checkers."""
    names = gradient_names(tensors)

    def function(*values: torch.Tensor) -> torch.Tensor:
        given = {"input": None, "weight": None, "inhibition": tensors.inhibition, "bias": None}
        given.update(zip(names, values, strict=True))
        return case.call(push_pull_conv2d, Tensors(**given), **more)

    return function


@pytest.mark.parametrize("keep_push", [True, False])
@pytest.mark.parametrize("case", [*GRADCHECK, *GRADCHECK_CHANNEL], ids=str)
def test_gradcheck(backend, case, keep_push):
    leaves = case.tensors(torch.float64, backend.device).leaves()
    assert torch.autograd.gradcheck(as_function(case, leaves, keep_push=keep_push), leaves.all(), fast_mode=True)


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
@pytest.mark.parametrize("case", [*GRADCHECK[:4], *GRADCHECK_CHANNEL[:4]], ids=str)
def test_gradcheck_entry_by_entry(backend, case):
    leaves = case.but(batch=1).tensors(torch.float64).leaves()
    assert torch.autograd.gradcheck(as_function(case, leaves), leaves.all())


@pytest.mark.parametrize("case", [*GRADCHECK, *GRADCHECK_CHANNEL], ids=str)
def test_gradgradcheck(backend, case):
    leaves = case.tensors(torch.float64, backend.device).leaves()
    assert torch.autograd.gradgradcheck(as_function(case, leaves), leaves.all(), fast_mode=True)


@pytest.mark.parametrize(
    "name", ["stem", "groups", "pool_beyond_map", pytest.param("channel_groups", marks=channel_range)]
)
def test_gradient_penalty_matches_reference(backend, name):
    case = {**BY_NAME, **CHANNEL_BY_NAME}[name]

    def penalty_gradients(function) -> tuple[torch.Tensor, ...]:
        leaves = case.tensors(torch.float64, backend.device).leaves()
        out = case.call(function, leaves)
        (grad_input,) = torch.autograd.grad(out.square().sum(), [leaves.input], create_graph=True)
        return torch.autograd.grad(grad_input.square().sum(), leaves.all()[:3])

    found = penalty_gradients(push_pull_conv2d)
    wanted = penalty_gradients(reference.push_pull_conv2d)
    for got, expected in zip(found, wanted, strict=True):
        assert expected.abs().amax() > 0
        torch.testing.assert_close(got, expected, rtol=0, atol=float(1e-11 * expected.abs().amax()))


# ---- only what is asked for ------------------------------------------------------------------------------------------


class BackwardCalls(TorchDispatchMode):
    """Records the gradients that each call of the backward op was asked for and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[tuple[bool, ...]] = []
        self.sizes: list[list[int]] = []
        self.kept_push: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "push_pull_conv2d_backward" in str(function):
            self.wanted.append(tuple(args[-4:]))
            self.sizes.append([grad.numel() for grad in out])
            self.kept_push.append(args[5] is not None)
        return out


@pytest.mark.parametrize("asked", [(1,), (0,), (2,), (3,), (1, 3), (0, 2), (1, 2, 3), (0, 1, 2, 3)], ids=str)
def test_computes_no_gradient_that_nobody_wants(backend, asked):
    case = BY_NAME["stem"]
    tensors = case.tensors(torch.float64, backend.device)
    grad_out = smooth_gradient(case, tensors)
    everything = gradients(case, push_pull_conv2d, tensors, grad_out)
    leaves = tensors.map(lambda t: t.detach())
    for index in asked:
        leaves.all()[index].requires_grad_()
    with BackwardCalls() as calls:
        case.call(push_pull_conv2d, leaves).backward(grad_out)
    assert calls.wanted == [tuple(index in asked for index in range(4))]
    assert calls.sizes == [[t.numel() if index in asked else 0 for index, t in enumerate(leaves.all())]]
    for index, leaf in enumerate(leaves.all()):
        if index in asked:
            torch.testing.assert_close(leaf.grad, everything[index], rtol=1e-13, atol=1e-12)
        else:
            assert leaf.grad is None


def test_input_without_gradient_gets_none(backend):
    case = BY_NAME["plain"]
    leaves = case.tensors(device=backend.device).leaves()
    image = leaves.input.detach()
    out = case.call(push_pull_conv2d, Tensors(image, leaves.weight, leaves.inhibition, leaves.bias))
    out.sum().backward()
    assert image.grad is None
    assert leaves.weight.grad is not None


def test_no_gradient_mode_keeps_nothing(backend):
    case = BY_NAME["plain"]
    leaves = case.tensors(device=backend.device).leaves()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not case.call(push_pull_conv2d, leaves).requires_grad


def kept_bytes(case: Case, leaves: Tensors, **more) -> int:
    """Bytes of the distinct storages that autograd holds after forward, weight, inhibition and bias left out."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = case.call(push_pull_conv2d, leaves, **more)
    for parameter in leaves.all()[1:]:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last"])
def test_keeps_the_input_and_one_map(backend, dtype, layout):
    case = BY_NAME["stem"]
    leaves = case.tensors(dtype, backend.device, layout=layout).leaves()
    out = case.call(push_pull_conv2d, leaves)
    image_bytes = leaves.input.untyped_storage().nbytes()
    map_bytes = out.numel() * out.element_size()
    per_filter = 64 * case.out_channels
    assert kept_bytes(case, leaves) <= image_bytes + map_bytes + per_filter
    assert kept_bytes(case, leaves, keep_push=False) <= image_bytes + per_filter


def test_keeps_one_padded_input(backend):
    case = BY_NAME["reflect"]
    leaves = case.tensors(device=backend.device).leaves()
    out = case.call(push_pull_conv2d, leaves)
    padded = reference.pad(leaves.input, case.padding, case.kernel, case.dilation, case.padding_mode)
    limit = 4 * (leaves.input.numel() + padded.numel() + out.numel()) + 64 * case.out_channels
    assert kept_bytes(case, leaves) <= limit


def test_backward_twice_needs_retain_graph(backend):
    case = BY_NAME["plain"]
    leaves = case.tensors(device=backend.device).leaves()
    out = case.call(push_pull_conv2d, leaves).sum()
    out.backward(retain_graph=True)
    once = leaves.weight.grad.clone()
    out.backward()
    torch.testing.assert_close(leaves.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


@given(
    case=random_cases(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    layout=st.sampled_from(LAYOUTS),
    grad_layout=st.sampled_from(LAYOUTS),
    keep_push=st.booleans(),
)
def test_random_cases(backend, case, dtype, layout, grad_layout, keep_push):
    tensors = case.tensors(dtype, backend.device, layout=layout)
    grad_out = smooth_gradient(case, tensors)
    if grad_layout == "expanded" and grad_out.numel():
        # One image's gradient for all of them: zero wherever it is zero for any.
        grad_out = (grad_out * (grad_out != 0).all(dim=0, keepdim=True))[:1].expand(grad_out.shape)
    else:
        grad_out = with_layout(grad_out, grad_layout)
    check_gradients(case, tensors, grad_out, keep_push=keep_push)
