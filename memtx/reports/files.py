"""Files of a report: a folder with a page, tables and figures, and the README.md of a study."""

from __future__ import annotations

import os
import re
from pathlib import Path

from memtx.errors import UserError
from memtx.files.atomic import write_atomic
from memtx.reports.draw import png, svg
from memtx.reports.findings import Findings, commands, facts
from memtx.reports.formats import as_csv, escaped, latex, markdown
from memtx.reports.page import page, single_page
from memtx.reports.single import Single

END = "<!-- end -->"  # the end of the generated part of a README.md


def write(found: Findings, folder: Path, workdir: Path | None = None) -> Path:
    """Write index.html, table.md, table.tex, table.csv, and each figure as png and svg. Returns the path of index.html.

    workdir: the folder of the runs, which the page names.
    """
    html = page(found, workdir)  # built first, so that nothing is written if it fails
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, form in (("md", markdown), ("tex", latex), ("csv", as_csv)):
        write_atomic(folder / f"table.{suffix}", form(found.table))
    for picture in found.pictures:
        write_atomic(folder / f"{_stem(picture.name)}.svg", svg(picture))
        (folder / f"{_stem(picture.name)}.png").write_bytes(png(picture))
    write_atomic(folder / "index.html", html)
    return folder / "index.html"


def write_single(found: Single, folder: Path) -> Path:
    """Write the page of a single run. Returns the path of index.html."""
    html = single_page(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "index.html", html)
    return folder / "index.html"


def publish(found: Findings, results: Path) -> Path:
    """Write figures to `results` and the report to the README.md beside the sweep file. Returns the path of README.md.

    Text after the line END (the conclusions) is kept. Raises UserError if README.md exists without this line.
    """
    readme = found.study.path.with_name("README.md")
    _, mark, after = readme.read_text(encoding="utf-8").partition(END) if readme.exists() else ("", END, "\n")
    if not mark:
        raise UserError(f"{readme} needs the line {END}: the report replaces the text before it and keeps the text after it")
    for picture in found.pictures:
        (results / f"{_stem(picture.name)}.png").write_bytes(png(picture))
    question = f"# {found.study.title}\n\n{found.study.question}\n\n"
    write_atomic(readme, question + section(found, results) + END + after)
    return readme


def section(found: Findings, results: Path) -> str:
    """Return Markdown with table, verdicts, figures and the commands for them. results: the folder of the figures."""
    folder = os.path.relpath(results, found.study.path.parent)
    verdicts = [f"- {'**holds**' if holds else '**does not hold**'}: {escaped(sentence)}" for sentence, holds in found.judged]
    if found.undecided:
        verdicts.append(f"- {escaped(found.undecided)}")
    figures = [f"![{picture.name}]({folder}/{_stem(picture.name)}.png)" for picture in found.pictures]
    summary = "; ".join(f"{name}: {text}" for name, text in facts(found).items())
    again = "\n".join(["```", *commands(found, results), "```"])
    parts = [markdown(found.table).strip(), "\n".join(verdicts), *figures, f"{summary[0].upper()}{summary[1:]}.", again]
    return "\n\n".join(filter(None, parts)) + "\n"


def _stem(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "figure"
