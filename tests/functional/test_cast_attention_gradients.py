"""Gradients of cast_attention: against autograd, its closed form, and what must hold whatever the numbers are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cast_attention_support import (
    TOLERANCE,
    assert_close,
    assert_gradients_close,
    assert_same,
    attend,
    differentiate,
    expect,
)
from cast_support import NAMES, Tokens, make_tokens, poison_padding, random_index, random_padding
from reference import cast as reference
from sturdy.functional import cast_attention
from support import DTYPES, dtype_id, random, uninitialized_memory_is_nan

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
methods = pytest.mark.parametrize("method", ["topk", "sa_topk"])
overlaps = pytest.mark.parametrize("disjoint", [False, True], ids=["overlapping", "disjoint"])

# B, h, N, e, C, kappa
SMALL = [
    (1, 1, 5, 3, 1, 5),
    (2, 2, 7, 4, 3, 2),
    (1, 2, 11, 2, 4, 3),
    (1, 1, 6, 5, 7, 2),
    (2, 1, 9, 3, 2, 6),
    (1, 3, 8, 1, 3, 3),
]


@pytest.mark.parametrize("size", SMALL, ids=str)
@overlaps
def test_gradcheck(backend, size, disjoint):
    batch, heads, tokens, dim, clusters, slots = size
    given = make_tokens(batch, heads, tokens, dim, clusters, torch.float64, backend.device).leaves()
    index = random_index(batch, tokens, clusters, slots, disjoint=disjoint, device=backend.device)

    def function(*tensors):
        return attend(Tokens(*tensors), index, disjoint)

    few = backend.name == "simt"  # along random directions, for which it runs tens of calls, not hundreds
    assert torch.autograd.gradcheck(function, given.all(), eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=few)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_closed_form_is_the_derivative_of_the_definition(size, dropout):
    batch, heads, tokens, dim, clusters, slots = size
    padding = random_padding(batch, tokens)
    given = make_tokens(batch, heads, tokens, dim, clusters, torch.float64).leaves()
    index = random_index(batch, tokens, clusters, slots, padding=padding, holes=tokens > 8)
    grad_out = random(tuple(given.q.shape), 8, torch.float64)
    out = reference.attention(*given.all(), index, padding, dropout=dropout, seed=5).out
    derived = torch.autograd.grad(out, given.all(), grad_out, materialize_grads=True, allow_unused=True)
    closed = reference.attention_backward(grad_out, *given.all(), index, padding, dropout=dropout, seed=5)
    for name, one, other in zip(NAMES, derived, closed, strict=True):
        assert float((one - other).abs().max()) <= 1e-13 * max(1.0, float(one.abs().max())), name


SIZES = [
    (1, 2, 40, 16, 3, 31),
    (2, 2, 33, 7, 4, 9),
    (1, 2, 70, 32, 16, 8),
    (1, 1, 66, 40, 1, 64),
    (1, 1, 67, 64, 3, 64),
    (1, 1, 20, 128, 3, 7),
]


@dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients(backend, size, dtype):
    batch, heads, tokens, dim, clusters, slots = size
    given = make_tokens(batch, heads, tokens, dim, clusters, dtype, backend.device, packed=True)
    index = random_index(batch, tokens, clusters, slots, device=backend.device)
    grad_out = random(tuple(given.q.shape), 8, dtype, backend.device)
    assert_gradients_close(differentiate(given, index, grad_out)[1], expect(given, index, grad_out)[1])


@dtypes
@pytest.mark.parametrize("size", [(2, 2, 40, 16, 3, 13), (1, 1, 70, 8, 5, 14), (1, 2, 64, 33, 2, 40)], ids=str)
def test_gradients_of_disjoint_clusters(backend, size, dtype):
    batch, heads, tokens, dim, clusters, slots = size
    given = make_tokens(batch, heads, tokens, dim, clusters, dtype, backend.device, phi_dtype=torch.float32)
    index = random_index(batch, tokens, clusters, slots, disjoint=True, device=backend.device)
    grad_out = random(tuple(given.q.shape), 8, dtype, backend.device)
    found = differentiate(given, index, grad_out, disjoint=True)[1]
    assert found[4].dtype == torch.float32
    assert_gradients_close(found, expect(given, index, grad_out)[1])


@pytest.mark.cpu
@dtypes
@pytest.mark.parametrize(
    "size",
    [(300, 64, 3, 200), (1100, 8, 2, 1024), (1100, 16, 1, 1100), (600, 33, 64, 31), (700, 130, 5, 513)],
    ids=str,
)
def test_gradients_of_large_clusters_on_the_cpu(size, dtype):
    tokens, dim, clusters, slots = size
    given = make_tokens(1, 1, tokens, dim, clusters, dtype)
    index = random_index(1, tokens, clusters, slots)
    grad_out = random(tuple(given.q.shape), 8, dtype)
    assert_gradients_close(differentiate(given, index, grad_out)[1], expect(given, index, grad_out)[1])


@dtypes
@overlaps
def test_gradients_with_padding_empty_slots_and_dropout(backend, disjoint, dtype):
    padding = random_padding(3, 50, device=backend.device)
    padding[2] = True
    given = make_tokens(3, 2, 50, 8, 4, dtype, backend.device)
    index = random_index(3, 50, 4, 20, disjoint=disjoint, padding=padding, holes=True, device=backend.device)
    grad_out = random(tuple(given.q.shape), 8, dtype, backend.device)
    seed = torch.tensor(77, device=backend.device)
    with uninitialized_memory_is_nan():
        _, found = differentiate(
            poison_padding(given, padding), index, grad_out, disjoint, padding, dropout=0.3, seed=seed
        )
    for grad in found[:3]:
        assert (grad.transpose(1, 2)[padding] == 0).all()
    assert (found[4][padding] == 0).all()
    assert_gradients_close(found, expect(given, index, grad_out, padding, dropout=0.3, seed=77)[1])


@dtypes
@pytest.mark.parametrize("clusters", [1, 7])
def test_clusters_of_all_tokens_have_the_gradients_of_dot_product_attention(backend, clusters, dtype):
    given = make_tokens(2, 2, 37, 16, clusters, dtype, backend.device)
    index = torch.arange(37, dtype=torch.int32, device=backend.device).expand(2, clusters, 37).contiguous()
    grad_out = random(tuple(given.q.shape), 8, dtype, backend.device)
    found = differentiate(given, index, grad_out)[1]
    leaves = given.double().leaves().all()[:3]
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, grad_out.double().cpu())
    scale = max(float(grad.abs().max()) for grad in wanted)
    for name, grad, exact in zip(NAMES, found, wanted, strict=False):
        assert_close(grad, exact, name, scale)
    # Weights over clusters that all say the same have no gradient. That of a gate sums over heads, clusters and
    # elements, each off by as much as a result.
    for grad in found[3:]:
        assert float(grad.abs().max()) <= TOLERANCE[dtype] * scale * 37


def test_tokens_in_no_cluster(backend):
    given = make_tokens(1, 2, 40, 8, 3, torch.float64, backend.device)
    index = random_index(1, 40, 3, 8, disjoint=True, device=backend.device)
    outside = torch.ones(40, dtype=torch.bool, device=backend.device)
    outside[index.flatten().long()] = False
    assert outside.sum() == 16
    grad_out = random((1, 2, 40, 8), 8, torch.float64, backend.device)
    for disjoint in (False, True):
        _, (q, k, v, _, phi) = differentiate(given, index, grad_out, disjoint)
        assert (k[:, :, outside] == 0).all()
        assert (v[:, :, outside] == 0).all()
        assert (q[:, :, outside] != 0).any(dim=-1).all()
        assert (phi[:, outside] != 0).all()


# ---- the same bits ---------------------------------------------------------------------------------------------------


@dtypes
@overlaps
def test_two_runs_have_the_same_bits(backend, disjoint, dtype):
    given = make_tokens(2, 2, 60, 16, 3, dtype, backend.device)
    index = random_index(2, 60, 3, 20, disjoint=disjoint, device=backend.device)
    grad_out = random(tuple(given.q.shape), 8, dtype, backend.device)
    first = differentiate(given, index, grad_out, disjoint)
    second = differentiate(given, index, grad_out, disjoint)
    assert_same((first[0], *first[1]), (second[0], *second[1]))


@overlaps
def test_disjoint_clusters_need_not_be_told(backend, disjoint):
    """What is known to be disjoint is added up in the same way, up to rounding."""
    given = make_tokens(1, 2, 60, 16, 3, torch.float64, backend.device)
    index = random_index(1, 60, 3, 20, disjoint=True, device=backend.device)
    grad_out = random(tuple(given.q.shape), 8, torch.float64, backend.device)
    assert_gradients_close(differentiate(given, index, grad_out, disjoint)[1], expect(given, index, grad_out)[1])


@methods
def test_checkpointing_changes_no_bit(backend, method):
    given = make_tokens(2, 2, 40, 8, 3, torch.float32, backend.device).leaves()
    _, clusters = cast_attention(*given.all(), 15, method=method, return_clusters=True)

    def block(*tensors):
        return cast_attention(*tensors, clusters=clusters)

    results = []
    for out in (block(*given.all()), checkpoint(block, *given.all(), use_reentrant=False)):
        results.append((out.detach(), *torch.autograd.grad(out, given.all(), torch.ones_like(out))))
    assert_same(*results)


@dtypes
@overlaps
def test_gradients_of_a_sequence_alone(backend, disjoint, dtype):
    given = make_tokens(3, 2, 70, 16, 3, dtype, backend.device)
    index = random_index(3, 70, 3, 23, disjoint=disjoint, device=backend.device)
    grad_out = random(tuple(given.q.shape), 8, dtype, backend.device)
    together = differentiate(given, index, grad_out, disjoint)[1]
    for b in range(3):
        one = slice(b, b + 1)
        alone = Tokens(*(t[one] for t in given.all()[:3]), given.surrogates, given.phi[one])
        found = differentiate(alone, index[one], grad_out[one], disjoint)[1]
        assert_same(found[:3], tuple(grad[one] for grad in together[:3]))
        assert torch.equal(found[4], together[4][one])


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["expanded", "rows", "sliced"])
def test_layouts_of_the_gradient(backend, layout):
    given = make_tokens(2, 2, 30, 8, 3, torch.float32, backend.device)
    index = random_index(2, 30, 3, 12, device=backend.device)
    values = random((2, 2, 30, 8), 8, torch.float32, backend.device)
    if layout == "expanded":  # as the gradient of a sum is
        grad_out = values[:1, :1, :1, :1].expand(2, 2, 30, 8)
    elif layout == "rows":
        grad_out = values.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        wide = torch.full((2, 2, 30, 24), float("nan"), device=backend.device)
        grad_out = wide[..., 5:13]
        grad_out.copy_(values)
    found = differentiate(given, index, grad_out)[1]
    assert_same(found, differentiate(given, index, grad_out.contiguous())[1])


MEMORY = """
import sys

import torch
from sturdy.functional import CASTClusters, cast_attention

DIM, HEADS = 256, 4


def inputs(tokens, slots):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, tokens, HEADS, DIM // HEADS, generator=generator) for _ in range(4)]
    q, k, v, grad_out = (row.transpose(1, 2) for row in rows)
    surrogates = torch.randn(HEADS, tokens // slots, DIM // HEADS, generator=generator)
    phi = torch.randn(1, tokens, generator=generator)
    index = torch.randperm(tokens, generator=generator).reshape(1, -1, slots).sort(2).values.int()
    counts = torch.full(index.shape[:2], slots, dtype=torch.int32)
    clusters = CASTClusters(index, counts, None, sys.argv[1])
    return [tensor.requires_grad_() for tensor in (q, k, v, surrogates, phi)], clusters, grad_out


def run(leaves, clusters, grad_out):
    return torch.autograd.grad(cast_attention(*leaves, clusters=clusters), leaves, grad_out)


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


torch.set_num_threads(2)
run(*inputs(128, 32))  # libraries and threads are there
tokens, slots = 8192, 1024
work = inputs(tokens, slots)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest mark starts again
before = status("VmRSS")
grads = run(*work)
print(status("VmHWM") - before, 5 * tokens * DIM * 4)
"""


@pytest.mark.cpu
@methods
def test_peak_memory_is_that_of_results(method):
    """Output, what is kept of it for each slot, and three gradients: nothing of order N times cluster size."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, method], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert run.returncode == 0, run.stderr
    peak, count = map(int, run.stdout.split())
    assert peak <= 1.3 * count, f"{peak / count:.2f} times what results take"
