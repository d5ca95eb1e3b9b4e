"""Prime: chains against the same written out, the distributions of what is drawn, options and errors."""

from __future__ import annotations

import math

import pytest
import torch

from reference import prime as reference
from sturdy import functional
from sturdy.transforms import Prime, PrimePreset
from sturdy.transforms.prime import PRESETS, field_deviation, temperatures

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int, dtype: torch.dtype = F64, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=F64).to(dtype)


def chains(x: torch.Tensor, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """One image, chain and change after the other."""
    out = torch.empty_like(x)
    for n in range(len(x)):
        kind = params["kind"][n]
        total = torch.zeros_like(x[:1])
        for chain in range(kind.shape[0]):
            state = x[n : n + 1]
            for step in range(kind.shape[1]):
                at = (n, chain, step)
                if kind[chain, step] == 0:
                    fields = params["field"][n if len(params["field"]) > 1 else 0, step]
                    state = reference.sine_warp(state, fields[None])
                elif kind[chain, step] == 1:
                    first = int(params["first"][at])
                    state = reference.smooth_color(state, params["color"][at][None], (0, 1), first)
                elif kind[chain, step] == 2:
                    state = reference.filter2d(state, params["kernel"][at], (0, 1))
            total += params["weights"][n, chain] * state
        out[n] = (1 - params["share"][n]) * x[n] + params["share"][n] * total[0]
    return out


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "imagenet"},
        {"width": 1, "depth": 1},
        {"width": 4, "depth": 5, "center": "reference"},
        {"same_field": True},
        {"p": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(12, 12), (9, 20), (2, 2), (1, 5)], ids=str)
def test_chains_written_out(size, options):
    x = image(8, 3, *size)
    prime = Prime(generator=generator(), **options)
    params = prime.make_params([x])
    torch.testing.assert_close(prime(x, params=params), chains(x, params), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    x = image(6, 3, 16, 16, dtype=dtype)
    prime = Prime(generator=generator(), depth=1)
    params = prime.make_params([x])
    found = prime(x, params=params)
    assert found.dtype == dtype
    # A warp and a filter pass rounding on; a change of colour makes it as steep as it is itself.
    steep = 1 + 100 * math.pi * params["color"].abs().sum(dim=-1).amax().item()
    tolerance = 2 * torch.finfo(dtype).eps + 1e-6 * steep
    torch.testing.assert_close(found.double(), prime(x.double(), params=params), rtol=0, atol=tolerance)


def test_uint8_gives_what_its_values_give():
    pixels = (image(6, 3, 16, 16) * 255).to(torch.uint8)
    prime = Prime(generator=generator())
    params = prime.make_params([pixels])
    found = prime(pixels, params=params)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, prime(pixels / 255, params=params), rtol=0, atol=1e-5)
    assert Prime(dtype=torch.float16)(pixels).dtype == torch.float16


def test_results_are_in_the_range():
    found = Prime(generator=generator())(image(64, 3, 32, 32, dtype=torch.float32))
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6 and found.isfinite().all()


def test_each_change_is_computed_for_the_images_that_drew_it(monkeypatch):
    seen = {"sine_warp": 0, "smooth_color": 0, "filter2d": 0}
    for name in seen:
        op = getattr(functional, name)

        def counted(x, *args, _name=name, _op=op, **options):
            seen[_name] += len(x)
            return _op(x, *args, **options)

        monkeypatch.setattr(functional, name, counted)
    x = image(20, 1, 8, 8)
    prime = Prime(generator=generator())
    params = prime.make_params([x])
    prime(x, params=params)
    assert list(seen.values()) == [int((params["kind"] == number).sum()) for number in range(3)]
    assert sum(seen.values()) < 3 * 3 * 20


def test_images_have_parameters_of_their_own():
    x = image(1, 3, 16, 16).expand(30, -1, -1, -1)
    assert len({bytes(row) for row in Prime(generator=generator())(x).numpy()}) == 30


def test_center():
    still = PrimePreset(3, 1, 0.0, None, 0.0)
    x = image(40, 3, 12, 12)
    true = Prime(1, 1, still, generator=generator())
    params = true.make_params([x])
    filtered = params["kind"][:, 0, 0] == 2
    assert 5 < filtered.sum() < 25
    torch.testing.assert_close(true(x, params=params)[filtered], x[filtered], rtol=0, atol=1e-12)
    reference_mode = Prime(1, 1, still, "reference", generator=generator())
    params = reference_mode.make_params([x])
    shifted = torch.zeros_like(x)
    shifted[..., :-1, :-1] = x[..., 1:, 1:]
    share = params["share"][:, None, None, None]
    wanted = (1 - share) * x + share * shifted
    torch.testing.assert_close(reference_mode(x, params=params)[filtered], wanted[filtered], rtol=0, atol=1e-12)


def test_same_field():
    prime = Prime(same_field=True, generator=generator())
    params = prime.make_params([image(7, 3, 16, 16)])
    assert params["field"].shape == (1, 3, 2, 14, 14) and (params["field"] != 0).any()
    assert Prime().make_params([image(7, 3, 16, 16)])["field"].shape == (7, 3, 2, 14, 14)


def test_p():
    x = image(400, 1, 4, 4, dtype=torch.float32)
    prime = Prime(p=0.3, generator=generator())
    params = prime.make_params([x])
    changed = (params["kind"] >= 0).flatten(1).any(dim=1)
    assert 0.2 < changed.float().mean() < 0.4
    found = prime(x, params=params)
    assert torch.equal(found[~changed], x[~changed])
    assert torch.equal(Prime(p=0)(x), x)
    pixels = (255 * x).to(torch.uint8)
    assert torch.equal(Prime(p=0)(pixels), pixels / 255)


def test_no_gradient():
    x = image(4, 3, 8, 8).requires_grad_()
    assert not Prime()(x).requires_grad


def test_unneeded_fields_are_not_made():
    prime = Prime(generator=generator())
    params = prime.make_params([image(30, 1, 8, 8)])
    used = (params["kind"] == 0).any(dim=1)
    assert torch.equal((params["field"] != 0).flatten(2).any(dim=2), used)


# ---- distributions ---------------------------------------------------------------------------------------------------


def near(found: torch.Tensor, wanted: torch.Tensor | float, deviation: torch.Tensor | float, count: int) -> None:
    """A mean of ``count`` numbers lies within five of its own standard deviations."""
    error = (found - wanted).abs()
    assert (error <= 5 * torch.as_tensor(deviation) / math.sqrt(count)).all(), (found, wanted)


def test_weights_shares_lengths_and_kinds():
    count = 20000
    params = Prime(generator=generator(), preset=PrimePreset(3, 1, 0.01, None, 1.0)).make_params(
        [image(count, 1, 1, 1)]
    )
    weights, share, kind = params["weights"], params["share"], params["kind"]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(count, dtype=F64))
    assert (weights >= 0).all()
    near(weights.mean(dim=0), 1 / 3, math.sqrt(1 / 18), count)  # Dirichlet(1, 1, 1)
    near(weights.square().mean(dim=0), 1 / 6, 0.2, count)
    near(share.mean(), 0.5, math.sqrt(1 / 12), count)
    near(share.square().mean(), 1 / 3, 0.3, count)
    length = (kind >= 0).sum(dim=2)
    assert (kind[:, :, 1:] < 0)[kind[:, :, :-1] < 0].all()
    for value in (1, 2, 3):
        near((length == value).double().mean(), 1 / 3, 0.5, 3 * count)
    drawn = kind[kind >= 0]
    for value in (0, 1, 2):
        near((drawn == value).double().mean(), 1 / 3, 0.5, len(drawn))


def test_kernels():
    count = 3000
    params = Prime(generator=generator(), preset=PrimePreset(3, 1, 0.01, None, 4.0)).make_params(
        [image(count, 1, 1, 1)]
    )
    noise = params["kernel"].double()
    noise[..., 1, 1] -= 1
    samples = 9 * count
    near(noise.mean(dim=(0, 1, 2)), 0.0, math.sqrt(16 / 3), samples)
    near(noise.square().mean(dim=(0, 1, 2)), 16 / 3, math.sqrt(3 * 256 / 5), samples)  # E[s^2], s uniform on 0 to 4


def test_colors_of_cifar():
    count = 700
    params = Prime(generator=generator()).make_params([image(count, 3, 1, 1)])
    assert params["color"].shape == (count, 3, 3, 3, 100) and (params["first"] == 1).all()
    k = torch.arange(1, 101)
    wanted = 0.005 * (101 - k) / 100  # the mean variance, times the probability that the cut-off is k or more
    chains_of_one = params["color"].double().square().flatten(0, 2)
    near(chains_of_one.mean(dim=(0, 1)), wanted, 0.02, 9 * count)
    lengths = (params["color"] != 0).sum(dim=-1)
    assert torch.equal(lengths[..., 0], lengths[..., 1])
    near(lengths[..., 0].double().mean(), 50.5, 29.0, 9 * count)


def test_colors_of_imagenet():
    count = 2000
    params = Prime(generator=generator(), preset="imagenet").make_params([image(count, 1, 1, 1)])
    color, first = params["color"][..., 0, :], params["first"]
    length = (color != 0).sum(dim=-1)
    assert color.shape[-1] == 20 and length.min() == 1 and length.max() == 20
    assert first.min() >= 1 and (first + length).max() <= 501
    # E[first] = E[(cut + 1) / 2] and E[cut] = 250.5.
    near(first.double().mean(), 125.75, 112.0, 9 * count)
    # A band ends at the cut-off: P(length < 20 | cut) = min(19, cut) / cut.
    cut = torch.arange(1, 501).double()
    near((length < 20).double().mean(), (cut.clamp(max=19) / cut).mean(), 0.5, 9 * count)
    near(color[..., 0].double().square().mean(), 0.025, 0.06, 9 * count)


def test_cut_of_fields():
    """Images three pixels high have one sine along rows, and along columns the cut-off of them."""
    count = 4000
    prime = Prime(1, 1, generator=generator())
    params = prime.make_params([image(count, 1, 3, 128)])
    field = params["field"][params["kind"][:, 0, 0] == 0][:, 0, 0, :, 0]  # (warps, 100)
    cut = (field != 0).sum(dim=1)
    assert cut.min() >= 2 and cut.max() <= 100
    assert torch.equal((field != 0), torch.arange(100) < cut[:, None])
    values = torch.arange(2, 101).double()

    def below(b: torch.Tensor) -> torch.Tensor:  # distribution function of Beta(1/2, 1/2)
        return 2 / math.pi * torch.asin(torch.sqrt(b.clamp(0, 1)))

    most = torch.arange(3, 101).double()[:, None]
    probability = (below((values - 1) / (most - 1)) - below((values - 2) / (most - 1))).mean(dim=0)
    assert abs(probability.sum() - 1) < 1e-12
    mean, square = (probability * values).sum(), (probability * values**2).sum()
    near(cut.double().mean(), mean, torch.sqrt(square - mean**2), len(cut))
    near((cut == 2).double().mean(), probability[0], 0.5, len(cut))
    near((cut <= 20).double().mean(), probability[:19].sum(), 0.5, len(cut))


def test_temperatures():
    """Half a pixel at least, by the formula of the typical displacement, n sqrt(pi T ln(c)) / 2."""
    cut = torch.tensor([2.0, 5.0, 20.0, 100.0], dtype=F64)
    low, high = temperatures(32, cut)
    torch.testing.assert_close(
        32 * torch.sqrt(math.pi * low * cut.log()) / 2, torch.full_like(cut, 0.5), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(high[0], 4 / (math.pi**3 * 4 * cut[0].log()), rtol=1e-5, atol=0)
    assert torch.equal(high[3:], low[3:]) and (high[:3] > low[:3]).all()  # until the second falls below the first


@pytest.mark.parametrize("size", [(12, 12), (9, 14), (3, 5), (40, 33)], ids=str)
def test_fields_have_the_variance_of_the_full_sum(size):
    """At every pixel: sum over i and j with r < c + 1/2 of sin^2 sin^2 / r^2."""
    cut = torch.tensor([2.0, 7.0, 20.0, 60.0])
    folded = field_deviation(cut, size, 60).double().square()
    found = torch.einsum(
        "nij,ic,jr->nrc",
        folded,
        reference.sines(folded.shape[1], size[1], cut.device).square(),
        reference.sines(folded.shape[2], size[0], cut.device).square(),
    )
    k = torch.arange(1, 61).double()
    r = torch.sqrt(k[:, None] ** 2 + k**2)
    full = torch.where(r < cut[:, None, None] + 0.5, 1 / r**2, 0.0)
    columns, rows = (reference.sines(60, side, cut.device).square() for side in (size[1], size[0]))
    wanted = torch.einsum("nij,ic,jr->nrc", full, columns, rows)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_fields_displace_as_their_temperature_says():
    """The mean square in the middle of the image, over many fields of one cut-off and temperature."""
    prime = Prime(1, 1, generator=generator())
    count = 3000
    uniform = iter([0.4, 0.3, 0.6])  # of the largest cut-off, the cut-off and the temperature

    def draw(*shape: int) -> torch.Tensor:
        value = next(uniform, None) if not shape else None
        if value is not None:
            return torch.full((count,), value, dtype=F64)
        return torch.rand((count, *shape), generator=prime.generator, dtype=F64)

    field = prime._field(draw, torch.zeros(count, 1, dtype=torch.int64), 17, 17)
    below = 3 + math.floor(0.4 * 98)
    cut = torch.tensor([math.floor(2 + (below - 1) * math.sin(math.pi / 2 * 0.3) ** 2)], dtype=F64)
    low, high = temperatures(17, cut)
    temperature = low + math.sin(math.pi / 2 * 0.6) ** 2 * (high - low)
    moved = reference.fields(field, (17, 17))
    deviation = field_deviation(cut, (17, 17), 100).double()
    sines = reference.sines(15, 17, field.device).square()
    wanted = temperature * 17**2 * torch.einsum("nij,ic,jr->nrc", deviation.square(), sines, sines)
    for axis in (0, 1):
        near(moved[:, axis, 8, 8].square().mean(), wanted[0, 8, 8], math.sqrt(2) * wanted[0, 8, 8], count)
        near(moved[:, axis, 3, 10].square().mean(), wanted[0, 3, 10], math.sqrt(2) * wanted[0, 3, 10], count)
    near((moved[:, 0, 8, 8] * moved[:, 1, 8, 8]).mean(), 0.0, wanted[0, 8, 8], count)


def test_presets():
    assert PRESETS["cifar"] == PrimePreset(100, 100, 0.01, None, 4.0)
    assert PRESETS["imagenet"] == PrimePreset(500, 500, 0.05, 20, 4.0)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"preset": "cifar100"}, "preset must be one of 'cifar', 'imagenet'"),
        ({"center": "middle"}, "center must be"),
        ({"p": -0.1}, "p must be in"),
    ],
    ids=str,
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=f"Prime: {text}"):
        Prime(**options)


@pytest.mark.parametrize(
    "change", [{"warp_cut": 2}, {"color_cut": 0}, {"color_band": 0}, {"filter_sigma": -1.0}], ids=str
)
def test_bad_presets(change):
    values = {
        "warp_cut": 3,
        "color_cut": 1,
        "color_temperature": 0.0,
        "color_band": None,
        "filter_sigma": 0.0,
        **change,
    }
    with pytest.raises(ValueError, match="PrimePreset"):
        PrimePreset(**values)


def test_repr():
    assert "preset='imagenet'" in repr(Prime(preset="imagenet")) and "warp_cut=3" in repr(
        Prime(preset=PrimePreset(3, 1, 0.0, None, 0.0))
    )
