"""Puts our layers into existing models."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sturdy.nn.pushpull import PushPullConv2d


def convert_first_conv(
    model: nn.Module,
    *,
    layer: str | None = None,
    example_input: Tensor | None = None,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    **options: Any,
) -> nn.Module:
    """Replace the first convolution of a model by a PushPull one that shares its parameters.

    The model changes its function: train it on, or at least estimate its BatchNorm statistics anew. From pretrained
    weights, start with an inhibition of 1 and no averaging.

    Args:
        model: Changed in place, unless it is an ``nn.Conv2d`` itself.
        layer: Qualified name of the layer, for example ``"conv1"`` (ResNet), ``"features.0"`` (AlexNet) or
            ``"features.0.0"`` (ConvNeXt and EfficientNet of torchvision). By default the first ``nn.Conv2d`` in
            order of registration.
        example_input: A batch to run through the model once, without gradients and in evaluation mode: makes certain
            that the layer is the one, and the only one, that reads the model's input.
        optimizers: Live optimizers of the model. Weight and bias stay the same parameters, so they go on as they are;
            a trainable inhibition is added to the first as a parameter group without weight decay.
        **options: Keyword-only options of :class:`sturdy.nn.PushPullConv2d`.

    Returns:
        The model; a new layer where ``model`` is an ``nn.Conv2d`` itself.

    Raises:
        KeyError: there is no layer of that name; lists the closest ones.
        TypeError: the layer is not an ``nn.Conv2d`` itself.
        ValueError: the model has no convolution, or ``example_input`` shows that another one reads the input
            or several do.
    """
    name = _first_conv(model) if layer is None else layer
    found = _find(model, name)
    if isinstance(found, PushPullConv2d):
        warnings.warn(f"convert_first_conv: {name or 'the model'!r} is a PushPullConv2d already", stacklevel=2)
        return model
    if type(found) is not nn.Conv2d:
        raise TypeError(f"convert_first_conv: {name!r} must be an nn.Conv2d, got {type(found).__name__}")
    if example_input is not None:
        _check_reads_input(model, name, example_input)
    converted = PushPullConv2d.from_conv(found, **options)
    if isinstance(converted.inhibition, nn.Parameter) and optimizers is not None:
        listed = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers)
        if listed:
            listed[0].add_param_group({"params": [converted.inhibition], "weight_decay": 0.0})
    if name == "":
        return converted
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, converted)
    return model


def _first_conv(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name
    raise ValueError(f"convert_first_conv: {type(model).__name__} has no nn.Conv2d")


def _find(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules:
        convs = [known for known, module in modules.items() if isinstance(module, nn.Conv2d)]
        close = difflib.get_close_matches(name, convs, n=3, cutoff=0.3) or convs[:3]
        raise KeyError(f"convert_first_conv: no layer {name!r}; convolutions with a similar name: {', '.join(close)}")
    return modules[name]


def _check_reads_input(model: nn.Module, name: str, example_input: Tensor) -> None:
    """Run the model once and see which convolutions get the input itself."""
    readers: list[str] = []
    hooks = []
    for known, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(_: nn.Module, args: tuple[Any, ...], known: str = known) -> None:
                same_memory = args[0].data_ptr() == example_input.data_ptr()
                if same_memory and args[0].shape == example_input.shape and known not in readers:
                    readers.append(known)

            hooks.append(module.register_forward_pre_hook(note))
    training = {known: module.training for known, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for known, module in model.named_modules():
            module.training = training[known]
    if readers != [name]:
        read_by = ", ".join(repr(reader) for reader in readers) or "no convolution directly"
        raise ValueError(
            f"convert_first_conv: {name!r} should alone read the model's input, which is read by {read_by}"
        )
