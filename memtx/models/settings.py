"""The rules of a model: which settings are compatible, and the values that follow from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memtx.config import Model
from memtx.errors import UserError, check_known, quoted
from memtx.fields import to_dataclass
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.outputs import OUTPUTS, POOLS, PROJECTIONS
from memtx.nn.mlp import ACTIVATIONS, GATED


def complete_model(model: Model) -> Model:
    """Check a model's settings and fill in those that follow from others (fields left at 0).

    The settings of each memory become its Config, capped at the capacity that the surrounding body can use. Raises UserError if
    settings are incompatible.
    """
    model = to_dataclass(Model, vars(model), "model")
    stacks, encoder = model.stacks, model.encoder
    memory = {}
    named = patterns.names(stacks + encoder, model.body, model.encoder_body, model.head)
    for name in [*model.memory, *named]:
        check_known(name, MEMORIES, "memory")
    _check_sites(model, stacks + encoder, {name: MEMORIES[name] for name in named})
    for part in (stacks, encoder):
        patterns.readings(part)  # checks that each reader has something to read
    for name in named:
        settings = model.memory.get(name, {})
        cls = MEMORIES[name].Config
        memory[name] = settings if isinstance(settings, cls) else to_dataclass(cls, settings, f"memory.{name}")
    if model.body and (room := MEMORIES[model.body].room(memory[model.body])):
        memory = {name: MEMORIES[name].within(at, room) for name, at in memory.items()}
    _check_choices(model)
    _check_bodies(model)
    return dataclasses.replace(model, memory=memory, **_sizes(model))


def _check_choices(model: Model) -> None:
    """Raise a UserError unless memtx supports each setting."""
    check_known(model.activation, ACTIVATIONS, "model.activation")
    check_known(model.norm, ["rms", "layer"], "model.norm")
    check_known(model.position, ["rope", "alibi", "t5", "learned", "none"], "model.position")
    check_known(model.dtype, ["float32", "bfloat16", "float16"], "model.dtype")
    check_known(model.output, ["", *OUTPUTS], "model.output")
    for pool in model.pool.split("+"):
        check_known(pool, [*POOLS, *(() if "+" in model.pool else ("cls", "document"))], "model.pool")
    for _, activation, _ in model.projections:
        check_known(activation, PROJECTIONS, "activation in model.projections")
    _check_labels(model)
    if not model.stacks or not all(pattern for pattern, _ in model.stacks + model.encoder):
        raise UserError("model.stacks needs at least one (pattern, groups), and each pattern a name")
    for name in patterns.names(model.stacks + model.encoder):
        if model.position not in (known := MEMORIES[name].positions):
            raise UserError(f"{name} does not support model.position={model.position}; set it to {' or '.join(known)}")


def _check_bodies(model: Model) -> None:
    """Raise a UserError unless `body` and `encoder_body` can call the layers inside them."""
    if model.encoder_body and not model.encoder:
        raise UserError(f"model.encoder_body={model.encoder_body} needs an encoder; set model.encoder")
    for key, around, part in (("body", model.body, model.stacks), ("encoder_body", model.encoder_body, model.encoder)):
        inside = [MEMORIES[name] for name in patterns.names(part)] if around else []
        if not all(cls.causal for cls in inside) and MEMORIES[around].causal:
            others = [name for name, cls in MEMORIES.items() if cls.site == "body" and not cls.causal]
            raise UserError(
                f"model.{key}={around} is for causal layers; around bidirectional layers set model.{key}={' or '.join(others)}"
            )
        if any(cls.encoded for cls in inside):
            raise UserError(f"model.{key}={around} resets the state of its layers, and cross-attention would lose its source")


def _sizes(model: Model) -> dict[str, Any]:
    """Return the sizes that follow from others. Raises UserError if one does not divide another as it must."""
    if not model.head_dim and model.width % model.num_heads:
        raise UserError(f"model.num_heads={model.num_heads} does not divide model.width={model.width}; or set model.head_dim")
    kv_heads, head_dim = model.num_kv_heads or model.num_heads, model.head_dim or model.width // model.num_heads
    if model.num_heads % kv_heads:
        raise UserError(f"model.num_kv_heads={kv_heads} does not divide model.num_heads={model.num_heads}")
    if model.position == "rope" and head_dim % 2:
        raise UserError(f"rope needs an even head_dim, not {head_dim}; change model.width, model.num_heads or model.head_dim")
    if len(model.rope_scaling) not in (0, 4):
        raise UserError(f"model.rope_scaling must be (factor, low, high, length) or (), not {model.rope_scaling}")
    gated = model.activation in GATED
    ff_dim = model.ff_dim or (-(-8 * model.width // 24) * 8 if gated else 4 * model.width)
    embed_scale = model.embed_scale or (model.width**0.5 if model.tied else 1.0)
    return {"num_kv_heads": kv_heads, "head_dim": head_dim, "ff_dim": ff_dim, "embed_scale": embed_scale}


def _check_labels(model: Model) -> None:
    """Raise a UserError unless there is one name per class and all names differ."""
    if not all(isinstance(label, str) for label in model.labels) or len(set(model.labels)) < len(model.labels):
        raise UserError(f"model.labels must be distinct strings, not {quoted(model.labels)}")
    if model.labels and len(model.labels) != model.classes:
        raise UserError(f"model.classes={model.classes}, but model.labels has {len(model.labels)}: {quoted(model.labels)}")


def _check_sites(model: Model, stacks, classes: Mapping[str, Any]) -> None:
    """Raise a UserError unless each mechanism is at its site."""
    site = {name: cls.site for name, cls in classes.items()}
    for key, at in (("body", "body"), ("encoder_body", "body"), ("head", "head")):
        if (name := getattr(model, key)) and site[name] != at:
            raise UserError(f"model.{key}={name} is not allowed: {name} belongs in model.stacks")
    for entry in (entry for pattern, _ in stacks for entry in pattern):
        for branch in patterns.parse(entry):
            for name in branch.names:
                if site.get(name) in ("body", "head"):
                    raise UserError(f"{name} cannot be in model.stacks; set model.{site[name]}={name}")
            for name in branch.read:
                if site.get(name) != "attention" or not classes[name].readable:
                    readable = "only key-value memories that are written without parameters"
                    raise UserError(f"^{name} in {entry!r} is not allowed: other layers can read {readable}")
            if branch.gated and model.closed:
                raise UserError(f"{entry!r}: a gate between memories starts half open; with model.closed, use + instead of *")


def model_group(model: Model) -> dict[str, Any]:
    """Return the group `model` of a config file for this model. Its memories are a separate group."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name != "memory"}
