"""Normalisation with two sets of statistics: one for the main images, one for auxiliary, augmented ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sturdy._errors import ShapeError

# Where a batch goes: one of the names, or one name for each of several equal parts of the batch.
Route: TypeAlias = str | Sequence[str]

ROUTES = ("main", "aux")
_PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class DualBatchNorm2d(nn.Module):
    """Two batch normalisations of which each batch takes one: ``main`` or ``aux``.

    Training on images and on strongly augmented ones side by side goes better if their statistics, and what scales and
    shifts them, are kept apart. All other layers serve both. Evaluation is on ``main``.

    Which one it is says, in this order: the argument ``route`` of the call; the attribute ``route``, which
    :func:`route` sets for a time; ``"main"``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: As in ``torch.nn.BatchNorm2d``, for
            both.

    Attributes:
        main, aux: ``nn.BatchNorm2d``.
        route: A route; ``"main"`` from the start.

    Shape:
        ``(N, num_features, H, W)`` to the same.

    Raises:
        ShapeError: a batch does not divide among several routes.
        ValueError: an unknown route. Others as ``nn.BatchNorm2d``.

    Note:
        The state dict has ``main.*`` and ``aux.*``. That of an ``nn.BatchNorm2d`` can be loaded as well, strictly; both
        then start from it. Attributes are seen by ``torch.compile`` and ``torch.export``: one graph for each route.

    Source: the auxiliary normalisation of Vaish, Wang, Strisciuglio, *Fourier-basis functions to bridge augmentation
    gap*, CVPR 2024, after Xie et al., *Adversarial examples improve image recognition*, CVPR 2020.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.main = nn.BatchNorm2d(num_features, eps, momentum, affine, track_running_stats, **options)
        self.aux = nn.BatchNorm2d(num_features, eps, momentum, affine, track_running_stats, **options)
        self.route: Route = "main"
        self.register_load_state_dict_pre_hook(_plain_to_dual)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> DualBatchNorm2d:
        """A layer whose ``main`` is ``norm`` itself and whose ``aux`` is a copy of it.

        Raises:
            TypeError: ``norm`` is of another class than ``nn.BatchNorm2d``.
        """
        if type(norm) is not nn.BatchNorm2d:
            raise TypeError(
                f"{cls.__name__}.from_batch_norm: needs an nn.BatchNorm2d itself, got {type(norm).__name__}"
            )
        layer = cls(norm.num_features, device="meta")  # allocates nothing: both parts are replaced
        layer.main = norm
        layer.aux = copy.deepcopy(norm)
        layer.train(norm.training)
        return layer

    def forward(self, input: Tensor, route: Route | None = None) -> Tensor:
        """Normalise; several routes take equal parts of the batch, in order, each with statistics of its own."""
        wanted = self.route if route is None else route
        if isinstance(wanted, str):
            return self._part(input, wanted)
        parts = len(wanted)
        if parts == 0 or input.shape[0] % parts:
            raise ShapeError(
                f"{type(self).__name__}: a batch of {len(input)} does not divide among the {parts} routes {wanted!r}"
            )
        return torch.cat([self._part(x, name) for x, name in zip(input.tensor_split(parts), wanted, strict=True)])

    def _part(self, input: Tensor, name: str) -> Tensor:
        if name == "main":
            return self.main(input)
        if name == "aux":
            return self.aux(input)
        raise ValueError(f'{type(self).__name__}: route must be "main" or "aux", got {name!r}')


class DuBIN(nn.Module):
    """Instance normalisation of the first half of the channels, :class:`DualBatchNorm2d` of the others.

    ``num_features // 2`` channels go through the instance normalisation, which has learned scales and shifts but no
    running statistics and serves both routes. An odd channel goes to the batch normalisation.

    Args:
        num_features: At least 2.
        eps, momentum, track_running_stats, device, dtype: As in ``torch.nn.BatchNorm2d``.

    Attributes:
        IN, BN: The two parts, named as in IBN-Net, whose layers of kind "a" load strictly.

    Shape:
        ``(N, num_features, H, W)`` to the same; more than one pixel in training.

    Raises:
        ValueError: fewer than 2 channels.

    Source: Vaish, Wang, Strisciuglio, CVPR 2024; Pan et al., *Two at once: enhancing learning and generalization
    capacities via IBN-Net*, ECCV 2018.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features < 2:
            raise ValueError(f"DuBIN: num_features must be at least 2, to be split, got {num_features}")
        half = num_features // 2
        self.num_features = num_features
        self.split = (half, num_features - half)
        self.IN = nn.InstanceNorm2d(half, eps, affine=True, device=device, dtype=dtype)
        self.BN = DualBatchNorm2d(
            num_features - half, eps, momentum, True, track_running_stats, device=device, dtype=dtype
        )

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> DuBIN:
        """A layer with the scales, shifts and running statistics of ``norm``, copied.

        Raises:
            TypeError: ``norm`` is of another class than ``nn.BatchNorm2d``, or has no scales.
        """
        if type(norm) is not nn.BatchNorm2d or not norm.affine:
            raise TypeError(f"DuBIN.from_batch_norm: needs an affine nn.BatchNorm2d itself, got {norm}")
        where: dict[str, Any] = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        layer = cls(norm.num_features, norm.eps, norm.momentum, norm.track_running_stats, **where)
        half = layer.split[0]
        with torch.no_grad():
            layer.IN.weight.copy_(norm.weight[:half])
            layer.IN.bias.copy_(norm.bias[:half])
            for part in (layer.BN.main, layer.BN.aux):
                for name in _PARAMETERS:
                    value = getattr(norm, name)
                    if value is not None:
                        getattr(part, name).copy_(value[half:] if value.dim() else value)
        layer.train(norm.training)
        return layer

    def forward(self, input: Tensor, route: Route | None = None) -> Tensor:
        """Normalise; ``route`` as in :class:`DualBatchNorm2d`."""
        first, second = input.split(self.split, dim=1)
        return torch.cat((self.IN(first), self.BN(second, route)), dim=1)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(self.num_features)


def _plain_to_dual(module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Lets the entries of an ``nn.BatchNorm2d`` stand for those of both."""
    for name in _PARAMETERS:
        plain = state_dict.pop(prefix + name, None)
        if plain is not None:
            state_dict.setdefault(f"{prefix}main.{name}", plain)
            state_dict.setdefault(f"{prefix}aux.{name}", plain.clone())  # not shared with assign=True


# ---- routes ----------------------------------------------------------------------------------------------------------


@contextmanager
def route(model: nn.Module, where: Route) -> Iterator[nn.Module]:
    """Send batches through one set of normalisations of a model for a time.

    ::

        with route(model, "aux"):
            logits = model(augmented)
        with route(model, ("main", "aux")):             # one pass: first half main, second half aux
            clean, aux = model(torch.cat((x, augmented))).chunk(2)

    May be nested, also for parts of a model; what was before comes back at the end, after an exception too. Keep a
    backward pass inside where it computes activations again (``torch.utils.checkpoint``). The route is an attribute of
    the layers: threads that share one model must pass ``route=`` to the layers instead.

    Args:
        model: Any module; those of its layers that have two routes are switched.
        where: ``"main"``, ``"aux"``, or a sequence of them, one for each of as many equal parts of the batch.

    Yields:
        The model.

    Raises:
        ValueError: an unknown route, or none.
    """
    names = (where,) if isinstance(where, str) else tuple(where)
    if not names or not set(names) <= set(ROUTES):
        raise ValueError(f'route: must be "main", "aux" or a sequence of them, got {where!r}')
    layers = [layer for layer in model.modules() if isinstance(layer, DualBatchNorm2d)]
    before = [layer.route for layer in layers]
    for layer in layers:
        layer.route = where if isinstance(where, str) else names
    try:
        yield model
    finally:
        for layer, former in zip(layers, before, strict=True):
            layer.route = former


# ---- conversion ------------------------------------------------------------------------------------------------------


def convert_dual_bn(
    model: nn.Module,
    ibn: Sequence[str | None] | None = ("a", "a", "a", None),
    stages: Sequence[str] | None = None,
) -> nn.Module:
    """Give every ``nn.BatchNorm2d`` of a model a second one for auxiliary images.

    Make optimizers afterwards: there are new parameters. For synchronised statistics over several processes call
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` on the result.

    Args:
        model: Changed in place, unless it is an ``nn.BatchNorm2d`` itself. Layers of derived classes stay.
        ibn: For each stage ``"a"``, where the first normalisation of each block becomes a :class:`DuBIN`, or None. All
            None, or None as a whole: no instance normalisation. The authors have it in the first three stages of a
            ResNet for ImageNet, the first two of three for CIFAR.
        stages: Qualified names of the stages, modules whose children are the blocks; by default ``layer1``,
            ``layer2``, ... as torchvision calls them.

    Returns:
        The model. In evaluation it computes what it did before where there is no instance normalisation.

    Raises:
        ValueError: ``ibn`` has other entries, or the model has other stages than ``ibn``.
        KeyError: there is no stage of a name.
    """
    kinds = tuple(ibn or ())
    if not set(kinds) <= {"a", None}:
        raise ValueError(f'convert_dual_bn: ibn must hold "a" or None for each stage, got {kinds}')
    instance = _first_norms(model, kinds, stages) if "a" in kinds else set()
    converted: dict[nn.Module, nn.Module] = {}
    replaced = _replace(model, instance, converted)
    if not converted:
        warnings.warn(
            f"convert_dual_bn: {type(model).__name__} has no nn.BatchNorm2d to convert; both routes are the same",
            stacklevel=2,
        )
    return replaced


def _first_norms(model: nn.Module, kinds: Sequence[str | None], stages: Sequence[str] | None) -> set[nn.Module]:
    """The first batch normalisation of each block in stages of kind "a"."""
    modules = dict(model.named_modules())
    if stages is None:
        stages = [f"layer{i}" for i in range(1, 100) if f"layer{i}" in modules]
    for name in stages:
        if name not in modules:
            raise KeyError(f"convert_dual_bn: no stage {name!r} in {type(model).__name__}")
    if len(stages) != len(kinds):
        raise ValueError(
            f"convert_dual_bn: ibn has {len(kinds)} entries, but {type(model).__name__} has {len(stages)} stages "
            f"({', '.join(stages) or 'name them with stages='}); ibn=None leaves instance normalisation out"
        )
    found: set[nn.Module] = set()
    for name, kind in zip(stages, kinds, strict=True):
        for block in modules[name].children() if kind == "a" else ():
            norms = [m for m in block.modules() if type(m) is nn.BatchNorm2d]
            if norms and norms[0].num_features > 1:
                found.add(norms[0])
    return found


def _replace(module: nn.Module, instance: set[nn.Module], converted: dict[nn.Module, nn.Module]) -> nn.Module:
    """``module`` with the normalisations below it converted, each once even if it is in several places."""
    if type(module) is nn.BatchNorm2d:
        if module not in converted:
            kind = DuBIN if module in instance else DualBatchNorm2d
            converted[module] = kind.from_batch_norm(module)
        return converted[module]
    if not isinstance(module, (DualBatchNorm2d, DuBIN)):
        for name, child in list(module.named_children()):
            new = _replace(child, instance, converted)
            if new is not child:
                setattr(module, name, new)
    return module
