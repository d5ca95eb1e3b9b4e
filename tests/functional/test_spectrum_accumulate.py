"""spectrum_accumulate: right sums at every size, dtype and layout, whatever the threads; torch; wrong arguments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sturdy
from reference import amplitude as reference
from spectral_support import on, uniform
from sturdy.functional import spectrum_accumulate
from support import DTYPES, LAYOUTS, dtype_id, with_layout
from support import uninitialized_memory_is_nan as poisoned

SIZES = [
    *((1, 1), (1, 8), (8, 1), (2, 2), (1, 2), (3, 1), (7, 9), (9, 8), (8, 9), (8, 8), (16, 16), (28, 28), (32, 32)),
    *(
        (96, 96),
        (224, 224),
        (299, 299),
        (31, 37),
        (13, 23),
        (41, 43),
        (37, 16),
        (18, 53),
        (30, 33),
        (66, 34),
        (15, 256),
    ),
]


def check(x, group, groups, power=1, **kwargs):
    """A transform's error is about that of its largest value, frequency 0, times a few times the rounding unit."""
    sums = spectrum_accumulate(x, group, groups, power=power, **kwargs)
    wide = x.dtype == torch.float64
    wanted = reference.spectrum_accumulate(x.cpu(), group.cpu(), groups, power)
    assert sums.shape == wanted.shape and sums.is_contiguous()
    assert sums.dtype == (torch.float64 if wide else torch.float32)
    scale = wanted.amax() if wanted.numel() else 1.0
    error = ((sums.cpu() - wanted).abs().max() / scale).item() if wanted.numel() and scale > 0 else 0.0
    assert error <= (1e-14 if wide else 5e-7), f"error {error:.2e}"
    return sums


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_the_definition(backend, size, dtype, power):
    check(
        uniform((4, 2, *size), 1, dtype, device=backend.device) - 0.4,
        torch.tensor([1, 0, -1, 1], device=backend.device),
        3,
        power,
    )


@given(data=st.data())
def test_any_call(backend, data):
    size = data.draw(st.tuples(st.integers(1, 50), st.integers(1, 50)), label="size")
    batch, channels, groups = (data.draw(st.integers(*bounds)) for bounds in ((0, 40), (1, 4), (1, 5)))
    x = uniform((batch, channels, *size), 2, data.draw(st.sampled_from(DTYPES)), device=backend.device)
    x = with_layout(x, data.draw(st.sampled_from(LAYOUTS)))
    group = torch.randint(-1, groups, (batch,), generator=torch.Generator().manual_seed(3)).to(backend.device)
    check(x, group, groups, data.draw(st.sampled_from([1, 2])))


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (32, 34), (13, 23), (37, 6)], ids=str)
def test_parseval(backend, size):
    """Squares of amplitudes, each of a frequency that is not its own mirror image along the rows twice, add up to
    H * W times those of pixels."""
    x = uniform((6, 3, *size), 4, torch.float64, device=backend.device) - 0.5
    group = torch.tensor([0, 1, 0, 1, 1, 0], device=backend.device)
    sums = spectrum_accumulate(x, group, 2, power=2)
    twice = torch.full((size[1] // 2 + 1,), 2.0, dtype=torch.float64, device=backend.device)
    twice[0] = 1
    if size[1] % 2 == 0:
        twice[-1] = 1
    energy = torch.stack([x[group == g].square().sum((0, 2, 3)) for g in range(2)])
    torch.testing.assert_close((sums * twice).sum((2, 3)), energy * size[0] * size[1], rtol=1e-13, atol=0)


@pytest.mark.parametrize("batch", [1, 7, 8, 16, 17, 33, 200])
@pytest.mark.parametrize(("groups", "channels"), [(1, 1), (1, 3), (3, 1), (20, 2)])
def test_sums_do_not_depend_on_threads(backend, batch, groups, channels):
    x = uniform((batch, channels, 9, 12), 5, device=backend.device)
    group = torch.randint(-1, groups, (batch,), generator=torch.Generator().manual_seed(6)).to(backend.device)
    sums = check(x, group, groups)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(spectrum_accumulate(x, group, groups), sums)
    finally:
        torch.set_num_threads(threads)


def test_many_images_lose_no_digits(backend):
    """16 amplitudes at most are added up in float32, which rounds each of 15 sums by half a unit, and the result once
    more; 4000 in a row would be wrong by 2e-5."""
    x = uniform((1, 1, 8, 8), 7, device=backend.device).expand(4000, 1, 8, 8)
    sums = spectrum_accumulate(x, torch.zeros(4000, dtype=torch.int64, device=backend.device), 1)
    one = spectrum_accumulate(x[:1], torch.zeros(1, dtype=torch.int64, device=backend.device), 1).double()
    assert ((sums - 4000 * one).abs() / (4000 * one)).max() < 16 * 2.0**-24


def test_on_top_of_earlier_sums(backend):
    x, group = uniform((20, 3, 16, 18), 8, device=backend.device), torch.arange(20, device=backend.device) % 4
    whole = reference.spectrum_accumulate(x.cpu(), group.cpu(), 4)
    for dtype, bound in ((torch.float32, 5e-7), (torch.float64, 3e-7)):
        sums = torch.zeros(4, 3, 16, 10, dtype=dtype, device=backend.device)
        for begin in range(0, 20, 5):
            before = sums.clone()
            after = spectrum_accumulate(x[begin : begin + 5], group[begin : begin + 5], 4, initial=sums)
            assert torch.equal(sums, before) and after.dtype == dtype
            sums = after
        assert (sums.cpu() - whole).abs().max() / whole.max() <= bound
    strided = with_layout(sums, "transposed")
    assert torch.equal(
        spectrum_accumulate(x, group, 4, initial=strided), spectrum_accumulate(x, group, 4, initial=sums)
    )
    nothing = spectrum_accumulate(x, torch.full((20,), -1, device=backend.device), 4, initial=sums)
    assert torch.equal(nothing, sums)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_any_strides(backend, layout, dtype):
    x = with_layout(uniform((5, 3, 28, 33), 9, dtype, device=backend.device), layout)
    group = torch.stack(
        (torch.tensor([0, 1, 1, -1, 0], device=backend.device), torch.arange(5, device=backend.device)), dim=1
    )[:, 0]
    sums = check(x, group, 2)
    assert torch.equal(sums, spectrum_accumulate(x.contiguous(), group.contiguous(), 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_stays_in_its_group_and_channel(backend, value):
    x, group = uniform((5, 3, 12, 10), 10, device=backend.device), torch.tensor([0, 1, 2, 1, -1], device=backend.device)
    clean = spectrum_accumulate(x, group, 3)
    x[1, 2, 3, 4] = x[4, 0, 0, 0] = value
    sums = spectrum_accumulate(x, group, 3)
    assert not sums[1, 2].isfinite().any()
    sums[1, 2] = clean[1, 2]
    assert torch.equal(sums, clean)


def test_nothing_to_do(backend):
    none = torch.zeros(0, dtype=torch.int64, device=backend.device)
    assert not spectrum_accumulate(torch.rand(0, 3, 8, 8, device=backend.device), none, 2).any()
    assert spectrum_accumulate(
        torch.rand(2, 0, 8, 8, device=backend.device), torch.zeros(2, dtype=torch.int64, device=backend.device), 2
    ).shape == (2, 0, 8, 5)
    assert spectrum_accumulate(
        torch.rand(2, 3, 8, 8, device=backend.device), torch.tensor([-1, -1], device=backend.device), 0
    ).shape == (0, 3, 8, 5)


def test_every_element_is_written(backend):
    with poisoned():
        for size in ((13, 35), (32, 32), (8, 6)):
            x = uniform((40, 1, *size), 11, device=backend.device)
            for groups in (1, 5):
                sums = spectrum_accumulate(x, torch.arange(40, device=backend.device) % groups, groups + 1)
                assert sums.isfinite().all() and not sums[groups].any()


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize("initial", [None, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_opcheck(backend, dtype, initial):
    x = uniform((3, 2, 8, 10), 12, dtype, device=backend.device).requires_grad_()
    start = None if initial is None else torch.rand(2, 2, 8, 6, dtype=initial, device=backend.device).requires_grad_()
    torch.library.opcheck(
        backend.op("spectrum_accumulate"), (x, torch.tensor([0, 1, -1], device=backend.device), 2, 1, start)
    )


def test_the_result_is_detached(backend):
    x = uniform((3, 2, 8, 10), 13, device=backend.device).requires_grad_()
    sums = spectrum_accumulate(
        x,
        torch.tensor([0, 1, -1], device=backend.device),
        2,
        initial=torch.zeros(2, 2, 8, 6, device=backend.device).requires_grad_(),
    )
    assert not sums.requires_grad and sums.grad_fn is None


def test_compiles_and_exports(backend):
    group = torch.tensor([0, 1, -1], device=backend.device)
    torch._dynamo.reset()
    fn = torch.compile(lambda x: spectrum_accumulate(x, group, 2, power=2), fullgraph=True, dynamic=True)
    for size in ((8, 10), (9, 7), (28, 28)):
        x = uniform((3, 2, *size), 14, device=backend.device)
        assert torch.equal(fn(x), spectrum_accumulate(x, group, 2, power=2))
    torch._dynamo.reset()


def test_vmap(backend):
    x, group = uniform((4, 3, 2, 8, 10), 15, device=backend.device), torch.tensor([0, 1, -1], device=backend.device)
    out = torch.func.vmap(lambda x: spectrum_accumulate(x, group, 2))(x)
    assert all(torch.equal(out[i], spectrum_accumulate(x[i], group, 2)) for i in range(4))


X = torch.rand(2, 3, 8, 10)
G = torch.tensor([0, 1])

WRONG = {
    "image of three dimensions": ((X[0], G, 2), {}, sturdy.ShapeError, r"x must be \(N, C, H, W\), got shape"),
    "image of bytes": ((X.byte(), G, 2), {}, TypeError, "x must be float16, bfloat16, float32 or float64, got uint8"),
    "complex image": ((X.to(torch.complex64), G, 2), {}, TypeError, "x must be float16"),
    "no rows": ((X[:, :, :0], G, 2), {}, sturdy.ShapeError, "image height must be at least 1, got 0"),
    "group beyond": ((X, G, 1), {}, sturdy.ShapeError, "group must be -1 or a group, 0 to 0, got 1 for image 1"),
    "group below": ((X, G - 2, 2), {}, sturdy.ShapeError, "got -2 for image 0"),
    "group of int32": ((X, G.int(), 2), {}, TypeError, "group must be int64"),
    "group too short": ((X, G[:1], 2), {}, sturdy.ShapeError, "group must have 2 entries"),
    "negative groups": ((X, G, -1), {}, ValueError, "groups must be at least 0, got -1"),
    "power": ((X, G, 2), {"power": 3}, ValueError, "power must be 1 or 2, got 3"),
    "initial of another shape": (
        (X, G, 2),
        {"initial": torch.zeros(2, 3, 8, 10)},
        sturdy.ShapeError,
        r"\(2, 3, 8, 6\)",
    ),
    "initial of half": (
        (X, G, 2),
        {"initial": torch.zeros(2, 3, 8, 6).half()},
        TypeError,
        "initial must be torch.float32 or torch.float64",
    ),
    "initial of float32": (
        (X.double(), G, 2),
        {"initial": torch.zeros(2, 3, 8, 6)},
        TypeError,
        "initial must be torch.float64, got torch.float32",
    ),
    "unknown keyword": ((X, G, 2), {"out": None}, TypeError, "unexpected keyword"),
}

WRONG_VALUES = ("group beyond", "group below")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(backend, name):
    args, options, error, message = WRONG[name]
    if backend.name == "cuda" and name in WRONG_VALUES:
        pytest.skip("the values of groups on a GPU are not looked at")
    with pytest.raises(error, match=message):
        spectrum_accumulate(*on(backend.device, args), **on(backend.device, options))


def test_other_devices(backend):
    with pytest.raises(RuntimeError, match=f"group must be on meta, got {backend.device}"):
        spectrum_accumulate(X.to("meta"), G.to(backend.device), 2)


@pytest.mark.parametrize("backend", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("argument", ["group", "initial"])
def test_mixed_devices(backend, argument):
    call = {"x": X, "group": G, "initial": torch.zeros(2, 3, 8, 6)}
    call = {name: value if name == argument else value.to(backend.device) for name, value in call.items()}
    with pytest.raises(sturdy.ShapeError, match=f"{argument} must be on"):
        spectrum_accumulate(**call, groups=2)
