"""Evaluate a trained run on what is held out: text of its corpus, examples of its task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from memtx.config import Mesh
from memtx.errors import UserError
from memtx.loading import load_run
from memtx.training.sharding import Layout
from memtx.training.source import Result, source


def evaluate_run(
    workdir: str | Path,
    *,
    split: str | None = None,
    segments: int | None = None,
    examples: int | None = None,
    task: Mapping | None = None,
) -> tuple[Result, int]:
    """-> (result, step). What is None is as in the run's own config. UserError if the run is not of the kind that is asked for.

    segments: of text; 0 reads all of it. examples: of a task, how many. task: settings in which it differs from `data.task`.
    """
    run = load_run(Path(workdir))
    if (segments if run.config.data.corpus.startswith("task:") else examples or task) is not None:
        raise UserError(
            f"{workdir} is a run of {run.config.data.corpus}: --segments is for text, --examples and --task for tasks"
        )
    given = {"split": split, "segments": segments, "examples": examples, "task": task}
    changes = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, **changes), mesh=Mesh())
    data = source(config, run.tokenizer)
    data.check(run.lm)
    return data.evaluator(run.lm, Layout(config.mesh))(run.params), run.step
