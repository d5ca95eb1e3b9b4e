"""CAST on NumPy arrays and DLPack tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sturdy
from sturdy.numpy import CASTGradients, cast_affinity, cast_attention, cast_attention_backward, cast_cluster

NAMES = ("q", "k", "v", "surrogates", "phi")


def make(dtype: str = "float32", tokens: int = 21) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(2, 2, tokens, 8)] * 3 + [(2, 3, 8), (2, tokens)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def attend(arrays: list[np.ndarray], method: str = "topk", **options: Any) -> Any:
    q, k, _, surrogates, phi = arrays
    padding = options.get("padding")
    clusters = cast_cluster(cast_affinity(q, k, surrogates, phi, padding=padding), method=method, padding=padding)
    return clusters, cast_attention(*arrays, clusters, **options)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("method", ["topk", "sa_topk"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_equals_the_torch_op_to_the_last_bit(dtype: str, method: str, padded: bool) -> None:
    torch = pytest.importorskip("torch")
    from sturdy.functional import cast_attention as torch_op

    arrays = make(dtype)
    padding = np.arange(21)[None] >= np.array([[21], [15]]) if padded else None
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]
    mask = None if padding is None else torch.from_numpy(padding)
    wanted, chosen = torch_op(*tensors, method=method, key_padding_mask=mask, return_clusters=True)
    clusters, (out, kept) = attend(arrays, method, padding=padding, keep=True)
    np.testing.assert_array_equal(clusters.index, chosen.index.numpy())
    np.testing.assert_array_equal(clusters.counts, chosen.counts.numpy())
    assert (clusters.assignment is None) == (method == "topk")
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, wanted.detach().numpy())
    grad_out = np.random.default_rng(1).standard_normal(out.shape).astype(dtype)
    wanted.backward(torch.from_numpy(grad_out))
    grads = cast_attention_backward(grad_out, *arrays, clusters, out, kept, padding=padding)
    for grad, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_array_equal(grad, tensor.grad.numpy())


def test_dropout_follows_from_the_seed() -> None:
    arrays = make()
    seed = np.array([3])
    first = attend(arrays, dropout=0.5, seed=seed)[1]
    np.testing.assert_array_equal(first, attend(arrays, dropout=0.5, seed=seed)[1])
    assert not np.array_equal(first, attend(arrays, dropout=0.5, seed=np.array([4]))[1])
    assert not np.array_equal(first, attend(arrays)[1])


def test_into_given_memory() -> None:
    arrays = make()
    clusters, (wanted, kept) = attend(arrays, "sa_topk", keep=True)
    out = np.full_like(wanted, np.nan)
    assert cast_attention(*arrays, clusters, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    grads = CASTGradients(*(np.full_like(array, np.nan) for array in arrays))
    found = cast_attention_backward(wanted, *arrays, clusters, out, kept, gradients=grads)
    assert all(a is b and np.isfinite(a).all() for a, b in zip(found, grads, strict=True))
    scores = np.full((2, 21, 3), np.nan, "float32")
    assert cast_affinity(arrays[0], arrays[1], *arrays[3:], out=scores) is scores and np.isfinite(scores).all()


def test_bfloat16_needs_memory_to_write_to() -> None:
    torch = pytest.importorskip("torch")
    arrays = [torch.from_numpy(array).bfloat16() for array in make()]
    clusters = cast_cluster(cast_affinity(*arrays[:2], *arrays[3:]))
    with pytest.raises(TypeError, match="NumPy has no bfloat16 to return the result in; give out"):
        cast_attention(*arrays, clusters)
    out = torch.empty_like(arrays[0])
    cast_attention(*arrays, clusters, out=out)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tau": 0.0}, ValueError, "tau must be greater than 0"),
        ({"dropout": -0.1}, ValueError, "dropout must be at least 0"),
        ({"dropout": 0.1}, sturdy.ShapeError, "seed must not be NULL"),
        ({"seed": np.array([1.0]), "dropout": 0.1}, TypeError, "seed must be int64"),
        ({"padding": np.zeros((2, 20), bool)}, sturdy.ShapeError, r"padding must have shape \(2, 21\)"),
        ({"padding": np.zeros((2, 21))}, TypeError, "padding must be bool or uint8"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:30],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arrays = make()
    clusters, _ = attend(arrays)
    with pytest.raises(error, match=message):
        cast_attention(*arrays, clusters, **change)


def test_wrong_clusters() -> None:
    affinity = np.zeros((2, 9, 3), "float32")
    with pytest.raises(ValueError, match="method must be one of 'topk', 'sa_topk', got 'best'"):
        cast_cluster(affinity, method="best")
    with pytest.raises(ValueError, match="cluster_size must be at least 1, got 0"):
        cast_cluster(affinity, 0)
    with pytest.raises(sturdy.ShapeError, match="capacity"):
        cast_cluster(affinity, 2, "sa_topk")
    with pytest.raises(TypeError, match="affinity must be float32"):
        cast_cluster(affinity.astype("float64"))
