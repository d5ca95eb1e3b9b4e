"""Both mCE, the relative one, and R_net: against published tables and against hand calculation."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sturdy
from sturdy.analysis import (
    ALEXNET_ERRORS,
    mean_corruption_error,
    net_error_reduction,
    normalized_mean_corruption_error,
    relative_mean_corruption_error,
)

# ResNet-50 on ImageNet and ImageNet-C, from the README of PushPull-Net: clean error, mCE, net reduction in per cent.
PUBLISHED = {
    "baseline": (0.269, 0.667, 0.0),
    "PP3": (0.282, 0.645, 1.67),
    "PP5": (0.276, 0.645, 2.79),
    "AutoAugment": (0.269, 0.630, 6.86),
    "AutoAugment + PP3": (0.283, 0.604, 9.05),
    "AugMix": (0.269, 0.612, 10.14),
    "AugMix + PP3": (0.287, 0.590, 10.97),
    "PRIME": (0.298, 0.522, 21.57),
    "PRIME + PP3": (0.306, 0.4995, 24.31),  # four digits of the mCE are in the abstract
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_net_reduction_gives_the_published_table(name):
    clean, corrupted, published = PUBLISHED[name]
    found = net_error_reduction(clean, corrupted, *PUBLISHED["baseline"][:2])
    assert found == pytest.approx(published, abs=0.1)  # what three digits of the errors allow


def test_net_reduction_by_hand():
    # Half of the clean error is gained, and as much again in corrupted images.
    assert net_error_reduction(0.1, 0.5, 0.2, 0.6) == pytest.approx(50.0)
    assert net_error_reduction(0.3, 0.5, 0.2, 0.6) == pytest.approx(0.0)  # lost here, gained there
    assert "econstructed" in (net_error_reduction.__doc__ or "")
    with pytest.raises(ValueError, match="baseline_clean_error"):
        net_error_reduction(0.1, 0.5, 0.0, 0.6)


def test_plain_mean():
    assert mean_corruption_error({"a": [0.0, 0.5], "b": [1.0, 1.0]}) == pytest.approx((0.25 + 1.0) / 2)
    # Means of means: severities of one corruption do not outweigh another's.
    assert mean_corruption_error({"a": [0.0, 0.3, 0.6], "b": 0.5}) == pytest.approx(0.4)
    assert mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(0.788993, abs=5e-7)


def test_alexnet_itself_has_a_normalized_error_of_one():
    assert len(ALEXNET_ERRORS) == 15
    assert normalized_mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(1.0, abs=1e-15)
    by_severity = {name: [0.8 * e, 0.9 * e, e, 1.02 * e, 1.03 * e] for name, e in ALEXNET_ERRORS.items()}
    assert normalized_mean_corruption_error(by_severity) == pytest.approx(0.95)
    halved = {name: error / 2 for name, error in ALEXNET_ERRORS.items()}
    assert normalized_mean_corruption_error(halved) == pytest.approx(0.5)


def test_normalization_is_by_corruption():
    errors, reference = {"a": 0.2, "b": [0.5, 0.7]}, {"a": [0.4, 0.4], "b": 0.8}
    assert normalized_mean_corruption_error(errors, reference) == pytest.approx((0.5 + 0.75) / 2)
    assert normalized_mean_corruption_error(errors, reference) != pytest.approx(0.4 / 0.6)


def test_relative_error_by_hand():
    errors, reference = {"a": 0.3, "b": [0.5, 0.7]}, {"a": [0.5, 0.5], "b": 0.9}
    found = relative_mean_corruption_error(errors, 0.2, reference, 0.4)
    assert found == pytest.approx((0.1 / 0.1 + 0.4 / 0.5) / 2)
    assert relative_mean_corruption_error(reference, 0.4, reference, 0.4) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"above 0\.5 for 'a'"):
        relative_mean_corruption_error(errors, 0.2, reference, 0.5)


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ({}, "none"),
        ({"fog": []}, "'fog'.*none"),
        ({"fog": [0.5, 50.0]}, r"'fog'.*between 0 and 1, got 50\.0"),
        ({"fog": -0.1}, "-0.1"),
        ({"fog": float("nan")}, "nan"),
    ],
)
def test_bad_errors(errors, text):
    for function in (mean_corruption_error, normalized_mean_corruption_error):
        with pytest.raises(ValueError, match=text):
            function(errors)


def test_corruptions_must_be_the_same():
    with pytest.raises(ValueError, match=r"only one has .*brightness"):
        normalized_mean_corruption_error({"fog": 0.5})
    with pytest.raises(ValueError, match="only one has saturate"):
        normalized_mean_corruption_error({**ALEXNET_ERRORS, "saturate": 0.5})
    with pytest.raises(ValueError, match="above 0"):
        normalized_mean_corruption_error({"a": 0.5}, {"a": 0.0})
    with pytest.raises(ValueError, match="clean_error"):
        relative_mean_corruption_error({"a": 0.5}, 23.0, {"a": 0.7}, 0.4)


def test_needs_no_framework():
    program = "import sys, sturdy; sturdy.analysis.mean_corruption_error; print(*({'torch', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert "analysis" in dir(sturdy)
