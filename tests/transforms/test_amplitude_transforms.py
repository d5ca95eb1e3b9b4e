"""AmplitudeMix and SelfAmplitudeMix: values, sampling, partners, windows, batches of one, bad options."""

from __future__ import annotations

import math
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sturdy.functional import amplitude_mix
from sturdy.transforms import AmplitudeMix, SelfAmplitudeMix


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, size: tuple[int, int] = (12, 10), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand((count, 3, *size), generator=seeded(9)).to(dtype)


def authors(x: Tensor, index: Tensor) -> Tensor:
    """APR-P: amplitude and angle of the transform of channels, rows and columns."""
    spectrum = torch.fft.fftn(x.double(), dim=(1, 2, 3))
    return torch.fft.ifftn(spectrum.abs()[index] * torch.exp(1j * spectrum.angle()), dim=(1, 2, 3)).real


# ---- AmplitudeMix ----------------------------------------------------------------------------------------------------


def test_apr_is_that_of_the_authors():
    x = images()
    transform = AmplitudeMix(p=1.0, generator=seeded())
    params = transform.make_params([x])
    index = params["index"]
    assert sorted(index.tolist()) == list(range(6)) and not torch.equal(index, torch.arange(6))
    assert params["strength"].tolist() == [1.0] * 6
    found = transform(x, params=params)
    torch.testing.assert_close(found.double(), authors(x, index), rtol=0, atol=2e-5)
    assert found.min() < 0 or found.max() > 1  # nothing is clamped
    clipped = AmplitudeMix(p=1.0, clip=(0.0, 1.0))(x, params=params)
    assert torch.equal(clipped, found.clamp(0, 1))


def test_images_that_are_not_chosen_stay():
    x = images(200, (4, 6))
    transform = AmplitudeMix(generator=seeded())
    params = transform.make_params([x])
    kept = params["index"] < 0
    assert 0.28 < kept.double().mean() < 0.52
    found = transform(x, params=params)
    assert torch.equal(found[kept], x[kept]) and not (found == x)[~kept].flatten(1).all(1).any()
    assert torch.equal(AmplitudeMix(p=0.0)(x), x)


def test_a_whole_batch_or_none():
    x = images(50, (4, 6))
    transform = AmplitudeMix(generator=seeded(), same_on_batch=True)
    found = [transform.make_params([x])["index"] for _ in range(300)]
    assert all((index < 0).all() or sorted(index.tolist()) == list(range(50)) for index in found)
    changed = [index for index in found if (index >= 0).all()]
    assert 0.5 < len(changed) / 300 < 0.7
    assert len({tuple(index.tolist()) for index in changed}) == len(changed)


def test_every_image_is_as_often_the_other_one():
    """Each of 5 x 5 pairs about 400 times in 2000 draws, whose standard deviation is 18."""
    transform, x = AmplitudeMix(p=1.0, generator=seeded(1)), images(5, (1, 1))
    counts = torch.zeros(5, 5)
    for _ in range(2000):
        counts[torch.arange(5), transform.make_params([x])["index"]] += 1
    assert counts.min() > 310 and counts.max() < 490


def test_fact_draws_a_share():
    x = images(2000, (1, 2))
    params = AmplitudeMix("fact", 0.5, generator=seeded()).make_params([x])
    assert (params["index"] >= 0).all() and params["strength"].min() >= 0 and params["strength"].max() < 0.5
    assert params["strength"].mean().item() == pytest.approx(0.25, abs=0.02)
    x = images()
    transform = AmplitudeMix("fact", generator=seeded())
    params = transform.make_params([x])
    wanted = amplitude_mix(x, index=params["index"], strength=params["strength"])
    assert torch.equal(transform(x, params=params), wanted)


def test_fda_takes_low_frequencies_of_a_target():
    x, target = images(6, (32, 20)), images(9, (32, 20)) * 0.5
    transform = AmplitudeMix("fda", window=0.09, target=target, generator=seeded())
    params = transform.make_params([x])
    assert params["index"].min() >= 0 and params["index"].max() < 9
    found = transform(x, params=params)
    before, after = torch.fft.fft2(x.double()), torch.fft.fft2(found.double())
    rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() for n in (32, 20))
    inside = (rows <= 2)[:, None] & (columns <= 1)
    assert (after - before)[..., ~inside].abs().max() < 1e-3
    taken = torch.fft.fft2(target[params["index"]].double()).abs()
    assert (after.abs() - taken)[..., inside].abs().max() < 1e-3
    # By default only the mean changes at this size.
    means = AmplitudeMix("fda", target=target)(x, params=params).mean((-2, -1))
    torch.testing.assert_close(means, target[params["index"]].mean((-2, -1)), rtol=0, atol=1e-6)


def test_a_target_serves_single_images_and_is_no_state():
    x, target = images(1)[0], (images(4) * 255).to(torch.uint8)
    transform = AmplitudeMix(target=target, p=1.0, generator=seeded())
    index = transform.make_params([x])["index"]
    found = transform(x, params={"index": index, "strength": torch.ones(1, dtype=torch.float64)})
    assert found.shape == x.shape
    wanted = amplitude_mix(x[None], target.float() / 255, index=index, color_fft=True)
    assert torch.equal(found, wanted[0])
    assert transform.state_dict() == {} and transform.double().target.dtype == torch.float64
    with pytest.raises(ValueError, match=r"target are \(3, 12, 10\), those to change \(3, 12, 11\)"):
        transform(torch.rand(2, 3, 12, 11))


@pytest.mark.parametrize("x", [images(1), images(1)[0], images(1).to(torch.float64)], ids=["batch", "image", "double"])
def test_one_image_stays_with_a_warning(x):
    with pytest.warns(UserWarning, match="AmplitudeMix: one image has no other"):
        found = AmplitudeMix(p=1.0)(x)
    assert torch.equal(found, x)


def test_bytes_half_precision_and_double():
    x = (images() * 255).to(torch.uint8)
    transform = AmplitudeMix(p=1.0, generator=seeded())
    params = transform.make_params([x])
    wanted = transform(x.float() / 255, params=params)
    assert torch.equal(transform(x, params=params), wanted)
    half = AmplitudeMix(p=1.0, dtype=torch.float16)(x, params=params)
    assert half.dtype == torch.float16 and (half.float() - wanted).abs().max() < 2e-3
    assert transform(images(dtype=torch.float64), params=params).dtype == torch.float64


def test_no_gradient():
    x = images().requires_grad_()
    assert not AmplitudeMix(p=1.0)(x).requires_grad


@pytest.mark.parametrize(
    ("options", "exception", "text"),
    [
        ({"kind": "aprs"}, ValueError, "kind must be 'apr', 'fact' or 'fda', got 'aprs'"),
        ({"lam": 1.5}, ValueError, r"lam must be in \[0, 1\], got 1.5"),
        ({"lam": math.nan}, ValueError, "lam must be in"),
        ({"window": -0.1}, ValueError, "window must be one or two shares"),
        ({"window": (0.1, 0.1, 0.1)}, ValueError, "window must be"),
        ({"p": 1.5}, ValueError, "p must be in"),
        ({"clip": (1, 0)}, ValueError, "clip must be"),
        ({"target": torch.rand(3, 4, 4)}, ValueError, r"target must be \(M, C, H, W\).*got shape \(3, 4, 4\)"),
        ({"target": torch.rand(0, 3, 4, 4)}, ValueError, "M at least 1"),
        ({"strength": 1}, TypeError, "unexpected keyword"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], exception: type[Exception], text: str):
    with pytest.raises(exception, match=text):
        AmplitudeMix(**options)


def test_repr():
    text = repr(AmplitudeMix("fda", window=(0.1, 0.2), target=images(2)))
    assert text == "AmplitudeMix('fda', lam=1, window=(0.1, 0.2), target=(2, 3, 12, 10), color_fft=False, p=1)"


# ---- SelfAmplitudeMix ------------------------------------------------------------------------------------------------


def recombined(**options: Any) -> SelfAmplitudeMix:
    pytest.importorskip("torchvision")
    return SelfAmplitudeMix(**options)


def row(first: int, second: int | None = None, *, strength: float = 0.9, swap: bool = False) -> dict[str, Tensor]:
    """Parameters that choose operations by their number."""
    chosen = [(first + 0.5) / 9, strength, 0.1]
    other = [0.9, 0.5, 0.5, 0.5] if second is None else [0.1, (second + 0.5) / 9, strength, 0.1]
    return {"numbers": torch.tensor([[0.0, *chosen, *other, 0.1 if swap else 0.9]], dtype=torch.float64)}


def test_single_operations():
    from importlib import import_module

    transform = recombined()
    v2 = import_module("torchvision.transforms.v2.functional")
    x = (images(1, (24, 24)) * 255).to(torch.uint8)[0]
    for number, wanted in {
        0: v2.autocontrast(x),
        1: v2.equalize(x),
        2: v2.posterize(x, 3),
        4: v2.solarize(x, 187),
    }.items():
        assert torch.equal(transform(x, params=row(number)), wanted.float() / 255)
    moved = transform(x, params=row(7))
    assert torch.equal(moved[..., 2:], x[..., :-2].float() / 255) and not moved[..., :2].any()
    down = transform(x, params=row(8))
    assert torch.equal(down[:, 2:], x[:, :-2].float() / 255) and not down[:, :2].any()
    stripes = x[..., :1].expand(3, 24, 24).contiguous()
    for image, number, axis in ((stripes, 5, -1), (stripes.mT.contiguous(), 6, -2)):
        sheared, before = transform(image, params=row(number)), image.float() / 255
        inside = slice(3, 21)  # 0.3 * 0.27 * 24 pixels at most come from outside
        assert torch.equal(sheared.movedim(axis, 0)[inside], before.movedim(axis, 0)[inside])
        assert not torch.equal(sheared, before)
    assert not torch.equal(transform(x, params=row(3)), x.float() / 255)


@pytest.mark.parametrize("swap", [False, True])
def test_two_versions_are_recombined(swap):
    transform = recombined()
    x = (images(1, (24, 24)) * 255).to(torch.uint8)
    first = transform(x, params=row(4))
    second = transform((first * 255).round().to(torch.uint8), params=row(0))
    phases, amplitudes = (second, first) if swap else (first, second)
    wanted = amplitude_mix(phases, amplitudes, color_fft=True, clip=(0.0, 1.0))
    found = transform(x, params=row(4, 0, swap=swap))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not torch.equal(found, first) and found.min() >= 0 and found.max() <= 1


def test_recombination_of_a_batch():
    x = images(40, (16, 16))
    transform = recombined(p=0.7, generator=seeded(2))
    params = transform.make_params([x])
    found = transform(x, params=params)
    kept = params["numbers"][:, 0] >= 0.7
    assert torch.equal(found[kept], x[kept]) and 5 < kept.sum() < 20
    for n in range(0, 40, 7):
        alone = transform(x[n], params={"numbers": params["numbers"][n : n + 1]})
        assert torch.equal(alone, found[n])
    assert torch.equal(pickle.loads(pickle.dumps(transform))(x, params=params), found)
    last = transform(x.contiguous(memory_format=torch.channels_last), params=params)
    assert torch.equal(last, found) and last.is_contiguous(memory_format=torch.channels_last)


def test_recombination_needs_torchvision_and_colours(monkeypatch):
    transform = recombined()
    with pytest.raises(TypeError, match="1 or 3 channels, got 4"):
        transform(torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match="severity must be in"):
        SelfAmplitudeMix(0.5)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ImportError, match="SelfAmplitudeMix: needs torchvision"):
        SelfAmplitudeMix()
