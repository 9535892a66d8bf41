"""Where the runs of a sweep are executed: as processes here, or through submitit on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from memtx.errors import UserError, check_known

EXECUTORS = ("process", "local", "slurm")  # local: submitit's processes on this machine
SUBMITIT = "submitit"  # its folder in the workdir
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")  # submitit prefixes all others


class Job(Protocol):
    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it goes on."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""
        ...


class Executor(Protocol):
    def start(self, command: Sequence[str], log: Path, slot: int) -> Job:
        """`memtx COMMAND`, with what it prints appended to a file; slot: 0 <= slot < parallel, no other job has it."""
        ...


def executor(kind: str, parallel: int, workdir: Path, settings: dict[str, Any]) -> Executor:
    """UserError for an unknown kind, or settings that it does not have."""
    check_known(kind, EXECUTORS, "executor")
    if kind == "process":
        if settings:
            raise UserError("--slurm is for --executor=slurm")
        return Processes(parallel)
    return Submitit(kind, workdir / SUBMITIT, settings)


class Processes:
    """Each in a session of its own, so that an interrupt meets the sweep alone, and on its own share of the cores."""

    def __init__(self, parallel: int):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = [cores[slot::parallel] or [cores[slot % len(cores)]] for slot in range(parallel)] if cores else []

    def start(self, command: Sequence[str], log: Path, slot: int) -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "memtx.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        if self._cores:  # before it has threads, which then have the same cores: XLA makes as many as there are
            os.sched_setaffinity(process.pid, self._cores[slot])
        return Process(process)


class Process:
    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.poll = process.poll

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()


class Submitit:
    """settings: of submitit's `update_parameters`: partition, timeout_min, cpus_per_task, gpus_per_node, ..."""

    def __init__(self, kind: str, folder: Path, settings: dict[str, Any]):
        try:
            import submitit
        except ImportError:
            raise UserError(f"--executor={kind} needs submitit: pip install 'memtx[sweep]'") from None
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=kind)
            given = {name if name in SHARED else f"{kind}_{name}": value for name, value in settings.items()}
            self._executor.update_parameters(name="memtx", **({"timeout_min": 60 * 24} | given))
        except (NameError, RuntimeError, AssertionError) as error:
            raise UserError(f"submitit: {error}".splitlines()[0]) from None

    def start(self, command: Sequence[str], log: Path, slot: int) -> Submitted:
        log.parent.mkdir(parents=True, exist_ok=True)
        return Submitted(self._executor.submit(submitted, list(command), str(log.absolute())))


class Submitted:
    def __init__(self, job):
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        failure = self._job.exception()
        return 1 if failure else self._job.result()

    def stop(self) -> None:
        self._job.cancel(check=False)


def submitted(command: Sequence[str], log: str) -> int:
    """In the job's process: `memtx COMMAND` with its output in the log. -> exit status."""
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # a cluster warns with USR2 before the time is up or the job is preempted; the trainer saves on TERM
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    from memtx.cli import main

    try:
        main(list(command))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
