"""The runs of a study, read from a sweep's workdir or from stored JSON files.

A stored run has the contents of `run.json`, the last value of every metric, and thinned curves. It is small enough to commit
and has everything that a report needs. A workdir and the files stored from it give the same report.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtx.errors import UserError
from memtx.files.atomic import write_atomic
from memtx.sweep.record import metrics

POINTS = 100  # the largest number of points of a stored curve
BUDGETS = ("params", "flops_per_token", "state_bytes")
FINISHED, FAILED, MISSING = "finished", "failed", "missing"

Curve = list[list[float]]  # [step, value] of each point


@dataclass(frozen=True)
class Run:
    """One training run.

    settings  dotted overrides and arguments of the config file, which arrange tables
    result    the last value of each metric
    curves    the values of each metric over training
    """

    name: str
    status: str = FINISHED
    error: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    budget: Mapping[str, float] = field(default_factory=dict)
    result: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.status == FINISHED

    def value(self, key: str):
        """Return the value of a setting, or None if the run does not set it."""
        return self.seed if key == "seed" else _to_json(self.settings.get(key))

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Return whether the run has the settings `where`."""
        return all(self.value(key) == _to_json(value) for key, value in where.items())

    def number(self, metric: str) -> float | None:
        """Return the last value of a metric, a budget, or "seconds", or None if the run has no such number."""
        return {"seconds": self.seconds, **self.budget, **self.result}.get(metric)


def from_workdir(workdir: Path) -> list[Run]:
    """Read the runs of a sweep from WORKDIR/runs/NAME. Raises UserError if there are none."""
    return _read_all(_read_trained, workdir.glob("runs/*/run.json"), workdir)


def from_results(folder: Path) -> list[Run]:
    """Read the runs that `store` wrote. Raises UserError if there are none."""
    return _read_all(_read_stored, folder.glob("*.json"), folder)


def store(runs: list[Run], folder: Path) -> None:
    """Write one JSON file for each run that has finished or failed. Other files of the folder are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.status in (FINISHED, FAILED):
            lines = [
                f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
                for name, value in dataclasses.asdict(run).items()
            ]
            write_atomic(folder / f"{run.name}.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _read_all(read: Callable[[Path], Run], paths: Iterable[Path], folder: Path) -> list[Run]:
    if not (runs := [read(path) for path in sorted(paths)]):
        raise UserError(
            f"no runs in {folder}; `memtx sweep --sweep=FILE --workdir=DIR` makes runs, `memtx report --store=DIR` stores them"
        )
    return runs


def _read_stored(path: Path) -> Run:
    return build(path, read_json(path))


def _read_trained(path: Path) -> Run:
    """Read run.json and the metrics.jsonl beside it."""
    record = read_json(path)
    return build(path, record | read_metrics(metrics(path.parent), record))


def read_metrics(lines: list[dict], record: Mapping, training: Collection[str] = ("train/loss",)) -> dict:
    """Return the result and the curves of a run with this record and these lines of metrics.

    The curves are those of evaluations and those named in `training`.
    """
    curves = _collect_curves(lines)
    last = {name: curve[-1][1] for name, curve in curves.items()} | {"train/tokens_per_s": record.get("train_tokens_per_s")}
    result = {name: number for name, number in (last | record.get("result", {})).items() if _is_finite(number)}
    thinned = {name: thin(curve) for name, curve in curves.items() if name in training or _is_overall(name)}
    return {"result": result, "curves": thinned}


def build(path: Path, record: Mapping) -> Run:
    """Return the run of a record. Raises UserError, with the path, if it is not the record of a run."""
    known = {f.name for f in dataclasses.fields(Run)}
    try:
        return Run(**{name: value for name, value in record.items() if name in known})
    except TypeError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises UserError if the file has none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: it is not a JSON object; delete it and repeat the run") from None


def _collect_curves(lines: Iterable[dict]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in lines:
        for name, number in line.items():
            if name != "step" and _is_finite(number):
                curves.setdefault(name, []).append([line["step"], number])
    return curves


def _is_overall(metric: str) -> bool:
    """Return whether a metric of an evaluation is an overall one and not one of a slice or a layer."""
    return metric.startswith(("eval/", "memory/")) and metric.count("/") == 1


def thin(curve: Curve, most: int = POINTS) -> Curve:
    """Return at most `most` evenly spaced points of a curve, including the first and last, rounded to six digits."""
    if len(curve) > most:
        curve = [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]
    return [[step, float(f"{value:.6g}")] for step, value in curve]


def _is_finite(number) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)


def _to_json(value):
    """Return a value as JSON reads it back, with lists for tuples."""
    return json.loads(json.dumps(value))
