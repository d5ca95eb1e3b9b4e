"""PushPull convolution: the functional op, and what torch must know of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sturdy import _options, _registration
from sturdy._errors import ShapeError

_NAME = "push_pull_conv2d"
_PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def push_pull_conv2d(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | float = 1.0,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    avg_kernel_size: int | tuple[int, ...] | None = 0,
    padding_mode: str = "zeros",
    range_dims: str = "filter",
    keep_push: bool = True,
    allow_tf32: bool | None = None,
) -> Tensor:
    """Convolve with a kernel and subtract the rectified response to its mirror image in contrast.

    ``relu(p) - inhibition * relu(avg_pool(q)) + bias`` with ``p = conv2d(input, weight)`` and ``q`` the response to
    ``-weight + min(weight) + max(weight)``, the extremes taken as ``range_dims`` says. The average has stride 1, the
    size of its input, and counts only cells inside the map.

    Args:
        input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``; float16, bfloat16, float32 or float64; any strides.
        weight: ``(C_out, C_in / groups, kH, kW)``, the dtype and device of ``input``.
        inhibition: Strength of the pull response, no unit: a number, or a tensor of shape ``()``, ``(C_out,)`` or
            ``(1, C_out, 1, 1)``, float32 or of the dtype of ``input``. A negative one excites.
        bias: ``(C_out,)``, float32 or of the dtype of ``input``; added last, outside both rectifications.
        stride, dilation: In pixels, as in ``torch.nn.functional.conv2d``.
        padding: In pixels, or ``"valid"``, or ``"same"`` (stride 1 alone; an even extent pads one more at the right
            and bottom).
        groups: Divides both channel counts.
        avg_kernel_size: Odd window of the average, in pixels of the output; 0, 1 or None for none.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; both responses read the same
            padded input.
        range_dims: ``"filter"``: one minimum and maximum per output channel, of all its entries; ``"channel"``: one per
            output and input channel, of the entries over (kH, kW).
        keep_push: Keep ``p``, as large as the output, for the backward pass; False computes it again there.
        allow_tf32: On CUDA, let tensor cores multiply float32 after rounding it to 10 fraction bits. None follows
            ``torch.backends.cuda.matmul.fp32_precision``, which torch leaves off (its setting for cuDNN is on) until
            ``torch.backends.fp32_precision = "tf32"`` or ``torch.set_float32_matmul_precision("high")``.

    Returns:
        ``(N, C_out, H_out, W_out)``, or without ``N`` as the input came; dtype and memory format of ``input``.

    Raises:
        ShapeError: shapes disagree or the kernel does not fit; both a ``ValueError`` and a ``RuntimeError``.
        ValueError: an option is out of range.
        TypeError: dtypes disagree or are unsupported.
        NotImplementedError: a size, device or option that this build has no kernel for.

    Note:
        Sums are kept in float32 (float64 for float64) and are bitwise repeatable on one device. Differentiable in all
        tensors, twice too; ``torch.func.grad`` does not go through ops of this kind. ``inhibition=0`` gives
        ``relu(p) + bias``, not ``p + bias``. An infinity in ``input`` can give NaN where two convolutions give an
        infinity.

    Source: Bennabhaktula, Alegre, Strisciuglio, Azzopardi, *PushPull-Net: Inhibition-driven ResNet robust to image
    corruptions*, ICPR 2024.
    """
    _check_tensors(input, weight)
    channel_range = _options.channel_range(_NAME, range_dims)
    tf32 = _registration.tf32_allowed() if allow_tf32 is None else bool(allow_tf32)
    strides = _options.pair(_NAME, "stride", stride, least=1)
    dilations = _options.pair(_NAME, "dilation", dilation, least=1)
    pool = _options.pool(_NAME, avg_kernel_size)
    groups = _options.groups(_NAME, groups)
    paddings = _options.paddings(_NAME, padding, weight.shape[-2:], strides, dilations)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    if padding_mode != "zeros":
        batched, paddings = _pad(batched, paddings, padding_mode), (0, 0, 0, 0)
    strength, channels = _inhibition(inhibition, weight.shape[0])
    differentiable = [batched, weight, channels, bias]
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    out, _ = _registration.call(
        "push_pull_conv2d",
        *(batched, weight, channels, strength, bias),
        *(strides, paddings, dilations, groups, pool, channel_range, tf32, keep_push and needs_grad),
    )
    return out if input.dim() == 4 else out.squeeze(0)


# ---- arguments -------------------------------------------------------------------------------------------------------
# The C library checks everything about tensors once for all bindings. What is here and in sturdy._options turns
# Python's spellings of an argument into the one that the library knows.


def _check_tensors(input: Tensor, weight: Tensor) -> None:
    if input.dim() not in (3, 4):
        raise ShapeError(
            f"push_pull_conv2d: input must be (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}"
            f" for weight of shape {tuple(weight.shape)}"
        )
    if weight.dim() != 4:
        raise ShapeError(f"push_pull_conv2d: weight must be (O, C / groups, kH, kW), got shape {tuple(weight.shape)}")


def _pad(input: Tensor, paddings: tuple[int, int, int, int], mode: str) -> Tensor:
    if mode not in _PADDING_MODES:
        raise ValueError(
            f"push_pull_conv2d: padding_mode must be one of {', '.join(map(repr, _PADDING_MODES))}, got {mode!r}"
        )
    top, bottom, left, right = paddings
    height, width = input.shape[-2:]
    # The most that a mode can take from the image: reflection leaves out the edge pixel itself.
    if mode in ("reflect", "circular"):
        limit = 1 if mode == "reflect" else 0
        for name, pad, side in (("height", max(top, bottom), height), ("width", max(left, right), width)):
            if pad > side - limit:
                raise ShapeError(
                    f"push_pull_conv2d: padding of {pad} with padding_mode={mode!r} needs an input {name} of at least "
                    f"{pad + limit}, got {side}"
                )
    if not any(paddings):
        return input
    return F.pad(input, (left, right, top, bottom), mode=_PADDING_MODES[mode])


def _inhibition(inhibition: Tensor | float, out_channels: int) -> tuple[float, Tensor | None]:
    """The strength as a number, or as one value per output channel."""
    if not isinstance(inhibition, Tensor):
        return float(inhibition), None
    shape = tuple(inhibition.shape)
    if shape == (1, out_channels, 1, 1):
        return 1.0, inhibition.reshape(out_channels)
    if shape in ((), (1,)):
        return 1.0, inhibition.reshape(1).expand(out_channels)
    if shape != (out_channels,):
        raise ShapeError(
            f"push_pull_conv2d: inhibition must be a number or have shape (), ({out_channels},) or "
            f"(1, {out_channels}, 1, 1), got {shape}"
        )
    return 1.0, inhibition


# ---- the same mathematics in torch's own ops -------------------------------------------------------------------------


def composite(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | None,
    strength: float,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    pool: tuple[int, int],
    channel_range: bool = False,
) -> Tensor:
    """The op as two convolutions and elementwise operations: what the second derivative is taken of."""
    top, bottom, left, right = padding
    padded = F.pad(input, (left, right, top, bottom)) if any(padding) else input
    entries = (2, 3) if channel_range else (1, 2, 3)
    middle = weight.amin(dim=entries, keepdim=True) + weight.amax(dim=entries, keepdim=True)
    push = F.conv2d(padded, weight, None, stride, 0, dilation, groups)
    pull = F.conv2d(padded, middle - weight, None, stride, 0, dilation, groups)
    if pool != (1, 1):
        window = (pool[0] // 2, pool[1] // 2)
        # torch refuses a padding larger than half the window's size, not one larger than the map.
        pull = F.avg_pool2d(pull, pool, 1, window, count_include_pad=False)
    alpha: Tensor | float = strength if inhibition is None else inhibition.to(push.dtype).view(1, -1, 1, 1)
    out = F.relu(push) - alpha * F.relu(pull)
    return out if bias is None else out + bias.to(push.dtype).view(1, -1, 1, 1)


# ---- registration ----------------------------------------------------------------------------------------------------


def _output_size(size: Any, before: int, after: int, kernel: Any, dilation: int, stride: int) -> Any:
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | None,
    strength: float,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pool: list[int],
    channel_range: bool,
    allow_tf32: bool,
    keep_push: bool,
) -> tuple[Tensor, Tensor]:
    torch._check(input.dim() == 4 and weight.dim() == 4, lambda: "push_pull_conv2d: input and weight must be 4-D")
    torch._check(input.dtype == weight.dtype, lambda: "push_pull_conv2d: weight must have the dtype of input")
    torch._check(
        input.shape[1] == weight.shape[1] * groups,
        lambda: (
            f"push_pull_conv2d: weight must have {input.shape[1]} / {groups} input channels (in_channels / groups), "
            f"got {weight.shape[1]}"
        ),
    )
    rows = _output_size(input.shape[2], padding[0], padding[1], weight.shape[2], dilation[0], stride[0])
    columns = _output_size(input.shape[3], padding[2], padding[3], weight.shape[3], dilation[1], stride[1])
    shape = (input.shape[0], weight.shape[0], rows, columns)
    layout = _registration.memory_format(input)
    out = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
    return out, torch.empty_like(out) if keep_push else input.new_empty((0,))


def _fake_backward(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor,
    inhibition: Tensor | None,
    strength: float,
    push: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pool: list[int],
    channel_range: bool,
    allow_tf32: bool,
    need_input: bool,
    need_weight: bool,
    need_inhibition: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor, wanted: bool) -> Tensor:
        if not wanted:
            return tensor.new_empty((0,))
        layout = _registration.memory_format(tensor)
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=layout)

    def per_channel(wanted: bool) -> Tensor:
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        return input.new_empty((weight.shape[0] if wanted else 0,), dtype=dtype)

    return like(input, need_input), like(weight, need_weight), per_channel(need_inhibition), per_channel(need_bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, inhibition, strength, bias, *options, keep_push = inputs
    _, push = output
    ctx.mark_non_differentiable(push)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, inhibition, bias, push if keep_push else None)
    ctx.strength = strength
    ctx.options = options


def _backward_in(namespace: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor | None, grad_push: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 8
        if grad_out is None:
            return (None, None, None, None, None, *nothing)
        input, weight, inhibition, bias, push = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[:3], ctx.needs_input_grad[4])
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if twice and any(t is not None and t.requires_grad for t in (grad_out, input, weight, inhibition, bias)):
            grads = _differentiable_backward(ctx, grad_out, wanted)
        else:
            op = getattr(torch.ops, namespace).push_pull_conv2d_backward
            found = op(grad_out, input, weight, inhibition, ctx.strength, push, *ctx.options, *wanted)
            # Channel gradients come in the dtype they were summed in.
            targets = (input, weight, inhibition, bias)
            grads = [
                grad.to(target.dtype) if want else None
                for grad, target, want in zip(found, targets, wanted, strict=True)
            ]
        return (grads[0], grads[1], grads[2], None, grads[3], *nothing)

    return backward


def _differentiable_backward(ctx: Any, grad_out: Tensor, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients that can be differentiated again, through the composite form."""
    input, weight, inhibition, bias, _ = ctx.saved_tensors
    *options, _ = ctx.options  # the composite form multiplies as torch is set to
    tensors = (input, weight, inhibition, bias)
    out = composite(input, weight, inhibition, ctx.strength, bias, *_as_tuples(options))
    sources = [tensor for tensor, want in zip(tensors, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(out, sources, grad_out, create_graph=True))
    return [next(found) if want else None for want in wanted]


def _as_tuples(options: list[Any]) -> Any:
    return [tuple(option) if isinstance(option, (list, tuple)) else option for option in options]


def _cast_forward(dtype: torch.dtype, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Input and weight alone: inhibition and bias act in registers, in float32, whatever the storage.
    input, weight, *rest = args
    return (_registration.autocast_tensor(input, dtype), _registration.autocast_tensor(weight, dtype), *rest)


def _vmap_forward_in(namespace: str) -> Any:
    op = getattr(torch.ops, namespace).push_pull_conv2d
    by_loop = _registration.vmap_by_loop(op)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        input_dim, *other_dims = in_dims[:5]
        if input_dim is None or any(dim is not None for dim in other_dims):
            return by_loop(info, in_dims, *args)
        # Only the input is mapped: its mapped dimension and N make one larger batch.
        input, *rest = args
        stacked = input.movedim(input_dim, 0)
        out, push = op(stacked.flatten(0, 1), *rest)
        keep_push = args[-1]
        unfolded = out.unflatten(0, stacked.shape[:2])
        if keep_push:
            return (unfolded, push.unflatten(0, stacked.shape[:2])), (0, 0)
        return (unfolded, push.expand(info.batch_size, 0)), (0, 0)

    return rule


def _backward_of_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "push_pull_conv2d_backward has no derivative of its own; differentiate push_pull_conv2d twice instead, "
        "in eager mode"
    )


@_registration.op_family
def _register(namespace: str) -> None:
    forward = f"{namespace}::push_pull_conv2d"
    backward = f"{namespace}::push_pull_conv2d_backward"
    torch.library.register_fake(forward, _fake_forward)
    torch.library.register_fake(backward, _fake_backward)
    torch.library.register_autograd(forward, _backward_in(namespace), setup_context=_setup_context)
    torch.library.register_vmap(forward, _vmap_forward_in(namespace))
    torch.library.register_autograd(backward, _backward_of_backward)
    backward_op = getattr(torch.ops, namespace).push_pull_conv2d_backward
    torch.library.register_vmap(backward, _registration.vmap_by_loop(backward_op))
    _registration.register_autocast(namespace, "push_pull_conv2d", _cast_forward)
