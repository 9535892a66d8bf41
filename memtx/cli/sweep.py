"""`memtx sweep`."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from memtx.cli.options import needed, parse_settings

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
    from memtx.sweep.run import run_sweep

    path = Path(needed(values, "sweep", "experiments/mechanisms/sweep.py"))
    workdir = Path(needed(values, "workdir", "runs/mechanisms"))
    only = values["only"].value
    if values["run"].value:
        sys.exit(_one(path, values["run"].value, workdir))
    if values["list"].value:
        _list(path, only, workdir)
        return
    states = run_sweep(
        path,
        workdir,
        parallel=values["parallel"].value,
        only=only,
        retry=values["retry"].value,
        executor_kind=values["executor"].value,
        settings=parse_settings(values["slurm"].value, "slurm"),
    )
    if "waiting" in states.values():
        print("stopped; give the same command to go on")
        sys.exit(130)
    if "failed" in states.values():
        print(f"what they printed is in {workdir}/runs/NAME/log.txt; --retry runs failed ones again")
        sys.exit(1)


def _one(path: Path, name: str, workdir: Path) -> int:
    """-> exit status"""
    from memtx.sweep.execute import execute
    from memtx.sweep.schedule import BUSY
    from memtx.sweep.spec import load_sweep
    from memtx.training.workdir import InUse

    try:
        status = execute(load_sweep(path), name, workdir, say=lambda line: print(line, flush=True))
    except InUse as error:
        print(error)
        return BUSY
    return 1 if status == "failed" else 0


def _list(path: Path, only: str, workdir: Path) -> None:
    from memtx.sweep.schedule import choose, states
    from memtx.sweep.spec import load_sweep

    for name, state in states(choose(load_sweep(path), only), workdir).items():
        print(f"{state:8}  {name}")
