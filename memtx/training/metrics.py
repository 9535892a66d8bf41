"""Metrics of a run: they go to the sinks (memtx.training.sinks) and to the console."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import SupportsFloat

from rich.console import Console

from memtx.config import Config
from memtx.progress import Progress
from memtx.training.processes import on_first
from memtx.training.sinks import Numbers, Sink, open_sinks


class Metrics:
    """A writer of the `train/...` and `eval/...` values of steps. Only process 0 writes.

    resumed: the step from which the run resumes, None for a new run. Lines of later steps are deleted, so a resumed run ends
    with the same lines as an uninterrupted one.
    """

    def __init__(self, workdir: str | Path, config: Config, *, resumed: int | None = None, console: Console | None = None):
        self._written = -1 if resumed is None else resumed  # the last step whose lines the sinks have
        self._sinks: list[Sink] = []

        def start() -> None:
            Path(workdir).mkdir(parents=True, exist_ok=True)
            try:
                for sink in open_sinks(Path(workdir), config, self._written):
                    self._sinks.append(sink)
            except BaseException:
                self.close()
                raise
            self._sinks.append(Display(config.train.steps, resumed or 0, console))

        on_first(start)

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
    """The progress on the standard error. On a terminal it has a bar.

    If the values have "train/loss", it shows the loss, tokens/s and the remaining time. Otherwise it shows all values by name.
    """

    def __init__(self, steps: int, start: int, console: Console | None = None):
        self.steps, self._progress = steps, Progress("step", done=start, console=console, patience=0)
        if start < steps:
            self._progress(start, steps, "compiling")

    def write(self, step: int, numbers: Numbers) -> None:
        """Show the progress if it is time for it. Evaluations are always printed as lines."""
        if "train/loss" in numbers:
            speed = numbers.get("train/tokens_per_s")
            rate = "" if speed is None else f"{speed:,.0f} tokens/s"
            self._progress(step, self.steps, f"loss {_short(numbers['train/loss'])}", rate)
            return
        hidden = [name for name in numbers if name.startswith("memory/") or name.count("/") > 1]  # only for the files
        shown = [f"{name} {_short(value)}" for name, value in numbers.items() if name not in hidden]
        self._progress.console.print("  ".join([f"step {step}/{self.steps}", *shown]), markup=False)

    def close(self) -> None:
        """Remove the progress bar."""
        self._progress.close()


def _number(value: SupportsFloat) -> float | int | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _short(value: float | int | None) -> str:
    return "not finite" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"
