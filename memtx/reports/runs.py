"""The runs of a study: read from a sweep's workdir, stored as compact JSON, and read from there again.

A stored run is `run.json` as `memtx sweep` writes it, with the last value of every metric and with its curves, thinned: small
enough to commit, and all that a report needs. A workdir and what was stored from it give the same report.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtx.errors import UserError
from memtx.sweep.record import metrics
from memtx.training.workdir import write_atomic

POINTS = 100  # at most, of a curve
BUDGETS = ("params", "flops_per_token", "state_bytes")
FINISHED, FAILED, MISSING = "finished", "failed", "missing"

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
    """The runs of a sweep, WORKDIR/runs/NAME. UserError if there are none."""
    return _some(_trained, workdir.glob("runs/*/run.json"), workdir)


def from_results(folder: Path) -> list[Run]:
    """What `store` wrote. UserError if there is nothing."""
    return _some(_stored, folder.glob("*.json"), folder)


def store(runs: list[Run], folder: Path) -> None:
    """One JSON file for each run that finished or failed; what else is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.status in (FINISHED, FAILED):
            lines = [
                f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
                for name, value in dataclasses.asdict(run).items()
            ]
            write_atomic(folder / f"{run.name}.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _some(read: Callable[[Path], Run], paths: Iterable[Path], folder: Path) -> list[Run]:
    if not (runs := [read(path) for path in sorted(paths)]):
        raise UserError(f"no runs in {folder}; `memtx sweep --sweep=FILE --workdir=DIR` makes them, --store=DIR keeps them")
    return runs


def _stored(path: Path) -> Run:
    return _run(path, _json(path))


def _trained(path: Path) -> Run:
    """Of run.json, with what metrics.jsonl beside it has."""
    record, curves = _json(path), _curves(metrics(path.parent))
    last = {name: curve[-1][1] for name, curve in curves.items()} | {"train/tokens_per_s": record.get("train_tokens_per_s")}
    result = {name: number for name, number in (last | record.get("result", {})).items() if _finite(number)}
    thinned = {name: thin(curve) for name, curve in curves.items() if name == "train/loss" or _overall(name)}
    return _run(path, record | {"result": result, "curves": thinned})


def _run(path: Path, record: Mapping) -> Run:
    known = {f.name for f in dataclasses.fields(Run)}
    try:
        return Run(**{name: value for name, value in record.items() if name in known})
    except TypeError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: it is no JSON object; delete it, and run that again") from None


def _curves(lines: Iterable[dict]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in lines:
        for name, number in line.items():
            if name != "step" and _finite(number):
                curves.setdefault(name, []).append([line["step"], number])
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
