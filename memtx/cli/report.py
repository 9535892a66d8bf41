"""Report on a sweep or a single run: tables, figures, judged claims and a page.

  memtx report --sweep=experiments/mqar/sweep.py --workdir=runs/mqar
  memtx report --sweep=experiments/mqar/sweep.py --results=experiments/mqar/results
  memtx report --workdir=runs/xl

Without --sweep, the page shows the single run in --workdir, which may be unfinished: its curves, the last evaluation, the
health of the memory, a sample and the config.

With --sweep, the runs come from --workdir, or from --results. With --check, the exit status is 1 if a cell of the table
disagrees.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from memtx.cli.options import needed
from memtx.files.remote import local

if TYPE_CHECKING:
    from memtx.reports import Findings

FOLDERS = {
    "workdir": "The folder `DIR` of `memtx sweep`, or of a run. The page goes to DIR/report.",
    "results": "Use the runs that are stored in `DIR` instead, and write the README.md beside the sweep file.",
    "store": "Store the runs of --workdir in `DIR` as small files, and write the README.md beside the sweep file.",
    "check": "Compare the table with that of the runs that are stored in `DIR`.",
    "out": "Write the page to `DIR`.",
}


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    sweep = "The sweep `FILE`, which may declare `report` and `claims`. Without it, the report is on a single run."
    for name, text in {"sweep": sweep, **FOLDERS}.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    formats = ["table", "markdown", "latex", "csv"]
    text = "How to print the table. All except table print nothing else and write no files."
    flags.DEFINE_enum("format", "table", formats, text, flag_values=values)


def act(values) -> None:
    """Print the report and write its files. Raises UserError for a mistake that the user can fix.

    Exits with status 1 if --check finds a cell that disagrees.
    """
    from memtx import reports
    from memtx.reports.formats import as_csv, console, latex, markdown

    given = {name: local(value) for name in FOLDERS if (value := values[name].value)}
    if not values["sweep"].value and "workdir" in given and given.keys() <= {"workdir", "out"} and not values["format"].present:
        page = reports.write_single(reports.from_run(given["workdir"]), given.get("out") or given["workdir"] / "report")
        print(f"page    {page}")
        return
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
        out.print(f"page    {reports.write(found, folder, given.get('workdir'))}", markup=False, soft_wrap=True)


def _wide_enough(table: Table) -> Console:
    """Return a console that is wide enough for the table, since a terminal can scroll or be widened."""
    out = Console(highlight=False)
    return Console(
        highlight=False, width=max(out.width, out.measure(table, options=out.options.update(max_width=1000)).maximum)
    )


def _check(stored: Findings, again: Findings, out: Console) -> None:
    """Print the verdict on every cell. Exits with status 1 unless all agree."""
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
