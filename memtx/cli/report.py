"""`memtx report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from memtx.cli.options import needed

if TYPE_CHECKING:
    from memtx.reports import Findings

HELP = """\
  memtx report    tables, figures and a page of a sweep; best in bold, mean ± std over seeds
      --sweep=FILE                    experiments/X/sweep.py, which may declare `report` and `claims`
      --workdir=DIR                   of `memtx sweep`: writes DIR/report, or --out=DIR
      --results=DIR                   stored runs instead, experiments/X/results: writes the README.md beside FILE
      --store=DIR                     keeps the workdir's runs there as small files, then as --results
      --check=DIR                     does the table agree with that of the runs stored there? exit status 0 or 1
      --format=table|markdown|latex|csv
"""


FOLDERS = ("workdir", "results", "store", "check", "out")


def define(values):
    for name in ("sweep", *FOLDERS):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "markdown", "latex", "csv"], "", flag_values=values)


def act(values):
    from memtx import reports
    from memtx.reports.formats import as_csv, console, latex, markdown

    given = {name: Path(value) for name in FOLDERS if (value := values[name].value)}
    study = reports.load_study(Path(needed(values, "sweep", "experiments/mqar/sweep.py")))
    if "results" not in given:
        needed(values, "workdir", "runs/mqar")
    runs = reports.from_results(given["results"]) if "results" in given else reports.from_workdir(given["workdir"])
    found = reports.conclude(study, runs)
    if (form := values["format"].value) != "table":
        print({"markdown": markdown, "latex": latex, "csv": as_csv}[form](found.table), end="")
        return
    out = _wide_enough(shown := console(found.table))
    out.print(shown)
    for sentence, holds in found.judged:
        out.print(f"{'holds         ' if holds else 'does not hold '}  {sentence}", markup=False)
    if found.undecided:
        out.print(found.undecided, markup=False)
    if "check" in given:
        _check(reports.conclude(study, reports.from_results(given["check"])), found, out)
        return
    if "store" in given:
        reports.store(runs, given["store"])
        found = reports.conclude(study, reports.from_results(given["store"]))
    if folder := given.get("store") or given.get("results"):
        out.print(f"readme  {reports.publish(found, folder)}", markup=False, soft_wrap=True)
    if folder := given.get("out") or ("workdir" in given and given["workdir"] / "report"):
        out.print(f"page    {reports.write(found, folder)}", markup=False, soft_wrap=True)


def _wide_enough(table: Table) -> Console:
    """A console that breaks no cell: a terminal can scroll or be widened."""
    out = Console(highlight=False)
    return Console(
        highlight=False, width=max(out.width, out.measure(table, options=out.options.update(max_width=1000)).maximum)
    )


def _check(stored: Findings, again: Findings, out: Console) -> None:
    """Shows every cell's verdict. Exits with 1 unless all agree."""
    from memtx.reports.check import compare

    cells = compare(stored.table, again.table, stored.study.report.floor)
    shown = Table(
        caption="a mean agrees if it is within 2 stored standard deviations of the stored mean, or within report['floor']; "
        "speeds are not compared"
    )
    for name in ("row", "column", "stored", "again", "allowed", "verdict"):
        shown.add_column(name, justify="right" if name in ("stored", "again", "allowed") else "left")
    for cell in cells:
        again_text = "" if cell.again is None else f"{cell.again:.4f}"
        shown.add_row(cell.row, cell.column, f"{cell.stored:.4f}", again_text, f"± {cell.allowed:.4f}", cell.verdict)
    out.print(shown)
    agree = sum(cell.agrees for cell in cells)
    out.print(f"{agree} of {len(cells)} cells agree")
    if agree < len(cells):
        sys.exit(1)
