"""Every CUDA kernel of cast_attention under the race checker: the fixture fails a test that raced."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from cast_support import NAMES, make_tokens, poison_padding, random_index, random_padding
from reference import cast as reference
from sturdy.functional import CASTClusters, cast_attention
from support import dtype_id, random


@dataclass(frozen=True)
class Case:
    """More than one tile of each kind, a ragged edge, and dimensions that tiles are wider than."""

    name: str
    tokens: int
    dim: int
    clusters: int
    slots: int
    batch: int = 1
    heads: int = 1
    disjoint: bool = False
    padded: bool = False
    holes: bool = False
    dropout: float = 0.0

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("overlapping", tokens=75, dim=16, clusters=3, slots=67, heads=2),
    Case("many_clusters", tokens=40, dim=24, clusters=67, slots=5),
    Case("disjoint", tokens=75, dim=32, clusters=2, slots=38, batch=2, disjoint=True, padded=True),
    Case("holes", tokens=90, dim=33, clusters=5, slots=70, padded=True, holes=True, dropout=0.3),
    Case("disjoint_holes", tokens=45, dim=50, clusters=3, slots=15, disjoint=True, holes=True, dropout=0.3),
    Case("wide", tokens=67, dim=128, clusters=2, slots=66),
]
KINDS = [
    pytest.param(torch.float32, False, id="float32"),
    pytest.param(torch.float32, True, id="tf32"),
    pytest.param(torch.float64, False, id="float64"),
    pytest.param(torch.bfloat16, False, id="bfloat16"),
]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 0.04, torch.float16: 0.01}


def run(case: Case, dtype: torch.dtype, allow_tf32: bool, strided: bool = False) -> None:
    given = make_tokens(case.batch, case.heads, case.tokens, case.dim + strided, case.clusters, dtype, packed=True)
    if strided:
        given = given.but(**{name: getattr(given, name)[..., : case.dim] for name in NAMES[:4]})
    padding = random_padding(case.batch, case.tokens) if case.padded else None
    if padding is not None:
        given = poison_padding(given, padding)
    index = random_index(
        *(case.batch, case.tokens, case.clusters, case.slots),
        **dict(disjoint=case.disjoint, padding=padding, holes=case.holes),
    )
    counts = (index >= 0).sum(2, dtype=torch.int32)
    clusters = CASTClusters(index, counts, None, "sa_topk" if case.disjoint else "topk")
    seed = torch.tensor(123456789)
    grad_out = random((case.batch, case.heads, case.tokens, case.dim), 8, dtype)
    options = dict(clusters=clusters, key_padding_mask=padding, dropout=case.dropout, seed=seed, allow_tf32=allow_tf32)
    kept = dict(dropout=case.dropout, seed=int(seed))

    leaves = given.leaves()
    out = cast_attention(*leaves.all(), **options)
    found = torch.autograd.grad(out, leaves.all(), grad_out)
    alone = cast_attention(*given.all(), **options)  # keeps nothing for backward

    tolerance = 2e-3 if allow_tf32 else TOLERANCE[dtype]
    exact = reference.attention(*given.all(), index, padding, **kept).out
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(alone, out)
    for grad, wanted in zip(
        found, reference.attention_backward(grad_out, *given.all(), index, padding, **kept), strict=True
    ):
        torch.testing.assert_close(grad.double(), wanted, rtol=tolerance, atol=float(tolerance * wanted.abs().amax()))


@pytest.mark.parametrize(("dtype", "allow_tf32"), KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(race_backend, case, dtype, allow_tf32):
    run(case, dtype, allow_tf32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
def test_rows_that_are_not_aligned(race_backend, dtype):
    run(CASES[2], dtype, False, strided=True)
    run(CASES[0], dtype, False, strided=True)


def test_several_pieces_of_a_sequence(race_backend):
    # The gradient of clusters walks 512 tokens at a time.
    run(Case("pieces", tokens=530, dim=16, clusters=2, slots=9), torch.bfloat16, False)
