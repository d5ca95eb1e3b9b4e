"""CAST in the C library through ctypes alone: values, refusals that never crash."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref
from typing import Any

import numpy as np
import pytest
from c_library import (
    CUDA,
    EINVAL,
    ETYPE,
    OK,
    CastAffinityOptions,
    CastAttentionOptions,
    CastClusterOptions,
    Device,
    DType,
    Tensor,
    load,
    message,
    view,
)
from embedding_support import ROOT, run

B, H, N, E, C = 2, 3, 11, 4, 3
KAPPA = 4
DISJOINT = 2
OPTIONS = {
    "cast_affinity": CastAffinityOptions,
    "cast_cluster": CastClusterOptions,
    "cast_attention": CastAttentionOptions,
}
INPUTS = ("q", "k", "v", "surrogates", "phi", "index", "padding", "seed")
KEPT = ("intra", "summaries", "lse_intra", "lse_summary", "lse_mix")
GRADIENTS = ("grad_q", "grad_k", "grad_v", "grad_surrogates", "grad_phi")
ARGUMENTS = {
    "cast_affinity": ("q", "k", "surrogates", "phi", "padding", "affinity"),
    "cast_cluster": ("affinity", "padding", "index", "counts", "assignment"),
    "cast_attention": (*INPUTS, "out", *KEPT),
    "cast_attention_backward": ("grad_out", *INPUTS, "out", *KEPT, *GRADIENTS),
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return load()


class Call:
    """The arguments of calls that succeed one after the other; a test spoils some of them."""

    def __init__(self, dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        wide = "float64" if dtype == "float64" else "float32"
        tokens = {name: rng.standard_normal((B, H, N, E)).astype(dtype) for name in ("q", "k", "v", "grad_out")}
        empty = {
            "affinity": (B, N, C),
            "out": (B, H, N, E),
            "intra": (B, H, C, KAPPA, E),
            "grad_q": (B, H, N, E),
            "grad_k": (B, H, N, E),
            "grad_v": (B, H, N, E),
            "grad_surrogates": (H, C, E),
            "grad_phi": (B, N),
        }
        sums = {
            "summaries": (B, H, C, E),
            "lse_intra": (B, H, C, KAPPA),
            "lse_summary": (B, H, C),
            "lse_mix": (B, H, N),
        }
        self.arrays: dict[str, np.ndarray | None] = {
            **tokens,
            "surrogates": rng.standard_normal((H, C, E)).astype(dtype),
            "phi": rng.standard_normal((B, N)).astype(dtype),
            "padding": np.arange(N)[None] >= np.array([[N], [N - 3]]),
            "index": np.full((B, C, KAPPA), -9, "int32"),
            "counts": np.full((B, C), -9, "int32"),
            "assignment": np.full((B, N), -9, "int32"),
            "seed": None,
            **{name: np.full(shape, np.nan, dtype) for name, shape in empty.items()},
            **{name: np.full(shape, np.nan, wide) for name, shape in sums.items()},
        }
        self.arrays["affinity"] = np.full((B, N, C), np.nan, "float32")
        self.views: dict[str, Tensor | None] = {name: view(array) for name, array in self.arrays.items()}
        self.options: dict[str, Any] = {name: kind(ctypes.sizeof(kind)) for name, kind in OPTIONS.items()}
        self.options["cast_cluster"].method = 1
        self.options["cast_attention"].flags = DISJOINT

    def __call__(self, library: ctypes.CDLL, op: str) -> int:
        options = self.options[op.removesuffix("_backward")]
        views = [self.views[name] for name in ARGUMENTS[op]]
        tensors = [None if one is None else byref(one) for one in views]
        return getattr(library, f"sturdy_{op}")(None, None if options is None else byref(options), *tensors)

    def up_to(self, library: ctypes.CDLL, op: str) -> None:
        """Make the calls that come before."""
        for earlier in ARGUMENTS:
            if earlier == op:
                return
            assert self(library, earlier) == OK, message(library)


def test_layouts_agree_with_the_header(tmp_path: Any) -> None:
    source = tmp_path / "size.c"
    sizes = ", ".join(f"sizeof(sturdy_{op}_options)" for op in OPTIONS)
    source.write_text(
        '#include <stdio.h>\n#include "sturdy/cast.h"\n'
        f'int main(void) {{ printf("%zu %zu %zu", {sizes}); return 0; }}\n'
    )
    run("gcc", "-std=c99", f"-I{ROOT / 'csrc' / 'include'}", source, "-o", tmp_path / "size")
    assert run(tmp_path / "size").stdout.split() == [str(ctypes.sizeof(kind)) for kind in OPTIONS.values()]


def exact(a: dict[str, Any]) -> np.ndarray:
    """The definition for disjoint clusters, one token at a time."""
    out = np.zeros((B, H, N, E))
    q, k, v, s, phi = (a[name].astype(np.float64) for name in ("q", "k", "v", "surrogates", "phi"))
    for b, h in np.ndindex(B, H):
        members = [row[row >= 0] for row in a["index"][b]]
        summaries = []
        for c, inside in enumerate(members):
            weight = np.exp(k[b, h, inside] @ s[h, c] * (np.log1p(np.exp(-phi[b, inside])) + 1) / np.sqrt(E))
            summaries.append(weight @ v[b, h, inside] / weight.sum())
        for i in np.flatnonzero(~a["padding"][b]):
            mix = np.exp(s[h] @ q[b, h, i] * (np.log1p(np.exp(phi[b, i])) + 1) / np.sqrt(E))
            mix /= mix.sum()
            for c, inside in enumerate(members):
                attention = np.exp(k[b, h, inside] @ q[b, h, i] / np.sqrt(E))
                own = attention @ v[b, h, inside] / attention.sum()
                out[b, h, i] += mix[c] * (own if i in inside else summaries[c])
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 5e-6), ("float16", 1e-2)])
def test_values(library: ctypes.CDLL, dtype: str, tolerance: float) -> None:
    call = Call(dtype)
    call.up_to(library, "cast_attention_backward")
    assert call(library, "cast_attention_backward") == OK, message(library)
    a: dict[str, Any] = call.arrays
    assert np.isneginf(a["affinity"][a["padding"]]).all() and np.isfinite(a["affinity"][~a["padding"]]).all()
    assert a["counts"].tolist() == [[4, 4, 3], [3, 3, 2]]
    for b, c in np.ndindex(B, C):
        inside = np.flatnonzero(a["assignment"][b] == c)
        assert a["index"][b, c].tolist() == [*inside, *[-1] * (KAPPA - len(inside))]
    assert (a["assignment"][a["padding"]] == -1).all()
    np.testing.assert_allclose(a["out"], exact(a), rtol=0, atol=tolerance)
    assert all(np.isfinite(a[name]).all() for name in GRADIENTS)


def test_without_what_backward_needs(library: ctypes.CDLL) -> None:
    call = Call()
    call.up_to(library, "cast_attention")
    for name in KEPT:
        call.views[name] = None
    assert call(library, "cast_attention") == OK, message(library)
    np.testing.assert_allclose(call.arrays["out"], exact(call.arrays), rtol=0, atol=5e-6)


def test_infer(library: ctypes.CDLL) -> None:
    call = Call()
    sizes = (ctypes.c_int64 * 4)()
    found = Tensor(shape=sizes)
    for name in ("q", "k", "v", "surrogates", "phi", "padding", "affinity", "index"):
        call.views[name].data = None
    for op, wanted in (
        ("cast_affinity", [B, N, C]),
        ("cast_cluster", [B, C, KAPPA]),
        ("cast_attention", [B, H, N, E]),
    ):
        names = {"cast_affinity": 5, "cast_cluster": 2, "cast_attention": 8}[op]
        tensors = [None if call.views[n] is None else byref(call.views[n]) for n in ARGUMENTS[op][:names]]
        status = getattr(library, f"sturdy_{op}_infer")(byref(call.options[op]), *tensors, byref(found))
        assert status == OK, message(library)
        assert list(sizes)[: found.ndim] == wanted and found.ndim == len(wanted)


def set_options(op: str, **changes: Any) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        for name, value in changes.items():
            setattr(call.options[op], name, value)

    return spoil


def set_view(view_name: str, **changes: Any) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        for name, value in changes.items():
            setattr(call.views[view_name], name, value)

    return spoil


def set_array(name: str, array: np.ndarray) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        call.arrays[name] = array
        call.views[name] = view(array)

    return spoil


def share(name: str, other: str) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        call.views[name].data = call.views[other].data

    return spoil


def remove(*names: str) -> Callable[[Call], None]:
    def spoil(call: Call) -> None:
        for name in names:
            call.views[name] = None

    return spoil


def no_options(call: Call) -> None:
    call.options = dict.fromkeys(call.options)


INT64, FLOAT64 = DType(0, 64, 1), DType(2, 64, 1)
REFUSALS: list[tuple[str, Callable[[Call], None], int, str]] = [
    *((op, no_options, EINVAL, "options must not be NULL") for op in OPTIONS),
    *((op, set_options(op, struct_size=4), EINVAL, "struct_size must be at least") for op in OPTIONS),
    *((op, set_options(op, flags=64), EINVAL, "options.flags must") for op in OPTIONS),
    ("cast_affinity", set_options("cast_affinity", tau_g=-1.0), EINVAL, "tau_g must be greater than 0"),
    ("cast_affinity", set_options("cast_affinity", tau_g=float("nan")), EINVAL, "tau_g must be greater than 0"),
    ("cast_affinity", set_view("affinity", dtype=FLOAT64), ETYPE, "affinity must be float32"),
    ("cast_affinity", share("affinity", "q"), EINVAL, "affinity must not share memory with q"),
    ("cast_affinity", set_view("q", ndim=3), EINVAL, "q must have 4 dimensions (B, h, N, e)"),
    ("cast_affinity", set_view("padding", dtype=INT64), ETYPE, "padding must be bool or uint8"),
    ("cast_affinity", set_view("phi", device=Device(CUDA, 0)), EINVAL, "phi must be on the device of q"),
    ("cast_affinity", set_view("k", data=None), EINVAL, "k.data must not be NULL"),
    ("cast_cluster", set_options("cast_cluster", method=2), EINVAL, "method must be STURDY_CAST_TOP_K or"),
    ("cast_cluster", set_options("cast_cluster", cluster_size=3), EINVAL, "3 * 3 = 9 < N = 11"),
    ("cast_cluster", set_options("cast_cluster", cluster_size=-1), EINVAL, "cluster_size must be at least 1"),
    ("cast_cluster", set_options("cast_cluster", method=0), EINVAL, "assignment must be NULL with"),
    ("cast_cluster", remove("assignment"), EINVAL, "assignment must not be NULL"),
    ("cast_cluster", set_view("index", dtype=INT64), ETYPE, "index must be int32"),
    ("cast_cluster", share("counts", "index"), EINVAL, "must not share memory with"),
    ("cast_cluster", set_view("affinity", dtype=FLOAT64), ETYPE, "affinity must be float32"),
    ("cast_attention", set_options("cast_attention", dropout=1.0), EINVAL, "dropout must be in [0, 1)"),
    ("cast_attention", set_options("cast_attention", dropout=0.5), EINVAL, "seed must not be NULL"),
    ("cast_attention", set_options("cast_attention", tau_k=float("inf")), EINVAL, "tau_k must be greater than 0"),
    ("cast_attention", remove("lse_mix"), EINVAL, "lse_mix must not be NULL"),
    ("cast_attention", remove("out"), EINVAL, "out must not be NULL"),
    ("cast_attention", set_view("summaries", dtype=FLOAT64), ETYPE, "float64 for float64 q, else float32"),
    ("cast_attention", share("out", "v"), EINVAL, "out must not share memory with v"),
    ("cast_attention", set_array("index", np.full((B, C, KAPPA), N, "int32")), EINVAL, "index must hold tokens 0 to N"),
    ("cast_attention", set_array("index", np.full((B, C, KAPPA), N - 1, "int32")), EINVAL, "must not hold padding"),
    ("cast_attention", set_array("q", np.zeros((B, H, N, 2 * E), "float32")[..., ::2]), EINVAL, "q must have stride 1"),
    ("cast_attention_backward", remove("intra"), EINVAL, "intra must not be NULL"),
    ("cast_attention_backward", remove("grad_phi"), EINVAL, "grad_phi must not be NULL"),
    ("cast_attention_backward", set_view("grad_v", dtype=FLOAT64), ETYPE, "grad_v must have the dtype of q"),
    ("cast_attention_backward", share("grad_q", "grad_k"), EINVAL, "must not share memory with"),
    ("cast_attention_backward", share("grad_k", "k"), EINVAL, "grad_k must not share memory with k"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case[0]}-{case[3][:40]}")
def test_refusals(library: ctypes.CDLL, case: tuple[str, Callable[[Call], None], int, str]) -> None:
    op, spoil, status, words = case
    call = Call()
    call.up_to(library, op)
    spoil(call)
    assert call(library, op) == status, message(library)
    assert message(library).startswith(f"{op}: ") and words in message(library), message(library)
