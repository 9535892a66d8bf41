"""Studies: a sweep file that also declares its report.

    \"\"\"Does the delta rule forget updated values?          the first line is the title, the rest is the question
    ...\"\"\"
    config, sweep = ...                                       as for `memtx sweep`
    report = {
        "rows": "memory",                                     settings that label the rows (default: all that vary)
        "columns": {"updates": "eval/accuracy/updated=yes"},  heading -> metric
        "figures": {"distance": {"y": "eval/accuracy", "x": "distance"}},
        "varies": "state_bytes",                              a budget that the study varies on purpose
        "floor": 0.02,                                        a rerun always agrees if means differ by at most this
    }

    def claims(table):                                        the claims that the study tests
        yield "deltanet beats gla by 0.2", table["deltanet", "updates"].mean > table["gla", "updates"].mean + 0.2

Settings are the dotted overrides of a run and the arguments of its config file. A column is a metric, or a mapping with
`metric`, `where` (settings of its runs), `better` ("higher" or "lower") and `digits`. A figure's x is "step", a budget, a
setting, or the name of slices. For example, x = "distance" collects `eval/accuracy/distance=1`, `eval/accuracy/distance=2`, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtx.errors import UserError, check_known
from memtx.fields import to_dataclass
from memtx.reports.runs import BUDGETS, MISSING, Run
from memtx.sweep.spec import load_sweep


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    metric: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    better: str = ""  # higher | lower
    digits: int = 3


@dataclass(frozen=True)
class Figure:
    """A figure of metric `y` over `x`, from the runs with the settings `where`."""

    y: str = "train/loss"
    x: str = "step"
    where: Mapping[str, Any] = field(default_factory=dict)
    start: float = -math.inf  # the smallest x shown
    log: str = ""  # logarithmic axes: x, y or xy. By default x, if its values span an order of magnitude


@dataclass(frozen=True)
class Report:
    """The declaration of a report (see the module)."""

    rows: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    varies: tuple[str, ...] = ()
    floor: float = 0.0


@dataclass(frozen=True)
class Study:
    """A study.

    path            the sweep file, as the user gave it
    config, common  the base config and the overrides of all runs
    planned         all runs of the sweep file, with status "missing"
    """

    path: Path
    title: str
    question: str
    config: str
    common: Mapping[str, Any]
    report: Report
    planned: list[Run]
    claims: Callable[..., Iterable[tuple[str, bool]]] | None


def load_study(path: Path) -> Study:
    """Read a study. Raises UserError if the file is missing or its declarations are wrong."""
    sweep = load_sweep(path)
    title, _, question = (sweep.module.__doc__ or path.resolve().parent.name).strip().partition("\n")
    planned = [
        Run(name, MISSING, overrides=run.overrides, settings=run.settings, seed=run.config.seed)
        for name, run in sweep.runs.items()
    ]
    declared, common = getattr(sweep.module, "report", {}), getattr(sweep.module, "common", {})
    claims = getattr(sweep.module, "claims", None)
    return Study(path, title, question.strip(), sweep.config, common, report(declared), planned, claims)


def report(declared: Mapping) -> Report:
    """Check a declaration and fill in defaults. Raises UserError for unknown keys and wrong values."""
    values = dict(declared)
    for name in ("rows", "varies"):
        if isinstance(values.get(name), str):
            values[name] = (values[name],)
    for name, cls, only in (("columns", Column, "metric"), ("figures", Figure, "y")):
        entries = values.get(name, {})
        if not isinstance(entries, Mapping):
            raise UserError(f"report[{name!r}] must map headings to a metric or a mapping, not be {entries!r}")
        values[name] = {
            heading: to_dataclass(cls, {only: entry} if isinstance(entry, str) else entry, f"report[{name!r}][{heading!r}]")
            for heading, entry in entries.items()
        }
    found = to_dataclass(Report, values, "report")
    for budget in found.varies:
        check_known(budget, BUDGETS, "budget in report['varies']")
    for column in found.columns.values():
        check_known(column.better, ["higher", "lower", ""], "better of a column")
    return found
