"""The health of the memories in a report: the last `memory/...` values of the runs (see memtx.evaluation.health)."""

from __future__ import annotations

import dataclasses

from memtx.evaluation.health import ENTRIES, GATES, MATRICES, WORDS
from memtx.reports.runs import Run
from memtx.reports.study import Column, Report, Study
from memtx.reports.table import NOT_STARTED, Cell, Table, tabulate, varying

PREFIX = "memory/"
RANGE = ("_min", "_max")  # of gates. They are in the files of the runs
DIGITS = {"age": 0, "age_by_weight": 0, "drift": 4, "entry_norm": 1}  # others have 2


def tabulate_health(study: Study, runs: list[Run]) -> list[Table]:
    """Return a table for each kind of numbers that runs have measured: of entries, of matrices, and gates.

    A table has a row for each combination of settings. Values of single layers and the ranges of gates are left out.
    """
    runs = [run for run in runs if run.finished]
    names = {
        name.removeprefix(PREFIX) for run in runs for name in run.result if name.startswith(PREFIX) and name.count("/") == 1
    }
    gates = [*GATES, *sorted(name for name in names - {*WORDS} if not name.endswith(RANGE))]
    kinds = [[name for name in kind if name in names] for kind in (ENTRIES, MATRICES, gates)]
    return [_tabulate(study, runs, kind) for kind in kinds if kind]


def explain(table: Table) -> dict[str, str]:
    """Return an explanation of each heading of the table."""
    names = {heading: column.metric.removeprefix(PREFIX) for heading, column in table.columns.items()}
    return {heading: WORDS.get(name, "a number that a mechanism emits") for heading, name in names.items()}


def _tabulate(study: Study, runs: list[Run], names: list[str]) -> Table:
    columns = {name.replace("_", " "): Column(PREFIX + name, better="higher", digits=DIGITS.get(name, 2)) for name in names}
    table = tabulate(dataclasses.replace(study, report=Report(tuple(varying(runs)), columns)), runs)
    rows = [dataclasses.replace(row, cells={name: _plain(cell) for name, cell in row.cells.items()}) for row in table.rows]
    return dataclasses.replace(table, rows=rows, unmatched={})


def _plain(cell: Cell) -> Cell:
    """Return a cell without budgets and without a mark: no value of these numbers is the best."""
    return Cell(cell.by_seed, cell.planned, "" if cell.by_seed else NOT_STARTED)
