"""Evaluate a trained run on the held-out text of its corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from memtx.config import Mesh
from memtx.data.corpora import corpus
from memtx.data.tokens import tokenize
from memtx.evaluation.perplexity import Evaluation, make_evaluator
from memtx.loading import load
from memtx.training.loop import eval_batches
from memtx.training.sharding import Layout


def evaluate_run(workdir: str | Path, *, split: str | None = None, segments: int | None = None) -> tuple[Evaluation, int]:
    """-> (evaluation, step). split and segments default to the run's own config; segments = 0 reads all of the text."""
    run = load(workdir)
    changes = {name: value for name, value in (("split", split), ("segments", segments)) if value is not None}
    config = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, **changes), mesh=Mesh())
    text = corpus(config.data.corpus, config.data.cache)
    tokens = tokenize(text, run.tokenizer, config.eval.split, config.data.cache)
    evaluate = make_evaluator(run.lm, run.tokenizer.bytes_V, Layout(config.mesh))
    return evaluate(run.params, eval_batches(tokens, config)), run.step
