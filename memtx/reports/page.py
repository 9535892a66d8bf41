"""Self-contained HTML pages of a study and of a single run, from one template."""

from __future__ import annotations

import json
from pathlib import Path

from memtx.files.pages import read_template
from memtx.reports.draw import inline_svg
from memtx.reports.findings import Findings, commands, duration, facts
from memtx.reports.formats import grid
from memtx.reports.health import explain, health_of_run
from memtx.reports.single import Single, curves, results
from memtx.reports.table import label, varying


def page(found: Findings, workdir: Path | None = None) -> str:
    """Return the page of a study as HTML: its question, verdicts, table, figures, and all runs.

    workdir: the folder of the runs, for the commands that repeat them. Raises UserError if jinja2 is not installed.
    """
    keys = varying(found.runs)
    return _render(
        title=found.study.title,
        paragraphs=[" ".join(part.split()) for part in found.study.question.split("\n\n") if part.strip()],
        judged=found.judged,
        undecided=found.undecided,
        grid=grid(found.table),
        health=[(grid(table), explain(table.columns)) for table in found.health],
        carried="The state that each run carries through its last evaluation.",
        pictures=[(picture.name, inline_svg(picture)) for picture in found.pictures],
        facts=facts(found) | {"config": f"{found.study.config}, with the overrides of each run below"},
        commands=commands(found, workdir=workdir),
        keys=keys,
        runs=[(run, [label(run.value(key)) for key in keys], duration(run.seconds)) for run in found.runs],
        overrides=[("all", json.dumps(found.study.common)), *((run.name, json.dumps(run.overrides)) for run in found.runs)],
    )


def single_page(found: Single) -> str:
    """Return the page of a single run as HTML. Raises UserError if jinja2 is not installed."""
    return _render(
        title=found.run.name,
        paragraphs=[found.progress],
        grid=results(found.run),
        health=[(shown, explain(row[0].text for row in shown.rows)) for shown in health_of_run(found.run.result)],
        carried="The state that the run carries through its last evaluation.",
        pictures=[(picture.name, inline_svg(picture)) for picture in curves(found.run)],
        facts=found.facts(),
        sample=found.sample,
        changed=found.keys(changed=True),
        config=found.keys(changed=False),
    )


def _render(**values) -> str:
    """Render the template. The parts that are not given are left out."""
    names = ("judged", "undecided", "grid", "pictures", "health", "sample", "commands", "changed", "config", "runs")
    return read_template("memtx.reports", "page.html").render(**dict.fromkeys(names) | values)
