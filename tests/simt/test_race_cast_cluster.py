"""The kernels of cast_affinity and cast_cluster under the race checker: right, and nothing found."""

from __future__ import annotations

import pytest
import torch

from cast_support import make_tokens, random_padding
from reference import cast as reference
from sturdy.functional import cast_affinity, cast_cluster
from support import DTYPES, dtype_id


@pytest.mark.parametrize("tensor", ["tf32", "exact"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
# one pass and two over the clusters; rows that are copied 16 bytes at a time and ones that are not
@pytest.mark.parametrize(("dim", "clusters"), [(16, 5), (64, 70), (7, 33)])
def test_affinity(race_backend, dim, clusters, dtype, tensor):
    given = make_tokens(heads=2, dim=dim, tokens=70, clusters=clusters, dtype=dtype, packed=True)
    padding = random_padding(2, 70)
    padding[1, :64] = True
    found = cast_affinity(
        given.q, given.k, given.surrogates, given.phi, key_padding_mask=padding, allow_tf32=tensor == "tf32"
    )
    exact = reference.affinity(given.q, given.k, given.surrogates, given.phi, padding)
    assert (found.double() - exact)[~padding].abs().max() <= (1e-2 if tensor == "tf32" else 1e-5)
    assert (found[padding] == -torch.inf).all()


def scores(kind, tokens, clusters):
    x = torch.randn((2, tokens, clusters), generator=torch.Generator().manual_seed(1))
    if kind == "constant":
        return torch.full_like(x, 0.25)
    return torch.softmax(x - torch.arange(clusters), 2) if kind == "skewed" else torch.round(2 * x) / 4


@pytest.mark.parametrize("kind", ["tied", "skewed", "constant"])
# a warp and several; more clusters than tokens; more clusters than shared memory holds the counts of
@pytest.mark.parametrize(("tokens", "clusters"), [(20, 3), (400, 7), (30, 40), (12, 1200)])
@pytest.mark.parametrize("method", ["topk", "sa_topk"])
def test_cluster(race_backend, method, tokens, clusters, kind):
    if method == "topk" and clusters > 1000:
        clusters = 50  # they do not meet
    affinity = scores(kind, tokens, clusters)
    padding = random_padding(2, tokens)
    size = None if method == "sa_topk" else max(tokens // 3, 1)
    found = cast_cluster(affinity, size, method, key_padding_mask=padding)
    wanted = (reference.top_k if method == "topk" else reference.sa_top_k)(affinity, padding, size)
    assert torch.equal(found.index, wanted.index) and torch.equal(found.counts, wanted.counts)
    if method == "sa_topk":
        assert torch.equal(found.assignment, wanted.assignment)


def test_long_columns(race_backend):
    affinity = torch.rand((1, 16400, 1), generator=torch.Generator().manual_seed(2))
    found = cast_cluster(affinity, 300)
    order = affinity.sort(dim=1, descending=True, stable=True).indices[0, :300, 0]
    assert torch.equal(found.index[0, 0].long(), order.sort().values)
