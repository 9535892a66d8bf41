"""A run's record, run.json: its settings, status and results. The file is written atomically.

name, status         "running", "finished", "stopped" (interrupted and saved) or "failed", with `error` in one line
overrides            the overrides as the sweep file gives them
settings             the overrides and the arguments of the config file, which arrange tables
match, solved        the budget to meet and the solved keys
config, seed         the complete config after solving
budget               params, flops_per_token, state_bytes
train_tokens_per_s   the median of the values in metrics.jsonl
result               metrics of the last evaluation, and the values that the sweep file's `run` returned
evaluation           the complete evaluation: losses by position, accuracies by slice
code, versions, machine, started, seconds (of all attempts that recorded their end), attempts
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memtx.errors import UserError
from memtx.files.atomic import write_atomic
from memtx.training.workdir import RECORD, InUse, hold

Record = dict[str, Any]


def read(folder: Path) -> Record | None:
    """Return a run's record, or None if the run was never started. Raises UserError if the file is damaged."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{folder / RECORD} is damaged: it is not JSON; delete {folder} to run it again") from None


def write(folder: Path, record: Record) -> None:
    """Write a run's record, with null for numbers that are not finite."""
    write_atomic(folder / RECORD, json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")


def in_use(folder: Path) -> bool:
    """Return whether a process is executing the run."""
    if not folder.exists():
        return False
    try:
        hold(folder).release()
    except InUse:
        return True
    return False


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, or [] if the file does not exist."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def evaluated(folder: Path) -> dict[str, Any]:
    """Return the values of the last evaluation in metrics.jsonl."""
    lines = [{k: v for k, v in line.items() if k.startswith("eval/")} for line in metrics(folder)]
    return next((line for line in reversed(lines) if line), {})


def tokens_per_s(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the median speed of training. The first of several values is left out because it includes compilation."""
    speeds = [line["train/tokens_per_s"] for line in lines if "train/tokens_per_s" in line]
    return statistics.median(speeds[1:] or speeds) if speeds else None


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, as in metrics.jsonl, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
