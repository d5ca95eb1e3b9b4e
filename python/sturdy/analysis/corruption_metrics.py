"""One number for the errors of a classifier under many corruptions.

Two of them go by the name mCE and must not be compared. That of the CIFAR-C papers and of PushPull-Net is a plain mean
of errors (:func:`mean_corruption_error`); that of the ImageNet-C leaderboards divides the errors of each corruption by
AlexNet's (:func:`normalized_mean_corruption_error`).

Everywhere an error is a fraction in [0, 1], of top-1 answers that are wrong; a corruption has one for each severity, or
their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

Errors = Mapping[str, float | Sequence[float]]

ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Of AlexNet on ImageNet-C, mean over severities, as published by Hendrycks and Dietterich, ICLR 2019."""


def mean_corruption_error(errors: Errors) -> float:
    """The plain mean over corruptions of the mean over severities: mCE of PushPull-Net and of the CIFAR-C papers.

    Args:
        errors: By corruption.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: no errors, or one outside [0, 1].
    """
    return fmean(_by_corruption(errors).values())


def normalized_mean_corruption_error(errors: Errors, reference: Errors = ALEXNET_ERRORS) -> float:
    """The mean over corruptions of the error divided by that of a reference network: mCE of ImageNet-C.

    Args:
        errors: By corruption.
        reference: Errors of the reference network for the same corruptions.

    Returns:
        1 for the reference itself; leaderboards give it times 100.

    Raises:
        ValueError: the corruptions are not the same, an error is outside [0, 1], or one of the reference is 0.

    Source: Hendrycks, Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*,
    ICLR 2019.
    """
    return _mean_ratio(errors, reference, 0.0, 0.0)


def relative_mean_corruption_error(
    errors: Errors, clean_error: float, reference: Errors, reference_clean_error: float
) -> float:
    """As :func:`normalized_mean_corruption_error`, of the errors less the one on clean images, in both networks.

    Args:
        errors: By corruption.
        clean_error: On clean images.
        reference: Errors of the reference network for the same corruptions.
        reference_clean_error: On clean images, of the same network.

    Returns:
        1 for the reference itself.

    Raises:
        ValueError: as there, or the reference does not suffer from a corruption.

    Source: Hendrycks, Dietterich, ICLR 2019.
    """
    _check("clean_error", clean_error)
    _check("reference_clean_error", reference_clean_error)
    return _mean_ratio(errors, reference, clean_error, reference_clean_error)


def net_error_reduction(
    clean_error: float, corruption_error: float, baseline_clean_error: float, baseline_corruption_error: float
) -> float:
    """How much of its baseline's clean error a network gains on clean and corrupted images together; R_net.

    ``100 * ((E0 - E) + (mCE0 - mCE)) / (2 * E0)``, positive where more is gained on corrupted images than is lost on
    clean ones. **Reconstructed**: the formula is inferred from published tables, all rows of which it gives to within
    0.08 points, and not read from a paper.

    Args:
        clean_error: ``E``, on clean images.
        corruption_error: ``mCE``, the plain mean of :func:`mean_corruption_error`.
        baseline_clean_error: ``E0``, of the network without the measure that is judged.
        baseline_corruption_error: ``mCE0``, of that network.

    Returns:
        Per cent; 0 for the baseline itself.

    Raises:
        ValueError: an error outside [0, 1], or a baseline without error.

    Source: tables of Bennabhaktula, Alegre, Strisciuglio, Azzopardi, *PushPull-Net: Inhibition-driven ResNet robust to
    image corruptions*, ICPR 2024.
    """
    given = {
        "clean_error": clean_error,
        "corruption_error": corruption_error,
        "baseline_clean_error": baseline_clean_error,
        "baseline_corruption_error": baseline_corruption_error,
    }
    for name, value in given.items():
        _check(name, value)
    if baseline_clean_error == 0:
        raise ValueError("baseline_clean_error must be above 0, which the reduction is relative to")
    gained = (baseline_clean_error - clean_error) + (baseline_corruption_error - corruption_error)
    return 100 * gained / (2 * baseline_clean_error)


def _mean_ratio(errors: Errors, reference: Errors, clean: float, reference_clean: float) -> float:
    ours, theirs = _by_corruption(errors), _by_corruption(reference)
    if ours.keys() != theirs.keys():
        differing = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise ValueError(f"errors and reference must be of the same corruptions; only one has {differing}")
    for name, error in theirs.items():
        if error <= reference_clean:
            raise ValueError(f"the reference's error must be above {reference_clean} for {name!r}, got {error}")
    return fmean((ours[name] - clean) / (theirs[name] - reference_clean) for name in ours)


def _by_corruption(errors: Errors) -> dict[str, float]:
    """The mean over severities of each corruption."""
    if not errors:
        raise ValueError("errors must be of one corruption or more, got none")
    means: dict[str, float] = {}
    for name, given in errors.items():
        values = list(given) if isinstance(given, Sequence) else [given]
        if not values:
            raise ValueError(f"the error of {name!r} must be of one severity or more, got none")
        for value in values:
            _check(f"the error of {name!r}", value)
        means[name] = fmean(values)
    return means


def _check(name: str, value: float) -> None:
    if not 0 <= value <= 1:  # a NaN fails too
        raise ValueError(f"{name} must be a fraction between 0 and 1, got {value}")
