"""Evaluation of a trained run, or of the model of a config before training, on held-out text or examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from memtx.config import Config
from memtx.errors import UserError
from memtx.models.lm import build
from memtx.pretrained.load import load_params
from memtx.progress import Report
from memtx.runs.configure import configure, with_cache
from memtx.runs.load import load_run, mesh_for
from memtx.runs.source import Result, make_source
from memtx.sharding import Layout


def evaluate_run(
    workdir: str | Path,
    *,
    split: str | None = None,
    segments: int | None = None,
    examples: int | None = None,
    batch: int | None = None,
    task: Mapping | None = None,
    cache: str | None = None,
    progress: Report | None = None,
) -> tuple[Result, int]:
    """Evaluate a trained run. Returns the result and the step of its checkpoint.

    split: valid, test or train. segments: the maximum number of segments of text to read, or 0 for all. examples: the number of
    examples of a task. batch: the rows that are read at a time. task: changes to the settings of `data.task`. cache: replaces
    `data.cache`. progress: called with the numbers of parts that are done and of all. An argument that is None keeps the value
    in the config of the run. All devices take part, as `mesh_for` says.
    Raises UserError if the folder has no run, if segments is given for a task, or examples or task for text, or if the devices
    do not divide the batch.
    """
    run = load_run(workdir, streams=False, sharded=True)
    given = {"split": split, "segments": segments, "examples": examples, "batch": batch, "task": task}
    config = _changed(with_cache(run.config, cache), str(workdir), **given)
    data = make_source(config, run.tokenizer)
    data.check(run.lm)
    return data.evaluator(run.lm, _layout(config))(run.params, progress), run.step


def evaluate_config(config, progress: Report | None = None, **given) -> Result:
    """Evaluate the model of a config before training, with pretrained weights if it has any.

    progress, given: arguments of `evaluate_run`. Raises UserError like `evaluate_run`, and if the config is not valid.
    """
    config = _changed(configure(config), "the config", **given)
    data = make_source(config)
    lm = build(config.model, vocab_size=data.tokenizer.vocab_size, subwords=data.tokenizer.subwords)
    data.check(lm)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)  # the same key as in training
    layout = _layout(config)
    params = load_params(lm, key, cache=config.data.cache) if config.model.pretrained else lm.init(key)
    return data.evaluator(lm, layout)(jax.device_put(params, layout.params(lm)), progress)


def _layout(config: Config) -> Layout:
    layout = Layout(config.mesh)
    layout.check_batch("eval.batch", config.eval.batch)
    return layout


def _changed(config: Config, name: str, **given) -> Config:
    changes = {key: value for key, value in given.items() if value is not None}
    if ({"segments"} if config.data.corpus.startswith("task:") else {"examples", "task"}) & changes.keys():
        raise UserError(f"the data of {name} is {config.data.corpus}: --segments is for text, --examples and --task for tasks")
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changes), mesh=mesh_for(config))
