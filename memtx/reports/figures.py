"""The contents of a study's figures. `memtx.reports.draw` draws them.

A figure has lines, and a line has points. Each point is the mean of a metric over seeds. The x axis is the training step, a
slice of the evaluation (`eval/accuracy/distance=…`, `eval/loss/position=…`), a budget, or a setting with this name.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from memtx.errors import UserError, nearest
from memtx.reports.runs import BUDGETS, Run
from memtx.reports.study import Figure, Study
from memtx.reports.table import label, varying

NAMES = {"step": "training step", "params": "parameters", "flops_per_token": "FLOPs per token", "state_bytes": "bytes of state"}
UNITS = {
    "loss": "loss (nats per token)",
    "lr": "learning rate",
    "bits_per_byte": "bits per byte",
    "position": "position in the document (tokens)",
}


@dataclass(frozen=True)
class Point:
    """The mean and sample standard deviation over seeds at x. A single seed has no standard deviation."""

    x: float
    mean: float
    std: float | None


@dataclass(frozen=True)
class Line:
    """Points in the order of x."""

    label: str
    points: list[Point]


@dataclass(frozen=True)
class Picture:
    """A figure to draw: the labels of its axes, the logarithmic axes (x, y or xy), and its lines."""

    name: str
    x: str
    y: str
    log: str
    points: bool  # every line has one point, which is labelled
    lines: list[Line]


def pictures(study: Study, runs: list[Run]) -> list[Picture]:
    """Build the figures that the study declares. The default is the training loss.

    Raises UserError if no run has the metric of a figure.
    """
    runs = [run for run in runs if run.finished]
    declared = study.report.figures or ({"training loss": Figure()} if any("train/loss" in run.curves for run in runs) else {})
    return [_build(name, figure, study, runs) for name, figure in declared.items()]


def _build(name: str, figure: Figure, study: Study, runs: list[Run]) -> Picture:
    runs = [run for run in runs if run.matches(figure.where)]
    taken = {figure.x, *figure.where}
    keys = [key for key in study.report.rows or varying(runs) if key not in taken]
    if figure.x in BUDGETS and len(keys) > 1:
        keys = keys[:1]  # one line per value of the first key, through the values of the others
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(", ".join(label(run.value(key)) for key in keys), []).append(run)
    lines = [Line(text, _average(_collect(figure, group))) for text, group in groups.items()]
    lines = [line for line in lines if line.points]
    if runs and not lines:
        known = dict.fromkeys(_list_metrics(runs, figure.x))
        raise UserError(f"figure {name!r}: no run has {figure.y!r} over {figure.x!r}{nearest(figure.y, known)}")
    log = figure.log or ("x" if figure.x != "step" and is_wide([point.x for line in lines for point in line.points]) else "")
    if "x" in log:
        lines = [Line(line.label, [point for point in line.points if point.x > 0]) for line in lines]
    points = all(len(line.points) == 1 for line in lines)
    return Picture(name, name_axis(figure.x), name_axis(figure.y), log, points, lines)


def is_wide(xs: list[float]) -> bool:
    """Return whether positive numbers span an order of magnitude."""
    return bool(xs) and min(xs) > 0 and max(xs) >= 10 * min(xs)


def _collect(figure: Figure, runs: Iterable[Run]) -> dict[float, list[float]]:
    """Return a mapping from x to the metric's value in each run."""
    found: dict[float, list[float]] = {}
    slices = re.compile(re.escape(f"{figure.y}/{figure.x}=") + r"(-?\d+(?:\.\d+)?)")
    for run in runs:
        if figure.x == "step":
            pairs = run.curves.get(figure.y, [])
        elif figure.x in BUDGETS:
            pairs = [(run.budget.get(figure.x), run.number(figure.y))]
        elif sliced := [(float(m[1]), number) for name, number in run.result.items() if (m := slices.fullmatch(name))]:
            pairs = sliced
        else:
            pairs = [(_as_number(run.value(figure.x)), run.number(figure.y))]
        for x, y in pairs:
            if x is not None and y is not None and x >= figure.start:
                found.setdefault(x, []).append(y)
    return found


def _as_number(value) -> float | None:
    """Convert a setting, which is text if it is an argument of a config file. Returns None if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _average(numbers: dict[float, list[float]]) -> list[Point]:
    """Average over seeds at each x, in the order of x. A value of x is left out if only a minority of seeds have it."""
    most = max(map(len, numbers.values()), default=0)
    return [
        Point(x, statistics.fmean(ys), statistics.stdev(ys) if len(ys) > 1 else None)
        for x, ys in sorted(numbers.items())
        if 2 * len(ys) > most
    ]


def _list_metrics(runs: list[Run], x: str) -> list[str]:
    """Return the metrics that can be drawn over x."""
    if x == "step":
        return [name for run in runs for name in run.curves]
    sliced = [name.partition(f"/{x}=")[0] for run in runs for name in run.result if f"/{x}=" in name]
    return sliced or [name for run in runs for name in run.result]


def name_axis(name: str) -> str:
    """Return the label of an axis."""
    last = re.sub(r"^(eval|train)/", "", name).rpartition(".")[2]
    wiped = last.endswith("_wiped")
    last = last.removesuffix("_wiped")
    words = NAMES.get(last) or UNITS.get(last) or last.replace("/", ", ").replace("_", " ")
    return f"{words}, memory wiped" if wiped else words
