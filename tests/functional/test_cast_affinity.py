"""cast_affinity: right values at every size, dtype and layout; padding that stays where it is; ties that stay ties."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cast_support import make_tokens, poison_padding, random_padding
from reference import cast as reference
from sturdy.functional import cast_affinity, cast_cluster
from support import DTYPES, dtype_id, random

NAN, INF = math.nan, math.inf
# Scores are sums of products over h e; those of up to 150 standard normal numbers, divided by their root, are wrong by
# a few rounding units of float32, and affinities by that times themselves. Results are rounded to float32.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 3e-6, torch.float16: 3e-6, torch.bfloat16: 3e-6}


def run(given, padding=None, **options):
    return cast_affinity(given.q, given.k, given.surrogates, given.phi, key_padding_mask=padding, **options)


def check(given, padding=None, tolerance=None, **options):
    found = run(given, padding, **options)
    wide = given.double()
    options.pop("allow_tf32", None)
    mask = None if padding is None else padding.cpu()
    exact = reference.affinity(wide.q, wide.k, wide.surrogates, wide.phi, mask, **options)
    assert found.shape == exact.shape and found.dtype == torch.float32
    assert found.transpose(1, 2).is_contiguous()
    got = found.cpu().double()
    there = torch.ones(exact.shape[:2], dtype=torch.bool) if mask is None else ~mask
    assert (got[~there] == -INF).all()
    error = ((got - exact)[there].abs() / exact[there].clamp(min=1e-30)).max().item() if there.any() else 0.0
    sharper = math.sqrt(given.q.shape[1] * given.q.shape[3]) / (options.get("tau_g") or INF)
    bound = tolerance or TOLERANCE[given.q.dtype] * max(1.0, sharper)
    assert error <= bound, f"error {error:.2e}"
    return found


# ---- values ----

SHAPES = {
    "small": {},
    "one head": {"heads": 1, "dim": 20, "tokens": 70, "clusters": 5},
    "odd": {"heads": 3, "dim": 5, "tokens": 67, "clusters": 7},
    "wide": {"batch": 1, "heads": 8, "dim": 64, "tokens": 65, "clusters": 16},  # two blocks of depth
    "many clusters": {"batch": 1, "heads": 2, "dim": 16, "tokens": 33, "clusters": 150},
    "tiles": {"batch": 2, "heads": 2, "dim": 32, "tokens": 145, "clusters": 17},
    "no depth": {"dim": 0, "tokens": 5},
    "one of each": {"batch": 1, "heads": 1, "dim": 1, "tokens": 1, "clusters": 1},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_definition(backend, shape, packed, dtype):
    tokens = make_tokens(dtype=dtype, device=backend.device, packed=packed, **SHAPES[shape])
    tau_g = 1.0 if shape == "no depth" else None
    check(tokens, tau_g=tau_g)
    check(tokens, random_padding(tokens.q.shape[0], tokens.q.shape[2], device=backend.device), tau_g=tau_g)


@given(data=st.data())
def test_any_call(backend, data):
    sizes = {
        name: data.draw(st.integers(*bounds), label=name)
        for name, bounds in (("batch", (1, 2)), ("heads", (1, 4)), ("tokens", (1, 70)), ("dim", (1, 40)))
    }
    clusters = data.draw(st.integers(1, 24), label="clusters")
    dtype, phi_dtype = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([None, torch.float32]))
    packed = data.draw(st.booleans())
    tokens = make_tokens(
        **sizes, clusters=clusters, dtype=dtype, device=backend.device, packed=packed, phi_dtype=phi_dtype
    )
    padding = None
    if data.draw(st.booleans()):
        padding = random_padding(sizes["batch"], sizes["tokens"], device=backend.device)
    check(tokens, padding, tau_g=data.draw(st.sampled_from([None, 1.5])))


@pytest.mark.parametrize("clusters", [5, 70])
def test_tensor_cores_of_float32(backend, clusters):
    """10 fraction bits of each factor; the CPU rounds nothing."""
    tokens = make_tokens(heads=2, dim=32, tokens=70, clusters=clusters, device=backend.device)
    exact = run(tokens, allow_tf32=False)
    found = check(tokens, tolerance=5e-3, allow_tf32=True)
    assert torch.equal(found, exact) == (backend.name == "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_large_scores(backend, dtype):
    """Products up to 1e4 and beyond: a softmax of one cluster, and still the right one."""
    tokens = make_tokens(heads=1, dim=4, device=backend.device)
    tokens = tokens.but(q=100 * tokens.q, k=-100 * tokens.k, surrogates=100 * tokens.surrogates)
    tokens = tokens.but(**{name: getattr(tokens, name).to(dtype) for name in ("q", "k", "surrogates", "phi")})
    found = run(tokens)
    wide = tokens.double()
    exact = reference.affinity(wide.q, wide.k, wide.surrogates, wide.phi)
    assert found.isfinite().all()
    assert (found.cpu().double() - exact).abs().max() <= 2e-3
    torch.testing.assert_close(found.sum(2), torch.ones_like(found[:, :, 0]), rtol=0, atol=1e-6)


def test_gates_at_their_ends(backend):
    tokens = make_tokens(tokens=4, device=backend.device)
    phi = torch.tensor([INF, -INF, 200.0, -200.0], device=backend.device).expand(2, 4)
    found = run(tokens.but(phi=phi))
    only_queries = run(tokens.but(k=tokens.q, phi=torch.zeros_like(phi)))
    only_keys = run(tokens.but(q=tokens.k, phi=torch.zeros_like(phi)))
    torch.testing.assert_close(found[:, 0::2], only_queries[:, 0::2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[:, 1::2], only_keys[:, 1::2], rtol=1e-6, atol=1e-7)


# ---- ties ----


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("clusters", [6, 90])
def test_equal_surrogates_are_equally_near(backend, clusters, dtype):
    """To the last bit, whatever the gate: pk + g (pq - pk) keeps ties, g pq + (1 - g) pk would not."""
    tokens = make_tokens(heads=2, dim=24, tokens=60, clusters=clusters, dtype=dtype, device=backend.device)
    tokens = tokens.but(surrogates=tokens.surrogates[:, :1].expand(-1, clusters, -1).contiguous())
    found = run(tokens)
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    chosen = cast_cluster(found, None, "sa_topk")
    least = 60 // clusters
    sizes = [least + (c < 60 % clusters) for c in range(clusters)]
    assert chosen.counts.tolist() == [sizes] * 2
    expected = torch.repeat_interleave(torch.arange(clusters), torch.tensor(sizes))
    assert torch.equal(chosen.assignment.cpu().long(), expected.expand(2, -1))
    first = cast_cluster(found, 7)
    assert torch.equal(first.index.cpu().long(), torch.arange(7).expand(2, clusters, 7))


# ---- padding ----


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("share", [0.3, 1.0], ids=["some", "all"])
def test_padding_does_not_leak(backend, dtype, share):
    tokens = make_tokens(tokens=130, dtype=dtype, device=backend.device)
    padding = random_padding(2, 130, share=share, device=backend.device)
    clean = run(tokens, padding)
    found = run(poison_padding(tokens, padding), padding)
    assert torch.equal(clean, found)
    assert (found[padding] == -INF).all() and found[~padding].isfinite().all()
    assert torch.equal(found[~padding], run(tokens)[~padding])


def test_padding_of_any_strides(backend):
    tokens = make_tokens(tokens=50, device=backend.device)
    padding = random_padding(50, 2, device=backend.device).t()
    assert torch.equal(run(tokens, padding), run(tokens, padding.contiguous()))
    one = random_padding(1, 50, device=backend.device).expand(2, -1)
    assert torch.equal(run(tokens, one), run(tokens, one.contiguous()))


def test_a_nan_stays_with_its_token(backend):
    tokens = make_tokens(tokens=70, clusters=20, device=backend.device)
    clean = run(tokens)
    q, k, phi = tokens.q.clone(), tokens.k.clone(), tokens.phi.clone()
    q[0, 1, 3, 2] = NAN
    k[1, 0, 66, 0] = INF
    phi[1, 5] = NAN
    found = run(tokens.but(q=q, k=k, phi=phi))
    wrong = torch.zeros(2, 70, dtype=torch.bool)
    wrong[0, 3] = wrong[1, 66] = wrong[1, 5] = True
    assert found.cpu()[wrong].isnan().all()
    assert torch.equal(found.cpu()[~wrong], clean.cpu()[~wrong])


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"tokens": 0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_nothing(backend, sizes, dtype):
    tokens = make_tokens(dtype=dtype, device=backend.device, **sizes)
    found = run(tokens)
    assert found.shape == (tokens.q.shape[0], tokens.q.shape[2], 3) and found.dtype == torch.float32


# ---- the same bits however it is computed ----


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dim", [7, 16, 32])
def test_bits_do_not_depend_on_strides(backend, dim, dtype):
    tokens = make_tokens(heads=3, dim=dim, tokens=75, clusters=10, dtype=dtype, device=backend.device)
    found = run(tokens)

    def moved(tensor, *order):
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return tensor.permute(order).contiguous().permute(inverse)

    def offset(tensor):
        room = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), NAN)
        room[..., 1 : tensor.shape[-1] + 1] = tensor
        return room[..., 1 : tensor.shape[-1] + 1]

    for q, k in (
        (moved(tokens.q, 0, 2, 1, 3), moved(tokens.k, 0, 2, 1, 3)),  # heads behind each other
        (moved(tokens.q, 2, 0, 1, 3), tokens.k),
        (offset(tokens.q), offset(tokens.k)),
    ):
        assert torch.equal(run(tokens.but(q=q, k=k)), found)
    surrogates = moved(tokens.surrogates, 1, 0, 2)
    phi = tokens.phi.t().contiguous().t()
    assert torch.equal(run(tokens.but(surrogates=surrogates, phi=phi)), found)
    assert torch.equal(run(tokens.but(surrogates=offset(tokens.surrogates))), found)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_a_row_depends_on_its_token(backend, dtype):
    tokens = make_tokens(batch=3, heads=2, dim=40, tokens=150, clusters=9, dtype=dtype, device=backend.device)
    found = run(tokens)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0)).to(backend.device)
    mixed = tokens.but(q=tokens.q[:, :, order], k=tokens.k[:, :, order], phi=tokens.phi[:, order])
    assert torch.equal(run(mixed), found[:, order])
    short = tokens.but(q=tokens.q[1:2, :, :41], k=tokens.k[1:2, :, :41], phi=tokens.phi[1:2, :41])
    assert torch.equal(run(short), found[1:2, :41])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_bits_do_not_depend_on_threads(backend, dtype):
    tokens = make_tokens(heads=2, dim=130, tokens=140, clusters=20, dtype=dtype, device=backend.device)
    found = run(tokens)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(run(tokens), found)
    finally:
        torch.set_num_threads(threads)


ISA_CHECK = """
import torch
from sturdy.functional import cast_affinity, cast_cluster
g = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    q, k = (torch.randn(2, 2, 101, 151, generator=g).to(dtype) for _ in range(2))
    s, phi = torch.randn(2, 21, 151, generator=g).to(dtype), torch.randn(2, 101, generator=g).to(dtype)
    found = cast_affinity(q, k, s, phi).double()
    f = lambda x: torch.softmax(torch.einsum("bhne,hce->bnc", x.double(), s.double()) / 302**0.5, 2)
    exact = torch.lerp(f(k), f(q), torch.sigmoid(phi.double())[..., None])
    print(((found - exact).abs() / exact).max().item())
x = torch.randn(2, 7, 3000, generator=g)
for a in (torch.round(torch.softmax(x - torch.arange(7)[:, None], 1) * 2**20), torch.round(x)):
    for method in ("topk", "sa_topk"):
        found = cast_cluster(a.transpose(1, 2), None, method, lengths=torch.tensor([3000, 1999]))
        print((found.index.long() * torch.arange(found.index.numel()).view_as(found.index)).sum().item())
"""


def on_level(isa):
    return subprocess.Popen(
        [sys.executable, "-c", ISA_CHECK], env={**os.environ, "STURDY_ISA": isa}, stdout=subprocess.PIPE, text=True
    )


def test_instruction_sets():
    """Each within its rounding; which tokens are chosen is the same on all."""
    runs = [on_level(isa) for isa in ("portable", "avx2", "avx512")]
    outputs = [process.communicate()[0].split() for process in runs]
    assert all(process.returncode == 0 for process in runs)
    for output in outputs:
        for dtype, error in zip(DTYPES, map(float, output[:4]), strict=True):
            assert error <= 2 * TOLERANCE[dtype], (dtype, error)
        assert output[4:] == outputs[0][4:] and len(output) == 8


def test_memory_of_the_result(backend):
    """Tokens of one head lie apart, as a projection to q, k and v leaves them; the result has clusters first."""
    together = random((2, 40, 3, 2, 16), 1, device=backend.device)
    q, k, _ = together.permute(2, 0, 3, 1, 4).unbind()
    assert not q.is_contiguous()
    found = cast_affinity(q, k, random((2, 4, 16), 2, device=backend.device), random((2, 40), 3, device=backend.device))
    assert found.stride() == (160, 1, 40)
