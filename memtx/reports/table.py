"""The table of a study: means and standard deviations over seeds, comparison of budgets, and claims.

A row is a combination of settings, a column is a metric, and a cell has a value for each seed. A cell also counts its planned
runs that have not finished.
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

NOT_STARTED = "–"
STRAY = "not in the sweep file, left out"
MATCHED = 1.05  # a comparison is unfair if the ratio of budgets is larger
# The metrics that are better when they are higher, and those that are better when they are lower.
HIGHER = ("accuracy", "exact", "exact_match", "f1", "bleu", "chrf", "rouge_l", "tokens_per_s")
LOWER = ("loss", "perplexity", "bits_per_byte", "seconds")
LONGEST = 32  # characters of a row's label


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    by_seed  the measured value of each seed
    planned  the number of runs that the cell should have
    status   the status of a run that has not finished, or ""
    budget   the (minimum, maximum) of each budget among the runs
    """

    by_seed: Mapping[int, float]
    planned: int
    status: str = ""
    budget: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    best: bool = False

    @property
    def started(self) -> bool:
        """Whether a run of the cell has started."""
        return bool(self.by_seed) or self.status not in (NOT_STARTED, "")

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds, or None for one seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def text(self, digits: int) -> str:
        """Return the cell as text, such as "0.912 ± 0.004 (3)", or its status if there is no value."""
        if not self.by_seed:
            return self.status
        spread = "" if self.std is None else f" ± {self.std:,.{digits}f}"
        seeds = len(self.by_seed)
        return f"{self.mean:,.{digits}f}{spread} ({seeds if seeds == self.planned else f'{seeds} of {self.planned}'})"


@dataclass(frozen=True)
class Row:
    """A row of the table: the values of its settings, and the cells by heading."""

    labels: tuple[str, ...]
    cells: dict[str, Cell]

    @property
    def name(self) -> str:
        """The labels joined into one string."""
        return ", ".join(self.labels)

    def budget(self, name: str) -> tuple[float, float] | None:
        """Return the minimum and maximum of a budget among the row's runs, or None if no run has it."""
        ranges = [cell.budget[name] for cell in self.cells.values() if name in cell.budget]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


@dataclass(frozen=True)
class Table:
    """The table of a study."""

    keys: tuple[str, ...]  # the settings that label the rows
    columns: Mapping[str, Column]
    rows: list[Row]
    unmatched: Mapping[str, list[str]] = field(default_factory=dict)  # budget -> descriptions of its differences
    unfinished: list[Run] = field(default_factory=list)

    def started(self) -> Table:
        """Return the table without rows and columns in which no run has started."""
        columns = {name: column for name, column in self.columns.items() if any(row.cells[name].started for row in self.rows)}
        rows = [row for row in self.rows if any(cell.started for cell in row.cells.values())]
        return dataclasses.replace(self, columns=columns, rows=rows)

    def __getitem__(self, key) -> Cell:
        """Return the cell of a row and a column, `table["deltanet", "updates"]`: the labels of the row, then the heading.

        Raises UserError if there is no such cell or it has no finished run.
        """
        *labels, heading = key if isinstance(key, tuple) else (key,)
        labels, heading = list(map(label, labels)), str(heading)
        row = next((row for row in self.rows if row.labels == tuple(labels)), None)
        if row is None or heading not in self.columns:
            name, known = ", ".join((*labels, heading)), [f"{row.name}, {name}" for row in self.rows for name in self.columns]
            raise UserError(f"the table has no {name!r}{nearest(name, known)}")
        if not row.cells[heading].by_seed:
            raise UserError(f"no finished run of {', '.join(labels)} for {heading}")
        return row.cells[heading]


def tabulate(study: Study, runs: list[Run]) -> Table:
    """Arrange the study's runs in a table. Rows have the order of `runs`.

    Raises UserError for a metric that no run has, and if runs in one cell differ in more than their seed.
    """
    unfinished, runs = [run for run in runs if not run.finished], [run for run in runs if run.status != STRAY]
    columns = {heading: _fill_better(column) for heading, column in (study.report.columns or _choose_columns(runs)).items()}
    taken = {key for column in columns.values() for key in column.where}
    keys = study.report.rows or tuple(key for key in varying(runs) if key not in taken)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if any(run.matches(column.where) for column in columns.values()):
            groups.setdefault(tuple(label(run.value(key)) for key in keys), []).append(run)
    rows = []
    for labels, group in groups.items():
        rows.append(Row(labels, {heading: _build_cell(column, group) for heading, column in columns.items()}))
    for heading, column in columns.items():
        _check_metric(column.metric, [run for run in runs if run.finished and run.matches(column.where)])
        _mark_best(rows, heading, column)
    unmatched = {
        name: found for name in BUDGETS if name not in study.report.varies and (found := _find_unmatched(rows, columns, name))
    }
    return Table(keys, columns, rows, unmatched, unfinished)


def complete(runs: list[Run], planned: list[Run]) -> list[Run]:
    """Return the planned runs in order, including runs that never started, and then all other runs with status STRAY."""
    found, names = {run.name: run for run in runs}, {run.name for run in planned}
    others = [run for run in runs if run.name not in names]
    strays = [dataclasses.replace(run, status=STRAY) for run in others]
    return [*(found.get(run.name, run) for run in planned), *(strays if planned else others)]


def varying(runs: Iterable[Run]) -> list[str]:
    """Return the settings in which runs differ, without the seed."""
    runs = list(runs)
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    return [key for key in keys if len({label(run.value(key)) for run in runs}) > 1]


def label(value) -> str:
    """Return the value of a setting as a label. A long value is cut and gets a digest to distinguish it from similar values."""
    if value is None:
        return "default"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 6]}… {hashlib.sha256(text.encode()).hexdigest()[:4]}"


def judge(study: Study, table: Table) -> tuple[list[tuple[str, bool]], str]:
    """Return the study's claims and whether each is true, and the reason if the remaining ones cannot be judged yet."""
    judged = []
    try:
        for sentence, holds in study.claims(table) if study.claims else ():
            judged.append((sentence, bool(holds)))
    except UserError as error:
        return judged, f"The other claims cannot be judged: {error}."
    return judged, ""


def _fill_better(column: Column) -> Column:
    """Fill in `better` from the metric's name."""
    if column.better:
        return column
    name = column.metric.split("/")[1 if "/" in column.metric else 0].removesuffix("_wiped")
    if name not in HIGHER + LOWER:
        raise UserError(f"set better='higher' or 'lower' for {column.metric} in report['columns']")
    return Column(column.metric, column.where, "higher" if name in HIGHER else "lower", column.digits)


def _choose_columns(runs: list[Run]) -> dict[str, Column]:
    for heading, metric in (("accuracy", "eval/accuracy"), ("bits per byte", "eval/bits_per_byte")):
        if any(run.number(metric) is not None for run in runs):
            return {heading: Column(metric)}
    raise UserError("no finished run has eval/accuracy or eval/bits_per_byte; name a metric in report['columns']")


def _build_cell(column: Column, runs: list[Run]) -> Cell:
    """Build a cell from the runs of a row that match the column. Raises UserError if two runs have the same seed."""
    runs = [run for run in runs if run.matches(column.where)]
    measured: dict[int, tuple[float, Run]] = {}
    for run in runs:
        number = run.number(column.metric)
        if not run.finished or number is None:
            continue
        if run.seed in measured:
            other = measured[run.seed][1]
            differ = ", ".join(varying([run, other])) or "only their names"
            raise UserError(f"runs {other.name} and {run.name} share a cell but differ in {differ}: name it in report['rows']")
        measured[run.seed] = number, run
    by_seed = {seed: measured[seed][0] for seed in sorted(measured)}
    statuses = [run.status for run in runs if not run.finished]
    started = [status for status in statuses if status != MISSING]
    status = FAILED if FAILED in started else started[0] if started else NOT_STARTED if statuses else "no value" if runs else ""
    return Cell(by_seed, len(runs), status, _find_ranges([run for _, run in measured.values()]))


def _check_metric(metric: str, runs: list[Run]) -> None:
    if runs and all(run.number(metric) is None for run in runs):
        known = dict.fromkeys(name for run in runs for name in ("seconds", *run.budget, *run.result))
        raise UserError(f"no run has the metric {metric!r}{nearest(metric, known)}")


def _mark_best(rows: list[Row], heading: str, column: Column) -> None:
    """Mark the cells with the best printed mean, unless all means are equal."""
    means = {i: round(row.cells[heading].mean, column.digits) for i, row in enumerate(rows) if row.cells[heading].by_seed}
    if len(set(means.values())) < 2:
        return
    best = max(means.values()) if column.better == "higher" else min(means.values())
    for i in (i for i, mean in means.items() if mean == best):
        rows[i].cells[heading] = dataclasses.replace(rows[i].cells[heading], best=True)


def _find_ranges(runs: list[Run]) -> dict[str, tuple[float, float]]:
    found = {}
    for budget in BUDGETS:
        if numbers := [run.budget[budget] for run in runs if budget in run.budget]:
            found[budget] = (min(numbers), max(numbers))
    return found


def _find_unmatched(rows: list[Row], columns: Iterable[str], budget: str) -> list[str]:
    """Describe the rows and columns in which a budget differs by more than MATCHED."""
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
