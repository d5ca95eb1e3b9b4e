"""wave_add: right values and gradients, on every backend, for every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import fourier as reference
from sturdy.functional import spectrum_waves, wave_add, wave_norm
from support import DTYPES, dtype_id, random, with_layout
from support import uninitialized_memory_is_nan as poisoned

CLIP = (0.0, 1.0)
# One and several tiles and planes a tile on a GPU (4096 pixels, 1024 a side); narrow, wide and ragged rows on the CPU.
SHAPES = [(2, 3, 32, 32), (3, 2, 7, 9), (1, 1, 70, 66), (2, 5, 28, 30), (1, 2, 3, 1030), (1, 1, 1040, 3), (9, 2, 8, 8)]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
Waves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def image(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Uniform in [0, 1], or bytes."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return ((255 * values).round() if dtype == torch.uint8 else values).to(dtype).to(device)


def waves(planes: tuple[int, int], count: int, device: str = "cpu", seed: int = 2) -> Waves:
    """Frequencies up to the limit of sampling, phases of a few turns, amplitudes that make some pixels clip."""
    frequency = random((*planes, count, 2), seed, torch.float64).remainder(1.0) - 0.5
    amplitude, phase = (random((*planes, count), seed + i, torch.float64) for i in (1, 2))
    return frequency.to(device), (0.3 * amplitude).to(device), (5 * phase).to(device)


def check_values(x: torch.Tensor, parameters: Waves, clip=CLIP, dtype=None) -> torch.Tensor:
    out = wave_add(x, *parameters, clip=clip, dtype=dtype)
    exact = reference.wave_add(x, *parameters, clip, torch.float64)
    size = 1 + parameters[1].abs().sum(dim=-1).amax().item() if parameters[1].numel() else 1.0
    assert out.shape == x.shape
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[out.dtype] * size)
    return out


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_sines(backend, shape, dtype):
    x = image(shape, dtype, backend.device)
    out = check_values(x, waves(shape[:2], 1, backend.device))
    assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    check_values(x, waves(shape[:2], 1, backend.device), clip=None)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("count", [0, 2, 8, 9, 21])
def test_several_waves(backend, count, layout):
    for shape in [(2, 3, 20, 37), (1, 2, 65, 70)]:
        x = with_layout(image(shape, device=backend.device), layout)
        check_values(x, waves(shape[:2], count, backend.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=dtype_id)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "channels_last"])
def test_any_strides(backend, layout, dtype):
    shape = (2, 3, 19, 33)
    x = image(shape, torch.float32, backend.device)
    x = with_layout(x, layout) if dtype != torch.uint8 else (255 * image(shape, device=backend.device)).byte()
    if dtype == torch.uint8:
        x = x[:1].expand(shape) if layout == "expanded" else x
        x = x.transpose(2, 3).contiguous().transpose(2, 3) if layout == "transposed" else x
        x = x.repeat_interleave(2, dim=3)[..., ::2] if layout == "sliced" else x
        x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    elif dtype != torch.float32:
        x = with_layout(x.to(dtype), layout)
    parameters = waves(shape[:2], 2, backend.device)
    out = check_values(x, parameters)
    last = layout == "channels_last"
    assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert torch.equal(out, wave_add(x.contiguous(), *parameters, clip=CLIP))


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 17, 40])
def test_channels_last_is_bitwise_the_same(backend, channels):
    x = image((2, channels, 6, 11), device=backend.device)
    parameters = waves((2, channels), 2, backend.device)
    strided = x.contiguous(memory_format=torch.channels_last)
    out = wave_add(strided, *parameters, clip=CLIP)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, wave_add(x, *parameters, clip=CLIP))


@pytest.mark.parametrize("planes", [(1, 1), (3, 1), (1, 2)], ids=str)
def test_shared_parameters(backend, planes):
    x = image((3, 2, 12, 18), device=backend.device)
    shared = waves(planes, 2, backend.device)
    spelled_out = tuple(p.expand(3, 2, *p.shape[2:]).contiguous() for p in shared)
    expected = wave_add(x, *spelled_out, clip=CLIP)
    assert torch.equal(wave_add(x, *shared, clip=CLIP), expected)
    assert torch.equal(wave_add(x, *(with_layout(p, "sliced") for p in shared), clip=CLIP), expected)
    if planes == (1, 1):
        bare = [p[0, 0] for p in shared]
        assert torch.equal(wave_add(x, *bare, clip=CLIP), expected)
        assert torch.equal(wave_add(x[1], *bare, clip=CLIP), expected[1])


def test_numbers_as_parameters(backend):
    x = image((2, 3, 9, 9), device=backend.device)
    frequency = waves((1, 1), 3, backend.device)[0]
    full = torch.full((1, 1, 3), 0.25, dtype=torch.float64, device=backend.device)
    assert torch.equal(wave_add(x, frequency, 0.25, 0.25), wave_add(x, frequency, full, full))
    assert torch.equal(wave_add(x, frequency, 0.25), wave_add(x, frequency, full, torch.zeros_like(full)))


def test_float32_parameters(backend):
    x = image((2, 3, 9, 9), device=backend.device)
    parameters = tuple(p.float() for p in waves((2, 3), 2, backend.device))
    assert torch.equal(wave_add(x, *parameters), wave_add(x, *(p.double() for p in parameters)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_bytes_are_divided_by_255(backend, dtype):
    x = torch.arange(256, dtype=torch.uint8, device=backend.device).reshape(1, 1, 16, 16)
    nothing = torch.zeros(1, 1, 0, 2, device=backend.device)
    out = wave_add(x, nothing, 0.0, dtype=dtype)
    exact = x.to(torch.float64 if dtype == torch.float64 else torch.float32) / 255
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("count", [0, 1, 10])
def test_no_strength_leaves_the_clamp(backend, count):
    x = 3 * random((2, 3, 17, 21), 1, device=backend.device)
    frequency, amplitude, phase = waves((2, 3), count, backend.device)
    out = wave_add(x, frequency, 0 * amplitude, phase, clip=(-0.5, 1.25))
    assert torch.equal(out, x.clamp(-0.5, 1.25))


def test_nan_and_infinity(backend):
    x = image((1, 1, 8, 20), device=backend.device)
    x[0, 0, 2, 3], x[0, 0, 4, 5], x[0, 0, 6, 19] = float("nan"), float("inf"), -float("inf")
    out = wave_add(x, *waves((1, 1), 1, backend.device), clip=CLIP)
    assert out[0, 0, 2, 3].isnan() and out[0, 0, 4, 5] == 1 and out[0, 0, 6, 19] == 0
    assert out.isnan().sum() == 1


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)], ids=str)
def test_empty(backend, shape):
    x = image(shape, device=backend.device).requires_grad_()
    frequency, amplitude, phase = waves((1, 1), 2, backend.device)
    amplitude.requires_grad_()
    out = wave_add(x, frequency, amplitude, phase, clip=CLIP)
    assert out.shape == shape
    grads = torch.autograd.grad(out.sum(), [x, amplitude])
    assert grads[0].shape == shape
    assert torch.equal(grads[1], torch.zeros_like(amplitude))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(32, 32), (9, 14), (65, 80)], ids=str)
def test_an_image_does_not_depend_on_its_batch(backend, size, layout):
    x = with_layout(image((5, 3, *size), device=backend.device), layout).requires_grad_()
    parameters = waves((5, 3), 2, backend.device)
    parameters[1].requires_grad_()
    grad_out = random((5, 3, *size), 7, device=backend.device)
    out = wave_add(x, *parameters, clip=CLIP)
    grads = torch.autograd.grad(out, [x, parameters[1]], grad_out)
    for i in (0, 3):
        one = x.detach()[i : i + 1].requires_grad_()
        its = [p.detach()[i : i + 1] for p in parameters]
        its[1].requires_grad_()
        alone = wave_add(one, *its, clip=CLIP)
        assert torch.equal(alone, out[i : i + 1])
        for got, whole in zip(torch.autograd.grad(alone, [one, its[1]], grad_out[i : i + 1]), grads, strict=True):
            assert torch.equal(got, whole[i : i + 1])


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.cpu)], indirect=True)
def test_does_not_depend_on_threads(backend):
    x = image((1, 3, 200, 90))
    parameters = waves((1, 3), 3)
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            outs.append(wave_add(x, *parameters, clip=CLIP))
        finally:
            torch.set_num_threads(2)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_every_output_is_written(backend, dtype, layout):
    for shape in SHAPES[:4]:
        x = with_layout(image(shape, dtype, backend.device), layout).requires_grad_()
        parameters = waves(shape[:2], 2, backend.device)
        parameters[1].requires_grad_()
        with poisoned():
            out = wave_add(x, *parameters, clip=CLIP)
            grads = torch.autograd.grad(out, [x, parameters[1]], torch.ones_like(out))
        assert not any(t.isnan().any() for t in (out, *grads))


# ---- AFA -------------------------------------------------------------------------------------------------------------


def afa_draw(n: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    k = torch.randint(1, n + 1, (4, 3), generator=generator).to(dtype)
    direction = -math.pi * torch.rand((4, 3), generator=generator).to(dtype)
    strength = 5 * torch.rand((4, 3), generator=generator).to(dtype)
    return k.to(device), direction.to(device), strength.to(device)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize("n", [8, 28, 31, 32, 33, 64, 96, 224])
def test_matches_afa_as_its_authors_compute_it(backend, n, dtype, tolerance):
    x = image((4, 3, n, n) if backend.name != "simt" or n < 96 else (1, 1, n, n), dtype, backend.device)
    draw = [p[: x.shape[0], : x.shape[1]] for p in afa_draw(n, dtype, backend.device)]
    amplitude = draw[2].max().item() * math.sqrt(2) / 32
    out = wave_add(x, *reference.afa_waves(*(p.double() for p in draw), n), clip=CLIP)
    torch.testing.assert_close(out, reference.afa(x, *draw), rtol=0, atol=tolerance * max(amplitude, 1))


@pytest.mark.parametrize("n", [8, 31, 32, 64, 224])
def test_a_unit_of_strength_adds_the_same_at_every_size(backend, n):
    grey = torch.full((1, 3, n, n), 0.5, dtype=torch.float64, device=backend.device)
    k, direction, _ = afa_draw(n, torch.float64, backend.device)
    out = wave_add(grey, *reference.afa_waves(k[:1], direction[:1], torch.ones_like(k[:1]), n), clip=CLIP)
    change = (out - grey).abs().amax().item()
    assert 0.02 < change <= math.sqrt(2) / 32 + 1e-12


# ---- norm ------------------------------------------------------------------------------------------------------------


def measured_norm(frequency: torch.Tensor, phase: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    wave = reference.plane_waves(frequency[:, None, None], phase[:, None, None], size)
    return torch.linalg.vector_norm(wave, dim=(-2, -1)).flatten()


def test_norm_of_afa_is_a_constant():
    generator = torch.Generator().manual_seed(0)
    for n in (8, 28, 31, 32, 33, 64, 96, 224):
        k = torch.randint(1, n + 1, (125,), generator=generator).double()
        direction = -math.pi * torch.rand(125, generator=generator, dtype=torch.float64)
        frequency, _, phase = reference.afa_waves(k, direction, torch.ones_like(k), n)
        exact = n / math.sqrt(2)
        assert (measured_norm(frequency[:, 0], phase[:, 0], (n, n)) / exact - 1).abs().max() < 1e-12
        assert (wave_norm(frequency[:, 0], phase[:, 0], (n, n)) / exact - 1).abs().max() < 1e-12


def test_norm_in_general():
    generator = torch.Generator().manual_seed(1)
    for size in [(2, 3), (7, 7), (12, 31), (39, 20), (1, 9)]:
        frequency = 2 * torch.rand((200, 2), generator=generator, dtype=torch.float64) - 1
        phase = 7 * torch.rand(200, generator=generator, dtype=torch.float64)
        expected = measured_norm(frequency, phase, size)
        relative = (wave_norm(frequency, phase, size) / expected - 1).abs()
        # The square is a difference of numbers of the size of H W: near a vanishing wave less is left of its digits.
        allowed = 1e-11 * (size[0] * size[1] / expected.square()).clamp(min=1)
        assert (relative < allowed).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 11)], ids=str)
def test_norm_at_the_limits(size):
    halves = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    frequency = torch.cartesian_prod(halves, halves)
    for phase in (0.3, math.pi / 2, -math.pi / 4):
        phases = torch.full((36,), phase, dtype=torch.float64)
        expected = measured_norm(frequency, phases, size)
        torch.testing.assert_close(wave_norm(frequency, phase, size), expected, rtol=1e-11, atol=1e-12)
    assert wave_norm(torch.zeros(2), 0.0, size) == 0  # the wave that vanishes
    near = frequency + 1e-9
    expected = measured_norm(near, torch.full((36,), 0.3, dtype=torch.float64), size)
    torch.testing.assert_close(wave_norm(near, 0.3, size), expected, rtol=1e-11, atol=1e-12)


# ---- one frequency taken away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (9, 7), (8, 9), (9, 8)], ids=str)
def test_subtracting_waves_equals_masking_the_spectrum(backend, size):
    height, width = size
    x = random((2, 3, *size), 1, torch.float64, backend.device)
    spectrum = torch.fft.rfft2(x)
    dc, nyquist = [(0, 0)], [(height // 2, 0), (0, width // 2), (height // 2, width // 2)]
    generic = [(1, 2), (3, 0), (height - 1, 1), (2, width - 1), (-2, -1)]
    for row, column in dc + nyquist + generic:
        frequency, amplitude, phase = spectrum_waves(spectrum, torch.tensor([(row, column)]), size)
        out = wave_add(x, frequency, -amplitude, phase)
        torch.testing.assert_close(out, reference.without_bins(x, [(row, column)]), rtol=0, atol=1e-12)
    several = [(0, 0), (1, 2), (2, 1), (height // 2, 0)]
    frequency, amplitude, phase = spectrum_waves(spectrum, torch.tensor(several), size)
    out = wave_add(x, frequency, -amplitude, phase)
    torch.testing.assert_close(out, reference.without_bins(x, several), rtol=0, atol=1e-12)
    single = spectrum_waves(spectrum[0].to(torch.complex64), torch.tensor(several), size)
    out = wave_add(x[0].float(), single[0], -single[1], single[2])
    torch.testing.assert_close(out.double(), reference.without_bins(x[:1], several)[0], rtol=0, atol=5e-6)


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradients(function, x, parameters, grad_out, clip) -> tuple[torch.Tensor, ...]:
    leaf, amplitude = x.detach().requires_grad_(), parameters[1].detach().requires_grad_()
    out = function(leaf, parameters[0], amplitude, parameters[2], clip=clip)
    return torch.autograd.grad(out, [leaf, amplitude], grad_out)


@pytest.mark.parametrize("clip", [None, CLIP], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_gradients_match_reference(backend, layout, dtype, clip):
    for shape, count in [((2, 3, 16, 32), 1), ((2, 3, 9, 13), 2), ((1, 2, 66, 70), 9)]:
        x = with_layout(image(shape, dtype, backend.device), layout)
        parameters = waves(shape[:2], count, backend.device)
        summed = reference.wave_add(x, *parameters, None, torch.float64)
        grad_out = random(shape, 9, dtype, backend.device)
        grad_out = grad_out * ((summed - 0).abs().minimum((summed - 1).abs()) > 1e-4)  # where both sides agree
        grad_out = with_layout(grad_out, layout)
        found = gradients(wave_add, x, parameters, grad_out, clip)
        wanted = gradients(reference.wave_add, x.double(), parameters, grad_out.double(), clip)
        torch.testing.assert_close(found[0].double(), wanted[0], rtol=0, atol=0)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        scale = grad_out.double().abs().sum(dim=(2, 3)).amax().item()
        torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=tolerance * scale)


def test_gradient_of_shared_amplitude_is_the_sum(backend):
    x = image((3, 2, 8, 8), torch.float64, backend.device)
    frequency, amplitude, phase = waves((1, 1), 2, backend.device)
    for shape in [(1, 1, 2), (3, 1, 2), (1, 2, 2), (2,), (1,), ()]:
        leaf = amplitude[0, 0, 0].expand(shape).clone().requires_grad_()
        full = leaf.detach().expand(3, 2, 2).clone().requires_grad_()
        (found,) = torch.autograd.grad(wave_add(x, frequency, leaf, phase).square().sum(), leaf)
        (each,) = torch.autograd.grad(wave_add(x, frequency, full, phase).square().sum(), full)
        torch.testing.assert_close(found, each.sum_to_size(shape), rtol=1e-12, atol=1e-12)
    single = torch.full((1, 1, 2), 0.1, device=backend.device).requires_grad_()
    (found,) = torch.autograd.grad(wave_add(x, frequency, single, phase).sum(), single)
    assert found.dtype == torch.float32


def test_gradient_at_and_beyond_the_bounds(backend):
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, float("nan")], device=backend.device)
    x = x.reshape(1, 1, 1, 6).requires_grad_()
    out = wave_add(x, torch.zeros(1, 2, device=backend.device), 0.0, clip=CLIP)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.flatten().tolist() == [0, 1, 1, 1, 0, 0]


def test_bytes_have_no_gradient_but_their_amplitude_has(backend):
    x = image((2, 3, 8, 9), torch.uint8, backend.device)
    frequency, amplitude, phase = waves((2, 3), 1, backend.device)
    amplitude.requires_grad_()
    (found,) = torch.autograd.grad(wave_add(x, frequency, amplitude, phase, clip=CLIP).sum(), amplitude)
    exact = reference.wave_add(x, frequency, amplitude, phase, CLIP, torch.float64)
    (wanted,) = torch.autograd.grad(exact.sum(), amplitude)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_frequency_and_phase_get_no_gradient(backend):
    x = image((1, 1, 8, 8), torch.float64, backend.device)
    leaves = [p.requires_grad_() for p in waves((1, 1), 1, backend.device)]
    wave_add(x, *leaves).sum().backward()
    assert leaves[0].grad is None and leaves[2].grad is None and leaves[1].grad is not None


@pytest.mark.parametrize("clip", [None, (-3.0, 3.0)], ids=str)
def test_gradcheck(backend, clip):
    x = image((2, 2, 5, 6), torch.float64, backend.device).requires_grad_()
    frequency, amplitude, phase = waves((2, 1), 2, backend.device)
    amplitude.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: wave_add(x, frequency, a, phase, clip=clip), (x, amplitude))


def test_second_derivative_is_refused(backend):
    x = image((1, 1, 5, 6), torch.float64, backend.device).requires_grad_()
    frequency, amplitude, phase = waves((1, 1), 1, backend.device)
    out = wave_add(x, frequency, amplitude.requires_grad_(), phase, clip=CLIP)
    (grad,) = torch.autograd.grad(out.square().sum(), amplitude, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.sum().backward()


def test_keeps_the_input_only_where_it_is_needed(backend):
    x = image((2, 3, 16, 16), device=backend.device)
    frequency, amplitude, phase = waves((2, 3), 1, backend.device)
    for clip, kept_image in ((None, False), (CLIP, True)):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            wave_add(x, frequency, amplitude.requires_grad_(), phase, clip=clip)
        assert (x.numel() in kept) == kept_image
        assert sum(kept) <= x.numel() * kept_image + 4 * amplitude.numel()


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    count=st.integers(0, 10),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "channels_last"]),
    shared=st.booleans(),
)
def test_random_cases(backend, batch, channels, size, count, dtype, layout, shared):
    x = with_layout(image((batch, channels, *size), dtype, backend.device), layout)
    check_values(x, waves((1, 1) if shared else (batch, channels), count, backend.device))
