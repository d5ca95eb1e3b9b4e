"""The pictures: files that are there, axes that say what they show, and the numbers that are in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis_support import Detector, batches, marked

pytest.importorskip("matplotlib", reason="needs the extra `recipes`")

from sturdy.analysis import (
    adcs,
    compute_dfm,
    fourier_heatmap,
    hfss,
    plot_radius_curves,
    radius_accuracy,
    rank_frequencies,
    shortcut_report,
)

SIZE = (8, 9)
BINS = [(1, 2), (3, 0), (2, 3), (0, 1), (1, 1), (2, 1)]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
HORIZONTAL, VERTICAL = "horizontal frequency (cycles per image)", "vertical frequency (cycles per image)"


@pytest.fixture(scope="module")
def case() -> tuple[Detector, list[tuple[torch.Tensor, torch.Tensor]]]:
    images, labels = marked(BINS, SIZE, 3)
    return Detector(BINS, [0.1] * 6), batches(images, labels)


def dfm(model: Any, loader: Any) -> tuple[Any, torch.Tensor, str]:
    found = compute_dfm(model, loader)
    return found, found.masks, "Dominant frequencies"


def ranking(model: Any, loader: Any) -> tuple[Any, torch.Tensor, str]:
    found = rank_frequencies(model, loader)
    return found, found.importance, "Importance"


def spectra(model: Any, loader: Any) -> tuple[Any, torch.Tensor, str]:
    found = adcs(loader)
    return found, found.adcs, "Accumulative difference"


def subsets(model: Any, loader: Any) -> tuple[Any, torch.Tensor, str]:
    found = hfss(model, loader, [2], 6, 2)
    return found, found.masks, "HFSS"


@pytest.mark.parametrize("tool", [dfm, ranking, spectra, subsets])
@pytest.mark.parametrize("names", [None, NAMES])
def test_maps_of_classes(case: Any, tmp_path: Path, tool: Callable[..., Any], names: Any) -> None:
    found, maps, title = tool(*case)
    path = tmp_path / "maps.png"
    figure = found.plot(path, names)
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 6 and title in figure.get_suptitle()
    for c, axis in enumerate(shown):
        assert (names or [f"class {i}" for i in range(6)])[c] in axis.get_title()
        image = axis.images[0]
        np.testing.assert_array_equal(np.asarray(image.get_array()), maps[c].double().numpy())
        assert image.get_extent() == [-4.5, 4.5, 3.5, -4.5]  # the middle of the cell of frequency 0 is at (0, 0)
        assert image.get_clim() == shown[0].images[0].get_clim()
    texts = [figure.get_supxlabel(), figure.get_supylabel()]
    assert texts == [HORIZONTAL, VERTICAL]


def test_scale_of_a_ranking(case: Any) -> None:
    found = rank_frequencies(*case)
    found.importance[:, 4, 4] = 100.0
    found.importance[2, 1, 1] = -7.0
    assert found.plot().axes[0].images[0].get_clim() == (-7, 7)
    assert found.plot(limit=0.5).axes[0].images[0].get_clim() == (-0.5, 0.5)


def test_heatmap(case: Any, tmp_path: Path) -> None:
    model, loader = case
    found = fourier_heatmap(model, loader, 2.0)
    figure = found.plot(tmp_path / "heatmap.png", vmax=50)
    axis, bar = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel(), bar.get_ylabel()) == (HORIZONTAL, VERTICAL, "error in %")
    np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), 100 * found.errors.numpy())
    assert axis.images[0].get_clim() == (0, 50) and "norm 2" in axis.get_title()
    assert (tmp_path / "heatmap.png").stat().st_size > 1000


def test_curves(case: Any, tmp_path: Path) -> None:
    curves = {f"{kind}-pass": radius_accuracy(*case, kind=kind) for kind in ("low", "high")}
    figure = plot_radius_curves(curves, tmp_path / "curves.png")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "radius (cycles per image)" and axis.get_ylabel() == "accuracy in %"
    drawn = {line.get_label(): line for line in axis.lines}
    for name, curve in curves.items():
        np.testing.assert_allclose(drawn[name].get_xdata(), curve.radii.numpy())
        np.testing.assert_allclose(drawn[name].get_ydata(), 100 * curve.accuracy.numpy())
    assert list(drawn["unfiltered"].get_ydata()) == [100 * curves["low-pass"].clean_accuracy] * 2
    alone = curves["low-pass"].plot(tmp_path / "one.png")
    assert [t.get_text() for t in alone.axes[0].get_legend().texts] == ["low-pass", "unfiltered"]
    assert (tmp_path / "curves.png").stat().st_size > 1000 and (tmp_path / "one.png").stat().st_size > 1000


def test_rates(case: Any, tmp_path: Path) -> None:
    model, loader = case
    masks = compute_dfm(model, loader).masks
    found = shortcut_report(model, loader, masks, fpr_threshold=0.0)
    figure = found.plot(tmp_path / "report.png", NAMES)
    rates, matrix, _ = figure.axes
    assert rates.get_ylabel() == "rate in %" and (matrix.get_xlabel(), matrix.get_ylabel()) == ("answer", "true class")
    heights = [[bar.get_height() for bar in group] for group in rates.containers]
    wanted = [found.tpr, found.filtered_tpr, found.filtered_fpr]
    np.testing.assert_allclose(heights, 100 * torch.stack(wanted).numpy())
    marks = [text.get_text() for text in rates.get_xticklabels()]
    assert marks == [f"{n} *" if s else n for n, s in zip(NAMES, found.shortcut.tolist(), strict=True)]
    share = found.confusion / found.confusion.sum(1, keepdim=True)
    np.testing.assert_allclose(np.asarray(matrix.images[0].get_array()), 100 * share.numpy())
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_without_a_file_nothing_is_written_and_pyplot_is_not_loaded() -> None:
    code = (
        "import sys, torch\n"
        "from sturdy.analysis import adcs\n"
        "assert 'matplotlib' not in sys.modules\n"
        "found = adcs([(torch.rand(6, 1, 4, 4), torch.arange(6) % 2)])\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figure = found.plot()\n"
        "assert len(figure.axes) == 3 and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
