"""What each wrong argument of CAST gets to hear."""

from __future__ import annotations

import pytest
import torch

import sturdy
from cast_support import make_tokens
from sturdy.functional import CASTClusters, cast_affinity, cast_attention, cast_cluster

T = make_tokens()
CALL = dict(zip(("q", "k", "v", "surrogates", "phi"), T.all(), strict=True))
MASK = torch.zeros(2, 21, dtype=torch.bool)
INDEX = torch.arange(21, dtype=torch.int32).view(1, 3, 7).expand(2, -1, -1).contiguous()


def clusters(index, method="topk"):
    return CASTClusters(index, (index >= 0).sum(2, dtype=torch.int32), None, method)


def twice(index):
    changed = index.clone()
    changed[1, 2, 3] = changed[1, 2, 4]
    return changed


WRONG = {
    "q of three dimensions": ({"q": T.q[0]}, sturdy.ShapeError, r"q must be \(B, h, N, e\), got shape \(2, 21, 8\)"),
    "k of another length": ({"k": T.k[:, :, :20]}, sturdy.ShapeError, r"k must have shape \(2, 2, 21, 8\), got"),
    "v of another head dimension": ({"v": T.v[..., :7]}, sturdy.ShapeError, r"v must have shape \(2, 2, 21, 8\), got"),
    "v of another dtype": ({"v": T.v.double()}, TypeError, "v must have the dtype of q, float32, got float64"),
    "integers": ({name: CALL[name].long() for name in ("q", "k", "v")}, TypeError, "q must be float16, bfloat16"),
    "surrogates of other heads": (
        {"surrogates": T.surrogates[:1]},
        sturdy.ShapeError,
        r"surrogates must have 2 heads, as many as q, got 1 in shape \(1, 3, 8\)",
    ),
    "surrogates of two dimensions": ({"surrogates": T.surrogates[0]}, sturdy.ShapeError, r"3 dimensions \(h, C, e\)"),
    "no surrogates": ({"surrogates": T.surrogates[:, :0]}, sturdy.ShapeError, "surrogates C must be at least 1, got 0"),
    "surrogates of another dtype": (
        {"surrogates": T.surrogates.half()},
        TypeError,
        "surrogates must have the dtype of q, float32, got float16",
    ),
    "phi for each head": ({"phi": T.q[..., 0]}, sturdy.ShapeError, r"phi must have shape \(2, 21\), got \(2, 2, 21\)"),
    "phi of another dtype": ({"phi": T.phi.double()}, TypeError, "phi must be float32 or have the dtype of q"),
    "cluster size": ({"cluster_size": 0}, ValueError, "cluster_size must be at least 1, got 0"),
    "method": ({"method": "kmeans"}, ValueError, "method must be one of 'topk', 'sa_topk', got 'kmeans'"),
    "too few slots": (
        {"method": "sa_topk", "cluster_size": 6},
        ValueError,
        r"capacity C \* cluster_size = 3 \* 6 = 18 < N = 21",
    ),
    "scale": ({"scale": 0.0}, ValueError, "scale must be greater than 0 and finite, got 0.0"),
    "temperature": ({"tau_q": -1.0}, ValueError, "tau_q must be greater than 0 and finite, got -1.0"),
    "dropout": ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1, got 1.0"),
    "seed of int32": ({"dropout": 0.1, "seed": torch.zeros(1, dtype=torch.int32)}, TypeError, "seed must be int64"),
    "two seeds": (
        {"dropout": 0.1, "seed": torch.zeros(2, dtype=torch.int64)},
        sturdy.ShapeError,
        "seed must have one element, got 2",
    ),
    "mask of another shape": (
        {"key_padding_mask": MASK[:, :20]},
        ValueError,
        r"key_padding_mask must have shape \(2, 21\), got \(2, 20\)",
    ),
    "mask of integers": ({"key_padding_mask": MASK.long()}, TypeError, "key_padding_mask must be bool, or floating"),
    "mask of other numbers": (
        {"key_padding_mask": MASK.float() - 1},
        ValueError,
        "floating point must hold 0 and -inf alone",
    ),
    "mask and lengths": (
        {"key_padding_mask": MASK, "lengths": torch.tensor([1, 2])},
        ValueError,
        "give key_padding_mask or lengths, not both",
    ),
    "lengths of another shape": ({"lengths": torch.tensor([1])}, ValueError, r"lengths must have shape \(2,\)"),
    "lengths beyond": ({"lengths": torch.tensor([1, 22])}, ValueError, r"lengths must be 0 to N = 21, got \[1, 22\]"),
    "lengths of floats": (
        {"lengths": torch.tensor([1.0, 2.0])},
        TypeError,
        "lengths must be integers, got torch.float",
    ),
    "clusters of another batch": (
        {"clusters": clusters(INDEX[:1])},
        ValueError,
        r"clusters.index must have shape \(2, 3, 'kappa'\), got \(1, 3, 7\)",
    ),
    "clusters of int64": ({"clusters": clusters(INDEX.long())}, TypeError, "index must be int32"),
    "a token twice": ({"clusters": clusters(twice(INDEX))}, ValueError, "holds a token twice in one cluster"),
    "a token in two clusters of sa_topk": (
        {"clusters": clusters(INDEX.roll(1, 1).where(INDEX < 7, INDEX), "sa_topk")},
        ValueError,
        "holds a token twice in the clusters of one sequence, with sa_topk",
    ),
    "a method of clusters": ({"clusters": clusters(INDEX, "lsh")}, ValueError, "method must be one of"),
    "backend": ({"backend": "triton"}, ValueError, "backend must be one of 'auto', 'cuda', 'cpu', 'reference', got"),
}
# Read from memory, so not looked at on a GPU.
WRONG_VALUES = {
    "a token that does not exist": (
        {"clusters": clusters(INDEX + 1)},
        ValueError,
        "index must hold tokens 0 to N - 1 = 20, or -1 for an empty slot, got 21",
    ),
    "a negative token": ({"clusters": clusters(INDEX - 2)}, ValueError, "or -1 for an empty slot, got -2"),
    "padding in a cluster": (
        {"clusters": clusters(INDEX), "lengths": torch.tensor([21, 20])},
        ValueError,
        "index must not hold padding, got token 20 for sequence 1",
    ),
}
VALUES_ON_THE_CPU = ("mask of other numbers", "lengths beyond", "a token twice", "a token in two clusters of sa_topk")


def on(device, value):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, CASTClusters):
        return CASTClusters(*(on(device, part) for part in value))
    return value


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(backend, name):
    changes, error, message = WRONG[name]
    if backend.name == "cuda" and name in VALUES_ON_THE_CPU:
        pytest.skip("values on a GPU are not looked at")
    call = {key: on(backend.device, value) for key, value in {**CALL, **changes}.items()}
    with pytest.raises(error, match=message):
        cast_attention(**call)


@pytest.mark.cpu
@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name):
    changes, error, message = WRONG_VALUES[name]
    with pytest.raises(error, match=message):
        cast_attention(**{**CALL, **changes})


@pytest.mark.parametrize("backend", [pytest.param("simt", marks=pytest.mark.simt)], indirect=True)
def test_slots_whose_token_does_not_exist_are_empty(backend):
    """A GPU cannot say so without waiting, but it must not read there."""
    beyond = INDEX.masked_fill(INDEX == 20, 10**6).masked_fill(INDEX == 3, -7)
    empty = INDEX.masked_fill((INDEX == 20) | (INDEX == 3), -1)
    found = [cast_attention(**CALL, clusters=clusters(index)) for index in (beyond, empty)]
    assert torch.equal(*found) and found[0].isfinite().all()


def test_affinity(backend):
    call = {name: on(backend.device, CALL[name]) for name in ("q", "k", "surrogates", "phi")}
    with pytest.raises(ValueError, match="tau_g must be greater than 0 and finite, got 0"):
        cast_affinity(**call, tau_g=0.0)
    with pytest.raises(sturdy.ShapeError, match=r"q must be \(B, h, N, e\)"):
        cast_affinity(**{**call, "q": call["q"][0]})
    with pytest.raises(TypeError, match="k must have the dtype of q"):
        cast_affinity(**{**call, "k": call["k"].double()})


def test_cluster(backend):
    affinity = torch.rand(2, 9, 3, device=backend.device)
    with pytest.raises(sturdy.ShapeError, match=r"affinity must be \(B, N, C\), got shape \(9, 3\)"):
        cast_cluster(affinity[0])
    with pytest.raises(TypeError, match="affinity must be float32, in which ties and order are decided"):
        cast_cluster(affinity.double())
    with pytest.raises(sturdy.ShapeError, match="the number of clusters C must be at least 1, got 0"):
        cast_cluster(affinity[:, :, :0])
    with pytest.raises(ValueError, match="capacity"):
        cast_cluster(affinity, 2, "sa_topk")
    with pytest.raises(ValueError, match="cluster_size must be at least 1, got -1"):
        cast_cluster(affinity, -1)


@pytest.mark.cpu
def test_backend_cuda_on_cpu_tensors():
    with pytest.raises(RuntimeError, match="backend='cuda' needs tensors on that device, got cpu; this build has"):
        cast_attention(**CALL, backend="cuda")


@pytest.mark.parametrize("backend", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("argument", ["k", "surrogates", "phi"])
def test_mixed_devices(backend, argument):
    call = {name: value if name == argument else value.to(backend.device) for name, value in CALL.items()}
    with pytest.raises(RuntimeError, match=f"{argument} must be on the device of q"):
        cast_attention(**call)


def test_other_devices(backend):
    with pytest.raises(RuntimeError, match=f"k must be on {backend.device}.*, got meta"):
        cast_attention(**{**CALL, "k": T.k.to("meta")})
