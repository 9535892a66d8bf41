"""Metrics of a run: metrics.jsonl (one object a line), TensorBoard files, and what the console shows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from memtx.training.workdir import write_atomic


class Metrics:
    """Writes `train/...` and `eval/...` values of steps; on process 0 only, silent on the others.

    steps: the run's last step. resumed: the step that the run goes on from, None for a new one. What was written for later
    steps is dropped, and so is a half-written line, so that a resumed run ends with the lines of one that was never stopped.
    """

    def __init__(self, workdir: str | Path, *, steps: int, resumed: int | None = None, console: Console | None = None):
        self.steps, self._start = steps, resumed or 0
        self._written = -1 if resumed is None else resumed  # the last step whose lines are in the files from before
        self._began = time.monotonic()
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _keep_until(path, self._written)
        self._file = path.open("ab", buffering=0)  # a line is the system's as soon as it is written: SIGKILL loses none
        first = self._written + 1  # in the name too: a file of the same second would be overwritten
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first, filename_suffix=f".{first}")
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = _bar(self._console, steps, self._start) if self._console.is_terminal else None

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Note the values of a step. What is not finite becomes null, since JSON has no NaN.

        The console shows loss, tokens/s and time left of values that have "train/loss", and the others by name. Steps
        up to the one resumed from are in the files already, and are not written again.
        """
        if not self._writes or step <= self._written:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        self._file.write((json.dumps({"step": step} | numbers, allow_nan=False) + "\n").encode())
        for name, value in numbers.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._board.flush()
        self._show(step, numbers)

    def close(self) -> None:
        if self._writes:
            self._file.close()
            self._board.close()
            if self._bar:
                self._bar.stop()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _show(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """A line, or on a terminal the same beside a bar; evaluations are lines in both."""
        head = f"step {step}/{self.steps}  "
        if "train/loss" not in numbers:
            shown = {name: value for name, value in numbers.items() if name.count("/") < 2}  # slices are for the files
            self._console.print(head + "  ".join(f"{name} {_short(value)}" for name, value in shown.items()), markup=False)
            return
        text = head + "  ".join(self._training(step, numbers))
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text, refresh=True)
        else:
            self._console.print(text, markup=False)

    def _training(self, step: int, numbers: Mapping[str, float | None]) -> list[str]:
        done = step - self._start
        parts = [f"loss {_short(numbers['train/loss'])}"]
        if (speed := numbers.get("train/tokens_per_s")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if done > 0:
            parts.append(f"{_clock((time.monotonic() - self._began) / done * (self.steps - step))} left")
        return parts


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and what is no whole line."""
    if path.exists():
        lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
        write_atomic(path, "".join(line for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


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
