"""A trained model from its workdir."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from memtx.config import Config, configure
from memtx.data import tokenizers
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.models.lm import LM, LMState, Params, build
from memtx.training.checkpoint import read_meta, restore


@dataclasses.dataclass(frozen=True)
class Loaded:
    """lm, its params, the memory of the training streams as `state`, the tokenizer, the config, and the step they are of."""

    lm: LM
    params: Params
    state: LMState
    tokenizer: Tokenizer
    config: Config
    step: int


def load(workdir: str | Path) -> Loaded:
    """The newest sound checkpoint in a workdir, on the first device. Raises UserError if there is none."""
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is not the workdir of a run (it has no config.json); train one with memtx train")
    config = configure(read_meta(workdir)["config"])
    tokenizer = tokenizers.load(workdir / "tokenizer.json")
    lm = build(config.model, vocab_size=tokenizer.vocab_size)
    memory = jax.eval_shape(lambda: lm.init_state(config.train.batch))
    restored = restore(workdir, params=lm.abstract_params, memory=memory)
    return Loaded(lm, restored.params, restored.memory, tokenizer, config, restored.step)
