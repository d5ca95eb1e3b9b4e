"""The presets by name. A preset is one file of this package; it fills in what the command line left open."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sturdy.recipes.errors import check_name
from sturdy.recipes.settings import DATA_SETS, Settings

# Each module holds one ``PRESET``.
_MODULES = {
    "pushpull": "sturdy.recipes.pushpull",
    "afa": "sturdy.recipes.afa",
    "dfmx": "sturdy.recipes.dfmx",
    "apr": "sturdy.recipes.apr",
    "prime": "sturdy.recipes.prime",
}

NAMES = tuple(_MODULES)

_LIKE_CIFAR10 = ("cifar100", "tinyimagenet")


@dataclass(frozen=True)
class Preset:
    """A paper's way to train.

    Attributes:
        name: Its name on the command line.
        summary: One line for ``sturdy list``.
        source: The paper.
        defaults: Maps the name of a data set to values for fields of :class:`Settings`. ``"npz"`` and
            ``"imagefolder"`` are data sets too. Must name every field that has no default of its own. Where the paper
            has no recipe for ``"cifar100"`` or ``"tinyimagenet"`` it may raise a KeyError: that of CIFAR-10 holds.
        refine: Maps all values so far, and those of the user among them, to values that depend on them, such as another
            optimizer for another network. What the user chose stays.
    """

    name: str
    summary: str
    source: str
    defaults: Callable[[str], dict[str, Any]]
    refine: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda values, chosen: {}


def load_preset(name: str) -> Preset:
    """The preset called ``name``; :class:`UsageError` with the nearest match if there is none."""
    preset = importlib.import_module(_MODULES[check_name("preset", name, NAMES)]).PRESET
    assert isinstance(preset, Preset)
    return preset


def resolve(preset_name: str, chosen: dict[str, Any]) -> Settings:
    """Settings from a preset's defaults and the values the user chose (None means not chosen)."""
    preset = load_preset(preset_name)
    explicit = {name: value for name, value in chosen.items() if value is not None}
    data = check_name("data set", explicit.get("data", "digits"), DATA_SETS)
    explicit = {**explicit, "preset": preset.name, "data": data}
    values = {**_defaults(preset, data), **explicit}
    return Settings(**{**values, **preset.refine(values, explicit), **explicit})


def _defaults(preset: Preset, data: str) -> dict[str, Any]:
    try:
        return preset.defaults(data)
    except KeyError:
        if data not in _LIKE_CIFAR10:
            raise
    return preset.defaults("cifar10")
