"""exp, sincos, erf and gelu of vectors: the bounds that their header states, and special values."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from core_library import FUNCTIONS, VECTOR_LEVELS, address, library, need_level

TYPES = {np.float32: 0, np.float64: 1}
# What csrc/common/vector_math.h states, in ulps; of gelu in eps * |x|.
BOUNDS = {"exp": 1.25, "sin": 1.0, "cos": 1.0, "erf": 1.75, "gelu": 2.0}


@pytest.fixture(params=VECTOR_LEVELS)
def level(request: pytest.FixtureRequest) -> int:
    return need_level(request.param)


def call(level: int, function: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, 123)
    number = FUNCTIONS.index(function)
    library().core_test_map(level, number, TYPES[x.dtype.type], address(x), address(out), ctypes.c_int64(x.size))
    return out


def worst(level: int, function: str, x: np.ndarray) -> tuple[float, float]:
    error, at = ctypes.c_double(0), ctypes.c_double(0)
    count = ctypes.c_int64(x.size)
    kind = TYPES[x.dtype.type]
    arguments = (level, FUNCTIONS.index(function), kind, address(x), count, ctypes.byref(error), ctypes.byref(at))
    library().core_test_worst(*arguments)
    return error.value, at.value


def sweep(level: int, function: str, first: int, step: int) -> tuple[float, float]:
    error, at = ctypes.c_double(0), ctypes.c_double(0)
    number = FUNCTIONS.index(function)
    library().core_test_sweep(
        level, number, ctypes.c_uint32(first), ctypes.c_uint32(step), ctypes.byref(error), ctypes.byref(at)
    )
    return error.value, at.value


def check_sweep(level: int, function: str, first: int, step: int) -> None:
    error, at = sweep(level, function, first, step)
    assert 0 < error <= BOUNDS[function], f"{error} ulp at {at!r}"


@pytest.mark.parametrize("function", ["exp", "sin", "cos", "erf", "gelu"])
def test_floats_of_every_size(level, function):
    """Every 1021st of all floats, NaN and infinity among them: 4.2 million."""
    check_sweep(level, function, 7, 1021)


@pytest.mark.full
@pytest.mark.parametrize("function", ["exp", "sin", "cos", "erf", "gelu"])
def test_more_floats(level, function):
    """Every 17th: 253 million."""
    check_sweep(level, function, 3, 17)


def doubles(function: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    signs = rng.choice([-1.0, 1.0], 60_000)
    sizes = signs * np.exp2(rng.uniform(-1074, 1024, 60_000))
    spans = {"exp": 746, "erf": 7, "gelu": 12}
    near = rng.uniform(-1, 1, 60_000) * spans.get(function, 2.0**20)
    small = rng.uniform(-4, 4, 60_000)
    # The doubles nearest to multiples of pi / 2, where what is left of the argument has lost the most bits.
    multiples = np.rint(rng.uniform(-(2.0**19), 2.0**19, 20_000)) * (np.pi / 2)
    return np.concatenate([sizes, near, small, multiples, np.nextafter(multiples, 0)])


@pytest.mark.parametrize("function", ["exp", "sin", "cos", "erf", "gelu"])
def test_doubles(level, function):
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("long double is no wider than double here")
    x = doubles(function)
    error, at = worst(level, function, x)
    assert 0 < error <= BOUNDS[function], f"{error} ulp at {at!r}"


@pytest.mark.parametrize("function", ["sin", "cos"])
def test_floats_near_multiples_of_half_pi(level, function):
    multiples = (np.arange(-700_000, 700_000, dtype=np.float64) * (np.pi / 2)).astype(np.float32)
    x = np.concatenate([multiples, np.nextafter(multiples, np.float32(0)), np.nextafter(multiples, np.float32(np.inf))])
    error, at = worst(level, function, x)
    assert 0 < error <= BOUNDS[function], f"{error} ulp at {at!r}"


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_special_values(level, kind):
    tiny = np.finfo(kind).smallest_subnormal
    huge = np.finfo(kind).max
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, huge, -huge], kind)
    exp = call(level, "exp", x)
    np.testing.assert_array_equal(exp, np.array([1, 1, np.inf, 0, np.nan, 1, 1, np.inf, 0], kind))
    erf = call(level, "erf", x)
    np.testing.assert_array_equal(erf[:5], np.array([0, -0.0, 1, -1, np.nan], kind))
    np.testing.assert_array_equal(np.signbit(erf[:4]), [False, True, False, True])
    np.testing.assert_array_equal(erf[5:], np.array([tiny, -tiny, 1, -1], kind))
    sin, cos = call(level, "sin", x), call(level, "cos", x)
    np.testing.assert_array_equal(sin[:7], np.array([0, -0.0, np.nan, np.nan, np.nan, tiny, -tiny], kind))
    np.testing.assert_array_equal(np.signbit(sin[:2]), [False, True])
    np.testing.assert_array_equal(cos[:7], np.array([1, 1, np.nan, np.nan, np.nan, 1, 1], kind))
    gelu = call(level, "gelu", x)
    np.testing.assert_array_equal(gelu[:3], np.array([0, 0, np.inf], kind))
    assert np.isnan(gelu[3]) and np.isnan(gelu[4])  # -inf * 0


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_thresholds_of_exp(level, kind):
    """The last finite result, the first infinite one, the last one that is not 0."""
    finite = np.log(np.finfo(kind).max.astype(np.longdouble))
    below, above = kind(finite), kind(finite)
    while below >= finite:
        below = np.nextafter(below, kind(0))
    while above <= finite:
        above = np.nextafter(above, kind(np.inf))
    got = call(level, "exp", np.array([below, above + kind(0.01)], kind))
    assert np.isfinite(got[0]) and got[0] > np.finfo(kind).max * 0.99
    assert got[1] == np.inf
    smallest = np.finfo(kind).smallest_subnormal
    last = kind(np.log(np.longdouble(smallest)))
    np.testing.assert_array_equal(
        call(level, "exp", np.array([last + kind(0.25), last - kind(1)], kind)), [smallest, 0]
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_lanes_do_not_see_each_other(level, function, kind):
    """A large argument, which takes another path, leaves its neighbours' bits alone."""
    x = np.linspace(-3, 3, 64).astype(kind)
    alone = call(level, function, x)
    mixed = x.copy()
    mixed[::5] = kind(1e30)
    together = call(level, function, mixed)
    others = np.arange(64) % 5 != 0
    np.testing.assert_array_equal(together[others], alone[others])
