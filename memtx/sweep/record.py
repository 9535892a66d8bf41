"""A run's record, run.json: what it is, where it stands, what came out. Written whole or not at all.

name, status     "running", "finished", "stopped" (told to, and saved) or "failed", with `error` in one line
overrides        as the sweep file gave them; `settings`: the same with the config's argument taken apart
match, solved    the budget that was asked for and the keys solved for it
config, seed     the whole config, after solving
budget           params, flops_per_token, state_bytes; train_tokens_per_s: the median of what metrics.jsonl has
result           metrics of the last evaluation, and what the sweep file's `run` measured
evaluation       the whole of that evaluation: losses by position, accuracies by slice
code, versions, machine, started, seconds (of all attempts that came to an end), attempts
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from memtx.errors import UserError
from memtx.training.workdir import RECORD, InUse, hold, write_atomic

Record = dict[str, Any]


def read(folder: Path) -> Record | None:
    """None if the run never began."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{folder / RECORD} is damaged: it is not JSON; delete {folder} to run it again") from None


def write(folder: Path, record: Record) -> None:
    write_atomic(folder / RECORD, json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")


def in_use(folder: Path) -> bool:
    """Whether some process works on the run now."""
    if not folder.exists():
        return False
    try:
        hold(folder).release()
    except InUse:
        return True
    return False


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if nothing was trained."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def evaluated(folder: Path) -> dict[str, Any]:
    """The values of the last evaluation in metrics.jsonl."""
    lines = [{k: v for k, v in line.items() if k.startswith("eval/")} for line in metrics(folder)]
    return next((line for line in reversed(lines) if line), {})


def tokens_per_s(folder: Path) -> float | None:
    """The median; the first line, which includes compiling, does not count where there are others."""
    speeds = [line["train/tokens_per_s"] for line in metrics(folder) if "train/tokens_per_s" in line]
    return statistics.median(speeds[1:] or speeds) if speeds else None


def _finite(value: Any) -> Any:
    """With None for what is not finite, as in metrics.jsonl, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
