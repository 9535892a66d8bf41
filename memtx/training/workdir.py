"""A run's folder: marked by config.json, and refused to another run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from memtx.errors import UserError

FREE = ("train.steps", "train.log_every", "eval", "checkpoint", "mesh", "data.cache")  # what a resumed run may change


def claim(workdir: Path, config: Mapping) -> None:
    """Make the folder if need be, and note in it that it is this config's run.

    Raises UserError if it holds something else, or the run of a config that differs in more than FREE.
    """
    path = workdir / "config.json"
    if path.exists():
        _check_same(config, _read(path), workdir)
    elif workdir.exists() and (not workdir.is_dir() or any(p != _part(path) for p in workdir.iterdir())):
        raise UserError(f"{workdir} holds something that is not a memtx run (no {path.name}); choose another workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(config, indent=2) + "\n")
    except OSError as e:
        raise UserError(f"cannot write in {workdir}: {e.strerror}") from e


def write_atomic(path: Path, text: str) -> None:
    """The file has either its old content or all of the new, whatever happens."""
    part = _part(path)
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; choose another workdir") from None


def _check_same(here: Mapping, there: Mapping, workdir: Path) -> None:
    ours, theirs = _dotted(here), _dotted(there)
    different = [
        f"{key}: {ours.get(key, 'absent')} here, {theirs.get(key, 'absent')} in the checkpoint"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, "absent") != theirs.get(key, "absent") and not _free(key)
    ]
    if different:
        raise UserError(f"{workdir} is the run of another config ({'; '.join(different)}); choose another workdir")


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _dotted(tree: Mapping, prefix: str = "") -> dict:
    """A nested mapping as one of dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
