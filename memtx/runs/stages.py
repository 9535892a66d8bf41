"""The tasks of a config: the stages of its curriculum, and what is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from memtx.config import Config, Data, task_class
from memtx.errors import UserError
from memtx.fields import to_dataclass
from memtx.tasks.base import Task


def stages(data: Data) -> list[tuple[int, Task]]:
    """(steps, task) of each stage; the last is `data.task` itself, without an end."""
    return [(steps, changed(data, settings, "data.curriculum")) for steps, settings in data.curriculum] + [
        (0, changed(data, {}))
    ]


def held_out(config: Config) -> Task:
    return changed(config.data, config.eval.task, "eval.task")


def changed(data: Data, settings: Mapping, path: str = "data.task") -> Task:
    """The task of `data` with other settings. UserError if they are none of its, or change its tokens."""
    cls = task_class(data.corpus.partition(":")[2])
    values = {f.name: getattr(data.task, f.name) for f in dataclasses.fields(data.task)}
    task, base = cls(to_dataclass(cls.Config, {**values, **settings}, path)), cls(data.task)
    if task.tokenizer.fingerprint != base.tokenizer.fingerprint:
        raise UserError(f"{path} changes the tokens of the task, which the model is built for")
    return task
