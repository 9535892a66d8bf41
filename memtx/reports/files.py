"""Findings as files: a folder for reading and for a paper, and the README.md of a study."""

from __future__ import annotations

import os
import re
from pathlib import Path

from memtx.errors import UserError
from memtx.reports.draw import png, svg
from memtx.reports.findings import Findings, commands, facts
from memtx.reports.formats import as_csv, escaped, latex, markdown
from memtx.reports.page import page
from memtx.training.workdir import write_atomic

END = "<!-- end -->"  # of what is written here in a README.md


def write(found: Findings, folder: Path) -> Path:
    """index.html, table.md, table.tex, table.csv, and each figure as png and svg. Returns the page's path."""
    html = page(found)  # first: nothing is written if it cannot be made
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, form in (("md", markdown), ("tex", latex), ("csv", as_csv)):
        write_atomic(folder / f"table.{suffix}", form(found.table))
    for picture in found.pictures:
        write_atomic(folder / f"{_stem(picture.name)}.svg", svg(picture))
        (folder / f"{_stem(picture.name)}.png").write_bytes(png(picture))
    write_atomic(folder / "index.html", html)
    return folder / "index.html"


def publish(found: Findings, results: Path) -> Path:
    """Figures to `results`, and the rest to the README.md beside the sweep file, whose path it returns.

    What stands there after the end mark, the verdict in words, is left as it is. UserError if there is no such mark.
    """
    readme = found.study.path.with_name("README.md")
    _, mark, after = readme.read_text(encoding="utf-8").partition(END) if readme.exists() else ("", END, "\n")
    if not mark:
        raise UserError(f"{readme} needs the line {END}: the report is written before it, what follows is kept")
    for picture in found.pictures:
        (results / f"{_stem(picture.name)}.png").write_bytes(png(picture))
    question = f"# {found.study.title}\n\n{found.study.question}\n\n"
    write_atomic(readme, question + section(found, results) + END + after)
    return readme


def section(found: Findings, results: Path) -> str:
    """Table, verdicts, figures and how to make them again, in Markdown. results: where the figures are."""
    folder = os.path.relpath(results, found.study.path.parent)
    verdicts = [f"- {'**holds**' if holds else '**does not hold**'}: {escaped(sentence)}" for sentence, holds in found.judged]
    if found.undecided:
        verdicts.append(f"- {escaped(found.undecided)}")
    figures = [f"![{picture.name}]({folder}/{_stem(picture.name)}.png)" for picture in found.pictures]
    said = "; ".join(f"{name}: {text}" for name, text in facts(found).items())
    again = "\n".join(["```", *commands(found, results), "```"])
    parts = [markdown(found.table).strip(), "\n".join(verdicts), *figures, f"{said[0].upper()}{said[1:]}.", again]
    return "\n\n".join(filter(None, parts)) + "\n"


def _stem(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "figure"
