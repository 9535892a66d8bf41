"""Run a sweep: what is not finished, N at a time, each in a process of its own.

The state of a sweep is nothing but the records and locks in its workdir. Any number of these may work on one workdir, and any
may be killed: a run is done by who has its lock, and who gets the lock of a finished run leaves it alone.
"""

from __future__ import annotations

import fnmatch
import json
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from memtx.errors import UserError
from memtx.sweep import record as records
from memtx.sweep.execute import folder_of
from memtx.sweep.jobs import SUBMITIT, Executor, Job
from memtx.sweep.spec import Sweep
from memtx.training.interrupt import told_to_stop
from memtx.training.workdir import LOCK, LOG, InUse, hold, write_atomic

BUSY = 75  # exit status of a run that another process has (EX_TEMPFAIL)
POLL = 0.3  # seconds
LOOK_AGAIN = 3.0  # seconds, at a run that another process has

Changed = Callable[[str, str, str], None]  # (run, state, what to say of it)


def choose(sweep: Sweep, only: str) -> list[str]:
    """The runs whose names match a pattern such as `*memory=xl*`. UserError if none does."""
    names = [name for name in sweep.runs if fnmatch.fnmatchcase(name, only)]
    if not names:
        raise UserError(f"no run of {sweep.path} is called {only!r}; the first is {next(iter(sweep.runs))}")
    return names


def claim(sweep: Sweep, workdir: Path) -> None:
    """Note in the workdir which sweep it is of. UserError if it holds something else, or a finished run of another config."""
    note = workdir / "sweep.json"
    ours = {LOCK, f"{note.name}.part", SUBMITIT}
    if workdir.exists() and not note.exists() and (not workdir.is_dir() or any(p.name not in ours for p in workdir.iterdir())):
        raise UserError(f"{workdir} holds something that is not a sweep (no {note.name}); choose another workdir")
    for name, run in sweep.runs.items():
        found = records.read(folder_of(workdir, name))
        if found and found["status"] == "finished" and not run.is_of(found["config"], found["solved"]):
            raise UserError(f"run {name} in {workdir} was done with another config; choose another workdir, or delete the run")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        about = {"file": str(sweep.path), "config": sweep.config, "runs": list(sweep.runs)}
        with FileLock(workdir / LOCK):  # two may start at once
            write_atomic(note, json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write in {workdir}: {error.strerror}") from None


def states(names: list[str], workdir: Path) -> dict[str, str]:
    """waiting | running | finished | failed"""
    return {name: _state(folder_of(workdir, name)) for name in names}


def _state(folder: Path) -> str:
    if records.in_use(folder):
        return "running"
    status = (records.read(folder) or {}).get("status")
    return status if status in ("finished", "failed") else "waiting"


class Scheduler:
    """changed: is told of every change of state. settled: the runs that ended, with "finished" or "failed"."""

    def __init__(self, sweep: Sweep, workdir: Path, executor: Executor, parallel: int, changed: Changed):
        self.sweep, self.workdir, self.executor, self.changed = sweep, workdir, executor, changed
        self.free = deque(range(parallel))
        self.jobs: dict[str, tuple[int, Job]] = {}
        self.elsewhere: dict[str, float] = {}  # runs that another process has, and when to look again
        self.settled: dict[str, str] = {}
        self.waiting: deque[str] = deque()
        self.failed_before: set[str] = set()
        self.stopping = False

    def run(self, names: list[str], *, retry: bool = False, tick: Callable[[], Any] = lambda: None) -> None:
        """Until all are settled, or it is told to stop (SIGINT, SIGTERM): then its jobs are too. retry: failed ones too."""
        for name, state in states(names, self.workdir).items():
            if state == "finished" or (state == "failed" and not retry):
                self._settle(name, state)
            else:
                self.waiting.append(name)
            if state == "failed":
                self.failed_before.add(name)
        with told_to_stop() as stopped:
            while not stopped.is_set() and (self.waiting or self.jobs or self.elsewhere):
                self._start()
                tick()
                time.sleep(POLL)
                self._collect()
            self.stopping = stopped.is_set()
            for _, job in self.jobs.values():
                job.stop()
            while self.jobs:
                tick()
                time.sleep(POLL)
                self._collect()

    def _start(self) -> None:
        now = time.monotonic()
        for name in [name for name, when in self.elsewhere.items() if when < now]:
            del self.elsewhere[name]
            self.waiting.append(name)
        for _ in range(len(self.waiting)):
            if not self.free:
                return
            name = self.waiting.popleft()
            folder = folder_of(self.workdir, name)
            state = _state(folder)
            if state == "running":
                self._leave(name)
            elif state == "finished" or (state == "failed" and name not in self.failed_before):  # by another process, meanwhile
                self._settle(name, state)
            else:
                self.failed_before.discard(name)
                slot = self.free.popleft()
                command = ["sweep", f"--sweep={self.sweep.path}", f"--workdir={self.workdir}", f"--run={name}"]
                self.jobs[name] = slot, self.executor.start(command, folder / LOG, slot)
                self.changed(name, "running", "")

    def _collect(self) -> None:
        for name, (slot, job) in list(self.jobs.items()):
            status = job.poll()
            if status is None:
                continue
            del self.jobs[name]
            self.free.append(slot)
            if status == BUSY:
                self._leave(name)
                continue
            try:
                state = self._after(name, status)
            except InUse:  # another process was quick to take it
                self._leave(name)
                continue
            if state == "stopped":
                self.waiting.append(name)
                self.changed(name, "waiting", "stopped")
            else:
                self._settle(name, state)

    def _after(self, name: str, status: int) -> str:
        """What the record of a run says whose job has ended; if that could not write it, it failed."""
        folder = folder_of(self.workdir, name)
        lock = hold(folder)
        try:
            record = records.read(folder)
            if record is None or record["status"] == "running":
                if self.stopping or status == -signal.SIGTERM:  # it had nothing to save yet, or nothing more
                    return "stopped"
                how = f"killed by {signal.Signals(-status).name}" if status < 0 else _last_line(folder / LOG, status)
                record = (record or {"name": name, "overrides": self.sweep.runs[name].overrides}) | {
                    "status": "failed",
                    "error": how,
                }
                records.write(folder, record)
        finally:
            lock.release()
        return record["status"]

    def _leave(self, name: str) -> None:
        self.elsewhere[name] = time.monotonic() + LOOK_AGAIN
        self.changed(name, "running", "in another process")

    def _settle(self, name: str, state: str) -> None:
        self.settled[name] = state
        record = records.read(folder_of(self.workdir, name)) or {}
        self.changed(name, state, record.get("error", ""))


def _last_line(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1].strip() if lines else f"exit status {status}"
