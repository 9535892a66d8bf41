"""The runs of a study: read from a sweep's workdir, stored as compact JSON, and read from there again.

A stored run is `run.json` as `memtx sweep` writes it, with the last value of every metric and with its curves, thinned: small
enough to commit, and all that a report needs. A workdir and what was stored from it give the same report.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtx.errors import UserError
from memtx.training.workdir import write_atomic

POINTS = 100  # at most, of a curve
BUDGETS = ("params", "flops_per_token", "state_bytes")
FINISHED = "finished"

Curve = list[list[float]]  # [step, value] of each point


@dataclass(frozen=True)
class Run:
    """One training run. settings: what tables are arranged by, dotted overrides and the arguments of its config file.

    result: metric -> its last value; curves: metric -> its course over training.
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
        return self.status == FINISHED

    def value(self, key: str):
        """Of a setting; None if the run has it at its default."""
        return self.seed if key == "seed" else _plain(self.settings.get(key))

    def matches(self, where: Mapping[str, Any]) -> bool:
        return all(self.value(key) == _plain(value) for key, value in where.items())

    def number(self, metric: str) -> float | None:
        """A metric's last value, or a budget, or the seconds that the run took."""
        return {"seconds": self.seconds, **self.budget, **self.result}.get(metric)


def from_workdir(workdir: Path) -> list[Run]:
    """The runs of a sweep, WORKDIR/runs/NAME/run.json. UserError if there are none."""
    return _some(
        [_read(path, _metrics(path.with_name("metrics.jsonl"))) for path in sorted(workdir.glob("runs/*/run.json"))], workdir
    )


def from_results(folder: Path) -> list[Run]:
    """What `store` wrote. UserError if there is nothing."""
    return _some([_read(path, None) for path in sorted(folder.glob("*.json"))], folder)


def store(runs: list[Run], folder: Path) -> None:
    """One JSON file for each finished run; what else is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.finished:
            lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in dataclasses.asdict(run).items()]
            write_atomic(folder / f"{run.name}.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _some(runs: list[Run], folder: Path) -> list[Run]:
    if not runs:
        raise UserError(f"no runs in {folder}; `memtx sweep --sweep=FILE --workdir={folder}` makes them")
    return runs


def _read(path: Path, metrics: Mapping[str, Curve] | None) -> Run:
    try:
        values = json.loads(path.read_text())
        known = {f.name for f in dataclasses.fields(Run)}
        values = {name: value for name, value in values.items() if name in known and value is not None}
        if metrics is not None:
            last = {name: curve[-1][1] for name, curve in metrics.items()}
            result = {name: number for name, number in (last | values.get("result", {})).items() if _finite(number)}
            curves = {name: thin(curve) for name, curve in metrics.items() if name == "train/loss" or _overall(name)}
            values |= {"result": result, "curves": curves}
        return Run(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _metrics(path: Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        values = json.loads(line)
        step = values.pop("step")
        for name, number in values.items():
            if _finite(number):
                curves.setdefault(name, []).append([step, number])
    return curves


def _overall(metric: str) -> bool:
    """An evaluation's metric that is not of a slice."""
    return metric.startswith("eval/") and metric.count("/") == 1


def thin(curve: Curve, most: int = POINTS) -> Curve:
    """At most so many of its points, evenly spread, the first and last among them, to six digits."""
    if len(curve) > most:
        curve = [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]
    return [[step, float(f"{value:.6g}")] for step, value in curve]


def _finite(number) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)


def _plain(value):
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))
