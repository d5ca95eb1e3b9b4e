"""CAST in torch's own operations against the reference in plain loops: what backend="reference" computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sturdy
from reference import cast as reference
from sturdy.functional.cast_composite import composite_affinity, composite_attention, composite_cluster
from support import random

# batch, heads, tokens, dim, clusters, dropout
SIZES = [(2, 2, 13, 4, 3, 0.0), (2, 1, 10, 3, 4, 0.3), (1, 2, 7, 2, 1, 0.0), (2, 2, 5, 2, 7, 0.2), (1, 1, 1, 1, 1, 0.0)]
METHODS = {"topk": reference.top_k, "sa_topk": reference.sa_top_k}


def tensors(batch: int, heads: int, tokens: int, dim: int, clusters: int) -> list[Tensor]:
    shapes = [(batch, tokens, heads, dim)] * 3
    rows = [random(shape, i, torch.float64).transpose(1, 2) for i, shape in enumerate(shapes)]
    return [*rows, random((heads, clusters, dim), 3, torch.float64), random((batch, tokens), 4, torch.float64)]


def some_padding(batch: int, tokens: int) -> Tensor:
    padding = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.2
    padding[0] = False
    if tokens == 10:
        padding[1] = True
    return padding


def affinities(kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch, tokens, clusters = (int(torch.randint(1, most, (), generator=generator)) for most in (4, 30, 9))
    scores = torch.randn(batch, tokens, clusters, generator=generator)
    if kind == "tied":
        scores = (2 * scores).round() / 2
        scores *= torch.where(torch.rand(scores.shape, generator=generator) < 0.5, 1.0, -1.0)  # zeros of both signs
    elif kind == "constant":
        scores.zero_()
    elif kind == "not_finite":
        for value in (math.nan, math.inf, -math.inf):
            scores[torch.rand(scores.shape, generator=generator) < 0.15] = value
    return scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["random", "tied", "constant", "not_finite"])
def test_clusters(kind, method):
    for seed in range(25):
        scores = affinities(kind, seed)
        batch, tokens, clusters = scores.shape
        padding = None
        if seed % 3:
            padding = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)) < 0.3
            padding[0] |= seed % 5 == 0
        size = 0 if seed % 2 else -(-tokens // clusters) + seed % 4
        index, counts, assignment = composite_cluster(scores, padding, size, method == "sa_topk")
        wanted = METHODS[method](scores, padding, size)
        assert torch.equal(index, wanted.index) and torch.equal(counts, wanted.counts), seed
        assert index.dtype == counts.dtype == assignment.dtype == torch.int32
        assert assignment.shape == (0,) if wanted.assignment is None else torch.equal(assignment, wanted.assignment)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(sizes, method):
    *shape, dropout = sizes
    leaves = [t.requires_grad_() for t in tensors(*shape)]
    padding = some_padding(shape[0], shape[2])
    q, k, _, surrogates, phi = leaves
    scores = composite_affinity(q, k, surrogates, phi, padding)
    exact = reference.affinity(q, k, surrogates, phi, padding)
    assert not scores.requires_grad and scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact.detach(), rtol=1e-6, atol=1e-7)
    index = composite_cluster(scores, padding, 0, method == "sa_topk")[0]
    seed = -5
    options = dict(tau=0.9, tau_q=1.3, tau_k=0.8, dropout=dropout)
    out = composite_attention(*leaves, index, padding, torch.tensor([seed]), **options)
    wanted = reference.attention(*leaves, index, padding, seed=seed, **options).out
    torch.testing.assert_close(out, wanted, rtol=1e-13, atol=1e-13)
    grad_out = random(tuple(out.shape), 8, torch.float64)
    found = torch.autograd.grad(out, leaves, grad_out)
    closed_form = reference.attention_backward(grad_out, *leaves, index, padding, seed=seed, **options)
    of_loops = torch.autograd.grad(wanted, leaves, grad_out)
    for got, expected, closed in zip(found, of_loops, closed_form, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(closed, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sizes", SIZES[1:4], ids=str)
def test_second_derivative(sizes):
    *shape, dropout = sizes
    leaves = [t.requires_grad_() for t in tensors(*shape)]
    padding = some_padding(shape[0], shape[2])
    index = composite_cluster(composite_affinity(*leaves[:2], *leaves[3:], padding), padding)[0]

    def call(*tensors: Tensor) -> Tensor:
        return composite_attention(*tensors, index, padding, torch.tensor(3), dropout=dropout)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores_in_half_precision(dtype):
    q, k, v, surrogates, phi = (t.to(dtype) for t in tensors(2, 2, 13, 4, 3))
    index = composite_cluster(composite_affinity(q, k, surrogates, phi))[0]
    out = composite_attention(100 * q, 100 * k, v, 100 * surrogates, phi, index)
    assert out.dtype == dtype and out.isfinite().all()


def test_no_token_in_any_cluster():
    leaves = [t.requires_grad_() for t in tensors(1, 2, 5, 4, 3)]
    for slots in (0, 2):
        out = composite_attention(*leaves, torch.full((1, 3, slots), -1, dtype=torch.int32))
        assert torch.equal(out, torch.zeros_like(out))
        found = torch.autograd.grad(out.sum(), leaves)
        assert not any(gradient.any() for gradient in found)


def test_wrong_arguments():
    arguments = tensors(1, 2, 5, 4, 3)
    index = torch.tensor([[[0, 1], [2, 3], [4, -1]]], dtype=torch.int32)
    for value, words in ((5, "0 to N - 1 = 4.* got 5"), (-2, "got -2")):
        wrong = index.clone()
        wrong[0, 1, 0] = value
        with pytest.raises(sturdy.ShapeError, match=words):
            composite_attention(*arguments, wrong)
    with pytest.raises(sturdy.ShapeError, match="must not hold padding"):
        composite_attention(*arguments, index, torch.tensor([[False, False, True, False, False]]))
    with pytest.raises(sturdy.ShapeError, match=r"capacity C \* cluster_size = 3 \* 2 = 6 < N = 7"):
        composite_cluster(torch.zeros(1, 7, 3), None, 2, True)
