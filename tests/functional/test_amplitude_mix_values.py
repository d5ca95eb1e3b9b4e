"""amplitude_mix: right values at every size, for every kind of partner, window, dtype and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import amplitude as reference
from spectral_support import TOLERANCE, on, uniform
from sturdy.functional import amplitude_mix
from support import DTYPES, LAYOUTS, dtype_id, with_layout
from support import uninitialized_memory_is_nan as poisoned

# One transform of each kind: powers of two, odd, with large prime factors, one row, one column, above 31 (Bluestein)
# along one axis and along both, more columns than rows and the reverse.
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
SMALL = [(8, 9), (9, 8), (28, 28), (32, 34), (37, 6), (16, 48)]

# A frequency's error comes back times the ratio of the two amplitudes: its root mean square over the frequencies of
# noise, whose amplitudes are Rayleigh distributed, is the root of log(H * W), 3.4 at 299 pixels.
BOUND = {dtype: 4 * bound for dtype, bound in TOLERANCE.items()}


def check(x, *args, **kwargs):
    out = amplitude_mix(x, *args, **kwargs)
    expected = reference.amplitude_mix(*on("cpu", (x, *args)), **on("cpu", kwargs)).double()
    assert out.dtype == x.dtype and out.shape == expected.shape
    error = (out.cpu().double() - expected).abs().max().item() if out.numel() else 0.0
    assert error <= BOUND[x.dtype], f"error {error:.2e}"
    return out


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_the_definition(backend, size, dtype, color_fft):
    check(
        uniform((3, 3, *size), 1, dtype, device=backend.device),
        index=torch.tensor([2, 0, 1], device=backend.device),
        color_fft=color_fft,
    )


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8, 16, 37])
@pytest.mark.parametrize("size", [(8, 9), (32, 32), (37, 6)], ids=str)
def test_any_number_of_colors(backend, size, channels):
    check(
        uniform((2, channels, *size), 2, torch.float64, device=backend.device),
        index=torch.tensor([1, 0], device=backend.device),
        color_fft=True,
    )
    check(
        uniform((2, channels, *size), 2, device=backend.device),
        index=torch.tensor([1, 0], device=backend.device),
        color_fft=True,
        strength=0.7,
        window=(3, 2),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_id)
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (32, 32), (13, 23)], ids=str)
def test_equals_the_authors_formulation(backend, size, dtype):
    """APR-P in amplitudes and angles."""
    x, index = (
        uniform((4, 3, *size), 3, dtype, device=backend.device),
        torch.tensor([1, 2, 3, 0], device=backend.device),
    )
    found = amplitude_mix(x, index=index, color_fft=True)
    assert (found.double() - reference.apr(x.double(), index)).abs().max() <= BOUND[dtype]
    apart = amplitude_mix(x, index=index)
    assert (apart - found).abs().mean() > 0.02  # amplitudes of colours do matter


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_phases_stay_and_amplitudes_are_taken(backend, size, color_fft):
    x = uniform((2, 3, *size), 4, torch.float64, device=backend.device)
    axes = (-3, -2, -1) if color_fft else (-2, -1)
    out = amplitude_mix(x, x.flip(0), color_fft=color_fft, strength=0.25)
    before, wanted, found = (torch.fft.fftn(image, dim=axes) for image in (x, x.flip(0), out))
    clear = before.abs() > 1e-6 * before.abs().max()
    angle = torch.angle(found * before.conj()).abs()
    assert angle[clear].max() < 1e-4
    assert (found.abs() - (0.75 * before.abs() + 0.25 * wanted.abs())).abs().max() <= 1e-9


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("size", [*SMALL, (1, 1), (64, 64)], ids=str)
def test_an_images_own_amplitudes_give_it_back(backend, size, color_fft, dtype):
    x = uniform((3, 3, *size), 5, dtype, device=backend.device)
    for options in (
        {"index": torch.arange(3, device=backend.device)},
        {"other": x.clone()},
        {"index": torch.tensor([1, 2, 0], device=backend.device), "strength": 0.0},
        {"index": torch.tensor([1, 2, 0], device=backend.device), "window": (-1, 5)},
        {"index": torch.tensor([1, 2, 0], device=backend.device), "window": (5, -1)},
    ):
        out = amplitude_mix(x, color_fft=color_fft, **options)
        assert (out.double() - x.double()).abs().max() <= TOLERANCE[dtype]


@given(data=st.data())
def test_any_call(backend, data):
    size = data.draw(st.tuples(st.integers(1, 50), st.integers(1, 50)), label="size")
    batch, channels = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = with_layout(
        uniform((batch, channels, *size), 6, dtype, device=backend.device), data.draw(st.sampled_from(LAYOUTS))
    )
    options = {"color_fft": data.draw(st.booleans()), "clip": data.draw(st.sampled_from([None, (0.25, 0.75)]))}
    others = data.draw(st.sampled_from([None, 1, batch, 7]))
    if others is not None:
        other = uniform((others, channels, *size), 7, dtype, device=backend.device)
        options["other"] = with_layout(other, data.draw(st.sampled_from(LAYOUTS)))
    if others in (None, 7) or data.draw(st.booleans()):
        entry = st.integers(-1, (others or batch) - 1)
        options["index"] = torch.tensor(
            data.draw(st.lists(entry, min_size=batch, max_size=batch), label="index"), device=backend.device
        )
    strength = data.draw(st.sampled_from(["number", "one", "each"]))
    if strength == "number":
        options["strength"] = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    else:
        options["strength"] = uniform(
            (batch if strength == "each" else 1,), 8, data.draw(st.sampled_from(DTYPES[:2])), device=backend.device
        )
    window = data.draw(st.sampled_from(["none", "pair", "one", "each"]))
    if window == "pair":
        options["window"] = data.draw(st.tuples(st.integers(-1, 30), st.integers(-1, 30)))
    elif window != "none":
        generator = torch.Generator().manual_seed(9)
        windows = torch.randint(-1, 20, (batch if window == "each" else 1, 2), generator=generator)
        options["window"] = windows.to(backend.device)
    check(x, **options)


# ---- partners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("window", [None, (2, 3)], ids=["all", "window"])
def test_partners_from_the_images_are_those_of_a_copy(backend, window, color_fft):
    """Chains, cycles, an image that is the partner of several, one that is its own, and one that is copied."""
    x = uniform((8, 3, 12, 20), 10, device=backend.device)
    index = torch.tensor([3, 0, 2, 1, 0, -1, 7, 6], device=backend.device)
    out = check(x, index=index, window=window, color_fft=color_fft)
    copied = amplitude_mix(x, x[index.clamp(min=0)], window=window, color_fft=color_fft)
    kept = index >= 0
    kept[2] = False
    assert torch.equal(out[kept], copied[kept]) and torch.equal(out[5], x[5])
    assert (out[2] - x[2]).abs().max() <= 5e-6
    pool = amplitude_mix(x, x.clone(), index=index, window=window, color_fft=color_fft)
    assert torch.equal(pool[kept], out[kept]) and torch.equal(pool[5], x[5])
    strided = torch.stack((index, index + 1), dim=1)[:, 0]
    assert torch.equal(amplitude_mix(x, index=strided, window=window, color_fft=color_fft), out)


def test_one_partner_for_all(backend):
    x, other = uniform((5, 3, 16, 18), 11, device=backend.device), uniform((1, 3, 16, 18), 12, device=backend.device)
    out = check(x, other)
    assert torch.equal(out, amplitude_mix(x, other.expand(5, 3, 16, 18)))
    assert torch.equal(out, amplitude_mix(x, other, index=torch.zeros(5, dtype=torch.int64, device=backend.device)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_index_of_minus_one_copies_bit_by_bit(backend, dtype, layout):
    x = with_layout(uniform((3, 2, 8, 10), 13, dtype, device=backend.device) * 4 - 2, layout)
    x[1, 0, 0, 0] = float("nan")
    x[1, 1, 3, 3] = -0.0
    out = amplitude_mix(x, index=torch.tensor([2, -1, 0], device=backend.device), clip=(0.0, 1.0))
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(out[1].contiguous().view(integers), x[1].contiguous().view(integers))
    assert (out[0] >= 0).all() and (out[0] <= 1).all()


# ---- windows and strengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_a_window_changes_its_frequencies_alone(backend, size, color_fft):
    x = uniform((2, 3, *size), 14, torch.float64, device=backend.device)
    axes = (-3, -2, -1) if color_fft else (-2, -1)
    for rows, columns in ((0, 0), (1, 2), (3, 1), (size[0] // 2, 1), (1, size[1] // 2), (100, 100)):
        out = check(x, x.flip(0), window=(rows, columns), color_fft=color_fft)
        before, wanted, found = (torch.fft.fftn(image, dim=axes) for image in (x, x.flip(0), out))
        inside = (reference.signed(size[0]) <= rows)[:, None] & (reference.signed(size[1]) <= columns)
        inside = inside.to(backend.device)
        assert (found - before)[..., ~inside].abs().sum() <= 1e-9
        assert (found.abs() - wanted.abs())[..., inside].abs().max() <= 1e-9


def test_windows_and_strengths_per_image(backend):
    x = uniform((5, 3, 32, 20), 15, device=backend.device)
    index = torch.tensor([1, 2, 3, 4, 0], device=backend.device)
    windows = torch.tensor([[1, 2], [16, 10], [-1, 4], [0, 0], [3, 100]], device=backend.device)
    strength = torch.tensor([0.1, 1.0, 0.5, 0.9, 0.0], device=backend.device)
    out = check(x, index=index, window=windows, strength=strength)
    for n in range(5):
        one = amplitude_mix(x, index=index, window=tuple(windows[n].tolist()), strength=float(strength[n].double()))
        assert torch.equal(out[n], one[n])
    wide = torch.stack((windows, windows + 1), dim=-1)[..., 0]
    assert torch.equal(amplitude_mix(x, index=index, window=wide, strength=strength.double()), out)
    shared = amplitude_mix(x, index=index, window=windows[0], strength=torch.tensor(0.3, device=backend.device))
    assert torch.equal(
        shared, amplitude_mix(x, index=index, window=(1, 2), strength=torch.tensor([0.3], device=backend.device))
    )


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_where_there_is_no_amplitude_the_phase_is_zero(backend, dtype, color_fft):
    """A black image gets the amplitudes alone, and a grey one keeps what colours it takes where they belong."""
    black, other = (
        torch.zeros(1, 3, 16, 12, dtype=dtype, device=backend.device),
        uniform((1, 3, 16, 12), 16, dtype, device=backend.device),
    )
    out = check(black, other, color_fft=color_fft)
    axes = (-3, -2, -1) if color_fft else (-2, -1)
    wanted = torch.fft.ifftn(torch.fft.fftn(other.double(), dim=axes).abs(), dim=axes).real
    assert (out.double() - wanted).abs().max() <= BOUND[dtype]
    grey = uniform((1, 1, 16, 12), 17, dtype, device=backend.device).expand(1, 3, 16, 12)
    check(grey, other, color_fft=color_fft)
    assert torch.equal(amplitude_mix(black, black.clone(), color_fft=color_fft), black)


# ---- batches, layouts, repeatability ---------------------------------------------------------------------------------


@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("window", [None, (2, 3)], ids=["all", "window"])
@pytest.mark.parametrize("size", [(8, 9), (32, 32), (64, 64), (31, 37)], ids=str)
def test_an_image_does_not_depend_on_its_batch(backend, size, window, color_fft):
    x, index = (
        uniform((6, 3, *size), 18, device=backend.device),
        torch.tensor([3, 0, 4, 1, 5, 2], device=backend.device),
    )
    options = {"window": window, "color_fft": color_fft}
    out = amplitude_mix(x, index=index, **options)
    for n in range(6):
        assert torch.equal(amplitude_mix(x[n : n + 1], x[index[n]][None], **options)[0], out[n])
        assert torch.equal(amplitude_mix(x[n], x[index[n]], **options), out[n])
    if not color_fft:
        assert torch.equal(amplitude_mix(x[:, 1:2], index=index, **options), out[:, 1:2])
    assert torch.equal(amplitude_mix(x, index=index, **options), out)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(amplitude_mix(x, index=index, **options), out)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_a_nan_stays_in_its_image_and_that_which_takes_its_amplitudes(backend, size, color_fft, value):
    x, index = uniform((4, 3, *size), 19, device=backend.device), torch.tensor([1, 2, 0, -1], device=backend.device)
    clean = amplitude_mix(x, index=index, color_fft=color_fft, clip=(0.0, 1.0))
    x[1, 0, 2, 3] = value
    out = amplitude_mix(x, index=index, color_fft=color_fft, clip=(0.0, 1.0))
    touched = torch.zeros(4, 3, dtype=torch.bool, device=backend.device)
    touched[0, 0] = touched[1, 0] = True
    if color_fft:
        touched[:2] = True
    assert out[touched].isnan().all() and torch.equal(out[~touched], clean[~touched])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("color_fft", [False, True], ids=["planes", "colors"])
def test_any_strides(backend, color_fft, layout, dtype):
    plain = uniform((3, 4, 40, 33), 20, dtype, device=backend.device)
    x, index = with_layout(plain, layout), torch.tensor([1, 2, 0], device=backend.device)
    out = check(x, index=index, color_fft=color_fft)
    assert torch.equal(out, amplitude_mix(x.contiguous(), index=index, color_fft=color_fft))
    other = with_layout(plain, "sliced")[index]
    assert torch.equal(amplitude_mix(x, with_layout(x[index], "sliced"), color_fft=color_fft), out)
    assert other.shape == out.shape
    channels_last = layout == "channels_last"
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)], ids=str)
def test_nothing_to_do(backend, shape):
    x = torch.rand(shape, device=backend.device)
    index = torch.zeros(shape[0], dtype=torch.int64, device=backend.device)
    for color_fft in (False, True):
        if shape[0]:
            assert amplitude_mix(x, index=index, color_fft=color_fft).shape == shape
        assert amplitude_mix(x, x.clone(), color_fft=color_fft).shape == shape
    empty = torch.rand(0, 3, 8, 8, device=backend.device)
    x = torch.rand(2, 3, 8, 8, device=backend.device)
    assert torch.equal(amplitude_mix(x, empty, index=torch.tensor([-1, -1], device=backend.device)), x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_element_is_written(backend, layout):
    x = with_layout(uniform((3, 3, 13, 35), 21, device=backend.device), layout)
    with poisoned():
        for color_fft in (False, True):
            for window in (None, (2, 4)):
                out = amplitude_mix(
                    x, index=torch.tensor([1, -1, 0], device=backend.device), window=window, color_fft=color_fft
                )
                assert out.isfinite().all()


def test_large_and_small_values(backend):
    """Scaled images give the scaled result; 3e12 is far from where squares of amplitudes leave float32."""
    x, index = uniform((2, 3, 16, 16), 22, device=backend.device), torch.tensor([1, 0], device=backend.device)
    out = amplitude_mix(x, index=index)
    for scale in (2.0**40, 2.0**-20):
        assert torch.equal(amplitude_mix(x * scale, index=index), out * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_half_precision_holds_a_spectrum_beyond_its_range(backend, dtype):
    """The sum of 512 x 512 ones does not fit in float16."""
    x = torch.ones(1, 1, 512, 512, dtype=dtype, device=backend.device)
    assert torch.equal(amplitude_mix(x, x / 2, window=(0, 0)), x / 2)


def test_clamp_is_that_of_torch(backend):
    x, index = uniform((2, 3, 9, 20), 23, device=backend.device) * 2 - 0.5, torch.tensor([1, 0], device=backend.device)
    free = amplitude_mix(x, index=index)
    for clip in ((0.1, 0.2), (0.0, float("inf")), (-float("inf"), 0.3), (0.25, 0.25)):
        assert torch.equal(amplitude_mix(x, index=index, clip=clip), free.clamp(*clip))
