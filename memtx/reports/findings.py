"""All that a report says, whatever its form: table, claims judged, pictures, and the facts of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from memtx.reports.figures import Picture, pictures
from memtx.reports.runs import Run
from memtx.reports.study import Study
from memtx.reports.table import STRAY, Table, complete, judge, tabulate

NOT_INSTALLED = "not installed"  # as memtx.training.provenance says it


@dataclass(frozen=True)
class Findings:
    """judged: each claim with whether it holds; undecided: why other claims cannot be told yet, or nothing."""

    study: Study
    runs: list[Run]
    table: Table
    judged: list[tuple[str, bool]]
    undecided: str
    pictures: list[Picture]


def conclude(study: Study, runs: list[Run]) -> Findings:
    """UserError for a metric that no run has, and for runs that the declared rows do not tell apart."""
    runs = complete(runs, study.planned)
    table = tabulate(study, runs)
    return Findings(study, runs, table, *judge(study, table), pictures(study, runs))


def commands(found: Findings, results: Path | None = None) -> list[str]:
    """That make the runs again, and this report of them; with results: that tell whether they agree with those."""
    given = f"--sweep={found.study.path.as_posix()} --workdir=runs/{found.study.path.parent.name}"
    return [
        f"memtx sweep {given} --parallel=2 &&",
        f"memtx report {given}" + (f" --check={results.as_posix()}" if results else ""),
    ]


def facts(found: Findings) -> dict[str, str]:
    """What a reader needs to know of how the numbers came about."""
    runs = [run for run in found.runs if run.finished]
    seconds = [run.seconds for run in runs]
    ends = dict.fromkeys((duration(min(seconds, default=0)), duration(max(seconds, default=0))))
    each = f", {' to '.join(ends)} each" if len(runs) > 1 else ""
    said = {
        "runs": f"{len(runs)} of {sum(run.status != STRAY for run in found.runs)}",
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
        "time": f"{duration(sum(seconds))} in all{each}" if any(seconds) else "",
        "machine": _all(_machine(run.machine) for run in runs),
        "versions": _all(
            ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != NOT_INSTALLED) for run in runs
        ),
        "code": _all(_code(run.code) for run in runs),
    }
    return {name: text for name, text in said.items() if text}


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _machine(machine: Mapping) -> str:
    said = [machine.get("cpu")]
    for name, one, many in (("cores", "core", "cores"), ("memory_gb", "GB", "GB"), ("devices", "device", "devices")):
        if number := machine.get(name):
            said.append(f"{number} {one if number == 1 else many}")
    return ", ".join(filter(None, [*said, machine.get("platform")]))


def _code(code: Mapping) -> str:
    version, commit = code.get("version"), code.get("commit")
    said = [
        version != NOT_INSTALLED and version and f"memtx {version}",
        commit and f"commit {commit[:8]}",
        code.get("dirty") and "with changes",
    ]
    return ", ".join(filter(None, said))


def _all(texts: Iterable[str]) -> str:
    """What runs have of this, once each."""
    return "; ".join(dict.fromkeys(text for text in texts if text))
