"""The tasks of a config: the stages of its curriculum, and the held-out task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from memtx.config import Config, Data
from memtx.errors import UserError
from memtx.fields import to_dataclass
from memtx.runs.configure import task_class
from memtx.tasks.base import Task


def make_stages(data: Data) -> list[tuple[int, Task]]:
    """Return (steps, task) of each stage. The last one is `data.task` itself and does not end (steps = 0)."""
    return [(steps, changed(data, settings, "data.curriculum")) for steps, settings in data.curriculum] + [
        (0, changed(data, {}))
    ]


def held_out(config: Config) -> Task:
    """Return the task of the evaluation: `data.task` with the changes in `eval.task`."""
    return changed(config.data, config.eval.task, "eval.task")


def changed(data: Data, settings: Mapping, path: str = "data.task") -> Task:
    """Return the task of `data` with changed settings. Raises UserError if a setting is unknown or changes the tokens."""
    cls = task_class(data.corpus.partition(":")[2])
    values = {f.name: getattr(data.task, f.name) for f in dataclasses.fields(data.task)}
    task, base = cls(to_dataclass(cls.Config, {**values, **settings}, path)), cls(data.task)
    if task.tokenizer.fingerprint != base.tokenizer.fingerprint:
        raise UserError(f"{path} changes the tokens of the task, but the model is built for those of data.task")
    return task
