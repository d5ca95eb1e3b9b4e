"""CAST with the depths, widths and optimisation of MEGA's published recipes for the Long Range Arena.

Numbers of steps are written as epochs; Path-X has 12.5 of them there. Heads and clusters, which MEGA does not have, are
those of the preset ``cast``, and so are all values for the digits; hidden layers are twice as wide as tokens.
"""

from __future__ import annotations

from typing import Any

from sturdy.recipes import cast
from sturdy.recipes.presets import Preset

# Layers, width, normalisation; epochs, warm-up among them, batch, rate, decay; parts of a batch.
_MEGA: dict[str, tuple[Any, ...]] = {
    "listops": (6, 80, "layer", 60, 2, 64, 1e-3, 0.01, 1),
    "text": (4, 128, "scale", 50, 20, 50, 4e-3, 0.01, 2),
    "image": (8, 160, "batch", 200, 10, 50, 1e-2, 0.02, 1),
    "pathfinder": (6, 128, "batch", 200, 40, 128, 1e-2, 0.01, 1),
    "pathx": (4, 64, "batch", 13, 3, 16, 1e-2, 0.01, 8),
}
_FIELDS = ("depth", "width", "norm", *cast.COURSE_FIELDS, "accumulate")


def _defaults(data: str) -> dict[str, Any]:
    if data == "digits":
        return cast.PRESET.defaults(data)
    of_mega = dict(zip(_FIELDS, _MEGA[cast.task_of(data)], strict=True))
    own = {"embed_width": 0, "ff_width": 2 * of_mega["width"], "pixels": "value", "dropout": cast.dropout(data)}
    return {**cast.COMMON, **cast.network(data), **of_mega, **own}


def _quick(data: str) -> dict[str, Any]:
    return {} if data == "digits" else {**cast.quick(data), "accumulate": 1}


PRESET = Preset(
    name="cast-mega",
    summary="CAST with the depths, widths and optimisation of MEGA's recipes",
    source="Ma et al., Mega: Moving average equipped gated attention, ICLR 2023, for all but the clusters",
    defaults=_defaults,
    refine=cast.refine,
    quick=_quick,
)
