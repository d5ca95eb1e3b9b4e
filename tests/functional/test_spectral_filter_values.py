"""spectral_filter: right values at every size, for every kind of mask, dtype and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import fourier as reference
from spectral_support import TOLERANCE, mask_shape, on, uniform
from sturdy.functional import spectral_filter
from support import DTYPES, LAYOUTS, dtype_id, with_layout
from support import uninitialized_memory_is_nan as poisoned

# One transform of each kind: powers of two, odd, with large prime factors, one row, one column, above 31 (Bluestein)
# along one axis and along both, more columns than rows and the reverse.
SIZES = [
    *((1, 1), (1, 8), (8, 1), (2, 2), (1, 2), (3, 1), (7, 9), (9, 8), (8, 9), (8, 8), (16, 16), (28, 28), (32, 32)),
    *((96, 96), (224, 224), (299, 299), (31, 37), (13, 23), (41, 43), (17, 19), (29, 31), (37, 16), (18, 53)),
    *((30, 33), (33, 31), (25, 47), (50, 64), (63, 20), (66, 34), (15, 1024), (1000, 6), (122, 61), (10, 14)),
]
SMALL = [(8, 9), (9, 8), (28, 28), (32, 34), (37, 6), (16, 48)]


def check(x, mask, *args, **kwargs):
    out = spectral_filter(x, mask, *args, **kwargs)
    expected = reference.spectral_filter(*on("cpu", (x, mask, *args)), **on("cpu", kwargs)).double()
    assert out.dtype == x.dtype and out.shape == expected.shape
    error = (out.cpu().double() - expected).abs().max().item() if out.numel() else 0.0
    assert error <= TOLERANCE[x.dtype], f"error {error:.2e}"
    return out


@pytest.mark.parametrize("layout", ["shifted", "half"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_the_complex_filter(backend, size, dtype, layout):
    x = uniform((2, 2, *size), 1, dtype, backend.device)
    mask_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    check(x, uniform(mask_shape(size, layout), 2, mask_dtype, backend.device), layout)


def test_a_large_plane(backend):
    check(uniform((1, 1, 512, 512), 1, device=backend.device), uniform((512, 512), 2, device=backend.device))


@given(data=st.data())
def test_any_size_and_mask(backend, data):
    size = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)), label="size")
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    layout = data.draw(st.sampled_from(["shifted", "half"]))
    leading = data.draw(st.sampled_from([(), (1,), (channels,), (batch, 1), (1, channels), (batch, channels)]))
    dtype = data.draw(st.sampled_from(DTYPES))
    clip = data.draw(st.sampled_from([None, (0.25, 0.5)]))
    strides = data.draw(st.sampled_from(LAYOUTS))
    x = with_layout(uniform((batch, channels, *size), 3, dtype, device=backend.device), strides)
    mask_dtype = data.draw(st.sampled_from([dtype, torch.float32]))
    mask = uniform((*leading, *mask_shape(size, layout)), 4, mask_dtype, device=backend.device)
    if dtype == torch.float64 and mask_dtype == torch.float32:
        mask = mask.round()
    check(x, mask, layout, clip=clip)


@pytest.mark.parametrize("layout", ["shifted", "half"])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_simple_masks(backend, size, layout):
    x = uniform((2, 3, *size), 5, device=backend.device)
    ones = torch.ones(mask_shape(size, layout), device=backend.device)
    assert (spectral_filter(x, ones, layout) - x).abs().max() <= 5e-6
    assert not spectral_filter(x, torch.zeros_like(ones), layout).any()
    mean_only = torch.zeros_like(ones)
    mean_only[(size[0] // 2, size[1] // 2) if layout == "shifted" else (0, 0)] = 1
    mean = x.mean(dim=(-2, -1), keepdim=True).expand_as(x)
    assert (spectral_filter(x, mean_only, layout) - mean).abs().max() <= 5e-6


@pytest.mark.parametrize("size", SMALL, ids=str)
def test_linear_and_circular(backend, size):
    x, y, mask = (uniform((1, 2, *size), seed, torch.float64, device=backend.device) for seed in (6, 7, 8))
    mask = mask[0, 0]
    filtered = spectral_filter(x, mask)
    combined = spectral_filter(2 * x - 3 * y, mask)
    assert (combined - (2 * filtered - 3 * spectral_filter(y, mask))).abs().max() <= 1e-12
    rolled = spectral_filter(x.roll((1, 3), (-2, -1)), mask)
    assert (rolled - filtered.roll((1, 3), (-2, -1))).abs().max() <= 1e-12


@pytest.mark.parametrize("size", SMALL, ids=str)
def test_half_layout_is_the_shifted_one_made_symmetric(backend, size):
    x = uniform((2, 2, *size), 9, torch.float64, device=backend.device)
    mask = uniform(size, 10, torch.float64, device=backend.device)
    half = reference.effective_mask(mask.cpu(), size, False)[:, : size[1] // 2 + 1].to(backend.device)
    difference = spectral_filter(x, mask) - spectral_filter(x, half, "half")
    assert difference.abs().max() <= 1e-13


@pytest.mark.parametrize("bin", [(0, 0), (16, 0), (0, 17), (16, 17), (3, 5), (29, 5), (7, 0)], ids=str)
def test_one_frequency_taken_away(backend, bin):
    """At zero, at the last frequency of both axes, at one that is its own mirror image, and elsewhere."""
    x = uniform((1, 2, 32, 34), 11, torch.float64, device=backend.device)
    full = torch.ones(32, 34, dtype=torch.float64, device=backend.device)
    full[bin] = full[-bin[0] % 32, -bin[1] % 34] = 0
    out = spectral_filter(x, torch.fft.fftshift(full))
    assert (out - reference.without_bins(x, [bin])).abs().max() <= 1e-12


# ---- which mask an image takes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(4,), (4, 1), (4, 3)], ids=str)
@pytest.mark.parametrize("layout", ["shifted", "half"])
def test_index_equals_a_loop(backend, layout, leading):
    size = (12, 20)
    x = uniform((7, 3, *size), 12, device=backend.device)
    table = uniform((*leading, *mask_shape(size, layout)), 13, device=backend.device)
    index = torch.tensor([3, -1, 0, 0, 2, -1, 1], device=backend.device)
    out = check(x, table, layout, index)
    for n, entry in enumerate(index.tolist()):
        one = x[n] if entry < 0 else spectral_filter(x[n], table[entry], layout)
        assert torch.equal(out[n], one)
    strided = torch.stack((index, index + 1), dim=1)[:, 0]
    assert torch.equal(spectral_filter(x, table, layout, strided), out)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_index_of_minus_one_copies_bit_by_bit(backend, dtype, layout):
    x = with_layout(uniform((3, 2, 8, 10), 14, dtype, device=backend.device) * 4 - 2, layout)
    x[1, 0, 0, 0] = float("nan")
    x[1, 1, 3, 3] = -0.0
    out = spectral_filter(
        x,
        uniform((2, 8, 10), 15, device=backend.device),
        index=torch.tensor([0, -1, 1], device=backend.device),
        clip=(0.0, 1.0),
    )
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(out[1].contiguous().view(integers), x[1].contiguous().view(integers))
    assert (out[0] >= 0).all() and (out[0] <= 1).all()


@pytest.mark.parametrize("leading", [(1, 5, 1), (1, 5, 3), (2, 5, 1), (2, 5, 3), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("size", [(8, 9), (32, 32), (37, 20)], ids=str)
def test_many_masks_for_each_image(backend, size, leading):
    x = uniform((2, 3, *size), 16, device=backend.device)
    mask = uniform((*leading, *size), 17, device=backend.device)
    out = check(x, mask)
    assert out.shape == (2, leading[1], 3, *size) and out.is_contiguous()
    for t in range(leading[1]):
        assert (out[:, t] - spectral_filter(x, mask[:, t])).abs().max() <= 2e-6
    clipped = spectral_filter(x, mask, clip=(0.2, 0.4))
    assert torch.equal(clipped, out.clamp(0.2, 0.4))


def test_masks_too_many_to_prepare_together(backend):
    """A table of more than the 4 MiB that are prepared at once is prepared as it is needed, to the same numbers."""
    size = (128, 128)
    x = uniform((4, 2, *size), 18, device=backend.device)
    table = uniform((150, *size), 19, device=backend.device)
    index = torch.tensor([149, 3, -1, 3], device=backend.device)
    out = spectral_filter(x, table, index=index)
    few = spectral_filter(x, table[[149, 3]], index=torch.tensor([0, 1, -1, 1], device=backend.device))
    assert torch.equal(out, few)
    wide = x[:, :1].expand(4, 70, *size)
    assert torch.equal(spectral_filter(wide, table[:70])[:, 7], spectral_filter(x[:, :1], table[7])[:, 0])


# ---- batches, layouts, repeatability ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*SMALL, (32, 32), (64, 64), (224, 224), (31, 37)], ids=str)
def test_a_plane_does_not_depend_on_its_batch(backend, size):
    x, mask = uniform((5, 3, *size), 20, device=backend.device), uniform(size, 21, device=backend.device)
    out = spectral_filter(x, mask)
    for n in (0, 2, 4):
        assert torch.equal(spectral_filter(x[n : n + 1], mask), out[n : n + 1])
        assert torch.equal(spectral_filter(x[n, 1:2], mask), out[n, 1:2])
    assert torch.equal(spectral_filter(x, mask), out)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(spectral_filter(x, mask), out)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_a_nan_stays_in_its_plane(backend, size, value):
    x, mask = uniform((2, 2, *size), 22, device=backend.device), uniform(size, 23, device=backend.device) + 0.1
    clean = spectral_filter(x, mask, clip=(0.0, 1.0))
    x[1, 0, 2, 3] = value
    out = spectral_filter(x, mask, clip=(0.0, 1.0))
    assert out[1, 0].isnan().all()
    out[1, 0] = clean[1, 0]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(9, 8), (28, 28), (40, 33)], ids=str)
def test_any_strides(backend, size, layout, dtype):
    plain = uniform((3, 4, *size), 24, dtype, device=backend.device)
    x = with_layout(plain, layout)
    mask = uniform((3, 4, *size), 25, device=backend.device)
    out = check(x, with_layout(mask, "sliced"))
    assert torch.equal(out, spectral_filter(x.contiguous(), mask))
    channels_last = layout == "channels_last"
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_flipped_and_expanded_masks(backend):
    x, mask = uniform((2, 3, 10, 12), 26, device=backend.device), uniform((10, 12), 27, device=backend.device)
    expanded = mask.expand(2, 3, 10, 12)
    assert torch.equal(spectral_filter(x, expanded), spectral_filter(x, mask))
    assert torch.equal(spectral_filter(x, mask.T.contiguous().T), spectral_filter(x, mask))


def test_without_batch(backend):
    x, mask = uniform((3, 16, 18), 28, device=backend.device), uniform((16, 18), 29, device=backend.device)
    assert torch.equal(spectral_filter(x, mask), spectral_filter(x[None], mask)[0])
    many = uniform((1, 4, 1, 16, 18), 30, device=backend.device)
    assert torch.equal(spectral_filter(x, many), spectral_filter(x[None], many)[0])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)], ids=str)
def test_nothing_to_do(backend, shape):
    x = torch.rand(shape, device=backend.device)
    assert spectral_filter(x, torch.ones(8, 8, device=backend.device)).shape == shape
    assert spectral_filter(x, torch.ones(1, 5, 1, 8, 8, device=backend.device)).shape == (shape[0], 5, *shape[1:])
    assert spectral_filter(
        torch.rand(2, 3, 8, 8, device=backend.device), torch.ones(1, 0, 1, 8, 8, device=backend.device)
    ).shape == (2, 0, 3, 8, 8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_element_is_written(backend, layout):
    x = with_layout(uniform((3, 2, 13, 35), 31, device=backend.device), layout)
    mask, many = uniform((13, 35), 32, device=backend.device), uniform((1, 3, 2, 13, 35), 33, device=backend.device)
    with poisoned():
        assert spectral_filter(x, mask).isfinite().all()
        assert spectral_filter(x, many).isfinite().all()
        assert spectral_filter(x, mask[None], index=torch.tensor([0, -1, 0], device=backend.device)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_half_precision_holds_a_spectrum_beyond_its_range(backend, dtype):
    """The sum of 512 x 512 ones does not fit in float16."""
    x = torch.ones(1, 1, 512, 512, dtype=dtype, device=backend.device)
    assert torch.equal(spectral_filter(x, torch.ones(512, 512, device=backend.device)), x)


@pytest.mark.parametrize("size", [(8, 9), (32, 32)], ids=str)
def test_clamp_is_that_of_torch(backend, size):
    x, mask = uniform((2, 2, *size), 34, device=backend.device) * 2 - 0.5, uniform(size, 35, device=backend.device)
    free = spectral_filter(x, mask)
    for clip in ((0.1, 0.2), (0.0, float("inf")), (-float("inf"), 0.3), (0.25, 0.25)):
        assert torch.equal(spectral_filter(x, mask, clip=clip), free.clamp(*clip))


# ---- planes that shared memory does not hold -------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [20000, 6000])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("size", [(8, 9), (9, 8), (28, 28), (32, 34), (31, 37), (13, 46), (64, 66), (1, 60)], ids=str)
def test_planes_in_passes(monkeypatch, backend, size, dtype, shared):
    """A GPU whose shared memory holds few columns or rows of a plane, and whose cache holds few planes."""
    if backend.name != "simt":
        pytest.skip("only the executor has a device of any size")
    monkeypatch.setenv("STURDY_SIMT_SHARED_BYTES", str(shared))
    monkeypatch.setenv("STURDY_SIMT_CACHE_BYTES", "30000")
    x = uniform((3, 2, *size), 36, dtype, device=backend.device)
    mask_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    out = check(
        x,
        uniform((2, *size), 37, mask_dtype, device=backend.device),
        "shifted",
        torch.tensor([1, -1, 0], device=backend.device),
        clip=(0.1, 0.6),
    )
    assert torch.equal(out[1], x[1])
    check(x, uniform((1, 2, 1, *size), 38, mask_dtype, device=backend.device))
    assert torch.equal(
        spectral_filter(x[2:], uniform(size, 39, device=backend.device)),
        spectral_filter(x, uniform(size, 39, device=backend.device))[2:],
    )


@pytest.mark.parametrize("size", [(3001, 2), (2, 3001)], ids=str)
def test_sides_too_long_for_shared_memory(monkeypatch, backend, size):
    if backend.name != "simt":
        pytest.skip("only the executor has a device of any size")
    monkeypatch.setenv("STURDY_SIMT_SHARED_BYTES", "6000")
    with pytest.raises(RuntimeError, match="spectral_filter"):
        spectral_filter(uniform((1, 1, *size), 40, device=backend.device), torch.ones(size, device=backend.device))
