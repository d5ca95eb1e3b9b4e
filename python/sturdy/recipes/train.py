"""``sturdy train``: prepare the run folder, train the network and, if asked for or needed, its baseline."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from torch import Tensor

from sturdy.recipes import compare, distributed
from sturdy.recipes.checkpoint import find_checkpoint, load_weights
from sturdy.recipes.data import DataSet, load_data
from sturdy.recipes.distributed import World
from sturdy.recipes.engine import Trainer
from sturdy.recipes.errors import Interrupted, RecipeError, UsageError
from sturdy.recipes.models import build_model
from sturdy.recipes.presets import data_of_task, resolve
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.runlog import read_log
from sturdy.recipes.settings import GENERATED_DATA_SETS, Settings


@dataclass(frozen=True)
class TrainOptions:
    """How to run, as opposed to what to compute.

    Attributes:
        out: The run folder.
        baseline: Train the same network with the plain stem, and plainly, too, into ``out/baseline``; for CAST a
            Transformer of the same sizes.
        resume: Continue the run in ``out``.
        download: Let torchvision fetch the data set.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Processes that decode an image folder, or draw a data set.
        checkpoint_minutes: Longest time between two checkpoints.
    """

    out: Path
    baseline: bool = False
    resume: bool = False
    download: bool = False
    device: str = "auto"
    workers: int = 0
    checkpoint_minutes: float = 10.0


def train(preset: str, chosen: dict[str, Any], options: TrainOptions, console: Console) -> None:
    """Train a preset.

    Args:
        preset: Its name.
        chosen: Fields of :class:`Settings` the user set; None means not set.
        options: How to run.
        console: For progress.

    Raises:
        RecipeError: with one line that says what is wrong; what was written before stays and can be resumed.
    """
    folder = RunFolder(options.out)
    settings = _settings_to_run(preset, chosen, options, folder)
    if options.baseline and settings.is_baseline:
        what = "--model is transformer" if settings.reads_sequences else "--stem is plain"
        raise UsageError(f"--baseline compares with the plain network and plain training, but {what} already")
    with distributed.session(options.device) as world, _interruptible(_resume_command(preset, options)):
        shown = console if world.is_main else None
        data = _load(settings, options, world, shown)
        for name, floor in data.floors.items() if shown is not None else ():
            console.print(f"guessing by {name.replace('_', ' ')}: {100 * floor:.2f} %", highlight=False, soft_wrap=True)
        runs = [(folder, settings)]
        if settings.finds_masks:  # with its baseline, which must come first
            runs.insert(0, (folder.baseline, settings.baseline()))
        elif options.baseline:
            runs.append((folder.baseline, settings.baseline()))
        if settings.finds_masks and not len(data.val):
            raise UsageError("--augment dfmx finds its masks on validation images; give --val-fraction or --dfm-masks")
        if world.is_main:
            for run_folder, run_settings in runs:
                _prepare(run_folder, run_settings, data)
        world.barrier()
        for run_folder, run_settings in runs:
            label = compare.label_of(run_settings)
            trainer = Trainer(
                run_settings,
                data,
                run_folder,
                world,
                console=shown,
                label=label,
                workers=options.workers,
                masks=_masks(run_folder, run_settings, data, world, shown) if "dfmx" in run_settings.augment else None,
                checkpoint_minutes=options.checkpoint_minutes,
            )
            finished = trainer.is_finished
            world.barrier()
            if not finished:
                trainer.run()
            if shown is not None:
                _report(shown, run_folder, label, finished)
        if shown is not None and settings.reads_sequences:
            compare.show({compare.label_of(run_settings): run_folder for run_folder, run_settings in runs}, shown)


def _load(settings: Settings, options: TrainOptions, world: World, console: Console | None) -> DataSet:
    """The data set; what has to be fetched or drawn is so by the first process while the others wait."""
    if not options.download and settings.data not in GENERATED_DATA_SETS:
        return load_data(settings)
    if world.is_main:
        data = load_data(
            settings,
            download=options.download,
            processes=max(1, options.workers),
            display=partial(_drawing, console, settings.data),
        )
        world.barrier()
        return data
    world.barrier()
    return load_data(settings)


@contextmanager
def _drawing(console: Console | None, label: str, blocks: int) -> Iterator[Callable[[int], None]]:
    """Progress of a data set that is drawn in blocks."""
    with RunProgress(console, f"draw {label}", blocks, unit="block") as progress:
        yield progress.advance


def _masks(folder: RunFolder, settings: Settings, data: DataSet, world: World, console: Console | None) -> Tensor:
    """The masks of a run, which it keeps in its folder: from the user's file, or found with its baseline."""
    from sturdy.recipes import dominant
    from sturdy.transforms import save_masks

    if world.is_main and not folder.masks.exists():
        if settings.dfm_masks is not None:
            masks = dominant.read_masks(Path(settings.dfm_masks), settings.dfm_set, data)
        else:
            plain = settings.baseline()
            model = build_model(plain, **data.sizes)
            checkpoint = find_checkpoint(folder.baseline.last)
            if checkpoint is None:
                raise RecipeError(f"{folder.baseline.path} has no checkpoint to find masks with")
            load_weights(checkpoint, model)
            steps = len(data.classes) * dominant.search_steps(*data.image_shape)
            with RunProgress(console, "masks", steps) as progress:
                masks = dominant.find_masks(model.to(world.device).eval(), data, world, progress)
        aside = folder.masks.with_name("dfms.new.npz")
        save_masks(aside, {settings.dfm_set or settings.model: masks}, dominant.removal_order(*data.image_shape))
        os.replace(aside, folder.masks)
    world.barrier()
    return dominant.read_masks(folder.masks, None, data)


def _settings_to_run(preset: str, chosen: dict[str, Any], options: TrainOptions, folder: RunFolder) -> Settings:
    """New settings, or those of the run to resume; an option that contradicts them is an error."""
    if not options.resume:
        # Processes beside the first may look after it has begun to write.
        if int(os.environ.get("RANK", "0")) == 0 and folder.exists():
            raise UsageError(f"{folder.path} already holds a run; add --resume to continue it, or choose another --out")
        return resolve(preset, chosen)
    if not folder.exists():
        raise RecipeError(f"nothing to resume: {folder.path} holds no run")
    before, _ = folder.read()
    given = {name: value for name, value in chosen.items() if value is not None}
    if "task" in given:
        task = given.pop("task")
        given["data"] = data_of_task(task, given.get("data") or (before.data if task == "image" else None))
    wanted = replace(before, **given)
    if resolve(preset, {}).preset != before.preset:
        raise UsageError(f"{folder.path} was trained with preset {before.preset}, not {preset}")
    for name in wanted.differences(before):
        raise UsageError(
            f"{folder.path} was trained with {name}={_show(getattr(before, name))}, "
            f"not {_show(getattr(wanted, name))}; leave the option out to resume"
        )
    return wanted


def _show(value: Any) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def _prepare(folder: RunFolder, settings: Settings, data: DataSet) -> None:
    """Write ``config.json``, or check that the data set is still the one it describes."""
    description = data.describe()
    if not folder.exists():
        folder.create(settings, description)
        return
    _, before = folder.read()
    for name, value in description.items():
        if before.get(name) != value:
            raise RecipeError(f"{folder.path}: the data set has changed ({name} was {before.get(name)}, is {value})")


def _report(console: Console, folder: RunFolder, label: str, finished: bool) -> None:
    accuracy = read_log(folder.log)[-1]["test_accuracy"]
    already = "was complete already; " if finished else ""
    console.print(
        f"{label}: {already}test accuracy {100 * accuracy:.2f} %, checkpoint {folder.last}",
        highlight=False,
        soft_wrap=True,
    )


def _resume_command(preset: str, options: TrainOptions) -> str:
    words = ["sturdy", "train", preset, "--out", str(options.out), *(["--baseline"] if options.baseline else [])]
    return shlex.join([*words, "--resume"])


@contextmanager
def _interruptible(resume_command: str) -> Iterator[None]:
    """Turn Ctrl-C and a request to end (SIGTERM) into one line that says how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    # Only the main thread may set a handler; elsewhere the caller looks after signals.
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        yield
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        raise Interrupted(f"interrupted; continue with: {resume_command}", 128 + number) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
