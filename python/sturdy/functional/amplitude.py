"""Images with the amplitudes of other images' spectra, and what torch must know of the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sturdy import _options, _registration
from sturdy._errors import ShapeError


def amplitude_mix(
    x: Tensor,
    other: Tensor | None = None,
    *,
    index: Tensor | None = None,
    strength: float | Tensor = 1.0,
    window: tuple[int, int] | Tensor | None = None,
    color_fft: bool = False,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Keep the phases of images' spectra and mix their amplitudes with those of other images.

    With ``F`` the DFT of an image and ``F'`` that of its partner, the result is the real part of the inverse DFT of
    ``((1 - strength) * |F| + strength * |F'|) * F / |F|``, in one pass and without angles. Three augmentations are one
    call each:

    - APR: ``amplitude_mix(x, index=torch.randperm(len(x)), color_fft=True)``;
    - FACT: ``amplitude_mix(x, index=..., strength=eta * torch.rand(len(x)))``;
    - FDA: ``amplitude_mix(x, targets, index=..., window=(int(beta * H), int(beta * W)))``.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``, gives the phases; float16, bfloat16, float32 or float64; any strides and
            any size, H and W at least 1.
        other: Images to take amplitudes from, ``(M, C, H, W)``, dtype of ``x``; None for those of ``x`` itself, which
            needs ``index``. Without ``index`` M is N or 1. ``(C, H, W)`` beside a ``x`` without N.
        index: ``(N,)``, int64: which image of ``other`` (or of ``x``) is the partner. -1 copies the image, bit by bit
            and without the clamp.
        strength: Share of the partner's amplitude, 0 to 1; a number, or ``(N or 1,)`` float32 or float64, whose values
            are not looked at.
        window: ``(rows, columns)``, half-widths of a box around frequency 0, in cycles per image: frequencies with
            ``|k| <= rows`` and ``|l| <= columns`` change alone. None for all; negative for none. Integers for all
            images, or ``(2,)`` or ``(N or 1, 2)`` int64.
        color_fft: Transform along the channels as well: the amplitudes of colors are exchanged, too. Any number of
            channels.
        clip: ``(low, high)``, the range that the result is clamped to, in units of ``x``; None for none. A NaN stays.

    Returns:
        Shape, dtype and memory format of ``x``, real.

    Raises:
        ShapeError: shapes disagree, there is neither ``other`` nor ``index``, an index is out of range, or tensors are
            on several devices; both a ``ValueError`` and a ``RuntimeError``.
        ValueError: a number for ``strength`` is not in [0, 1], ``window`` is not a pair, or ``clip`` is not in order.
        TypeError: a dtype is not one of the above.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        **No gradient**: an augmentation. The result does not require one, whatever the inputs do. ``F / |F|`` is 1, as
        phase 0 has it, where ``|F|`` is less than 1e-12 for each sample of the transform. Transforms are in float32
        (float64 for float64) also where images are stored in half precision; under autocast all dtypes stay. An image's
        result depends on it and its partner alone, and is bitwise repeatable; a NaN in either makes it NaN, plane by
        plane unless ``color_fft`` mixes them. No memory of the size of the batch is needed besides the result.

    Source: Chen et al., *Amplitude-phase recombination: Rethinking robustness of convolutional neural networks in
    frequency domain*, ICCV 2021 (APR); Xu et al., *A Fourier-based framework for domain generalization*, CVPR 2021
    (FACT); Yang and Soatto, *FDA: Fourier domain adaptation for semantic segmentation*, CVPR 2020.
    """
    if x.dim() not in (3, 4):
        raise ShapeError(f"amplitude_mix: x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    if other is not None and x.dim() == 3 and other.dim() == 3:
        other = other.unsqueeze(0)
    number, strengths = 1.0, None
    if isinstance(strength, Tensor):
        strengths = strength.reshape(1) if strength.dim() == 0 else strength
    else:
        number = _options.share("amplitude_mix", "strength", strength)
    pair, windows = [], None
    if isinstance(window, Tensor):
        windows = window.unsqueeze(0) if window.dim() == 1 else window
    else:
        pair = _options.window("amplitude_mix", window)
    bounds = _options.clip("amplitude_mix", clip)
    out: Tensor = _registration.call(
        "amplitude_mix", batched, other, index, number, strengths, pair, windows, color_fft, bounds
    )
    return out if x.dim() == 4 else out.squeeze(0)


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_amplitude_mix(
    x: Tensor,
    other: Tensor | None,
    index: Tensor | None,
    strength: float,
    strengths: Tensor | None,
    window: list[int],
    windows: Tensor | None,
    color_fft: bool,
    clip: list[float],
) -> Tensor:
    torch._check(x.dim() == 4, lambda: "amplitude_mix: x must have 4 dimensions (N, C, H, W)")
    torch._check(
        other is not None or index is not None,
        lambda: "amplitude_mix: index must say which images of x amplitudes are taken from where no other is given",
    )
    if other is not None:
        torch._check(
            other.dim() == 4 and other.shape[1:] == x.shape[1:],
            lambda: f"amplitude_mix: other must be (M, C, H, W) like x, {tuple(x.shape)}, got {tuple(other.shape)}",
        )
    given = {"other": other, "index": index, "strength": strengths, "window": windows}
    elsewhere = [name for name, tensor in given.items() if tensor is not None and tensor.device != x.device]
    torch._check(not elsewhere, lambda: f"amplitude_mix: {', '.join(elsewhere)} must be on {x.device}, as x is")
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_registration.memory_format(x))


def _setup_amplitude_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)
    ctx.set_materialize_grads(False)


def _amplitude_mix_backward(ctx: Any, grad_out: Tensor | None) -> tuple[None, ...]:
    return (None,) * 9


@_registration.op_family
def _register_amplitude_mix(namespace: str) -> None:
    name, op = f"{namespace}::amplitude_mix", getattr(torch.ops, namespace).amplitude_mix
    torch.library.register_fake(name, _fake_amplitude_mix)
    torch.library.register_autograd(name, _amplitude_mix_backward, setup_context=_setup_amplitude_mix)
    torch.library.register_vmap(name, _registration.vmap_by_loop(op))
