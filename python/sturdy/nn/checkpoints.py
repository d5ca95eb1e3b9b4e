"""Loads checkpoints of other implementations of PushPull into models with our layers.

==========================  ========================================  ==========================================
made by                     keys of a layer                           here
==========================  ========================================  ==========================================
torchvision, timm, sturdy   ``weight``, ``bias``, ``inhibition``      the same
PushPull-Net                ``push_conv.weight``                      ``PushPullConv2d``: ``weight``
(a Lightning file with      ``bias``                                  ``bias``
``state_dict`` and          ``pull_inhibition_strength``, ``(O,)``    ``inhibition``
``hyper_parameters``)       the same as a number                      its constant
PushPull of 2020 (a file    ``push.weight``, ``push.bias``            ``PushPull2020Conv2d``: ``weight``, ``bias``
with ``state_dict``)        ``alpha``, ``(1, O, 1, 1)``               ``inhibition``
==========================  ========================================  ==========================================
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from sturdy import _options
from sturdy.nn.pushpull import PushPullConv2d
from sturdy.nn.pushpull2020 import PushPull2020Conv2d

_OP = "load_pushpull_state_dict"

PUSHPULL_NET_RESNET = {"bn": "bn1", "classifier": "fc"}
"""What the ResNets of PushPull-Net call what torchvision calls otherwise, for ``rename``."""

# How torch.load names a class or function that it will not call.
_GLOBAL = re.compile(r"GLOBAL ([\w.]+\w)")

_PUSHPULL_NET = {"push_conv.weight": "weight", "pull_inhibition_strength": "inhibition"}
_PUSHPULL_2020 = {"push.weight": "weight", "push.bias": "bias", "alpha": "inhibition"}


class IncompatibleKeys(NamedTuple):
    """What did not fit, with ``strict=False``.

    Attributes:
        missing_keys: Of the model and not in the checkpoint.
        unexpected_keys: Of the checkpoint, by their names there, and not in the model.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_pushpull_state_dict(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    rename: Mapping[str, str] | None = None,
    avg_kernel_size: int | tuple[int, int] | None = None,
) -> IncompatibleKeys:
    """Load a checkpoint of this or another implementation of PushPull into a model with our layers.

    The keys of PushPull layers are translated wherever in the model they are; see the table of this module. A strength
    that is a number, and the window of the average, are no parameters and become options of the layers.

    Args:
        model: With :class:`sturdy.nn.PushPullConv2d` or :class:`sturdy.nn.PushPull2020Conv2d` where the checkpoint has
            such layers. Its device and dtype stay.
        source: A file of ``torch.save``, or what it holds: a state dict, or a mapping with one under ``"state_dict"``.
        strict: Raise where keys are missing or left over.
        rename: Beginnings of keys, in whole names between dots, and what they become before anything else, for
            example :data:`PUSHPULL_NET_RESNET` for the ResNets of PushPull-Net.
        avg_kernel_size: Of the layers that come from PushPull-Net, 0 for none. By default what the checkpoint's
            ``hyper_parameters`` say.

    Returns:
        What did not fit; two empty lists with ``strict``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, needs code to be loaded, or has no state dict (the message names it); no
            ``avg_kernel_size`` is known for a PushPull-Net checkpoint; two keys become the same.
        RuntimeError: keys or shapes do not fit, as ``nn.Module.load_state_dict`` reports them. Before that nothing is
            changed.

    Note: Nothing in a file is executed: it is loaded with ``weights_only``.
    """
    content, where = _read(source)
    state, hyper_parameters = _unpack(content, where)
    keys = _translate(model, state, rename or {}, where)
    layers = dict(model.named_modules())
    from_pushpull_net = [
        name
        for name, layer in layers.items()
        if isinstance(layer, PushPullConv2d) and keys.get(_join(name, "weight"), "").endswith("push_conv.weight")
    ]
    window = avg_kernel_size if avg_kernel_size is not None else hyper_parameters.get("avg_kernel_size")
    if from_pushpull_net:
        if window is None:
            raise ValueError(
                f"{where} does not say the window of the average in {from_pushpull_net[0]!r}: pass avg_kernel_size="
            )
        if isinstance(window, list):
            window = tuple(window)
        _options.pool(_OP, window)
    tensors = {ours: state[theirs] for ours, theirs in keys.items()}
    strengths = _constants(layers, tensors, from_pushpull_net, hyper_parameters)
    result = _load(model, tensors, keys, strict)
    for name in from_pushpull_net:
        layers[name].avg_kernel_size = window or 0
    for name, strength in strengths.items():
        layers[name].inhibition = strength
    return result


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(source: str | PathLike[str] | Mapping[str, Any]) -> tuple[Any, str]:
    """What a checkpoint holds, and how to call it in messages."""
    if isinstance(source, Mapping):
        return source, f"{_OP}: the checkpoint"
    where = f"{_OP}: {source}"
    with open(source, "rb") as file:  # a missing file is an OSError that names it
        return _load_weights(file, where), where


def _load_weights(file: BinaryIO, where: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it finds in a file that is no checkpoint
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that mean something else make the reader fail in any way
        refused = _GLOBAL.search(str(error))
        if refused is not None:
            reason = f"needs code to be loaded ({refused.group(1)}), and only tensors and plain values are accepted"
        else:
            reason = "is damaged or no checkpoint"
        raise ValueError(f"{where} {reason}") from None


def _unpack(content: Any, where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """State dict and hyper-parameters of a checkpoint."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds a {type(content).__name__}, not a state dict")
    hyper_parameters = content.get("hyper_parameters")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{where} has no state dict; its keys are {', '.join(map(str, list(content)[:5])) or 'none'}")
    return state, hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


# ---- translating -----------------------------------------------------------------------------------------------------


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _translate(model: nn.Module, state: Mapping[str, Any], rename: Mapping[str, str], where: str) -> dict[str, str]:
    """Names in our model, and the keys of ``state`` that they come from."""
    suffixes: dict[str, str] = {}
    for name, layer in model.named_modules():
        table: dict[str, str] = {}
        if isinstance(layer, PushPullConv2d):
            table = _PUSHPULL_NET
        elif isinstance(layer, PushPull2020Conv2d):
            table = _PUSHPULL_2020
        suffixes.update({_join(name, theirs): _join(name, ours) for theirs, ours in table.items()})
    keys: dict[str, str] = {}
    # DataParallel puts "module." before every name.
    wrapped = all(key.startswith("module.") for key in state) and not hasattr(model, "module")
    for key in state:
        ours = key.removeprefix("module.") if wrapped else key
        for old, new in rename.items():
            if ours == old or ours.startswith(f"{old}."):
                ours = _join(new, ours[len(old) :].lstrip(".")).rstrip(".")
                break
        ours = suffixes.get(ours, ours)
        if ours in keys:
            raise ValueError(f"{where} has both {keys[ours]!r} and {key!r}, which are the same here: {ours!r}")
        keys[ours] = key
    return keys


def _constants(
    layers: Mapping[str, nn.Module],
    tensors: dict[str, Any],
    from_pushpull_net: list[str],
    hyper_parameters: Mapping[str, Any],
) -> dict[str, float]:
    """The strengths that are numbers, by layer; makes of ``tensors`` what ``load_state_dict`` takes."""
    strengths: dict[str, float] = {}
    for name, layer in layers.items():
        if not isinstance(layer, (PushPullConv2d, PushPull2020Conv2d)):
            continue
        key = _join(name, "inhibition")
        value = tensors.get(key)
        if isinstance(value, (int, float)):
            if isinstance(layer.inhibition, nn.Parameter):
                tensors[key] = torch.full(tuple(layer.inhibition.shape), float(value))
            else:
                strengths[name] = float(tensors.pop(key))
        elif isinstance(value, Tensor):
            if value.dim() == 4:  # (1, O, 1, 1)
                tensors[key] = value.flatten()
        elif name in from_pushpull_net and not isinstance(layer.inhibition, nn.Parameter):
            told = hyper_parameters.get("pull_inhibition_strength")
            if isinstance(told, (int, float)):
                strengths[name] = float(told)
    return strengths


def _load(model: nn.Module, tensors: dict[str, Any], keys: Mapping[str, str], strict: bool) -> IncompatibleKeys:
    """``load_state_dict``, but for two things: left-over keys go by the checkpoint's names, and errors come first."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors]
    # BatchNorm did not always count its batches.
    counters = {name for name in missing if name.endswith("num_batches_tracked")}
    missing = [name for name in missing if name not in counters]
    unexpected = [keys[name] for name in tensors if name not in wanted]
    problems = []
    if strict and unexpected:
        problems.append(f"unexpected keys in the checkpoint: {_quoted(unexpected)}")
    if strict and missing:
        problems.append(f"missing keys: {_quoted(missing)}")
    for name, tensor in wanted.items():
        given = tensors.get(name)
        if given is None or not isinstance(tensor, Tensor):  # a module's extra state is its own affair
            continue
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            problems.append(f"size mismatch for {name}: {shape} in the checkpoint, {tuple(tensor.shape)} in the model")
    if problems:
        head = f"{_OP}: error(s) in loading state_dict for {type(model).__name__}:"
        raise RuntimeError("\n\t".join([head, *problems]))
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in wanted}, strict=False)
    return IncompatibleKeys(missing, unexpected)


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
