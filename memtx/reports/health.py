"""The health of the memories in a report: the last `memory/...` values of the runs (see memtx.evaluation.health)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from memtx.evaluation.health import ENTRIES, GATES, MATRICES, WORDS
from memtx.reports.formats import Entry, Grid
from memtx.reports.runs import Run
from memtx.reports.study import Column, Report, Study
from memtx.reports.table import NOT_STARTED, Cell, Table, tabulate, varying

PREFIX = "memory/"
RANGE = ("_min", "_max")  # of gates
DIGITS = {"age": 0, "age_by_weight": 0, "drift": 4, "entry_norm": 1}  # others have 2


def tabulate_health(study: Study, runs: list[Run]) -> list[Table]:
    """Return a table for each kind of numbers that runs have measured: of entries, of matrices, and gates.

    A table has a row for each combination of settings. Values of single layers and the ranges of gates are left out.
    """
    runs = [run for run in runs if run.finished]
    return [_tabulate(study, runs, kind) for kind in _group(name for run in runs for name in run.result)]


def explain(headings: Iterable[str]) -> dict[str, str]:
    """Return an explanation of each heading of a table."""
    return {heading: WORDS.get(heading.replace(" ", "_"), "a number that a mechanism emits") for heading in headings}


def health_of_run(result: Mapping[str, float]) -> list[Grid]:
    """Return the tables of one run, with the ranges of gates and the values of single layers."""
    layers = {name.rpartition("/layer=")[2] for name in result if name.startswith(PREFIX) and "/layer=" in name}
    ends = {"_min": "least", "_max": "most"} | {f"/layer={n}": f"layer {n}" for n in sorted(layers, key=int)}
    found = []
    for names in _group(result):
        shown = {end: title for end, title in ends.items() if any(PREFIX + name + end in result for name in names)}
        rows = [[Entry(name.replace("_", " ")), *(_entry(result, name, end) for end in ("", *shown))] for name in names]
        found.append(Grid(1, ["", "mean", *shown.values()], rows, []))
    return found


def _entry(result: Mapping[str, float], name: str, end: str) -> Entry:
    value = result.get(PREFIX + name + end)
    return Entry("" if value is None else f"{value:,.{DIGITS.get(name, 2)}f}")


def _group(metrics: Iterable[str]) -> list[list[str]]:
    """Return the names of the numbers among the metrics: of entries, of matrices, and gates. Empty groups are left out."""
    names = {name.removeprefix(PREFIX) for name in metrics if name.startswith(PREFIX) and name.count("/") == 1}
    gates = [*GATES, *sorted(name for name in names - {*WORDS} if not name.endswith(RANGE))]
    kinds = [[name for name in kind if name in names] for kind in (ENTRIES, MATRICES, gates)]
    return [kind for kind in kinds if kind]


def _tabulate(study: Study, runs: list[Run], names: list[str]) -> Table:
    columns = {name.replace("_", " "): Column(PREFIX + name, better="higher", digits=DIGITS.get(name, 2)) for name in names}
    table = tabulate(dataclasses.replace(study, report=Report(tuple(varying(runs)), columns)), runs)
    rows = [dataclasses.replace(row, cells={name: _plain(cell) for name, cell in row.cells.items()}) for row in table.rows]
    return dataclasses.replace(table, rows=rows, unmatched={})


def _plain(cell: Cell) -> Cell:
    """Return a cell without budgets and without a mark: no value of these numbers is the best."""
    return Cell(cell.by_seed, cell.planned, "" if cell.by_seed else NOT_STARTED)
