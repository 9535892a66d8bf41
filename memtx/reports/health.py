"""The health of the memories in a report: the last `memory/...` values of the runs (see memtx.evaluation.health)."""

from __future__ import annotations

import dataclasses

from memtx.evaluation.health import WORDS
from memtx.reports.runs import Run
from memtx.reports.study import Column, Report, Study
from memtx.reports.table import NOT_STARTED, Cell, Table, tabulate, varying

PREFIX = "memory/"
RANGE = ("_min", "_max")  # of gates. They are in the files of the runs


def tabulate_health(study: Study, runs: list[Run]) -> Table | None:
    """Return a table with a row for each combination of settings and a column for each number, or None without numbers.

    Values of single layers and the ranges of gates are left out.
    """
    runs = [run for run in runs if run.finished]
    metrics = dict.fromkeys(name for run in runs for name in run.result if name.startswith(PREFIX) and name.count("/") == 1)
    columns = {
        _heading(name): Column(name, better="higher") for name in sorted(metrics, key=_order) if not name.endswith(RANGE)
    }
    if not columns:
        return None
    table = tabulate(dataclasses.replace(study, report=Report(tuple(varying(runs)), columns)), runs)
    rows = [
        dataclasses.replace(row, cells={heading: _plain(cell) for heading, cell in row.cells.items()}) for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows, unmatched={})


def explain(table: Table) -> dict[str, str]:
    """Return an explanation for each heading of the table."""
    names = {heading: column.metric.removeprefix(PREFIX) for heading, column in table.columns.items()}
    return {heading: WORDS.get(name, "the mean over layers and heads") for heading, name in names.items()}


def _heading(metric: str) -> str:
    return metric.removeprefix(PREFIX).replace("_", " ")


def _order(metric: str) -> tuple[int, str]:
    """Sort by the order of WORDS, and then the others by name."""
    name = metric.removeprefix(PREFIX)
    return ([*WORDS].index(name) if name in WORDS else len(WORDS)), name


def _plain(cell: Cell) -> Cell:
    """Return a cell without budgets and without a mark: no value of these numbers is the best."""
    return Cell(cell.by_seed, cell.planned, "" if cell.by_seed else NOT_STARTED)
