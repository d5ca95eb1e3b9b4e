"""Plane waves added to images, and what torch must know of the op."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sturdy import _options, _registration
from sturdy._errors import ShapeError


def wave_add(
    input: Tensor,
    frequency: Tensor,
    amplitude: Tensor | float,
    phase: Tensor | float = 0.0,
    *,
    clip: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Add plane waves to images, for each image and channel its own or shared ones, and clamp.

    ``clamp(input + sum_k amplitude_k * sin(2 pi (f_k0 * y + f_k1 * x) + phase_k))`` with coordinates from the middle of
    the image, ``y = row - (H - 1) / 2`` and ``x = column - (W - 1) / 2``. One pass over the image: no wave is stored.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; uint8, which stands for value / 255, float16, bfloat16, float32 or
            float64; any strides.
        frequency: ``(N or 1, C or 1, K, 2)``, cycles per pixel along the row index and along the column index; float64
            or float32. In float32 a wave is already 4e-5 radians off at 100 pixels from the middle. Leading dimensions
            of size 1 may be left out, here and below: ``(K, 2)`` are the same ``K`` waves for all planes.
        amplitude: ``(N or 1, C or 1, K)`` or a number, in units of the image (after division by 255 of uint8);
            float32 or float64.
        phase: ``(N or 1, C or 1, K)`` or a number, in radians; float64 or float32. A last dimension of 1 serves all
            waves.
        clip: ``(low, high)``, the range that the result is clamped to; None for none. A NaN stays a NaN.
        dtype: Of the result for uint8 input; float32 by default. For other inputs it is the dtype of ``input``.

    Returns:
        Shape and memory format of ``input``; its dtype, or ``dtype`` for uint8.

    Raises:
        ShapeError: shapes disagree, or ``input`` has neither three nor four dimensions; both a ``ValueError`` and a
            ``RuntimeError``.
        ValueError: ``clip`` is not a pair of numbers in order.
        TypeError: an unsupported dtype: of ``input`` complex or integer other than uint8, of parameters all but float32
            and float64.
        NotImplementedError: a size or device that this build has no kernel for.

    Note:
        Differentiable in ``input`` and ``amplitude``; on the bounds of ``clip`` the gradient passes, beyond them it is
        0. ``frequency`` and ``phase`` get no gradient: None, whether or not they require one. Kept for the backward
        pass are the parameters and, with ``clip``, the input. Phases are computed in double and reduced to one turn, so
        that the error does not grow with the size of the image: 3e-7 of the amplitude in float32.
        Under autocast all dtypes stay, as they do in elementwise ops of torch.

        One frequency of an image is taken away, without a transform, by the waves of :func:`spectrum_waves` with
        their amplitude negated::

            frequency, amplitude, phase = spectrum_waves(torch.fft.rfft2(x), bins, x.shape[-2:])
            x_without = wave_add(x, frequency, -amplitude, phase)

    Source: Vaish, Wang, Strisciuglio, *Fourier-basis functions to bridge augmentation gap: Rethinking frequency
    augmentation in image classification*, CVPR 2024.
    """
    if input.dim() not in (3, 4):
        raise ShapeError(f"wave_add: input must be (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}")
    if dtype is not None and input.dtype != torch.uint8 and dtype != input.dtype:
        raise TypeError(
            f"wave_add: dtype must be that of input, {input.dtype}, or None unless input is uint8, got {dtype}"
        )
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    waves = _waves(input, frequency, amplitude, phase)
    out = _registration.call("wave_add", batched, *waves, _options.clip("wave_add", clip), dtype)
    return out if input.dim() == 4 else out.squeeze(0)


def wave_norm(frequency: Tensor, phase: Tensor | float, size: tuple[int, int]) -> Tensor:
    """L2 norm over ``size`` pixels of the plane wave that :func:`wave_add` adds for an amplitude of 1.

    In closed form, ``sqrt((H W - cos(2 phase) D_H(2 pi f_0) D_W(2 pi f_1)) / 2)`` with ``D_n(t) = sin(n t) / sin(t)``
    and its limits ``+-n`` where ``sin(t) = 0``. With a phase of ``+-pi / 4`` it is ``sqrt(H W / 2)`` whatever the
    frequency. It is 0 for a wave that vanishes everywhere, such as a frequency and phase of 0: mind a division by it.

    Args:
        frequency: ``(..., 2)``, cycles per pixel along the row index and along the column index.
        phase: A tensor that broadcasts against ``frequency[..., 0]``, or a number; in radians.
        size: Height and width of the image, in pixels.

    Returns:
        float64, the broadcast shape.

    Raises:
        ShapeError: the last dimension of ``frequency`` is not 2.
    """
    if frequency.dim() < 1 or frequency.shape[-1] != 2:
        raise ShapeError(f"wave_norm: frequency must have shape (..., 2), got {tuple(frequency.shape)}")
    angle = torch.as_tensor(phase, dtype=torch.float64, device=frequency.device)
    product = torch.cos(2 * angle)
    for axis, extent in enumerate(size):
        # For t = pi (m + r), |r| <= 1/2: D_n(t) = (-1)^(m (n - 1)) n sinc(n r) / sinc(r), which needs no limit.
        halves = 2 * frequency[..., axis].double()
        whole = torch.round(halves)
        rest = halves - whole
        sign = 1 - 2 * torch.remainder(whole * (extent - 1), 2)
        product = product * sign * extent * torch.sinc(extent * rest) / torch.sinc(rest)
    return torch.sqrt(torch.clamp((size[0] * size[1] - product) / 2, min=0))


def spectrum_waves(spectrum: Tensor, bins: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The plane waves that an image holds at given frequencies, as arguments of :func:`wave_add`.

    Adding them with their amplitude negated leaves what masking these bins and their mirror images with 0 leaves:
    ``x - (2 / HW) |F| cos(2 pi (k r / H + l c / W) + arg F)``, with 1 in place of 2 at bins that are their own mirror
    image. Searches that try one frequency after another need a single transform per image that way.

    Args:
        spectrum: ``torch.fft.rfft2`` of the images with its default norm, ``(N, C, H, W // 2 + 1)`` or without ``N``.
        bins: ``(K, 2)``, int64: row and column of the bins in a spectrum that is not shifted; columns beyond
            ``W // 2`` and negative numbers count modulo the size. No bin beside its mirror image, which would be
            taken away twice.
        size: Height and width of the image, in pixels.

    Returns:
        ``frequency (1, 1, K, 2)``, ``amplitude (N, C, K)`` and ``phase (N, C, K)``, float64, on the device of
        ``spectrum``, without gradient.

    Raises:
        ShapeError: shapes disagree. TypeError: ``spectrum`` is not complex, or ``bins`` not int64.

    Source: Wang, Strisciuglio et al., *DFM-X: Augmentation by leveraging prior knowledge of shortcut learning*, ICCV
    workshops 2023, whose search filters every image once per frequency instead.
    """
    height, width = size
    if spectrum.dim() not in (3, 4) or tuple(spectrum.shape[-2:]) != (height, width // 2 + 1):
        raise ShapeError(
            f"spectrum_waves: spectrum must be (N, C, H, W // 2 + 1) or (C, H, W // 2 + 1) for images of "
            f"{height} x {width}, got shape {tuple(spectrum.shape)}"
        )
    if bins.dim() != 2 or bins.shape[1] != 2:
        raise ShapeError(f"spectrum_waves: bins must be (K, 2), got shape {tuple(bins.shape)}")
    if not spectrum.is_complex():
        raise TypeError(f"spectrum_waves: spectrum must be complex, got {spectrum.dtype}")
    if bins.dtype != torch.int64:
        raise TypeError(f"spectrum_waves: bins must be int64, got {bins.dtype}")
    bins = bins.to(spectrum.device)
    column = bins[:, 1] % width
    mirrored = column > width // 2
    column = torch.where(mirrored, width - column, column)
    row = torch.where(mirrored, -bins[:, 0], bins[:, 0]) % height
    found = spectrum.detach()[..., row, column].to(torch.complex128)
    if found.dim() == 2:
        found = found.unsqueeze(0)
    own_mirror = (2 * row % height == 0) & (2 * column % width == 0)
    weight = torch.where(own_mirror, 1.0, 2.0).double() / (height * width)
    signed_row = torch.where(2 * row > height, row - height, row)
    frequency = torch.stack((signed_row.double() / height, column.double() / width), dim=-1)
    # From the corner, where the transform counts from, to the middle of the image; and from cosine to sine.
    centre = frequency.new_tensor([(height - 1) / 2, (width - 1) / 2])
    phase = found.angle() + 2 * math.pi * (frequency * centre).sum(dim=-1) + math.pi / 2
    return frequency[None, None], weight * found.abs(), phase


# ---- arguments -------------------------------------------------------------------------------------------------------


def _waves(input: Tensor, frequency: Tensor, amplitude: Tensor | float, phase: Tensor | float) -> tuple[Tensor, ...]:
    """The parameters with all their dimensions, and with one number of waves."""
    if not isinstance(frequency, Tensor) or frequency.dim() not in (2, 3, 4):
        shape = tuple(frequency.shape) if isinstance(frequency, Tensor) else type(frequency).__name__
        raise ShapeError(f"wave_add: frequency must be a tensor (N or 1, C or 1, K, 2) or (K, 2), got {shape}")
    if frequency.dim() < 4:  # views of tensors that are right already would take longer than a small batch
        frequency = frequency.reshape((1,) * (4 - frequency.dim()) + tuple(frequency.shape))
    parameters = []
    for name, value in (("amplitude", amplitude), ("phase", phase)):
        tensor = value
        if not isinstance(tensor, Tensor):
            tensor = torch.full((1, 1, 1), float(value), dtype=torch.float64, device=input.device)
        if tensor.dim() > 3:
            raise ShapeError(
                f"wave_add: {name} must be (N or 1, C or 1, K) or a number, got shape {tuple(tensor.shape)}"
            )
        if tensor.dim() < 3:
            tensor = tensor.reshape((1,) * (3 - tensor.dim()) + tuple(tensor.shape))
        parameters.append(tensor)
    count = frequency.shape[2]
    if count == 1:
        count = next((int(p.shape[2]) for p in parameters if p.shape[2] != 1), 1)
        frequency = frequency.expand(-1, -1, count, -1)
    if count != 1:
        parameters = [p.expand(-1, -1, count) if p.shape[2] == 1 else p for p in parameters]
    return frequency, *parameters


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_wave_add(
    input: Tensor,
    frequency: Tensor,
    amplitude: Tensor,
    phase: Tensor,
    clip: list[float],
    dtype: torch.dtype | None,
) -> Tensor:
    torch._check(input.dim() == 4, lambda: "wave_add: input must have 4 dimensions (N, C, H, W)")
    torch._check(
        input.is_floating_point() or input.dtype == torch.uint8,
        lambda: f"wave_add: input must be uint8, float16, bfloat16, float32 or float64, got {input.dtype}",
    )
    result = (dtype or torch.float32) if input.dtype == torch.uint8 else input.dtype
    layout = _registration.memory_format(input)
    return torch.empty(input.shape, dtype=result, device=input.device, memory_format=layout)


def _fake_wave_add_backward(
    grad_out: Tensor,
    input: Tensor | None,
    frequency: Tensor,
    amplitude: Tensor,
    phase: Tensor,
    clip: list[float],
    need_input: bool,
    need_amplitude: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if grad_out.dtype == torch.float64 else torch.float32
    planes = (grad_out.shape[0], grad_out.shape[1], frequency.shape[2])
    grad_amplitude = grad_out.new_empty(planes if need_amplitude else (0,), dtype=wide)
    if not need_input:
        return grad_out.new_empty((0,)), grad_amplitude
    layout = _registration.memory_format(grad_out if input is None else input)
    grad_input = torch.empty(grad_out.shape, dtype=grad_out.dtype, device=grad_out.device, memory_format=layout)
    return grad_input, grad_amplitude


def _setup_wave_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, frequency, amplitude, phase, clip, _ = inputs
    ctx.clip = clip
    ctx.save_for_backward(input if clip else None, frequency, amplitude, phase)
    ctx.set_materialize_grads(False)


def _wave_add_backward_in(namespace: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        need_input, _, need_amplitude, *_ = ctx.needs_input_grad
        if grad_out is None:
            return (None,) * 6
        input, frequency, amplitude, phase = ctx.saved_tensors
        passes = need_input and not ctx.clip  # without a clamp the gradient of the input is that of the output
        grad_input, grad_amplitude = None, None
        if need_amplitude or not passes:
            op = getattr(torch.ops, namespace).wave_add_backward
            wanted = (need_input and not passes, need_amplitude)
            found = op(grad_out, input, frequency, amplitude, phase, ctx.clip, *wanted)
            grad_input = found[0] if wanted[0] else None
            grad_amplitude = found[1].sum_to_size(amplitude.shape).to(amplitude.dtype) if need_amplitude else None
        return grad_out if passes else grad_input, None, grad_amplitude, None, None, None

    return backward


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("wave_add_backward has no derivative: wave_add can be differentiated once")


@_registration.op_family
def _register_wave_add(namespace: str) -> None:
    forward, backward = f"{namespace}::wave_add", f"{namespace}::wave_add_backward"
    ops = getattr(torch.ops, namespace)
    torch.library.register_fake(forward, _fake_wave_add)
    torch.library.register_fake(backward, _fake_wave_add_backward)
    torch.library.register_autograd(forward, _wave_add_backward_in(namespace), setup_context=_setup_wave_add)
    torch.library.register_autograd(backward, _no_second_derivative)
    torch.library.register_vmap(forward, _registration.vmap_by_loop(ops.wave_add))
    torch.library.register_vmap(backward, _registration.vmap_by_loop(ops.wave_add_backward))
