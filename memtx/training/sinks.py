"""Sinks: the files and services that the metrics of a run go to.

    metrics.jsonl     one JSON object per line; always
    tensorboard/      always
    metrics.csv       with train.csv: the columns step, metric and value
    Weights & Biases  with train.wandb=PROJECT; the id of the run there is in wandb.json

A sink gets each line once and in order: the step, and its numbers by name. None is a number that is not finite.
"""

from __future__ import annotations

import csv
import io
import json
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter

from memtx.config import Config, to_json
from memtx.errors import UserError, brief, optional
from memtx.files.atomic import write_atomic

Numbers = Mapping[str, float | int | None]
TABLE = "metrics.csv"
LINES, WANDB = "metrics.jsonl", "wandb.json"  # the files that a resumed run reads


class Sink(Protocol):
    """A place that metrics go to."""

    def write(self, step: int, numbers: Numbers) -> None:
        """Write the numbers of a step."""

    def close(self) -> None:
        """Finish all writes."""


def check_sinks(config: Config) -> None:
    """Raise a UserError unless the sinks of the config can be used. Weights & Biases never asks for a login."""
    if not config.train.wandb:
        return
    wandb = optional("wandb", "wandb")
    offline = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
    if not offline and not wandb.login(prompt=False, verify=False):
        raise UserError("train.wandb needs an API key of Weights & Biases: run wandb login, or set WANDB_MODE=offline")


def open_sinks(workdir: Path, config: Config, written: int) -> Iterator[Sink]:
    """Open the sinks of the config, one after the other.

    written: the last step whose lines are kept, or -1 for a new run. Raises UserError if Weights & Biases has an error.
    """
    yield JsonLines(workdir, written)
    yield TensorBoard(workdir, written)
    (workdir / TABLE).unlink(
        missing_ok=True
    )  # it is written again from metrics.jsonl, or would have rows of steps that are gone
    if config.train.csv:
        yield Csv(workdir)
    if config.train.wandb:
        yield WandB(workdir, config)


class JsonLines:
    """The file metrics.jsonl. Lines of later steps than `written` and a half-written line are deleted first."""

    def __init__(self, workdir: Path, written: int):
        path = workdir / LINES
        if path.exists():
            lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
            write_atomic(path, "".join(line for line in lines if _step(line) <= written))
        self._file = path.open("ab", buffering=0)  # unbuffered, so that SIGKILL loses no line

    def write(self, step: int, numbers: Numbers) -> None:
        """Write a line."""
        self._file.write((json.dumps({"step": step, **numbers}, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The files in the folder `tensorboard`. They tell TensorBoard to forget the steps after `written`."""

    def __init__(self, workdir: Path, written: int):
        first = written + 1  # part of the file's name, because a file of the same second would be overwritten
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first, filename_suffix=f".{first}")

    def write(self, step: int, numbers: Numbers) -> None:
        """Write the numbers that are finite."""
        for name, value in numbers.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Close the files."""
        self._board.close()


class Csv:
    """The file metrics.csv: a row for each number. It starts with the rows of metrics.jsonl, which has been cut already."""

    def __init__(self, workdir: Path):
        lines = [json.loads(line) for line in (workdir / LINES).read_text().splitlines()]
        kept = "".join(_rows(line.pop("step"), line) for line in lines)
        write_atomic(workdir / TABLE, "step,metric,value\n" + kept)
        self._file = (workdir / TABLE).open("ab", buffering=0)

    def write(self, step: int, numbers: Numbers) -> None:
        """Write the rows of a step. A number that is not finite has no value."""
        self._file.write(_rows(step, numbers).encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandB:
    """A run of Weights & Biases. A resumed run continues it.

    Weights & Biases keeps rows that it has. wandb.json therefore has the last step of each kind of lines ("train", "eval"), and
    rows up to it are not sent again. A kind is the part of a line's first name before the slash.
    """

    def __init__(self, workdir: Path, config: Config):
        wandb = optional("wandb", "wandb")
        self._path = workdir / WANDB
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._sent = {"id": secrets.token_hex(4), "steps": {}} | known
        try:
            self._run = wandb.init(
                project=config.train.wandb,
                name=workdir.resolve().name,
                id=self._sent["id"],
                resume="allow",
                dir=str(workdir),
                config=to_json(config),
                settings=wandb.Settings(
                    console="off", disable_git=True, x_save_requirements=False, x_disable_machine_info=True
                ),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases cannot start a run: {brief(error)}; WANDB_MODE=offline needs no network"
            ) from None
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Numbers) -> None:
        """Send a row."""
        kind = next(iter(numbers)).partition("/")[0]
        if step <= self._sent["steps"].get(kind, -1):
            return
        self._run.log({"step": step} | {name: value for name, value in numbers.items() if value is not None})
        self._sent["steps"][kind] = step
        write_atomic(self._path, json.dumps(self._sent) + "\n")

    def close(self) -> None:
        """Wait until all rows are sent."""
        self._run.finish()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _rows(step: int, numbers: Numbers) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows((step, name, value) for name, value in numbers.items())
    return out.getvalue()
