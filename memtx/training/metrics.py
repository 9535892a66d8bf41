"""Metrics of a run: metrics.jsonl (one JSON object per line), TensorBoard files, and the console."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from memtx.files.atomic import write_atomic
from memtx.training.processes import is_first


class Metrics:
    """A writer of the `train/...` and `eval/...` values of steps. Only process 0 writes.

    steps: the run's last step. resumed: the step from which the run resumes, None for a new run. Lines of later steps and a
    half-written line are deleted, so a resumed run ends with the same lines as an uninterrupted one.
    """

    def __init__(self, workdir: str | Path, *, steps: int, resumed: int | None = None, console: Console | None = None):
        self.steps, self._start = steps, resumed or 0
        self._written = -1 if resumed is None else resumed  # the last step whose lines are already in the files
        self._began = time.monotonic()
        self._writes = is_first()
        if not self._writes:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _keep_until(path, self._written)
        self._file = path.open("ab", buffering=0)  # unbuffered, so that SIGKILL loses no line
        first = self._written + 1  # part of the file's name, because a file of the same second would be overwritten
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first, filename_suffix=f".{first}")
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = _bar(self._console, steps, self._start) if self._console.is_terminal else None

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write the values of a step. Numbers that are not finite become null, since JSON has no NaN.

        If the values have "train/loss", the console shows the loss, tokens/s and the remaining time. Otherwise it shows all
        values by name. Steps up to the resumed one are already in the files and are not written again.
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
        """Close the files and the progress bar."""
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

    def _describe(self, step: int, numbers: Mapping[str, float | None]) -> list[str]:
        done = step - self._start
        parts = [f"loss {_short(numbers['train/loss'])}"]
        if (speed := numbers.get("train/tokens_per_s")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if done > 0:
            parts.append(f"{_clock((time.monotonic() - self._began) / done * (self.steps - step))} left")
        return parts


def _keep_until(path: Path, step: int) -> None:
    """Delete the lines of later steps and incomplete lines."""
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
