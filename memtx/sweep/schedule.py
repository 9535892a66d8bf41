"""The scheduler of a sweep. It starts the unfinished runs, N at a time, each in a separate process.

The records and locks in the workdir are the whole state of a sweep. Any number of schedulers may work on one workdir, and each
may be killed. Only the holder of a run's lock executes the run. A finished run is never repeated.
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
from memtx.files.atomic import write_atomic
from memtx.sweep import record as records
from memtx.sweep.execute import folder_of
from memtx.sweep.jobs import SUBMITIT, Executor, Job
from memtx.sweep.spec import Sweep
from memtx.training.interrupt import catch_stop
from memtx.training.workdir import LOCK, LOG, InUse, hold

BUSY = 75  # exit status of a run that another process is executing (EX_TEMPFAIL)
POLL = 0.3  # seconds
LOOK_AGAIN = 3.0  # seconds until a run of another process is looked at again

Changed = Callable[[str, str, str], None]  # (run, state, note for the display)


def choose(sweep: Sweep, only: str) -> list[str]:
    """Return the runs whose names match a pattern such as `*memory=xl*`. Raises UserError if no name matches."""
    names = [name for name in sweep.runs if fnmatch.fnmatchcase(name, only)]
    if not names:
        raise UserError(f"no run of {sweep.path} matches {only!r}; the first run is {next(iter(sweep.runs))}")
    return names


def claim(sweep: Sweep, workdir: Path) -> None:
    """Write sweep.json into the workdir. Raises UserError if that has other files or finished runs with different configs."""
    note = workdir / "sweep.json"
    ours = {LOCK, f"{note.name}.part", SUBMITIT}
    if workdir.exists() and not note.exists() and (not workdir.is_dir() or any(p.name not in ours for p in workdir.iterdir())):
        raise UserError(f"{workdir} is not a sweep's workdir: it exists without {note.name}; choose another workdir")
    for name, run in sweep.runs.items():
        found = records.read(folder_of(workdir, name))
        if found and found["status"] == "finished" and not run.is_of(found["config"], found["solved"]):
            raise UserError(
                f"run {name} in {workdir} has a different config, or the file of its memory has changed; choose another "
                "workdir, or delete the run"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        about = {"file": str(sweep.path), "config": sweep.config, "runs": list(sweep.runs)}
        with FileLock(workdir / LOCK):  # two schedulers may start at the same time
            write_atomic(note, json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write in {workdir}: {error.strerror}") from None


def states(names: list[str], workdir: Path) -> dict[str, str]:
    """Return the state of each run: waiting, running, finished or failed."""
    return {name: _state(folder_of(workdir, name)) for name in names}


def _state(folder: Path) -> str:
    if records.in_use(folder):
        return "running"
    status = (records.read(folder) or {}).get("status")
    return status if status in ("finished", "failed") else "waiting"


class Scheduler:
    """A scheduler of the runs of a sweep.

    changed: a function of (run, state, note) that is called at each change of state. settled: the state, "finished" or
    "failed", of each run that has ended.
    """

    def __init__(self, sweep: Sweep, workdir: Path, executor: Executor, parallel: int, changed: Changed):
        self.sweep, self.workdir, self.executor, self.changed = sweep, workdir, executor, changed
        self.free = deque(range(parallel))
        self.jobs: dict[str, tuple[int, Job]] = {}
        self.elsewhere: dict[str, float] = {}  # runs of other processes -> time to look at them again
        self.settled: dict[str, str] = {}
        self.waiting: deque[str] = deque()
        self.failed_before: set[str] = set()
        self.stopping = False

    def run(self, names: list[str], *, retry: bool = False, tick: Callable[[], Any] = lambda: None) -> None:
        """Execute the runs until all have ended, or until SIGINT or SIGTERM stops the jobs. retry: repeat failed runs."""
        for name, state in states(names, self.workdir).items():
            if state == "finished" or (state == "failed" and not retry):
                self._end(name, state)
            else:
                self.waiting.append(name)
            if state == "failed":
                self.failed_before.add(name)
        with catch_stop() as stopped:
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
                self._defer(name)
            elif state == "finished" or (state == "failed" and name not in self.failed_before):  # another process ran it
                self._end(name, state)
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
                self._defer(name)
                continue
            try:
                state = self._read_status(name, status)
            except InUse:  # another process took the lock first
                self._defer(name)
                continue
            if state == "stopped":
                self.waiting.append(name)
                self.changed(name, "waiting", "stopped")
            else:
                self._end(name, state)

    def _read_status(self, name: str, status: int) -> str:
        """Return the recorded status of a run whose job has ended. If the job did not write a status, record a failure."""
        folder = folder_of(self.workdir, name)
        lock = hold(folder)
        try:
            record = records.read(folder)
            if record is None or record["status"] == "running":
                if self.stopping or status == -signal.SIGTERM:  # it was stopped before it could write its record
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

    def _defer(self, name: str) -> None:
        """Leave a run to the process that executes it, and check it again later."""
        self.elsewhere[name] = time.monotonic() + LOOK_AGAIN
        self.changed(name, "running", "in another process")

    def _end(self, name: str, state: str) -> None:
        self.settled[name] = state
        record = records.read(folder_of(self.workdir, name)) or {}
        self.changed(name, state, record.get("error", ""))


def _last_line(log: Path, status: int) -> str:
    """Return the last line of a log that is not blank, or the exit status if there is none."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1].strip() if lines else f"exit status {status}"
