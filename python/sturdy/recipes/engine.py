"""The training loop.

Each step depends on the weights, the optimiser's state, the settings and its own number: batches and augmentations are
keyed by (seed, epoch, step), and the generators of torch are seeded anew for each step. A run resumed from any
checkpoint, in the middle of an epoch too, therefore logs the very losses an uninterrupted run logs.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.recipes import clusters
from sturdy.recipes.checkpoint import find_checkpoint, load_state, load_weights, recover, save_checkpoint
from sturdy.recipes.data import DataSet
from sturdy.recipes.distributed import World
from sturdy.recipes.errors import RecipeError, UsageError
from sturdy.recipes.keyed_random import KeyedRandom, mix_key
from sturdy.recipes.loader import Batch, Loader
from sturdy.recipes.models import build_model
from sturdy.recipes.objectives import Objective
from sturdy.recipes.optimisation import make_optimizer, make_scheduler
from sturdy.recipes.progress import RunProgress
from sturdy.recipes.runfolder import RunFolder
from sturdy.recipes.runlog import RunLog, read_log
from sturdy.recipes.settings import Settings
from sturdy.recipes.speed import StepMeter

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def normalise(images: Tensor, data: DataSet) -> Tensor:
    """Subtract the mean and divide by the deviation of the data set, per channel; ``(N, C, H, W)``.

    Symbols, ``(N, L)`` int64, stay as they are.
    """
    if not images.is_floating_point():
        return images
    mean = torch.tensor(data.mean, device=images.device)[:, None, None]
    std = torch.tensor(data.std, device=images.device)[:, None, None]
    return (images - mean) / std


def count_correct(model: nn.Module, images: Tensor, labels: Tensor, data: DataSet) -> tuple[Tensor, Tensor]:
    """Number of rightly classified images and sum of cross-entropies, as float64 scalars; no gradients."""
    with torch.inference_mode():
        logits = model(normalise(images, data)).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return (logits.argmax(1) == labels).sum().double(), loss.double()


class Trainer:
    """Trains one network in one run folder.

    Args:
        settings: What to do.
        data: The images.
        folder: Where to write; its ``config.json`` is there already.
        world: This process among all.
        console: Where to show progress, None for nowhere.
        label: What to call the run there.
        workers: Processes that decode an image folder.
        masks: Dominant frequency masks, ``(classes, H, W)``, for the augmentation ``dfmx``.
        checkpoint_minutes: A checkpoint is written after each epoch, and within one when this much time has passed.
    """

    def __init__(
        self,
        settings: Settings,
        data: DataSet,
        folder: RunFolder,
        world: World,
        *,
        console: Console | None = None,
        label: str = "train",
        workers: int = 0,
        masks: Tensor | None = None,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        if settings.batch_size % (world.size * settings.accumulate):
            parts = f" of {settings.accumulate} parts each" if settings.accumulate > 1 else ""
            raise UsageError(f"--batch-size {settings.batch_size} does not divide among {world.size} processes{parts}")
        self.settings = settings
        self.data = data
        self.folder = folder
        self.world = world
        self.console = console
        self.label = label
        self.checkpoint_seconds = 60.0 * checkpoint_minutes
        self.loader = Loader(data.train, settings.batch_size, world, workers)
        self.val_loader = Loader(data.val, settings.batch_size, world, workers)
        self.test_loader = Loader(data.test, settings.batch_size, world, workers)
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.model = build_model(settings, **data.sizes).to(world.device)
        self.parallel_model = world.wrap(self.model)
        self.objective = Objective(settings, masks, world.device)
        self.optimizer = make_optimizer(settings, self.model)
        self.scheduler = make_scheduler(settings, self.optimizer, self.total_steps)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=settings.precision == "fp16")
        self.meter = StepMeter(world.device) if settings.reads_sequences else None
        self.step = 0
        self.best_accuracy = -1.0
        # Sums over the current epoch in this process: cross-entropy, correct, images.
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self.log: RunLog | None = None

    @property
    def is_finished(self) -> bool:
        """True if the log says that the run came to its end."""
        events = read_log(self.folder.log)
        return bool(events) and events[-1]["event"] == "end"

    def run(self) -> None:
        """Train from the last checkpoint, or from the start if there is none, to the end."""
        if self.world.is_main:
            recover(self.folder.last)
            recover(self.folder.best)
        self.world.barrier()
        log_bytes = self._restore()
        if self.world.is_main:
            self.log = RunLog(self.folder.log, log_bytes)
            if self.step:
                self.log.write("resume", step=self.step)
        try:
            with RunProgress(self.console, self.label, self.total_steps, self.step) as progress:
                while self.step < self.total_steps:
                    self._train_epoch(self.step // self.steps_per_epoch, progress)
            loss, accuracy = self._measure(self.test_loader)
            self._write_log("end", step=self.step, test_loss=loss, test_accuracy=accuracy)
        finally:
            if self.log is not None:
                self.log.close()

    def _train_epoch(self, epoch: int, progress: RunProgress) -> None:
        saved = started = time.monotonic()
        status = None
        for batch in self.loader.training(self.settings.seed, epoch, self.step % self.steps_per_epoch):
            lr = float(self.optimizer.param_groups[0]["lr"])
            loss = self._timed_step(batch, epoch)
            if self.step % self.settings.log_every == 0 or self.step % self.steps_per_epoch == 0:
                # One exchange tells all processes the mean loss and whether the first one wants a checkpoint.
                due = self.world.is_main and time.monotonic() - saved > self.checkpoint_seconds
                news = self.world.sum(torch.stack([loss.double(), loss.new_tensor(due).double()]))
                mean = float(news[0]) / self.world.size
                self._check_finite(mean, epoch, lr)
                self._write_log("step", epoch=epoch, step=self.step, loss=mean, lr=lr)
                status = f"epoch {epoch + 1}/{self.settings.epochs}, loss {mean:.4f}"
                if float(news[1]) and self.step % self.steps_per_epoch:
                    self._save(self.folder.last)
                    saved = time.monotonic()
            progress.advance(len(batch.labels) * self.world.size, status)
        self._end_epoch(epoch, time.monotonic() - started)

    def _timed_step(self, batch: Batch, epoch: int) -> Tensor:
        if self.meter is None:
            return self._train_step(batch, epoch)
        images = batch.images
        tokens = images[:, 0].numel() if images.is_floating_point() else int(images.count_nonzero())
        return self.meter.run(lambda: self._train_step(batch, epoch), tokens)

    def _train_step(self, batch: Batch, epoch: int) -> Tensor:
        """One update; returns the mean loss of this process's images."""
        settings = self.settings
        # Dropout and the like: the same numbers after a resume, others in each process.
        torch.manual_seed(mix_key(settings.seed, "step", self.step, self.world.rank))
        self.parallel_model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = torch.zeros(2, device=self.world.device).unbind()
        for number, part in enumerate(batch.chunk(settings.accumulate)):
            part_loss, logits = self._loss(part, epoch, number)
            share = part_loss / settings.accumulate
            self.scaler.scale(share).backward()
            loss = loss + share.detach()
            correct = correct + (logits.detach().argmax(1) == part.labels).sum()
        if settings.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if settings.schedule != "plateau":
            with warnings.catch_warnings():
                # A scaler that skips the first update makes torch think that the two were called in the wrong order.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self.scheduler.step()
        self.step += 1
        count = len(batch.labels)
        self.sums += torch.stack([loss.double() * count, correct.double(), loss.new_tensor(count).double()])
        return loss

    def _loss(self, batch: Batch, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """Mean loss of some images, which are this part of the step's, and their logits."""
        precision = self.settings.precision
        random = KeyedRandom(batch.indices, mix_key(self.settings.seed, "augment", epoch))
        mixes = self.objective.mixes(
            mix_key(self.settings.seed, "mix", self.step, self.world.rank, number), batch.images
        )
        views = self.objective.views(batch.images, batch.labels, random, mixes)
        views = [normalise(view, self.data) for view in views]
        with torch.autocast(self.world.device.type, _AUTOCAST.get(precision), precision in _AUTOCAST):
            return self.objective(self.model, self.parallel_model, views, batch.labels, mixes)

    def _end_epoch(self, epoch: int, seconds: float) -> None:
        loss, correct, count = self.world.sum(self.sums.clone()).tolist()
        self._check_finite(loss, epoch, float(self.optimizer.param_groups[0]["lr"]))
        record = {"train_loss": loss / count, "train_accuracy": correct / count}
        if len(self.data.val):
            record["val_loss"], record["val_accuracy"] = self._measure(self.val_loader)
        if self.settings.schedule == "plateau":
            self.scheduler.step(record.get("val_loss", record["train_loss"]))
        self._write_log("epoch", epoch=epoch, step=self.step, **record, seconds=round(seconds, 3))
        self._log_sequences(epoch)
        self.sums.zero_()
        accuracy = record.get("val_accuracy", -1.0)
        if accuracy > self.best_accuracy:
            # Before `last`: a run killed between the two repeats this epoch and writes the same again.
            self.best_accuracy = accuracy
            self._save(self.folder.best)
        self._save(self.folder.last)

    def _log_sequences(self, epoch: int) -> None:
        """Time and memory of a step, and how the tokens of some examples were clustered."""
        if self.meter is None or not self.world.is_main:
            return
        if speed := self.meter.report():
            self._write_log("speed", epoch=epoch, step=self.step, **speed)
        held_out = self.data.val if len(self.data.val) else self.data.test
        some = held_out.take(torch.arange(min(len(held_out), clusters.EXAMPLES)))
        layers = clusters.memberships(self.model, Loader(some, self.settings.batch_size, World(self.world.device)))
        if layers:
            self._write_log("clusters", epoch=epoch, step=self.step, layers=layers)

    def _measure(self, loader: Loader) -> tuple[float, float]:
        """Mean loss and accuracy over a split, in float32, weights fixed."""
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for batch in loader.in_order():
            correct, loss = count_correct(self.model, batch.images, batch.labels, self.data)
            sums += torch.stack([loss, correct, loss.new_tensor(len(batch.labels))])
        loss_sum, correct_sum, count = self.world.sum(sums).tolist()
        return loss_sum / count, correct_sum / count

    def _check_finite(self, loss: float, epoch: int, lr: float) -> None:
        if not math.isfinite(loss):
            kept = f"; the last good checkpoint is {self.folder.last}" if find_checkpoint(self.folder.last) else ""
            raise RecipeError(
                f"the loss is {loss} at step {self.step} (epoch {epoch + 1}, learning rate {lr:.3g}); "
                f"try a lower --lr or --precision fp32{kept}"
            )

    def _write_log(self, event: str, **values: Any) -> None:
        if self.log is not None:
            self.log.write(event, **values)

    def _save(self, folder: Any) -> None:
        sums = self.world.gather(self.sums)
        if self.log is None:
            return
        state = {
            "step": self.step,
            "best_accuracy": self.best_accuracy,
            "sums": sums.cpu(),
            "log_bytes": self.log.sync(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        note = {"model": self.settings.model, "stem": self.settings.stem, "step": self.step}
        save_checkpoint(folder, self.model.state_dict(), state, note)

    def _restore(self) -> int:
        """Take up the last checkpoint, if there is one; returns how much of the log belongs to it."""
        checkpoint = find_checkpoint(self.folder.last)
        if checkpoint is None:
            return 0
        note = load_weights(checkpoint, self.model)
        state = load_state(checkpoint)
        try:
            if note.get("step") != state["step"]:
                raise RecipeError(f"{checkpoint}: weights and state are of different steps; copied from two places?")
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = int(state["step"])
            self.best_accuracy = float(state["best_accuracy"])
            sums, log_bytes = state["sums"], int(state["log_bytes"])
        except (KeyError, ValueError) as error:
            raise RecipeError(f"{checkpoint} does not fit this run ({error})") from None
        if len(sums) == self.world.size:
            self.sums.copy_(sums[self.world.rank])
        elif self.world.is_main:  # another number of processes: only the total has a meaning
            self.sums.copy_(sums.sum(0))
        return log_bytes
