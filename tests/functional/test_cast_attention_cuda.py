"""What is particular to the CUDA kernels of cast_attention: tensor cores, tiles, alignment, and what needs a GPU."""

from __future__ import annotations

import pytest
import torch

from cast_support import Tokens, make_tokens, poison_padding, random_index, random_padding
from reference import cast as reference
from sturdy.functional import CASTClusters, cast_attention
from support import dtype_id, random
from support import uninitialized_memory_is_nan as poisoned

kernels = pytest.mark.parametrize(
    "backend",
    [pytest.param("simt", marks=pytest.mark.simt), pytest.param("cuda", marks=pytest.mark.cuda)],
    indirect=True,
)
gpu = pytest.mark.parametrize("backend", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)

# Rounding of operands and results, relative to the largest number that a sum holds: weights, values and sums of tensor
# cores err by 2^-9, 2^-12 or 2^-11 each, a few of which come together.
KINDS = {
    "bfloat16": (torch.bfloat16, False, 2.0**-6),
    "float16": (torch.float16, False, 2.0**-9),
    "tf32": (torch.float32, True, 2.0**-8),
    "float32": (torch.float32, False, 2.0**-17),
    "float64": (torch.float64, False, 2.0**-43),
}
# Tiles hold 64 slots (32 in double), 64 down to 8 keys and, of clusters, 16 or so; kappa and C lie around those.
SIZES = [(16, 1, 1), (13, 3, 31), (70, 2, 64), (66, 1, 66), (40, 17, 9), (30, 66, 3)]
DIMS = [8, 16, 32, 40, 64, 128]


def as_clusters(index: torch.Tensor, disjoint: bool = False) -> CASTClusters:
    return CASTClusters(index, (index >= 0).sum(2, dtype=torch.int32), None, "sa_topk" if disjoint else "topk")


def gradients(given: Tokens, grad_out: torch.Tensor, **options) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Result and gradients, as one call computes them."""
    leaves = given.leaves()
    with poisoned():
        out = cast_attention(*leaves.all(), **options)
        found = torch.autograd.grad(out, leaves.all(), grad_out)
    return out.detach(), found


def check(given: Tokens, index: torch.Tensor, tolerance: float, *, disjoint=False, padding=None, tf32=False, **more):
    """Values and gradients against the reference: errors relative to the largest element of each."""
    grad_out = random(tuple(given.q.shape), 8, given.q.dtype, given.q.device)
    out, found = gradients(
        given,
        grad_out,
        clusters=as_clusters(index, disjoint),
        key_padding_mask=padding,
        allow_tf32=tf32,
        **more,
    )
    kept = {"dropout": more.get("dropout", 0.0), "seed": int(more.get("seed", 0))}
    cpu = [tensor.detach().cpu() for tensor in given.all()]
    index, padding = index.cpu(), None if padding is None else padding.cpu()
    exact = reference.attention(*cpu, index, padding, **kept).out
    assert_near(out, exact, tolerance, "out")
    grads = reference.attention_backward(grad_out.cpu(), *cpu, index, padding, **kept)
    for name, grad, wanted in zip(grads._fields, found, grads, strict=True):
        assert_near(grad, wanted, 2 * tolerance, name)


def assert_near(found: torch.Tensor, exact: torch.Tensor, tolerance: float, what: str) -> None:
    assert found.isfinite().all(), what
    # Where clusters take up everything, gradients of gates and surrogates are 0 up to rounding.
    bound = max(tolerance, torch.finfo(found.dtype).eps) * max(1.0, float(exact.abs().amax()))
    error = float((found.double().cpu() - exact).abs().amax())
    assert error <= bound, f"{what}: {error:.2e} is more than {bound:.2e}"


@kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", DIMS)
def test_values_and_gradients_of_every_tile(backend, kind, dim):
    dtype, tf32, tolerance = KINDS[kind]
    for tokens, clusters, slots in SIZES if dim in (8, 64) else SIZES[1:3]:
        given = make_tokens(1, 1, tokens, dim, clusters, dtype, backend.device, packed=True)
        index = random_index(1, tokens, clusters, slots, device=backend.device)
        check(given, index, tolerance, tf32=tf32)


@kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [16, 40, 128])
def test_disjoint_clusters(backend, kind, dim):
    dtype, tf32, tolerance = KINDS[kind]
    given = make_tokens(1, 2, 80, dim, 3, dtype, backend.device, packed=True, phi_dtype=torch.float32)
    index = random_index(1, 80, 3, 27, disjoint=True, device=backend.device)
    check(given, index, tolerance, disjoint=True, tf32=tf32)


@kernels
@pytest.mark.parametrize("disjoint", [False, True], ids=["overlapping", "disjoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_empty_slots_anywhere_and_dropout(backend, kind, disjoint):
    dtype, tf32, tolerance = KINDS[kind]
    padding = random_padding(2, 90, device=backend.device)
    padding[1] = True
    given = poison_padding(make_tokens(2, 2, 90, 24, 4, dtype, backend.device), padding)
    index = random_index(2, 90, 4, 17 if disjoint else 66, disjoint=disjoint, padding=padding, holes=True)
    seed = torch.tensor(2**40 + 5, device=backend.device)
    options = {"dropout": 0.25, "seed": seed, "padding": padding, "tf32": tf32, "disjoint": disjoint}
    check(given, index.to(backend.device), tolerance, **options)


@kernels
def test_tokens_in_no_cluster_get_no_gradient_of_keys_and_values(backend):
    for disjoint in (False, True):
        given = make_tokens(1, 1, 40, 16, 2, torch.float32, backend.device)
        index = random_index(1, 40, 2, 9, disjoint=True, device=backend.device)
        grad_out = random((1, 1, 40, 16), 8, device=backend.device)
        _, grads = gradients(given, grad_out, clusters=as_clusters(index, disjoint))
        outside = torch.ones(40, dtype=torch.bool, device=backend.device)
        outside[index[index >= 0].long()] = False
        assert outside.sum() == 22
        assert (grads[1][0, 0, outside] == 0).all() and (grads[2][0, 0, outside] == 0).all()
        assert (grads[0][0, 0, outside] != 0).any(dim=1).all()


@kernels
def test_tf32_is_off_unless_allowed(backend):
    given = make_tokens(1, 2, 33, 16, 3, torch.float32, backend.device)
    options = {"clusters": as_clusters(random_index(1, 33, 3, 20, device=backend.device))}
    ieee = cast_attention(*given.all(), **options, allow_tf32=False)
    allowed = cast_attention(*given.all(), **options, allow_tf32=True)
    assert torch.equal(cast_attention(*given.all(), **options), ieee)
    assert not torch.equal(allowed, ieee)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(cast_attention(*given.all(), **options), allowed)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@kernels
@pytest.mark.parametrize("disjoint", [False, True], ids=["overlapping", "disjoint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=dtype_id)
def test_alignment_changes_no_bit(backend, dtype, disjoint):
    wide = make_tokens(1, 2, 37, 17, 2, dtype, backend.device, packed=True)
    # Rows of 16 elements, 17 apart, the first of them one element past every alignment.
    odd = Tokens(*(t[..., 1:] for t in wide.all()[:4]), wide.phi)
    even = Tokens(*(t.contiguous() for t in odd.all()))
    clusters = as_clusters(random_index(1, 37, 2, 18, disjoint=disjoint, device=backend.device), disjoint)
    wide_grad = random((1, 2, 37, 17), 8, dtype, backend.device)[..., 1:]
    for tf32 in (False, True):
        expected = gradients(even, wide_grad.contiguous(), clusters=clusters, allow_tf32=tf32)
        found = gradients(odd, wide_grad, clusters=clusters, allow_tf32=tf32)
        assert torch.equal(found[0], expected[0])
        for grad, wanted in zip(found[1], expected[1], strict=True):
            assert torch.equal(grad, wanted)


@kernels
@pytest.mark.parametrize("disjoint", [False, True], ids=["overlapping", "disjoint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_the_same_bits_each_time_and_alone(backend, dtype, disjoint):
    given = make_tokens(3, 2, 70, 16, 3, dtype, backend.device)
    index = random_index(3, 70, 3, 23, disjoint=disjoint, device=backend.device)
    grad_out = random((3, 2, 70, 16), 8, dtype, backend.device)
    first = gradients(given, grad_out, clusters=as_clusters(index, disjoint))
    second = gradients(given, grad_out, clusters=as_clusters(index, disjoint))
    assert torch.equal(first[0], second[0])
    for a, b in zip(first[1], second[1], strict=True):
        assert torch.equal(a, b)
    one = given.but(**{name: getattr(given, name)[1:2] for name in ("q", "k", "v", "phi")})
    alone = gradients(one, grad_out[1:2], clusters=as_clusters(index[1:2], disjoint))
    assert torch.equal(alone[0], first[0][1:2])
    for name, a, b in zip(("q", "k", "v", "surrogates", "phi"), alone[1], first[1], strict=True):
        assert name == "surrogates" or torch.equal(a, b[1:2]), name


@kernels
def test_a_call_that_keeps_nothing_gives_the_same(backend):
    for disjoint in (False, True):
        given = make_tokens(1, 2, 70, 16, 3, torch.bfloat16, backend.device)
        clusters = as_clusters(random_index(1, 70, 3, 23, disjoint=disjoint, device=backend.device), disjoint)
        with poisoned():
            kept = cast_attention(*given.leaves().all(), clusters=clusters)
            alone = cast_attention(*given.all(), clusters=clusters)
        assert torch.equal(alone, kept)


@kernels
def test_more_slots_than_sixteen_bits_count(backend):
    given = make_tokens(1, 1, 9, 8, 2, torch.float32, backend.device)
    index = torch.full((1, 2, 65600), -1, dtype=torch.int32, device=backend.device)
    index[0, 0, :5] = torch.tensor([0, 2, 4, 6, 8], device=backend.device, dtype=torch.int32)
    index[0, 1, 1:4] = torch.tensor([1, 2, 3], device=backend.device, dtype=torch.int32)
    long = gradients(given, given.q.detach(), clusters=as_clusters(index))
    short = gradients(given, given.q.detach(), clusters=as_clusters(index[:, :, :7].contiguous()))
    assert torch.equal(long[0], short[0])
    for a, b in zip(long[1], short[1], strict=True):
        assert torch.equal(a, b)


@kernels
def test_extreme_scores_stay_finite(backend):
    for dtype in (torch.float32, torch.bfloat16):
        given = make_tokens(1, 1, 40, 16, 3, dtype, backend.device)
        given = given.but(q=given.q * 100, k=given.k * 100, surrogates=given.surrogates * 100, phi=given.phi * 1000)
        for disjoint in (False, True):
            index = random_index(1, 40, 3, 13, disjoint=disjoint, device=backend.device)
            out, grads = gradients(given, given.v.detach(), clusters=as_clusters(index, disjoint))
            assert out.isfinite().all()
            assert all(grad.isfinite().all() for grad in grads)


@kernels
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"tokens": 0}], ids=["no_sequences", "no_tokens"])
def test_nothing_to_do(backend, sizes):
    given = make_tokens(dtype=torch.float32, device=backend.device, **sizes)
    batch, _, tokens, _ = given.q.shape
    index = torch.full((batch, 3, min(4, tokens)), -1, dtype=torch.int32, device=backend.device)
    for disjoint in (False, True):
        out, grads = gradients(given, torch.ones_like(given.q), clusters=as_clusters(index, disjoint))
        assert out.shape == given.q.shape
        assert (grads[3] == 0).all()


@kernels
def test_a_dimension_beyond_the_tiles_is_refused(backend):
    given = make_tokens(1, 1, 6, 136, 2, torch.float32, backend.device)
    index = random_index(1, 6, 2, 3, device=backend.device)
    with pytest.raises(NotImplementedError, match="head dimension may be 128 at most on a GPU"):
        cast_attention(*given.all(), clusters=as_clusters(index))


# ---- on a GPU alone --------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("disjoint", [False, True], ids=["overlapping", "disjoint"])
def test_graph_capture(backend, disjoint):
    given = make_tokens(2, 4, 1000, 64, 8, torch.bfloat16, backend.device, packed=True)
    clusters = as_clusters(random_index(2, 1000, 8, 125, disjoint=disjoint, device=backend.device), disjoint)
    grad_out = random((2, 4, 1000, 64), 8, torch.bfloat16, backend.device)
    leaves = given.leaves()

    def step() -> tuple[torch.Tensor, ...]:
        out = cast_attention(*leaves.all(), clusters=clusters)
        return (out, *torch.autograd.grad(out, leaves.all(), grad_out))

    expected = [tensor.detach().clone() for tensor in step()]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    for found, wanted in zip(captured, expected, strict=True):
        assert torch.equal(found, wanted)


@gpu
def test_more_than_2_31_elements(backend):
    tokens, heads, dim, last = 1 << 21, 8, 128, 100
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB of GPU memory")
    together = torch.zeros((1, tokens, 3, heads, dim), dtype=torch.bfloat16, device=backend.device)
    small = make_tokens(1, heads, last, dim, 4, torch.bfloat16, backend.device, packed=True)
    q, k, v = together.permute(2, 0, 3, 1, 4).unbind()
    for whole, part in zip((q, k, v), small.all()[:3], strict=True):
        whole[:, :, -last:] = part
    phi = torch.zeros((1, tokens), dtype=torch.bfloat16, device=backend.device)
    phi[:, -last:] = small.phi
    index = random_index(1, last, 4, 70, device=backend.device)
    moved = torch.where(index >= 0, index + (tokens - last), index)
    out = cast_attention(q, k, v, small.surrogates, phi, clusters=as_clusters(moved))
    expected = cast_attention(*small.all(), clusters=as_clusters(index))
    # Tiles of tokens begin elsewhere; what a token gets does not depend on that.
    assert torch.equal(out[:, :, -last:], expected)
