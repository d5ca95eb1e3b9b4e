"""Puts our layers into existing models."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sturdy.nn.pushpull import PushPullConv2d
from sturdy.nn.pushpull2020 import PushPull2020Conv2d
from sturdy.nn.surround import SurroundSuppressionConv2d

_Inhibited: TypeAlias = PushPullConv2d | PushPull2020Conv2d | SurroundSuppressionConv2d
_Optimizers: TypeAlias = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


def convert_first_conv(
    model: nn.Module,
    *,
    layer: str | None = None,
    example_input: Tensor | None = None,
    optimizers: _Optimizers = None,
    inhibition_weight_decay: float | None = 0.0,
    layer_class: type[_Inhibited] = PushPullConv2d,
    **options: Any,
) -> nn.Module:
    """Replace the first convolution of a model by a PushPull one that shares its parameters.

    The model changes its function: train it on, or at least estimate its BatchNorm statistics anew. From pretrained
    weights, start with an inhibition of 1 and no averaging.

    Args:
        model: Changed in place, unless it is an ``nn.Conv2d`` itself.
        layer: Qualified name of the layer, for example ``"conv1"`` (ResNet), ``"features.0"`` (AlexNet),
            ``"features.0.0"`` (ConvNeXt and EfficientNet of torchvision), ``"conv_stem"``, ``"stem.0"`` or
            ``"stem.conv"`` (timm). By default the first ``nn.Conv2d`` in order of registration.
        example_input: A batch to run through the model once, without gradients and in evaluation mode: makes certain
            that the layer is the one, and the only one, that reads the model's input.
        optimizers: Live optimizers of the model. Weight and bias stay the same parameters, so they go on as they are;
            a trainable inhibition is added to the one that has the weight, as a parameter group with the settings of
            the weight's but for the weight decay. Make learning rate schedulers afterwards.
        inhibition_weight_decay: Of that group; None: that of the weight's group, as the authors of PushPull-Net train.
        layer_class: What to put there: :class:`sturdy.nn.PushPullConv2d`, :class:`sturdy.nn.PushPull2020Conv2d` or
            :class:`sturdy.nn.SurroundSuppressionConv2d`.
        **options: Keyword-only options of ``layer_class``.

    Returns:
        The model; a new layer where ``model`` is an ``nn.Conv2d`` itself. A layer that is converted already stays as
        it is, with a warning.

    Raises:
        KeyError: there is no layer of that name; lists the closest ones.
        TypeError: the layer is not an ``nn.Conv2d`` itself: of a derived class, lazy, or something else.
        ValueError: the model has no convolution, or ``example_input`` shows that another one reads the input
            or several do.
    """
    op = "convert_first_conv"
    name = _first_conv(op, model) if layer is None else layer
    found = _to_convert(op, model, [name], layer_class)
    if found and example_input is not None:
        _check_reads_input(op, model, name, example_input)
    return _convert(model, found, optimizers, inhibition_weight_decay, layer_class, options)


def convert_layers(
    model: nn.Module,
    layers: Sequence[str],
    *,
    optimizers: _Optimizers = None,
    inhibition_weight_decay: float | None = 0.0,
    layer_class: type[_Inhibited] = PushPullConv2d,
    **options: Any,
) -> nn.Module:
    """Replace convolutions of a model by PushPull ones that share their parameters: all of them, or none on an error.

    Args:
        model: Changed in place, unless it is an ``nn.Conv2d`` itself, whose name is ``""``.
        layers: Qualified names of the layers.
        optimizers, inhibition_weight_decay, layer_class, **options: As for :func:`convert_first_conv`, for every layer.

    Returns:
        The model. Layers that are converted already stay as they are, with a warning.

    Raises:
        KeyError: there is no layer of one of the names; lists the closest ones.
        TypeError: one of the layers is not an ``nn.Conv2d`` itself, or ``layers`` is a single string.
    """
    op = "convert_layers"
    if isinstance(layers, str):
        raise TypeError(f"{op}: layers must be a sequence of names, got the string {layers!r}")
    found = _to_convert(op, model, layers, layer_class)
    return _convert(model, found, optimizers, inhibition_weight_decay, layer_class, options)


# ---- finding ---------------------------------------------------------------------------------------------------------


def _first_conv(op: str, model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name
    raise ValueError(f"{op}: {type(model).__name__} has no nn.Conv2d")


def _to_convert(op: str, model: nn.Module, names: Sequence[str], layer_class: type[_Inhibited]) -> dict[str, nn.Conv2d]:
    """The plain convolutions of these names; warns of those that are converted already."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Conv2d] = {}
    for name in names:
        if name not in modules:
            convs = [known for known, module in modules.items() if isinstance(module, nn.Conv2d)]
            close = difflib.get_close_matches(name, convs, n=3, cutoff=0.3) or convs[:3]
            similar = f"convolutions with a similar name: {', '.join(close)}" if close else "the model has no nn.Conv2d"
            raise KeyError(f"{op}: no layer {name!r}; {similar}")
        module = modules[name]
        if isinstance(module, layer_class):
            kind = type(module).__name__
            warnings.warn(f"{op}: {name or 'the model'!r} is a {kind} already", stacklevel=3)
        elif type(module) is not nn.Conv2d:
            raise TypeError(f"{op}: {name!r} must be an nn.Conv2d, got {type(module).__name__}")
        else:
            found[name] = module
    return found


def _check_reads_input(op: str, model: nn.Module, name: str, example_input: Tensor) -> None:
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
        raise ValueError(f"{op}: {name!r} should alone read the model's input, which is read by {read_by}")


# ---- replacing -------------------------------------------------------------------------------------------------------


def _convert(
    model: nn.Module,
    found: dict[str, nn.Conv2d],
    optimizers: _Optimizers,
    weight_decay: float | None,
    layer_class: type[_Inhibited],
    options: dict[str, Any],
) -> nn.Module:
    # A convolution may be in the model under several names; it is converted once and put back under all of them.
    converted: dict[nn.Conv2d, _Inhibited] = {}
    names: dict[nn.Conv2d, str] = {}
    for name, conv in found.items():
        if conv not in converted:
            converted[conv] = layer_class.from_conv(conv, **options)
            names[conv] = name
    listed = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers or ())
    for conv, layer in converted.items():
        if isinstance(layer.inhibition, nn.Parameter) and listed:
            full_name = f"{names[conv]}.inhibition".lstrip(".")
            _add_to_optimizer(listed, layer.weight, full_name, layer.inhibition, weight_decay)
    if isinstance(model, nn.Conv2d):
        return converted.get(model, model)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Conv2d) and module in converted:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, converted[module])
    return model


def _add_to_optimizer(
    optimizers: list[torch.optim.Optimizer],
    beside: Tensor,
    name: str,
    parameter: nn.Parameter,
    weight_decay: float | None,
) -> None:
    """Add a parameter with the settings of the group that has ``beside``, or the first optimizer's defaults."""
    optimizer, settings = optimizers[0], {}
    for candidate in optimizers:
        for group in candidate.param_groups:
            if any(member is beside for member in group["params"]):
                optimizer, settings = candidate, group
    new = {key: copy.deepcopy(value) for key, value in settings.items() if key not in ("params", "param_names")}
    if weight_decay is not None:
        new["weight_decay"] = weight_decay
    named = "param_names" in optimizer.param_groups[0]
    optimizer.add_param_group({**new, "params": [(name, parameter)] if named else [parameter]})
