"""Formats of a table: Markdown, LaTeX (booktabs), CSV, and the console."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from memtx.reports.runs import BUDGETS
from memtx.reports.table import Table

TITLES = {"params": "parameters", "flops_per_token": "FLOPs per token", "state_bytes": "state bytes"}
UNMATCHED = "†"
NAMED = 4  # if there are more unfinished runs, they are only counted
LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "–": "--",
    "…": r"\dots{}",
}


@dataclass(frozen=True)
class Entry:
    """The text of a cell."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """The text of a printed table. The first `labels` columns have words, the others have numbers."""

    labels: int
    head: list[str]
    rows: list[list[Entry]]
    notes: list[str]


def grid(table: Table) -> Grid:
    """Return the text of a table, without rows and columns that have no runs yet."""
    table = table.started()
    budgets = [name for name in BUDGETS if any(row.budget(name) for row in table.rows)]
    head = [*titles(table.keys), *table.columns, *(TITLES[b] + (UNMATCHED if b in table.unmatched else "") for b in budgets)]
    rows = []
    for row in table.rows:
        cells = [(row.cells[heading], column.digits) for heading, column in table.columns.items()]
        numbers = [Entry(cell.text(digits), cell.best) for cell, digits in cells]
        rows.append([*map(Entry, row.labels), *numbers, *(Entry(_format_range(row.budget(b))) for b in budgets)])
    return Grid(len(table.keys), head, rows, notes(table))


def titles(keys: tuple[str, ...]) -> list[str]:
    """Return the last part of each dotted key, or the whole key if two keys share the last part."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [name if last[name := key.rpartition(".")[2]] == 1 else key for key in keys]


def notes(table: Table) -> list[str]:
    """Return the notes below a table: its notation, budgets that differ, and unfinished runs."""
    found = ["Mean ± sample standard deviation (number of seeds)."]
    if unmatched := [f"{TITLES[budget]} {text}" for budget, texts in table.unmatched.items() for text in texts]:
        found.append(f"{UNMATCHED} Not matched, more than 5 % apart: {'; '.join(unmatched)}.")
    for status in dict.fromkeys(run.status for run in table.unfinished):
        names = [run.name for run in table.unfinished if run.status == status]
        summary = f"{len(names)} {'run' if len(names) == 1 else 'runs'} {status}"
        found.append(f"{summary}: {', '.join(names)}." if len(names) <= NAMED else f"{summary}.")
    return found


def _format_range(numbers: tuple[float, float] | None) -> str:
    if numbers is None:
        return ""
    low, high = numbers
    return f"{low:,.0f}" if low == high else f"{low:,.0f}–{high:,.0f}"


def markdown(table: Table) -> str:
    """Return a table and its notes in Markdown."""
    shown = grid(table)

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    def cell(entry: Entry) -> str:
        return f"**{escaped(entry.text)}**" if entry.bold else escaped(entry.text)

    rule = line(["---"] * shown.labels + ["---:"] * (len(shown.head) - shown.labels))
    rows = [line(map(cell, row)) for row in shown.rows]
    return "\n".join([line(cell(Entry(name)) for name in shown.head), rule, *rows, "", escaped(" ".join(shown.notes)), ""])


def escaped(text: str) -> str:
    """Escape text for Markdown. Underscores within words need no escape."""
    return re.sub(r"([\\|*`<\[])", r"\\\1", text)


def latex(table: Table) -> str:
    """Return a table and its notes in LaTeX with \\usepackage{booktabs}."""
    shown = grid(table)

    def cell(entry: Entry) -> str:
        words = "".join(LATEX.get(c, c) for c in entry.text)
        return f"\\textbf{{{words}}}" if entry.bold else words

    def line(cells) -> str:
        return " & ".join(cells) + r" \\"

    numbers = len(shown.head) - shown.labels
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{'l' * shown.labels}{'r' * numbers}}}",
            r"\toprule",
            line(cell(Entry(name)) for name in shown.head),
            r"\midrule",
            *(line(map(cell, row)) for row in shown.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(f"\\par{{\\footnotesize {cell(Entry(note))}}}" for note in shown.notes),
            "",
        ]
    )


def as_csv(table: Table) -> str:
    """Return a table as CSV with unrounded numbers: mean, standard deviation and number of seeds of each column."""
    table, out = table.started(), io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    measured = [f"{heading} {statistic}" for heading in table.columns for statistic in ("mean", "std", "seeds")]
    bounds = [f"{budget} {bound}" for budget in BUDGETS for bound in ("least", "most")]
    write([*table.keys, *measured, *bounds])
    for row in table.rows:
        cells = [row.cells[heading] for heading in table.columns]
        numbers = [n for cell in cells for n in (*((cell.mean, cell.std) if cell.by_seed else ("", "")), len(cell.by_seed))]
        write([*row.labels, *numbers, *(n for budget in BUDGETS for n in row.budget(budget) or ("", ""))])
    return out.getvalue()


def console(table: Table) -> RichTable:
    """Return a table and its notes for the console."""
    shown = grid(table)
    out = RichTable(caption=Text("\n".join(shown.notes)), caption_justify="left")
    for i, name in enumerate(shown.head):
        out.add_column(Text(name), justify="left" if i < shown.labels else "right", no_wrap=i < shown.labels)
    for row in shown.rows:
        out.add_row(*(Text(entry.text, "bold" if entry.bold else "") for entry in row))
    return out
