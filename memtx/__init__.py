"""memtx: Transformers with long-term memory, in JAX and Flax.

lm = memtx.build(config)                               a new model. `memtx.load(workdir)` loads a trained one, and
                                                       `memtx.load("smollm2")`, or a folder or file, a pretrained one
params = lm.init(key)
state = lm.init_state(batch)                           the memory: a pytree that you own
logits_BTV, state = lm(params, tokens_BT, state)

memtx.train(config, workdir)                           does the same as `memtx train`
memtx.generate(lm, params, tokenizer, prompt)          does the same as `memtx generate`
memtx.complete(lm, params, tokenizer, prompts)         generates for several prompts at once
memtx.write(memtx.load("t5-small"), sources).texts     translations, summaries, answers
memtx.answer(loaded, questions, texts)                 answers that are spans of texts
memtx.embed(memtx.load("minilm"), texts)               sentence embeddings
memtx.explain(memtx.load(workdir), text)               which entries each token was predicted from

`import memtx` is quick, because a name is imported from its module when it is first used.
"""

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memtx.config import Config
    from memtx.core import Dims, Segment, batch_axes, collect, detach, emit, reset, scan, segment, state_bytes, take_rows
    from memtx.errors import UserError
    from memtx.generate import GREEDY, Completion, Options, Sampling, complete, generate
    from memtx.library.explain import Explanation, explain
    from memtx.memory import MEMORIES
    from memtx.models.lm import LM
    from memtx.pretrained.load import export
    from memtx.runs.answer import answer
    from memtx.runs.configure import build, configure, get_config, load_config
    from memtx.runs.embed import embed
    from memtx.runs.load import Loaded, load
    from memtx.runs.train import Trained, train
    from memtx.runs.write import Written, write

__version__ = "0.1.0"

__all__ = [
    "GREEDY",
    "LM",
    "MEMORIES",
    "Completion",
    "Config",
    "Dims",
    "Explanation",
    "Loaded",
    "Options",
    "Sampling",
    "Segment",
    "Trained",
    "UserError",
    "Written",
    "answer",
    "batch_axes",
    "build",
    "collect",
    "complete",
    "configure",
    "detach",
    "embed",
    "emit",
    "explain",
    "export",
    "generate",
    "get_config",
    "load",
    "load_config",
    "reset",
    "scan",
    "segment",
    "state_bytes",
    "take_rows",
    "train",
    "write",
]

# The module of each public name: the imports above, for Python.
_MODULES = {
    "memtx.config": ("Config",),
    "memtx.core": (
        *("Dims", "Segment", "batch_axes", "collect", "detach", "emit", "reset", "scan", "segment", "state_bytes"),
        "take_rows",
    ),
    "memtx.errors": ("UserError",),
    "memtx.generate": ("GREEDY", "Completion", "Options", "Sampling", "complete", "generate"),
    "memtx.library.explain": ("Explanation", "explain"),
    "memtx.memory": ("MEMORIES",),
    "memtx.models.lm": ("LM",),
    "memtx.pretrained.load": ("export",),
    "memtx.runs.answer": ("answer",),
    "memtx.runs.configure": ("build", "configure", "get_config", "load_config"),
    "memtx.runs.embed": ("embed",),
    "memtx.runs.load": ("Loaded", "load"),
    "memtx.runs.train": ("Trained", "train"),
    "memtx.runs.write": ("Written", "write"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # a type checker would otherwise accept every name

    def __getattr__(name: str) -> Any:
        """Import a public name from its module, or a module of memtx (PEP 562)."""
        if name not in _HOME:
            if not name.startswith("_") and importlib.util.find_spec(f"memtx.{name}"):
                return importlib.import_module(f"memtx.{name}")
            raise AttributeError(f"module 'memtx' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package. `memtx.generate` is the function, even after the subpackage of the same name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
