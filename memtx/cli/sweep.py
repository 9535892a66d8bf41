"""`memtx sweep`."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from memtx.cli.options import needed, settings

HELP = """\
  memtx sweep     the runs of a sweep file, several at a time; what is finished is not run again
      --sweep=FILE  --workdir=DIR     each run has DIR/runs/NAME; CONTRIBUTING.md says what a sweep file is
      --parallel=N                    --only='*memory=xl*': runs with such names   --retry: failed ones too   --list: names only
      --executor=process|local|slurm  with submitit; --slurm=partition=gpu,timeout_min=60,gpus_per_node=1
"""


def define(values):
    flags.DEFINE_string("sweep", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_integer("parallel", 1, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("only", "*", "", flag_values=values)
    flags.DEFINE_bool("retry", False, "", flag_values=values)
    flags.DEFINE_bool("list", False, "", flag_values=values)
    flags.DEFINE_string("executor", "process", "", flag_values=values)
    flags.DEFINE_string("slurm", None, "", flag_values=values)
    flags.DEFINE_string("run", None, "", flag_values=values)  # one run, in this process: what the jobs are


def act(values):
    from memtx.sweep.jobs import executor
    from memtx.sweep.schedule import choose, claim
    from memtx.sweep.spec import load_sweep

    sweep = load_sweep(needed(values, "sweep", "experiments/mechanisms/sweep.py"))
    workdir = Path(needed(values, "workdir", "runs/mechanisms"))
    if values["run"].value:
        sys.exit(_one(sweep, values["run"].value, workdir))
    names = choose(sweep, values["only"].value)
    console = Console(soft_wrap=True, highlight=False)
    if values["list"].value:
        _list(names, workdir, console)
        return
    parallel = values["parallel"].value
    jobs = executor(values["executor"].value, parallel, workdir, settings(values["slurm"].value, "slurm") or {})
    claim(sweep, workdir)
    sys.exit(_all(sweep, names, workdir, jobs, parallel, values["retry"].value, console))


def _one(sweep, name: str, workdir: Path) -> int:
    from memtx.sweep.execute import execute
    from memtx.sweep.schedule import BUSY
    from memtx.training.workdir import InUse

    try:
        status = execute(sweep, name, workdir, say=lambda line: print(line, flush=True))
    except InUse as error:
        print(error)
        return BUSY
    return 1 if status == "failed" else 0


def _all(sweep, names: list[str], workdir: Path, jobs, parallel: int, retry: bool, console: Console) -> int:
    """-> exit status: 1 if runs failed, 130 if it was stopped."""
    from memtx.sweep.board import Board
    from memtx.sweep.schedule import Scheduler

    with Board(console, names, workdir) as board:
        scheduler = Scheduler(sweep, workdir, jobs, parallel, board.changed)
        done = scheduler.run(names, retry=retry, tick=board.refresh)
    failed = [name for name, state in scheduler.settled.items() if state == "failed"]
    if console.is_terminal:
        console.print(board.table())
    else:
        console.print(board.summary())
    if not done:
        console.print("stopped; give the same command to go on")
        return 130
    if failed:
        console.print(f"what they printed is in {workdir}/runs/NAME/log.txt; --retry runs failed ones again")
    return 1 if failed else 0


def _list(names: list[str], workdir: Path, console: Console) -> None:
    from memtx.sweep.schedule import states

    for name, state in states(names, workdir).items():
        console.print(f"{state:8}  {name}", markup=False)
