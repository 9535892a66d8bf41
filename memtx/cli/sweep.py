"""Execute the runs of a sweep file, several at a time.

  memtx sweep --sweep=experiments/mqar/sweep.py --workdir=runs/mqar --parallel=2

The same command continues a sweep that was stopped. Finished runs are not repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from memtx.cli.options import needed, parse_settings


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    string("sweep", None, "The sweep `FILE`; see docs/sweeps.md. Required.")
    string("workdir", None, "The folder `DIR` of the sweep. Each run goes to DIR/runs/NAME. Required.")
    flags.DEFINE_integer("parallel", 1, "Run N runs at a time.", lower_bound=1, flag_values=values)
    string("only", "*", "Run the runs whose names match the `PATTERN`, such as '*memory=xl*'.")
    flags.DEFINE_bool("retry", False, "Run failed runs again.", flag_values=values)
    flags.DEFINE_bool("list", False, "Print the names and states of the runs, and run none.", flag_values=values)
    string("executor", "process", "The `EXECUTOR`: process, or local or slurm through submitit.")
    string("slurm", None, "Settings for slurm: `key=value,...`, such as partition=gpu,timeout_min=60,gpus_per_node=1.")
    string("run", None, "Run only the run with this `NAME`, in this process. The jobs of a sweep use it.")


def act(values) -> None:
    """Execute or list the runs. Raises UserError for a mistake that the user can fix.

    Exits with status 1 if a run failed, and 130 if the sweep was interrupted.
    """
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
        print("stopped; give the same command to continue")
        sys.exit(130)
    if "failed" in states.values():
        print(f"the output of each run is in {workdir}/runs/NAME/log.txt; --retry runs the failed ones again")
        sys.exit(1)


def _one(path: Path, name: str, workdir: Path) -> int:
    """Execute one run in this process. Returns the exit status."""
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
