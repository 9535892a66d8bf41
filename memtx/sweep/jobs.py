"""Executors of a sweep's runs: processes on this machine, or submitit on a cluster."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from memtx.errors import UserError, check_known

PROGRAM = "memtx.cli"  # the module that runs a command
EXECUTORS = ("process", "local", "slurm")  # local: submitit's processes on this machine
SUBMITIT = "submitit"  # submitit's folder in the workdir
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")  # submitit prefixes all other settings


class Job(Protocol):
    """A started command."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the job runs."""
        ...

    def stop(self) -> None:
        """Ask the job to save and exit."""
        ...


class Executor(Protocol):
    """The interface of executors, which start jobs."""

    def start(self, command: Sequence[str], log: Path, slot: int) -> Job:
        """Start `memtx COMMAND` and append its output to `log`. No other job has this slot, 0 <= slot < parallel."""
        ...


def make_executor(kind: str, parallel: int, workdir: Path, settings: dict[str, Any]) -> Executor:
    """Build an executor. Raises UserError if the kind is unknown or does not have these settings."""
    check_known(kind, EXECUTORS, "executor")
    if kind == "process":
        if settings:
            raise UserError("--slurm is for --executor=slurm")
        return Processes(parallel)
    return Submitit(kind, workdir / SUBMITIT, settings)


class Processes:
    """An executor of local processes. Each has a share of the cores, and a new session, so that only the sweep gets Ctrl-C."""

    def __init__(self, parallel: int):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = [cores[slot::parallel] or [cores[slot % len(cores)]] for slot in range(parallel)] if cores else []

    def start(self, command: Sequence[str], log: Path, slot: int) -> Process:
        """Start a process (see `Executor.start`)."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        if self._cores:  # set now, before the process starts threads: they inherit the cores, and XLA counts them
            os.sched_setaffinity(process.pid, self._cores[slot])
        return Process(process)


class Process:
    """A job that is a process on this machine."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.poll = process.poll

    def stop(self) -> None:
        """Send SIGTERM unless the process has ended."""
        if self._process.poll() is None:
            self._process.terminate()


class Submitit:
    """An executor that submits jobs through submitit.

    settings: arguments of submitit's `update_parameters` (partition, timeout_min, cpus_per_task, gpus_per_node, ...).
    Raises UserError if submitit is not installed or rejects them.
    """

    def __init__(self, kind: str, folder: Path, settings: dict[str, Any]):
        try:
            import submitit
        except ImportError:
            raise UserError(f"--executor={kind} needs submitit: pip install '.[sweep]' in the checkout of memtx") from None
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=kind)
            given = {name if name in SHARED else f"{kind}_{name}": value for name, value in settings.items()}
            self._executor.update_parameters(name="memtx", **({"timeout_min": 60 * 24} | given))
        except (NameError, RuntimeError, AssertionError) as error:
            raise UserError(f"submitit: {error}".splitlines()[0]) from None

    def start(self, command: Sequence[str], log: Path, slot: int) -> Submitted:
        """Submit a job (see `Executor.start`). `slot` is ignored."""
        log.parent.mkdir(parents=True, exist_ok=True)
        return Submitted(self._executor.submit(run_submitted, list(command), str(log.absolute())))


class Submitted:
    """A job submitted through submitit."""

    def __init__(self, job):
        self._job = job

    def poll(self) -> int | None:
        """Return the exit status, 1 if submitit reports an exception, or None while the job waits or runs."""
        if not self._job.done():
            return None
        failure = self._job.exception()
        return 1 if failure else self._job.result()

    def stop(self) -> None:
        """Cancel the job."""
        self._job.cancel(check=False)


def run_submitted(command: Sequence[str], log: str) -> int:
    """Run `memtx COMMAND` in the job's process, append its output to `log`, and return the exit status."""
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # A cluster sends USR2 before the time limit or a preemption. The trainer saves on TERM.
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    sys.argv = ["memtx", *command]
    try:
        runpy.run_module(PROGRAM, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
