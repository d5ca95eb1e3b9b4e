"""cast_cluster: the one right choice at every size and layout, with ties and without, whatever the threads."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cast_support import random_padding
from reference import cast as reference
from sturdy.functional import cast_cluster
from support import with_layout

NAN, INF = math.nan, math.inf
# As they come in memory: clusters first, tokens first, and apart from each other.
LAYOUTS = ["transposed", "contiguous", "sliced"]
KINDS = ["random", "tied", "constant", "dominant", "skewed", "trend", "special"]


def scores(kind, batch, tokens, clusters, seed=1):
    """Affinities that are distinct, rounded, all equal, all for one cluster, for clusters in the same order, ascending
    along the sequence, or anything but ordinary."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, tokens, clusters), generator=generator)
    if kind == "random":
        return torch.softmax(x, 2)
    if kind == "tied":
        return torch.round(2 * x) / 4
    if kind == "constant":
        return torch.full_like(x, 1 / clusters)
    if kind == "dominant":
        x = torch.softmax(x, 2)
        x[:, :, clusters // 2] += 1
        return x
    if kind == "skewed":
        return torch.softmax(x - 2 * torch.arange(clusters), 2)
    if kind == "trend":
        return torch.arange(tokens)[:, None] / max(tokens, 1) + torch.round(x[:, :1])
    values = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 1.0, 2.0])
    return values[torch.randint(0, len(values), x.shape, generator=generator)]


def run(backend, affinity, size=None, method="topk", padding=None, layout="transposed"):
    given_padding = None if padding is None else padding.to(backend.device)
    affinity = with_layout(affinity, layout).to(backend.device)
    found = cast_cluster(affinity, size, method, key_padding_mask=given_padding)
    assert found.method == method and (found.assignment is None) == (method == "topk")
    tensors = (found.index, found.counts) if method == "topk" else found[:3]
    assert all(t.dtype == torch.int32 and t.is_contiguous() for t in tensors)
    return tuple(t.cpu() for t in tensors)


def wanted(affinity, size, method, padding):
    found = (reference.top_k if method == "topk" else reference.sa_top_k)(affinity, padding, size)
    return tuple(t for t in found if t is not None)


def check(backend, affinity, size=None, method="topk", padding=None, layout="transposed"):
    found = run(backend, affinity, size, method, padding, layout)
    for name, got, want in zip(
        ("index", "counts", "assignment"), found, wanted(affinity, size, method, padding), strict=False
    ):
        assert torch.equal(got, want), name
    return found


def check_stable(affinity, found, capacity=None):
    """What makes the choice of SA Top-K the only right one: no token comes before the last one of a cluster that it
    would rather be in, or meets room there."""
    index, counts, assignment = found
    batch, tokens, clusters = affinity.shape
    for b in range(batch):
        a, chosen = affinity[b].double(), assignment[b].long()
        own = a.gather(1, chosen[:, None])
        room = torch.tensor([tokens // clusters + (c < tokens % clusters) for c in range(clusters)])
        room = room if capacity is None else torch.full((clusters,), capacity)
        assert torch.equal(torch.bincount(chosen, minlength=clusters), counts[b].long())
        assert (counts[b] <= room).all() and counts[b].sum() == tokens
        rather = (a > own) | ((a == own) & (torch.arange(clusters) < chosen[:, None]))
        last = torch.full((clusters,), -INF, dtype=torch.float64)
        last_token = torch.full((clusters,), tokens)
        for c in range(clusters):
            members = (chosen == c).nonzero()[:, 0]
            assert torch.equal(index[b, c, : len(members)].long(), members)
            assert (index[b, c, len(members) :] == -1).all()
            if counts[b, c] == room[c]:
                last[c] = a[members, c].min() if len(members) else INF
                last_token[c] = members[a[members, c] == last[c]].max() if len(members) else -1
        token = torch.arange(tokens)[:, None]
        blocks = rather & ((a > last) | ((a == last) & (token < last_token)))
        assert not blocks.any()


# ---- against the definition ----


@given(data=st.data())
def test_any_call(backend, data):
    batch, tokens, clusters = (data.draw(st.integers(*bounds)) for bounds in ((1, 3), (1, 50), (1, 20)))
    affinity = scores(data.draw(st.sampled_from(KINDS)), batch, tokens, clusters, data.draw(st.integers(0, 99)))
    padding = random_padding(batch, tokens, 2, data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])))
    method = data.draw(st.sampled_from(["topk", "sa_topk"]))
    least = 1 if method == "topk" else -(-tokens // clusters)
    size = data.draw(st.none() | st.integers(least, 60).filter(lambda size: size >= least), label="size")
    padding = padding if data.draw(st.booleans()) else None
    check(backend, affinity, size, method, padding, data.draw(st.sampled_from(LAYOUTS)))


@pytest.mark.parametrize("kind", KINDS)
def test_single_assignment_is_the_greedy_choice(backend, kind):
    """200 sequences of each kind at once, of different lengths."""
    for seed, (tokens, clusters) in enumerate([(24, 5), (9, 9), (7, 12), (40, 3)]):
        affinity = scores(kind, 50, tokens, clusters, seed)
        check(backend, affinity, None, "sa_topk", random_padding(50, tokens, seed, 0.25))
        check(backend, affinity[:10], -(-tokens // clusters) + 1, "sa_topk")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens(backend, kind, layout):
    """Several vectors and blocks of tokens; on the CPU so many that a guess comes before the count."""
    tokens = 2600 if backend.name == "cpu" else 300
    affinity = scores(kind, 2, tokens, 3)
    check(backend, affinity, None, "topk", None, layout)
    check(backend, affinity, 40, "topk", random_padding(2, tokens), layout)
    check(backend, affinity[:, : tokens // 4], None, "sa_topk", random_padding(2, tokens // 4), layout)


@pytest.mark.parametrize("kind", ["random", "tied", "constant", "dominant", "skewed", "trend"])
@pytest.mark.parametrize(("tokens", "clusters", "size"), [(1100, 30, None), (700, 16, 50), (150, 1300, None)])
def test_single_assignment_is_stable(backend, kind, tokens, clusters, size):
    """The last shape has more clusters than a GPU's shared memory holds the counts of."""
    affinity = scores(kind, 2, tokens, clusters)
    check_stable(affinity, run(backend, affinity, size, "sa_topk"), size)


@pytest.mark.parametrize("kind", ["random", "skewed"])
def test_long_sequences_are_stable(kind):
    """On the CPU, where the rows of so many tokens fill the caches."""
    affinity = scores(kind, 1, 16384, 64)
    check_stable(affinity, cast_cluster(with_layout(affinity, "transposed"), None, "sa_topk")[:3])


@pytest.mark.parametrize("slots", [5, 17000])
@pytest.mark.parametrize("kind", ["random", "tied", "constant"])
def test_columns_longer_than_shared_memory(backend, kind, slots):
    affinity = scores(kind, 1, 17500, 2)
    index, counts = run(backend, affinity, slots)
    order = affinity.sort(dim=1, descending=True, stable=True).indices[:, :slots]
    assert torch.equal(index.long(), order.sort(dim=1).values.transpose(1, 2))
    assert (counts == slots).all()


# ---- ties and what is no number ----


@pytest.mark.parametrize("value", [0.25, 0.0, -3.0, INF, -INF, NAN])
def test_equal_scores_give_consecutive_tokens(backend, value):
    affinity = torch.full((2, 23, 4), value)
    index, counts, assignment = run(backend, affinity, None, "sa_topk")
    assert assignment[0].tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 5
    assert counts.tolist() == [[6, 6, 6, 5]] * 2 and index[1, 3].tolist() == [18, 19, 20, 21, 22, -1]
    index, counts = run(backend, affinity, 9)
    assert torch.equal(index, torch.arange(9, dtype=torch.int32).expand(2, 4, 9)) and (counts == 9).all()


def test_order_of_what_is_no_number(backend):
    """Subnormal numbers are not zero, -0 is 0, NaN comes after -inf, whatever its sign."""
    values = torch.tensor([NAN, -INF, -1e-40, -0.0, 0.0, 1e-40, INF, -1.0])
    values = torch.cat([values, torch.tensor([-0x400000], dtype=torch.int32).view(torch.float32)])  # another NaN
    ranks = [6, 5, 3, 4, 2, 7, 1, 0, 8]  # the first of them first
    for k in range(1, 10):
        index, _ = run(backend, values[None, :, None], k)
        assert index[0, 0].tolist() == sorted(ranks[:k]), k


def test_subnormal_scores_when_they_are_flushed():
    affinity = torch.arange(40, dtype=torch.int32).view(torch.float32)[torch.randperm(40)].view(1, 40, 1)
    wanted = run_on_cpu(affinity)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush subnormal numbers")
        assert torch.equal(run_on_cpu(affinity), wanted)
    finally:
        torch.set_flush_denormal(False)


def run_on_cpu(affinity):
    return cast_cluster(affinity, 20).index


# ---- padding and the smallest sizes ----


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 7.0])
def test_padding_is_not_looked_at(backend, method, value):
    affinity = scores("tied", 3, 60, 4)
    padding = random_padding(3, 60)
    padding[1] = True
    clean = run(backend, affinity.masked_fill(padding[:, :, None], -INF), None, method, padding)
    found = run(backend, affinity.masked_fill(padding[:, :, None], value), None, method, padding)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))
    assert (found[0][1] == -1).all() and (found[1][1] == 0).all()
    assert not padding[0, found[0][0][found[0][0] >= 0].long()].any()
    if method == "sa_topk":
        assert torch.equal(found[2] == -1, padding)
        room = (~padding).sum(1)
        assert torch.equal(found[1].sum(1).long(), room)
        assert (found[1].amax(1) - found[1].amin(1) <= 1).all()


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
def test_right_padding_equals_the_shorter_sequence(backend, method):
    affinity = scores("tied", 2, 137, 6)
    padding = (torch.arange(137) >= 100).expand(2, -1)
    found = run(backend, affinity, 30, method, padding)
    short = run(backend, affinity[:, :100], 30, method)
    assert torch.equal(found[0], short[0]) and torch.equal(found[1], short[1])
    lengths = torch.full((2,), 100).to(backend.device)
    by_length = cast_cluster(affinity.to(backend.device), 30, method, lengths=lengths)
    assert torch.equal(by_length.index.cpu(), found[0])


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
@pytest.mark.parametrize(
    ("batch", "tokens", "clusters", "size"),
    [
        (0, 5, 3, None),
        (2, 0, 3, None),
        (2, 1, 1, None),
        (2, 1, 5, None),
        (1, 4, 9, None),
        (3, 6, 6, None),
        (2, 5, 2, 99),
    ],
)
def test_smallest_sizes(backend, batch, tokens, clusters, size, method):
    found = check(backend, scores("tied", batch, tokens, clusters), size, method) if batch and tokens else None
    if found is None:
        found = run(backend, torch.zeros(batch, tokens, clusters), size, method)
        assert found[0].shape == (batch, clusters, 0 if tokens == 0 else -(-tokens // clusters))
        assert found[1].shape == (batch, clusters) and (found[1] == 0).all()


def test_one_token_of_many(backend):
    padding = torch.ones(1, 50, dtype=torch.bool)
    padding[0, 33] = False
    affinity = scores("random", 1, 50, 4)
    index, counts, assignment = run(backend, affinity, None, "sa_topk", padding)
    # One token alone has room in the first cluster only.
    assert counts.tolist() == [[1, 0, 0, 0]] and index[0, 0, 0] == 33 and assignment[0, 33] == 0
    index, counts = run(backend, affinity, None, "topk", padding)
    assert (index[:, :, 0] == 33).all() and (counts == 1).all() and (index[:, :, 1:] == -1).all()


# ---- the same result however it is computed ----


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
@pytest.mark.parametrize("kind", ["random", "tied", "skewed"])
def test_does_not_depend_on_threads_or_batch(backend, kind, method):
    affinity = scores(kind, 4, 700, 12)
    padding = random_padding(4, 700)
    found = run(backend, affinity, None, method, padding)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            again = run(backend, affinity, None, method, padding)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    finally:
        torch.set_num_threads(threads)
    for b in range(4):
        alone = run(backend, affinity[b : b + 1], None, method, padding[b : b + 1])
        assert all(torch.equal(a[b : b + 1], c) for a, c in zip(found, alone, strict=True))


@settings(max_examples=10)
@given(seed=st.integers(0, 999))
def test_relabelled_clusters(backend, seed):
    """With distinct scores, names of clusters and order of tokens mean nothing."""
    affinity = scores("random", 1, 30, 5, seed)
    generator = torch.Generator().manual_seed(seed)
    clusters, tokens = torch.randperm(5, generator=generator), torch.randperm(30, generator=generator)
    _, _, assignment = run(backend, affinity, 6, "sa_topk")
    _, _, moved = run(backend, affinity[:, tokens][:, :, clusters], 6, "sa_topk")
    assert torch.equal(clusters[moved.long()], assignment[:, tokens].long())
