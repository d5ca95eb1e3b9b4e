"""Sums of images' amplitude spectra, and what torch must know of the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sturdy import _registration
from sturdy._errors import ShapeError


def spectrum_accumulate(
    x: Tensor,
    group: Tensor,
    groups: int,
    *,
    power: int = 1,
    initial: Tensor | None = None,
) -> Tensor:
    """Add up the amplitudes of images' spectra by group: ``|rfft2(x)| ** power`` summed over the images of each group.

    Every image is read once, and no spectrum is kept. Divide by the number of images of a group for its mean spectrum.

    Args:
        x: ``(N, C, H, W)``; float16, bfloat16, float32 or float64; any strides and any size, H and W at least 1.
        group: ``(N,)``, int64: 0 to ``groups - 1``, for example labels; -1 leaves an image out.
        groups: Number of groups, at least 0.
        power: 1 for sums of amplitudes, 2 for sums of their squares.
        initial: Sums so far, of the result's shape, float32 or float64 (float64 alone for float64 images): the result
            is these with the new ones added, in their dtype. For sums over more than a few batches choose float64.

    Returns:
        ``(groups, C, H, W // 2 + 1)``, contiguous, in the order of ``torch.fft.rfft2`` without normalisation; float64
        for float64 images, else float32, or the dtype of ``initial``. A group without images has 0.

    Raises:
        ShapeError: shapes disagree, a group is out of range, or tensors are on several devices; both a ``ValueError``
            and a ``RuntimeError``.
        ValueError: ``power`` is neither 1 nor 2, or ``groups`` is negative.
        TypeError: a dtype is not one of the above.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        **No gradient**: the result does not require one, whatever ``x`` does. Transforms are in float32 (float64 for
        float64), sums over many images in float64, added in an order that does not depend on the number of threads. A
        NaN stays in its group and channel.

    Source: the class-wise average spectra of Wang et al., *What do neural networks learn in image classification? A
    frequency shortcut perspective*, ICCV 2023.
    """
    if x.dim() != 4:
        raise ShapeError(f"spectrum_accumulate: x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if power not in (1, 2):
        raise ValueError(f"spectrum_accumulate: power must be 1 or 2, got {power}")
    if groups < 0:
        raise ValueError(f"spectrum_accumulate: groups must be at least 0, got {groups}")
    shape = (groups, x.shape[1], x.shape[2], x.shape[3] // 2 + 1)
    if initial is not None and tuple(initial.shape) != shape:
        raise ShapeError(f"spectrum_accumulate: initial must have shape {shape}, got {tuple(initial.shape)}")
    if initial is not None and initial.device != x.device:
        raise ShapeError(f"spectrum_accumulate: initial must be on {x.device}, got {initial.device}")
    wanted = (torch.float64,) if x.dtype == torch.float64 else (torch.float32, torch.float64)
    if initial is not None and initial.dtype not in wanted:
        raise TypeError(f"spectrum_accumulate: initial must be {' or '.join(map(str, wanted))}, got {initial.dtype}")
    sums: Tensor = _registration.call("spectrum_accumulate", x, group, groups, power, initial)
    return sums


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_spectrum_accumulate(x: Tensor, group: Tensor, groups: int, power: int, initial: Tensor | None) -> Tensor:
    torch._check(x.dim() == 4, lambda: "spectrum_accumulate: x must have 4 dimensions (N, C, H, W)")
    torch._check(
        group.device == x.device, lambda: f"spectrum_accumulate: group must be on {x.device}, got {group.device}"
    )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (groups, x.shape[1], x.shape[2], x.shape[3] // 2 + 1)
    return x.new_empty(shape, dtype=dtype if initial is None else initial.dtype)


def _setup_spectrum_accumulate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)
    ctx.set_materialize_grads(False)


def _spectrum_accumulate_backward(ctx: Any, grad_out: Tensor | None) -> tuple[None, ...]:
    return (None,) * 5


@_registration.op_family
def _register_spectrum_accumulate(namespace: str) -> None:
    name, op = f"{namespace}::spectrum_accumulate", getattr(torch.ops, namespace).spectrum_accumulate
    torch.library.register_fake(name, _fake_spectrum_accumulate)
    torch.library.register_autograd(name, _spectrum_accumulate_backward, setup_context=_setup_spectrum_accumulate)
    torch.library.register_vmap(name, _registration.vmap_by_loop(op))
