"""From runs to a table: groups that differ only in seed, mean and spread, matched budgets, claims.

A row is a combination of settings, a column a metric; a cell has a value for each seed. What was to be run and did not finish
is counted in its cell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memtx.errors import UserError, nearest
from memtx.reports.runs import BUDGETS, FAILED, MISSING, Run
from memtx.reports.study import Column, Study

NOT_BEGUN = "–"
STRAY = "not of the sweep file, left out"
MATCHED = 1.05  # budgets whose ratio is larger make a comparison unfair
HIGHER = ("accuracy", "exact", "exact_match", "f1", "bleu", "rouge_l", "tokens_per_s")  # metrics that are better when higher
LOWER = ("loss", "perplexity", "bits_per_byte", "seconds")
LONGEST = 32  # characters of a row's label


@dataclass(frozen=True)
class Cell:
    """by_seed: what was measured; planned: how many runs there should be; status: of one that did not finish.

    budget: the least and the most among its runs.
    """

    by_seed: Mapping[int, float]
    planned: int
    status: str = ""
    budget: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    best: bool = False

    @property
    def begun(self) -> bool:
        return bool(self.by_seed) or self.status not in (NOT_BEGUN, "")

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation; a single seed has none."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def text(self, digits: int) -> str:
        if not self.by_seed:
            return self.status
        spread = "" if self.std is None else f" ± {self.std:,.{digits}f}"
        seeds = len(self.by_seed)
        return f"{self.mean:,.{digits}f}{spread} ({seeds if seeds == self.planned else f'{seeds} of {self.planned}'})"


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    cells: dict[str, Cell]

    @property
    def name(self) -> str:
        return ", ".join(self.labels)

    def budget(self, name: str) -> tuple[float, float] | None:
        """The least and the most among all its runs."""
        ranges = [cell.budget[name] for cell in self.cells.values() if name in cell.budget]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


@dataclass(frozen=True)
class Table:
    keys: tuple[str, ...]  # the settings that label the rows
    columns: Mapping[str, Column]
    rows: list[Row]
    unmatched: Mapping[str, list[str]] = field(default_factory=dict)  # budget -> between whom it differs, by columns
    unfinished: list[Run] = field(default_factory=list)

    def begun(self) -> Table:
        """Its rows and columns in which some run has begun."""
        columns = {name: column for name, column in self.columns.items() if any(row.cells[name].begun for row in self.rows)}
        rows = [row for row in self.rows if any(cell.begun for cell in row.cells.values())]
        return dataclasses.replace(self, columns=columns, rows=rows)

    def __getitem__(self, place) -> Cell:
        """`table["deltanet", "updates"]`: the labels of a row, then a column. UserError for a cell with no finished run."""
        *labels, heading = place if isinstance(place, tuple) else (place,)
        labels, heading = list(map(label, labels)), str(heading)
        row = next((row for row in self.rows if row.labels == tuple(labels)), None)
        if row is None or heading not in self.columns:
            name, known = ", ".join((*labels, heading)), [f"{row.name}, {name}" for row in self.rows for name in self.columns]
            raise UserError(f"the table has no {name!r}{nearest(name, known)}")
        if not row.cells[heading].by_seed:
            raise UserError(f"no finished run of {', '.join(labels)} for {heading}")
        return row.cells[heading]


def tabulate(study: Study, runs: list[Run]) -> Table:
    """Of all the study's runs, in the order of the rows.

    UserError for a metric that no run has, and for runs of one cell that differ in more than their seed.
    """
    unfinished, runs = [run for run in runs if not run.finished], [run for run in runs if run.status != STRAY]
    columns = {heading: _settled(column) for heading, column in (study.report.columns or _usual(runs)).items()}
    taken = {key for column in columns.values() for key in column.where}
    keys = study.report.rows or tuple(key for key in varying(runs) if key not in taken)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if any(run.matches(column.where) for column in columns.values()):
            groups.setdefault(tuple(label(run.value(key)) for key in keys), []).append(run)
    rows = []
    for labels, group in groups.items():
        rows.append(Row(labels, {heading: _cell(column, group) for heading, column in columns.items()}))
    for heading, column in columns.items():
        _check_metric(column.metric, [run for run in runs if run.finished and run.matches(column.where)])
        _mark_best(rows, heading, column)
    unmatched = {
        name: found for name in BUDGETS if name not in study.report.varies and (found := _unmatched(rows, columns, name))
    }
    return Table(keys, columns, rows, unmatched, unfinished)


def complete(runs: list[Run], planned: list[Run]) -> list[Run]:
    """In the plan's order, with those of the plan that were never begun; then, as strays, what is not of the plan."""
    found, names = {run.name: run for run in runs}, {run.name for run in planned}
    others = [run for run in runs if run.name not in names]
    strays = [dataclasses.replace(run, status=STRAY) for run in others]
    return [*(found.get(run.name, run) for run in planned), *(strays if planned else others)]


def varying(runs: Iterable[Run]) -> list[str]:
    """The settings, but for the seed, in which runs differ."""
    runs = list(runs)
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    return [key for key in keys if len({label(run.value(key)) for run in runs}) > 1]


def label(value) -> str:
    """A setting's value in a table; a long one is cut, and a digest tells it from others that begin like it."""
    if value is None:
        return "default"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 6]}… {hashlib.sha256(text.encode()).hexdigest()[:4]}"


def judge(study: Study, table: Table) -> tuple[list[tuple[str, bool]], str]:
    """-> the study's claims with whether each holds, and why the rest of them cannot be told yet, if so."""
    judged = []
    try:
        for sentence, holds in study.claims(table) if study.claims else ():
            judged.append((sentence, bool(holds)))
    except UserError as error:
        return judged, f"The other claims cannot be told: {error}."
    return judged, ""


def _settled(column: Column) -> Column:
    """With `better` filled in."""
    if column.better:
        return column
    name = column.metric.split("/")[1 if "/" in column.metric else 0].removesuffix("_wiped")
    if name not in HIGHER + LOWER:
        raise UserError(f"say whether {column.metric} is better 'higher' or 'lower' in report['columns']")
    return Column(column.metric, column.where, "higher" if name in HIGHER else "lower", column.digits)


def _usual(runs: list[Run]) -> dict[str, Column]:
    for heading, metric in (("accuracy", "eval/accuracy"), ("bits per byte", "eval/bits_per_byte")):
        if any(run.number(metric) is not None for run in runs):
            return {heading: Column(metric)}
    raise UserError("no finished run has eval/accuracy or eval/bits_per_byte; name a metric in report['columns']")


def _cell(column: Column, runs: list[Run]) -> Cell:
    """Of a row's runs those that the column is about. UserError for two of one seed."""
    runs = [run for run in runs if run.matches(column.where)]
    measured: dict[int, tuple[float, Run]] = {}
    for run in runs:
        number = run.number(column.metric)
        if not run.finished or number is None:
            continue
        if run.seed in measured:
            other = measured[run.seed][1]
            differ = ", ".join(varying([run, other])) or "only their names"
            raise UserError(
                f"runs {other.name} and {run.name} fall in one cell and differ in {differ}: name it in report['rows']"
            )
        measured[run.seed] = number, run
    by_seed = {seed: measured[seed][0] for seed in sorted(measured)}
    statuses = [run.status for run in runs if not run.finished]
    begun = [status for status in statuses if status != MISSING]
    status = FAILED if FAILED in begun else begun[0] if begun else NOT_BEGUN if statuses else "no value" if runs else ""
    return Cell(by_seed, len(runs), status, _ranges([run for _, run in measured.values()]))


def _check_metric(metric: str, runs: list[Run]) -> None:
    if runs and all(run.number(metric) is None for run in runs):
        known = dict.fromkeys(name for run in runs for name in ("seconds", *run.budget, *run.result))
        raise UserError(f"no run has the metric {metric!r}{nearest(metric, known)}")


def _mark_best(rows: list[Row], heading: str, column: Column) -> None:
    """The cells whose mean, as printed, is the best; none if all are alike."""
    means = {i: round(row.cells[heading].mean, column.digits) for i, row in enumerate(rows) if row.cells[heading].by_seed}
    if len(set(means.values())) < 2:
        return
    best = max(means.values()) if column.better == "higher" else min(means.values())
    for i in (i for i, mean in means.items() if mean == best):
        rows[i].cells[heading] = dataclasses.replace(rows[i].cells[heading], best=True)


def _ranges(runs: list[Run]) -> dict[str, tuple[float, float]]:
    found = {}
    for budget in BUDGETS:
        if numbers := [run.budget[budget] for run in runs if budget in run.budget]:
            found[budget] = (min(numbers), max(numbers))
    return found


def _unmatched(rows: list[Row], columns: Iterable[str], budget: str) -> list[str]:
    """Between which rows a budget differs by more than MATCHED allows, in each column where it does."""
    found: dict[str, list[str]] = {}
    for heading in columns:
        known = [(row.cells[heading].budget[budget], row.name) for row in rows if budget in row.cells[heading].budget]
        if len(known) < 2:
            continue
        least, low = min((low, name) for (low, _), name in known)
        most, high = max((high, name) for (_, high), name in known)
        if most > MATCHED * least:
            found.setdefault(f"from {least:,.0f} ({low}) to {most:,.0f} ({high})", []).append(heading)
    return [text if len(found) == 1 else f"{text} in {', '.join(headings)}" for text, headings in found.items()]
