"""What cast_attention computes: against its definition, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cast_attention_support import TOLERANCE, assert_close, assert_same, attend
from cast_support import Tokens, make_tokens, poison_padding, random_index, random_padding
from reference import cast as reference
from sturdy.functional import cast_attention
from support import DTYPES, dtype_id, random, uninitialized_memory_is_nan, with_layout

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
methods = pytest.mark.parametrize("method", ["topk", "sa_topk"])
overlaps = pytest.mark.parametrize("disjoint", [False, True], ids=["overlapping", "disjoint"])


def assert_is_reference(given, index, disjoint=False, padding=None, seed=0, dropout=0.0, **temperatures):
    more = dict(temperatures)
    scale = {"scale": 1 / more.pop("tau")} if "tau" in more else {}
    key = {"seed": torch.tensor(seed, device=given.q.device), "dropout": dropout} if dropout else {}
    found = attend(given, index, disjoint, padding, **scale, **key, **more)
    cpu = index.cpu(), None if padding is None else padding.cpu()
    exact = reference.attention(*given.double().all(), *cpu, **temperatures, seed=seed, dropout=dropout)
    assert_close(found, exact.out)


# ---- the definition --------------------------------------------------------------------------------------------------

# N, e, C, kappa
SIZES = [
    (1, 1, 1, 1),
    (5, 8, 7, 1),
    (40, 16, 3, 31),
    (33, 7, 4, 9),
    (70, 32, 16, 8),
    (66, 40, 1, 64),
    (67, 64, 3, 64),
    (20, 128, 3, 7),
]
LARGE = [(300, 64, 3, 200), (1100, 8, 2, 1024), (1500, 16, 1, 1500), (300, 33, 64, 31), (700, 130, 5, 513)]


@dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(backend, size, dtype):
    tokens, dim, clusters, slots = size
    given = make_tokens(1, 2, tokens, dim, clusters, dtype, backend.device, packed=True)
    assert_is_reference(given, random_index(1, tokens, clusters, slots, device=backend.device))


@dtypes
@pytest.mark.parametrize("size", [(40, 16, 3, 13), (70, 8, 5, 14), (64, 32, 2, 40)], ids=str)
def test_values_of_disjoint_clusters(backend, size, dtype):
    tokens, dim, clusters, slots = size
    given = make_tokens(2, 2, tokens, dim, clusters, dtype, backend.device, phi_dtype=torch.float32)
    index = random_index(2, tokens, clusters, slots, disjoint=True, device=backend.device)
    assert_is_reference(given, index, disjoint=True)


@pytest.mark.cpu
@dtypes
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_values_of_large_clusters_on_the_cpu(size, dtype):
    tokens, dim, clusters, slots = size
    given = make_tokens(1, 1, tokens, dim, clusters, dtype)
    assert_is_reference(given, random_index(1, tokens, clusters, slots))


@dtypes
@overlaps
def test_padding_and_empty_slots_anywhere(backend, disjoint, dtype):
    padding = random_padding(3, 50, device=backend.device)
    padding[2] = True
    given = make_tokens(3, 2, 50, 8, 4, dtype, backend.device)
    index = random_index(3, 50, 4, 20, disjoint=disjoint, padding=padding, holes=True, device=backend.device)
    assert (index[:, 0] == -1).all()
    assert (index[2] == -1).all()
    poisoned = poison_padding(given, padding)
    assert_is_reference(poisoned, index, disjoint, padding)
    out = attend(poisoned, index, disjoint, padding)
    assert (out.transpose(1, 2)[padding] == 0).all()


def test_temperatures(backend):
    given = make_tokens(device=backend.device)
    index = random_index(2, 21, 3, 9, device=backend.device)
    assert_is_reference(given, index, tau=0.7, tau_q=1.9, tau_k=0.4)


@dtypes
def test_kept_tensors(backend, dtype):
    padding = random_padding(2, 40, device=backend.device)
    given = make_tokens(2, 2, 40, 8, 4, dtype, backend.device)
    index = random_index(2, 40, 4, 20, padding=padding, holes=True, device=backend.device)
    args = (*given.all(), index, padding, None, 0.0, 0.0, 0.0, 0.0, False, False)
    with uninitialized_memory_is_nan():
        found = backend.op("cast_attention")(*args, True)
    exact = reference.attention(*given.double().all(), index.cpu(), padding.cpu())
    for name, one, wanted in zip(exact._fields, found, exact, strict=True):
        there = wanted.isfinite()
        assert torch.equal(one.cpu().isneginf(), ~there), name
        finite = [tensor.cpu().double()[there] for tensor in (one, wanted)]
        bound = TOLERANCE[dtype] * float(finite[1].abs().max())
        assert float((finite[0] - finite[1]).abs().max()) <= bound, name
    assert torch.equal(backend.op("cast_attention")(*args, False)[0], found[0])


# ---- what follows from it --------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("clusters", [1, 7])
def test_clusters_of_all_tokens_are_dot_product_attention(backend, clusters, dtype):
    given = make_tokens(2, 2, 37, 16, clusters, dtype, backend.device)
    index = torch.arange(37, dtype=torch.int32, device=backend.device).expand(2, clusters, 37).contiguous()
    q, k, v = (tensor.double().cpu() for tensor in given.all()[:3])
    assert_close(attend(given, index), F.scaled_dot_product_attention(q, k, v))


@methods
@dtypes
@pytest.mark.parametrize("size", [1, 10])
def test_constant_values_stay(backend, size, dtype, method):
    given = make_tokens(2, 2, 30, 8, 30 if size == 1 else 3, dtype, backend.device)
    given = given.but(v=torch.full_like(given.v, 1.25))
    out = cast_attention(*given.all(), size, method=method)
    # Weights sum to 1 up to one rounding for each of at most 60 of them, and of the result.
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps * 64
    assert float((out.double() - 1.25).abs().max()) <= 1.25 * (sums + 2 * torch.finfo(dtype).eps)


@overlaps
def test_permuted_tokens_give_permuted_rows(backend, disjoint):
    given = make_tokens(1, 2, 40, 8, 3, torch.float64, backend.device)
    index = random_index(1, 40, 3, 13, disjoint=disjoint, device=backend.device)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).to(backend.device)
    moved = Tokens(*(t[:, :, order] for t in given.all()[:3]), given.surrogates, given.phi[:, order])
    place = order.argsort().int()
    moved_index = torch.where(index < 0, index, place[index.long().clamp(min=0)])
    assert_close(attend(moved, moved_index, disjoint), attend(given, index, disjoint)[:, :, order])


@overlaps
def test_names_of_clusters_do_not_matter(backend, disjoint):
    given = make_tokens(2, 2, 40, 8, 4, torch.float64, backend.device)
    index = random_index(2, 40, 4, 10, disjoint=disjoint, device=backend.device)
    order = torch.tensor([2, 0, 3, 1], device=backend.device)
    moved = given.but(surrogates=given.surrogates[:, order])
    assert_close(attend(moved, index[:, order].contiguous(), disjoint), attend(given, index, disjoint))


@methods
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_id)
def test_padding_behind_a_sequence_changes_nothing(backend, dtype, method):
    long = make_tokens(2, 2, 137, 8, 3, dtype, backend.device)
    short = Tokens(*(t[:, :, :100] for t in long.all()[:3]), long.surrogates, long.phi[:, :100])
    padding = torch.zeros(2, 137, dtype=torch.bool, device=backend.device)
    padding[:, 100:] = True
    poisoned = poison_padding(long, padding)
    size = 34 if method == "topk" else None  # None: as many slots as the tokens there are need
    out = cast_attention(*poisoned.all(), size, method=method, lengths=torch.tensor([100, 100], device=backend.device))
    masked = cast_attention(*poisoned.all(), size, method=method, key_padding_mask=padding)
    assert torch.equal(out, masked)
    assert_close(out[:, :, :100], cast_attention(*short.all(), size, method=method))
    assert (out[:, :, 100:] == 0).all()


@methods
def test_padding_anywhere_is_as_if_it_were_not_there(backend, method):
    given = make_tokens(1, 2, 60, 8, 3, torch.float64, backend.device)
    padding = random_padding(1, 60, device=backend.device)
    there = ~padding[0]
    short = Tokens(*(t[:, :, there] for t in given.all()[:3]), given.surrogates, given.phi[:, there])
    poisoned = poison_padding(given, padding)
    size = 20 if method == "topk" else None
    out = cast_attention(*poisoned.all(), size, method=method, key_padding_mask=padding)
    assert_close(out[:, :, there], cast_attention(*short.all(), size, method=method))
    assert (out[:, :, ~there] == 0).all()


@methods
@pytest.mark.parametrize(
    "sizes",
    [{"tokens": 1}, {"tokens": 2, "clusters": 5}, {"batch": 0}, {"tokens": 0}, {"heads": 0}],
    ids=["one_token", "fewer_tokens_than_clusters", "no_sequences", "no_tokens", "no_heads"],
)
def test_smallest_sizes(backend, sizes, method):
    given = make_tokens(device=backend.device, **sizes)
    leaves = given.leaves()
    out = cast_attention(*leaves.all(), method=method)
    assert out.shape == given.q.shape
    assert out.isfinite().all()
    for leaf, grad in zip(leaves.all(), torch.autograd.grad(out.sum(), leaves.all()), strict=True):
        assert grad.shape == leaf.shape
        assert grad.isfinite().all()


@methods
@pytest.mark.parametrize("left", [0, 1])
def test_sequences_of_padding(backend, left, method):
    padding = torch.ones(2, 21, dtype=torch.bool, device=backend.device)
    padding[0] = False
    padding[1, :left] = False
    given = poison_padding(make_tokens(device=backend.device), padding).leaves()
    out = cast_attention(*given.all(), method=method, key_padding_mask=padding)
    grads = torch.autograd.grad(out, given.all(), torch.ones_like(out))
    for tensor in (out, *grads):
        assert tensor.isfinite().all()
    if left:
        assert_close(out[1, :, 0].detach(), given.v[1, :, 0].detach())  # attends to itself alone
    assert (out[1, :, left:] == 0).all()
    assert all((grad[1, :, left:] == 0).all() for grad in grads[:3])
    assert (grads[4][1, left:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores(backend, sign, dtype):
    given = make_tokens(1, 2, 40, 16, 3, dtype, backend.device)
    # e products of 25 by 25: 1e4, over temperatures of 1.
    side = given.but(
        q=torch.full_like(given.q, 25.0),
        k=torch.full_like(given.k, sign * 25.0) + given.k,
        surrogates=torch.full_like(given.surrogates, sign * 25.0) + given.surrogates,
    ).leaves()
    index = random_index(1, 40, 3, 20, device=backend.device)
    out = attend(side, index, scale=1.0, tau_q=1.0, tau_k=1.0)
    grads = torch.autograd.grad(out, side.all(), torch.ones_like(out))
    assert all(tensor.isfinite().all() for tensor in (out, *grads))
    assert float(out.detach().abs().max()) <= float(given.v.abs().max()) * 1.01  # means of values


# ---- dropout ---------------------------------------------------------------------------------------------------------


@dtypes
@overlaps
def test_dropout_drops_what_the_hash_says(backend, disjoint, dtype):
    padding = random_padding(2, 50, device=backend.device)
    given = make_tokens(2, 2, 50, 8, 3, dtype, backend.device)
    index = random_index(2, 50, 3, 17, disjoint=disjoint, padding=padding, holes=True, device=backend.device)
    assert_is_reference(given, index, disjoint, padding, seed=-(2**62) + 12345, dropout=0.3)


def test_dropout_statistics(backend):
    tokens, p = 64, 0.25
    given = make_tokens(1, 4, tokens, 4, 1, device=backend.device)
    given = given.but(q=torch.zeros_like(given.q), v=torch.ones_like(given.v))
    index = torch.arange(tokens, dtype=torch.int32, device=backend.device).reshape(1, 1, tokens)
    seeds = [torch.tensor(seed, device=backend.device) for seed in (1, 2)]
    out = attend(given, index, dropout=p, seed=seeds[0])
    assert torch.equal(out, attend(given, index, dropout=p, seed=seeds[0]))
    assert not torch.equal(out, attend(given, index, dropout=p, seed=seeds[1]))
    # All weights are 1 / N, so a row is the number of those kept over N (1 - p): binomial.
    rows = out[..., 0].double().cpu()
    kept = rows * tokens * (1 - p)
    assert float((kept - kept.round()).abs().max()) < 1e-3
    spread = math.sqrt(p / (1 - p) / tokens)
    assert abs(float(rows.mean()) - 1) < 5 * spread / math.sqrt(rows.numel())
    assert abs(float(rows.std()) / spread - 1) < 5 / math.sqrt(2 * rows.numel())


def test_dropout_of_nothing_is_none(backend):
    given = make_tokens(device=backend.device)
    index = random_index(2, 21, 3, 9, device=backend.device)
    seed = torch.tensor(3, device=backend.device)
    assert torch.equal(attend(given, index, dropout=0.0, seed=seed), attend(given, index))


# ---- the same bits ---------------------------------------------------------------------------------------------------


@dtypes
@overlaps
def test_a_sequence_alone_has_the_bits_it_has_among_others(backend, disjoint, dtype):
    given = make_tokens(3, 2, 70, 16, 3, dtype, backend.device)
    index = random_index(3, 70, 3, 23, disjoint=disjoint, device=backend.device)
    together = attend(given, index, disjoint)
    for b in range(3):
        alone = Tokens(*(t[b : b + 1] for t in given.all()[:3]), given.surrogates, given.phi[b : b + 1])
        assert torch.equal(attend(alone, index[b : b + 1], disjoint), together[b : b + 1])


@pytest.mark.cpu
@dtypes
@overlaps
@pytest.mark.parametrize(
    "size", [(1, 1, 300, 24, 5, 60), (1, 1, 600, 8, 16, 20), (2, 3, 90, 8, 3, 30), (1, 2, 1300, 8, 2, 600)], ids=str
)
def test_threads_change_no_bit(size, disjoint, dtype):
    batch, heads, tokens, dim, clusters, slots = size
    given = make_tokens(batch, heads, tokens, dim, clusters, dtype)
    index = random_index(batch, tokens, clusters, slots, disjoint=disjoint)
    grad_out = random(tuple(given.q.shape), 8, dtype)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            leaves = given.leaves()
            out = attend(leaves, index, disjoint)
            results.append((out.detach(), *torch.autograd.grad(out, leaves.all(), grad_out)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same(results[0], other)


# ---- memory ----------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", ["packed", "rows", "sliced", "transposed", "expanded", "offset"])
def test_layouts(backend, layout, dtype):
    given = make_tokens(2, 2, 30, 8, 3, dtype, backend.device, packed=layout == "packed")
    index = random_index(2, 30, 3, 12, device=backend.device)
    if layout == "rows":
        given = given.but(**{n: getattr(given, n).transpose(1, 2).contiguous().transpose(1, 2) for n in "qkv"})
    elif layout == "offset":
        stored = [F.pad(t.flatten(), (1, 0), value=float("nan"))[1:].view(t.shape) for t in given.all()]
        given = Tokens(*stored)
    elif layout != "packed":
        given = Tokens(*(with_layout(t, layout) for t in given.all()))
    plain = Tokens(*(t.contiguous() for t in given.all()))
    assert torch.equal(attend(given, index), attend(plain, index))


@overlaps
def test_every_element_is_written_and_none_is_read_before(backend, disjoint):
    padding = random_padding(2, 50, device=backend.device)
    given = poison_padding(make_tokens(2, 2, 50, 8, 4, torch.float32, backend.device), padding)
    options = {"disjoint": disjoint, "padding": padding, "holes": True, "device": backend.device}
    index = random_index(2, 50, 4, 12, **options)
    expected = attend(given, index, disjoint, padding)
    nans = make_tokens(2, 2, 50, 8, 4, torch.float32, backend.device)
    nans = Tokens(*(torch.full_like(t, float("nan")) for t in nans.all()))
    attend(
        nans, random_index(2, 50, 4, 12, disjoint=disjoint, device=backend.device), disjoint
    )  # leaves NaN in scratch
    with uninitialized_memory_is_nan():
        assert torch.equal(attend(given, index, disjoint, padding), expected)
