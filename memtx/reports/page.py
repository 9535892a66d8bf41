"""A self-contained HTML page with question, verdicts, table, figures, and all runs."""

from __future__ import annotations

import json

from memtx.files.pages import read_template
from memtx.reports.draw import inline_svg
from memtx.reports.findings import Findings, commands, duration, facts
from memtx.reports.formats import grid
from memtx.reports.health import explain
from memtx.reports.table import label, varying


def page(found: Findings) -> str:
    """Return the page as HTML. Raises UserError if jinja2 is not installed."""
    keys = varying(found.runs)
    return read_template("memtx.reports", "page.html").render(
        study=found.study,
        paragraphs=[" ".join(part.split()) for part in found.study.question.split("\n\n") if part.strip()],
        judged=found.judged,
        undecided=found.undecided,
        grid=grid(found.table),
        health=[(grid(table), explain(table)) for table in found.health],
        pictures=[(picture.name, inline_svg(picture)) for picture in found.pictures],
        facts=facts(found),
        commands=commands(found),
        keys=keys,
        runs=[(run, [label(run.value(key)) for key in keys], duration(run.seconds)) for run in found.runs],
        overrides=[("all", json.dumps(found.study.common)), *((run.name, json.dumps(run.overrides)) for run in found.runs)],
    )
