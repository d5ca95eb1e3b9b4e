"""wave_add: every bad input gives its documented exception, with words that help."""

from __future__ import annotations

import pytest
import torch

import sturdy
from sturdy.functional import spectrum_waves, wave_add, wave_norm


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


# name: (changed arguments, exception, words that the message must have)
BAD = {
    "input_2d": (dict(input=zeros(8, 9)), sturdy.ShapeError, ["input", "(N, C, H, W)", "(8, 9)"]),
    "input_5d": (dict(input=zeros(1, 2, 3, 8, 9)), sturdy.ShapeError, ["input", "(1, 2, 3, 8, 9)"]),
    "int64": (dict(input=zeros(2, 3, 8, 9, dtype=torch.int64)), TypeError, ["input", "int64", "[0, 1]", "uint8"]),
    "int8": (dict(input=zeros(2, 3, 8, 9, dtype=torch.int8)), TypeError, ["input", "int8"]),
    "bool": (dict(input=zeros(2, 3, 8, 9, dtype=torch.bool)), TypeError, ["input", "bool"]),
    "complex": (dict(input=zeros(2, 3, 8, 9, dtype=torch.complex64)), TypeError, ["input", "complex64"]),
    "dtype_of_float": (dict(dtype=torch.float64), TypeError, ["dtype", "float32", "float64"]),
    "dtype_int": (
        dict(input=zeros(2, 3, 8, 9, dtype=torch.uint8), dtype=torch.int32),
        TypeError,
        ["dtype", "int32"],
    ),
    "frequency_number": (dict(frequency=0.5), ValueError, ["frequency", "(K, 2)", "float"]),
    "frequency_1d": (dict(frequency=zeros(2)), ValueError, ["frequency", "(2,)"]),
    "frequency_axes": (dict(frequency=zeros(2, 3, 1, 3)), ValueError, ["frequency", "2", "axes", "(2, 3, 1, 3)"]),
    "frequency_batch": (dict(frequency=zeros(3, 3, 1, 2)), ValueError, ["frequency", "2 images", "(3, 3, 1, 2)"]),
    "frequency_channels": (dict(frequency=zeros(2, 2, 1, 2)), ValueError, ["frequency", "3 channels"]),
    "frequency_half": (dict(frequency=zeros(1, 2).half()), TypeError, ["frequency", "float32 or float64", "float16"]),
    "amplitude_batch": (dict(amplitude=zeros(4, 3, 1)), ValueError, ["amplitude", "2 images", "(4, 3, 1)"]),
    "amplitude_4d": (dict(amplitude=zeros(2, 3, 1, 1)), ValueError, ["amplitude", "(2, 3, 1, 1)"]),
    "amplitude_waves": (
        dict(frequency=zeros(2, 2), amplitude=zeros(3)),
        ValueError,
        ["amplitude", "2 waves", "(1, 1, 3)"],
    ),
    "amplitude_int": (dict(amplitude=zeros(1, dtype=torch.int64)), TypeError, ["amplitude", "int64"]),
    "phase_channels": (dict(phase=zeros(2, 2, 1)), ValueError, ["phase", "3 channels", "(2, 2, 1)"]),
    "phase_half": (dict(phase=zeros(1).bfloat16()), TypeError, ["phase", "bfloat16"]),
    "clip_order": (dict(clip=(1.0, 0.0)), ValueError, ["clip", "low <= high", "(1.0, 0.0)"]),
    "clip_nan": (dict(clip=(float("nan"), 1.0)), ValueError, ["clip", "low <= high"]),
    "clip_three": (dict(clip=(0.0, 0.5, 1.0)), ValueError, ["clip"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(backend, name):
    change, exception, words = BAD[name]
    arguments = dict(input=zeros(2, 3, 8, 9), frequency=zeros(1, 2), amplitude=1.0, phase=0.0)
    on_device = {
        k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in {**arguments, **change}.items()
    }
    with pytest.raises(exception) as raised:
        wave_add(**on_device)
    for word in ["wave_add", *words]:
        assert word in str(raised.value), str(raised.value)


def test_unknown_keyword():
    with pytest.raises(TypeError, match="strength"):
        wave_add(zeros(1, 1, 4, 4), zeros(1, 2), 1.0, strength=2.0)


@pytest.mark.parametrize(
    ("arguments", "exception", "words"),
    [
        ((zeros(2, 3, 8, 8), zeros(1, 2).long(), (8, 8)), sturdy.ShapeError, "spectrum must be"),
        ((zeros(2, 3, 8, 5), zeros(1, 2).long(), (8, 8)), TypeError, "spectrum must be complex, got torch.float32"),
        (
            (zeros(2, 3, 8, 5, dtype=torch.complex64), zeros(2).long(), (8, 8)),
            sturdy.ShapeError,
            r"bins must be \(K, 2\)",
        ),
        ((zeros(2, 3, 8, 5, dtype=torch.complex64), zeros(1, 2), (8, 8)), TypeError, "bins must be int64"),
    ],
)
def test_bad_spectrum_waves(arguments, exception, words):
    with pytest.raises(exception, match=f"spectrum_waves: {words}"):
        spectrum_waves(*arguments)


def test_bad_wave_norm():
    with pytest.raises(sturdy.ShapeError, match="wave_norm: frequency must have shape"):
        wave_norm(zeros(3), 0.0, (8, 8))
