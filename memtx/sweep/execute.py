"""One run of a sweep in this process: its budget, training, the measurements of the sweep file, and its record."""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from memtx.config import Config, to_json
from memtx.errors import UserError, check_known
from memtx.runs.plan import make_plan
from memtx.runs.train import train
from memtx.sweep import record as records
from memtx.sweep.record import Record
from memtx.sweep.spec import Run, Sweep
from memtx.training.provenance import code, machine, versions
from memtx.training.workdir import hold


def execute(sweep: Sweep, name: str, workdir: Path, say: Callable = print) -> str:
    """Start or resume a run and return its status. A finished run is not repeated.

    Raises InUse if another process holds the run's lock. All other errors are written to the run's record.
    """
    check_known(name, sweep.runs, "run")
    folder = folder_of(workdir, name)
    lock = hold(folder)
    try:
        before = records.read(folder) or {}
        if before.get("status") == "finished":
            return "finished"
        record = _start_record(sweep.runs[name], before)
        records.write(folder, record)
        began, past = time.monotonic(), record["seconds"]
        try:
            record |= _train_and_measure(sweep, sweep.runs[name], folder, record, say)
        except UserError as error:
            say(str(error))
            record |= {"status": "failed", "error": str(error)}
        except Exception as error:
            traceback.print_exc()
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        records.write(folder, record | {"seconds": round(past + time.monotonic() - began, 1)})
        return record["status"]
    finally:
        lock.release()


def folder_of(workdir: Path, name: str) -> Path:
    """Return the folder of a run."""
    return workdir / "runs" / name


def _start_record(run: Run, before: Record) -> Record:
    return {
        "name": run.name,
        "status": "running",
        "error": "",
        "overrides": run.overrides,
        "settings": run.settings,
        "match": run.match,
        "seed": run.config.seed,
        "code": code(),
        "versions": versions(),
        "machine": machine(),
        "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": before.get("seconds", 0.0),
        "attempts": before.get("attempts", 0) + 1,
    }


def _train_and_measure(sweep: Sweep, run: Run, folder: Path, record: Record, say: Callable) -> Record:
    """Train and measure. Returns the keys to add to the record."""
    planned = make_plan(run.values, run.match, run.solve)
    config = planned.config
    gained = {"solved": planned.solved, "config": to_json(config), "budget": dataclasses.asdict(planned.budget)}
    records.write(folder, record | gained)
    evaluation = None
    if sweep.trains:
        trained = train(config, folder, say=say)
        if not trained.finished:
            say(f"stopped and saved at step {trained.step}")
            return gained | {"status": "stopped"}
        assert trained.evaluation
        evaluation = dataclasses.asdict(trained.evaluation)
    measured = _measure(sweep, config, folder)
    gained |= {
        "train_tokens_per_s": records.tokens_per_s(records.metrics(folder)),
        "result": records.evaluated(folder) | measured,
        "evaluation": evaluation,
    }
    return gained | {"status": "finished"}


def _measure(sweep: Sweep, config: Config, folder: Path) -> dict:
    measured = sweep.measure(config, folder) if sweep.measure else {}
    try:
        return json.loads(json.dumps(dict(measured)))
    except (TypeError, ValueError):
        raise UserError(f"run() in {sweep.path} must return a dict of numbers and other JSON values") from None
