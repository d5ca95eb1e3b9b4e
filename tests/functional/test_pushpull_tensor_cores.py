"""push_pull_conv2d on tensor cores (float16, bfloat16, tf32): tiles, words and layouts of every kind, and error bounds.

The kernels take groups of eight filters and more and pools up to 7; other calls of these dtypes go to the plain
kernels, which the other files test.
"""

from __future__ import annotations

import pytest
import torch

from reference import pushpull as reference
from reference.pushpull import assert_close_to_reference
from sturdy.functional import push_pull_conv2d
from support import Case, Tensors, dtype_id, gradient_names, random, smooth_gradient, with_layout
from support import uninitialized_memory_is_nan as poisoned

pytestmark = pytest.mark.parametrize(
    "backend",
    [pytest.param("simt", marks=pytest.mark.simt), pytest.param("cuda", marks=pytest.mark.cuda)],
    indirect=True,
)

# Tiles are 32, 16 or 8 pixels wide and hold 512, with 32 filters at a time; words are two channels, two taps or, for
# tf32, one element; the gradients have tiles of 1024 and 256 pixels and 160 taps.
CASES = [
    Case("stem", batch=1, size=(37, 61), kernel=(7, 7), stride=2, padding=3, out_channels=40, pool=3),
    Case("stem_small", size=(9, 10), out_channels=8, padding=1, pool=5),
    Case("one_channel", in_channels=1, size=(19, 35), out_channels=8, padding=1, pool=3),
    Case("columns_and_rows", batch=1, size=(36, 66), out_channels=9, padding=1, pool=3),
    Case("columns_and_rows_7", batch=1, size=(35, 64), out_channels=8, padding=1, pool=7),
    Case("no_pool", batch=1, size=(20, 40), out_channels=33, padding=1),
    Case("pool_rectangle", batch=1, size=(21, 36), out_channels=8, padding=1, pool=(3, 5)),
    Case("pool_rows", size=(18, 12), out_channels=8, pool=(7, 1)),
    Case("channels_16", in_channels=16, out_channels=24, size=(12, 12), padding=1, pool=3),
    Case("channels_40", batch=1, in_channels=40, out_channels=12, size=(17, 34), padding=1, pool=3),
    Case("channels_64", batch=1, in_channels=64, out_channels=72, size=(9, 17), padding=1, pool=5),
    Case("odd_channels", in_channels=5, out_channels=13, size=(9, 11), padding=1, pool=3),
    Case("one_by_one", in_channels=24, out_channels=16, kernel=(1, 1), size=(7, 9), pool=3),
    Case("groups", in_channels=12, out_channels=24, groups=2, size=(10, 18), padding=1, pool=3),
    Case("groups_of_one_channel", in_channels=3, out_channels=24, groups=3, size=(9, 12), padding=1, pool=3),
    Case("strides", in_channels=4, out_channels=8, size=(23, 30), stride=(3, 2), kernel=(5, 3), padding=2, pool=3),
    Case("stride_beyond_kernel", out_channels=8, size=(17, 20), stride=(3, 4), kernel=(2, 3), pool=3),
    Case("dilation", in_channels=6, out_channels=8, size=(15, 18), dilation=(2, 3), padding=3, pool=3),
    Case("dilation_stride", out_channels=8, size=(19, 21), dilation=(1, 2), stride=(2, 1), padding=(0, 2), pool=5),
    Case("even_kernel", out_channels=8, size=(9, 13), kernel=(4, 6), padding="same", pool=3),
    Case("wide_kernel", batch=1, in_channels=2, out_channels=8, size=(13, 15), kernel=(13, 13), padding=6, pool=3),
    Case("far_padding", out_channels=8, size=(5, 4), kernel=(2, 2), padding=4, pool=3),
    Case("one_pixel", batch=3, in_channels=8, out_channels=8, size=(3, 3), pool=5),
    Case("number", in_channels=9, out_channels=10, size=(8, 16), padding=1, pool=3, strength=-0.5, bias=False),
]
BY_NAME = {case.name: case for case in CASES}
HALF = [torch.bfloat16, torch.float16]


def tf32(values: torch.Tensor) -> torch.Tensor:
    """The nearest numbers of 10 fraction bits, halves away from zero."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).view(values.shape)


def check_values(case: Case, tensors: Tensors, out: torch.Tensor) -> None:
    plain = case.call(reference.push_pull_conv2d, tensors)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    assert_close_to_reference(out, plain, exact, what=str(case), factor=1.0)


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_errs_no_more_than_two_convolutions(backend, case, dtype):
    tensors = case.tensors(dtype, backend.device)
    with poisoned():
        out = case.call(push_pull_conv2d, tensors)
    check_values(case, tensors, out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tf32_errs_by_the_rounding_of_its_operands(backend, case):
    tensors = case.tensors(torch.float32, backend.device)
    out = case.call(push_pull_conv2d, tensors, allow_tf32=True)
    exact = case.call(reference.push_pull_conv2d, tensors.double())
    # Each operand errs by 2^-11 of itself, so a product by 2^-10 and a little more: in p and, through the average of p,
    # in u. The box is not rounded.
    image, weight = tensors.input.double().abs(), tensors.weight.double().abs()
    products = reference.responses(image, weight, **case.options())[0].amax()
    strength = tensors.inhibition.double().abs().amax() if isinstance(tensors.inhibition, torch.Tensor) else 1.0
    bound = (1 + strength) * products * 2.0**-10 * 1.01
    assert (out.double() - exact).abs().amax() <= bound
    # It did round: with operands rounded beforehand nothing changes but the box and the order of sums.
    rounded = Tensors(tf32(tensors.input), tf32(tensors.weight), tensors.inhibition, tensors.bias)
    near = case.call(push_pull_conv2d, rounded, allow_tf32=True)
    ieee = case.call(push_pull_conv2d, rounded, allow_tf32=False)
    assert (near.double() - ieee.double()).abs().amax() <= 2.0**-18 * (1 + strength) * products


def test_tf32_is_off_unless_allowed(backend):
    case = BY_NAME["channels_16"]
    tensors = case.tensors(torch.float32, backend.device)
    ieee = case.call(push_pull_conv2d, tensors, allow_tf32=False)
    allowed = case.call(push_pull_conv2d, tensors, allow_tf32=True)
    assert torch.equal(case.call(push_pull_conv2d, tensors), ieee)
    assert not torch.equal(allowed, ieee)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(case.call(push_pull_conv2d, tensors), allowed)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=dtype_id)
@pytest.mark.parametrize("name", ["stem", "channels_16", "channels_40", "odd_channels", "groups", "no_pool"])
def test_layouts_change_no_bit(backend, name, dtype, layout):
    case = BY_NAME[name]
    expected = case.call(push_pull_conv2d, case.tensors(dtype, backend.device), allow_tf32=True)
    weight_layout = "transposed" if layout == "sliced" else layout
    strided = case.tensors(dtype, backend.device, layout=layout, weight_layout=weight_layout)
    with poisoned():
        out = case.call(push_pull_conv2d, strided, allow_tf32=True)
    assert out.is_contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    # Rows of a channels-last tile are walked in the same order, but the windows' sums are formed in another.
    tolerance = 2 * torch.finfo(dtype).eps if layout == "channels_last" else 0.0
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=float(tolerance * expected.abs().amax()))


def test_unaligned_tensors(backend):
    case = BY_NAME["channels_16"]
    tensors = case.tensors(torch.bfloat16, backend.device)
    expected = case.call(push_pull_conv2d, tensors)
    for layout in ("contiguous", "channels_last"):
        image = with_layout(tensors.input, layout)
        memory = image.new_empty(image.numel() + 1)[1:]  # two bytes past every alignment
        moved = memory.as_strided(image.shape, image.stride()).copy_(image)
        out = case.call(push_pull_conv2d, Tensors(moved, tensors.weight, tensors.inhibition, tensors.bias))
        torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=dtype_id)
def test_a_nan_stays_in_the_windows_that_hold_it(backend, dtype):
    # The summed axis is filled up with words of zero weights, whose input may be anything.
    for kernel in [(3, 3), (2, 5), (1, 1)]:
        case = Case("nan", batch=1, in_channels=3, out_channels=8, size=(9, 40), kernel=kernel, strength=1.0)
        tensors = case.tensors(dtype, backend.device)
        tensors.input[0, 1, 4, 17] = float("nan")
        found = case.call(push_pull_conv2d, tensors, allow_tf32=True).isnan()
        expected = case.call(reference.push_pull_conv2d, tensors.double()).isnan()
        assert torch.equal(found, expected)


# ---- gradients -------------------------------------------------------------------------------------------------------


def wanted_gradients(case: Case, function, tensors: Tensors, grad_out, wants_input: bool, **more) -> dict:
    leaves = tensors.leaves()
    names = gradient_names(tensors)
    if not wants_input:
        leaves.input.requires_grad_(False)
        names = names[1:]
    out = case.call(function, leaves, **more)
    sources = [t for t in leaves.all() if t.requires_grad]
    return dict(zip(names, torch.autograd.grad(out, sources, grad_out), strict=True))


def check_gradients(case: Case, tensors: Tensors, wants_input: bool, **more) -> None:
    grad_out = smooth_gradient(case, tensors)
    with poisoned():
        found = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, wants_input, **more)
    plain = wanted_gradients(case, reference.push_pull_conv2d, tensors, grad_out, wants_input)
    exact = wanted_gradients(case, reference.push_pull_conv2d, tensors.double(), grad_out.double(), wants_input)
    magnitudes = reference.sums_of_magnitudes(
        grad_out, tensors.input, tensors.weight, tensors.inhibition, **case.options()
    )
    # Of every term, the operands of the product are rounded: to tf32, or gp to the type of the tensors.
    eps = 2.0**-10 if tensors.input.dtype == torch.float32 else torch.finfo(torch.float32).eps
    for name in found:
        slack = 2 * eps * magnitudes[name]
        assert_close_to_reference(found[name], plain[name], exact[name], slack=slack, what=f"{case}: {name}")


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_the_parameters(backend, case, dtype):
    check_gradients(case, case.tensors(dtype, backend.device), wants_input=False)


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
@pytest.mark.parametrize("name", ["channels_16", "channels_40", "one_by_one", "one_pixel", "number"])
def test_gradients_of_everything(backend, name, dtype):
    check_gradients(BY_NAME[name], BY_NAME[name].tensors(dtype, backend.device), wants_input=True)


@pytest.mark.parametrize("wants_input", [False, True], ids=["parameters", "everything"])
@pytest.mark.parametrize("name", ["stem", "channels_16", "strides", "columns_and_rows", "pool_rectangle", "number"])
def test_gradients_in_tf32(backend, name, wants_input):
    case = BY_NAME[name]
    tensors = case.tensors(torch.float32, backend.device)
    # Operands rounded beforehand: a response close to zero is then rectified the same way everywhere.
    rounded = Tensors(tf32(tensors.input), tf32(tensors.weight), tensors.inhibition, tensors.bias)
    check_gradients(case, rounded, wants_input, allow_tf32=True)


@pytest.mark.parametrize("name", ["stem", "channels_16", "groups", "no_pool", "pool_rectangle"])
def test_push_response_computed_again(backend, name):
    case = BY_NAME[name]
    tensors = case.tensors(torch.bfloat16, backend.device)
    check_gradients(case, tensors, wants_input=False, keep_push=False)
    grad_out = smooth_gradient(case, tensors)
    kept = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False, keep_push=True)
    again = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False, keep_push=False)
    for name in kept:
        assert torch.equal(kept[name], again[name])


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=dtype_id)
def test_gradients_do_not_see_input_that_no_window_meets(backend, dtype):
    # One word of pixels holds the input under a pixel of the map and under its neighbour beyond the map's edge.
    case = Case("gaps", batch=2, out_channels=8, size=(10, 21), stride=(3, 4), kernel=(2, 2), pool=3, strength=1.0)
    tensors = case.tensors(dtype, backend.device)
    grad_out = random((2, 8, 3, 5), 5, dtype, backend.device)
    expected = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False, allow_tf32=True)
    tensors.input[:, :, 8:] = float("nan")
    tensors.input[:, :, 2::3] = float("nan")
    tensors.input[:, :, :, 2::4] = float("nan")
    tensors.input[:, :, :, 3::4] = float("nan")
    tensors.input[:, :, :, 20:] = float("nan")
    found = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False, allow_tf32=True)
    for name in expected:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("name", ["stem", "channels_16", "groups"])
def test_gradients_of_any_layout(backend, name, layout):
    case = BY_NAME[name]
    tensors = case.tensors(torch.bfloat16, backend.device, layout=layout)
    contiguous = tensors.map(lambda t: t.contiguous())
    grad_out = with_layout(smooth_gradient(case, contiguous), layout)
    expected = wanted_gradients(case, push_pull_conv2d, contiguous, grad_out.contiguous(), False)
    found = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False)
    for name, gradient in found.items():
        atol = float(expected[name].abs().amax()) * 0.02
        torch.testing.assert_close(gradient, expected[name], rtol=0.02, atol=atol)


def test_repeats_bit_by_bit(backend):
    case = BY_NAME["stem"]
    tensors = case.tensors(torch.bfloat16, backend.device)
    grad_out = random(tuple(case.call(push_pull_conv2d, tensors).shape), 5, torch.bfloat16, backend.device)
    first = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False)
    second = wanted_gradients(case, push_pull_conv2d, tensors, grad_out, False)
    for name in first:
        assert torch.equal(first[name], second[name])
