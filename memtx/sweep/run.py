"""A whole sweep, for `memtx sweep` and notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from memtx.files.remote import local
from memtx.sweep.board import Board
from memtx.sweep.jobs import make_executor
from memtx.sweep.schedule import Scheduler, choose, claim
from memtx.sweep.spec import load_sweep


def run_sweep(
    path: str | Path,
    workdir: str | Path,
    *,
    parallel: int = 1,
    only: str = "*",
    retry: bool = False,
    executor_kind: str = "process",
    settings: dict[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, str]:
    """Execute the unfinished runs and return the state of each run: "finished", "failed", or "waiting" after an interrupt.

    parallel: the number of simultaneous runs. only: a pattern of names. retry: repeat failed runs. executor_kind: "process",
    or, through submitit with its settings, "local" or "slurm". Raises UserError for a mistake in the sweep file, before any
    run.
    """
    sweep, workdir = load_sweep(path), local(workdir)
    names = choose(sweep, only)
    jobs = make_executor(executor_kind, parallel, workdir, settings or {})
    claim(sweep, workdir)
    with Board(console or Console(stderr=True, soft_wrap=True, highlight=False), names, workdir) as board:
        scheduler = Scheduler(sweep, workdir, jobs, parallel, board.changed)
        scheduler.run(names, retry=retry, tick=board.refresh)
    console = console or Console(soft_wrap=True, highlight=False)
    console.print(board.table() if console.is_terminal else board.summary())
    return {name: scheduler.settled.get(name, "waiting") for name in names}
