"""Checkpoints: a class that writes them with Orbax's CheckpointManager, and two functions that read them.

    workdir/config.json            the config of the run, which marks the folder as a run's workdir
    workdir/checkpoints/STEP/      params, opt_state, memory (the state) as arrays, cursor, meta as JSON, and a seal over them
    workdir/damaged/STEP/          steps that turned out to be damaged when the run resumed

The workdir may be an address, such as gs://bucket/run (see memtx/files/remote.py). Then paths are of etils.epath.
Pytrees are saved by the path of each leaf ("stacks.0.ring"), so only names, shapes and dtypes matter, and `()` is not saved.
This module adds two checks to Orbax: digests of all data (seal.py), and dtypes and shapes, since Orbax casts dtypes silently.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from memtx.errors import UserError
from memtx.files.remote import Mirror, absolute, move, reading, writing
from memtx.training.processes import is_first, on_first
from memtx.training.provenance import machine, versions
from memtx.training.seal import faults, write_seal
from memtx.training.trees import mismatches, named_leaves, read_tree, spec, tree_handler
from memtx.training.workdir import checkpoints_of, claim, steps_in

# Orbax logs every inner event and the tracebacks of failures, which it also raises. Logs of other users of absl pass.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)

BEST = ("eval/bits_per_byte", "eval/loss")  # the step with the lowest value is kept (text: the first, tasks: the second)
JSON = "data.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
ARRAYS = ("params", "opt_state", "memory")

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Restored:
    """A checkpoint: the requested pytrees (others are None), the data cursor, and meta (see `Checkpointer.save`)."""

    step: int
    params: Any
    opt_state: Any
    memory: Any
    cursor: dict
    meta: dict


class Checkpointer:
    """A manager that saves and restores checkpoints. Create it before anything else writes into the workdir.

    config: a nested dict of JSON values. keep: the number of newest steps to keep besides the best. warn: called with one line
    for each damaged step. If a run has several processes, they share the workdir. Each creates a Checkpointer and makes the
    same calls. The workdir is locked until `close`, unless it is an address. files: a folder here for the small files of the
    run. changes: the changes of the config since step 0, one line each, which `restore` reads. Raises UserError if the workdir
    belongs to another run or to no run.
    """

    def __init__(self, workdir: str | Path, config: Mapping, *, keep: int = 3, warn: Warn = print):
        if keep < 1:
            raise UserError(f"checkpoint.keep must be at least 1, not {keep}")
        self.workdir, self.config, self.warn = absolute(workdir), _plain(config), warn
        self._lock = on_first(lambda: claim(self.workdir, self.config))
        self.files = Mirror(self.workdir)
        self._folder = checkpoints_of(self.workdir)
        self.changes: list[str] = []
        self._sealing = -1
        self._keep = _Keep(keep, {})
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        try:
            with writing(self._folder):
                self._manager = ocp.CheckpointManager(self._folder, item_handlers=_handlers(), options=options)
            self._keep.scores.update({step: _score(self._folder / str(step)) for step in self._manager.all_steps()})
        except BaseException:
            self._leave()
            raise

    def save(self, step: int, *, params, opt_state, memory, cursor: Mapping, metrics: Mapping | None = None) -> None:
        """Start saving a step. Arrays may be donated after this returns, but NumPy leaves must not be changed.

        Small files are copied first, so that a checkpoint never has a step whose metrics are missing.
        memory: the state of the model. Older steps are deleted only after this step is complete and sealed. An existing step is
        not saved again. The saved meta has the keys step, config, changes, versions, machine, metrics and leaves (shape and
        dtype by name).
        Raises UserError if the disk is full, or was full while the previous step was written.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        trees = {item: named_leaves(tree) for item, tree in zip(ARRAYS, (params, opt_state, memory), strict=True)}
        meta = {
            "step": step,
            "config": self.config,
            "changes": self.changes,
            "versions": versions(),
            "machine": machine(),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "leaves": {item: {name: spec(leaf) for name, leaf in tree.items()} for item, tree in trees.items()},
        }
        items = {item: ocp.args.PyTreeSave(tree) for item, tree in trees.items() if tree}
        items |= {"cursor": ocp.args.JsonSave(_plain(cursor)), "meta": ocp.args.JsonSave(_plain(meta))}
        self.push()
        self._sealing = step
        self._keep.scores[step] = _best(meta["metrics"])
        with self._disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, *, params, opt_state, memory, batch_axes=None) -> Restored | None:
        """Read the newest intact checkpoint with the shardings of these abstract pytrees. Returns None if there are no steps.

        memory, batch_axes: see the function `restore`. Damaged newer steps are reported to `warn` and moved to workdir/damaged.
        Raises UserError if no step is intact, or if the pytrees do not match.
        """
        self.wait()
        if not self._manager.all_steps():
            return None
        trees = {"params": params, "opt_state": opt_state, "memory": memory}
        found = restore(self.workdir, **trees, batch_axes=batch_axes, warn=self.warn)
        if damaged := [step for step in self._manager.all_steps() if step > found.step]:
            if is_first():
                for step in damaged:
                    move(self._folder / str(step), self.workdir / "damaged" / str(step))
            multihost_utils.sync_global_devices("memtx: damaged steps are set aside")
            self._manager.reload()
        self.changes = [*found.meta.get("changes", ())]
        return found

    def push(self) -> None:
        """Copy the small files that changed to the workdir, if it is an address. Process 0 has them."""
        if is_first():
            self.files.push()

    def latest_step(self) -> int | None:
        """Return the newest step, or None without checkpoints."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Wait until the current step is on disk. Raises UserError if the disk was full."""
        with self._disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the current step, copy the small files and unlock the workdir. Raises UserError if the disk was full."""
        try:
            with self._disk_errors():
                self._manager.close()
            self.push()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Delete the temporary folder and unlock the workdir."""
        self.files.close()
        if self._lock:
            self._lock.release()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    @contextmanager
    def _disk_errors(self):
        """Turn errors of a full disk (an OSError or a message of tensorstore) into a UserError, and delete the partial step.

        Errors of a bucket become a UserError too.
        """
        try:
            with writing(self._folder):
                yield
        except Exception as e:
            if getattr(e, "errno", None) not in FULL and not any(os.strerror(code) in str(e) for code in FULL):
                raise
            for part in self._folder.glob(f"{self._sealing}.*"):
                shutil.rmtree(part, ignore_errors=True)
            raise UserError(
                f"the disk is full: checkpoint {self._sealing} was not saved in {self._folder}; older ones are intact"
            ) from e

    def _seal(self) -> None:
        """Write the seal. Orbax calls this on process 0, after all processes have written and before it deletes any step.

        Orbax 0.12 gives the folder its final name after this call, so a folder with its final name is always sealed.
        """
        final = self._folder / str(self._sealing)
        write_seal(final if final.exists() else next(self._folder.glob(f"{self._sealing}.*")))


def restore(workdir: str | Path, *, params=None, opt_state=None, memory=None, batch_axes=None, warn: Warn = print) -> Restored:
    """Read the newest intact checkpoint of a run without changing the workdir.

    params, opt_state, memory: pytrees of jax.ShapeDtypeStruct whose shardings the arrays get (default: the first local device).
    Items that are None are not read. memory may also be a function that returns this tree for the meta of a checkpoint.
    batch_axes: the batch axis of each leaf of `memory`, if its batch may differ from that of the checkpoint. Then only the
    first rows are read, and rows that the checkpoint lacks are zero. Damaged newer steps are reported to `warn`. Raises
    UserError if there is no intact step, or a pytree does not match.
    """
    folder = checkpoints_of(workdir)
    step = folder / str(_newest_sound(folder, warn))
    meta = _read_json(step / "meta")
    memory = memory(meta) if callable(memory) else memory
    wanted = {item: tree for item, tree in zip(ARRAYS, (params, opt_state, memory), strict=True) if tree is not None}
    like = wanted | ({} if batch_axes is None else {"memory": _with_batch(memory, batch_axes, batch_of(meta))})
    problems = [p for item, tree in like.items() for p in mismatches(item, tree, meta["leaves"][item])]
    if problems:
        origin = f"written by memtx {meta['versions']['memtx']}; CHANGELOG.md says which runs cannot be continued"
        raise UserError(f"checkpoint {step} does not fit this program ({origin}): {'; '.join(problems[:4])}")
    with reading(step):
        read = {item: read_tree(step / item, tree) for item, tree in wanted.items()}
    return Restored(
        step=int(step.name),
        params=read.get("params"),
        opt_state=read.get("opt_state"),
        memory=read.get("memory"),
        cursor=_read_json(step / "cursor"),
        meta=meta,
    )


def batch_of(meta: Mapping) -> int:
    """Return the number of streams of a checkpoint's state."""
    return meta["config"]["train"]["batch"]


def _with_batch(tree, axes, batch: int):
    """Return the shapes of a state with another batch."""

    def leaf(a, axis: int):
        shape = a.shape if axis < 0 else (*a.shape[:axis], batch, *a.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, a.dtype)

    return jax.tree.map(leaf, tree, axes)


def read_meta(workdir: str | Path) -> dict:
    """Read the newest intact meta of a run (see `Checkpointer.save`). Raises UserError if there is none."""
    folder = checkpoints_of(workdir)
    with reading(folder):
        steps = steps_in(folder)
    for step in reversed(steps):
        if not faults(folder / str(step), "meta"):
            return _read_json(folder / str(step) / "meta")
    raise UserError(f"no checkpoint in {folder}")


# --- folders --------------------------------------------------------------------------------------------------------------


def _newest_sound(folder: Path, warn: Warn) -> int:
    """Return the newest step without faults. Process 0 finds it and broadcasts it."""
    none, unsound = -1, -2

    def look() -> tuple[int, list[str]]:
        found, reports = none, []
        with reading(folder):
            steps = steps_in(folder)
        for step in reversed(steps):
            wrong = faults(folder / str(step))
            found = unsound if wrong else step
            if not wrong:
                break
            reports.append(f"checkpoint {step} is damaged ({', '.join(wrong)})")
        return found, reports

    found, reports = on_first(look) or (none, [])
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found == none:
        raise UserError(f"no checkpoint in {folder}")
    if found == unsound:
        raise UserError(f"no intact checkpoint in {folder}: {'; '.join(reports)}; delete the run's folder to start again")
    for report in reports:
        warn(f"{report}; using an older one, {found}")
    return found


# --- Orbax ----------------------------------------------------------------------------------------------------------------


def _handlers() -> dict:
    json_handler = partial(ocp.JsonCheckpointHandler, filename=JSON)
    return {item: tree_handler() for item in ARRAYS} | {"cursor": json_handler(), "meta": json_handler()}


@dataclass
class _Keep(ocp.checkpoint_managers.PreservationPolicy):
    """The policy that keeps the newest steps and the best one. scores: the score of each step (lower is better), or NaN."""

    newest: int
    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence, *, context=None) -> Sequence[bool]:
        """Return for each checkpoint whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = [step for step in steps if math.isfinite(self.scores.get(step, math.nan))]
        kept = {*steps[-self.newest :], *([min(scored, key=self.scores.__getitem__)] if scored else [])}
        return [step in kept for step in steps]


def _score(step: Path) -> float:
    if faults(step, "meta"):
        return math.nan
    return _best(_read_json(step / "meta")["metrics"])


def _best(metrics: Mapping) -> float:
    return next((metrics[name] for name in BEST if name in metrics), math.nan)


# --- meta -----------------------------------------------------------------------------------------------------------------


def _plain(value: Mapping) -> dict:
    """Return a copy as JSON reads it back, with lists for tuples."""
    return json.loads(json.dumps(value))


def _read_json(item: Path) -> dict:
    with reading(item):
        return json.loads((item / JSON).read_text())
