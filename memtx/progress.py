"""The progress of long work, such as `document 30/120  4.5 documents/s  0:20 left`, on the standard error.

A terminal shows a bar. Anything else gets a few lines: the first one, one for each tenth of the work, one after ten minutes
without a line, and the last one. Functions report their progress by calling progress(done, total), with 0 for an unknown total.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

Report = Callable[[int, int], object]
T = TypeVar("T")

LINES = 10  # of the whole work
SILENCE = 600.0  # seconds without a line, at most
PATIENCE = 10.0  # seconds of work without any line
REDRAW = 0.1  # seconds between two drawings of the bar
UNITS = ((1, "s"), (60, "min"), (3600, "h"))


class Pace:
    """The speed of some work. unit: the name of one part, such as "step". done: the parts that were done before."""

    def __init__(self, unit: str, done: int = 0):
        self.unit, self._start, self._began = unit, done, time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds since the work began."""
        return time.monotonic() - self._began

    def text(self, done: int, total: int, note: str = "", rate: str = "") -> str:
        """Return the line of progress. note: text after the numbers. rate: replaces the number of parts per second."""
        parts = [f"{self.unit} {done}/{total}" if total else f"{self.unit} {done}", note]
        if (count := done - self._start) > 0:
            speed = count / max(self.seconds, 1e-9)
            parts.append(rate or _speed(speed, self.unit))
            parts.append(f"{clock((total - done) / speed)} left" if total else "")
        return "  ".join(filter(None, parts))


class Progress:
    """A display of the progress of some work, which is removed from a terminal at the end. Call it with (done, total).

    patience: seconds until the first line, if the console is no terminal.
    """

    def __init__(self, unit: str, *, done: int = 0, console: Console | None = None, patience: float = PATIENCE):
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._pace, self._patience = Pace(unit, done), patience
        self._last, self._time = -1, 0.0  # of the last line or drawing
        self._bar = None
        if self.console.is_terminal:
            text = TextColumn("{task.fields[text]}", markup=False)
            self._bar = Bar(BarColumn(), text, console=self.console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("", total=None, text=unit)

    def __call__(self, done: int, total: int, note: str = "", rate: str = "") -> None:
        """Show the progress, if it is time for it (see `Pace.text`)."""
        total = max(done, total) if total else 0
        seconds, end = self._pace.seconds, done == total
        since = seconds - self._time
        if self._bar:
            due = since >= REDRAW or end or self._last < 0
        else:
            step = (done - self._last) * LINES >= total > 0
            due = seconds >= self._patience and (self._last < 0 or step or end or since >= SILENCE)
        if not due:
            return
        self._last, self._time = done, seconds
        text = self._pace.text(done, total, note, rate)
        if self._bar:
            self._bar.start()
            self._bar.update(self._task, completed=done, total=total or None, text=text, refresh=True)
        else:
            self.console.print(text, markup=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def counted(items: Iterable[T], unit: str, total: int = 0, note: str = "") -> Iterator[T]:
    """Yield items, and show how many are done (see `Progress`). total: their number, or 0 if it is unknown."""
    with Progress(unit) as progress:
        for done, item in enumerate(items):
            yield item
            progress(done + 1, total, note)


def after(report: Report, before: int, total: int) -> Report:
    """Return the report of a part of some work, which has `total` parts and of which `before` are done."""
    return lambda done, _: report(before + done, total)


def clock(seconds: float) -> str:
    """Return a duration such as "0:20" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _speed(per_second: float, unit: str) -> str:
    """Return a speed such as "4.5 documents/s" or "2.0 runs/h", in the shortest time in which a part is done."""
    size, name = next(((size, name) for size, name in UNITS if per_second * size >= 1), UNITS[-1])
    number = per_second * size
    return f"{number:,.0f} {unit}s/{name}" if number >= 10 else f"{number:.1f} {unit}s/{name}"
