"""Masks: their effective form, DFM-X and the fixed filter on them, and their files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sturdy.transforms import DominantFrequencyMix, SpectralFilter, effective_mask, half_mask, load_masks, save_masks

F64 = torch.float64
SIZES = [(8, 8), (7, 9), (9, 8), (8, 9), (1, 8), (2, 2), (1, 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=F64)


def filtered(x: Tensor, mask: Tensor) -> Tensor:
    """The authors' way: whole spectrum, frequency 0 moved to the middle and back, real part."""
    axes = (-2, -1)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x.double()), dim=axes) * mask
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=axes)).real


# ---- effective masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_effective_mask_filters_the_same(size):
    x, mask = random(2, 3, *size), random(*size, seed=2)
    effective = effective_mask(mask)
    wanted = filtered(x, mask)
    torch.testing.assert_close(filtered(x, effective), wanted, rtol=0, atol=1e-14)
    half = torch.fft.irfft2(torch.fft.rfft2(x) * half_mask(mask), s=size)
    torch.testing.assert_close(half, wanted, rtol=0, atol=1e-14)
    assert torch.equal(effective_mask(effective), effective)


def test_effective_values_of_a_binary_mask():
    mask = random(6, 6) < 0.5
    assert effective_mask(mask).dtype == torch.float32
    assert set(effective_mask(mask).flatten().tolist()) <= {0.0, 0.5, 1.0}
    with pytest.raises(TypeError, match="real"):
        effective_mask(torch.zeros(4, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        effective_mask(torch.zeros(4))


# ---- SpectralFilter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_filter_values(size):
    x, mask = random(3, 2, *size), random(*size, seed=2)
    with pytest.warns(UserWarning, match="differ from their mirror images"):
        module = SpectralFilter(mask)
    torch.testing.assert_close(module(x), filtered(x, mask), rtol=0, atol=1e-12)
    torch.testing.assert_close(module(x.float()).double(), filtered(x, mask), rtol=0, atol=5e-6)
    half = SpectralFilter(half_mask(mask), layout="half")
    torch.testing.assert_close(half(x), filtered(x, mask), rtol=0, atol=1e-12)


def test_filter_per_image_and_p():
    x, masks = random(4, 2, 8, 6), effective_mask(random(4, 8, 6, seed=2))
    module = SpectralFilter(masks, per_image=True)
    wanted = filtered(x, masks[:, None])
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-12)
    index = torch.tensor([0, -1, 2, -1])
    found = module(x, params={"index": index})
    assert torch.equal(found[1::2], x[1::2])
    torch.testing.assert_close(found[::2], wanted[::2], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="4 masks for 3 images"):
        module(x[:3])
    assert torch.equal(SpectralFilter(masks[0], p=0)(x), x)
    some = SpectralFilter(torch.zeros(8, 6), p=0.4, generator=seeded(3))(x.repeat(500, 1, 1, 1))
    share = (some == 0).flatten(1).all(1).double().mean().item()
    assert abs(share - 0.4) < 4 * math.sqrt(0.24 / 2000)


def test_filter_identity_mean_and_clip():
    x = random(2, 3, 8, 8)
    torch.testing.assert_close(SpectralFilter(torch.ones(8, 8))(x), x, rtol=0, atol=1e-12)
    dc = torch.zeros(8, 8)
    dc[4, 4] = 1
    torch.testing.assert_close(SpectralFilter(dc)(x), x.mean((-2, -1), keepdim=True).expand_as(x), rtol=0, atol=1e-12)
    no_mean = SpectralFilter(1 - dc, clip=(0, 1))(x)
    torch.testing.assert_close(no_mean, filtered(x, 1 - dc).clamp(0, 1), rtol=0, atol=1e-12)
    pixels = (x * 255).to(torch.uint8)
    assert SpectralFilter(torch.ones(8, 8))(pixels).dtype == torch.float32
    torch.testing.assert_close(SpectralFilter(torch.ones(8, 8))(pixels), pixels / 255, rtol=0, atol=5e-6)


def test_filter_state_dict_and_float_types():
    mask = effective_mask(random(8, 8).float())
    source, target = SpectralFilter(mask), SpectralFilter(torch.ones(8, 8))
    target.load_state_dict(source.state_dict())
    x = random(1, 1, 8, 8)
    assert torch.equal(target(x), source(x))
    assert source.half()(x.half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "exception", "text"),
    [
        (lambda: SpectralFilter(torch.ones(3, 8, 8)), ValueError, r"must be \(H, W\)"),
        (lambda: SpectralFilter(torch.ones(8, 8), per_image=True), ValueError, r"\(N, H, W\)"),
        (lambda: SpectralFilter(torch.ones(8, 8, dtype=torch.complex64)), TypeError, "real"),
        (lambda: SpectralFilter(torch.ones(8, 8), layout="full"), ValueError, "layout"),
        (lambda: SpectralFilter(torch.ones(8, 8), clip=(2, 1)), ValueError, "clip"),
        (lambda: SpectralFilter(torch.eye(8).roll(1, 1), strict=True), ValueError, "16 cells"),
        (
            lambda: SpectralFilter(torch.ones(8, 8))(torch.zeros(1, 3, 8, 9)),
            ValueError,
            r"\(8, 9\).*\(8, 5\).*\(8, 8\)",
        ),
        (lambda: SpectralFilter(torch.ones(8, 8))(torch.zeros(1, 3, 6, 8)), ValueError, r"\(6, 8\)"),
        (lambda: SpectralFilter(torch.ones(8, 5), layout="half")(torch.zeros(1, 3, 8, 7)), ValueError, r"\(8, 4\)"),
    ],
)
def test_filter_errors(make, exception, text):
    with pytest.raises(exception, match=text):
        make()


# ---- DFM-X -----------------------------------------------------------------------------------------------------------


def masks_of(classes: int = 5, size: tuple[int, int] = (8, 6)) -> Tensor:
    return effective_mask(random(classes, *size, seed=3) < 0.5)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("keep_dc", [False, True])
def test_mix_filters_by_the_drawn_class(invert, keep_dc):
    masks = masks_of()
    x, y = random(40, 3, 8, 6), torch.arange(40) % 5
    mix = DominantFrequencyMix(masks, p=1.0, invert=invert, keep_dc=keep_dc, num_classes=5, generator=seeded())
    index = mix.make_params([x], labels=y)["index"]
    found, labels = mix(x, y, params={"index": index})
    assert labels is y
    assert (index != y).all() and index.min() == -1
    used = masks.double().clone()
    used = 1 - used if invert else used
    if keep_dc:
        used[:, 4, 3] = 1
    for i, m in enumerate(index.tolist()):
        if m < 0:
            assert torch.equal(found[i], x[i])
        else:
            torch.testing.assert_close(found[i], filtered(x[i], used[m]), rtol=0, atol=1e-12)


def test_mix_commutes_with_normalisation_if_the_mean_is_kept():
    x, y = random(20, 3, 8, 6), torch.zeros(20, dtype=torch.int64)
    mix = DominantFrequencyMix(masks_of(), p=1.0, generator=seeded())
    params = mix.make_params([x], labels=y)
    after = (mix.transform(x, params) - 0.4) / 0.2
    torch.testing.assert_close(mix.transform((x - 0.4) / 0.2, params), after, rtol=0, atol=1e-12)


def test_mix_draws_classes_uniformly():
    count, classes, p = 100_000, 5, 0.3
    x, y = torch.zeros(1, 1, 8, 6).expand(count, -1, -1, -1), torch.arange(count) % classes
    index = DominantFrequencyMix(masks_of(), p=p, generator=seeded(2)).make_params([x], labels=y)["index"]
    share = p * (classes - 1) / classes
    assert abs((index >= 0).double().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / count)
    table = torch.zeros(classes, classes).index_put((y[index >= 0], index[index >= 0]), torch.tensor(1.0), True)
    assert (table.diagonal() == 0).all()
    expected = count * p / classes**2
    off = table[~torch.eye(classes, dtype=torch.bool)]
    chi_square = ((off - expected) ** 2 / expected).sum().item()
    assert chi_square < 50  # about 20 degrees of freedom: probability 2e-4


def test_mix_finds_labels():
    x, y = random(4, 1, 8, 6), torch.tensor([0, 1, 2, 3])
    mix = DominantFrequencyMix(masks_of(), p=1.0)
    wanted = mix(x, y, generator=seeded())[0]
    assert torch.equal(mix((x, y), generator=seeded())[0], wanted)
    assert torch.equal(mix({"image": x, "target": y}, generator=seeded())["image"], wanted)
    assert torch.equal(mix(x, {"labels": y}, generator=seeded())[0], wanted)
    assert mix(x[0], 3)[1] == 3
    assert mix(x[0], torch.tensor(3))[0].shape == (1, 8, 6)


@pytest.mark.parametrize(
    ("labels", "exception", "text"),
    [
        (torch.tensor([0, 5]), IndexError, "label 5"),
        (torch.tensor([-1, 0]), IndexError, "label -1"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, "int64"),
        (torch.tensor([0.0, 1.0]), TypeError, "int64"),
        (torch.tensor([0, 1, 2]), ValueError, r"\(2,\)"),
        ("cat", TypeError, "str"),
    ],
    ids=str,
)
def test_bad_labels(labels, exception, text):
    with pytest.raises(exception, match=f"DominantFrequencyMix: .*{text}"):
        DominantFrequencyMix(masks_of())(random(2, 1, 8, 6), labels)


def test_bad_masks():
    with pytest.raises(TypeError, match="needs labels"):
        DominantFrequencyMix(masks_of())(random(2, 1, 8, 6))
    with pytest.raises(ValueError, match="5 masks for 10 classes"):
        DominantFrequencyMix(masks_of(), num_classes=10)
    with pytest.raises(ValueError, match=r"\(8, 6\)"):
        DominantFrequencyMix(torch.ones(8, 6))
    with pytest.raises(ValueError, match=r"\(8, 8\), or \(8, 5\)"):
        DominantFrequencyMix(masks_of(), p=1)(torch.zeros(1, 3, 8, 8), torch.tensor([0]))
    with pytest.raises(ValueError, match="mirror"):
        DominantFrequencyMix(random(2, 4, 4), strict=True)
    with pytest.warns(UserWarning, match="mirror"):
        DominantFrequencyMix(random(2, 4, 4))
    masks = torch.ones(3, 4, 4)
    masks[1] = 0
    with pytest.warns(UserWarning, match="class 1 is 0 everywhere"):
        mix = DominantFrequencyMix(masks)
    flat = mix.transform(random(1, 1, 4, 4), {"index": torch.tensor([1])})
    assert flat.std() < 1e-6


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files(tmp_path):
    masks = {"resnet18": (random(3, 4, 4) < 0.5).float(), "soft": random(3, 4, 4, seed=2).float()}
    order = torch.arange(16).reshape(4, 4)
    path = tmp_path / "masks.npz"
    save_masks(path, masks, order)
    found = load_masks(path)
    assert found.masks.keys() == masks.keys() and torch.equal(found.removal_order, order)
    assert all(torch.equal(found.masks[name], masks[name]) for name in masks)
    with np.load(path) as file:
        assert file["resnet18"].dtype == np.uint8 and file["soft"].dtype == np.float32


def test_a_file_as_the_authors_publish_them(tmp_path):
    """Bytes for the masks, int16 for the order, frequency 0 in the middle."""
    random_numbers = np.random.default_rng(0)
    masks = random_numbers.integers(0, 2, (10, 32, 32)).astype(np.uint8)
    order = random_numbers.integers(0, 544, (32, 32)).astype(np.int16)
    np.savez(tmp_path / "dfms.npz", removal_order=order, resnet18=masks, vgg11=masks)
    found = load_masks(tmp_path / "dfms.npz")
    assert set(found.masks) == {"resnet18", "vgg11"} and found.removal_order.dtype == torch.int64
    assert found.masks["vgg11"].dtype == torch.float32 and found.masks["vgg11"].sum() == masks.sum()
    mix = DominantFrequencyMix(effective_mask(found.masks["resnet18"]), p=1.0, num_classes=10)
    assert mix(torch.zeros(2, 3, 32, 32), torch.tensor([3, 4]))[0].shape == (2, 3, 32, 32)
    assert load_masks(tmp_path / "dfms.npz").removal_order.max() == int(order.max())


def test_bad_files(tmp_path):
    def refused(text: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=rf"bad\.npz.*{text}"):
            load_masks(tmp_path / "bad.npz")

    good = np.ones((3, 4, 4))
    refused("no masks", removal_order=np.ones((4, 4), int))
    refused("two must be real masks", two=np.ones((4, 4)))
    refused("mixed must be real masks", mixed=good + 1j)
    refused("not finite", infinite=good * np.inf)
    refused("same height and width", one=good, other=np.ones((3, 5, 4)))
    refused("removal_order must be integers", good=good, removal_order=np.ones((4, 4)))
    refused("truncated or not", pickled=np.array([{}]))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=r"bad\.npz is truncated or not a file of masks"):
        load_masks(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        load_masks(tmp_path / "none.npz")
    for bad in (
        dict(masks={}),
        dict(masks={"removal_order": torch.ones(1, 2, 2)}),
        dict(masks={"a": torch.ones(2, 2)}),
    ):
        with pytest.raises(ValueError, match="save_masks"):
            save_masks(tmp_path / "a.npz", **bad)
    with pytest.raises(ValueError, match=r"\.npz"):
        save_masks(tmp_path / "a.txt", {"a": torch.ones(1, 2, 2)})
