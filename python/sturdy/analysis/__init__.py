"""What a trained network is worth: metrics, without a framework."""

from sturdy.analysis.corruption_metrics import (
    ALEXNET_ERRORS,
    mean_corruption_error,
    net_error_reduction,
    normalized_mean_corruption_error,
    relative_mean_corruption_error,
)

__all__ = [
    "ALEXNET_ERRORS",
    "mean_corruption_error",
    "net_error_reduction",
    "normalized_mean_corruption_error",
    "relative_mean_corruption_error",
]
