"""A self-contained HTML page with question, verdicts, table, figures, and all runs."""

from __future__ import annotations

import json
from importlib import resources

from memtx.errors import UserError
from memtx.reports.draw import inline_svg
from memtx.reports.findings import Findings, commands, duration, facts
from memtx.reports.formats import grid
from memtx.reports.health import explain
from memtx.reports.table import label, varying


def page(found: Findings) -> str:
    """Return the page as HTML. Raises UserError if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        raise UserError("a page needs jinja2: pip install 'memtx[report]'") from None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((resources.files("memtx.reports") / "page.html").read_text(encoding="utf-8"))
    keys = varying(found.runs)
    return template.render(
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
