"""The folder of a run. config.json marks it, no other run may use it, and the process that trains in it locks it.

An address such as gs://bucket/run is not locked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from memtx.config import Config, Model, to_json
from memtx.errors import UserError, check_utf8
from memtx.files.atomic import part_of, write_atomic
from memtx.files.remote import absolute, check_writable, is_remote, writing
from memtx.memory import MEMORIES

LOCK, RECORD, LOG, SAMPLE = ".lock", "run.json", "log.txt", "sample.txt"
OURS = (LOCK, RECORD, LOG)  # files of a sweep, which may exist before the run starts
# The keys that a resumed run may change, without and with a line for the user.
SILENT = (
    "train.log_every",
    "train.csv",
    "train.wandb",
    "checkpoint",
    "mesh",
    "data.cache",
    "data.task.cache",
)
FREE = (*SILENT, "own", "eval", "train.steps", "train.batch", "train.accumulate")  # and the capacities of banks


class InUse(UserError):
    """Another process uses the folder."""


def claim(workdir: Path, config: Mapping) -> BaseFileLock | None:
    """Create the folder if needed, lock it and write the config into it. The caller releases the lock that is returned.

    An address is not locked. Raises UserError if the folder contains other files, is in use, has a run whose config differs in
    keys outside FREE, or has a run that is past the config's last step.
    """
    check_utf8(absolute(workdir), "the workdir")
    path = workdir / "config.json"
    if is_remote(workdir):
        check_writable(workdir)
    if workdir.exists() and not path.exists():
        allowed = {part_of(path).name, *OURS}
        if not workdir.is_dir() or any(p.name not in allowed for p in workdir.iterdir()):
            raise UserError(f"{workdir} is not the workdir of a run (it has no {path.name}); choose another workdir")
    lock = None if is_remote(workdir) else hold(workdir)
    try:
        if path.exists():
            _check_same(config, _read(path), workdir)
            _check_steps(config["train"]["steps"], workdir)
        content = json.dumps(config, indent=2) + "\n"
        with writing(workdir):
            write_atomic(path, content) if lock else path.write_text(content)  # an object of a bucket is replaced as a whole
    except BaseException as e:
        if lock:
            lock.release()
        if isinstance(e, OSError):
            raise UserError(f"cannot write in {workdir}: {e.strerror}") from e
        raise
    return lock


def hold(workdir: Path) -> BaseFileLock:
    """Lock a run's folder, and create it if it does not exist. The process that has the lock may lock it again.

    The operating system releases the lock when the process ends, even if it is killed. Raises InUse if another process has the
    lock.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return FileLock(workdir.absolute() / LOCK, is_singleton=True).acquire(blocking=False).lock
    except Timeout:
        raise InUse(f"{workdir} is in use: another process trains there; wait for it, or choose another workdir") from None
    except OSError as e:
        raise UserError(f"cannot write in {workdir}: {e.strerror}") from e


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: it is not a JSON object; choose another workdir") from None


def _check_same(here: Mapping, there: Mapping, workdir: Path) -> None:
    capacities = (f"memory.{name}.{key}" for name in here.get("memory", {}) for key in MEMORIES[name].resizable)
    if different := differences(here, there, (*FREE, *capacities)):
        raise UserError(f"{workdir} belongs to a run with a different config ({'; '.join(different)}); choose another workdir")


def _check_steps(last: int, workdir: Path) -> None:
    step = max(steps_in(checkpoints_of(workdir)), default=0)
    if step > last:
        raise UserError(f"{workdir} is at step {step}, past train.steps={last}; set train.steps={step} or more")


def checkpoints_of(workdir: str | Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return absolute(workdir) / "checkpoints"


def steps_in(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint in the folder, damaged or not, in order."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def differences(here: Mapping, there: Mapping, free: tuple[str, ...] = ()) -> list[str]:
    """Describe the differences of two configs outside the keys `free`. A key that an old config lacks has its default."""
    default = default_keys({*here.get("memory", {}), *there.get("memory", {})})
    ours, theirs = dotted(here), dotted(there)
    both = {key: [side.get(key, default.get(key, "absent")) for side in (ours, theirs)] for key in ours.keys() | theirs.keys()}
    return [
        f"{key}: {mine} here, {its} in the checkpoint"
        for key, (mine, its) in sorted(both.items())
        if mine != its and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def default_keys(memories: Iterable[str]) -> dict:
    """Return the default of each dotted key of a config with these mechanisms."""
    memory = {name: MEMORIES[name].Config() for name in {*memories} & MEMORIES.keys()}
    return dotted(to_json(Config(model=Model(memory=memory))))


def dotted(tree: Mapping, prefix: str = "") -> dict:
    """Flatten a nested mapping to dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
