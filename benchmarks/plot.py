"""Draw the forward rows of a result of ``run.py``: ``python benchmarks/plot.py results/MACHINE.json picture.png``.

One panel per shape of PushPull convolution; bars are times. The dashed line is the larger of two times: that of the
least traffic, and that of the direct convolution's arithmetic at the rate of torch's matrix product.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"sturdy": "#c8553d", "conv2d": "#9aa5b1", "eager": "#0b6e99"}
LABELS = {"sturdy": "sturdy", "conv2d": "one plain conv2d (does less)", "eager": "eager, two conv2d"}


def main() -> None:
    """Read the file named first, write the picture named second."""
    source, target = map(Path, sys.argv[1:3])
    result = json.loads(source.read_text())
    rows = [row for row in result["rows"] if row["op"] == "push_pull_conv2d" and row["work"] == "forward"]
    rows = [row for row in rows if row["heap"] != "default" and row["dtype"] == "float32"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows if row["ms"]["sturdy"] > 0.1))
    figure, panels = plt.subplots(1, len(shapes), figsize=(4.2 * len(shapes), 3.8), layout="constrained")
    for panel, shape in zip(panels, shapes, strict=True):
        draw(panel, shape, [row for row in rows if row["shape"] == shape])
    panels[0].set_ylabel("milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(target, dpi=110)


def draw(panel: plt.Axes, shape: str, rows: list[dict]) -> None:
    """The rows of one shape, a group of bars per variant."""
    names = [name for name in COLOURS if name in rows[0]["ms"]]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(rows))]
        panel.bar(places, [row["ms"][name] for row in rows], width, color=COLOURS[name], label=LABELS[name])
    for place, row in enumerate(rows):
        floor = max(row["floor_ms"].values())
        label = "traffic, or direct convolution at the GEMM rate" if place == 0 else None
        panel.hlines(floor, place - 0.45, place + 0.45, colors="black", linestyles="dashed", label=label)
    panel.set_xticks(range(len(rows)), [row["variant"] for row in rows])
    panel.set_title(shape, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
