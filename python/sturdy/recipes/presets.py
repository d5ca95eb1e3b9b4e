"""The presets by name. A preset is one file of this package; it fills in what the command line left open."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sturdy.recipes.errors import UsageError, check_name
from sturdy.recipes.settings import DATA_SETS, GENERATED_IMAGES, TASKS, TOKEN_DATA_SETS, Settings

# Each module holds one ``PRESET``.
_MODULES = {
    "pushpull": "sturdy.recipes.pushpull",
    "afa": "sturdy.recipes.afa",
    "dfmx": "sturdy.recipes.dfmx",
    "apr": "sturdy.recipes.apr",
    "prime": "sturdy.recipes.prime",
    "cast": "sturdy.recipes.cast",
    "cast-mega": "sturdy.recipes.cast_mega",
}

NAMES = tuple(_MODULES)

# What a preset without values of its own takes instead.
_LIKE = {"cifar100": "cifar10", "tinyimagenet": "cifar10", **dict.fromkeys(GENERATED_IMAGES, "npz")}


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
            Likewise ``"pathfinder"`` and ``"pathx"``: that of ``"npz"``. ``"listops"`` and ``"text"`` are for presets
            whose networks read sequences.
        refine: Maps all values so far, and those of the user among them, to values that depend on them, such as another
            optimizer for another network. What the user chose stays.
        quick: Maps the name of a data set to the values that are other in a version for a CPU; None if there is none.
    """

    name: str
    summary: str
    source: str
    defaults: Callable[[str], dict[str, Any]]
    refine: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda values, chosen: {}
    quick: Callable[[str], dict[str, Any]] | None = None


def load_preset(name: str) -> Preset:
    """The preset called ``name``; :class:`UsageError` with the nearest match if there is none."""
    preset = importlib.import_module(_MODULES[check_name("preset", name, NAMES)]).PRESET
    assert isinstance(preset, Preset)
    return preset


def resolve(preset_name: str, chosen: dict[str, Any]) -> Settings:
    """Settings from a preset's defaults and the values the user chose (None means not chosen)."""
    preset = load_preset(preset_name)
    explicit = {name: value for name, value in chosen.items() if value is not None}
    known = (*DATA_SETS, *TOKEN_DATA_SETS)
    data = check_name("data set", data_of_task(explicit.pop("task", None), explicit.get("data")), known)
    explicit = {**explicit, "preset": preset.name, "data": data}
    values = {**_defaults(preset, data), **explicit}
    if explicit.get("quick"):
        if preset.quick is None:
            raise UsageError(f"--quick is for the presets that read sequences, not {preset.name}")
        values = {**values, **preset.quick(data), **explicit}
    return Settings(**{**values, **preset.refine(values, explicit), **explicit})


def _defaults(preset: Preset, data: str) -> dict[str, Any]:
    try:
        return preset.defaults(data)
    except KeyError:
        if data in TOKEN_DATA_SETS:
            raise UsageError(f"preset {preset.name} is for images, not for --data {data}; try preset cast") from None
        if data not in _LIKE:
            raise
    return preset.defaults(_LIKE[data])


def data_of_task(task: str | None, data: str | None) -> str:
    """The data set of a task, which ``data`` may name more closely: ``image`` is CIFAR-10 unless another is given."""
    if task is None:
        return data or "digits"
    check_name("task", task, TASKS)
    usual = "cifar10" if task == "image" else task
    if data is None:
        return usual
    if data != usual and (task != "image" or data in (*GENERATED_IMAGES, *TOKEN_DATA_SETS)):
        raise UsageError(f"--task {task} and --data {data} contradict each other; give one of them")
    return data
