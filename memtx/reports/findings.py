"""The contents of a report, independent of its format: table, judged claims, figures, and facts about the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from memtx.reports.figures import Picture, pictures
from memtx.reports.health import tabulate_health
from memtx.reports.runs import Run
from memtx.reports.study import Study
from memtx.reports.table import STRAY, Table, complete, judge, tabulate

NOT_INSTALLED = "not installed"  # the version that memtx.training.provenance records for a missing package


@dataclass(frozen=True)
class Findings:
    """The contents of a report.

    judged     each claim and whether it is true
    undecided  why the remaining claims cannot be judged yet, or ""
    health     tables of the health of the memories, if runs have measured it
    """

    study: Study
    runs: list[Run]
    table: Table
    judged: list[tuple[str, bool]]
    undecided: str
    pictures: list[Picture]
    health: list[Table]


def conclude(study: Study, runs: list[Run]) -> Findings:
    """Build table, verdicts and figures of a study.

    Raises UserError for a metric that no run has, and if runs in one cell of the table differ in more than their seed.
    """
    runs = complete(runs, study.planned)
    table = tabulate(study, runs)
    return Findings(study, runs, table, *judge(study, table), pictures(study, runs), tabulate_health(study, runs))


def commands(found: Findings, results: Path | None = None, workdir: Path | None = None) -> list[str]:
    """Return the commands that repeat the runs and the report.

    results: stored runs to compare the new ones with. workdir: the folder of the runs, by default runs/ and the name of the
    study's folder.
    """
    workdir = workdir or Path("runs") / found.study.path.resolve().parent.name
    given = f"--sweep={found.study.path.as_posix()} --workdir={workdir.as_posix()}"
    return [
        f"memtx sweep {given} --parallel=2 &&",
        f"memtx report {given}" + (f" --check={results.as_posix()}" if results else ""),
    ]


def facts(found: Findings) -> dict[str, str]:
    """Return facts about the runs by name: runs, seeds, time, machine, versions and code."""
    runs = [run for run in found.runs if run.finished]
    seconds = [run.seconds for run in runs]
    ends = dict.fromkeys((duration(min(seconds, default=0)), duration(max(seconds, default=0))))
    each = f", {' to '.join(ends)} each" if len(runs) > 1 else ""
    parts = {
        "runs": f"{len(runs)} of {sum(run.status != STRAY for run in found.runs)}",
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
        "time": f"{duration(sum(seconds))} in all{each}" if any(seconds) else "",
    }
    return {name: text for name, text in (parts | origin(runs)).items() if text}


def origin(runs: Iterable[Run]) -> dict[str, str]:
    """Return the machines, the versions and the code of runs as text, "" if they are not known."""
    runs = list(runs)
    return {
        "machine": _join(_describe_machine(run.machine) for run in runs),
        "versions": _join(
            ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != NOT_INSTALLED) for run in runs
        ),
        "code": _join(_describe_code(run.code) for run in runs),
    }


def duration(seconds: float) -> str:
    """Return a duration as text, such as "40 s", "12 min" or "3 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _describe_machine(machine: Mapping) -> str:
    parts = [machine.get("cpu")]
    for name, one, many in (("cores", "core", "cores"), ("memory_gb", "GB", "GB"), ("devices", "device", "devices")):
        if number := machine.get(name):
            parts.append(f"{number} {one if number == 1 else many}")
    return ", ".join(filter(None, [*parts, machine.get("platform")]))


def _describe_code(code: Mapping) -> str:
    version, commit = code.get("version"), code.get("commit")
    parts = [
        version != NOT_INSTALLED and version and f"memtx {version}",
        commit and f"commit {commit[:8]}",
        code.get("dirty") and "with changes",
    ]
    return ", ".join(filter(None, parts))


def _join(texts: Iterable[str]) -> str:
    """Join the distinct texts that are not empty."""
    return "; ".join(dict.fromkeys(text for text in texts if text))
