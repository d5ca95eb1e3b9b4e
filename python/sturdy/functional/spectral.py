"""Images filtered by masks on their spectra, and what torch must know of the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sturdy import _options, _registration
from sturdy._errors import ShapeError


def spectral_filter(
    x: Tensor,
    mask: Tensor,
    layout: str = "shifted",
    index: Tensor | None = None,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Filter images by real masks on their spectra: DFT, product, inverse DFT and clamp in one pass.

    ``clamp(ifft2(mask * fft2(x)).real)`` for each plane, circular, never padded, at any size. Since ``x`` is real, that
    is the filter by the mean of the mask's values at frequencies ``k`` and ``-k``: a mask need not be symmetric, and
    one of 0 and 1 that is not acts as one of 0, 1/2 and 1.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``; float16, bfloat16, float32 or float64; any strides; H and W at least 1.
        mask: Factors of the frequencies, no unit; float32 or the dtype of ``x``. The last two dimensions are those of
            ``layout``; in front of them may stand ``(C or 1,)``, a mask per channel; ``(N or 1, C or 1)``, one per
            image too; or ``(N or 1, T, C or 1)``, T masks for every image, each of which gives a result.
        layout: ``"shifted"``: ``(H, W)`` with frequency 0 at ``(H // 2, W // 2)``, as ``torch.fft.fftshift`` puts it.
            ``"half"``: ``(H, W // 2 + 1)``, the order of ``torch.fft.rfft2``.
        index: ``(N,)``, int64: ``mask`` is then a table, ``(T,)`` or ``(T, C or 1)`` in front, and each image takes the
            entry of its index. An index of -1 copies the image, bit by bit and without the clamp.
        clip: ``(low, high)``, the range that the result is clamped to, in units of ``x``; None for none. A NaN stays.

    Returns:
        Shape, dtype and memory format of ``x``; with T masks for every image ``(N, T, C, H, W)``, contiguous.

    Raises:
        ShapeError: shapes disagree, an index is outside the table, or tensors are on several devices; both a
            ``ValueError`` and a ``RuntimeError``.
        ValueError: ``layout`` is not one of the two, or ``clip`` is not a pair of numbers in order.
        TypeError: a dtype is not one of the above, such as that of a complex mask.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        Differentiable in ``x`` and ``mask``, once; with a clamp, whose gradient passes on its bounds, the filter is
        computed again in the backward pass. Transforms are in float32 (float64 for float64) also where ``x`` is stored
        in half precision; under autocast all dtypes stay. A plane's result does not depend on the others in the batch,
        and is bitwise repeatable. A NaN or infinity spreads over its plane and no further.

    Source: the filters of Wang et al., *DFM-X: Augmentation by leveraging prior knowledge of shortcut learning*, ICCVW
    2023, and *What do neural networks learn in image classification? A frequency shortcut perspective*, ICCV 2023.
    """
    if layout not in ("shifted", "half"):
        raise ValueError(f"spectral_filter: layout must be 'shifted' or 'half', got {layout!r}")
    if x.dim() not in (3, 4):
        raise ShapeError(f"spectral_filter: x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    bounds = _options.clip("spectral_filter", clip)
    out = _registration.call("spectral_filter", batched, mask, index, layout == "half", bounds)
    return out if x.dim() == 4 else out.squeeze(0)


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_spectral_filter(x: Tensor, mask: Tensor, index: Tensor | None, half: bool, clip: list[float]) -> Tensor:
    torch._check(x.dim() == 4, lambda: "spectral_filter: x must have 4 dimensions (N, C, H, W)")
    torch._check(2 <= mask.dim() <= 5, lambda: "spectral_filter: mask must have 2 to 5 dimensions")
    torch._check(mask.device == x.device, lambda: f"spectral_filter: mask must be on {x.device}, got {mask.device}")
    height, width = x.shape[-2:]
    columns = width // 2 + 1 if half else width
    torch._check(
        mask.shape[-2] == height and mask.shape[-1] == columns,
        lambda: f"spectral_filter: mask must end in ({height}, {columns}), got shape {tuple(mask.shape)}",
    )
    if mask.dim() == 5:
        return x.new_empty((x.shape[0], mask.shape[1], *x.shape[1:]))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_registration.memory_format(x))


def _fake_spectral_filter_backward(
    grad_out: Tensor,
    x: Tensor | None,
    mask: Tensor,
    index: Tensor | None,
    half: bool,
    clip: list[float],
    need_x: bool,
    need_mask: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    grad_mask = grad_out.new_empty(mask.shape if need_mask else (0,), dtype=wide)
    if not need_x:
        return grad_out.new_empty((0,)), grad_mask
    like = grad_out if x is None else x
    shape = like.shape if like.dim() == 4 else (like.shape[0], *like.shape[2:])
    layout = _registration.memory_format(like)
    return torch.empty(shape, dtype=grad_out.dtype, device=grad_out.device, memory_format=layout), grad_mask


def _setup_spectral_filter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mask, index, ctx.half, ctx.clip = inputs
    ctx.save_for_backward(x if ctx.clip or ctx.needs_input_grad[1] else None, mask, index)
    ctx.set_materialize_grads(False)


def _spectral_filter_backward_in(namespace: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 5
        need_x, need_mask, *_ = ctx.needs_input_grad
        x, mask, index = ctx.saved_tensors
        op = getattr(torch.ops, namespace).spectral_filter_backward
        grad_x, grad_mask = op(grad_out, x, mask, index, ctx.half, ctx.clip, need_x, need_mask)
        return grad_x if need_x else None, grad_mask.to(mask.dtype) if need_mask else None, None, None, None

    return backward


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("spectral_filter_backward has no derivative: spectral_filter can be differentiated once")


@_registration.op_family
def _register_spectral_filter(namespace: str) -> None:
    forward, backward = f"{namespace}::spectral_filter", f"{namespace}::spectral_filter_backward"
    ops = getattr(torch.ops, namespace)
    torch.library.register_fake(forward, _fake_spectral_filter)
    torch.library.register_fake(backward, _fake_spectral_filter_backward)
    torch.library.register_autograd(
        forward, _spectral_filter_backward_in(namespace), setup_context=_setup_spectral_filter
    )
    torch.library.register_autograd(backward, _no_second_derivative)
    torch.library.register_vmap(forward, _registration.vmap_by_loop(ops.spectral_filter))
    torch.library.register_vmap(backward, _registration.vmap_by_loop(ops.spectral_filter_backward))
