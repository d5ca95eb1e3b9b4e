"""push_pull_conv2d: every bad input gives its documented exception, with words that help."""

from __future__ import annotations

import pytest
import torch

import sturdy
from sturdy.functional import push_pull_conv2d
from support import random


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


IMAGE = (2, 4, 8, 9)
FILTERS = (6, 4, 3, 3)

# name: (changed arguments, exception, words that the message must have)
BAD = {
    # shapes of tensors
    "input_2d": (dict(input=zeros(8, 9)), ValueError, ["input", "(8, 9)", "(6, 4, 3, 3)"]),
    "input_5d": (dict(input=zeros(1, 2, 4, 8, 9)), ValueError, ["input", "(1, 2, 4, 8, 9)"]),
    "weight_3d": (dict(weight=zeros(4, 3, 3)), ValueError, ["weight", "(4, 3, 3)"]),
    "channels": (dict(input=zeros(2, 5, 8, 9)), ValueError, ["weight", "5", "input channels", "(6, 4, 3, 3)"]),
    "channels_unbatched": (dict(input=zeros(3, 8, 9)), ValueError, ["weight", "3", "input channels"]),
    "no_channels": (dict(input=zeros(2, 0, 8, 9), weight=zeros(6, 0, 3, 3)), ValueError, ["channels", "at least 1"]),
    "no_kernel_rows": (dict(weight=zeros(6, 4, 0, 3)), ValueError, ["kernel height", "at least 1", "0"]),
    "no_kernel_columns": (dict(weight=zeros(6, 4, 3, 0)), ValueError, ["kernel width", "at least 1", "0"]),
    "bias_length": (dict(bias=zeros(5)), ValueError, ["bias", "(6,)", "(5,)"]),
    "bias_2d": (dict(bias=zeros(6, 1)), ValueError, ["bias", "(6,)", "(6, 1)"]),
    "inhibition_length": (dict(inhibition=zeros(5)), ValueError, ["inhibition", "(6,)", "(1, 6, 1, 1)", "(5,)"]),
    "inhibition_shape": (dict(inhibition=zeros(6, 1, 1)), ValueError, ["inhibition", "(6, 1, 1)"]),
    # options
    "groups_zero": (dict(groups=0), ValueError, ["groups", "at least 1", "0"]),
    "groups_negative": (dict(groups=-2), ValueError, ["groups", "at least 1", "-2"]),
    "groups_input": (
        dict(groups=3, weight=zeros(6, 1, 3, 3)),
        ValueError,
        ["input channels", "divisible by groups", "4"],
    ),
    "groups_output": (
        dict(groups=2, weight=zeros(5, 2, 3, 3)),
        ValueError,
        ["output channels", "divisible by groups", "5"],
    ),
    "stride_zero": (dict(stride=0), ValueError, ["stride", "at least 1", "0"]),
    "stride_zero_in_pair": (dict(stride=(1, 0)), ValueError, ["stride", "at least 1"]),
    "stride_negative": (dict(stride=-1), ValueError, ["stride", "at least 1", "-1"]),
    "stride_three": (dict(stride=(1, 1, 1)), ValueError, ["stride", "one or two integers"]),
    "stride_fraction": (dict(stride=1.5), (TypeError, ValueError), ["push_pull_conv2d", "stride", "1.5"]),
    "dilation_zero": (dict(dilation=0), ValueError, ["dilation", "at least 1", "0"]),
    "padding_negative": (dict(padding=-1), ValueError, ["padding", "at least 0", "-1"]),
    "padding_negative_in_pair": (dict(padding=(0, -2)), ValueError, ["padding", "at least 0"]),
    "padding_four": (dict(padding=(1, 1, 1, 1)), ValueError, ["padding", "one or two integers"]),
    "padding_word": (dict(padding="full"), ValueError, ["padding", "'valid'", "'same'", "'full'"]),
    "padding_fraction": (dict(padding=0.5), (TypeError, ValueError), ["push_pull_conv2d", "padding", "0.5"]),
    "same_with_stride": (dict(padding="same", stride=2), ValueError, ["'same'", "stride"]),
    "same_with_stride_in_pair": (dict(padding="same", stride=(1, 2)), ValueError, ["'same'", "stride"]),
    "padding_mode": (dict(padding_mode="mirror", padding=1), ValueError, ["padding_mode", "'reflect'", "'mirror'"]),
    "padding_mode_unused": (dict(padding_mode="mirror"), ValueError, ["padding_mode", "'reflect'", "'mirror'"]),
    "reflect_too_far": (dict(padding_mode="reflect", padding=8), ValueError, ["padding", "'reflect'", "height", "8"]),
    "reflect_too_far_wide": (
        dict(padding_mode="reflect", padding=(1, 9)),
        ValueError,
        ["padding", "'reflect'", "width", "9"],
    ),
    "circular_too_far": (dict(padding_mode="circular", padding=9), ValueError, ["padding", "'circular'", "9", "8"]),
    "pool_even": (dict(avg_kernel_size=2), ValueError, ["avg_kernel_size", "odd", "2"]),
    "pool_even_in_pair": (dict(avg_kernel_size=(3, 4)), ValueError, ["avg_kernel_size", "odd", "4"]),
    "pool_zero_in_pair": (dict(avg_kernel_size=(3, 0)), ValueError, ["avg_kernel_size", "odd"]),
    "pool_negative": (dict(avg_kernel_size=-3), ValueError, ["avg_kernel_size", "odd", "-3"]),
    "pool_three": (dict(avg_kernel_size=(3, 3, 3)), ValueError, ["avg_kernel_size", "one or two integers"]),
    "pool_fraction": (
        dict(avg_kernel_size=2.5),
        (TypeError, ValueError),
        ["push_pull_conv2d", "avg_kernel_size", "2.5"],
    ),
    "range_dims": (dict(range_dims="row"), ValueError, ["range_dims", "'filter'", "'row'"]),
    # the kernel does not fit: RuntimeError too, as torch's own
    "kernel_high": (dict(input=zeros(2, 4, 2, 9)), RuntimeError, ["kernel height", "3", "padded input", "2"]),
    "kernel_wide": (dict(input=zeros(2, 4, 8, 2)), RuntimeError, ["kernel width", "3", "padded input", "2"]),
    "kernel_dilated": (dict(dilation=4), RuntimeError, ["kernel height", "9", "padded input", "8"]),
    "kernel_on_empty_map": (dict(input=zeros(2, 4, 0, 9)), RuntimeError, ["kernel height", "padded input", "0"]),
    # dtypes
    "input_int": (dict(input=zeros(*IMAGE, dtype=torch.int32)), TypeError, ["input", "float32", "int32"]),
    "input_uint8": (dict(input=zeros(*IMAGE, dtype=torch.uint8)), TypeError, ["input", "float32", "uint8"]),
    "input_bool": (dict(input=zeros(*IMAGE, dtype=torch.bool)), TypeError, ["input", "float32", "bool"]),
    "input_complex": (dict(input=zeros(*IMAGE, dtype=torch.complex64)), TypeError, ["input", "float32", "complex64"]),
    "all_int": (
        dict(input=zeros(*IMAGE, dtype=torch.int64), weight=zeros(*FILTERS, dtype=torch.int64)),
        TypeError,
        ["input", "int64"],
    ),
    "weight_dtype": (
        dict(weight=zeros(*FILTERS, dtype=torch.float64)),
        TypeError,
        ["weight", "dtype of input", "float32", "float64"],
    ),
    "weight_half": (dict(weight=zeros(*FILTERS, dtype=torch.bfloat16)), TypeError, ["weight", "float32", "bfloat16"]),
    "bias_dtype": (dict(bias=zeros(6, dtype=torch.float64)), TypeError, ["bias", "float32", "float64"]),
    "bias_int": (dict(bias=zeros(6, dtype=torch.int64)), TypeError, ["bias", "float32", "int64"]),
    "inhibition_dtype": (
        dict(inhibition=zeros(6, dtype=torch.float16)),
        TypeError,
        ["inhibition", "float32", "float16"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(backend, name):
    changes, exception, words = BAD[name]
    arguments = {"input": zeros(*IMAGE), "weight": zeros(*FILTERS), **changes}
    moved = {
        key: value.to(backend.device) if isinstance(value, torch.Tensor) else value for key, value in arguments.items()
    }
    with pytest.raises(exception) as caught:
        push_pull_conv2d(**moved)
    message = str(caught.value)
    assert message.startswith("push_pull_conv2d: "), message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert "[sturdy:" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["channels", "groups_input", "bias_length", "kernel_high", "input_2d", "inhibition_shape"]
)
def test_shape_errors_are_value_and_runtime_errors(backend, name):
    changes, _, _ = BAD[name]
    arguments = {"input": zeros(*IMAGE), "weight": zeros(*FILTERS), **changes}
    with pytest.raises(sturdy.ShapeError) as caught:
        push_pull_conv2d(
            **{k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        )
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)


def test_error_names_no_other_exception_as_its_cause(backend):
    # The exception of the op library is not what a user should have to read.
    with pytest.raises(ValueError) as caught:
        push_pull_conv2d(zeros(*IMAGE).to(backend.device), zeros(6, 3, 3, 3).to(backend.device))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_failed_call_leaves_the_next_one_alone(backend):
    image, weight = torch.ones(IMAGE, device=backend.device), torch.ones(FILTERS, device=backend.device)
    expected = push_pull_conv2d(image, weight)
    with pytest.raises(ValueError):
        push_pull_conv2d(image, weight[:, :3])
    assert torch.equal(push_pull_conv2d(image, weight), expected)


@pytest.mark.parametrize("option", ["stride", "dilation", "padding", "avg_kernel_size"])
@pytest.mark.parametrize("huge", [2**31 + 1, 2**33 + 1, 2**40 + 1, 2**62 + 1])
def test_options_far_beyond_32_bits(backend, option, huge):
    # Either right or refused at once; never a wrapped number or an endless loop.
    image = random(IMAGE, 1, device=backend.device)
    weight = random(FILTERS, 2, device=backend.device).requires_grad_()
    right = {
        "stride": lambda: push_pull_conv2d(image, weight)[:, :, :1, :1],
        "avg_kernel_size": lambda: push_pull_conv2d(image, weight, avg_kernel_size=99),
    }
    try:
        out = push_pull_conv2d(image, weight, **{option: huge})
    except (RuntimeError, NotImplementedError) as error:
        assert str(error).startswith("push_pull_conv2d: ")
        return
    expected = right[option]()  # nothing that large can be right for the other options
    torch.testing.assert_close(out, expected)
    (found,), (wanted,) = (torch.autograd.grad(map.sum(), [weight]) for map in (out, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("argument", ["weight", "bias", "inhibition"])
def test_mixed_devices(backend, argument):
    arguments = {
        "input": zeros(*IMAGE).cuda(),
        "weight": zeros(*FILTERS).cuda(),
        "bias": zeros(6).cuda(),
        "inhibition": zeros(6).cuda(),
    }
    arguments[argument] = arguments[argument].cpu()
    with pytest.raises(RuntimeError) as caught:
        push_pull_conv2d(**arguments)
    for word in (argument, "cuda", "cpu"):
        assert word in str(caught.value)


def test_backward_op_checks_its_gradient(backend):
    image, weight = torch.ones(IMAGE, device=backend.device), torch.ones(FILTERS, device=backend.device)
    options = ([1, 1], [0, 0, 0, 0], [1, 1], 1, [1, 1], False, False)
    out, push = backend.op("push_pull_conv2d")(image, weight, None, 1.0, None, *options, True)
    backward = backend.op("push_pull_conv2d_backward")
    for grad_out, kept, words in (
        (out[:, :, 1:], push, ["grad_out", r"\(2, 6, 6, 7\)", r"\(2, 6, 5, 7\)"]),
        (out.double(), push, ["grad_out", "dtype of input", "float64"]),
        (out, push[:, :5], ["push", r"\(2, 6, 6, 7\)", r"\(2, 5, 6, 7\)"]),
    ):
        with pytest.raises(RuntimeError, match=".*".join(["push_pull_conv2d_backward", *words])):
            backward(grad_out, image, weight, None, 1.0, kept, *options, True, True, True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", [1]), ("padding", [0, 0]), ("pool", [2, 2]), ("dilation", [0, 1]), ("pool", [])],
    ids=str,
)
def test_op_called_directly_with_bad_options(backend, name, value):
    options = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1, "pool": [1, 1], name: value}
    image, weight = torch.ones(IMAGE, device=backend.device), torch.ones(FILTERS, device=backend.device)
    word = "avg_kernel_size" if value == [2, 2] else name  # a list that is too short must not be read past its end
    with pytest.raises(RuntimeError, match=f"push_pull_conv2d: {word} must"):
        backend.op("push_pull_conv2d")(image, weight, None, 1.0, None, *options.values(), False, False, False)
