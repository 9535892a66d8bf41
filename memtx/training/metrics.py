"""Metrics of a run: they go to the sinks (memtx.training.sinks) and to the console."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from memtx.config import Config
from memtx.training.processes import is_first
from memtx.training.sinks import Numbers, Sink, open_sinks


class Metrics:
    """A writer of the `train/...` and `eval/...` values of steps. Only process 0 writes.

    resumed: the step from which the run resumes, None for a new run. Lines of later steps are deleted, so a resumed run ends
    with the same lines as an uninterrupted one.
    """

    def __init__(self, workdir: str | Path, config: Config, *, resumed: int | None = None, console: Console | None = None):
        self._written = -1 if resumed is None else resumed  # the last step whose lines the sinks have
        self._sinks: list[Sink] = []
        if not is_first():
            return
        Path(workdir).mkdir(parents=True, exist_ok=True)
        try:
            for sink in open_sinks(Path(workdir), config, self._written):
                self._sinks.append(sink)
        except BaseException:
            self.close()
            raise
        self._sinks.append(Display(config.train.steps, resumed or 0, console))

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write the values of a step. Numbers that are not finite become null, since JSON has no NaN.

        Steps up to the resumed one are already in the files and are not written again.
        """
        if not self._sinks or step <= self._written:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        for sink in self._sinks:
            sink.write(step, numbers)

    def close(self) -> None:
        """Close all sinks."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class Display:
    """The console. On a terminal it has a bar.

    If the values have "train/loss", it shows the loss, tokens/s and the remaining time. Otherwise it shows all values by name.
    """

    def __init__(self, steps: int, start: int, console: Console | None = None):
        self.steps, self._start, self._began = steps, start, time.monotonic()
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = _bar(self._console, steps, start) if self._console.is_terminal else None

    def write(self, step: int, numbers: Numbers) -> None:
        """Print a line, or update the progress bar on a terminal. Evaluations are always printed as lines."""
        head = f"step {step}/{self.steps}  "
        if "train/loss" not in numbers:
            hidden = [name for name in numbers if name.startswith("memory/") or name.count("/") > 1]  # only for the files
            shown = {name: value for name, value in numbers.items() if name not in hidden}
            self._console.print(head + "  ".join(f"{name} {_short(value)}" for name, value in shown.items()), markup=False)
            return
        text = head + "  ".join(self._describe(step, numbers))
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text, refresh=True)
        else:
            self._console.print(text, markup=False)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar:
            self._bar.stop()

    def _describe(self, step: int, numbers: Numbers) -> list[str]:
        done = step - self._start
        parts = [f"loss {_short(numbers['train/loss'])}"]
        if (speed := numbers.get("train/tokens_per_s")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if done > 0:
            parts.append(f"{_clock((time.monotonic() - self._began) / done * (self.steps - step))} left")
        return parts


def _number(value: SupportsFloat) -> float | int | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _short(value: float | int | None) -> str:
    return "not finite" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _bar(console: Console, steps: int, done: int) -> Progress:
    progress = Progress(BarColumn(), TextColumn("{task.fields[text]}", markup=False), console=console, auto_refresh=False)
    progress.add_task("", total=steps, completed=done, text=f"step {done}/{steps}")
    progress.start()
    return progress
