"""What a long run shows: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0  # between two lines when the output is not a terminal


class RunProgress:
    """Progress of one task that handles images in steps.

    Args:
        console: Where to show it; None shows nothing (all processes but the first).
        label: What is running, for example ``pushpull``.
        total: Steps in all.
        done: Steps made before, by the run that is resumed.
        unit: What a step is called.
    """

    def __init__(self, console: Console | None, label: str, total: int, done: int = 0, unit: str = "step") -> None:
        self._console = console
        self._label = label
        self._total = total
        self._done = done
        self._unit = unit
        self._status = ""
        self._start = self._shown = time.monotonic()
        self._first = done
        self._images = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> RunProgress:
        self._start = self._shown = time.monotonic()
        if self._console is not None and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._label, total=self._total, completed=self._done, rate="", status=self._status
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._line()

    @property
    def images_per_second(self) -> float:
        """Mean rate since the start."""
        return self._images / max(time.monotonic() - self._start, 1e-9)

    def advance(self, images: int, status: str | None = None) -> None:
        """One more step is done, of ``images`` images; ``status`` replaces the text at the end of the line."""
        self._done += 1
        self._images += images
        self._status = self._status if status is None else status
        if self._bar is not None:
            rate = f"{self.images_per_second:,.0f} images/s"
            self._bar.update(self._task, completed=self._done, rate=rate, status=self._status)
        elif time.monotonic() - self._shown > QUIET_SECONDS and self._done < self._total:
            self._line()

    def _line(self) -> None:
        self._shown = time.monotonic()
        if self._console is None or self._done == self._first:
            return
        left = (self._total - self._done) * (self._shown - self._start) / (self._done - self._first)
        self._console.print(
            f"{self._label}: {self._unit} {self._done}/{self._total}, {self.images_per_second:,.0f} images/s, "
            f"{_clock(left)} left{', ' if self._status else ''}{self._status}",
            highlight=False,
            soft_wrap=True,
        )


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
