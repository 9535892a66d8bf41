"""memtx: Transformers with long-term memory, in JAX and Flax.

lm = memtx.build(config.model)                         a model; `memtx.load(workdir)` for a trained one, and
                                                       `memtx.load("smollm2")`, or a folder or file, for a pretrained one
params = lm.init(key)
state = lm.init_state(batch)                           the memory: a pytree that you own
logits_BTV, state = lm(params, tokens_BT, state)

memtx.train(config, workdir)                           what `memtx train` does
memtx.generate(lm, params, tokenizer, prompt)          what `memtx generate` does
memtx.complete(lm, params, tokenizer, prompts)         the same for several at once
memtx.embed(memtx.load("minilm"), texts)                    sentence embeddings
"""

from memtx.config import Config
from memtx.core import Dims, Segment, batch_axes, collect, detach, emit, reset, scan, segment, state_bytes
from memtx.errors import UserError
from memtx.generate import GREEDY, Completion, Sampling, complete, generate
from memtx.memory import MEMORIES
from memtx.models.lm import LM
from memtx.pretrained.load import export
from memtx.runs.configure import build, configure, get_config, load_config
from memtx.runs.embed import embed
from memtx.runs.load import Loaded, load
from memtx.runs.train import Trained, train

__version__ = "0.1.0"

__all__ = [
    "GREEDY",
    "LM",
    "MEMORIES",
    "Completion",
    "Config",
    "Dims",
    "Loaded",
    "Sampling",
    "Segment",
    "Trained",
    "UserError",
    "batch_axes",
    "build",
    "collect",
    "complete",
    "configure",
    "detach",
    "embed",
    "emit",
    "export",
    "generate",
    "get_config",
    "load",
    "load_config",
    "reset",
    "scan",
    "segment",
    "state_bytes",
    "train",
]
