"""Presets: models by size, with a mechanism in the same layers as in its paper."""

import dataclasses
import re
from itertools import groupby

from memtx.errors import UserError, check_known
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.lm import LM
from memtx.models.settings import complete_model, model_group
from memtx.pretrained.load import new_parameters, settings

SIZES = {
    "micro": {"width": 64, "num_heads": 2, "ff_dim": 128, "layers": 2},  # 0.1 M: for synthetic tasks
    "tiny": {"width": 128, "num_heads": 4, "ff_dim": 344, "layers": 4},  # 0.8 M parameters with bytes
    "small": {"width": 256, "num_heads": 4, "ff_dim": 704, "layers": 4},  # 3.3 M
    "base": {"width": 768, "num_heads": 12, "ff_dim": 2048, "layers": 12},  # 110 M with a vocabulary of 32,000
    "1b": {"width": 2048, "num_heads": 32, "num_kv_heads": 8, "ff_dim": 8192, "layers": 16},  # 1.0 B with 32,000
}


def preset(memory: str, size: str) -> dict:
    """Return the `model` group for a mechanism at a size.

    The mechanism is in the same layers as in its paper. Other layers have windows. Raises UserError for unknown names.
    """
    check_known(size, SIZES, "size")
    memory = MEMORIES.find(memory)
    model = dict(SIZES[size])
    layers, cls = model.pop("layers"), MEMORIES[memory]
    if cls.site in ("body", "head"):
        return {cls.site: memory, "stacks": (((cls.block or "window",), layers),), **model}
    held = cls.preset_layers(layers)
    entries = [cls.block or memory if i in held else "window" for i in range(layers)]
    return {"stacks": tuple(((entry,), len(list(run))) for entry, run in groupby(entries)), **model}


def encoder_decoder(size: str) -> dict:
    """Return the `model` group of an encoder-decoder like T5 v1.1."""
    check_known(size, SIZES, "size")
    model = dict(SIZES[size])
    layers = model.pop("layers")
    stacks = {"stacks": ((("full/cross/mlp",), layers),), "encoder": ((("bidirectional",), layers),)}
    return {**stacks, "position": "t5", "activation": "geglu", **model}


def on_pretrained(backbone: str, memory: str, layers: str, attention: str, context: str) -> tuple[dict, dict, str]:
    """Add a memory to a pretrained model. Returns the groups `model` and `memory`, and a regex of the new parameters.

    The arguments are those of configs/pretrained.py, as text. Raises UserError if they are not valid.
    """
    if not re.fullmatch(r"(\d+(\+\d+)*)?", layers) or not context.isdecimal():
        raise UserError(f"layers={layers} and context={context} must be numbers, as in layers=10+20,context=512")
    sees = {name: cls.context for name, cls in MEMORIES.items() if cls.context}
    check_known(attention, ("own", *sees), "attention")
    memory = memory if memory == "none" else MEMORIES.find(memory)
    model = settings(backbone, context=int(context))
    own = patterns.layers(model.stacks)
    entries = own if attention == "own" else [attention] * len(own)
    changes: dict = {"closed": True}
    if memory != "none" and MEMORIES[memory].site in ("body", "head"):
        changes[MEMORIES[memory].site] = memory
    elif memory != "none":
        held = [int(i) for i in layers.split("+")] if layers else MEMORIES[memory].preset_layers(len(own))
        if max(held) >= len(own):
            raise UserError(f"layers={layers} is out of range: {backbone} has layers 0 to {len(own) - 1}")
        entries = [_add_memory(memory, entry) if i in held else entry for i, entry in enumerate(entries)]
    changes["stacks"] = tuple(((entry,), len(list(run))) for entry, run in groupby(entries))
    changes["memory"] = {name: {sees[name]: int(context)} for name in (attention, memory) if name in sees} | dict(model.memory)
    if memory != "none" and (begin := MEMORIES[memory].on_backbone(MEMORIES.get(attention))):
        changes["memory"][memory] = {**changes["memory"].get(memory, {}), **begin}
    model = complete_model(dataclasses.replace(model, **changes))
    new = new_parameters(LM(model))
    group = model_group(model)
    memories = {name: dataclasses.asdict(config) for name, config in model.memory.items()}
    return group, memories, f"^({'|'.join(map(re.escape, new))})$" if new else ""


def _add_memory(memory: str, entry: str) -> str:
    """Return a layer of a backbone with a memory in place of its attention, beside it, or beside its MLP."""
    cls = MEMORIES[memory]
    if cls.site == "attention":
        return memory
    beside_mlp = f"/{memory}" in (cls.block or "")
    return f"{entry}/mlp+{memory}" if beside_mlp else f"{entry}+{memory}"
