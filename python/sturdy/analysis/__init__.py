"""What a trained network is worth, and what it looks at: metrics, and tools that look at frequencies.

The metrics need no framework. The tools take a network in evaluation mode and a loader, and give numbers in tensors,
with a ``plot`` method each; PyTorch is loaded with the first of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sturdy.analysis.corruption_metrics import (
    ALEXNET_ERRORS,
    mean_corruption_error,
    net_error_reduction,
    normalized_mean_corruption_error,
    relative_mean_corruption_error,
)

if TYPE_CHECKING:
    from sturdy.analysis.class_spectra import ClassSpectra, adcs
    from sturdy.analysis.dominant import DominantFrequencies, compute_dfm
    from sturdy.analysis.frequencies import FrequencyRemover, mirror_cells, radius_map, removal_order
    from sturdy.analysis.heatmap import FourierHeatmap, fourier_basis, fourier_heatmap, plot_heatmaps
    from sturdy.analysis.radius import RadiusCurve, plot_radius_curves, radius_accuracy
    from sturdy.analysis.ranking import FrequencyRanking, rank_frequencies
    from sturdy.analysis.shortcuts import ShortcutReport, shortcut_report
    from sturdy.analysis.subset_search import FrequencySubsets, hfss

__all__ = [
    "ALEXNET_ERRORS",
    "ClassSpectra",
    "DominantFrequencies",
    "FourierHeatmap",
    "FrequencyRanking",
    "FrequencyRemover",
    "FrequencySubsets",
    "RadiusCurve",
    "ShortcutReport",
    "adcs",
    "compute_dfm",
    "fourier_basis",
    "fourier_heatmap",
    "hfss",
    "mean_corruption_error",
    "mirror_cells",
    "net_error_reduction",
    "normalized_mean_corruption_error",
    "plot_heatmaps",
    "plot_radius_curves",
    "radius_accuracy",
    "radius_map",
    "rank_frequencies",
    "relative_mean_corruption_error",
    "removal_order",
    "shortcut_report",
]

_HOME = {
    "ClassSpectra": "class_spectra",
    "DominantFrequencies": "dominant",
    "FourierHeatmap": "heatmap",
    "FrequencyRanking": "ranking",
    "FrequencyRemover": "frequencies",
    "FrequencySubsets": "subset_search",
    "RadiusCurve": "radius",
    "ShortcutReport": "shortcuts",
    "adcs": "class_spectra",
    "compute_dfm": "dominant",
    "fourier_basis": "heatmap",
    "fourier_heatmap": "heatmap",
    "hfss": "subset_search",
    "mirror_cells": "frequencies",
    "plot_heatmaps": "heatmap",
    "plot_radius_curves": "radius",
    "radius_accuracy": "radius",
    "radius_map": "frequencies",
    "rank_frequencies": "ranking",
    "removal_order": "frequencies",
    "shortcut_report": "shortcuts",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"sturdy.analysis.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'sturdy.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
