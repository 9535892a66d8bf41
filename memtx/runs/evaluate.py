"""Evaluate on what is held out, text of a corpus or examples of a task: a trained run, or a config's model as it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from memtx.config import Config, Mesh
from memtx.errors import UserError
from memtx.models.lm import build
from memtx.pretrained.load import load_params
from memtx.runs.configure import configure, with_cache
from memtx.runs.load import load_run
from memtx.runs.source import Result, make_source
from memtx.sharding import Layout


def evaluate_run(
    workdir: str | Path,
    *,
    split: str | None = None,
    segments: int | None = None,
    examples: int | None = None,
    task: Mapping | None = None,
    cache: str | None = None,
) -> tuple[Result, int]:
    """-> (result, step). What is None is as in the run's own config. UserError if the run is not of the kind that is asked for.

    segments: of text; 0 reads all of it. examples: of a task, how many. task: settings in which it differs from `data.task`.
    cache: another folder than the run's `data.cache`.
    """
    run = load_run(Path(workdir))
    config = _changed(with_cache(run.config, cache), str(workdir), split=split, segments=segments, examples=examples, task=task)
    data = make_source(config, run.tokenizer)
    data.check(run.lm)
    return data.evaluator(run.lm, Layout(config.mesh))(run.params), run.step


def evaluate_config(config, **given) -> Result:
    """A config's model before any training: a pretrained one with its weights. `given` as for `evaluate_run`."""
    config = _changed(configure(config), "the config", **given)
    data = make_source(config)
    lm = build(config.model, vocab_size=data.tokenizer.vocab_size, subwords=data.tokenizer.subwords)
    data.check(lm)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)  # as training begins
    params = load_params(lm, key, cache=config.data.cache) if config.model.pretrained else lm.init(key)
    return data.evaluator(lm, Layout(config.mesh))(params)


def _changed(config: Config, name: str, **given) -> Config:
    changes = {key: value for key, value in given.items() if value is not None}
    if ({"segments"} if config.data.corpus.startswith("task:") else {"examples", "task"}) & changes.keys():
        raise UserError(f"{name} is of {config.data.corpus}: --segments is for text, --examples and --task for tasks")
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changes), mesh=Mesh())
