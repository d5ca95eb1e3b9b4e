"""Puts CAST into existing Transformers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sturdy.nn.cast_encoder import CASTEncoderLayer
from sturdy.nn.convert import _add_to_optimizer, _Optimizers

_OP = "convert_encoder_layers"


def convert_encoder_layers(
    model: nn.Module,
    num_clusters: int,
    cluster_size: int | None = None,
    *,
    layers: Sequence[str] | None = None,
    optimizers: _Optimizers = None,
    new_weight_decay: float | None = 0.0,
    **options: Any,
) -> nn.Module:
    """Replace ``nn.TransformerEncoderLayer`` layers of a model by CAST ones that share their parameters.

    All of them, or none on an error. With clusters of whole sequences the model computes what it did; with smaller
    ones its function changes: train it on.

    Args:
        model: Changed in place, unless it is such a layer itself.
        num_clusters, cluster_size: As in :class:`sturdy.nn.CASTAttention`.
        layers: Qualified names of the layers; None: all that are ``nn.TransformerEncoderLayer`` itself.
        optimizers: Live optimizers of the model. What a layer had stays the same parameters; its surrogates and gate
            are added to the one that has its projections, as a parameter group with their settings but for the weight
            decay. Make learning rate schedulers afterwards.
        new_weight_decay: Of that group; None: that of the projections.
        **options: As for :meth:`CASTEncoderLayer.from_transformer_layer`.

    Returns:
        The model; a new layer where ``model`` is an ``nn.TransformerEncoderLayer`` itself.

    Raises:
        KeyError: there is no layer of one of the names; lists the closest ones.
        TypeError: one of the layers is of another class, or ``layers`` is a single string.
        ValueError: the model has no such layer, or one is not ``batch_first``.
    """
    if isinstance(layers, str):
        raise TypeError(f"{_OP}: layers must be a sequence of names, got the string {layers!r}")
    known = dict(model.named_modules(remove_duplicate=False))
    every = [name for name, module in known.items() if type(module) is nn.TransformerEncoderLayer]
    if layers is None and not every:
        raise ValueError(f"{_OP}: {type(model).__name__} has no nn.TransformerEncoderLayer")
    names = every if layers is None else list(layers)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, every, n=3, cutoff=0.3) or every[:3]
            similar = f"layers with a similar name: {', '.join(close)}" if close else "the model has none to convert"
            raise KeyError(f"{_OP}: no layer {name!r}; {similar}")
    # A layer may be in the model under several names; it is converted once and put back under all of them.
    converted: dict[nn.Module, CASTEncoderLayer] = {}
    first_name: dict[nn.Module, str] = {}
    for name in names:
        layer = known[name]
        if type(layer) is not nn.TransformerEncoderLayer:
            raise TypeError(f"{_OP}: {name!r} must be an nn.TransformerEncoderLayer, got {type(layer).__name__}")
        if layer not in converted:
            first_name[layer] = name
            converted[layer] = CASTEncoderLayer.from_transformer_layer(layer, num_clusters, cluster_size, **options)
    _add_new_parameters(converted, first_name, optimizers, new_weight_decay)
    if model in converted:
        return converted[model]
    for name, module in known.items():
        if module in converted:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, converted[module])
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its short cut in evaluation, which knows no layers but torch's
    return model


def _add_new_parameters(
    converted: dict[nn.Module, CASTEncoderLayer],
    names: dict[nn.Module, str],
    optimizers: _Optimizers,
    weight_decay: float | None,
) -> None:
    listed = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers or ())
    if not listed:
        return
    for layer, new in converted.items():
        attention = new.self_attn
        for name, parameter in attention._new_parameters().items():
            full_name = f"{names[layer]}.self_attn.{name}".lstrip(".")
            _add_to_optimizer(listed, attention.in_proj_weight, full_name, parameter, weight_decay)
