"""What a trained network is worth, and what it looks at: metrics and frequency tools, without a framework.

The tools take a network in evaluation mode and a loader, and give numbers in tensors, with a ``plot`` method each.
"""

from sturdy.analysis.class_spectra import ClassSpectra, adcs
from sturdy.analysis.corruption_metrics import (
    ALEXNET_ERRORS,
    mean_corruption_error,
    net_error_reduction,
    normalized_mean_corruption_error,
    relative_mean_corruption_error,
)
from sturdy.analysis.dominant import DominantFrequencies, compute_dfm
from sturdy.analysis.frequencies import FrequencyRemover, mirror_cells, radius_map, removal_order
from sturdy.analysis.heatmap import FourierHeatmap, fourier_basis, fourier_heatmap
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
    "plot_radius_curves",
    "radius_accuracy",
    "radius_map",
    "rank_frequencies",
    "relative_mean_corruption_error",
    "removal_order",
    "shortcut_report",
]
