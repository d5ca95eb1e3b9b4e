"""What the tests of cast_attention share: calls of the op and of its reference, and how far they may be apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cast_support import NAMES, Tokens
from reference import cast as reference
from sturdy.functional import CASTClusters, cast_attention

# Relative to the largest number there is: sums of rounded terms, and for 16 bits the rounding of what is stored in
# between (attention within clusters, and parts of gradients) and of the result.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}


def as_clusters(index: Tensor, disjoint: bool = False) -> CASTClusters:
    return CASTClusters(index, (index >= 0).sum(2, dtype=torch.int32), None, "sa_topk" if disjoint else "topk")


def attend(given: Tokens, index: Tensor, disjoint: bool = False, padding: Tensor | None = None, **more: Any) -> Tensor:
    """The op with frozen clusters."""
    return cast_attention(*given.all(), clusters=as_clusters(index, disjoint), key_padding_mask=padding, **more)


def differentiate(
    given: Tokens, index: Tensor, grad_out: Tensor, disjoint: bool = False, padding: Tensor | None = None, **more: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Result and gradients."""
    leaves = given.leaves()
    out = attend(leaves, index, disjoint, padding, **more)
    return out.detach(), torch.autograd.grad(out, leaves.all(), grad_out)


def expect(
    given: Tokens, index: Tensor, grad_out: Tensor, padding: Tensor | None = None, **more: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same by the definition and its closed form, in float64."""
    tensors = given.double().all()
    index, padding = index.cpu(), None if padding is None else padding.cpu()
    out = reference.attention(*tensors, index, padding, **more).out
    return out, tuple(reference.attention_backward(grad_out.double().cpu(), *tensors, index, padding, **more))


def assert_close(
    found: Tensor,
    exact: Tensor,
    what: str = "out",
    scale: float | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """``scale``: what errors are relative to, the largest element unless told; ``dtype``: of the tokens, if another."""
    assert found.shape == exact.shape, what
    if exact.numel() == 0:
        return
    assert found.isfinite().all(), what
    tolerance = max(TOLERANCE[dtype or found.dtype], TOLERANCE[found.dtype])
    bound = tolerance * (float(exact.abs().max()) if scale is None else scale)
    error = float((found.double().cpu() - exact.double().cpu()).abs().max())
    assert error <= bound, f"{what}: {error:.2e} is more than {bound:.2e}"


def assert_gradients_close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """Relative to the largest gradient of all, as where clusters hold everything some are 0 up to rounding."""
    scale = max((float(grad.abs().max()) for grad in exact if grad.numel()), default=0.0)
    for name, grad, wanted in zip(NAMES, found, exact, strict=True):
        assert_close(grad, wanted, name, scale, found[0].dtype)


def assert_same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    """Bit for bit."""
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(one, other), f"tensor {number} differs"
