"""Sizes by name, and where a mechanism stands in a model of that size."""

import dataclasses
import re
from itertools import groupby

from memtx.config import complete_model, model_group
from memtx.errors import UserError, check_known
from memtx.memory import MEMORIES
from memtx.memory.sink import Sink
from memtx.models import patterns
from memtx.models.lm import LM
from memtx.pretrained.load import new_parameters, settings

SIZES = {
    "micro": {"width": 64, "num_heads": 2, "ff_dim": 128, "layers": 2},  # 0.1 M: for synthetic tasks
    "tiny": {"width": 128, "num_heads": 4, "ff_dim": 344, "layers": 4},  # 0.8 M parameters with bytes
    "small": {"width": 256, "num_heads": 4, "ff_dim": 704, "layers": 4},  # 3.3 M
    "base": {"width": 768, "num_heads": 12, "ff_dim": 2048, "layers": 12},  # 110 M with a vocabulary of 32,000
    "1b": {"width": 2048, "num_heads": 32, "num_kv_heads": 8, "ff_dim": 8192, "layers": 16},  # 1.0 B with 32,000
}


def preset(memory: str, size: str) -> dict:
    """The `model` group for a mechanism at a size: it stands where its paper has it, windows elsewhere."""
    check_known(size, SIZES, "size")
    check_known(memory, MEMORIES, "memory")
    model = dict(SIZES[size])
    layers, cls = model.pop("layers"), MEMORIES[memory]
    if cls.site in ("body", "head"):
        return {cls.site: memory, "stacks": (((getattr(cls, "block", "window"),), layers),), **model}
    held = _places(cls, layers)
    entries = [getattr(cls, "block", memory) if i in held else "window" for i in range(layers)]
    return {"stacks": tuple(((entry,), len(list(run))) for entry, run in groupby(entries)), **model}


def encoder_decoder(size: str) -> dict:
    """The `model` group of an encoder-decoder as T5 v1.1 is."""
    check_known(size, SIZES, "size")
    model = dict(SIZES[size])
    layers = model.pop("layers")
    stacks = {"stacks": ((("full/cross/mlp",), layers),), "encoder": ((("bidirectional",), layers),)}
    return {**stacks, "position": "t5", "activation": "geglu", **model}


SIGHT = {"full": "capacity", "window": "window", "sink": "window", "memorizing": "window"}  # the setting that `context` is


def on_pretrained(backbone: str, memory: str, layers: str, attention: str, context: str) -> tuple[dict, dict, str]:
    """A pretrained model with a memory: the groups `model` and `memory`, and a regex of the parameters that are new.

    The arguments are those of configs/pretrained.py, as text. UserError for what cannot be.
    """
    if not re.fullmatch(r"(\d+(\+\d+)*)?", layers) or not context.isdecimal():
        raise UserError(f"layers={layers} and context={context} should be numbers, as in layers=10+20,context=512")
    check_known(attention, ("own", "full", "window", "sink"), "attention")
    check_known(memory, ("none", *MEMORIES), "memory")
    model = settings(backbone, context=int(context))
    own = patterns.layers(model.stacks)
    entries = own if attention == "own" else [attention] * len(own)
    changes: dict = {"closed": True}
    if memory != "none" and MEMORIES[memory].site in ("body", "head"):
        changes[MEMORIES[memory].site] = memory
    elif memory != "none":
        held = [int(i) for i in layers.split("+")] if layers else _places(MEMORIES[memory], len(own))
        if max(held) >= len(own):
            raise UserError(f"layers={layers}: {backbone} has the layers 0 to {len(own) - 1}")
        entries = [_with(memory, entry) if i in held else entry for i, entry in enumerate(entries)]
    changes["stacks"] = tuple(((entry,), len(list(run))) for entry, run in groupby(entries))
    changes["memory"] = {name: {SIGHT[name]: int(context)} for name in (attention, memory) if name in SIGHT} | dict(
        model.memory
    )
    if memory == "memorizing":
        # queries and keys as the backbone knows them, and what its other layers see: closed, it is one of them
        changes["memory"]["memorizing"] |= {"normalise": False, "sinks": Sink.Config.sinks if attention == "sink" else 0}
    model = complete_model(dataclasses.replace(model, **changes))
    new = new_parameters(LM(model))
    group = model_group(model)
    memories = {name: dataclasses.asdict(config) for name, config in model.memory.items()}
    return group, memories, f"^({'|'.join(map(re.escape, new))})$" if new else ""


def _places(cls, layers: int):
    """The layers that hold a mechanism, where its paper has it."""
    return cls.place(layers) if hasattr(cls, "place") else range(layers)


def _with(memory: str, entry: str) -> str:
    """A backbone's layer with a memory: in place of its attention, beside it, or beside its MLP."""
    cls = MEMORIES[memory]
    if cls.site == "attention":
        return memory
    beside_mlp = f"/{memory}" in getattr(cls, "block", "")
    return f"{entry}/mlp+{memory}" if beside_mlp else f"{entry}+{memory}"
