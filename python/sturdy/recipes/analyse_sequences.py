"""``sturdy analyse`` for networks of sequences: how tokens are clustered, and accuracy over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sturdy.recipes import clusters, compare, listops, sequence_plots
from sturdy.recipes.data import DataSet, load_data
from sturdy.recipes.distributed import World, pick_device
from sturdy.recipes.errors import RecipeError, one_line
from sturdy.recipes.evaluate import _load
from sturdy.recipes.files import write_json
from sturdy.recipes.loader import Loader
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.runlog import read_log
from sturdy.recipes.settings import Settings
from sturdy.recipes.tokens import TokenSplit

TOOLS = ("clusters", "accuracy")
_SHORT = {"[MIN": "min", "[MAX": "max", "[MED": "med", "[SM": "sm"}
_SHOWN = 6  # images in a picture
_SYMBOLS = 120  # of a sequence in a picture


def analyse(
    folder: RunFolder,
    settings: Settings,
    description: dict[str, Any],
    *,
    tools: Sequence[str],
    checkpoint: str,
    device: str,
    batch_size: int,
    console: Console,
) -> dict[str, Any]:
    """Write ``analyse/results.json`` and pictures of a run and its baseline; returns what the JSON holds.

    Args:
        folder: Of the run.
        settings: Of the run, with the number of test examples to look at.
        description: Of its data set.
        tools: Of ``TOOLS``.
        checkpoint: ``last`` or ``best``.
        device: Where to compute.
        batch_size: Examples at a time.
        console: For a table and the names of the files.
    """
    target = folder.analyse
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot make {target}: {error.strerror or one_line(error)}") from None
    runs = {compare.label_of(settings): folder}
    if folder.baseline.exists():
        runs[compare.label_of(folder.baseline.read()[0])] = folder.baseline
    report: dict[str, Any] = {"checkpoint": checkpoint, "data": settings.data, "settings": settings.to_json()}
    written = [target / "results.json"]
    if "accuracy" in tools:
        report["runs"] = compare.show(runs, console)
        written.append(target / "accuracy.png")
        sequence_plots.accuracy_over_time(report["runs"], written[-1])
    if "clusters" in tools and settings.model == "cast":
        world = World(pick_device(device))
        data = load_data(settings)
        if data.classes != description.get("classes"):
            raise RecipeError(f"{settings.data_dir or settings.data} is not the data set that {folder.path} is of")
        model = _load(folder, settings, data, checkpoint, world)
        loader = Loader(data.test, batch_size, world)
        report["memberships"] = clusters.memberships(model, loader)
        report["examples"] = len(data.test)
        written += _pictures(target, settings, data, model, loader)
        events = {label: [e for e in read_log(run.log) if e["event"] == "clusters"] for label, run in runs.items()}
        events = {label: found for label, found in events.items() if found}
        if events:
            written.append(target / "memberships.png")
            sequence_plots.memberships_over_epochs(events, written[-1])
    write_json(target / "results.json", report)
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)
    return report


def _pictures(target: Path, settings: Settings, data: DataSet, model: Any, loader: Loader) -> list[Path]:
    """Pictures of the clusters; none if the network attends fully to sequences of this length."""
    title = f"{settings.data}, {settings.clustering}, {settings.clusters} clusters"
    if data.vocabulary:
        test = data.test
        assert isinstance(test, TokenSplit)
        # The longest one that fits into the picture, else the shortest.
        fitting = torch.where(test.lengths <= _SYMBOLS, test.lengths, -test.lengths).argmax()
        symbols = test.batch(fitting[None]).to(loader.world.device)
        layers = [(number, found[0]) for number, found in _members(model, symbols)]
        if not layers:
            return []
        names = [_symbol(settings.data, int(token)) for token in symbols[0, :_SYMBOLS]]
        path = target / "clusters.png"
        sequence_plots.clusters_of_symbols(names, layers, title, path)
        return [path]
    height, width = data.image_shape
    sums: dict[int, Tensor] = {}
    first: list[tuple[int, Tensor]] = []
    shown, seen = torch.zeros(0), 0
    for batch in loader.in_order():
        found = [(number, members.unflatten(2, (height, width))) for number, members in _members(model, batch.images)]
        if not seen:
            shown, first = batch.images[:_SHOWN, 0].cpu(), [(number, members[:_SHOWN]) for number, members in found]
        seen += len(batch.labels)
        for number, members in found:
            sums[number] = sums.get(number, torch.zeros(1)) + members.sum(0)
    if not first:
        return []
    paths = [target / "clusters.png", target / "places.png"]
    sequence_plots.clusters_of_images(shown, first, title, paths[0])
    parts = [(number, total / seen) for number, total in sorted(sums.items())]
    sequence_plots.clusters_by_place(parts, f"{title}, {seen} test images", paths[1])
    return paths


def _members(model: Any, images: Tensor) -> list[tuple[int, Tensor]]:
    """Of each layer with clusters its number and ``(B, C, N)``, 1 where a token is in a cluster."""
    with torch.inference_mode(), model.watch_clusters() as found:
        model(images)
        length = clusters.valid_tokens(model, images).shape[1]
        maps = [(i, clusters.member_map(c.index, length).cpu()) for i, c in enumerate(found) if c is not None]
    begin = int(model.pooling == "cls")
    return [(number, members[..., begin:]) for number, members in maps]


def _symbol(data: str, token: int) -> str:
    if data == "listops":
        return _SHORT.get(symbol := listops.SYMBOLS[token - 1], symbol)
    character = chr(token - 1)
    return character if character.isprintable() and token <= 128 else "·"
